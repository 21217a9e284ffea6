"""The near-identical pictures of a data set: near hashes first, then a look at the pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mlops.data.checking.likeness import Differences, differences, most_different
from mlops.data.checking.neighbours import Integers, near
from mlops.data.checking.phash import Hashes
from mlops.image import Pixels
from mlops.progress import bar

# A look takes some 40 microseconds. Films without groups have millions of such pairs, all of them saying the same.
_MOST_LOOKS = 200_000
_BATCH = 256


@dataclass(frozen=True)
class Alike:
    """Near-identical pairs `[M, 2]`, the first the lower, the likest first, and how different they are, `[M]`.

    Of `candidates` pairs with near hashes, `looked` were looked at: all, or those that matter most.
    """

    pairs: Integers
    difference: Differences
    candidates: int
    looked: int


def search(
    look: Callable[[Integers], Pixels],
    hashes: Hashes,
    size: Integers,
    sides: Sequence[Integers],
    content: Integers,
) -> Alike:
    """Pairs of near-identical pictures that differ in one of `sides`, such as split, class and group.

    Where there are too many to look at, those that differ in an earlier side go first.

    Args:
        look: gives the pictures at some positions, uint8 `[M, 32, 32, 3]`.
        hashes: the perceptual ones, `[N]`.
        size: the shorter side of every picture before it was made small, in pixels, `[N]`.
        sides: each `[N]`.
        content: pictures of equal content, `[N]`, are the same byte for byte, and no pair.
    """
    pairs = near(hashes, sides).pairs
    pairs = pairs[content[pairs[:, 0]] != content[pairs[:, 1]]]
    one, other = pairs.T
    bits = np.bitwise_count(hashes[one] ^ hashes[other])
    rank = np.full(len(pairs), len(sides))
    for position, side in reversed(list(enumerate(sides))):
        rank[side[one] != side[other]] = position
    # By path where all else is equal, so that the same data gives the same page.
    chosen = pairs[np.lexsort((pairs[:, 1], pairs[:, 0], bits, rank))[:_MOST_LOOKS]]
    found = np.empty(len(chosen), dtype=np.float32)
    with bar("comparing", len(chosen), "pairs") as progress:
        for start in range(0, len(chosen), _BATCH):
            part = chosen[start : start + _BATCH]
            found[start : start + _BATCH] = differences(look(part[:, 0]), look(part[:, 1]))
            progress.advance(len(part))
    kept = np.flatnonzero(found <= most_different(size[chosen].max(axis=1)))
    kept = kept[np.argsort(found[kept], kind="stable")]
    return Alike(chosen[kept], found[kept], len(pairs), len(chosen))
