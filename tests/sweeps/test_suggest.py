import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import SuccessiveHalvingPruner
from optuna.trial import TrialState

from mlops.sweeps import suggest
from mlops.sweeps.parameters import Choice, Fixed, Integers, Parameter, Range, Steps
from mlops.sweeps.plan import plan
from mlops.sweeps.space import EarlyStop, Method, Space

EVERY: dict[str, Parameter] = {
    "lr": Range(1e-4, 1.0, log=True),
    "dropout": Range(0.0, 0.5),
    "width": Integers(1, 64),
    "size": Steps(16, 64, 16),
    "kind": Choice((1, True, "1", None, [1, 2])),
    "weighted": Choice(("a", "b", "c"), (0.2, 0.3, 0.5)),
    "fixed": Fixed(3),
}
GRID: dict[str, Parameter] = {
    "a": Choice((1, True, "1", None)),
    "b": Steps(0.0, 0.3, 0.1),
    "c": Integers(3, 4),
    "d": Fixed("x"),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def space(parameters: dict[str, Parameter], method: Method = "random", early_stop: EarlyStop | None = None) -> Space:
    return Space(Path("sweep.yaml"), method, "val_Accuracy", True, None, parameters, early_stop, None, agents=False)


def opened(what: Space, seed: int = 0, storage: str | optuna.storages.BaseStorage | None = None) -> optuna.Study:
    """A study as a sweep makes it: a new one at each start, of the same name in the same database."""
    return optuna.create_study(
        study_name="swept",
        storage=storage,
        sampler=suggest.sampler(what, seed),
        pruner=suggest.pruner(what.early_stop),
        direction="maximize",
        load_if_exists=True,
    )


def drawn(what: Space, study: optuna.Study, trials: int, score: bool = False) -> list[dict[str, Any]]:
    """The values of the next trials."""
    found = []
    for _ in range(trials):
        trial = study.ask(suggest.distributions(what))
        found.append(suggest.values_of(what, trial.params, trial.number))
        if score:
            study.tell(trial, found[-1]["dropout"] + math.log(found[-1]["lr"]))
    return found


def test_parameters_are_exactly_these_distributions_of_optuna():
    assert suggest.distributions(space(EVERY)) == {
        "lr": FloatDistribution(1e-4, 1.0, log=True),
        "dropout": FloatDistribution(0.0, 0.5),
        "width": IntDistribution(1, 64),
        # Rounded afterwards.
        "size": FloatDistribution(16, 64),
        # To Optuna 1 and true are one choice, and a list is none.
        "kind": CategoricalDistribution(("kind=1", "kind=true", "kind='1'", "kind=null", "kind=[1,2]")),
        # The share of the probability.
        "weighted": FloatDistribution(0, 1),
    }


def test_the_values_of_a_trial_are_those_of_the_file_again():
    numbers = {"lr": 0.01, "dropout": 0.25, "width": 7, "size": 23.0, "weighted": 0.2}
    for text, value in (("1", 1), ("true", True), ("'1'", "1"), ("null", None), ("[1,2]", [1, 2])):
        found = suggest.values_of(space(EVERY), numbers | {"kind": f"kind={text}"}, 0)
        expected = {"lr": 0.01, "dropout": 0.25, "width": 7, "size": 16, "kind": value, "weighted": "b"}
        assert repr(found) == repr(expected)


def too_far(counts: Counter[Any], expected: dict[Any, float]) -> float:
    """Pearson's chi-square of counts against probabilities."""
    total = counts.total()
    return sum((counts[value] - total * share) ** 2 / (total * share) for value, share in expected.items())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Choice(("a", "b", "c", "d"), (0.5, 0.3, 0, 0.2)), {"a": 0.5, "b": 0.3, "d": 0.2}),
        (Choice(("a", "b", "c")), {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}),
        # round(uniform(min, max) / q) * q: half a step at the ends.
        (Steps(0.0, 1.0, 0.25), {0.0: 1 / 8, 0.25: 1 / 4, 0.5: 1 / 4, 0.75: 1 / 4, 1.0: 1 / 8}),
        (Steps(0.1, 0.9, 0.25), {0.0: 1 / 32, 0.25: 10 / 32, 0.5: 10 / 32, 0.75: 10 / 32, 1.0: 1 / 32}),
        (Steps(16, 64, 16), {16: 1 / 6, 32: 1 / 3, 48: 1 / 3, 64: 1 / 6}),
        (Integers(1, 4), {1: 1 / 4, 2: 1 / 4, 3: 1 / 4, 4: 1 / 4}),
    ],
    ids=repr,
)
def test_each_value_comes_up_as_often_as_wandbs_sampler_would_draw_it(kind: Parameter, expected: dict[Any, float]):
    what = space({"x": kind})
    draws = 400 if kind == Choice(("a", "b", "c")) else 3000
    counts = Counter(values["x"] for values in drawn(what, opened(what), draws))
    assert set(counts) == set(expected)
    # The chi-square distribution with at most 4 degrees of freedom is above it once in 2,000 times.
    assert too_far(counts, expected) < 20


def test_a_logarithmic_range_has_as_many_draws_in_every_decade():
    what = space({"lr": Range(1e-4, 1.0, log=True)})
    decades = Counter(math.floor(math.log10(values["lr"])) for values in drawn(what, opened(what), 2000))
    assert too_far(decades, dict.fromkeys((-4, -3, -2, -1), 1 / 4)) < 20


@pytest.mark.parametrize("method", ["random", "grid", "bayes"])
def test_a_sweep_that_is_started_again_draws_what_it_would_have_drawn(tmp_path: Path, method: Method):
    parameters = GRID if method == "grid" else EVERY
    what, score = space(parameters, method), method == "bayes"
    at_once = drawn(what, opened(what), 15, score)
    storage = f"sqlite:///{tmp_path}/trials.db"
    parts = [drawn(what, opened(what, storage=storage), 5, score) for _ in range(3)]
    assert list(map(repr, itertools.chain(*parts))) == list(map(repr, at_once))


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_what_is_drawn_depends_on_the_seed_and_differs_between_trials(method: Method):
    what = space(EVERY, method)
    one, other = (drawn(what, opened(what, seed), 10) for seed in (0, 1))
    assert one == drawn(what, opened(what, 0), 10)
    assert len({values["lr"] for values in one + other}) == 20


def test_two_machines_on_a_grid_try_every_point_once():
    what, storage = space(GRID, "grid"), optuna.storages.InMemoryStorage()
    machines = [opened(what, seed, storage) for seed in (0, 1)]
    tried = [drawn(what, machines[turn % 2], 1)[0] for turn in range(what.grid_size)]
    assert what.grid_size == 4 * 3 * 2
    assert list(map(repr, tried)) == [repr(what.grid_point(number)) for number in range(24)]
    again = [suggest.values_of(what, trial.params, trial.number) for trial in opened(what, 2, storage).trials]
    assert list(map(repr, again)) == list(map(repr, tried))


def test_bayes_learns_where_the_good_values_are():
    what = space({"x": Range(0.0, 1.0), "y": Range(0.0, 1.0)}, "bayes")
    study, found = opened(what), []
    for _ in range(40):
        trial = study.ask(suggest.distributions(what))
        found.append(-((trial.params["x"] - 0.2) ** 2) - (trial.params["y"] - 0.7) ** 2)
        study.tell(trial, found[-1])
    assert sum(found[-10:]) / 10 > sum(found[:10]) / 10 + 0.1


def run(study: optuna.Study, curve: Sequence[float]) -> int:
    """Train a trial whose metric follows a curve. Returns the epochs that it was let to run."""
    trial = study.ask()
    for epoch, value in enumerate(curve, start=1):
        trial.report(value, epoch)
        if epoch < len(curve) and trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return epoch
    study.tell(trial, curve[-1])
    return len(curve)


def test_stopping_early_ends_the_worse_trials_and_lets_the_best_run():
    study = opened(space({"x": Range(0, 1)}, early_stop=EarlyStop(1, 3)))
    qualities = [0.50, 0.90, 0.10, 0.20, 0.95, 0.40, 0.60, 0.30, 0.91, 0.55, 0.05, 0.97]
    epochs = dict(zip(qualities, (run(study, [quality] * 9) for quality in qualities), strict=True))
    # The first has nothing to be compared with; each later one must be among the best third so far.
    assert epochs == {
        0.50: 9, 0.90: 9, 0.10: 1, 0.20: 1, 0.95: 9, 0.40: 1, 0.60: 1, 0.30: 1, 0.91: 3, 0.55: 1, 0.05: 1, 0.97: 9
    }  # fmt: skip
    assert study.best_value == 0.97


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_stopping_early_is_that_of_optunas_own_pruner(direction: str):
    random = Random(0)
    curves = [[round(random.random(), 1) for _ in range(30)] for _ in range(60)]
    optunas = SuccessiveHalvingPruner(min_resource=2, reduction_factor=3)
    lengths = []
    for pruner in (suggest.pruner(EarlyStop(2, 3)), optunas):
        study = optuna.create_study(pruner=pruner, direction=direction)
        lengths.append([run(study, curve) for curve in curves])
    assert lengths[0] == lengths[1]
    assert {2, 6, 18, 30} == set(lengths[0])


def test_a_question_that_is_asked_again_about_the_same_epoch_has_the_same_answer():
    study = opened(space({"x": Range(0, 1)}, early_stop=EarlyStop(2, 2)))
    run(study, [0.9] * 3)
    trial = study.ask()
    trial.report(0.1, 2)
    assert [trial.should_prune() for _ in range(3)] == [True] * 3


def test_of_a_metric_that_is_to_fall_the_higher_is_the_worse():
    study = optuna.create_study(pruner=suggest.pruner(EarlyStop(2, 2)), direction="minimize")
    assert [run(study, [loss] * 4) for loss in (0.5, 0.9, 0.1)] == [4, 2, 4]


def test_nothing_is_compared_before_the_first_rung_nor_between_two():
    study = opened(space({"x": Range(0, 1)}, early_stop=EarlyStop(2, 3)))
    assert run(study, [0.9] * 8) == 8
    assert run(study, [0.1, 0.95, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]) == 6


def test_after_the_last_rung_a_trial_runs_to_its_end():
    late_fall = [0.95] * 4 + [0.1] * 8
    for rungs, epochs in ((None, 9), (3, 9), (2, 12), (1, 12)):
        study = opened(space({"x": Range(0, 1)}, early_stop=EarlyStop(1, 3, rungs)))
        assert run(study, [0.9] * 12) == 12
        assert run(study, late_fall) == epochs, rungs
        assert run(study, [0.1] * 12) == 1


def test_without_early_terminate_every_trial_runs_to_its_end():
    study = opened(space({"x": Range(0, 1)}))
    assert [run(study, [quality] * 9) for quality in (0.9, 0.1, 0.2)] == [9, 9, 9]


@pytest.mark.parametrize(("method", "most"), [("random", 25), ("grid", 24), ("bayes", 10)])
def test_a_plan_is_what_the_sweep_of_that_seed_then_tries(method: Method, most: int):
    what = space(GRID if method == "grid" else EVERY, method)
    planned = plan(what, 5, most)
    assert len(planned) == most
    tried = drawn(what, opened(what, 5), most, score=method == "bayes")
    assert list(map(repr, planned)) == list(map(repr, tried))


def test_a_plan_by_bayes_ends_where_the_results_begin_to_count():
    what = space(EVERY, "bayes")
    assert len(plan(what, 0, 30)) == 10
    assert plan(what, 0, 3) == plan(what, 0, 30)[:3]
    # The eleventh depends on what the first ten were worth.
    eleventh = []
    for sign in (1, -1):
        study = opened(what)
        for _ in range(10):
            trial = study.ask(suggest.distributions(what))
            study.tell(trial, sign * trial.params["dropout"])
        eleventh += drawn(what, study, 1)
    assert eleventh[0] != eleventh[1]
