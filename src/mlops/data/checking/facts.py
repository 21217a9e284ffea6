"""What there is to know of every file: its hash, and what one look at its pixels tells."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlops.data.arrays import ArrayWriter, load
from mlops.data.checking.phash import SIDE, Hashes, hashes, luminance
from mlops.data.decode import Geometry, Unreadable, decode_all
from mlops.data.listing import Entry
from mlops.data.tree import Tree
from mlops.image import Pixels
from mlops.progress import bar

_BATCH = 256

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Facts:
    """Of the readable images, in their order: `[N]` each, and their pixels uint8 `[N, 32, 32, 3]`, mapped from disk.

    `positions` are those among all entries. `brightness` is the mean and `contrast` the standard deviation of grey,
    0 to 255. `unreadable` has the path and the reason of the others.
    """

    positions: npt.NDArray[np.int64]
    width: npt.NDArray[np.int64]
    height: npt.NDArray[np.int64]
    brightness: Numbers
    contrast: Numbers
    hashes: Hashes
    pixels: Pixels
    unreadable: list[dict[str, str]]


def look(tree: Tree, entries: Sequence[Entry], workers: int, folder: Path) -> Facts:
    """Decode every image once, with `workers` processes; the small pictures are kept in a file in `folder`.

    Raises:
        MlopsError: as `decode_all` does.
    """
    readable, width, height = array("q"), array("q"), array("q")
    brightness, contrast, bits = [np.empty(0)], [np.empty(0)], [np.empty(0, np.uint64)]
    unreadable: list[dict[str, str]] = []
    waiting: list[Pixels] = []

    def measure() -> None:
        grey = luminance(np.stack(waiting))
        brightness.append(grey.mean(axis=(1, 2), dtype=np.float64))
        contrast.append(grey.std(axis=(1, 2), dtype=np.float64))
        bits.append(hashes(grey))
        waiting.clear()

    geometry = Geometry(SIDE, SIDE, "squash", "bilinear")
    decoded = decode_all(tree, [entry.path for entry in entries], geometry, workers, [entry.box for entry in entries])
    path = folder / "pictures.npy"
    with bar("looking", len(entries)) as progress, ArrayWriter(path, (SIDE, SIDE, 3)) as writer:
        for position, (entry, result) in enumerate(zip(entries, decoded, strict=True)):
            progress.advance(1)
            if isinstance(result, Unreadable):
                unreadable.append({"path": entry.path, "reason": result.reason})
                continue
            readable.append(position)
            width.append(result.width)
            height.append(result.height)
            writer.append(result.pixels)
            waiting.append(result.pixels)
            if len(waiting) == _BATCH:
                measure()
        if waiting:
            measure()
    return Facts(
        positions=np.array(readable, dtype=np.int64),
        width=np.array(width, dtype=np.int64),
        height=np.array(height, dtype=np.int64),
        brightness=np.concatenate(brightness),
        contrast=np.concatenate(contrast),
        hashes=np.concatenate(bits),
        # NumPy maps no empty file.
        pixels=load(path) if readable else np.empty((0, SIDE, SIDE, 3), np.uint8),
        unreadable=unreadable,
    )
