"""What a sweep searches, and how: W&B's sweep file as values."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlops.sweeps.parameters import Fixed, Parameter, Range, Steps
from mlops.sweeps.values import to_override

Method = Literal["grid", "random", "bayes"]


@dataclass(frozen=True)
class EarlyStop:
    """Compare a trial with the others after `first`, `first * factor`, ... epochs, and go on with the best of every
    `factor`; at most `rungs` times.
    """

    first: int
    factor: int
    rungs: int | None = None

    def is_rung(self, epoch: int) -> bool:
        """Whether trials are compared after so many epochs."""
        rung, at = 0, self.first
        while at < epoch:
            rung, at = rung + 1, at * self.factor
        return at == epoch and (self.rungs is None or rung < self.rungs)


@dataclass(frozen=True)
class Space:
    """A sweep file, checked.

    Args:
        parameters: by the full name of a config key, or of a group, in the order of the file.
        metric: the name of a metric that is logged once an epoch.
        target: of that metric; once a trial is there, no new one is started.
        run_cap: how many trials there are at most.
        agents: whether W&B's agents can run it too.
    """

    path: Path
    method: Method
    metric: str
    maximize: bool
    target: float | None
    parameters: Mapping[str, Parameter]
    early_stop: EarlyStop | None
    run_cap: int | None
    agents: bool

    @property
    def searched(self) -> dict[str, Parameter]:
        """The parameters that differ between trials."""
        return {name: kind for name, kind in self.parameters.items() if not isinstance(kind, Fixed)}

    @property
    def grid_size(self) -> int:
        """How many points a grid has."""
        return math.prod(kind.points for kind in self.parameters.values() if not isinstance(kind, Range))

    def grid_point(self, number: int) -> dict[str, Any]:
        """Values at a point of the grid, 0..grid_size-1; the last name in the alphabet moves fastest, as W&B's does."""
        found = {}
        for name, kind in sorted(self.parameters.items(), reverse=True):
            if not isinstance(kind, Fixed | Range):
                number, position = divmod(number, kind.points)
                found[name] = kind.grid(position)
        return {name: found[name] for name in self.parameters if name in found}

    def extremes(self) -> Iterator[dict[str, Any]]:
        """Values of all parameters, enough of them that every value and every bound comes up at least once."""
        every = {name: self._extremes_of(kind) for name, kind in self.parameters.items()}
        first = {name: values[0] for name, values in every.items()}
        yield first
        for name, values in every.items():
            yield from (first | {name: value} for value in values[1:])

    def _extremes_of(self, kind: Parameter) -> Sequence[Any]:
        # A grid has other points than a draw.
        grid = self.method == "grid" and isinstance(kind, Steps)
        return [kind.grid(0), kind.grid(kind.points - 1)] if grid and isinstance(kind, Steps) else kind.extremes()

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """One override for every parameter, in the order of the file: what `values` has not is fixed."""
        full = {name: kind.value for name, kind in self.parameters.items() if isinstance(kind, Fixed)} | dict(values)
        return [to_override(name, full[name]) for name in self.parameters]

    def identity(self) -> dict[str, Any]:
        """What makes trials of two files comparable, in plain values; `run_cap` and descriptions may change."""
        return {
            "method": self.method,
            "metric": self.metric,
            "goal": "maximize" if self.maximize else "minimize",
            "early_terminate": None if self.early_stop is None else repr(self.early_stop),
            "parameters": {name: repr(kind) for name, kind in sorted(self.parameters.items())},
        }
