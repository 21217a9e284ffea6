"""Train, validation and test: stratified by class, never parting a group.

scikit-learn's `StratifiedGroupKFold` makes k equal folds; here the shares are the user's, the sides are three, and
the result must stay the same when a library changes, because it is part of what a checkpoint promises.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from mlops.config import SplitConfig
from mlops.data.keyed import key
from mlops.data.listing import Entry
from mlops.errors import MlopsError


def assign(entries: Sequence[Entry], classes: Sequence[str], config: SplitConfig) -> list[str]:
    """The split of every entry. Where the source says so it stays; `train` gives up what is missing.

    A pure function of the entries and of `config`, whatever their order.

    Raises:
        MlopsError: a class would miss from a split, or the source parts a group itself.
    """
    given = {entry.split for entry in entries if entry.split}
    shares = {split: share for split, share in (("val", config.val), ("test", config.test)) if split not in given}
    open_ = [entry for entry in entries if entry.split in (None, "train")]
    chosen = _draw(open_, classes, shares, config.seed)
    splits = [chosen[entry.group] if entry.split in (None, "train") else entry.split for entry in entries]
    _check(entries, splits, classes, ("train", *shares))
    return [str(split) for split in splits]


def limit(entries: Sequence[Entry], count: int | None, seed: int) -> list[Entry]:
    """About `count` entries: whole groups, taken from each class in turn, and from each split that the source names."""
    if count is None or count >= len(entries):
        return list(entries)
    kept: set[tuple[str | None, str]] = set()
    by_split: dict[str | None, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_split[entry.split].append(entry)
    for split, members in by_split.items():
        sizes, labels = _sizes(members)
        queues: dict[int, list[str]] = defaultdict(list)
        for name in _shuffled(sizes, key(seed, "limit", str(split))):
            queues[min(labels[name])].append(name)
        wanted, taken = count * len(members) / len(entries), 0
        while taken < wanted:
            for label in sorted(queues):
                if queues[label] and taken < wanted:
                    name = queues[label].pop()
                    kept.add((split, name))
                    taken += sizes[name]
    return [entry for entry in entries if (entry.split, entry.group) in kept]


def _draw(entries: Sequence[Entry], classes: Sequence[str], shares: dict[str, float], seed: int) -> dict[str, str]:
    """The split of each group, so that in every class each split's share of the images comes out as near as it can.

    Largest groups first, because the small ones even out what those leave; each goes where it is missed most.
    """
    sizes, labels = _sizes(entries)
    order = sorted(_shuffled(sizes, key(seed, "split")), key=lambda name: -sizes[name])
    names = [*shares, "train"]
    share = np.array([*shares.values(), 1 - sum(shares.values())])
    total = np.bincount([entry.label for entry in entries], minlength=len(classes))
    # What each split still misses of each class, in images; at least one image of each class is wanted everywhere.
    missing = np.maximum(np.outer(share, total), 1.0)
    chosen = {}
    empty = np.ones((len(names), len(classes)), dtype=bool)
    groups_left = np.zeros(len(classes), dtype=np.int64)
    for counts in labels.values():
        groups_left[list(counts)] += 1
    for name in order:
        held, amounts = list(labels[name]), np.array(list(labels[name].values()))
        # A class with hardly more groups left than splits without it must serve those first.
        urgent = groups_left[held] <= empty[:, held].sum(axis=0)
        need = missing[:, held] / np.maximum(share[:, None] * total[held], 1.0) + 1e6 * (empty[:, held] & urgent)
        best = int(np.argmax(need @ amounts))
        chosen[name] = names[best]
        missing[best, held] -= amounts
        empty[best, held] = False
        groups_left[held] -= 1
    return chosen


def _check(
    entries: Sequence[Entry], splits: Sequence[str | None], classes: Sequence[str], drawn: Sequence[str]
) -> None:
    sides: dict[str, str | None] = {}
    for entry, split in zip(entries, splits, strict=True):
        if sides.setdefault(entry.group, split) != split:
            raise MlopsError(
                f"data.group: group {entry.group} stands in {sides[entry.group]} and in {split} of the source; "
                "a group that is parted leaks: mend the folders or the expression"
            )
    present = set(zip(splits, (entry.label for entry in entries), strict=True))
    groups: dict[int, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.split in (None, "train"):
            groups[entry.label].add(entry.group)
    # A source's own val or test may lack a class; those drawn here may not, and nothing is learned of one train lacks.
    problems = [
        f"data.split: class {name} has too few groups of images ({len(groups[label])}) to stand in "
        f"{', '.join(drawn)} without parting one; add images or leave the class out"
        for label, name in enumerate(classes)
        if any((split, label) not in present for split in drawn)
    ]
    if problems:
        raise MlopsError(problems)


def _sizes(entries: Sequence[Entry]) -> tuple[Counter[str], dict[str, Counter[int]]]:
    """Images in each group, and in each group those of each class."""
    sizes: Counter[str] = Counter()
    labels: dict[str, Counter[int]] = defaultdict(Counter)
    for entry in entries:
        sizes[entry.group] += 1
        labels[entry.group][entry.label] += 1
    return sizes, labels


def _shuffled(names: Sequence[str] | Counter[str], seed: int) -> list[str]:
    # Sorted by a hash, not by a generator's shuffle: the same on every platform and version.
    return sorted(sorted(names), key=lambda name: key(seed, name))
