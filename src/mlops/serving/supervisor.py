"""`mlops serve`: the process that starts workers, tells them which models to load, and answers on the admin port.

It holds no model and answers no prediction: what goes wrong with those takes a worker, which is started again.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from mlops.errors import MlopsError, one_line
from mlops.serving import admin, logs
from mlops.serving.settings import Settings, is_local
from mlops.serving.sources import Source
from mlops.serving.worker_start import Start, listening

log = logging.getLogger("mlops.serving.server")

# Seconds: a worker that died is started again after the first, later after up to the last.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
# As often may workers die before one has ever listened.
_MOST_STILLBORN = 3


@dataclass
class _Worker:
    number: int
    process: subprocess.Popen[str]
    started: float
    listening: bool = False
    # Model -> SHA-256 of the file in use, and why a later one is not.
    loaded: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str | None] = field(default_factory=dict)


class Supervisor:
    """The workers and the models of one server. All happens in the thread of `run`, but for what `admin` asks."""

    def __init__(self, settings: Settings, folder: Path, *, named: bool) -> None:
        """Take the models' files, into `folder`. Models that the user `named` must be there, a default one need not.

        Raises:
            MlopsError: one is missing, or may not be run.
        """
        self._settings, self._folder = settings, folder
        self._events: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._workers: dict[int, _Worker] = {}
        self._changed = threading.Condition()
        self._looking = threading.Lock()
        (folder / "models").mkdir()
        (folder / "metrics").mkdir()
        self._sources = {name: Source(name, where, folder / "models") for name, where in settings.models.items()}
        problems = []
        for source in self._sources.values():
            try:
                source.look()
            except MlopsError as error:
                problems += error.problems
        if problems and named:
            raise MlopsError(problems)

    def run(self, addresses: "Addresses", workers: int, *, reload: bool) -> int:
        """Serve until a signal; returns the exit code.

        Raises:
            MlopsError: an address cannot be listened at.
        """
        host, admin_host = addresses.host, addresses.admin_host
        with _reserve(host, addresses.port) as sock:
            port = sock.getsockname()[1]
            self._start = Start(self._settings, host, port, self._folder)
            self._number, self._url = workers, f"http://{_bracketed(host)}:{port}"
            for number in range(workers):
                self._spawn(number)
            with self._signals():
                other = admin.start(admin_host, addresses.admin_port, self._folder / "metrics", self)
                log.info(f"{self._url}: starting, {workers} workers; administration: http://{admin_host}:{other}")
                if not is_local(admin_host):
                    log.warning(f"--admin-host={admin_host}: administration asks for no key; keep others out of there")
                if reload:
                    threading.Thread(target=self._watch, name="watch", daemon=True).start()
                try:
                    return self._supervise()
                finally:
                    for worker in self._workers.values():
                        worker.process.kill()

    # What `admin` asks, from other threads.

    def health(self) -> dict[str, Any]:
        """The workers, and whether all of them have all models."""
        workers = {
            str(worker.number): {"pid": worker.process.pid, "ready": self._ready(worker)} for worker in self._all()
        }
        waiting = [number for number, told in workers.items() if not told["ready"]]
        if missing := [source for source in self._sources.values() if source.snapshot is None]:
            reason = "; ".join(f"model {source.name}: {source.refused}" for source in missing)
        elif not self._sources:
            reason = "there is no model"
        else:
            reason = f"workers that are not ready: {', '.join(waiting) or 'none'}"
        ready = len(workers) == self._number and not waiting and not missing and bool(self._sources)
        return {"ready": ready, "reason": None if ready else reason, "workers": workers}

    def models(self) -> list[dict[str, Any]]:
        """Each model's file, and its state in each worker."""
        return [self._model(source) for source in self._sources.values()]

    def pids(self) -> dict[str, int]:
        """The processes of the server."""
        return {"supervisor": os.getpid()} | {f"worker-{w.number}": w.process.pid for w in self._all()}

    def reload(self, name: str, seconds: float) -> dict[str, Any] | None:
        """Look at a model's file now, and wait until every worker has it or has refused it."""
        if (source := self._sources.get(name)) is None:
            return None
        self._look(source, again=True)
        end = time.monotonic() + seconds
        with self._changed:
            while self._pending(source) and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
        return self._model(source)

    def _model(self, source: Source) -> dict[str, Any]:
        workers = {
            str(worker.number): {"sha256": worker.loaded.get(source.name), "refused": worker.refused.get(source.name)}
            for worker in self._all()
        }
        refused = source.refused or next((told["refused"] for told in workers.values() if told["refused"]), None)
        sha256 = source.snapshot and source.snapshot.sha256
        return {"name": source.name, "file": source.shown, "sha256": sha256, "refused": refused, "workers": workers}

    def _pending(self, source: Source) -> bool:
        wanted = source.snapshot and source.snapshot.sha256
        return any(
            worker.loaded.get(source.name) != wanted and not worker.refused.get(source.name) for worker in self._all()
        )

    def _ready(self, worker: _Worker) -> bool:
        return worker.listening and set(worker.loaded) == set(self._sources)

    def _all(self) -> list[_Worker]:
        return sorted(self._workers.values(), key=lambda worker: worker.number)

    # Models.

    def _watch(self) -> None:
        while True:
            time.sleep(self._settings.reload_seconds)
            for source in self._sources.values():
                self._look(source)

    def _look(self, source: Source, *, again: bool = False) -> None:
        with self._looking:  # a reload that is asked for, and the watch
            before = source.refused
            try:
                if source.look(again=again):
                    with self._changed:
                        for worker in self._all():
                            worker.refused[source.name] = None
                    self._events.put(("load", source))
                elif before:
                    self._events.put(("good", source))
            except MlopsError:
                if source.refused != before:
                    log.error(f"model {source.name}: refused: {source.refused}")
                    self._events.put(("bad", source))

    def _load(self, worker: _Worker, source: Source) -> None:
        if source.snapshot is not None:
            told = {"path": str(source.snapshot.path), "sha256": source.snapshot.sha256}
            self._say(worker, {"do": "load", "name": source.name, **told})
        if source.refused:
            self._say(worker, {"do": "refuse", "name": source.name, "reason": source.refused})

    # Workers.

    def _spawn(self, number: int) -> None:
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(self._folder / "metrics"), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "mlops.serving.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        worker = self._workers[number] = _Worker(number, process, time.monotonic())
        threading.Thread(target=self._listen, args=(worker,), name=f"worker-{number}", daemon=True).start()
        self._write(worker, self._start.line())
        for source in self._sources.values():
            self._load(worker, source)

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None  # noqa: S101 - it was asked for
        for line in worker.process.stdout:
            self._events.put(("told", (worker, json.loads(line))))
        worker.process.wait()
        self._events.put(("ended", worker))

    def _say(self, worker: _Worker, told: dict[str, Any]) -> None:
        self._write(worker, json.dumps(told) + "\n")

    def _write(self, worker: _Worker, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has just died, of which an event tells
            assert worker.process.stdin is not None  # noqa: S101 - it was asked for
            worker.process.stdin.write(line)
            worker.process.stdin.flush()

    # What happens.

    def _supervise(self) -> int:
        stillborn, announced = 0, False
        revive: dict[int, float] = {}
        pauses = dict.fromkeys(range(self._number), _FIRST_PAUSE)
        while True:
            wait = min((at - time.monotonic() for at in revive.values()), default=None)
            try:
                kind, told = self._events.get(timeout=None if wait is None else max(0.0, wait))
            except Empty:
                for number in [number for number, at in revive.items() if at <= time.monotonic()]:
                    del revive[number]
                    self._spawn(number)
                continue
            if kind == "signal":
                return self._drain(told)
            if kind == "told":
                self._heard(*told)
                if not announced and self.health()["ready"]:
                    announced = True
                    log.info(f"ready: {self._url}; try: curl -F file=@IMAGE {self._url}/predict")
            elif kind == "ended":
                del self._workers[told.number]
                log.error(f"worker {told.number} (pid {told.process.pid}) ended: {_how(told.process.returncode)}")
                _forget(told.process.pid, self._folder / "metrics")
                stillborn = 0 if told.listening else stillborn + 1
                if stillborn >= _MOST_STILLBORN * self._number:
                    log.error("workers end before they listen; what they say is above")
                    return 1
                if time.monotonic() - told.started > _LONGEST_PAUSE:
                    pauses[told.number] = _FIRST_PAUSE
                revive[told.number] = time.monotonic() + pauses[told.number]
                pauses[told.number] = min(2 * pauses[told.number], _LONGEST_PAUSE)
            else:
                for worker in self._all():
                    self._load(worker, told) if kind == "load" else self._say(
                        worker, {"do": "refuse", "name": told.name, "reason": told.refused}
                    )

    def _heard(self, worker: _Worker, told: dict[str, Any]) -> None:
        with self._changed:
            if "listening" in told:
                worker.listening = True
            if "loaded" in told:
                worker.refused[told["loaded"]] = told["refused"]
                if not told["refused"]:
                    worker.loaded[told["loaded"]] = told["sha256"]
            self._changed.notify_all()
        self._tidy()

    def _tidy(self) -> None:
        """Remove snapshots that no worker will read again."""
        for source in self._sources.values():
            if source.snapshot is not None and not self._pending(source):
                for path in (self._folder / "models").glob(f"{source.name}-*.onnx"):
                    if path != source.snapshot.path:
                        path.unlink(missing_ok=True)

    def _drain(self, number: int) -> int:
        log.info("ending: what was accepted is still answered")
        for worker in self._all():
            self._say(worker, {"do": "drain"})
        # A worker has its own limits; this is for one that hangs.
        end = time.monotonic() + self._settings.drain_seconds + self._settings.limits.seconds + 10
        while self._workers and (left := end - time.monotonic()) > 0:
            try:
                kind, told = self._events.get(timeout=left)
            except Empty:
                break
            if kind == "signal":
                log.warning("ending now")
                break
            if kind == "ended":
                self._workers.pop(told.number, None)
        return 128 + number

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def hear(number: int, frame: Any) -> None:  # noqa: ARG001
            self._events.put(("signal", number))

        heard = [signal.SIGTERM, signal.SIGINT]
        before = [signal.signal(number, hear) for number in heard]
        try:
            yield
        finally:
            for number, handler in zip(heard, before, strict=True):
                signal.signal(number, handler)


@dataclass(frozen=True)
class Addresses:
    """Where a server listens: the public address, and that of its administration. Port 0 is any that is free."""

    host: str
    port: int
    admin_host: str
    admin_port: int


def serve(settings: Settings, addresses: Addresses, workers: int, *, reload: bool, named: bool) -> int:
    """Serve until SIGTERM (143) or Ctrl-C (130); returns the exit code.

    Raises:
        MlopsError: a model, an address or a keys file is not as it must be; nothing was served then.
    """
    from mlops.serving import keys

    keys.read(Path(settings.keys.file) if settings.keys.file else None)
    if workers > 1 and sys.platform == "win32":
        raise MlopsError(f"--workers={workers}: on Windows, one process serves; use --workers 1")
    logs.start()
    with tempfile.TemporaryDirectory(prefix="mlops-serve-") as folder:
        supervisor = Supervisor(settings, Path(folder), named=named)
        return supervisor.run(addresses, workers, reload=reload)


def _reserve(host: str, port: int) -> Any:
    """The address, for our processes alone.

    Raises:
        MlopsError: somebody listens there, or it is none of this machine's.
    """
    try:
        # Ours may share an address; this says whether somebody else has it.
        with listening(host, port, share=False) as probe:
            port = probe.getsockname()[1]
        return listening(host, port, reserve=True)
    except (OSError, OverflowError, UnicodeError) as error:
        raise MlopsError(
            f"--host={host} --port={port}: cannot listen there: {one_line(error)}; choose another"
        ) from error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _forget(pid: int, folder: Path) -> None:
    """Take a dead process out of what is counted live; what it has counted stays."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
