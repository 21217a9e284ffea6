"""Whether two pictures are one: a copy encoded anew, resized, a little brighter, cropped by a pixel.

Near hashes are only a reason to look: two signs of one kind have them too. So what a copy may differ by is fitted, as
in the registration of Lucas and Kanade (1981): brightness, contrast, and of each axis a shift and a stretch. What is
left is held against the pictures' own contrast in windows of 8 x 8, as in the structural similarity of Wang et al.
(2004): over a whole picture, two dark signs before a bright sky would be the same, whatever number they show.
"""

import numpy as np
import numpy.typing as npt

from mlops.data.checking.phash import Grey, luminance
from mlops.image import Pixels

_WINDOW = 8
# Grey levels that say nothing: what JPEG leaves, and the noise of a dark picture.
_NOISE = 4.0
# Read off 13,070 photographs of GTSRB, half of them of 41 pixels or less a side and many dark, which is hard. Of 39,210
# pairs (of each, the three likest of other classes) the nearest is at 0.15. Up to 0.08 are, of 600 copies each, 95 % at
# JPEG quality 75 and 80 % at 50, 99 % resized to 64 x 64 or 10 % brighter, 90 % that lost a pixel on each side; and all
# of these where the picture has 80 pixels or more. At 0.10, different dark signs of one class would be copies.
MOST_DIFFERENT = 0.08
# Pictures of fewer pixels a side than are compared hold less to tell them apart by: handwritten digits of 8 x 8 are
# as near as 0.05 to each other.
_FULL_SIDE = 32
_MOST_GAIN = 1.5
_MOST_PIXELS = 1.8
# Grey levels by which colours may differ over a window: the same drawing in red and in blue is no copy.
MOST_COLOUR = 24.0
# Grey levels; a picture with less contrast than this shows nothing to compare.
BLANK = 4.0

Differences = npt.NDArray[np.float32]


def differences(one: Pixels, other: Pixels) -> Differences:
    """How much of each pair's contrast differs, `[N]`, for two of uint8 `[N, S, S, 3]`.

    0 is the same picture, a copy is up to `most_different`; infinity is a pair that differs in exposure, place or
    colour by more than a copy does.
    """
    left, right = luminance(one), luminance(other)
    fitted, gain, moved = _fit(left, right)
    inner = left[:, 1:-1, 1:-1]
    rest = _windows((fitted - inner) ** 2)
    contrast = _variance(fitted) + _variance(inner) + _NOISE**2
    result = np.percentile((rest / contrast).reshape(len(one), -1), 90, axis=1).astype(np.float32)
    alike = (gain > 1 / _MOST_GAIN) & (gain < _MOST_GAIN) & (moved <= _MOST_PIXELS)
    alike &= _colour(one, other, left, right, gain) <= MOST_COLOUR
    return np.where(alike, result, np.float32(np.inf))


def most_different(side: npt.NDArray[np.int64]) -> Differences:
    """How much a copy differs at most, by the shorter side of the larger of the two pictures, in pixels, `[N]`."""
    return (MOST_DIFFERENT * np.minimum(1, side / _FULL_SIDE)).astype(np.float32)


def _fit(left: Grey, right: Grey) -> tuple[Grey, Grey, Grey]:
    """`right` made as like `left` as it gets, without its border; its gain, and the pixels that it was moved by."""
    side = right.shape[1]
    place = ((np.arange(side) - (side - 1) / 2) / (side / 2)).astype(np.float32)
    down, across = np.gradient(right, axis=(1, 2))
    terms = [np.ones_like(right), right, across, down, across * place, down * place[:, None]]
    design = np.stack([term[:, 1:-1, 1:-1].reshape(len(right), -1) for term in terms], axis=1)
    wanted = left[:, 1:-1, 1:-1].reshape(len(left), -1, 1)
    square = (design @ design.transpose(0, 2, 1)).astype(np.float64)
    # Hardly anything, so that a picture without, say, vertical edges has a solution too.
    square += 1e-7 * np.trace(square, axis1=1, axis2=2)[:, None, None] * np.eye(len(terms))
    weights = np.linalg.solve(square, (design @ wanted).astype(np.float64))[:, :, 0].astype(np.float32)
    fitted = np.einsum("nt,ntp->np", weights, design).reshape(len(left), side - 2, side - 2)
    gain: Grey = weights[:, 1]
    moved: Grey = np.abs(weights[:, 2:]).max(axis=1) / np.abs(gain).clip(min=1e-3)
    return fitted, gain, moved


def _colour(one: Pixels, other: Pixels, left: Grey, right: Grey, gain: Grey) -> Grey:
    """The largest difference of red or blue against grey, over a window, in grey levels."""
    largest = []
    for channel in (0, 2):
        of_one, of_other = one[..., channel] - left, other[..., channel] - right
        means = _windows(of_one - gain[:, None, None] * of_other)
        largest.append(np.abs(means).max(axis=(1, 2)))
    most: Grey = np.max(largest, axis=0)
    return most


def _variance(values: Grey) -> Grey:
    variance: Grey = (_windows(values**2) - _windows(values) ** 2).clip(min=0)
    return variance


def _windows(values: Grey) -> Grey:
    """The mean over every second window of a row and of a column."""
    side = values.shape[1]
    starts = np.arange(0, side - _WINDOW + 1, 2)[:, None]
    places = np.arange(side)
    inside = (places >= starts) & (places < starts + _WINDOW)
    means = inside.astype(np.float32) / np.float32(_WINDOW)
    averages: Grey = means @ values @ means.T
    return averages
