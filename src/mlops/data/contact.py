"""Contact sheets: for every class one square of small training images."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlops.data.arrays import load
from mlops.image import Pixels, shrink

# Of so many classes at most, so many images a side of each one's square.
_SHEET_SIDES = ((12, 4), (60, 3), (200, 2))
_MOST_SHEETS = 400
# Of all sheets together: what makes a page of a few megabytes, however large the data.
_SHEET_PIXELS = 1_000_000
_LARGEST_THUMBNAIL, _SMALLEST_THUMBNAIL = 64, 40


def contact_sheets(folder: Path, manifest: Mapping[str, Any]) -> list[tuple[Pixels, list[str]]]:
    """A square of training images of each class, with its name; the largest classes where there are very many."""
    counts = manifest["counts"]["train"]
    order = {name: position for position, name in enumerate(counts)}
    chosen = sorted(sorted(counts, key=lambda name: -counts[name])[:_MOST_SHEETS], key=lambda name: order[name])
    side = next((images for most, images in _SHEET_SIDES if len(chosen) <= most), 1)
    thumbnail = min(_LARGEST_THUMBNAIL, int(math.sqrt(_SHEET_PIXELS / len(chosen)) / side))
    images, labels = load(folder / "train.images.npy"), np.asarray(load(folder / "train.labels.npy"))
    sheets = []
    for name in chosen:
        # They lie in the order of their paths, so that a group's lie together: evenly spaced, they differ most.
        positions = np.flatnonzero(labels == order[name])
        steps = np.linspace(0, len(positions) - 1, min(side * side, len(positions)))
        sheet = _montage([images[p] for p in positions[np.unique(steps.round().astype(int))]], side, thumbnail)
        sheets.append((sheet, [name, f"{counts[name]:,} training images"]))
    return sheets


def _montage(images: Sequence[Pixels], side: int, thumbnail: int) -> Pixels:
    small = [shrink(image, thumbnail) for image in images]
    # Tiny ones are enlarged by whole numbers: their pixels stay sharp.
    factor = max(1, _SMALLEST_THUMBNAIL // small[0].shape[0])
    small = [image.repeat(factor, axis=0).repeat(factor, axis=1) for image in small]
    height, width = small[0].shape[:2]
    rows = math.ceil(len(small) / side)
    canvas = np.full((rows * (height + 2) - 2, side * (width + 2) - 2, 3), 136, dtype=np.uint8)
    for position, image in enumerate(small):
        top, left = position // side * (height + 2), position % side * (width + 2)
        canvas[top : top + height, left : left + width] = image
    return canvas
