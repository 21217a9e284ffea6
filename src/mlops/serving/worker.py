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
import socket
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TextIO, cast

import uvicorn

from mlops.image import load_formats
from mlops.serving import logs
from mlops.serving.app import build
from mlops.serving.connection import Connection
from mlops.serving.folder import use
from mlops.serving.gate import Gate
from mlops.serving.keys import Doorkeeper, Rates
from mlops.serving.metrics import Metrics
from mlops.serving.shelf import Shelf
from mlops.serving.worker_start import BACKLOG, Start, listening

log = logging.getLogger(__name__)

# Seconds that a connection may be idle: longer than a proxy's own, which would else send into one that just closed.
_KEEP_ALIVE = 75
# Seconds in which a connection that was just made should bring its request, before those without one are closed.
_LAST = 0.5


class _Server(uvicorn.Server):
    """uvicorn, whose signals are the supervisor's to handle, and which ends without dropping what was accepted."""

    # For the head of a request.
    seconds = 10.0

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer whoever the system has connected to us, then end as uvicorn does."""
        accepted = [connection for sock in sockets or [] for connection in _rest(sock)]
        for server in self.servers:
            server.close()
        for connection in accepted:
            with contextlib.suppress(OSError):  # it has gone
                await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(_LAST)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; once, close connections that only pretend to ask."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                cast("Connection", connection).sweep(now, self.seconds, _KEEP_ALIVE)
        return await super().on_tick(counter)

    def _protocol(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = kind(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def _rest(sock: socket.socket) -> list[socket.socket]:
    """The connections that wait in a listening socket, which then takes no more."""
    found = []
    with contextlib.suppress(OSError):  # none is left
        while True:
            found.append(sock.accept()[0])
    # At once: closing it takes uvloop another round, and whoever connected until then would be dropped.
    with contextlib.suppress(OSError):  # macOS cannot
        sock.shutdown(socket.SHUT_RDWR)
    return found


class Worker:
    """The server of one process, and what its supervisor asks of it."""

    def __init__(self, start: Start, server: _Server, shelf: Shelf, gate: Gate, answers: TextIO) -> None:
        """What the supervisor is told is written to `answers`."""
        self._start, self._server, self._shelf, self._gate, self._answers = start, server, shelf, gate, answers
        self._tasks: set[asyncio.Task[None]] = set()
        # One after another: of one model, the file that came last must win; of several, two may not fit the memory.
        self._turn = asyncio.Lock()

    def hear(self, told: dict[str, Any] | None) -> None:
        """Do what the supervisor says; None: it is gone."""
        if told is None or told["do"] == "drain":
            self._later(self._drain())
        elif told["do"] == "load":
            self._later(self._load(told["name"], Path(told["path"]), told["sha256"]))
        elif told["do"] == "refuse":
            self._later(self._refuse(told["name"], told["reason"]))

    def tell(self, told: dict[str, Any]) -> None:
        """Tell the supervisor."""
        with contextlib.suppress(OSError):  # it is gone, of which `hear` hears
            self._answers.write(json.dumps(told) + "\n")
            self._answers.flush()

    async def _load(self, name: str, path: Path, sha256: str) -> None:
        async with self._turn:
            # Should this be its end, the supervisor knows of what.
            self.tell({"loading": str(path)})
            try:
                refused = await self._shelf.load(name, path, sha256)
            except Exception as error:  # a bug, or no memory: the model before answers on
                refused = f"cannot be loaded: {type(error).__name__}"
                self._shelf.refuse(name, refused)
                log.exception(f"model {name}: {refused}")
        self.tell({"loaded": name, "path": str(path), "sha256": sha256, "refused": refused})

    async def _refuse(self, name: str, reason: str | None) -> None:
        async with self._turn:
            self._shelf.refuse(name, reason)

    async def _drain(self) -> None:
        if self._gate.draining:
            return
        # Answers close their connections from now on, and readiness fails; whoever still comes is still answered.
        self._gate.draining = True
        await asyncio.sleep(self._start.settings.drain_seconds)
        self._server.should_exit = True

    def _later(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def serve(start: Start, answers: TextIO) -> None:
    """Answer until the supervisor says otherwise, or is gone; it is told of that in `answers`."""
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
        # Who asks is what a proxy says only where one is said to be there.
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
        lifespan="off",
        http=Connection,
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE,
        # Uploading and answering may take as long each.
        timeout_graceful_shutdown=int(2 * settings.limits.seconds) + 5,
        backlog=BACKLOG,
    )
    server = _Server(config)
    server.seconds = settings.limits.seconds
    worker = Worker(start, server, shelf, gate, answers)

    def hear() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended before
            for line in sys.stdin:
                loop.call_soon_threadsafe(worker.hear, json.loads(line))
            loop.call_soon_threadsafe(worker.hear, None)

    threading.Thread(target=hear, name="supervisor", daemon=True).start()
    with contextlib.suppress(NotImplementedError):  # Windows
        loop.add_signal_handler(signal.SIGTERM, worker.hear, {"do": "drain"})
    # Else the first picture of each worker does it, and under load that takes a second.
    load_formats()
    sock = listening(start.host, start.port)
    worker.tell({"listening": sock.getsockname()[1]})
    await server.serve(sockets=[sock])
    shelf.close()
    lines.flush()


def main() -> None:
    """Read how to start, and serve. The supervisor answers for signals: a terminal sends Ctrl-C to workers too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The batches' thread gives the interpreter up many times an image, and would wait 5 ms for it each time.
    sys.setswitchinterval(0.001)
    # What a library prints must not come between our lines.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logs.start()
    try:
        import uvloop
    except ImportError:  # Windows has none
        run: Any = asyncio.run
    else:
        run = uvloop.run
    if line := sys.stdin.readline():  # else the supervisor is gone already
        start = Start.read(line)
        use(start.folder)
        run(serve(start, answers))
    # The thread that hears the supervisor waits in a read, which the interpreter would wait for.
    os._exit(0)


if __name__ == "__main__":
    main()
