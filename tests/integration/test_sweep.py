"""`python -m mlops.sweep` as a user runs it: real processes that are killed, stopped, crash, and share a database."""

import contextlib
import gc
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from conftest import Command
from integration.postgres import PASSWORD, Server
from mlops import targets
from mlops.checkpoint import read_metadata
from mlops.config import config_folder
from mlops.sweeps import engine
from mlops.sweeps.pool import Worker
from mlops.sweeps.reader import read
from mlops.sweeps.trials import Row, Trials, open_trials
from mlops.trial import TrialTrainer
from samples import ON_CPU

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL"),
    # What SQLAlchemy keeps open for the next question; a process ends with it.
    pytest.mark.filterwarnings("ignore:<psycopg.Connection object:ResourceWarning"),
]

# Seconds. A sweep needs 10 for its imports, more where tests run side by side.
PATIENCE = 400

# A trial of a second: two batches an epoch of a small network on the embedded digits.
TINY = ("model.width=8", "training.limit_batches=2", "tracking=off", *ON_CPU)
# One thread: tests that run side by side share the cores.
ALL = (*TINY, "training.threads=1", "training.epochs=2")
SPACE: dict[str, Any] = {
    "program": "mlops.train",
    "method": "random",
    "metric": {"name": "val_Accuracy", "goal": "maximize"},
    "parameters": {
        "training.optimizer.lr": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.05},
        "training.batch_size": {"values": [16, 32]},
    },
}


def write_space(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(SPACE | changes, sort_keys=False), encoding="utf-8")
    return path


def grid(**parameters: Sequence[Any]) -> dict[str, Any]:
    """`grid(seed=[1, 2], training__epochs=[3])`."""
    named = {name.replace("__", "."): {"values": list(values)} for name, values in parameters.items()}
    return {"method": "grid", "parameters": named}


class Started:
    """A command in a session of its own, with what it prints in files beside its current folder."""

    def __init__(self, number: int, cwd: Path, module: str, *words: str, **environment: str) -> None:
        self._out, self._err = (cwd.parent / f"{cwd.name}-{number}.{name}" for name in ("out", "err"))
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *words],
                cwd=cwd,
                stdout=out,
                stderr=err,
                # As without uv, whose name the commands that are printed would begin with.
                env={name: value for name, value in os.environ.items() if name != "UV"} | environment,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    def wait_for(self, condition: Callable[[], Any]) -> None:
        """Until it holds, which has to be while the command runs."""
        give_up = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, self.out + self.err
            assert time.monotonic() < give_up, self.out + self.err
            time.sleep(0.002)

    def ends(self, patience: float = PATIENCE) -> int:
        """Until it has ended. Returns its exit code."""
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            pytest.fail(self.out + self.err)

    def ends_well(self) -> str:
        code = self.ends()
        assert code == 0, self.out + self.err
        return self.out

    def family(self) -> list[psutil.Process]:
        """It and all that it has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.process.pid)
            return [process, *process.children(recursive=True)]
        return []

    def kill_all(self) -> None:
        """As when the machine goes down."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture
def start(workplace: Path) -> Iterator[Callable[..., Started]]:
    """`start("sweep", "sweep.file=s.yaml", cwd=...)`. What is still there at the end of the test is killed."""
    running: list[Started] = []

    def begin(name: str, *words: str, cwd: Path = workplace, **environment: str) -> Started:
        cwd.mkdir(exist_ok=True)
        running.append(Started(len(running), cwd, f"mlops.{name}", *words, **environment))
        return running[-1]

    yield begin
    for one in running:
        one.kill_all()


def run_folders(cwd: Path, outputs: str = "outputs") -> list[Path]:
    """Of the trials, in the order of their numbers: two may have begun within one second."""
    return sorted(cwd.glob(f"{outputs}/????-*/*-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))


def epochs_of(cwd: Path, number: int) -> int:
    """How many epochs a trial has written down."""
    lines = [path.read_text() for path in cwd.glob(f"outputs/????-*/*-{number}/metrics.jsonl")]
    return lines[0].count("\n") if lines else 0


def rows_of(
    cwd: Path, space: Path, *, name: str = "s", shared: Sequence[str] = ALL, storage: str | None = None
) -> list[Row]:
    """The trials as the database has them."""
    return opened(cwd, space, name=name, shared=shared, storage=storage).rows()


def opened(
    cwd: Path, space: Path, *, name: str, shared: Sequence[str], storage: str | None, lost_after: float = 900
) -> Trials:
    return open_trials(
        read(space),
        name=name,
        folder=cwd / "outputs" / "sweeps" / name,
        storage=storage,
        shared=shared,
        each=(),
        seed=0,
        lost_after=lost_after,
        new_folder=lambda number: Path(f"outputs/2000-01-01/00-00-00-0000-{number}"),
    )


def digest(folder: Path) -> str:
    return str(read_metadata(folder / "best_model.pth")["weights_digest"])


def overrides_of(folder: Path) -> list[str]:
    return list(yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text()))


def trained_alone(start: Callable[..., Started], folder: Path, cwd: Path) -> Path:
    """The run folder of a run in a fresh process, with the overrides of a trial."""
    start("train", *overrides_of(folder), cwd=cwd).ends_well()
    (alone,) = (path.parent for path in cwd.glob("outputs/????-*/*/best_model.pth"))
    return alone


def assert_six_trials_none_twice(workplace: Path, space: Path, shared: Sequence[str]) -> list[Path]:
    rows = rows_of(workplace, space, shared=shared)
    assert [(row.number, row.state) for row in rows] == [(number, "complete") for number in range(6)]
    folders = run_folders(workplace)
    assert [workplace / row.folder for row in rows] == folders
    assert len(set(folders)) == 6
    epochs = [json.loads(line)["epoch"] for line in (folders[2] / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, len(epochs) + 1)), "none is trained twice, none left out"
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["the sweep with its workers", "the coordinator alone"])
def test_a_sweep_that_is_killed_in_the_middle_of_its_third_trial_goes_on_there(
    killed: str, start: Callable[..., Started], workplace: Path, tmp_path: Path
):
    space = write_space(workplace / "s.yaml")
    shared = (*TINY, "training.threads=1", "training.epochs=25", "training.save_every=1")
    command = ("sweep", "sweep.file=s.yaml", "sweep.trials=6", *shared)
    sweep = start(*command)
    sweep.wait_for(lambda: epochs_of(workplace, 2) >= 2)
    family = sweep.family()
    if killed == "the coordinator alone":
        sweep.process.kill()
    else:
        sweep.kill_all()
    assert sweep.ends() == -signal.SIGKILL
    _, alive = psutil.wait_procs(family, timeout=60)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    last = read_metadata(run_folders(workplace)[2] / "last.pth")
    assert not last["resume"]["finished"], "it was too quick for this test"
    assert len(run_folders(workplace)) == 3

    start(*command).ends_well()
    folders = assert_six_trials_none_twice(workplace, space, shared)
    logs = [(folder / "train.log").read_text() for folder in folders]
    assert ["going on in" in text for text in logs] == [False, False, True, False, False, False]
    # The third trial of one warm worker and the first of another, in two parts: as in a process of its own.
    alone = trained_alone(start, folders[2], tmp_path / "alone")
    assert digest(alone) == digest(folders[2])
    assert (alone / "metrics.jsonl").read_text() == (folders[2] / "metrics.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "whom"),
    [(signal.SIGTERM, 143, "sweep"), (signal.SIGINT, 130, "sweep"), (signal.SIGINT, 130, "terminal")],
)
def test_a_signal_ends_the_sweep_with_its_code_once_the_trial_is_saved_and_the_same_command_goes_on(
    number: signal.Signals, code: int, whom: str, start: Callable[..., Started], workplace: Path
):
    space = write_space(workplace / "s.yaml")
    shared = (*TINY, "training.threads=1", "training.epochs=50")
    command = ("sweep", "sweep.file=s.yaml", "sweep.trials=2", *shared)
    sweep = start(*command)
    sweep.wait_for(lambda: epochs_of(workplace, 1) >= 2)
    family = sweep.family()
    if whom == "terminal":  # Ctrl-C, which all processes in it hear
        os.killpg(sweep.process.pid, number)
    else:
        os.kill(sweep.process.pid, number)
    assert sweep.ends(45) == code, sweep.err
    assert "Traceback" not in sweep.err
    _, alive = psutil.wait_procs(family, timeout=30)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    stopped = run_folders(workplace)[1]
    assert not read_metadata(stopped / "last.pth")["resume"]["finished"], "it was too quick for this test"
    assert [row.state for row in rows_of(workplace, space, shared=shared)] == ["complete", "running"]

    start(*command).ends_well()
    assert [row.state for row in rows_of(workplace, space, shared=shared)] == ["complete", "complete"]
    assert "going on in" in (stopped / "train.log").read_text()
    assert epochs_of(workplace, 1) == 50
    assert len(run_folders(workplace)) == 2


@pytest.mark.slow
def test_the_best_trial_is_in_use_with_a_report_and_its_command_repeats_it_bit_for_bit(
    start: Callable[..., Started], workplace: Path, tmp_path: Path
):
    space = write_space(workplace / "s.yaml")
    command = ("sweep", "sweep.file=s.yaml", "sweep.trials=4", *ALL)
    out = start(*command).ends_well()
    rows, folders = rows_of(workplace, space), run_folders(workplace)
    kept = []
    for folder in folders:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        best = max(lines, key=lambda line: line["val_Accuracy"])
        kept.append((best["val_Accuracy"], -best["val_loss"]))
    assert [row.value for row in rows] == [accuracy for accuracy, _ in kept]
    best = max(range(4), key=kept.__getitem__)
    in_use = workplace / "models" / "latest" / "best_model.pth"
    assert in_use.read_bytes() == (folders[best] / "best_model.pth").read_bytes()
    assert (folders[best] / "report" / "index.html").is_file()
    assert [folder.name for folder in folders if (folder / "report").exists()] == [folders[best].name]
    results = workplace / "outputs" / "sweeps" / "s"
    assert (results / "trials.csv").read_text().count("\n") == 5
    assert f"trial {best}" in (results / "index.html").read_text()
    assert not (results / ".hydra").exists()

    # Wide enough that no line is broken.
    assert f"trial {best}, val_Accuracy" in out
    (printed,) = re.findall(r"repeat it\s+python -m mlops\.train (.*)$", out, re.MULTILINE)
    elsewhere = tmp_path / "again"
    start("train", *shlex.split(printed), cwd=elsewhere).ends_well()
    assert digest(elsewhere / "models" / "latest") == digest(folders[best])

    # Started once more there is nothing left to train, and nothing else comes of it.
    before = {path: path.stat().st_mtime_ns for path in workplace.glob("outputs/????-*/*/*.pth")}
    start(*command).ends_well()
    assert {path: path.stat().st_mtime_ns for path in workplace.glob("outputs/????-*/*/*.pth")} == before


@pytest.mark.slow
def test_a_refit_trains_the_best_trial_with_other_seeds_and_leaves_the_best_in_use(
    start: Callable[..., Started], workplace: Path
):
    write_space(workplace / "s.yaml")
    command = ("sweep", "sweep.file=s.yaml", "sweep.trials=2", *ALL)
    out = start(*command, "sweep.refit=2").ends_well()
    trials = sorted(workplace.glob("outputs/????-*/*"))
    assert len(trials) == 4
    stories = [read_metadata(folder / "best_model.pth") for folder in trials]
    seeds = sorted(story["config"]["seed"] for story in stories)
    assert seeds[:2] == [seeds[0]] * 2
    assert seeds[2:] == [seeds[0] + 1, seeds[0] + 2]
    refits = [story for story in stories if story["config"]["seed"] > seeds[0]]
    values = [story["metrics"]["val_Accuracy"] for story in refits]
    mean, spread = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
    assert f"val_Accuracy {mean:.4f} ± {spread:.4f} over 2 other seeds" in out
    assert "± " in (workplace / "outputs" / "sweeps" / "s" / "index.html").read_text()
    in_use = read_metadata(workplace / "models" / "latest" / "best_model.pth")
    assert in_use["config"]["seed"] == seeds[0]
    best = max(
        (s for s in stories if s not in refits), key=lambda s: (s["metrics"]["val_Accuracy"], -s["metrics"]["val_loss"])
    )
    assert in_use["weights_digest"] == best["weights_digest"]

    # One more seed: those that were trained are kept.
    out = start(*command, "sweep.refit=3").ends_well()
    assert "over 3 other seeds" in out
    assert len(sorted(workplace.glob("outputs/????-*/*"))) == 5


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


@pytest.mark.slow
def test_two_jobs_run_at_once_with_half_the_threads_each(start: Callable[..., Started], workplace: Path):
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(allowed, psutil.cpu_count(logical=False) or allowed)
    write_space(workplace / "s.yaml")
    sweep = start("sweep", "sweep.file=s.yaml", "sweep.trials=4", "sweep.jobs=2", *TINY, "training.epochs=20")
    sweep.wait_for(lambda: epochs_of(workplace, 0) and epochs_of(workplace, 1))
    sweep.ends_well()
    stories = [read_metadata(folder / "best_model.pth") for folder in run_folders(workplace)]
    assert len(stories) == 4
    assert [story["environment"]["threads"] for story in stories] == [cores // 2 or 1] * 4
    assert [story["config"]["training"]["threads"] for story in stories] == [cores // 2 or 1] * 4


@pytest.mark.slow
def test_hydras_own_multirun_leaves_the_same_kind_of_folders_and_one_of_them_can_go_on(
    start: Callable[..., Started], workplace: Path
):
    write_space(workplace / "s.yaml", **grid(seed=[1, 2]))
    start("sweep", "sweep.file=s.yaml", *ALL).ends_well()
    start("train", "--multirun", "paths.outputs=multi", "seed=1,2", *ALL).ends_well()
    ours, hydras = run_folders(workplace), run_folders(workplace, "multi")
    assert len(ours) == len(hydras) == 2
    kept = (
        "best_model.pth",
        "last.pth",
        "metrics.jsonl",
        "train.log",
        *(f".hydra/{n}.yaml" for n in ("overrides", "config")),
    )
    for folder in (*ours, *hydras):
        assert re.fullmatch(r"\d\d-\d\d-\d\d-[0-9a-f]{4}-\d", folder.name)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", folder.parent.name)
        assert [name for name in kept if not (folder / name).is_file()] == []
    for one, other in zip(ours, hydras, strict=True):
        assert digest(one) == digest(other)
        config, theirs = (yaml.safe_load((folder / ".hydra" / "config.yaml").read_text()) for folder in (one, other))
        assert config["training"] == theirs["training"]
        assert config["seed"] == theirs["seed"]


@pytest.mark.slow
def test_a_stopped_trial_goes_on_alone_with_resume_and_the_sweep_then_takes_its_result(
    start: Callable[..., Started], workplace: Path
):
    space = write_space(workplace / "s.yaml")
    shared = (*TINY, "training.threads=1", "training.epochs=40")
    command = ("sweep", "sweep.file=s.yaml", "sweep.trials=1", *shared)
    sweep = start(*command)
    sweep.wait_for(lambda: epochs_of(workplace, 0) >= 2)
    os.kill(sweep.process.pid, signal.SIGTERM)
    assert sweep.ends(45) == 143
    (folder,) = run_folders(workplace)
    start("train", f"resume={folder.relative_to(workplace)}").ends_well()
    assert read_metadata(folder / "last.pth")["resume"]["finished"]
    assert not (workplace / "models").exists(), "one of many is not put into use by itself"
    start(*command).ends_well()
    (row,) = rows_of(workplace, space, shared=shared)
    assert (row.state, row.value) == ("complete", read_metadata(folder / "best_model.pth")["metrics"]["val_Accuracy"])
    assert epochs_of(workplace, 0) == 40


@pytest.mark.slow
def test_a_dry_run_prints_commands_that_run_and_trains_nothing(start: Callable[..., Started], workplace: Path):
    parameters = {"augment": {"values": ["none", "photos"]}, "training.optimizer.betas": {"value": [0.9, 0.95]}}
    write_space(workplace / "s.yaml", method="grid", parameters=parameters)
    sweep = start("sweep", "sweep.file=s.yaml", "sweep.dry_run=true", *ALL)
    lines = sweep.ends_well().splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("python -m mlops.train ")]
    assert len(commands) == 2
    assert list(workplace.glob("outputs/????-*")) == []
    assert not (workplace / "outputs" / "sweeps" / "s" / "study.db").exists()
    start("train", *commands[1][3:]).ends_well()
    (folder,) = run_folders_of_train(workplace)
    config = read_metadata(folder / "best_model.pth")["config"]
    assert config["training"]["optimizer"]["betas"] == [0.9, 0.95]


def run_folders_of_train(cwd: Path) -> list[Path]:
    return sorted(path.parent for path in cwd.glob("outputs/????-*/*/best_model.pth"))


@pytest.mark.slow
def test_a_sweep_of_two_trials_trains_them_and_puts_the_better_one_into_use(
    start: Callable[..., Started], workplace: Path
):
    space = write_space(workplace / "s.yaml", **grid(seed=[1, 2]))
    start("sweep", "sweep.file=s.yaml", *ALL).ends_well()
    rows = rows_of(workplace, space)
    assert [(row.number, row.state, row.values) for row in rows] == [
        (0, "complete", {"seed": 1}),
        (1, "complete", {"seed": 2}),
    ]
    best = max(rows, key=lambda row: (row.value, -row.metrics["val_loss"]))
    assert digest(workplace / "models" / "latest") == digest(workplace / best.folder)
    assert (workplace / "outputs" / "sweeps" / "s" / "index.html").is_file()


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


def files_below(*folders: Path) -> Iterator[Path]:
    return (path for folder in folders for path in folder.rglob("*") if path.is_file())


STORAGES = {
    "a closed port": "postgresql://me:s3cr3t@127.0.0.1:9/none",
    "a password in the query": "postgresql://127.0.0.1:9/none?user=me&password=s3cr3t",
    "an address that is none": "postgresql//me:s3cr3t@nowhere",
    "a port that is none": "postgresql://me:s3cr3t@nowhere:port/none",
    "a comma": "postgresql://me:s3cr3t,too@127.0.0.1:9/none",
    "a quote": "postgresql://me:s3cr3t'too@127.0.0.1:9/none",
    "brackets": "[s3cr3t]",
    "a map": "{me:s3cr3t}",
    "no driver": "oracle://me:s3cr3t@127.0.0.1/none",
}


SLOW_STORAGES = ("a password in the query", "an address that is none", "a port that is none", "a quote")


@pytest.mark.parametrize(
    "storage", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_STORAGES)) for name in STORAGES]
)
def test_a_database_that_cannot_be_used_ends_the_sweep_and_its_password_stands_nowhere(
    storage: str, hydra_command: Command, workplace: Path
):
    pytest.importorskip("psycopg")
    write_space(workplace / "s.yaml")
    outcome = hydra_command("sweep", "sweep.file=s.yaml", f"sweep.storage={STORAGES[storage]}", "sweep.trials=6", *ALL)
    assert outcome.code == 2, outcome.err
    assert "s3cr3t" not in outcome.out + outcome.err
    assert [path for path in files_below(workplace) if b"s3cr3t" in path.read_bytes()] == []
    assert len(outcome.err.splitlines()) <= 2


def test_a_fault_of_ours_does_not_show_the_password(
    hydra_command: Command, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from mlops.sweeps import trials

    def fails(*_: Any, **__: Any) -> Trials:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(trials, "open_trials", fails)
    write_space(workplace / "s.yaml")
    url = "postgresql://me:s3cr3t@127.0.0.1:9/none"
    said = ""
    with contextlib.suppress(RuntimeError):
        outcome = hydra_command("sweep", "sweep.file=s.yaml", f"sweep.storage={url}", "sweep.trials=6", *ALL)
        assert outcome.code == 1
        said = outcome.out + outcome.err
    left = capsys.readouterr()
    assert "a fault of ours" in said + left.err
    assert "s3cr3t" not in said + left.out + left.err
    assert [path for path in files_below(workplace) if b"s3cr3t" in path.read_bytes()] == []


@pytest.mark.slow
def test_a_misspelt_key_or_a_second_fault_does_not_show_the_password_either(hydra_command: Command, workplace: Path):
    write_space(workplace / "s.yaml")
    url = "postgresql://me:s3cr3t@127.0.0.1:9/none"
    for words in ([f"sweep.storage={url}", "training.epochs=-1"], [f"++sweep.storage={url}", "a=b=c"]):
        outcome = hydra_command("sweep", "sweep.file=s.yaml", "sweep.trials=6", *words)
        assert outcome.code == 2
        assert "s3cr3t" not in outcome.out + outcome.err
        assert [path for path in files_below(workplace) if b"s3cr3t" in path.read_bytes()] == []


@pytest.mark.slow
@pytest.mark.parametrize("database", ["locked", "corrupt"])
def test_a_database_that_is_locked_or_corrupt_ends_the_sweep_soon_with_one_line(
    database: str, start: Callable[..., Started], workplace: Path
):
    space = write_space(workplace / "s.yaml")
    path = workplace / "outputs" / "sweeps" / "s" / "study.db"
    path.parent.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        if database == "locked":
            rows_of(workplace, space)
            holder = stack.enter_context(contextlib.closing(sqlite3.connect(path, isolation_level=None)))
            holder.execute("BEGIN EXCLUSIVE")
        else:
            path.write_bytes(b"this was a database once" * 50)
        sweep = start("sweep", "sweep.file=s.yaml", "sweep.trials=6", *ALL)
        assert sweep.ends(120) == 2
    said = {"locked": "study.db: is locked by another program", "corrupt": "study.db: is damaged, or of other software"}
    assert len([line for line in sweep.err.splitlines() if said[database] in line]) == 1, sweep.err
    assert "Traceback" not in sweep.err


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


@pytest.fixture
def postgres() -> Iterator[Server]:
    pytest.importorskip("psycopg")
    with Server() as running:
        yield running
        gc.collect()


@pytest.mark.slow
def test_two_machines_work_on_one_sweep_in_a_postgresql_and_no_trial_runs_twice(
    postgres: Server, start: Callable[..., Started], workplace: Path, tmp_path: Path
):
    url, one, other = postgres.database(), tmp_path / "one", tmp_path / "other"
    space = write_space(workplace / "s.yaml")
    command = ("sweep", f"sweep.file={space}", "sweep.trials=6", f"sweep.storage={url}", *ALL)
    first = start(*command, cwd=one)
    first.wait_for(lambda: epochs_of(one, 0) >= 1)
    # It stands still until the other is there as well, so that both have trials.
    os.killpg(first.process.pid, signal.SIGSTOP)
    second = start(*command, cwd=other)
    second.wait_for(lambda: epochs_of(other, 1) >= 1)
    os.killpg(first.process.pid, signal.SIGCONT)
    printed = first.ends_well() + second.ends_well() + first.err + second.err
    rows = rows_of(one, space, storage=url)
    assert [(row.number, row.state) for row in rows] == [(number, "complete") for number in range(6)]
    folders = [*run_folders(one), *run_folders(other)]
    assert sorted(int(folder.name.rpartition("-")[2]) for folder in folders) == list(range(6)), "none twice"
    assert run_folders(one)
    assert run_folders(other)
    assert sorted(row.number for row in rows if row.ours) == [
        int(folder.name.rpartition("-")[2]) for folder in run_folders(one)
    ]
    assert PASSWORD not in printed
    files = files_below(one, other)
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_machines_that_start_at_the_same_moment_on_an_empty_postgresql_share_it(
    postgres: Server, workplace: Path, tmp_path: Path
):
    url, space = postgres.database(), write_space(workplace / "s.yaml")
    together, numbers, failed = threading.Barrier(4), [], []

    def begin(cwd: Path) -> None:
        (cwd / "outputs" / "sweeps" / "s").mkdir(parents=True)
        together.wait(30)
        try:
            trials = opened(cwd, space, name="s", shared=ALL, storage=url)
            while (held := trials.ask(6)) is not None:
                numbers.append(held.number)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=begin, args=(tmp_path / f"machine-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert sorted(numbers) == list(range(6))


@pytest.mark.slow
def test_the_trial_of_a_machine_that_died_is_taken_over_by_another(
    postgres: Server, start: Callable[..., Started], workplace: Path, tmp_path: Path
):
    url, dead = postgres.database(), tmp_path / "dead"
    space = write_space(workplace / "s.yaml")
    shared = (*TINY, "training.threads=1", "training.epochs=30")
    sweep = start("sweep", f"sweep.file={space}", "sweep.trials=2", f"sweep.storage={url}", *shared, cwd=dead)
    sweep.wait_for(lambda: epochs_of(dead, 1) >= 2)
    (workplace / "outputs" / "sweeps" / "s").mkdir(parents=True)
    patient = opened(workplace, space, name="s", shared=shared, storage=url)
    assert patient.unfinished([]) is None
    sweep.kill_all()
    assert patient.unfinished([]) is None
    assert [row.state for row in patient.rows()] == ["complete", "running"]

    trials = opened(workplace, space, name="s", shared=shared, storage=url, lost_after=0.5)
    time.sleep(0.6)
    trainer = TrialTrainer(
        (config_folder(),), (), targets.read_allowed(config_folder()), "val_Accuracy", "s", tracked=False
    )

    class Silent:
        def show(self, slots: object) -> None:
            pass

        def ended(self, row: Row) -> None:
            pass

    with workplace_of(trainer, tmp_path) as place:
        engine.Engine(trials, place, most=2, view=Silent()).run()
    rows = trials.rows()
    assert [(row.number, row.state, row.ours) for row in rows] == [(0, "complete", False), (1, "complete", True)]
    # From its beginning, for what the dead machine had of it is gone; and to the same end.
    (folder,) = run_folders(workplace)
    assert epochs_of(workplace, 1) == 30
    alone = trained_alone(start, folder, tmp_path / "alone")
    assert digest(alone) == digest(folder)

    # The machine comes back, finds nothing to do, and shows the same trials.
    out = start("sweep", f"sweep.file={space}", "sweep.trials=2", f"sweep.storage={url}", *shared, cwd=dead).ends_well()
    assert "2 complete" in out
    assert epochs_of(dead, 1) < 30


def workplace_of(trainer: TrialTrainer, folder: Path) -> Any:
    return engine.workplace(1, lambda slot: Worker(slot, trainer, folder / f"worker-{slot}.log"))


@pytest.mark.slow
def test_a_wrong_password_is_said_at_once(postgres: Server, hydra_command: Command, workplace: Path):
    url = postgres.database().replace(PASSWORD, "s3cr3t-but-wrong")
    write_space(workplace / "s.yaml")
    outcome = hydra_command("sweep", "sweep.file=s.yaml", f"sweep.storage={url}", "sweep.trials=6", *ALL)
    assert outcome.code == 2
    assert "password authentication failed" in outcome.err
    assert "s3cr3t" not in outcome.out + outcome.err
