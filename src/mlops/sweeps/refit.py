"""The best trial, trained again with other seeds: how much of its lead was luck."""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mlops.sweeps.parameters import Integers
from mlops.sweeps.space import Space
from mlops.sweeps.trials import Row

MOST = 1000  # of sweep.refit


@dataclass(frozen=True)
class Refitted:
    """The metric of a sweep, and the accuracy on the test split, over several seeds.

    Args:
        values, tests: one for each seed that was trained to its end.
        failed: how many were not.
    """

    values: list[float]
    tests: list[float]
    failed: int

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation over seeds; 0 of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


def refit_space(space: Space, first: int) -> Space:
    """A sweep over the seed alone, from `first` on, in which every trial runs to its end; more may follow later."""
    seeds = Integers(first, first + MOST - 1)
    return dataclasses.replace(
        space, method="grid", parameters={"seed": seeds}, early_stop=None, target=None, run_cap=None
    )


def refitted(rows: Sequence[Row], metric: str) -> Refitted:
    """What came of it."""
    complete = [row for row in rows if row.state == "complete"]
    return Refitted(
        [float(row.metrics[metric]) for row in complete],
        [float(row.metrics["test_Accuracy"]) for row in complete if "test_Accuracy" in row.metrics],
        len(rows) - len(complete),
    )
