"""`python -m mlops.sweep` as a user runs it: real processes that are killed, stopped, and go on."""

import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest
import yaml

from integration.sweeping import (
    ALL,
    TINY,
    Started,
    digest,
    epochs_of,
    grid,
    rows_of,
    run_folders,
    trained_alone,
    write_space,
)
from mlops.checkpoint import read_metadata

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")


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
