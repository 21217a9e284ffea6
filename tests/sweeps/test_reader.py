import copy
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops.config import config_folder
from mlops.errors import MlopsError
from mlops.sweeps.parameters import Choice, Fixed, Integers, Parameter, Range, Steps
from mlops.sweeps.reader import read
from mlops.sweeps.space import EarlyStop, Space
from samples import ROOT

COMMAND = ["${env}", "${interpreter}", "-m", "${program}", "tracking=wandb", "${args_no_hyphens}"]
HERE: dict[str, Any] = {
    "program": "mlops.train",
    "method": "random",
    "metric": {"name": "val_Accuracy", "goal": "maximize"},
    "parameters": {"seed": {"value": 1}},
}
OTHERS = (
    *("log_uniform", "inv_log_uniform", "inv_log_uniform_values", "q_log_uniform", "q_log_uniform_values"),
    *("normal", "q_normal", "log_normal", "q_log_normal", "beta", "q_beta"),
)
SHIPPED = sorted((config_folder() / "sweep").glob("*.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sweep.yaml"


def write(file: Path, agents: bool = False, **changes: Any) -> None:
    """A right file with some keys changed; one that is None is left out."""
    told = copy.deepcopy(HERE) | ({"command": COMMAND} if agents else {}) | changes
    file.write_text(yaml.safe_dump({key: value for key, value in told.items() if value is not None}, sort_keys=False))


def found(file: Path, agents: bool = False, **changes: Any) -> Space:
    write(file, agents, **changes)
    return read(file)


def problems(file: Path, agents: bool = False, **changes: Any) -> list[str]:
    """What is said of a wrong file, without its path, which stands before each."""
    write(file, agents, **changes)
    return refusals(file)


def refusals(file: Path) -> list[str]:
    with pytest.raises(MlopsError) as caught:
        read(file)
    assert all(problem.startswith(f"{file}: ") for problem in caught.value.problems)
    return [problem.removeprefix(f"{file}: ") for problem in caught.value.problems]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_is_for_this_machine_and_for_agents(path: Path):
    space = read(path)
    assert space.agents
    assert space.searched
    assert (space.metric, space.maximize) == ("val_Accuracy", True)


def test_the_shipped_search_is_the_one_it_says(file: Path):
    space = read(config_folder() / "sweep" / "default.yaml")
    assert space.parameters == {
        "training.optimizer.lr": Range(0.001, 0.05, log=True),
        "training.optimizer.weight_decay": Range(0.001, 0.2, log=True),
        "training.label_smoothing": Range(0.0, 0.1),
        "training.batch_size": Choice((32, 64, 128)),
    }
    assert (space.method, space.early_stop, space.run_cap) == ("bayes", EarlyStop(2, 3), 30)


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        ({"value": "a b"}, Fixed("a b")),
        ({"value": None}, Fixed(None)),
        ({"value": {"a": [1, None]}}, Fixed({"a": [1, None]})),
        ({"values": [1, True, 1.0, "1", None, [1]]}, Choice((1, True, 1.0, "1", None, [1]))),
        ({"min": 1, "max": 9}, Integers(1, 9)),
        ({"min": 1.0, "max": 9}, Range(1.0, 9.0)),
        ({"min": -1, "max": 0.5}, Range(-1.0, 0.5)),
        ({"distribution": "constant", "value": 3}, Fixed(3)),
        ({"distribution": "categorical", "values": [1, 2]}, Choice((1, 2))),
        (
            {"distribution": "categorical", "values": [1, 2], "probabilities": [0.25, 0.75]},
            Choice((1, 2), (0.25, 0.75)),
        ),
        (
            {"distribution": "categorical_w_probabilities", "values": ["a", "b", "c"], "probabilities": [0, 0.5, 0.5]},
            Choice(("a", "b", "c"), (0, 0.5, 0.5)),
        ),
        ({"values": [1, 2], "probabilities": [0.25, 0.75]}, Choice((1, 2), (0.25, 0.75))),
        ({"distribution": "int_uniform", "min": -3, "max": 3}, Integers(-3, 3)),
        ({"distribution": "uniform", "min": 1, "max": 9}, Range(1.0, 9.0)),
        ({"distribution": "log_uniform_values", "min": 0.001, "max": 1}, Range(0.001, 1.0, log=True)),
        ({"distribution": "q_uniform", "min": 16, "max": 64, "q": 16}, Steps(16, 64, 16)),
        ({"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.1}, Steps(0.0, 1.0, 0.1)),
        ({"distribution": "q_uniform", "min": 0, "max": 10}, Steps(0, 10, 1)),
    ],
)
def test_a_parameter_is_what_wandb_makes_of_it(file: Path, body: dict[str, Any], parameter: Parameter):
    space = found(file, parameters={"model.x": body})
    assert space.parameters == {"model.x": parameter}
    # To Python 1, 1.0 and true are equal.
    assert repr(space.parameters["model.x"]) == repr(parameter)


def test_the_other_keys_are_read_as_they_stand(file: Path):
    space = found(
        file, method="bayes", metric={"name": "val_loss", "goal": "minimize", "target": 0.1}, run_cap=7,
        name="a", description="b", project="c", entity="d",
    )  # fmt: skip
    assert (space.path, space.method, space.metric, space.maximize) == (file, "bayes", "val_loss", False)
    assert (space.target, space.run_cap, space.early_stop, space.agents) == (0.1, 7, None, False)


def test_the_goal_that_is_not_said_is_to_minimize(file: Path):
    assert not found(file, metric={"name": "train_loss"}).maximize
    assert problems(file, metric={"name": "val_F1"}) == [
        "metric: no goal, which to W&B is minimize: val_F1 is better when larger"
    ]


def test_names_in_nests_are_their_full_names_here_and_refused_for_agents(file: Path):
    nested = {
        "training": {"parameters": {"epochs": {"value": 3}, "optimizer": {"parameters": {"lr": {"values": [1, 2]}}}}}
    }
    assert found(file, parameters=nested).parameters == {
        "training.epochs": Fixed(3),
        "training.optimizer.lr": Choice((1, 2)),
    }
    assert problems(file, agents=True, parameters=nested) == [
        f"parameters.{name}: is nested, which W&B's agent hands on as one map that Hydra cannot read; write the names "
        f"in full: {name}.<key>"
        for name in ("training", "training.optimizer")
    ]


def test_a_name_that_stands_twice_once_in_a_nest_is_refused(file: Path):
    twice = {"training": {"parameters": {"epochs": {"value": 3}}}, "training.epochs": {"value": 4}}
    (problem,) = problems(file, parameters=twice)
    assert problem.startswith("parameters.training.epochs: ")
    assert "twice" in problem


@pytest.mark.parametrize("distribution", OTHERS)
def test_every_other_distribution_of_wandb_is_refused_by_its_name(file: Path, distribution: str):
    body = {"distribution": distribution, "mu": 0, "sigma": 1, "min": 1, "max": 2}
    assert problems(file, parameters={"model.x": body}) == [
        f"parameters.model.x.distribution={distribution}: is W&B's alone; here there are constant, categorical, "
        "categorical_w_probabilities, int_uniform, uniform, log_uniform_values, q_uniform"
    ]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"distribution": "gauss", "min": 1, "max": 2}, ".distribution=gauss: must be one of constant, categorical,"),
        ({"distribution": ["uniform"], "min": 1, "max": 2}, ".distribution=['uniform']: must be one of constant,"),
        (
            {"distribution": {"uniform": 1}, "min": 1, "max": 2},
            ".distribution={'uniform': 1}: must be one of constant,",
        ),
        ({}, ": has neither value, values, nor min and max"),
        (3, "=3: must be a map: {value: 3}"),
        ([1, 2], "=[1, 2]: must be a map: {value: [1, 2]}"),
        (None, "=null: must be a map: {value: null}"),
        ({"min": 1}, ".max: is missing; distribution=int_uniform needs it"),
        ({"max": 0.5}, ".min: is missing; distribution=uniform needs it"),
        ({"distribution": "constant"}, ".value: is missing; distribution=constant needs it"),
        ({"distribution": "categorical_w_probabilities", "values": [1]}, ".probabilities: is missing;"),
        ({"value": 1, "max": 2}, ".max: no such key here; it has distribution, value"),
        ({"min": 1, "max": 2, "mx": 3}, ".mx: no such key here; it has distribution, min, max"),
        ({"min": 2, "max": 1}, ": min=2 must be below max=1"),
        ({"min": 1.5, "max": 1.5}, ": min=1.5 must be below max=1.5"),
        ({"min": "1", "max": 2}, ".min=1: must be a number"),
        ({"min": True, "max": 2}, ".min=true: must be a number"),
        ({"min": None, "max": 2}, ".min=null: must be a number"),
        ({"min": 0.5, "max": float("inf")}, ".max=inf: must be a number"),
        ({"min": float("nan"), "max": 2}, ".min=nan: must be a number"),
        ({"min": 1, "max": 10**400}, ".max=1000"),
        ({"min": -1.7e308, "max": 1.7e308}, ": min=-1.7e+308"),
        ({"distribution": "int_uniform", "min": 1, "max": 2.5}, ": min=1 and max=2.5 must be integers for int_uniform"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, ".min=0: must be above 0, for its logarithm is"),
        ({"distribution": "log_uniform_values", "min": -1, "max": 1}, ".min=-1: must be above 0, for its logarithm is"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}, ".q=0: must be above 0"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": "a"}, ".q=a: must be a number"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 5e-324}, ".q=5e-324"),
        ({"values": []}, ".values=[]: must be a list of 1 to 10,000 values"),
        ({"values": 3}, ".values=3: must be a list of 1 to 10,000 values"),
        ({"values": {"a": 1}}, ".values={'a': 1}: must be a list of 1 to 10,000 values"),
        ({"values": list(range(10_001))}, ": must be a list of 1 to 10,000 values"),
        ({"values": [1, 2, 1]}, ".values: has model.x=1 more than once"),
        ({"values": [float("nan"), 1]}, ": model.x=nan: no override can say that; use null, a number, text,"),
        ({"values": [1, 2], "probabilities": [1]}, ".probabilities: must be a list of as many numbers as there are"),
        ({"values": [1, 2], "probabilities": 0.5}, ".probabilities: must be a list of as many numbers as there are"),
        ({"values": [1, 2], "probabilities": [0.5, 0.4]}, ".probabilities=[0.5, 0.4]: must be 0 or more each, and add"),
        ({"values": [1, 2], "probabilities": [1.5, -0.5]}, ".probabilities=[1.5, -0.5]: must be 0 or more each, and"),
        ({"values": [1, 2], "probabilities": [0.5, "x"]}, "=x: must be a number"),
        ({"parameters": [1]}, "=[1]: must be a map of names"),
        ({"parameters": {"y": {"value": 1}}, "value": 2}, ".value: no such key here; it has parameters"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_wrong_and_what_to_use(file: Path, body: Any, problem: str):
    said = problems(file, parameters={"model.x": body})
    assert len(said) == 1, said
    assert said[0].startswith("parameters.model.x")
    assert problem in said[0]


@pytest.mark.parametrize(
    "name", ["+seed", "++seed", "~model", "a b", "a[0]", "a,b", "model@x", "hydra.run.dir", "resume"]
)
def test_a_name_that_is_no_key_of_a_trials_config_is_refused(file: Path, name: str):
    for agents in (False, True):
        (problem,) = problems(file, agents=agents, parameters={name: {"values": ["a", "b"]}})
        assert problem.startswith(f"parameters.{name}: ")


def test_a_name_is_text(file: Path):
    assert problems(file, parameters={3: {"value": 1}}) == ["parameters.3: a name is text"]


def test_without_parameters_there_is_nothing_to_search(file: Path):
    for parameters in (None, {}):
        assert problems(file, parameters=parameters) == [
            "parameters: is missing; name what to search: training.optimizer.lr: {min: 0.001, max: 0.1}"
        ]
    assert problems(file, parameters=[1]) == ["parameters=[1]: must be a map of names"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"method": None}, "method: is missing; must be one of grid, random, bayes"),
        ({"method": "annealing"}, "method=annealing; must be one of grid, random, bayes"),
        ({"method": ["grid"]}, "method=['grid']; must be one of grid, random, bayes"),
        ({"metric": None}, "metric: is missing; it is a map: {name: val_Accuracy, goal: maximize}"),
        ({"metric": "val_loss"}, "metric: is missing; it is a map: {name: val_Accuracy, goal: maximize}"),
        (
            {"metric": {"name": "val_accuracy", "goal": "maximize"}},
            "metric.name=val_accuracy: is not logged once an epoch; choose one of val_Accuracy, val_Precision,",
        ),
        ({"metric": {"name": "test_Accuracy", "goal": "maximize"}}, "metric.name=test_Accuracy: is not logged once an"),
        ({"metric": {"goal": "maximize"}}, "metric.name=null: is not logged once an epoch"),
        ({"metric": {"name": ["val_F1"], "goal": "maximize"}}, "metric.name=['val_F1']: is not logged once an epoch"),
        ({"metric": {"name": "val_F1", "goal": "max"}}, "metric.goal=max; must be one of minimize, maximize"),
        (
            {"metric": {"name": "val_F1", "goal": "minimize"}},
            "metric: goal=minimize: val_F1 is better when larger",
        ),
        (
            {"metric": {"name": "val_loss", "goal": "maximize"}},
            "metric: goal=maximize: val_loss is better when smaller",
        ),
        (
            {"metric": {"name": "val_F1", "goal": "maximize", "target": "high"}},
            "metric.target=high: must be a number",
        ),
        (
            {"metric": {"name": "val_F1", "goal": "maximize", "impute": "best"}},
            "metric.impute: no such key here; it has name, goal, target",
        ),
        ({"program": None}, "program: is missing; it is mlops.train"),
        ({"program": 3}, "program: is missing; it is mlops.train"),
        ({"program": "mlops.trian"}, "program=mlops.trian: does not exist; it is mlops.train"),
        ({"program": "src/train.py"}, "program=src/train.py: does not exist; it is mlops.train"),
        ({"program": "x" * 300}, f"program={'x' * 300}: does not exist; it is mlops.train"),
        ({"program": "a\0b"}, "program=a\\x00b: does not exist; it is mlops.train"),
        ({"run_cap": 0}, "run_cap=0: must be an integer of at least 1"),
        ({"run_cap": True}, "run_cap=true: must be an integer of at least 1"),
        ({"run_cap": 2.0}, "run_cap=2.0: must be an integer of at least 1"),
        ({"paramters": {"a": 1}}, "paramters: no such key of a sweep file; it has program, command, method, metric,"),
        ({"imports": ["a"]}, "imports: no such key of a sweep file; it has program, command, method, metric,"),
    ],
)
def test_a_wrong_key_is_named_with_what_it_can_be(file: Path, changes: dict[str, Any], problem: str):
    said = problems(file, **changes)
    assert len(said) == 1, said
    assert said[0].startswith(problem)


def test_the_program_may_be_the_file_of_mlops_train_and_no_other(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    assert found(file, program="src/mlops/train.py").parameters == {"seed": Fixed(1)}
    assert found(file, program="src.mlops.train").parameters == {"seed": Fixed(1)}
    assert problems(file, program="src/mlops/cli.py") == [
        "program=src/mlops/cli.py: is another program; trials are runs of mlops.train"
    ]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("print('mine')")
    assert problems(file, program="train.py") == [
        "program=train.py: is another program; trials are runs of mlops.train"
    ]
    os.mkfifo(tmp_path / "pipe")
    assert problems(file, program="pipe") == ["program=pipe: does not exist; it is mlops.train"]


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("python -m mlops.train", "command: must be a list of words"),
        (["python", 3], "command: must be a list of words"),
        ([*COMMAND[:-1]], "command: has no arguments; only ${args_no_hyphens} writes key=value, which Hydra reads"),
        (
            [*COMMAND[:-1], "${args}"],
            "command: has ${args}; only ${args_no_hyphens} writes key=value, which Hydra reads",
        ),
        ([*COMMAND[:-1], "${args_json}"], "command: has ${args_json}; only ${args_no_hyphens} writes key=value,"),
        ([*COMMAND, "${args}"], "command: has ${args_no_hyphens}, ${args}; only ${args_no_hyphens} writes key=value,"),
        (
            ["python", "${program}", "${args_no_hyphens}"],
            "command: program=mlops.train is a module; it needs -m before",
        ),
        (["-m", "python", "${program}", "${args_no_hyphens}"], "command: program=mlops.train is a module; it needs -m"),
    ],
)
def test_a_command_that_agents_cannot_start_a_trial_with_is_refused(file: Path, command: Any, problem: str):
    (said,) = problems(file, command=command)
    assert said.startswith(problem)


def test_a_command_makes_a_file_one_for_agents(file: Path, monkeypatch: pytest.MonkeyPatch):
    assert found(file, agents=True).agents
    assert found(file, command=[*COMMAND[:-1], "${args_override_hydra}"]).agents
    assert not found(file).agents
    monkeypatch.chdir(ROOT)
    by_file = ["${interpreter}", "${program}", "${args_no_hyphens}"]
    assert found(file, program="src/mlops/train.py", command=by_file).agents


@pytest.mark.parametrize(
    "value", [None, "null", "1", "it's", " a", "a,b", "\u00e9", "${seed}", {"a": 1}, [None], [{"a": 1}], [["a", None]]]
)
def test_what_an_agent_cannot_carry_is_refused_for_agents_alone(file: Path, value: Any):
    assert found(file, parameters={"model.x": {"value": value}}).parameters == {"model.x": Fixed(value)}
    for body in ({"value": value}, {"values": ["fine", value]}):
        (problem,) = problems(file, agents=True, parameters={"model.x": body})
        assert problem.startswith(f"parameters.model.x: model.x={value!r}: W&B's agent writes ")
        assert problem.endswith("or leave out `command`: a file without it is for this machine alone")


@pytest.mark.parametrize("value", ["a", "a b", 1, -0.5, True, [1, 2.5, "a b", True], ["it's"], ""])
def test_what_an_agent_carries_is_taken_for_agents(file: Path, value: Any):
    assert found(file, agents=True, parameters={"model.x": {"value": value}}).parameters == {"model.x": Fixed(value)}


@pytest.mark.parametrize("name", ["a b", "\u00e9", "1a", "a/b", "-a"])
def test_a_name_that_wandb_does_not_take_is_refused_for_agents(file: Path, name: str):
    (problem,) = problems(file, agents=True, parameters={name: {"value": 1}})
    assert problem.startswith(f"parameters.{name}: ")


def with_parameters(file: Path, text: str, agents: bool = False) -> Path:
    write(file, agents, parameters=None)
    file.write_text(f"{file.read_text()}parameters: {text}\n")
    return file


def test_an_exponent_is_a_number_here_and_the_bound_of_a_range_must_be_one_to_wandb_too(file: Path):
    space = read(with_parameters(file, "{a.lr: {min: 1e-5, max: 1E-1}, a.wd: {values: [1e-4, 0]}}"))
    assert space.parameters == {"a.lr": Range(1e-5, 0.1), "a.wd": Choice((1e-4, 0))}
    assert all(type(bound) is float for bound in space.parameters["a.lr"].extremes())
    assert refusals(with_parameters(file, "{a.lr: {min: 1e-5, max: 0.1}}", agents=True)) == [
        "parameters.a.lr.min=1e-5: is text to W&B, which reads YAML 1.1; write 1.0e-05"
    ]
    assert read(with_parameters(file, "{a.lr: {min: 1.0e-5, max: 0.1}}", agents=True)).agents


def test_a_single_exponent_is_carried_by_the_agent_and_one_in_a_list_is_not(file: Path):
    # The agent writes the text that W&B has read: a.lr=1e-5, but a.betas=['1e-5', 1].
    space = read(with_parameters(file, "{a.lr: {values: [1e-5, 1e-4]}}", agents=True))
    assert space.parameters == {"a.lr": Choice((1e-5, 1e-4))}
    (problem,) = refusals(with_parameters(file, "{a.betas: {value: [1e-5, 1]}}", agents=True))
    assert problem.startswith("parameters.a.betas")
    assert "1e-5" in problem
    assert read(with_parameters(file, "{a.betas: {value: [1e-5, 1]}}")).parameters == {"a.betas": Fixed([1e-5, 1])}


def test_the_same_number_written_in_two_ways_is_a_choice_that_stands_twice(file: Path):
    assert refusals(with_parameters(file, "{a.lr: {values: [1e-5, 0.00001]}}")) == [
        "parameters.a.lr.values: has a.lr=1e-05 more than once"
    ]


@pytest.mark.parametrize("value", ["2024-01-01", "!!binary aGk=", "!!set {a, b}", "!!pairs [a: 1]"])
def test_what_yaml_can_hold_and_no_override_can_say_is_refused(file: Path, value: str):
    (problem,) = refusals(with_parameters(file, f"{{model.x: {{value: {value}}}}}"))
    assert problem.startswith("parameters.model.x: model.x=")
    assert "no override can say that" in problem


def test_a_grid_has_no_continuous_range_and_no_weights(file: Path):
    parameters = {
        "a.lr": {"min": 0.1, "max": 0.2},
        "a.wd": {"distribution": "log_uniform_values", "min": 1, "max": 2},
        "a.b": {"values": [1, 2], "probabilities": [0.5, 0.5]},
        "a.c": {"values": [1, 2]},
        "a.d": {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.5},
        "a.e": {"min": 1, "max": 3},
        "a.f": {"value": 1},
    }
    ranges = "method=grid has no steps in a continuous range; list values, or use q_uniform"
    assert problems(file, method="grid", parameters=parameters) == [
        f"parameters.a.lr: {ranges}",
        f"parameters.a.wd: {ranges}",
        "parameters.a.b.probabilities: method=grid tries every value; leave them out",
    ]
    for name in ("a.lr", "a.wd", "a.b"):
        del parameters[name]
    assert found(file, method="grid", parameters=parameters).grid_size == 2 * 2 * 3


@pytest.mark.parametrize(
    ("node", "stop"),
    [
        ({"type": "hyperband", "min_iter": 3}, EarlyStop(3, 3)),
        ({"type": "hyperband", "min_iter": 2, "eta": 4, "strict": True}, EarlyStop(2, 4)),
        # W&B: brackets of max_iter/eta and max_iter/eta/eta.
        ({"type": "hyperband", "max_iter": 27, "s": 2}, EarlyStop(3, 3, 2)),
        ({"type": "hyperband", "max_iter": 16, "s": 3, "eta": 2}, EarlyStop(2, 2, 3)),
        ({"type": "hyperband", "max_iter": 20, "s": 2}, EarlyStop(2, 3, 2)),
        # What would come before the first epoch is left out.
        ({"type": "hyperband", "max_iter": 10, "s": 9}, EarlyStop(1, 3, 2)),
    ],
)
def test_early_terminate_is_hyperband_in_both_of_its_forms(file: Path, node: dict[str, Any], stop: EarlyStop):
    assert found(file, early_terminate=node).early_stop == stop


def test_comparisons_without_end_are_not_counted_one_by_one(file: Path):
    start = time.process_time()
    stop = found(file, early_terminate={"type": "hyperband", "max_iter": 27, "s": 20_000}).early_stop
    assert stop == EarlyStop(1, 3, 3)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        ("hyperband", "early_terminate: must be a map: {type: hyperband, min_iter: 3}"),
        ({"min_iter": 3}, "early_terminate.type: is missing; must be one of hyperband"),
        ({"type": "median", "min_iter": 3}, "early_terminate.type=median; must be one of hyperband"),
        ({"type": "hyperband"}, "early_terminate: needs either min_iter, or max_iter and s"),
        ({"type": "hyperband", "s": 2}, "early_terminate: needs either min_iter, or max_iter and s"),
        (
            {"type": "hyperband", "min_iter": 1, "max_iter": 9, "s": 2},
            "early_terminate: needs either min_iter, or max_iter and s",
        ),
        ({"type": "hyperband", "min_iter": 1, "s": 2}, "early_terminate: s goes with max_iter: the number of"),
        ({"type": "hyperband", "max_iter": 9}, "early_terminate: s goes with max_iter: the number of comparisons"),
        ({"type": "hyperband", "min_iter": 0}, "early_terminate.min_iter=0: must be an integer of at least 1"),
        ({"type": "hyperband", "min_iter": "3"}, "early_terminate.min_iter=3: must be an integer of at least 1"),
        ({"type": "hyperband", "min_iter": True}, "early_terminate.min_iter=true: must be an integer of at least 1"),
        ({"type": "hyperband", "min_iter": 3, "eta": 1}, "early_terminate.eta=1: must be an integer of at least 2"),
        ({"type": "hyperband", "min_iter": 3, "eta": 2.5}, "early_terminate.eta=2.5: must be an integer of at least 2"),
        ({"type": "hyperband", "max_iter": 2, "s": 1}, "early_terminate.max_iter=2: leaves no epoch to compare after;"),
        ({"type": "hyperband", "min_iter": 3, "grace": 1}, "early_terminate.grace: no such key here; it has type,"),
    ],
)
def test_a_wrong_early_terminate_says_what_is_wrong(file: Path, node: Any, problem: str):
    said = problems(file, early_terminate=node)
    assert len(said) == 1, said
    assert said[0].startswith(problem)


def test_all_that_is_wrong_is_said_at_once_each_with_the_file(file: Path):
    said = problems(
        file,
        program="train.sh",
        method="genetic",
        metric={"name": "acc", "goal": "maximize"},
        parameters={"a": {"min": 2, "max": 1}, "b": {"distribution": "beta"}, "c": {"values": [1, 1]}, "d": {"x": 1}},
        early_terminate={"type": "hyperband", "min_iter": 0},
        run_cap=-1,
        comand=["x"],
    )
    beginnings = (
        *("comand: no such key", "program=train.sh: does not exist", "method=genetic;", "metric.name=acc:"),
        *(
            "parameters.a: min=2",
            "parameters.b.distribution=beta:",
            "parameters.c.values:",
            "parameters.d: has neither",
        ),
        *("run_cap=-1:", "early_terminate.min_iter=0:"),
    )
    assert [line.startswith(start) for line, start in zip(said, beginnings, strict=True)] == [True] * 10


def test_names_out_of_the_file_do_not_steer_the_terminal(file: Path):
    (problem,) = problems(file, **{"a\x1b[2Jb": 1})
    assert problem.startswith("a\\x1b[2Jb: no such key of a sweep file")


def test_yaml_that_is_refused_is_said_with_the_file(file: Path):
    file.write_text("program: mlops.train\nprogram: mlops.train\n")
    (problem,) = refusals(file)
    assert problem.startswith("is not YAML: key program stands twice")


def test_a_long_list_of_values_is_read_in_no_time(file: Path):
    assert found(file, parameters={"seed": {"values": list(range(1000))}}).grid_size == 1000
