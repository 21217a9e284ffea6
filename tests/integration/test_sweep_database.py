"""The database of a sweep, as a user meets it: away, locked, damaged, its password, and shared by several machines."""

import contextlib
import gc
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Command
from integration.postgres import PASSWORD, Server
from integration.sweeping import (
    ALL,
    TINY,
    Started,
    digest,
    epochs_of,
    files_below,
    opened,
    rows_of,
    run_folders,
    trained_alone,
    write_space,
)
from mlops import targets
from mlops.config import config_folder
from mlops.sweeps import engine
from mlops.sweeps.pool import Worker
from mlops.sweeps.trials import Row, Trials
from mlops.trial import TrialTrainer

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL"),
    # What SQLAlchemy keeps open for the next question; a process ends with it.
    pytest.mark.filterwarnings("ignore:<psycopg.Connection object:ResourceWarning"),
]


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
    second.wait_for(lambda: any(epochs_of(other, number) for number in range(6)))
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
