"""card.html and card.json of a prepared folder: what a person should see of a data set before training on it."""

import csv
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlops import page
from mlops.data.contact import contact_sheets
from mlops.data.listing import SPLITS
from mlops.data.spread import histogram, spread
from mlops.errors import shorten
from mlops.files import write_text
from mlops.image import Pixels

_MOST_ROWS = 100

Row = dict[str, str]


def write_card(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the card of the prepared data in `folder`, from its manifest, index.csv and arrays."""
    with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
        card = describe(csv.DictReader(file), manifest)
    write_text(folder / "card.json", json.dumps(card, indent=1, ensure_ascii=False))
    write_text(folder / "card.html", render(card, contact_sheets(folder, manifest)))


def describe(rows: Iterable[Row], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The card as plain values, from the rows of index.csv and the manifest."""
    widths, heights = array("l"), array("l")
    groups = {split: Counter[str]() for split in SPLITS}
    different = set()
    for row in rows:
        widths.append(int(row["width"]))
        heights.append(int(row["height"]))
        groups[row["split"]][row["group"]] += 1
        different.add(row["sha256"])
    width, height = np.asarray(widths), np.asarray(heights)
    return {
        "name": manifest["name"],
        "fingerprint": manifest["fingerprint"],
        "source": manifest["source"],
        "settings": {key: manifest[key] for key in ("image_size", "resize", "filter", "crop", "split")},
        "images": {split: sum(manifest["counts"][split].values()) for split in SPLITS},
        "counts": manifest["counts"],
        "groups": {split: _groups(groups[split]) for split in SPLITS},
        "copies": len(width) - len(different),
        "imbalance": _imbalance(manifest["counts"]["train"]),
        "width": spread(width),
        "height": spread(height),
        # Above 1 is wider than high.
        "aspect": spread(width / height),
        "histograms": {
            "shorter side, pixels": histogram(np.minimum(width, height)),
            "longer side, pixels": histogram(np.maximum(width, height)),
            "width / height": histogram(width / height),
        },
        "elongated": float(np.mean(np.maximum(width, height) > 1.5 * np.minimum(width, height))),
        "shorter_side": spread(np.minimum(width, height)),
        "mean": manifest["mean"],
        "std": manifest["std"],
        "skipped": manifest["skipped"],
        "dropped": manifest["dropped"],
        "versions": manifest["versions"],
        "created": manifest["created"],
    }


def notes(card: Mapping[str, Any]) -> list[str]:
    """What is worth a look, in words, each with the setting that changes it."""
    found = []
    counts, size, settings = card["counts"], card["shorter_side"], card["settings"]
    total = sum(card["images"].values())
    absent = [f"{split} of {name}" for split in ("val", "test") for name, count in counts[split].items() if count == 0]
    if absent:
        found.append(f"There is no image in {shorten(absent, 5)}: nothing will be known of how these do.")
    few = [name for name, count in counts["test"].items() if 0 < count < 5]
    if few:
        found.append(
            f"Classes with fewer than 5 test images: {len(few)} of {len(counts['test'])} ({shorten(few)}); "
            "one mistake moves their scores by a fifth or more."
        )
    imbalance = card["imbalance"]
    if imbalance["ratio"] >= 3:
        found.append(
            f"{imbalance['largest']} has {imbalance['ratio']:.1f} times the training images of "
            f"{imbalance['smallest']}: read macro F1 beside accuracy."
        )
    asked = settings["image_size"]
    if size["median"] * 2 < asked:
        found.append(
            f"Half of the pictures are {size['median']:g} pixels or less on their shorter side and are enlarged to "
            f"{asked}: try a smaller data.image_size, which trains faster."
        )
    if size["median"] > 4 * asked:
        found.append(
            f"Half of the pictures are {size['median']:g} pixels or more on their shorter side and are shrunk to "
            f"{asked}: if small details tell the classes apart, raise data.image_size."
        )
    if card["elongated"] > 0.1 and settings["resize"] == "squash":
        found.append(
            f"{card['elongated']:.0%} of the pictures are more than 1.5 times as long as wide and are squashed into "
            "squares: data.resize=pad keeps their shape."
        )
    if card["source"]["kind"] in ("folder", "csv") and sum(g["count"] for g in card["groups"].values()) == total:
        found.append(
            "Every picture is a group of its own. If several show the same thing (a patient, a track, a burst), name "
            "it by data.group, or in a column group: near-duplicates on two sides flatter every score."
        )
    if card["copies"]:
        found.append(f"Copies of another picture, byte for byte: {card['copies']:,}; those we place stay in one split.")
    if left_out := len(card["skipped"]) + len(card["dropped"]):
        found.append(f"Pictures left out: {left_out:,}, listed below.")
    return found


def render(card: Mapping[str, Any], sheets: Sequence[tuple[Pixels, Sequence[str]]]) -> str:
    """The card as a page; `sheets` are squares of small images with their lines of text."""
    images, classes = card["images"], list(card["counts"]["train"])
    total = {name: sum(card["counts"][split][name] for split in SPLITS) for name in classes}
    largest_first = sorted(classes, key=lambda name: -total[name])
    by_class = page.bars(
        ("class", *SPLITS), [(name, [card["counts"][split][name] for split in SPLITS]) for name in largest_first]
    )
    part = f"<p>The {len(sheets)} largest classes of {len(classes):,}.</p>" if len(sheets) < len(classes) else ""
    remarks = "".join(f"<li>{page.text(note)}</li>" for note in notes(card))
    return page.page(
        f"{card['name']}: {sum(images.values()):,} images of {len(classes):,} classes",
        f"prepared at {card['settings']['image_size']} pixels, {card['created']}, fingerprint {card['fingerprint']}",
        [
            ("", _tiles(card)),
            ("Worth a look", f"<ul>{remarks}</ul>" if remarks else ""),
            ("Pictures", part + page.pictures(sheets, "sheet")),
            ("Classes", by_class),
            ("Splits", _splits(card)),
            ("Sizes before resizing", _sizes(card)),
            ("Left out", _left_out(card)),
            ("Made from", _settings(card)),
        ],
    )


def _tiles(card: Mapping[str, Any]) -> str:
    left_out = len(card["skipped"]) + len(card["dropped"])
    return page.tiles(
        [
            ("images", f"{sum(card['images'].values()):,}"),
            ("classes", f"{len(card['counts']['train']):,}"),
            ("groups", f"{sum(group['count'] for group in card['groups'].values()):,}"),
            ("largest : smallest class in train", f"{card['imbalance']['ratio']:.1f} : 1"),
            ("median width x height, pixels", f"{card['width']['median']:g} x {card['height']['median']:g}"),
            *([("left out", f"{left_out:,}")] if left_out else []),
        ]
    )


def _splits(card: Mapping[str, Any]) -> str:
    total = sum(card["images"].values())
    rows = []
    for split in SPLITS:
        count, group = card["images"][split], card["groups"][split]
        rows.append(
            (
                split,
                f"{count:,}",
                f"{count / total:.1%}",
                f"{group['count']:,}",
                f"{group['median']:g}",
                group["largest"],
            )
        )
    alone = all(group["largest"] == 1 for group in card["groups"].values())
    what = "Every picture is a group of its own." if alone else "A group stays on one side of the split."
    columns = ("split", "images", "share", "groups", "median group", "largest")
    return page.table(columns, rows) + f'<p class="soft">{what}</p>'


def _sizes(card: Mapping[str, Any]) -> str:
    if all(len(bins) == 1 for bins in card["histograms"].values()):
        return f"<p>All pictures are {card['width']['min']:g} x {card['height']['min']:g} pixels.</p>"
    return "<br>".join(
        page.bars((what, "images"), [(label, [count]) for label, count in bins])
        for what, bins in card["histograms"].items()
    )


def _left_out(card: Mapping[str, Any]) -> str:
    rows = [(one["path"], kind, one["reason"]) for kind in ("skipped", "dropped") for one in card[kind]]
    more = len(rows) - _MOST_ROWS
    rest = f"<p>And {more:,} more, in card.json.</p>" if more > 0 else ""
    return page.table(("picture", "", "why"), rows[:_MOST_ROWS]) + rest if rows else ""


def _settings(card: Mapping[str, Any]) -> str:
    settings, source = card["settings"], card["source"]
    rows = [
        ("source", ", ".join(filter(None, (source["kind"], source["root"])))),
        ("image size", f"{settings['image_size']} x {settings['image_size']}, {settings['resize']}"),
        ("filter", settings["filter"]),
        ("crop", "the box of each picture" if settings["crop"] == "roi" else "none"),
        ("split", ", ".join(f"{name} {value:g}" for name, value in settings["split"].items())),
        ("mean of red, green, blue", ", ".join(f"{value:.4f}" for value in card["mean"])),
        ("standard deviation", ", ".join(f"{value:.4f}" for value in card["std"])),
        ("versions", ", ".join(f"{name} {version}" for name, version in card["versions"].items())),
    ]
    return page.table(("", ""), rows)


def _groups(images: Counter[str]) -> dict[str, Any]:
    sizes = list(images.values())
    return {"count": len(sizes), "median": float(np.median(sizes)), "largest": max(sizes)}


def _imbalance(counts: Mapping[str, int]) -> dict[str, Any]:
    largest, smallest = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    return {"largest": largest, "smallest": smallest, "ratio": counts[largest] / max(counts[smallest], 1)}
