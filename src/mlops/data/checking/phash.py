"""A perceptual hash: 63 bits that hardly change when a picture is encoded anew, resized or made a little brighter.

The hash of Zauner (2010, "Implementation and Benchmarking of Perceptual Image Hash Functions"): the cosine transform of
a 32 x 32 picture in grey, its 8 x 8 lowest frequencies without the mean, each against their median.
"""

import numpy as np
import numpy.typing as npt

from mlops.image import Pixels

SIDE = 32
BITS = 63
_LOW = 8

Grey = npt.NDArray[np.float32]
Hashes = npt.NDArray[np.uint64]


def luminance(pixels: Pixels) -> Grey:
    """float32 `[..., H, W]` of uint8 `[..., H, W, 3]`, from 0 to 255 (ITU-R BT.601, as JPEG and Pillow have it)."""
    grey: Grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return grey


def hashes(grey: Grey) -> Hashes:
    """uint64 `[N]` of pictures in grey, `[N, 32, 32]`; the highest bit is never set."""
    waves = _waves()
    low = (waves @ grey @ waves.T).reshape(len(grey), -1)[:, 1:]
    bits = low > np.median(low, axis=1, keepdims=True)
    return (bits.astype(np.uint64) << np.arange(BITS, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)


def _waves() -> Grey:
    """The lowest rows of the matrix of the discrete cosine transform, `[8, 32]`."""
    steps = np.arange(SIDE)
    waves = np.cos(np.pi * (2 * steps + 1) * steps[:_LOW, None] / (2 * SIDE)) * np.sqrt(2 / SIDE)
    waves[0] /= np.sqrt(2)
    lowest: Grey = waves.astype(np.float32)
    return lowest
