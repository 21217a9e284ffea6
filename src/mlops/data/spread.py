"""How values are spread, for pages that people read: a few percentiles, and a histogram with round edges."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt


def spread(values: npt.NDArray[Any]) -> dict[str, float]:
    """The least, the 5th, 50th and 95th percentile, and the most."""
    lowest, low, median, high, highest = np.percentile(values, (0, 5, 50, 95, 100))
    return {"min": lowest, "p5": low, "median": median, "p95": high, "max": highest}


def histogram(values: npt.NDArray[Any], bins: int = 12) -> list[tuple[str, int]]:
    """(range in words, how many) from the smallest to the largest value; the last bin holds the long tail."""
    low, high = float(values.min()), float(np.percentile(values, 99))
    if float(values.max()) == low:
        return [(f"{low:g}", len(values))]
    if high == low:  # all but a few are alike
        high = float(values.max())
    step = _round_step((high - low) / bins)
    if values.dtype.kind == "i":
        step = max(1.0, step)
    start = math.floor(low / step) * step
    edges = [start + step * n for n in range(max(1, math.ceil((high - start) / step)) + 1)]
    counts, _ = np.histogram(values, [*edges[:-1], max(edges[-1], float(values.max()) + step)])
    names = [f"{left:.4g} to {right:.4g}" for left, right in pairwise(edges)]
    if values.max() > edges[-1]:
        names[-1] = f"{edges[-2]:.4g} and more"
    return list(zip(names, counts.tolist(), strict=True))


def _round_step(step: float) -> float:
    """The next of 1, 2, 2.5, 5, 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step)
