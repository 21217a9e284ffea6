"""A sweep file: W&B's schema (docs.wandb.ai, "Sweep configuration options"), with all that is wrong said at once.

With `command` the file is for W&B's agents as well, and what these cannot carry is refused; without it, it is for this
machine alone.
"""

import importlib.util
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from mlops.config import Monitor, goal, shown
from mlops.errors import MlopsError
from mlops.sweeps.parameters import Choice, Fixed, Integers, Parameter, Range, Steps
from mlops.sweeps.plain_yaml import Exponent, load, plain
from mlops.sweeps.space import EarlyStop, Method, Space
from mlops.sweeps.values import to_agent, to_override

MOST_VALUES = 10_000
# More are not told apart.
MOST_STEPS = 1e12

# What has no counterpart in the local engine, although W&B knows it.
_OTHER_DISTRIBUTIONS = frozenset(
    {
        *("log_uniform", "inv_log_uniform", "inv_log_uniform_values", "q_log_uniform", "q_log_uniform_values"),
        *("normal", "q_normal", "log_normal", "q_log_normal", "beta", "q_beta"),
    }
)
_KEYS_OF: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
}
_DESCRIPTIVE = ("name", "description", "project", "entity")
_KNOWN = ("program", "command", "method", "metric", "parameters", "early_terminate", "run_cap", *_DESCRIPTIVE)
# What W&B accepts as a parameter's name.
_AGENTS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
# A key, or a group, as Hydra's overrides name one: no sign before it, no package after it.
_NAME = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
# They say how a run is started, and a trial is started by the sweep.
_NOT_SEARCHED = ("hydra", "resume", "sweep", "engine")
_PROGRAMS = ("mlops.train", "src.mlops.train")


def read(path: Path) -> Space:
    """Read a sweep file.

    Raises:
        MlopsError: it cannot be read, or with all that is wrong in it.
    """
    raw = load(path)
    problems: list[str] = []
    try:
        return _Reader(path, raw, problems).space()
    except _Stop:
        raise MlopsError([f"{path}: {problem}" for problem in problems]) from None


class _Stop(Exception):  # noqa: N818 - not an error of its own: the problems say what is wrong
    """Enough is wrong that there is no space to build."""


class _Reader:
    def __init__(self, path: Path, raw: Mapping[str, Any], problems: list[str]) -> None:
        self.path, self.raw, self.problems = path, raw, problems
        self.agents = "command" in raw

    def space(self) -> Space:
        for key in self.raw:
            if key not in _KNOWN:
                self.wrong(f"{key}: no such key of a sweep file; it has {', '.join(_KNOWN)}")
        self._program()
        method = self._one_of(self.raw, "method", get_args(Method))
        metric, maximize, target = self._metric()
        parameters: dict[str, Parameter] = {}
        for name, kind in self._parameters(self.raw.get("parameters"), ""):
            if name in parameters:
                self.wrong(f"parameters.{name}: stands twice, once in a nest; leave one out")
            parameters[name] = kind
        if not parameters and not self.problems:
            self.wrong("parameters: is missing; name what to search: training.optimizer.lr: {min: 0.001, max: 0.1}")
        if method == "grid":
            self._grid(parameters)
        run_cap = self.raw.get("run_cap")
        if run_cap is not None and (type(run_cap) is not int or run_cap < 1):
            self.wrong(f"run_cap={shown(run_cap)}: must be an integer of at least 1")
        stop = self._early_stop()
        if self.problems:
            raise _Stop
        return Space(
            self.path, method, metric, maximize, target, parameters, stop, run_cap, agents=self.agents
        )  # fmt: skip

    def wrong(self, problem: str) -> None:
        self.problems.append(problem)

    def _one_of(self, node: Mapping[str, Any], key: str, allowed: Sequence[str], where: str = "") -> Any:
        value = node.get(key)
        if value not in allowed:
            found = f"{where}{key}={shown(value)}" if key in node else f"{where}{key}: is missing"
            self.wrong(f"{found}; must be one of {', '.join(allowed)}")
        return value

    def _program(self) -> None:
        program, command = self.raw.get("program"), self.raw.get("command")
        if not isinstance(program, str):
            self.wrong("program: is missing; it is mlops.train")
            return
        if program not in _PROGRAMS:
            ours, asked = importlib.util.find_spec("mlops.train"), Path(program)
            if not os.path.isfile(program):  # noqa: PTH113 - pathlib's raises for a name that is too long
                self.wrong(f"program={program}: does not exist; it is mlops.train")
            elif ours is None or ours.origin is None or not asked.samefile(ours.origin):
                self.wrong(f"program={program}: is another program; trials are runs of mlops.train")
        if command is None:
            return
        if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
            self.wrong("command: must be a list of words")
            return
        arguments = [word for word in command if word.startswith("${args")]
        if arguments not in (["${args_no_hyphens}"], ["${args_override_hydra}"]):
            self.wrong(
                f"command: has {', '.join(arguments) or 'no arguments'}; only ${{args_no_hyphens}} writes key=value, "
                "which Hydra reads"
            )
        if program in _PROGRAMS and ["-m", "${program}"] not in [command[i : i + 2] for i in range(len(command))]:
            self.wrong(f"command: program={program} is a module; it needs -m before ${{program}}")

    def _metric(self) -> tuple[str, bool, float | None]:
        metric = self.raw.get("metric")
        if not isinstance(metric, dict):
            self.wrong("metric: is missing; it is a map: {name: val_Accuracy, goal: maximize}")
            return "", True, None
        self._no_others(metric, "metric", ("name", "goal", "target"))
        name = metric.get("name")
        # W&B's own default.
        asked = self._one_of({"goal": "minimize", **metric}, "goal", ("minimize", "maximize"), "metric.")
        if not isinstance(name, str) or name not in get_args(Monitor):
            known = ", ".join(get_args(Monitor))
            self.wrong(f"metric.name={shown(name)}: is not logged once an epoch; choose one of {known}")
        elif asked in ("minimize", "maximize") and not asked.startswith(goal(name)):
            said = f"goal={asked}" if "goal" in metric else "no goal, which to W&B is minimize"
            self.wrong(f"metric: {said}: {name} is better when {'larger' if goal(name) == 'max' else 'smaller'}")
        target = metric.get("target")
        if target is not None:
            target = self._number(metric, "target", "metric.")
        return str(name), asked == "maximize", target

    def _parameters(self, node: Any, prefix: str) -> Iterator[tuple[str, Parameter]]:
        where = f"parameters.{prefix}" if prefix else "parameters"
        if node is None:
            return
        if not isinstance(node, dict):
            self.wrong(f"{where.rstrip('.')}={shown(node)}: must be a map of names")
            return
        for key, body in node.items():
            name = f"{prefix}{key}"
            if not isinstance(key, str) or not key:
                self.wrong(f"parameters.{name}: a name is text")
            elif not isinstance(body, dict):
                self.wrong(f"parameters.{name}={shown(body)}: must be a map: {{value: {shown(body)}}}")
            elif "parameters" in body:
                if self.agents:
                    self.wrong(
                        f"parameters.{name}: is nested, which W&B's agent hands on as one map that Hydra cannot read; "
                        f"write the names in full: {name}.<key>"
                    )
                self._no_others(body, f"parameters.{name}", ("parameters",))
                yield from self._parameters(body["parameters"], f"{name}.")
            elif self.agents and not _AGENTS_NAME.fullmatch(name):
                self.wrong(f"parameters.{name}: W&B takes letters, digits, dots, hyphens and underscores only")
            elif not self.agents and not _NAME.fullmatch(name):
                self.wrong(f"parameters.{name}: is no name of a config key or a group, such as training.optimizer.lr")
            elif name.partition(".")[0] in _NOT_SEARCHED:
                self.wrong(f"parameters.{name}: is how a run is started, which no trial may change; leave it out")
            elif (kind := self._parameter(body, f"parameters.{name}", name)) is not None:
                yield name, kind

    def _parameter(self, body: Mapping[str, Any], where: str, name: str) -> Parameter | None:
        before = len(self.problems)
        distribution = body.get("distribution", _distribution_of(body))
        if not isinstance(distribution, str | None):
            distribution = shown(distribution)  # a list or a map cannot be looked up
        if distribution in _OTHER_DISTRIBUTIONS:
            self.wrong(f"{where}.distribution={distribution}: is W&B's alone; here there are {', '.join(_KEYS_OF)}")
            return None
        # `distribution: categorical` may have probabilities.
        if distribution == "categorical" and "probabilities" in body:
            distribution = "categorical_w_probabilities"
        if distribution not in _KEYS_OF:
            if distribution is None:
                self.wrong(f"{where}: has neither value, values, nor min and max")
            else:
                self.wrong(f"{where}.distribution={shown(distribution)}: must be one of {', '.join(_KEYS_OF)}")
            return None
        keys = _KEYS_OF[distribution]
        self._no_others(body, where, ("distribution", *keys))
        for key in keys:
            if key not in body and key != "q":
                self.wrong(f"{where}.{key}: is missing; distribution={distribution} needs it")
        if len(self.problems) > before:
            return None
        if distribution == "constant":
            return Fixed(self._value(name, body["value"], where))
        if distribution.startswith("categorical"):
            return self._choice(body, where, name)
        return self._range(body, where, distribution)

    def _choice(self, body: Mapping[str, Any], where: str, name: str) -> Choice | None:
        values, before = body["values"], len(self.problems)
        if not isinstance(values, list) or not 1 <= len(values) <= MOST_VALUES:
            self.wrong(f"{where}.values={shown(values)}: must be a list of 1 to {MOST_VALUES:,} values")
            return None
        found = [self._value(name, value, where) for value in values]
        if len(self.problems) > before:
            return None
        texts = [to_override(name, value) for value in found]
        for text in sorted(text for text, count in Counter(texts).items() if count > 1):
            self.wrong(f"{where}.values: has {text} more than once")
        probabilities = body.get("probabilities")
        if probabilities is None:
            return Choice(tuple(found))
        if not isinstance(probabilities, list) or len(probabilities) != len(values):
            self.wrong(f"{where}.probabilities: must be a list of as many numbers as there are values")
            return None
        shares = [self._number({"share": share}, "share", f"{where}.probabilities.") for share in probabilities]
        if len(self.problems) > before:
            return None
        if min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            self.wrong(f"{where}.probabilities={shown(probabilities)}: must be 0 or more each, and add up to 1")
        return Choice(tuple(found), tuple(shares))

    def _range(self, body: Mapping[str, Any], where: str, distribution: str) -> Parameter | None:
        before = len(self.problems)
        low, high = self._number(body, "min", f"{where}."), self._number(body, "max", f"{where}.")
        step = self._number({"q": 1, **body}, "q", f"{where}.") if distribution == "q_uniform" else 1
        if len(self.problems) > before:
            return None
        if low >= high:
            self.wrong(f"{where}: min={shown(low)} must be below max={shown(high)}")
        if distribution == "log_uniform_values" and low <= 0:
            self.wrong(f"{where}.min={shown(low)}: must be above 0, for its logarithm is taken")
        if not math.isfinite(float(high) - float(low)):
            self.wrong(f"{where}: min={shown(low)} to max={shown(high)} is wider than a number can be")
        if step <= 0:
            self.wrong(f"{where}.q={shown(step)}: must be above 0")
        elif distribution == "q_uniform" and max(abs(low), abs(high)) / step > MOST_STEPS:
            self.wrong(f"{where}.q={shown(step)}: is too small beside min={shown(low)} and max={shown(high)}")
        if distribution == "int_uniform":
            if not isinstance(low, int) or not isinstance(high, int):
                self.wrong(f"{where}: min={shown(low)} and max={shown(high)} must be integers for int_uniform")
                return None
            return Integers(low, high)
        if distribution == "q_uniform":
            return Steps(low, high, step)
        return Range(float(low), float(high), log=distribution == "log_uniform_values")

    def _value(self, name: str, value: Any, where: str) -> Any:
        found = plain(value)
        if self.agents and isinstance(value, list | dict) and (texts := list(_exponents(value))):
            said, meant = texts[0].text, texts[0].as_yaml_1_1()
            self.wrong(f"{where}: has {said} in a list, text to W&B, which reads YAML 1.1; write {meant}")
            return found
        try:
            to_override(name, found)
            if self.agents:
                # What W&B reads in the file is 1e-5 as text, and its agent writes just that.
                to_agent(name, found)
        except MlopsError as error:
            self.wrong(f"{where}: {error.problems[0]}")
        return found

    def _number(self, node: Mapping[str, Any], key: str, where: str) -> Any:
        value = node[key]
        if isinstance(value, Exponent) and self.agents:
            self.wrong(f"{where}{key}={value.text}: is text to W&B, which reads YAML 1.1; write {value.as_yaml_1_1()}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            self.wrong(f"{where}{key}={shown(value)}: must be a number")
            return math.nan
        return plain(value)

    def _no_others(self, node: Mapping[str, Any], where: str, known: Sequence[str]) -> None:
        for key in node:
            if key not in known:
                self.wrong(f"{where}.{key}: no such key here; it has {', '.join(known)}")

    def _grid(self, parameters: Mapping[str, Parameter]) -> None:
        for name, kind in parameters.items():
            if isinstance(kind, Range):
                self.wrong(
                    f"parameters.{name}: method=grid has no steps in a continuous range; list values, or use q_uniform"
                )
            elif isinstance(kind, Choice) and kind.probabilities is not None:
                self.wrong(f"parameters.{name}.probabilities: method=grid tries every value; leave them out")

    def _early_stop(self) -> EarlyStop | None:
        node = self.raw.get("early_terminate")
        if node is None:
            return None
        if not isinstance(node, dict):
            self.wrong("early_terminate: must be a map: {type: hyperband, min_iter: 3}")
            return None
        self._no_others(node, "early_terminate", ("type", "min_iter", "max_iter", "s", "eta", "strict"))
        self._one_of(node, "type", ("hyperband",), "early_terminate.")
        numbers = {"eta": 3, **{key: node[key] for key in ("min_iter", "max_iter", "s", "eta") if key in node}}
        before = len(self.problems)
        for key, value in numbers.items():
            least = 2 if key == "eta" else 1
            # W&B takes fractions of eta; one in 2.5 trials is nothing that is compared here.
            if type(value) is not int or value < least:
                self.wrong(f"early_terminate.{key}={shown(value)}: must be an integer of at least {least}")
        if ("min_iter" in node) == ("max_iter" in node):
            self.wrong("early_terminate: needs either min_iter, or max_iter and s")
        elif ("s" in node) != ("max_iter" in node):
            self.wrong("early_terminate: s goes with max_iter: the number of comparisons before it")
        if len(self.problems) > before:
            return None
        if "min_iter" in numbers:
            return EarlyStop(numbers["min_iter"], numbers["eta"])
        rungs = 0
        while rungs < numbers["s"] and numbers["eta"] ** (rungs + 1) <= numbers["max_iter"]:
            rungs += 1
        if not rungs:
            self.wrong(
                f"early_terminate.max_iter={numbers['max_iter']}: leaves no epoch to compare after; raise it, or lower "
                f"eta={numbers['eta']}"
            )
            return None
        return EarlyStop(numbers["max_iter"] // numbers["eta"] ** rungs, numbers["eta"], rungs)


def _exponents(value: Any) -> Iterator[Exponent]:
    """Those in a value, at any depth."""
    if isinstance(value, Exponent):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _exponents(item)


def _finite(number: float) -> bool:
    """Also as a float, which 10**400 is not."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _distribution_of(body: Mapping[str, Any]) -> str | None:
    """W&B's rule where none is named."""
    if "value" in body:
        return "constant"
    if "values" in body:
        return "categorical"
    if "min" in body or "max" in body:
        bounds = [body.get("min", 0), body.get("max", 0)]
        return "int_uniform" if all(type(bound) is int for bound in bounds) else "uniform"
    return None
