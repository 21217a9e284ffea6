"""Pictures that are the same byte for byte: never parted, and never with two labels.

Where we draw the splits ourselves, copies are put into one group and so stay on one side. What is left are the faults
of a source: a copy in two of the splits that it gives, or under two labels.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from mlops.data.listing import Entry
from mlops.errors import MlopsError, shorten

# What a copy in one split loses to: the official test stays whole, and validation before training.
_RANK = {None: 0, "train": 0, "val": 1, "test": 2}


def settle(
    entries: Sequence[Entry],
    hashes: Sequence[str],
    classes: Sequence[str],
    action: str,
    is_picture: Callable[[Entry], bool],
) -> tuple[list[Entry], list[str], list[dict[str, str]]]:
    """What is kept of `entries` with their hashes, and the path and reason of what is dropped.

    Copies are entries of equal hash and box; an empty hash is an unreadable file and equals nothing. Of those in
    `train` or without a split, copies get one group, the first of theirs by name, and so do their groups' others.
    `is_picture` is asked of one of each set of copies: empty files and pages that say 404 are no copies of a picture.

    `drop` keeps, of copies in several splits of the source, those in test, else those in val; of copies in training
    with several labels it keeps none, because nobody knows which is right. What test and val hold is never changed.

    Raises:
        MlopsError: `action` is refuse and a picture stands in two splits of the source or under two labels.
    """
    copies: dict[tuple[str, tuple[int, ...] | None], list[int]] = defaultdict(list)
    for position, (entry, digest) in enumerate(zip(entries, hashes, strict=True)):
        if digest:
            copies[digest, entry.box].append(position)
    several = [found for found in copies.values() if len(found) > 1 and is_picture(entries[found[0]])]
    clashes = [positions for positions in several if len({_side(entries[p]) for p in positions}) > 1]
    if clashes and action == "refuse":
        named = [" = ".join(_shown(entries[p], classes) for p in positions[:3]) for positions in clashes]
        stand = "picture stands" if len(clashes) == 1 else "pictures stand"
        raise MlopsError(
            f"data.duplicates=refuse: {len(clashes):,} {stand} in two splits or classes, byte for byte: "
            f"{shorten(named)}; mend the source, or set data.duplicates=drop (test keeps its copy, then val; "
            "training images with two labels all go)"
        )
    reasons: dict[int, str] = {}
    for positions in clashes:
        reasons |= _losers(entries, positions, classes)
    together = _merged_groups(entries, [[p for p in positions if p not in reasons] for positions in several])
    kept = [
        (replace(entry, group=together.get(entry.group, entry.group)), digest)
        for position, (entry, digest) in enumerate(zip(entries, hashes, strict=True))
        if position not in reasons
    ]
    dropped = [{"path": entries[p].path, "reason": reasons[p]} for p in sorted(reasons)]
    return [entry for entry, _ in kept], [digest for _, digest in kept], dropped


def _side(entry: Entry) -> tuple[int, int]:
    return _RANK[entry.split], entry.label


def _shown(entry: Entry, classes: Sequence[str]) -> str:
    return f"{entry.path} ({f'{entry.split}, ' if entry.split else ''}{classes[entry.label]})"


def _losers(entries: Sequence[Entry], positions: Sequence[int], classes: Sequence[str]) -> dict[int, str]:
    """Which of these copies go, and why."""
    highest = max(_RANK[entries[p].split] for p in positions)
    winner = next(p for p in positions if _RANK[entries[p].split] == highest)
    if highest > 0:
        reason = f"the same picture as {_shown(entries[winner], classes)}"
        return {p: reason for p in positions if _RANK[entries[p].split] < highest}
    others = {p: next(o for o in positions if entries[o].label != entries[p].label) for p in positions}
    return {p: f"the same picture as {_shown(entries[o], classes)}" for p, o in others.items()}


def _merged_groups(entries: Sequence[Entry], copies: Sequence[Sequence[int]]) -> dict[str, str]:
    """The new name of every group that is joined to another by a copy that we may place."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while name in parent:
            name = parent[name]
        return name

    for positions in copies:
        names = {root(entries[p].group) for p in positions if _RANK[entries[p].split] == 0}
        first = min(names, default="")
        # The first by name, so that the order of the images does not matter.
        parent |= {name: first for name in names if name != first}
    return {name: root(name) for name in parent}
