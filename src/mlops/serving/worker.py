"""One process that answers: `python -m mlops.serving.worker`, started by the supervisor and by nobody else.

On standard input the supervisor sends one JSON object a line: first how to start, then models to load, and `drain`. Its
end means that the supervisor is gone. On standard output go answers to it; logs go to standard error.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import uvicorn

from mlops.serving import logs
from mlops.serving.app import build
from mlops.serving.gate import Gate
from mlops.serving.keys import Doorkeeper, Rates
from mlops.serving.metrics import Metrics
from mlops.serving.shelf import Shelf
from mlops.serving.worker_start import BACKLOG, Start, listening

log = logging.getLogger(__name__)

# Seconds that a connection may be idle: longer than a proxy's own, which would else send into one that just closed.
_KEEP_ALIVE = 75


class _Server(uvicorn.Server):
    """uvicorn, whose signals are the supervisor's to handle."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


class Worker:
    """The server of one process, and what its supervisor asks of it."""

    def __init__(self, start: Start, server: _Server, shelf: Shelf, gate: Gate) -> None:
        self._start, self._server, self._shelf, self._gate = start, server, shelf, gate
        self._tasks: set[asyncio.Task[None]] = set()

    def hear(self, told: dict[str, Any] | None) -> None:
        """Do what the supervisor says; None: it is gone."""
        if told is None or told["do"] == "drain":
            self._later(self._drain())
        elif told["do"] == "load":
            self._later(self._load(told["name"], Path(told["path"]), told["sha256"]))
        elif told["do"] == "refuse":
            self._shelf.refuse(told["name"], told["reason"])

    async def _load(self, name: str, path: Path, sha256: str) -> None:
        refused = await self._shelf.load(name, path, sha256)
        _tell({"loaded": name, "sha256": sha256, "refused": refused, "ready": not self._shelf.problems()})

    async def _drain(self) -> None:
        if self._gate.draining:
            return
        # Answers close their connections from now on, and readiness fails; whoever still comes is still answered.
        self._gate.draining = True
        await asyncio.sleep(self._start.settings.drain_seconds)
        self._server.should_exit = True

    def _later(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def serve(start: Start) -> None:
    """Answer until the supervisor says otherwise, or is gone."""
    loop = asyncio.get_running_loop()
    settings = start.settings
    metrics = Metrics()
    shelf = Shelf(settings, metrics)
    rate = settings.keys.rate
    rates = Rates(start.folder / "rates", rate, settings.keys.burst) if rate else None
    doorkeeper = Doorkeeper(Path(settings.keys.file) if settings.keys.file else None, rates)
    lines = logs.Lines(loop.call_later)
    app, gate = build(settings, shelf, doorkeeper, metrics, lines.tell if settings.log == "requests" else None)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=int(settings.limits.seconds) + 5,
        backlog=BACKLOG,
    )
    server = _Server(config)
    worker = Worker(start, server, shelf, gate)

    def hear() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(worker.hear, json.loads(line))
        with contextlib.suppress(RuntimeError):  # the loop has ended before
            loop.call_soon_threadsafe(worker.hear, None)

    threading.Thread(target=hear, name="supervisor", daemon=True).start()
    with contextlib.suppress(NotImplementedError):  # Windows
        loop.add_signal_handler(signal.SIGTERM, worker.hear, {"do": "drain"})
    sock = listening(start.host, start.port)
    _tell({"listening": sock.getsockname()[1]})
    await server.serve(sockets=[sock])
    shelf.close()
    lines.flush()


def main() -> None:
    """Read how to start, and serve. The supervisor answers for signals: a terminal sends Ctrl-C to workers too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.start()
    try:
        import uvloop
    except ImportError:  # Windows has none
        run: Any = asyncio.run
    else:
        run = uvloop.run
    run(serve(Start.read(sys.stdin.readline())))
    sys.stdout.flush()
    # The thread that hears the supervisor waits in a read, which the interpreter would wait for.
    os._exit(0)


def _tell(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
