"""The space in Optuna's terms: what a trial is drawn from, by which sampler, and when it is not worth going on.

What a trial gets depends on the seed, its number and, for `bayes`, the results before it, never on how often the sweep
was stopped and started: no generator's state is kept.
"""

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from mlops.data.keyed import key
from mlops.sweeps.parameters import Choice, Fixed, Integers, Parameter, Range, Steps
from mlops.sweeps.space import EarlyStop, Space
from mlops.sweeps.values import to_override

# Until so many trials have ended, TPE draws at random: Optuna's own number.
RANDOM_FIRST = 10


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Of each parameter that is searched, what Optuna draws; `values_of` makes values of it.

    Rounded numbers and weighted choices are drawn as what W&B draws before it rounds and picks, so that both engines
    draw each value equally often, and TPE has a real number to learn from.
    """
    return {name: _distribution(name, kind) for name, kind in space.searched.items()}


def _distribution(name: str, kind: Parameter) -> BaseDistribution:
    match kind:
        # As text, for to Optuna 1 and true are one choice, and a list is none.
        case Choice(values, None):
            return CategoricalDistribution(_texts(name, values))
        case Choice():
            return FloatDistribution(0, 1)
        case Integers(low, high):
            return IntDistribution(low, high)
        case Range(low, high, log):
            return FloatDistribution(low, high, log=log)
        case Steps(low, high):
            return FloatDistribution(low, high)
        case Fixed():
            raise TypeError(f"{name} is fixed")


# Each spelling is tried with Hydra's parser, and a table of trials asks for all of them again.
_KNOWN: dict[tuple[str, int], tuple[tuple[Any, ...], list[str]]] = {}


def _texts(name: str, values: tuple[Any, ...]) -> list[str]:
    known = _KNOWN.get((name, id(values)))
    if known is None:
        known = _KNOWN[name, id(values)] = (values, [to_override(name, value) for value in values])
    return known[1]


def values_of(space: Space, drawn: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The values that trial `number` tries, of what was drawn for it."""
    if space.method == "grid":
        return space.grid_point(number % space.grid_size)
    return {name: _value(name, kind, drawn[name]) for name, kind in space.searched.items()}


def _value(name: str, kind: Parameter, drawn: Any) -> Any:
    match kind:
        case Choice(values, None):
            return dict(zip(_texts(name, values), values, strict=True))[drawn]
        case Choice() | Steps():
            return kind.at(drawn)
        case _:
            return drawn


def sampler(space: Space, seed: int) -> BaseSampler:
    """What draws the trials of a sweep."""
    if space.method == "grid":
        return _Grid(space)
    if space.method == "bayes":
        # A trial that runs elsewhere counts as a bad one meanwhile, so that nobody tries its like at the same time.
        return Keyed(lambda drawn: TPESampler(n_startup_trials=RANDOM_FIRST, seed=drawn), seed)
    return Keyed(lambda drawn: RandomSampler(seed=drawn), seed)


def pruner(early_stop: EarlyStop | None) -> BasePruner:
    """What tells whether a trial is worth going on with."""
    return NopPruner() if early_stop is None else Halving(early_stop)


class Halving(BasePruner):
    """ASHA (Li et al., 2020): a trial goes on past a rung if it is among the best 1/factor that have come so far.

    The answers are those of Optuna's SuccessiveHalvingPruner, which counts in the database how often it was asked and
    so must not be asked twice about an epoch, nor miss one. This one only reads what was reported of the rung's epoch:
    a sweep that was killed, or a question that was lost on its way, is asked again.
    """

    def __init__(self, early_stop: EarlyStop) -> None:
        self._early_stop = early_stop

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial ends at the last epoch that was reported of it."""
        epoch = trial.last_step
        if epoch is None or not self._early_stop.is_rung(epoch):
            return False
        reported = [each.intermediate_values for each in study.get_trials(deepcopy=False)]
        came = sorted(steps[epoch] for steps in reported if epoch in steps)
        better = max(1, len(came) // self._early_stop.factor)
        value = trial.intermediate_values[epoch]
        return value < came[-better] if study.direction == StudyDirection.MAXIMIZE else value > came[better - 1]


class Keyed(BaseSampler):
    """A sampler made anew for each trial, with a seed that is a function of (seed, number)."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._number, self._sampler = -1, make(seed)

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if trial.number != self._number:
            self._number, self._sampler = trial.number, self._make(key(self._seed, "trial", trial.number) % 2**32)
        return self._sampler

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:  # fmt: skip
        """As the sampler of this trial does."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler of this trial does."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler of this trial does."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)


class _Grid(BaseSampler):
    """The point of a grid is the trial's number, so that no two machines, and no two starts, try the same one."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """All parameters."""
        return distributions(self._space)

    def sample_relative(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """The point."""
        point = values_of(self._space, {}, trial.number)
        return {
            name: to_override(name, point[name]) if isinstance(kind, CategoricalDistribution) else point[name]
            for name, kind in search_space.items()
        }

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Not needed: all parameters are relative."""
        raise NotImplementedError(param_name)
