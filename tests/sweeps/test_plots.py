import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot

from mlops.sweeps.parameters import Choice, Fixed, Integers, Parameter, Range, Steps
from mlops.sweeps.plan import plan
from mlops.sweeps.plots import figures, shown_study
from mlops.sweeps.space import Space
from mlops.sweeps.trials import Row
from samples import attributes

LR = Range(0.001, 0.1, log=True)
HISTORY, IMPORTANCE, EPOCHS = (
    "Complete trials, and the best so far",
    "How much each",
    "val_Accuracy, the best so far of",
)
LINES, SLICES = "Each line is a complete trial", "One parameter at a time"
ALL = [HISTORY, IMPORTANCE, EPOCHS, LINES, SLICES]


def space(parameters: dict[str, Parameter]) -> Space:
    return Space(Path("sweep.yaml"), "random", "val_Accuracy", True, None, parameters, None, None, agents=False)


def tried(what: Space, states: Sequence[str]) -> list[Row]:
    """Trials at random that ended so; the later, the better."""
    rows = []
    for number, (state, values) in enumerate(zip(states, plan(what, 0, len(states)), strict=True)):
        steps = {} if state == "failed" else {1: 0.3 + 0.01 * number, 2: 0.4 + 0.03 * number}
        value, failure = max(steps.values(), default=None), "loss is nan" if state in ("diverged", "failed") else ""
        rows.append(
            Row(number, values, (), state, value, {}, failure, Path("run"), "host", True, 1.0, len(steps), steps)
        )
    return rows


def captions(html: str) -> list[str]:
    found = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    return [next(start for start in ALL if caption.startswith(start)) for caption in found]


def texts(html: str) -> set[str]:
    return set(re.findall(r"<text[^>]*>([^<]*)</text>", html))


def test_five_plots_show_trials_of_every_kind_of_end():
    what = space({"training.optimizer.lr": LR, "training.batch_size": Integers(1, 64)})
    rows = tried(what, ["complete", "stopped", "complete", "diverged", "complete", "failed", "complete", "running"])
    html = figures(what, rows)
    assert captions(html) == ALL
    assert texts(html) >= {"lr", "batch_size", "val_Accuracy"}
    assert pyplot.get_fignums() == []
    assert figures(what, rows) == html


def test_the_plots_are_given_each_trial_with_its_end_its_values_and_its_epochs():
    what = space({"a.lr": LR, "b.lr": Choice(("x", "y"), (0.5, 0.5)), "size": Steps(16, 64, 16), "fixed": Fixed(1)})
    rows = tried(what, ["complete", "stopped", "diverged", "failed", "running"])
    study = shown_study(what, rows)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "PRUNED", "FAIL"]
    assert [trial.value for trial in study.trials] == [0.4, None, None, None]
    assert [trial.intermediate_values for trial in study.trials] == [row.steps for row in rows[:4]]
    # The last part of a name, where that is one of a kind.
    assert [trial.params for trial in study.trials] == [
        {name: row.values[name] for name in ("a.lr", "b.lr", "size")} for row in rows[:4]
    ]
    assert study.direction.name == "MAXIMIZE"


@pytest.mark.parametrize(
    "kind",
    [
        Choice(("sgd", "a b", "", "\u00e9\u4e2d")),
        Choice((True, False)),
        Choice((1, True, "1", 1.0, None, "null")),
        Choice((32, 64, 128)),
        Choice(([1, 2], [3], {"a": None})),
        Choice(("x" * 100, "x" * 100 + "y")),
        Choice(("$x^{", "$\\frac$", "a$b$c")),
        Choice(("line\nbreak", "\x1b[2J")),
        Choice((0.1, 0.2, 0.3), (0.2, 0.3, 0.5)),
        Choice((7,)),
        Steps(0.0, 1.0, 0.25),
        Steps(0.0, 1.0, 4.0),
    ],
    ids=repr,
)
@pytest.mark.slow
def test_choices_of_every_kind_have_all_five_plots(kind: Parameter):
    what = space({"lr": LR, "kind": kind})
    html = figures(what, tried(what, ["complete", "stopped"] * 5))
    assert captions(html) == ALL
    assert not set(html) & {"\x1b", "\0"}


def test_one_parameter_has_all_five_plots():
    what = space({"training.optimizer.lr": LR})
    assert captions(figures(what, tried(what, ["complete"] * 5))) == ALL


@pytest.mark.parametrize(
    ("states", "shown"),
    [
        ([], []),
        (["failed"], []),
        (["running"] * 2, []),
        (["stopped", "diverged", "failed"], [EPOCHS]),
    ],
)
def test_what_too_few_trials_do_not_give_is_left_out(states: list[str], shown: list[str]):
    what = space({"lr": LR, "size": Steps(16, 64, 16)})
    assert captions(figures(what, tried(what, states))) == shown


@pytest.mark.parametrize("states", [["complete"], ["complete", "failed"], ["complete"] * 2])
def test_the_first_complete_trials_have_their_history_epochs_lines_and_slices(states: list[str]):
    what = space({"lr": LR, "size": Steps(16, 64, 16)})
    assert set(captions(figures(what, tried(what, states)))) >= {HISTORY, EPOCHS, LINES, SLICES}


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_trial_without_a_finite_value_is_not_plotted(value: Any):
    what = space({"lr": LR})
    rows = tried(what, ["complete"] * 4)
    first = Row(**(vars(rows[0]) | {"value": value}))
    assert len(shown_study(what, [first, *rows[1:]]).trials) == 3
    assert captions(figures(what, [first, *rows[1:]])) == ALL


def test_trials_that_are_all_worth_the_same_can_be_shown():
    what = space({"lr": LR, "kind": Choice(("a", "b"))})
    rows = [Row(**(vars(row) | {"value": 0.5, "steps": {1: 0.5}})) for row in tried(what, ["complete"] * 6)]
    assert set(captions(figures(what, rows))) >= {HISTORY, EPOCHS, LINES, SLICES}


def test_names_and_choices_are_text_and_never_markup():
    evil = "<img src=x onerror=alert(1)>"
    what = space({evil: LR, "a&b": Choice(("<b>bold</b>", "</text><script>alert(2)</script>", "]]>"))})
    html = figures(what, tried(what, ["complete"] * 8))
    assert captions(html) == ALL
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "&lt;script&gt;alert(2)" in html
    found = attributes(html)
    assert not found & {"img", "script", "b"}
    assert not {name for name in found if name.endswith(".onerror")}
