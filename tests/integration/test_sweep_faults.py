"""What goes wrong in a sweep: trials that crash or diverge, and settings that are refused before the first trial."""

import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Command
from integration.sweeping import (
    ALL,
    TINY,
    Started,
    digest,
    epochs_of,
    grid,
    rows_of,
    run_folders,
    write_space,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")


NETWORKS = """
import os

from torch import nn


class Good(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))

    def forward(self, images):
        if self.training and not images.is_meta:
            self.fail()
        return self.layers(images)

    def fail(self):
        pass


class Raises(Good):
    def fail(self):
        raise RuntimeError("no such luck")


class Exits(Good):
    def fail(self):
        os._exit(7)


class Killed(Good):
    def fail(self):
        os.kill(os.getpid(), 9)
"""


@pytest.fixture
def own_networks(workplace: Path) -> dict[str, str]:
    """Networks of a user's, which fail in training, with a model group `own`. Returns the environment that finds them."""
    (workplace / "mine" / "model").mkdir(parents=True)
    (workplace / "usernets.py").write_text(NETWORKS)
    (workplace / "mine" / "model" / "own.yaml").write_text("_target_: usernets.Good\n")
    allowed = "".join(f"- usernets.{name}\n" for name in ("Good", "Raises", "Exits", "Killed"))
    (workplace / "mine" / "allowed_targets.yaml").write_text(allowed)
    return {"PYTHONPATH": os.pathsep.join([str(workplace), *filter(None, [os.environ.get("PYTHONPATH")])])}


OWN = ("model=own", *ALL[1:])


@pytest.mark.slow
def test_a_trial_that_crashes_costs_itself_and_the_sweep_goes_on(
    start: Callable[..., Started], workplace: Path, own_networks: dict[str, str], tmp_path: Path
):
    names = [f"usernets.{name}" for name in ("Raises", "Exits", "Killed", "Good")]
    space = write_space(workplace / "s.yaml", **grid(model___target_=names))
    sweep = start("sweep", "--config-dir", "mine", "sweep.file=s.yaml", *OWN, **own_networks)
    out = sweep.ends_well()
    raised, ended, killed, good = rows_of(workplace, space, shared=OWN)
    assert [row.state for row in (raised, ended, killed, good)] == ["failed"] * 3 + ["complete"]
    assert "RuntimeError: no such luck" in raised.failure
    assert ended.failure.splitlines()[0] == "the worker ended with exit code 7"
    assert killed.failure.splitlines()[0] == "the worker was killed by SIGKILL: out of memory?"
    assert "RuntimeError: no such luck" in (workplace / raised.folder / "train.log").read_text()
    page = (workplace / "outputs" / "sweeps" / "s" / "index.html").read_text()
    assert "no such luck" in page
    # The command names the folder that it needs.
    (printed,) = re.findall(r"repeat it\s+python -m mlops\.train (.*)$", out, re.MULTILINE)
    assert shlex.split(printed)[:2] == ["--config-dir", "mine"]
    start("train", *shlex.split(printed), "paths.outputs=again", "promote=false", **own_networks).ends_well()
    (again,) = workplace.glob("again/*/*")
    assert digest(again) == digest(workplace / good.folder)


@pytest.mark.slow
def test_five_failures_in_a_row_end_the_sweep_with_one_line(
    start: Callable[..., Started], workplace: Path, own_networks: dict[str, str]
):
    parameters = {"model._target_": {"value": "usernets.Raises"}, "seed": {"values": list(range(1, 9))}}
    space = write_space(workplace / "s.yaml", method="grid", parameters=parameters)
    sweep = start("sweep", "--config-dir", "mine", "sweep.file=s.yaml", *OWN, **own_networks)
    assert sweep.ends() == 2, sweep.err
    assert [row.state for row in rows_of(workplace, space, shared=OWN)] == ["failed"] * 5
    said = [line for line in sweep.err.splitlines() if "the last 5 trials failed" in line]
    assert len(said) == 1
    assert "no such luck" in said[0]
    assert "Traceback" not in sweep.err
    assert not (workplace / "models").exists()


@pytest.mark.slow
def test_a_trial_whose_loss_is_no_number_has_diverged_and_its_worker_goes_on(
    start: Callable[..., Started], workplace: Path
):
    space = write_space(workplace / "s.yaml", **grid(training__optimizer__lr=[1e30, 0.01]))
    shared = (*ALL, "training.optimizer._target_=torch.optim.SGD")
    sweep = start("sweep", "sweep.file=s.yaml", *shared)
    sweep.ends_well()
    rows = rows_of(workplace, space, shared=shared)
    assert [row.state for row in rows] == ["diverged", "complete"]
    assert "the loss is" in rows[0].failure or "is nan" in rows[0].failure
    logs = [(folder / "train.log").read_text() for folder in run_folders(workplace)]
    assert "training mlops.models.SignNet" in logs[1]
    assert sweep.err.count("diverged") == 1


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...], list[str]]] = {
    "a parameter that is no key": (
        grid(training__optimizer__lr=[0.1], training__batchsize=[1], tranining__epochs=[2]),
        (),
        ["training.batchsize", "tranining"],
    ),
    "values out of range": (
        grid(training__batch_size=[0, -4]),
        (),
        ["training.batch_size=0: must be at least 1", "training.batch_size=-4: must be at least 1"],
    ),
    "a metric that does not pick the epoch": (
        {"metric": {"name": "val_loss", "goal": "minimize"}},
        (),
        ["training.monitor=val_Accuracy: picks the epoch"],
    ),
    "an override of what is searched": ({}, ("training.batch_size=8",), ["searches training.batch_size; leave it out"]),
    "resume": ({}, ("resume=latest",), ["resume=latest: a sweep goes on by itself"]),
    "no such group": ({}, ("model=nosuchmodel",), ["model=nosuchmodel: no such choice"]),
    "a name that is a path": ({}, ("sweep.name=../up",), ["sweep.name=../up: must be letters"]),
    "no trials": ({}, ("sweep.trials=0",), ["sweep.trials=0: must be at least 1"]),
    "no end": ({}, ("sweep.trials=null",), ["run_cap is missing, and method=random has no end"]),
    "no such file": ({}, ("sweep.file=nosuch",), ["sweep.file=nosuch: no such sweep file"]),
    "a file that is not there": ({}, ("sweep.file=no/such.yaml",), ["no/such.yaml: cannot be read"]),
    "multirun": ({}, ("--multirun",), ["--multirun: mlops.sweep runs many trials as it is"]),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_before_the_first_trial_with_all_problems_at_once(
    case: str, hydra_command: Command, workplace: Path
):
    changes, words, problems = BAD[case]
    write_space(workplace / "s.yaml", **changes)
    outcome = hydra_command("sweep", "sweep.file=s.yaml", "sweep.trials=6", *words, *ALL)
    assert outcome.code == 2, outcome.err
    for problem in problems:
        assert problem in outcome.err
    assert "Traceback" not in outcome.err
    assert list(workplace.glob("outputs/????-*")) == []
    assert list(workplace.glob("outputs/sweeps/*/study.db")) == []


def test_a_dry_run_names_all_that_is_wrong_with_the_trials(hydra_command: Command, workplace: Path):
    write_space(
        workplace / "s.yaml", **grid(training__epochs=[0, 1], model___target_=["os.system", "mlops.models.SignNet"])
    )
    outcome = hydra_command("sweep", "sweep.file=s.yaml", "sweep.dry_run=true", *TINY)
    assert outcome.code == 2
    assert "training.epochs=0: must be at least 1" in outcome.err
    assert "os.system" in outcome.err


@pytest.mark.slow
def test_a_second_sweep_in_the_folder_is_refused_and_another_one_of_its_name_too(
    start: Callable[..., Started], workplace: Path
):
    write_space(workplace / "s.yaml")
    long = (*TINY, "training.threads=1", "training.epochs=1000")
    sweep = start("sweep", "sweep.file=s.yaml", "sweep.trials=2", *long)
    sweep.wait_for(lambda: epochs_of(workplace, 0) >= 1)
    second = start("sweep", "sweep.file=s.yaml", "sweep.trials=2", *long)
    assert second.ends() == 2
    assert "outputs/sweeps/s: another process is at work in it; stop that one first" in second.err
    assert sweep.process.poll() is None
    os.kill(sweep.process.pid, signal.SIGTERM)
    assert sweep.ends(45) == 143
    other = start("sweep", "sweep.file=s.yaml", "sweep.trials=2", *ALL)
    assert other.ends() == 2
    assert "study.db: the sweep s there was started with other overrides (-o)" in other.err
    write_space(workplace / "other.yaml", method="bayes")
    other = start("sweep", "sweep.file=other.yaml", "sweep.name=s", "sweep.trials=2", *long)
    assert other.ends() == 2
    assert "was started with other method, and its trials do not compare" in other.err
