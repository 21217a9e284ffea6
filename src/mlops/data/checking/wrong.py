"""What has to be mended before training, one line each: what, where, the value, what to do."""

from collections.abc import Sequence

from mlops.data.checking.found import Found, many
from mlops.data.checking.neighbours import Integers
from mlops.data.listing import check_classes
from mlops.errors import shorten


def leaks(found: Found) -> list[str]:
    """What stands in two splits that the source gives: scores would be flattered, so these are errors."""
    parted, copies = found.sides.parted, found.copies
    lines = []
    if sets := copies.across(found.given()):
        lines.append(
            f"{found.where}: {many(len(sets), 'picture')} in two splits of the source, byte for byte: "
            f"{_sets(found, sets)}; keep one copy of each, or set data.duplicates=drop"
        )
    if len(places := copies.of["leaks"]) and found.near_leaks:
        lines.append(
            f"{found.where}: {many(len(places), 'pair')} of near-identical pictures across splits of the source: "
            f"{_pairs(found, places)}; keep both in one "
            "split (or, where a camera that never moves makes all alike, --near=warn)"
        )
    if parted:
        lines.append(
            f"{found.where}: {many(len(parted), 'group')} in two splits of the source: {shorten(parted)}; keep each "
            "in one split, or mend data.group"
        )
    return lines


def problems(found: Found) -> list[str]:
    """Everything else that has to be mended before training."""
    classes, total = found.listing.classes, len(found.listing.entries)
    lines = check_classes(classes, found.where)
    if unreadable := found.facts.unreadable:
        named = shorten([f"{one['path']} ({one['reason']})" for one in unreadable])
        lines.append(
            f"{found.where}: {len(unreadable):,} of {total:,} images cannot be read: {named}; mend or remove them"
        )
    if sets := found.copies.across(found.labels()):
        lines.append(
            f"{found.where}: {many(len(sets), 'picture')} under two labels, byte for byte: {_sets(found, sets)}; "
            "keep the right one, or set data.duplicates=drop"
        )
    if len(classes) < 2:
        lines.append(f"{found.where}: holds one class only ({shorten(classes)}); a classifier needs two or more")
    return lines + found.sides.problems


def _sets(found: Found, sets: Sequence[Sequence[int]]) -> str:
    return shorten([" = ".join(_named(found, position) for position in positions[:3]) for positions in sets])


def _pairs(found: Found, places: Integers) -> str:
    named = [" ~ ".join(_named(found, int(p)) for p in found.copies.pairs[place]) for place in places[:3]]
    return shorten(named + [""] * (len(places) - 3))


def _named(found: Found, position: int) -> str:
    one = found.named(position)
    return f"{one['path']} ({one['split']}, {one['class']})" if one["split"] else f"{one['path']} ({one['class']})"
