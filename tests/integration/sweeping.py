"""What the tests of sweeps share: commands as a user starts them, short sweeps, and what these leave behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from mlops.checkpoint import read_metadata
from mlops.sweeps.reader import read
from mlops.sweeps.trials import Row, Trials, open_trials
from samples import ON_CPU

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


@contextlib.contextmanager
def starting(workplace: Path) -> Iterator[Callable[..., Started]]:
    """`start("sweep", "sweep.file=s.yaml", cwd=...)`. What is still there at the end is killed."""
    running: list[Started] = []

    def begin(name: str, *words: str, cwd: Path = workplace, **environment: str) -> Started:
        cwd.mkdir(exist_ok=True)
        running.append(Started(len(running), cwd, f"mlops.{name}", *words, **environment))
        return running[-1]

    try:
        yield begin
    finally:
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


def files_below(*folders: Path) -> Iterator[Path]:
    return (path for folder in folders for path in folder.rglob("*") if path.is_file())
