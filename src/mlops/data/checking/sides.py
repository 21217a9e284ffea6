"""Which split every image is in: the source's own, and where it gives none the one that training would draw."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlops import image
from mlops.config import SplitConfig
from mlops.data import split as splitting
from mlops.data.duplicates import settle
from mlops.data.listing import SPLITS, Entry
from mlops.data.tree import Tree
from mlops.errors import MlopsError


@dataclass(frozen=True)
class Sides:
    """`split` and `group` of every entry, as training has them; the split is empty where there is none.

    `given` are the splits of the source, `drawn` those that training draws; `parted` are the groups that stand in
    several splits of the source, `problems` is why no splits can be drawn.
    """

    split: list[str]
    group: list[str]
    given: list[str]
    drawn: list[str]
    parted: list[str]
    problems: list[str]


def given_side(entry: Entry) -> str:
    """The split of the source; what it leaves open is ours to place, as its train is."""
    return entry.split or "train"


def find_sides(
    tree: Tree, entries: Sequence[Entry], hashes: Sequence[str], classes: Sequence[str], config: SplitConfig
) -> Sides:
    """Part `entries` as preparing them would, but around all that it would refuse."""
    given = [split for split in SPLITS if any(entry.split == split for entry in entries)]
    standing: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        standing[entry.group].add(given_side(entry))
    parted = sorted(group for group, splits in standing.items() if len(splits) > 1)
    # A parted group is two groups here: it is told of, and the others are parted all the same.
    apart = set(parted)
    whole = [replace(e, group=f"{e.group} ({given_side(e)})") if e.group in apart else e for e in entries]
    kept, _, _ = settle(whole, hashes, classes, "drop", lambda entry: image.is_image(tree.read(entry.path)))
    splits, problems, drawn = {entry.path: entry.split for entry in entries}, [], list[str]()
    try:
        splits |= dict(zip((e.path for e in kept), splitting.assign(kept, classes, config), strict=True))
        drawn = [split for split in SPLITS if split not in given]
    except MlopsError as error:
        problems = error.problems
    groups = {entry.path: entry.group for entry in whole} | {entry.path: entry.group for entry in kept}
    return Sides(
        [splits[entry.path] or "" for entry in entries],
        [groups[entry.path] for entry in entries],
        given,
        drawn,
        parted,
        problems,
    )
