"""`mlops serve`: the process that starts workers, tells them which models to load, and answers on the admin port.

It holds no model and answers no prediction: what goes wrong with those takes a worker, which is started again.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from mlops.errors import MlopsError, one_line
from mlops.serving import admin
from mlops.serving.process import Events, Process
from mlops.serving.settings import Settings
from mlops.serving.sources import Snapshot, Source
from mlops.serving.worker_start import Start, reserved

log = logging.getLogger("mlops.serving.server")

# Seconds: a worker that died is started again after the first, later after up to the last.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
# As often may workers die before one has ever listened.
_MOST_STILLBORN = 3
# As many workers may end while they load a snapshot that none has loaded yet.
_MOST_KILLED = 2
_KILLS = "ends the workers that load it; give the server more memory, or export a smaller model"


class Supervisor:
    """The workers and the models of one server.

    All happens in the thread of `run`, but for looking at files, and what `admin` asks.
    """

    def __init__(self, settings: Settings, folder: Path, *, named: bool) -> None:
        """Take the models' files, into `folder`. Models that the user `named` must be there, a default one need not.

        Raises:
            MlopsError: one is missing, or may not be run.
        """
        self._settings, self._folder = settings, folder
        self._events: Events = SimpleQueue()
        self._workers: dict[int, Process] = {}
        self._changed = threading.Condition()
        # The last snapshots that a worker has loaded: one that starts later must answer, whatever came since.
        self._good: dict[str, Snapshot] = {}
        # Path of a snapshot -> workers that ended while they loaded it.
        self._killed = Counter[str]()
        self._stillborn = 0
        # Of workers that ended: number -> when to start it again, and how long to wait the next time.
        self._revive: dict[int, float] = {}
        self._pauses = defaultdict[int, float](lambda: _FIRST_PAUSE)
        self._sources = {}
        problems = []
        for number, (name, where) in enumerate(settings.models.items()):
            own = folder / "models" / str(number)
            own.mkdir(parents=True)
            source = self._sources[name] = Source(name, where, own)
            try:
                source.look()
            except MlopsError as error:
                problems += error.problems
        if problems and named:
            raise MlopsError(problems)
        for problem in problems:
            log.warning(f"{problem} (until then, nothing is predicted)")

    def run(self, addresses: "Addresses", workers: int, *, reload: bool) -> int:
        """Serve until a signal; returns the exit code.

        Raises:
            MlopsError: an address cannot be listened at.
        """
        host, admin_host = addresses.host, addresses.admin_host
        with _reserved(host, addresses.port) as port:
            self._start = Start(self._settings, host, port, self._folder)
            self._number, self._url = workers, f"http://{_bracketed(host)}:{port}"
            other = admin.start(admin_host, addresses.admin_port, self._folder / "metrics", self)
            where = f"http://{_bracketed(admin_host)}:{other}"
            log.info(f"{self._url}: starting, {workers} workers; administration: {where}")
            with on_signals(lambda number: self._events.put(("signal", number))):
                try:
                    for number in range(workers):
                        self._spawn(number)
                    if reload:
                        threading.Thread(target=self._watch, name="watch", daemon=True).start()
                    return self._supervise()
                finally:
                    # All of them have ended before the folder goes in which they write.
                    for worker in self._all():
                        worker.kill()

    # What `admin` asks, from other threads.

    def health(self) -> dict[str, Any]:
        """The workers, and whether all of them have all models."""
        workers = {str(worker.number): {"pid": worker.pid, "ready": self._ready(worker)} for worker in self._all()}
        waiting = [number for number, told in workers.items() if not told["ready"]]
        if refused := [told for told in self.models() if told["refused"] and told["name"] not in self._good]:
            reason = "; ".join(f"model {told['name']}: {told['refused']}" for told in refused)
        elif waiting:
            reason = f"workers that are not ready: {', '.join(waiting)}"
        else:
            reason = f"workers that are there: {len(workers)} of {self._number}"
        ready = len(workers) == self._number and not waiting
        return {"ready": ready, "reason": None if ready else reason, "workers": workers}

    def models(self) -> list[dict[str, Any]]:
        """Each model's file, and its state in each worker."""
        return [self._model(source) for source in self._sources.values()]

    def pids(self) -> dict[str, int]:
        """The processes of the server."""
        return {"supervisor": os.getpid()} | {f"worker-{w.number}": w.pid for w in self._all()}

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
            str(worker.number): {"sha256": worker.loaded.get(source.name), "refused": worker.refusal(source.name)}
            for worker in self._all()
        }
        refused = source.refused or self._refusal(source)
        sha256 = source.snapshot and source.snapshot.sha256
        return {"name": source.name, "file": source.shown, "sha256": sha256, "refused": refused, "workers": workers}

    def _pending(self, source: Source) -> bool:
        """Whether a worker has yet to say what it thinks of the last snapshot."""
        wanted = source.snapshot and str(source.snapshot.path)
        tried = [worker.tried.get(source.name, ("", None))[0] for worker in self._all()]
        return wanted is not None and tried != [wanted] * self._number

    def _refusal(self, source: Source) -> str | None:
        return next((reason for worker in self._all() if (reason := worker.refusal(source.name))), None)

    def _ready(self, worker: Process) -> bool:
        return worker.listening and set(worker.loaded) == set(self._sources)

    def _all(self) -> list[Process]:
        return sorted(self._workers.values(), key=lambda worker: worker.number)

    # Models.

    def _watch(self) -> None:
        while True:
            time.sleep(self._settings.reload_seconds)
            for source in self._sources.values():
                try:
                    self._look(source)
                except Exception:  # a bug, or a full disk, must not be the end of watching
                    log.exception(f"model {source.name}: cannot be looked at")

    def _look(self, source: Source, *, again: bool = False) -> None:
        with source.looking:  # a reload that is asked for, and the watch
            before = source.refused
            try:
                if source.look(again=again):
                    self._events.put(("load", source))
                elif again and self._refusal(source):
                    with self._changed:
                        for worker in self._all():
                            worker.tried.pop(source.name, None)
                    self._events.put(("load", source))
                elif before:
                    self._events.put(("state", source))
            except MlopsError:
                if source.refused != before:
                    log.error(f"model {source.name}: refused: {source.refused}")
                    self._events.put(("state", source))

    def _load(self, worker: Process, name: str, snapshot: Snapshot | None) -> None:
        if snapshot is not None:
            worker.say({"do": "load", "name": name, "path": str(snapshot.path), "sha256": snapshot.sha256})

    def _show_state(self, worker: Process, source: Source) -> None:
        reason = source.refused or worker.refusal(source.name)
        worker.say({"do": "refuse", "name": source.name, "reason": reason})

    # Workers.

    def _spawn(self, number: int) -> None:
        worker = Process(number, self._folder / "metrics", self._start.line(), self._events)
        self._workers[number] = worker
        for source in self._sources.values():
            good, snapshot = self._good.get(source.name), source.snapshot
            if good is not snapshot:
                self._load(worker, source.name, good)
            if snapshot is not None and snapshot is not good and self._killed[str(snapshot.path)] >= _MOST_KILLED:
                worker.tried[source.name] = str(snapshot.path), _KILLS
            else:
                self._load(worker, source.name, snapshot)
            if source.refused or worker.refusal(source.name):
                self._show_state(worker, source)

    # What happens.

    def _supervise(self) -> int:
        announced = False
        while True:
            wait = min((at - time.monotonic() for at in self._revive.values()), default=None)
            try:
                kind, told = self._events.get(timeout=None if wait is None else max(0.0, wait))
            except Empty:
                self._revive_due()
                continue
            if kind == "signal":
                return self._drain(told)
            if kind == "told":
                self._heard(*told)
                if not announced and self.health()["ready"]:
                    announced = True
                    log.info(f"ready: {self._url}; try: curl -F file=@IMAGE {self._url}/predict")
            elif kind == "ended":
                self._ended(told)
                if self._stillborn >= _MOST_STILLBORN * self._number:
                    log.error("workers end before they listen; what they say is above")
                    return 1
            else:
                for worker in self._all():
                    if kind == "load":
                        self._load(worker, told.name, told.snapshot)
                    else:
                        self._show_state(worker, told)

    def _ended(self, worker: Process) -> None:
        number = worker.number
        del self._workers[number]
        log.error(f"worker {number} (pid {worker.pid}) ended: {worker.how_it_ended()}")
        worker.forget()
        self._stillborn = 0 if worker.listening else self._stillborn + 1
        if time.monotonic() - worker.started > _LONGEST_PAUSE:
            self._pauses[number] = _FIRST_PAUSE
        self._revive_later(number)
        for source in self._sources.values():
            snapshot = source.snapshot
            if snapshot is None or str(snapshot.path) != worker.loading or snapshot is self._good.get(source.name):
                continue
            self._killed[worker.loading] += 1
            if self._killed[worker.loading] == _MOST_KILLED:
                log.error(f"model {source.name}: refused: {_KILLS}")

    def _revive_later(self, number: int) -> None:
        self._revive[number] = time.monotonic() + self._pauses[number]
        self._pauses[number] = min(2 * self._pauses[number], _LONGEST_PAUSE)

    def _revive_due(self) -> None:
        for number in [number for number, at in self._revive.items() if at <= time.monotonic()]:
            del self._revive[number]
            try:
                self._spawn(number)
            except OSError as error:  # no memory, or too many processes: the others answer on
                log.error(f"worker {number} cannot be started: {one_line(error)}")
                self._revive_later(number)

    def _heard(self, worker: Process, told: dict[str, Any]) -> None:
        with self._changed:
            if "listening" in told:
                worker.listening = True
            worker.loading = told.get("loading")
            if "loaded" in told:
                self._loaded(worker, self._sources[told["loaded"]], told["path"], told["sha256"], told["refused"])
            self._changed.notify_all()

    def _loaded(self, worker: Process, source: Source, path: str, sha256: str, refused: str | None) -> None:
        name, snapshot = source.name, source.snapshot
        if refused is None:
            worker.loaded[name] = sha256
        if snapshot is None or path != str(snapshot.path):  # there is a later one already
            return
        if refused is not None and self._refusal(source) is None:  # else another worker has said so
            log.error(f"model {name}: refused: {refused}")
        worker.tried[name] = path, refused
        if refused is None:
            self._good[name] = snapshot
        if not self._pending(source):
            self._tidy(source)

    def _tidy(self, source: Source) -> None:
        """Remove snapshots that no worker will read again."""
        good = self._good.get(source.name)
        for path in [path for path in source.replaced if good is None or path != good.path]:
            source.replaced.remove(path)
            path.unlink(missing_ok=True)

    def _drain(self, number: int) -> int:
        log.info("ending: what was accepted is still answered")
        for worker in self._all():
            worker.say({"do": "drain"})
        # A worker has its own limits; this is for one that hangs.
        end = time.monotonic() + self._settings.drain_seconds + 2 * self._settings.limits.seconds + 10
        while self._workers and (left := end - time.monotonic()) > 0:
            try:
                kind, told = self._events.get(timeout=left)
            except Empty:
                break
            if kind == "signal":
                break
            if kind == "ended":
                self._workers.pop(told.number, None)
        if self._workers:
            log.warning(f"workers that have not ended are killed: {', '.join(map(str, sorted(self._workers)))}")
        return 128 + number


@dataclass(frozen=True)
class Addresses:
    """Where a server listens: the public address, and that of its administration. Port 0 is any that is free."""

    host: str
    port: int
    admin_host: str
    admin_port: int


@contextlib.contextmanager
def _reserved(host: str, port: int) -> Iterator[int]:
    """The port, for our processes alone.

    Raises:
        MlopsError: somebody listens there, or the address is none of this machine's.
    """
    with contextlib.ExitStack() as stack:
        try:
            port = stack.enter_context(reserved(host, port))
        except (OSError, OverflowError, UnicodeError) as error:
            raise MlopsError(
                f"--host={host} --port={port}: cannot listen there: {one_line(error)}; choose another"
            ) from error
        yield port


@contextlib.contextmanager
def on_signals(hear: Callable[[int], object]) -> Iterator[None]:
    """Let `hear` hear of what should end a process. Who was told to outlive its terminal, as by nohup, does."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = [signal.signal(number, lambda number, _: hear(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
