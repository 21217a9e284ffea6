"""The page of a check: what is wrong first, look-alikes side by side, then what the images are like."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlops import page
from mlops.data.checking.copies import KINDS, Kind
from mlops.data.checking.found import Found
from mlops.data.decode import Geometry, Unreadable, decode_one
from mlops.image import Pixels

# Of each kind: what keeps the page at a few megabytes, and is more than anybody looks at.
_MOST_PAIRS = 24
# Beyond these a click away.
_FIRST_PAIRS = 9
_THUMBNAIL = Geometry(64, 64, "pad", "bilinear")
_MOST_ROWS = 100

_TITLES: dict[Kind, tuple[str, str]] = {
    "leaks": (
        "Near-identical across splits",
        "The model is tested on what it was trained on. Keep both of a pair in one split.",
    ),
    "drawn": (
        "Near-identical across drawn splits",
        "Training would part them. Copies byte for byte are kept together when splits are drawn; these are not, unless "
        "they are named as one group: by data.group, a regular expression on file names, or in a column group.",
    ),
    "labels": ("Near-identical under two labels", "One of the labels may be wrong."),
    "groups": (
        "Near-identical within a class and split",
        "Harmless where they are. Where training draws the splits, another seed may part them, unless one group holds "
        "both.",
    ),
}

# Two pictures, each with its lines of text, and what is said of both.
Pair = tuple[tuple[tuple[Pixels, list[str]], tuple[Pixels, list[str]]], str]


def pair_pictures(found: Found) -> dict[Kind, list[Pair]]:
    """The likest pairs of each kind, one of any two groups, as small pictures."""
    return {kind: _chosen(found, found.copies.of[kind].tolist()) for kind in KINDS}


def _chosen(found: Found, places: Sequence[int]) -> list[Pair]:
    group = found.sides.group
    both = [frozenset(group[int(position)] for position in found.copies.pairs[place]) for place in places]
    more = Counter(both)
    chosen: list[Pair] = []
    seen: Counter[str] = Counter()
    for place, groups in zip(places, both, strict=True):
        # A picture that is like a hundred others is shown with two of them, so that all kinds of pairs are seen.
        if len(chosen) == _MOST_PAIRS or any(seen[name] >= 2 for name in groups) or more[groups] == 0:
            continue
        seen.update(groups)
        said = f"differ in {found.copies.difference[place]:.1%} of their contrast"
        if more[groups] > 1:
            said += f"; {more[groups] - 1:,} more of the same two groups"
        more[groups] = 0
        one, other = (_picture(found, int(position)) for position in found.copies.pairs[place])
        chosen.append(((one, other), said))
    return chosen


def _picture(found: Found, position: int) -> tuple[Pixels, list[str]]:
    entry, named = found.listing.entries[position], found.named(position)
    decoded = decode_one(found.listing.tree, entry.path, _THUMBNAIL, entry.box)
    # Read once before, so only a file that has changed since is unreadable now.
    pixels = np.zeros((1, 1, 3), np.uint8) if isinstance(decoded, Unreadable) else decoded.pixels
    return pixels, [named["class"], *([named["split"]] if named["split"] else []), named["path"]]


def render(values: Mapping[str, Any], shown: Mapping[Kind, Sequence[Pair]]) -> str:
    """check.json as a page, with the pairs to show."""
    wrong = [*values["leaks"], *values["problems"]]
    source = values["source"]
    kinds = [(_TITLES[kind][0], _pairs(kind, values["alike"][kind]["count"], shown[kind])) for kind in KINDS]
    return page.page(
        f"{values['images']:,} images of {len(values['classes']):,} classes, checked",
        f"{', '.join(filter(None, (source['kind'], source['root'])))}, {values['created']}",
        [
            ("", _tiles(values)),
            ("To mend before training", _lines(wrong, "bad")),
            ("Worth a look", _lines(values["remarks"])),
            *kinds,
            ("The same, byte for byte", _copies(values["copies"])),
            ("Unreadable", _unreadable(values["unreadable"])),
            ("Classes", _classes(values)),
            ("Splits", _splits(values)),
            ("Sizes, brightness and contrast", _measures(values)),
            ("How this was found", _method(values)),
        ],
    )


def _tiles(values: Mapping[str, Any]) -> str:
    size = values["spread"].get("shorter side, pixels")
    return page.tiles(
        [
            ("images", f"{values['images']:,}"),
            ("classes", f"{len(values['classes']):,}"),
            ("groups", f"{sum(values['groups'].values()):,}"),
            ("leaks between splits", f"{sum(values['leaking'].values()):,}"),
            ("other problems", f"{len(values['problems']):,}"),
            ("copies, byte for byte", f"{values['copies']['extra']:,}"),
            ("near-identical pairs", f"{values['compared']['alike']:,}"),
            ("unreadable", f"{values['unreadable']['count']:,}"),
            *([("median shorter side, pixels", f"{size['median']:g}")] if size else []),
        ]
    )


def _lines(lines: Sequence[str], kind: str = "") -> str:
    items = "".join(f"<li>{page.text(line)}</li>" for line in lines)
    return f'<ul class="{kind}" style="overflow-wrap:anywhere">{items}</ul>' if items else ""


def _pairs(kind: Kind, count: int, shown: Sequence[Pair]) -> str:
    if not count:
        return ""
    figures = [
        f"<figure>{page.pictures(pictures, 'sheet')}<figcaption>{page.text(said)}</figcaption></figure>"
        for pictures, said in shown
    ]
    # Three side by side, of two small pictures each.
    grid = "grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr))"
    first, rest = figures[:_FIRST_PAIRS], figures[_FIRST_PAIRS:]
    body = f'<div class="figures" style="{grid}">{"".join(first)}</div>'
    if rest:
        body += page.folded(f"{len(rest)} more", f'<div class="figures" style="{grid}">{"".join(rest)}</div>')
    total = f"{count:,} pairs" if count > 1 else "1 pair"
    part = f", {len(shown)} shown; check.json lists up to a thousand" if len(shown) < count else ""
    return f"<p>{total}{part}. {page.text(_TITLES[kind][1])}</p>{body}"


def _copies(copies: Mapping[str, Any]) -> str:
    if not copies["count"]:
        return ""
    rows = [(_named(one), ", ".join(map(_named, others))) for one, *others in copies["listed"][:_MOST_ROWS]]
    more = copies["count"] - len(rows)
    rest = f"<p>And {more:,} more.</p>" if more > 0 else ""
    return page.table(("picture", "is the same as"), rows) + rest


def _named(one: Mapping[str, str]) -> str:
    return f"{one['path']} ({', '.join(filter(None, (one['split'], one['class'])))})"


def _unreadable(unreadable: Mapping[str, Any]) -> str:
    rows = [(one["path"], one["reason"]) for one in unreadable["listed"][:_MOST_ROWS]]
    more = unreadable["count"] - len(rows)
    rest = f"<p>And {more:,} more.</p>" if more > 0 else ""
    return page.table(("picture", "why"), rows) + rest if rows else ""


def _classes(values: Mapping[str, Any]) -> str:
    counts, classes = values["counts"], values["classes"]
    splits = [split for split in counts if split]
    total = {name: sum(held[name] for held in counts.values()) for name in classes}
    shown = [
        (name, [counts[s][name] for s in splits] or [total[name]]) for name in sorted(classes, key=lambda n: -total[n])
    ]
    homeless = sum(counts.get("", {}).values())
    rest = f"<p>Images in no split: {homeless:,}.</p>" if homeless and splits else ""
    return page.bars(("class", *(splits or ["images"])), shown) + rest


def _splits(values: Mapping[str, Any]) -> str:
    splits, counts = values["splits"], values["counts"]
    rows = [
        (
            split or "none",
            "the source's" if split in splits["given"] else "as training would draw it" if split else "",
            f"{sum(held.values()):,}",
            f"{sum(held.values()) / max(values['readable'], 1):.1%}",
            f"{values['groups'][split]:,}",
        )
        for split, held in counts.items()
    ]
    return page.table(("split", "", "images", "share", "groups"), rows)


def _measures(values: Mapping[str, Any]) -> str:
    return "<br>".join(
        f"<p>{page.text(what)}: all are {page.text(bins[0][0])}.</p>"
        if len(bins) == 1
        else page.bars((what, "images"), [(label, [count]) for label, count in bins])
        for what, bins in values["histograms"].items()
    )


def _method(values: Mapping[str, Any]) -> str:
    limits, compared, seed = values["limits"], values["compared"], values["splits"]["seed"]
    return page.table(
        ("", ""),
        [
            ("byte for byte", "SHA-256 of the files (and the same box, where boxes are used)"),
            (
                "near-identical",
                f"perceptual hashes that differ in up to {limits['bits of the hash']} of 63 bits, then pixels that, "
                "with brightness, contrast and the crop evened out, differ in up to "
                f"{limits['difference']:.0%} of their contrast",
            ),
            ("looked at", f"{compared['looked at']:,} of {compared['near hashes']:,} pairs with near hashes"),
            *([("splits drawn with", f"data.split.seed={seed}")] if values["splits"]["drawn"] else []),
            ("left out", f"{values['blank']['count']:,} pictures with hardly any contrast, which are like nothing"),
            ("mlops", values["version"]),
        ],
    )
