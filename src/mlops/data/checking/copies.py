"""Pictures that stand in a source more than once, byte for byte or nearly, sorted by what is wrong with that."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlops.data.checking.facts import Facts
from mlops.data.checking.likeness import BLANK, Differences
from mlops.data.checking.neighbours import Integers
from mlops.data.checking.pairs import search
from mlops.data.checking.sides import Sides, given_side
from mlops.data.listing import Entry

# Between two splits of the source; between two that training draws; under two labels; else only between two groups.
Kind = Literal["leaks", "drawn", "labels", "groups"]
KINDS: tuple[Kind, ...] = ("leaks", "drawn", "labels", "groups")


@dataclass(frozen=True)
class Copies:
    """Positions of entries: `sets` are the same byte for byte, `pairs` near-identical, `[M, 2]`, the likest first.

    Of each kind, `of` has the places in `pairs`: a pair may be of two labels and in two splits. `blank` are pictures
    with hardly any contrast, which are like nothing. `candidates` pairs had near hashes, and `looked` of them were
    looked at.
    """

    sets: list[list[int]]
    pairs: Integers
    difference: Differences
    of: dict[Kind, Integers]
    blank: list[int]
    candidates: int
    looked: int

    def across(self, sides: Sequence[object]) -> list[list[int]]:
        """The sets with several of `sides`, which has one for every entry."""
        return [found for found in self.sets if len({sides[position] for position in found}) > 1]


def find_copies(entries: Sequence[Entry], hashes: Sequence[str], sides: Sides, facts: Facts) -> Copies:
    """Compare all readable pictures. Those with hardly any contrast are left out of the near-identical ones."""
    by_content: dict[tuple[str, tuple[int, ...] | None], list[int]] = defaultdict(list)
    for position in facts.positions.tolist():
        by_content[hashes[position], entries[position].box].append(position)
    content = np.zeros(len(entries), dtype=np.int64)
    first = np.zeros(len(entries), dtype=np.bool_)
    given = _numbers([given_side(entry) for entry in entries])
    split, group = _numbers(sides.split), _numbers(sides.group)
    label = np.array([entry.label for entry in entries], dtype=np.int64)
    for number, positions in enumerate(by_content.values()):
        content[positions] = number
        # One of each kind speaks for all of its copies.
        first[list({(split[p], given[p], label[p]): p for p in reversed(positions)}.values())] = True
    seen = np.flatnonzero((facts.contrast >= BLANK) & first[facts.positions])
    at = facts.positions[seen]
    ordered = (given[at], split[at], label[at], group[at])
    size = np.minimum(facts.width, facts.height)[seen]
    alike = search(lambda places: facts.pixels[seen[places]], facts.hashes[seen], size, ordered, content[at])
    pairs = at[alike.pairs]
    one, other = pairs.T
    leaks = given[one] != given[other]
    placed = np.array([bool(split) for split in sides.split])
    drawn = (split[one] != split[other]) & placed[one] & placed[other]
    labels = label[one] != label[other]
    masks = (leaks, drawn & ~leaks, labels, ~(leaks | drawn | labels))
    return Copies(
        [positions for positions in by_content.values() if len(positions) > 1],
        pairs,
        alike.difference,
        {kind: np.flatnonzero(mask) for kind, mask in zip(KINDS, masks, strict=True)},
        facts.positions[facts.contrast < BLANK].tolist(),
        alike.candidates,
        alike.looked,
    )


def _numbers(values: Sequence[str]) -> Integers:
    """Values as numbers: names may be of any length, and an array of strings is as wide as its longest."""
    order: dict[str, int] = {}
    return np.array([order.setdefault(value, len(order)) for value in values], dtype=np.int64)
