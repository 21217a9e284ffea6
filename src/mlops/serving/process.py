"""A worker as the supervisor sees it: a process that is spoken to in lines of JSON, by threads that may wait for it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

# What happens, for one thread to hear: ("told", (worker, message)), ("ended", worker) and others.
Events = SimpleQueue[tuple[str, Any]]


class Process:
    """A worker.

    Attributes:
        number: counted from 0; one that takes the place of another has the same.
        started: when, by the clock of `time.monotonic`.
        listening: whether it takes connections yet.
        loaded: model -> SHA-256 of the file in use.
        loading: the snapshot that it is loading.
        tried: model -> the last snapshot that it has tried, and why that is not in use.
    """

    def __init__(self, number: int, metrics: Path, first: str, events: Events) -> None:
        """Start it: it keeps its counts in `metrics`, and is told the line `first`."""
        self.number, self.started, self.listening = number, time.monotonic(), False
        self.loaded: dict[str, str] = {}
        self.loading: str | None = None
        self.tried: dict[str, tuple[str, str | None]] = {}
        self._metrics, self._events = metrics, events
        # Lines that it is to be told; None ends that.
        self._outbox: SimpleQueue[str | None] = SimpleQueue()
        environment = {
            # Before onnxruntime is imported: later, it has begun to tell its maker what it runs.
            "ORT_DISABLE_TELEMETRY": "1",
            **os.environ,
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            "OMP_NUM_THREADS": "1",
        }
        # A group of its own: Ctrl-C in a terminal is for us, who then tell it.
        group: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
        self._process = subprocess.Popen(
            # -P: nothing is imported from the folder that we happen to be in.
            [sys.executable, "-P", "-m", "mlops.serving.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            encoding="utf-8",
            **group,
        )
        for what in (self._listen, self._feed):
            threading.Thread(target=what, name=f"worker-{number}", daemon=True).start()
        self._outbox.put(first)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def refusal(self, name: str) -> str | None:
        """Why the last file of a model is not in use."""
        return self.tried.get(name, ("", None))[1]

    def say(self, told: dict[str, Any]) -> None:
        """Tell it, without waiting: it may hang."""
        self._outbox.put(json.dumps(told) + "\n")

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        self._process.kill()
        self._process.wait()

    def how_it_ended(self) -> str:
        """In words."""
        code = self._process.returncode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"

    def forget(self) -> None:
        """Take it out of what is counted live; what it has counted stays."""
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(self.pid, str(self._metrics))  # type: ignore[no-untyped-call]

    def _listen(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        with self._process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):  # it was killed in the middle of a line
                    self._events.put(("told", (self, json.loads(line))))
        self._process.wait()
        self._outbox.put(None)
        self._events.put(("ended", self))

    def _feed(self) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it was asked for
        with contextlib.suppress(OSError, ValueError), self._process.stdin as pipe:
            while (line := self._outbox.get()) is not None:
                pipe.write(line)
                pipe.flush()
