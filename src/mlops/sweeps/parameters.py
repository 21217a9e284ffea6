"""What a sweep's parameter can be, each with its points on a grid and its outermost values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any


@dataclass(frozen=True)
class Fixed:
    """One value for all trials."""

    value: Any

    points = 1

    def extremes(self) -> Sequence[Any]:
        """Enough values that every kind of one is among them."""
        return [self.value]


@dataclass(frozen=True)
class Choice:
    """One of several values, each as likely as `probabilities` (which add up to 1) say, else all equally."""

    values: tuple[Any, ...]
    probabilities: tuple[float, ...] | None = None

    def at(self, share: float) -> Any:
        """The value at a share (0..1) of the probability: the inverse of the distribution function."""
        bounds = accumulate(self.probabilities or (1 / len(self.values),) * len(self.values))
        found = (value for value, bound in zip(self.values, bounds, strict=True) if share < bound)
        return next(found, self.extremes()[-1])

    @property
    def points(self) -> int:
        """Of a grid."""
        return len(self.values)

    def grid(self, position: int) -> Any:
        """The value at a point of a grid."""
        return self.values[position]

    def extremes(self) -> Sequence[Any]:
        """All values that can come up."""
        if self.probabilities is None:
            return self.values
        return [value for value, share in zip(self.values, self.probabilities, strict=True) if share > 0]


@dataclass(frozen=True)
class Integers:
    """All integers from `low` to `high`, both included, equally likely."""

    low: int
    high: int

    @property
    def points(self) -> int:
        """Of a grid."""
        return self.high - self.low + 1

    def grid(self, position: int) -> int:
        """The value at a point of a grid."""
        return self.low + position

    def extremes(self) -> Sequence[int]:
        """Its bounds."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Range:
    """Real numbers from `low` to `high`, equally likely, or with `log` their logarithms."""

    low: float
    high: float
    log: bool = False

    def extremes(self) -> Sequence[float]:
        """Its bounds."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Steps:
    """A real number from `low` to `high`, rounded to a multiple of `step`: W&B's q_uniform.

    The outermost multiples are half as likely as the others where `low` and `high` are multiples themselves.
    """

    low: float
    high: float
    step: float

    def at(self, number: float) -> float:
        """`number`, rounded: an integer where the step is one."""
        return _clean(self.step * round(number / self.step))

    @property
    def points(self) -> int:
        """Of a grid."""
        return max(1, math.ceil(round((self.high - self.low) / self.step, 9)))

    def grid(self, position: int) -> float:
        """W&B's grid: `low`, `low + step`, ..., below `high`."""
        return _clean(self.low + self.step * position)

    def extremes(self) -> Sequence[float]:
        """Its outermost multiples."""
        return [self.at(self.low), self.at(self.high)]


Parameter = Fixed | Choice | Integers | Range | Steps


def _clean(number: float) -> float:
    """Without the dust of binary fractions: 0.1 three times is 0.3."""
    return number if isinstance(number, int) else float(f"{number:.12g}")
