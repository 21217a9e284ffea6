"""Learning-rate schedules: pure functions of the step, so that there is no state to save."""

import math
from collections.abc import Callable

from mlops.config import ScheduleConfig

# step 0, 1, ... -> share of the highest learning rate
Schedule = Callable[[int], float]

_WARMUP = {"one_cycle": 0.3, "cosine": 0.05, "constant": 0.0}
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = 1e-4 / 25


def build_schedule(config: ScheduleConfig, steps: int) -> Schedule:
    """The schedule over a run of `steps` steps.

    `one_cycle` rises and falls along half cosines from 1/25 and to almost nothing (Smith and Topin, 2018, with the
    defaults of torch's OneCycleLR); `cosine` rises in a line and falls along a half cosine to zero (Loshchilov and
    Hutter, 2017); `constant` rises in a line and stays.
    """
    warmup = _WARMUP[config.name] if config.warmup is None else config.warmup
    rise = warmup * steps

    def schedule(step: int) -> float:
        if step < rise:
            share = (step + 1) / (rise + 1)
            return _between(_ONE_CYCLE_START, 1.0, share) if config.name == "one_cycle" else share
        if config.name == "constant":
            return 1.0
        end = _ONE_CYCLE_END if config.name == "one_cycle" else 0.0
        return _between(1.0, end, (step - rise) / max(steps - rise, 1))

    return schedule


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
