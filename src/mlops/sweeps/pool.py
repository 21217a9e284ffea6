"""Warm workers: processes that have imported everything and hold the data, and train one trial after the other.

Two processes that talk over a pipe. A worker that crashes costs its trial; one whose sweep is killed saves its trial's
`last.pth` and ends.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from mlops import stopping
from mlops.errors import MlopsError

# Seconds in which a worker that was told to stop saves its trial.
STOP_SECONDS = 60.0
LAST_LINES = 8
# The exit code of a worker whose sweep has ended, which is no error of the trial.
NOBODY_THERE = 130


@dataclass(frozen=True)
class Job:
    """A trial to run: its overrides, and its run folder, which may hold its beginning."""

    number: int
    overrides: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class Began:
    """A trial's training is about to begin, `done` of its epochs before: it goes on."""

    epochs: int
    done: int


@dataclass(frozen=True)
class Epoch:
    """A trial has ended an epoch; the worker waits for the word whether it stops there.

    Args:
        steps: the best value so far, by epoch, of all epochs until this one.
    """

    steps: Mapping[int, float]
    last: bool


@dataclass(frozen=True)
class Ended:
    """A trial is over.

    Args:
        stopped: at our word.
        failure: its last lines.
        diverged: its loss was not a number.
        crashed: by something that nobody foresaw; its worker ends with it.
    """

    seconds: float
    metrics: Mapping[str, float]
    epochs: int
    stopped: bool = False
    failure: str = ""
    diverged: bool = False
    crashed: bool = False


@dataclass(frozen=True)
class Checked:
    """What is wrong with the overrides that were to be checked."""

    problems: list[str]


@dataclass(frozen=True)
class Reported:
    """A report was written, or why not."""

    failure: str


Message = Began | Epoch | Ended | Checked | Reported


class Trainer(Protocol):
    """What a worker does. It travels to the worker's process once, and keeps there what it wants to keep."""

    def warm_up(self) -> None:
        """Import what a trial needs, before there is one."""

    def check(self, variants: Sequence[Sequence[str]]) -> list[str]:
        """All that is wrong with these lists of overrides."""

    def train(self, job: Job, say: Callable[[Began], None], ask: Callable[[Epoch], bool]) -> Ended:
        """Run a trial. `ask` answers whether it stops there."""

    def report(self, checkpoint: Path) -> None:
        """Write the report of a trial."""


class Worker:
    """A process that trains."""

    def __init__(self, slot: int, trainer: Trainer, log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.log, self._log_start = log, log.stat().st_size if log.exists() else 0
        self._process = context.Process(target=serve, args=(theirs, trainer, log, slot), name=f"trials-{slot}")
        self._process.start()
        theirs.close()

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process.is_alive()

    def send(self, *message: Any) -> None:
        """Hand it something to do, or the answer it waits for; one that has just ended hears nothing of it."""
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def receive(self) -> Message | None:
        """What it has said; None where it has ended without a word."""
        try:
            said: Message = self.connection.recv()
            return said
        except (EOFError, OSError):
            return None

    def obituary(self) -> str:
        """Why the process has ended, and what it said last on its way."""
        self._process.join(5)
        code = self._process.exitcode or 0
        if code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
            how = f"the worker was killed by {name}"
            if -code == getattr(signal, "SIGKILL", None):
                how += ": out of memory?"
        else:
            how = f"the worker ended with exit code {code}"
        return "\n".join([how, *tail(self.log, self._log_start)])

    def terminate(self) -> None:
        """Let it save its trial and end."""
        self._process.terminate()

    def close(self, seconds: float) -> None:
        """Wait for its end, then end it."""
        self._process.join(seconds)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.connection.close()


def tail(path: Path, start: int = 0, lines: int = LAST_LINES) -> list[str]:
    """The last lines of a log that are not empty, of what stands after `start`."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - 8192))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line[:500] for line in text.splitlines() if line.strip()][-lines:]


def serve(connection: Connection, trainer: Trainer, log: Path, slot: int) -> None:
    """The worker's process: do what is asked until nobody asks any more."""
    _redirect(log)
    stopping.listen()
    threading.Thread(target=_follow_parent, daemon=True).start()
    _one_gpu(slot)
    trainer.warm_up()
    while True:
        try:
            kind, *arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = _answer(trainer, connection, kind, arguments)
        except KeyboardInterrupt:
            # Ctrl-C, which the sweep has heard as well.
            raise SystemExit(130) from None
        except Exception:
            # Who knows what is left of CUDA, or of the memory: the next trial gets a new process.
            failure = traceback.format_exc()
            print(failure, file=sys.stderr, flush=True)  # noqa: T201 - this is its log
            lines = failure.strip().splitlines()[-LAST_LINES:]
            _say(connection, Ended(0, {}, 0, failure="\n".join(lines), crashed=True))
            raise SystemExit(1) from None
        _say(connection, answer)


def _answer(trainer: Trainer, connection: Connection, kind: str, arguments: Sequence[Any]) -> Message:
    if kind == "check":
        return Checked(trainer.check(*arguments))
    if kind == "report":
        try:
            trainer.report(*arguments)
            return Reported("")
        except MlopsError as error:
            return Reported(str(error))

    def ask(message: Epoch) -> bool:
        _say(connection, message)
        while not connection.poll(0.2):
            if stopping.heard() is not None:
                # A sweep that stops answers nobody; the trial is saved, and goes on from here.
                return False
        try:
            return bool(connection.recv()[1])
        except (EOFError, OSError):
            raise SystemExit(NOBODY_THERE) from None

    return trainer.train(arguments[0], partial(_say, connection), ask)


def _say(connection: Connection, message: Message) -> None:
    try:
        connection.send(message)
    except OSError:
        raise SystemExit(NOBODY_THERE) from None


def _redirect(log: Path) -> None:
    """All that is printed, by C libraries too, goes into the log; the terminal is the sweep's."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(descriptor, number)
    os.close(descriptor)


def _follow_parent() -> None:
    """End when the sweep has: its trial is saved, and nobody trains what nobody waits for."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_SECONDS)
        os._exit(1)


def _one_gpu(slot: int) -> None:
    """Spread the workers over the GPUs of this machine, where there are several and nobody has chosen."""
    import torch

    if "CUDA_VISIBLE_DEVICES" not in os.environ and (count := torch.cuda.device_count()) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(slot % count)
