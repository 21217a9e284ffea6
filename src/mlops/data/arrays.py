"""Arrays on disk: written image by image, mapped when read, never all in memory."""

import os
import re
from pathlib import Path
from typing import IO, Any, BinaryIO, Self

import numpy as np

from mlops.data.tree import Tree
from mlops.image import Pixels

# How much is worked on at a time.
PART_BYTES = 16 * 1024**2


class ArrayWriter:
    """A .npy file that grows, because how many images are readable is known only at the end."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._file: BinaryIO = path.open("w+b")
        self._shape = shape
        self._count = 0
        self._header()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def append(self, item: Pixels) -> None:
        """One more uint8 image of the shape that the file was opened with."""
        self._file.write(item.tobytes())
        self._count += 1

    def _close(self) -> None:
        # NumPy reserves room in the header for the first axis to grow, so rewriting it moves nothing.
        try:
            self._file.seek(0)
            self._header()
            sync(self._file)
        finally:
            self._file.close()

    def _header(self) -> None:
        description = {"descr": "|u1", "fortran_order": False, "shape": (self._count, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, description)


def sync(file: IO[Any]) -> None:
    """Make what was written to an open file durable."""
    file.flush()
    os.fsync(file.fileno())


def load(path: Path) -> Any:
    """An array, mapped from disk."""
    # Copy-on-write: torch wants memory that it may write to, the file stays as it is.
    return np.load(path, mmap_mode="c", allow_pickle=False)


def channel_statistics(images: Pixels) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 `[N, H, W, 3]`, of pixels in 0..1."""
    # Exact: a histogram of whole numbers, taken in parts that fit in memory (counting makes eight bytes of each).
    histogram = np.zeros((3, 256), dtype=np.int64)
    count = max(1, PART_BYTES // max(1, 8 * images[0].size)) if len(images) else 1
    for start in range(0, len(images), count):
        for channel in range(3):
            part = images[start : start + count, :, :, channel]
            histogram[channel] += np.bincount(part.reshape(-1), minlength=256)
    levels = np.arange(256) / 255
    mean = histogram @ levels / histogram.sum(axis=1)
    square = histogram @ levels**2 / histogram.sum(axis=1)
    # A constant channel would divide by zero; one grey level is the least that uint8 can differ by.
    std = np.sqrt(np.maximum(square - mean**2, (1 / 255) ** 2))
    return mean.tolist(), std.tolist()


class ArrayTree(Tree):
    """`<split>/<position>.ppm` (`.pgm` when grey) for each image of `<folder>/<split>.images.npy`.

    The arrays are uint8 `[N, H, W, 3]` or `[N, H, W]`, read a row at a time. The bytes are the same on every platform,
    which a PNG's compression would not be.
    """

    def __init__(self, folder: Path, splits: tuple[str, ...]) -> None:
        self._folder = folder
        self._arrays = dict[str, Any]()
        super().__init__(str(folder), [name for split in splits for name in self._names(split)])

    def _names(self, split: str) -> list[str]:
        shape = self._array(split).shape
        ending = "ppm" if len(shape) == 4 else "pgm"
        return [f"{split}/{position:06}.{ending}" for position in range(shape[0])]

    def _array(self, split: str) -> Any:
        if split not in self._arrays:
            self._arrays[split] = load(self._folder / f"{split}.images.npy")
        return self._arrays[split]

    def read(self, name: str) -> bytes:
        found = re.fullmatch(r"(\w+)/(\d+)\.p[gp]m", name)
        if found is None or int(found[2]) >= len(self._array(found[1])):
            raise OSError("no such image")
        pixels = self._array(found[1])[int(found[2])]
        height, width = pixels.shape[:2]
        header = f"{'P6' if pixels.ndim == 3 else 'P5'} {width} {height} 255\n".encode()
        return header + bytes(pixels.tobytes())

    def __getstate__(self) -> dict[str, Any]:
        # A process that decodes is told what to read; neither the names nor the mapping need to travel.
        return {"label": self.label, "names": [], "folders": [], "_folder": self._folder, "_arrays": {}}
