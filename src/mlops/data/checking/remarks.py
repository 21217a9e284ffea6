"""What is worth a look before training, in words, each with what changes it."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mlops.data.checking.found import Found, many
from mlops.errors import shorten

_FEW = 20
_DARK = 32


def remarks(found: Found, values: dict[str, Any]) -> list[str]:
    """What is worth a look, the most important first, each with what changes it."""
    return [*_alike_remarks(found, values), *_class_remarks(found, values), *_picture_remarks(found)]


def _alike_remarks(found: Found, values: dict[str, Any]) -> Iterator[str]:
    of, copies = found.copies.of, found.copies
    nameable = found.config.source in ("folder", "csv")
    if len(of["leaks"]) and not found.near_leaks:
        yield f"{many(len(of['leaks']), 'pair')} of near-identical pictures are in two splits of the source."
    if len(of["drawn"]):
        name, look = "name what belongs together by data.group, or in a column group", "perhaps their groups are one"
        yield (
            f"{many(len(of['drawn']), 'pair')} of near-identical pictures would be parted by the splits that training "
            f"draws, and flatter every score: {name if nameable else look}."
        )
    if len(of["labels"]):
        yield f"{many(len(of['labels']), 'pair')} of near-identical pictures have two labels: is one of them wrong?"
    if len(of["groups"]):
        seed = ", but another data.split.seed may part them" if found.sides.drawn else ""
        pairs = many(len(of["groups"]), "pair")
        yield f"{pairs} of near-identical pictures are within a class and split: harmless there{seed}."
    if copies.looked < copies.candidates:
        yield (
            f"Of {copies.candidates:,} pairs with near hashes only the {copies.looked:,} that matter most were looked "
            "at: with groups named, there would be fewer."
        )
    if extra := values["copies"]["extra"]:
        yield f"Copies of other files, byte for byte: {extra:,}."


def _class_remarks(found: Found, values: dict[str, Any]) -> Iterator[str]:
    counts, classes, entries = values["counts"], found.listing.classes, found.listing.entries
    total = {name: sum(counts[split][name] for split in counts) for name in classes}
    if few := [name for name in classes if total[name] < _FEW]:
        yield f"Classes with fewer than {_FEW} images: {len(few)} of {len(classes)} ({shorten(few)}); add some."
    absent = [f"{split} of {name}" for split in found.sides.given for name in classes if not counts[split][name]]
    if absent:
        yield f"There is no image in {shorten(absent, 5)}."
    largest, smallest = max(classes, key=lambda name: total[name]), min(classes, key=lambda name: total[name])
    if total[largest] >= 3 * max(total[smallest], 1):
        yield (
            f"{largest} has {total[largest] / max(total[smallest], 1):.1f} times the images of {smallest}: read macro "
            "F1 beside accuracy, or set training.class_weights=balanced."
        )
    alone = len({entry.group for entry in entries}) == len(entries)
    if alone and found.config.source in ("folder", "csv"):
        yield (
            "Every picture is a group of its own. If several show the same thing (a patient, a track, a burst), name "
            "it by data.group, or in a column group."
        )


def _picture_remarks(found: Found) -> Iterator[str]:
    facts, blank = found.facts, found.copies.blank
    if blank:
        named = shorten([found.listing.entries[position].path for position in blank])
        yield f"{many(len(blank), 'picture')} with hardly any contrast: {named}."
    if len(facts.positions):
        longer, shorter = np.maximum(facts.width, facts.height), np.minimum(facts.width, facts.height)
        if (share := float(np.mean(longer > 1.5 * shorter))) > 0.1:
            yield f"{share:.0%} of the pictures are more than 1.5 times as long as wide: data.resize=pad keeps that."
        if (share := float(np.mean(facts.brightness < _DARK))) > 0.1:
            yield f"{share:.0%} of the pictures are very dark, with a mean brightness below {_DARK} of 255."
