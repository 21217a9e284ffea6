"""One small tracker: `metrics.jsonl` always, W&B beside it when asked.

W&B never costs a run. Whatever it raises is one warning, and it never holds a run for long: a start that fails becomes
an offline run, and every call runs in a thread that is left behind when its time is up. `KeyboardInterrupt` and
`SystemExit` pass through. docs/tracking.md says what is sent.
"""

import contextlib
import errno
import json
import logging
import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from mlops.config import TrackingConfig, goal
from mlops.deadline import within
from mlops.errors import MlopsError, one_line
from mlops.files import write_text, writing_to
from mlops.tables import to_copy

log = logging.getLogger(__name__)
T = TypeVar("T")

# Seconds. A server that answers takes 1 to 5 for a start; one that does not is not worth more, for the run is kept on
# disk and sent later.
START_TIMEOUT = 15.0
# A call hands a record to W&B's own process and takes milliseconds.
CALL_TIMEOUT = 10.0
# Bytes a second at which the checkpoint's checksum is made, at the least: a slow disk's pace.
CHECKSUM_PACE = 50e6
# The end waits so long in all. W&B's own `finish_timeout` does not hold while an artifact waits for a dead server.
END_TIMEOUT = 30.0
# W&B's process writes what it was told to disk every so many seconds.
FLUSH_INTERVAL = 1.0
# The word that a run is preempted is one small record, and a run that is being stopped has more to do.
PREEMPT_TIMEOUT = 2.0
STOPPED = """query RunStopped($entity: String, $project: String, $name: String!) {
  project(entityName: $entity, name: $project) { run(name: $name) { stopped } }
}"""
# And so long after SIGTERM: a cluster kills what is still there after 30 s, and there is more to do than this.
STOP_TIMEOUT = 10.0


def start_service() -> Any:
    """W&B's own process, which all runs of this process share: started now, where it is not there yet."""
    # W&B's reports on itself go to its maker, from offline runs too, and hold up the end where nothing answers.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    # Silent from here on: what matters is one line of ours, and a silent W&B never asks for a key.
    return wandb.setup(wandb.Settings(silent=True))


class Tracker:
    """A context that takes the metrics of each epoch; a run that ends by an exception is marked as failed.

    Args:
        folder: the run's; `metrics.jsonl` (one object an epoch) and `wandb/` are written there.
        run_config: the resolved config, for W&B.
        monitor: the metric that picks the best epoch.
        run_id: W&B's id of a run that goes on.
        history: the epochs of that run that are complete, as `log_epoch` was given them. When the context is entered,
            `metrics.jsonl` is cut back to them, and W&B is told of those that it lacks.

    `run_id` is W&B's id of the run, once the context is entered; None without W&B.
    """

    def __init__(
        self,
        config: TrackingConfig,
        folder: Path,
        run_config: dict[str, Any],
        monitor: str,
        *,
        run_id: str | None = None,
        history: Sequence[dict[str, float]] = (),
    ) -> None:
        self.run_id = run_id
        self._goes_on = run_id is not None
        self._history = list(history)
        self._superseded: list[Path] = []
        self._settled = 0.0
        self._config = config
        self._folder = folder
        self._run_config = run_config
        self._monitor = monitor
        self._run: Any = None
        self._service: Any = None
        self._missed = False
        self._interrupted = threading.Event()

    def __enter__(self) -> Self:
        self._cut_back()
        if self._config.mode != "off":
            try:
                self._start()
            except BaseException:  # `__exit__` will not be called
                self._interrupted.set()
                self._give_up()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._run is None:
            return
        run = self._run
        seconds = STOP_TIMEOUT if isinstance(error, KeyboardInterrupt | SystemExit) else END_TIMEOUT
        try:
            within(seconds - 1, lambda: run.finish(exit_code=_exit_code(error)))
            self._supersede()
        except Exception as problem:
            self._lose(problem)
        except BaseException:
            self._give_up()
            raise

    def log_epoch(self, metrics: dict[str, float], best: dict[str, float]) -> None:
        """Write the metrics of one epoch, once; W&B's summary shows those of the best epoch so far.

        Raises:
            MlopsError: `metrics.jsonl` cannot be written, for instance because the disk is full.
        """
        path = self._folder / "metrics.jsonl"
        with writing_to(path), path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(_line(metrics))
        self._try("the metrics of an epoch", lambda run: _log(run, metrics))
        self.log_summary(best)
        if self._run is not None and time.monotonic() > self._settled:
            self._supersede()

    def log_summary(self, metrics: dict[str, float]) -> None:
        """The run's result: the metrics of the kept epoch, and those on the test split once they are known."""
        # After every epoch, because W&B's own summary of the monitor is a mapping, `{"max": 0.99}`.
        self._try("the summary", lambda run: run.summary.update(metrics | {"best_epoch": metrics["epoch"]}))

    def log_pictures(self, pictures: Mapping[str, Path]) -> None:
        """Show the report's pictures (PNG) and pages (HTML), as `report/<name>`.

        They go into the summary: a `log` of their own would count as one more epoch.
        """

        def send(run: Any, name: str, path: Path) -> None:
            import wandb

            kind = wandb.Html if path.suffix == ".html" else wandb.Image
            run.summary[name] = kind(str(path))

        for name, path in pictures.items():
            shown = f"report/{name}"
            self._try(shown, partial(send, name=shown, path=path))

    def log_checkpoint(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Keep the checkpoint as an artifact of type `model` with the aliases `best` and the data's fingerprint.

        Args:
            metadata: the checkpoint's.
        """
        data = metadata["data"]
        told = {
            "metrics": metadata["metrics"],
            "digest": metadata["digest"],
            "classes": len(metadata["classes"]),
            "data": data["name"],
            "fingerprint": data["fingerprint"],
            "dvc_md5": data.get("dvc_md5"),
            "dvc_rev": data.get("dvc_rev"),
        }

        def send(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(f"best_model-{run.id}", type="model", metadata=told)
            # The file is never changed once it is written: no copy of it in the user's home, twice, is needed.
            artifact.add_file(str(path.resolve()), policy="immutable", skip_cache=True)
            artifact.finalize()
            # `run.log_artifact` does this too, but asks the server first: with a dead one it waits for 19 s, raises,
            # and the artifact is not even on disk to be sent later.
            run._interface.publish_artifact(run, artifact, ["best", data["fingerprint"], "latest"])

        size = path.stat().st_size if path.exists() else 0
        self._try("the checkpoint", send, CALL_TIMEOUT + size / CHECKSUM_PACE)

    def mark_preempting(self) -> None:
        """Tell a sweep that this trial is stopped by its machine: when it then fails, the sweep starts it again.

        To be called when SIGTERM arrives; does nothing outside a sweep or offline, nor where it is the sweep that stops
        the trial (`early_terminate`), which then is over. It takes at most a few seconds.
        """
        if "WANDB_SWEEP_ID" in os.environ and self._run is not None and not self._run.offline:
            if self._stopped_by_sweep():
                log.info("the sweep has stopped this trial")
                return
            self._try("that it is preempted", lambda run: run.mark_preempting(), PREEMPT_TIMEOUT)

    def _stopped_by_sweep(self) -> bool:
        """Whether the server says that this run is stopped: asked at once, for W&B's own process hears it later."""

        def ask() -> bool:
            from wandb.apis.public.service_api import ServiceApi

            answer: Any = ServiceApi(self._run.settings, timeout=PREEMPT_TIMEOUT).execute_graphql(
                STOPPED, {"entity": self._run.entity, "project": self._run.project, "name": self._run.id}
            )
            return bool(answer["project"]["run"]["stopped"])

        try:
            return within(PREEMPT_TIMEOUT, ask)
        except Exception:  # no answer: a trial that runs once more is better than one that is lost
            return False

    def _cut_back(self) -> None:
        """Let `metrics.jsonl` hold the history alone: a killed run was further on, or in the middle of a line."""
        path = self._folder / "metrics.jsonl"
        with writing_to(path):
            stands = path.read_text("utf-8", errors="replace").splitlines(keepends=True) if path.is_file() else []
        # What stands there rightly stays as it was written; a checkpoint's history has its keys in another order.
        kept: list[str] = [
            line if line is not None and _parsed(line) == metrics else _line(metrics)
            for line, metrics in zip_longest(stands, self._history, fillvalue=None)
            if metrics is not None
        ]
        if kept != stands:
            write_text(path, "".join(kept))

    def _start(self) -> None:
        reason, before = None, set(self._folder.glob("wandb/*run-*"))
        if self._config.mode == "wandb":
            try:
                self._run = self._begin("online")
                log.info(f"W&B run: {self._run.url}")
                self._replay(before)
                return
            except Exception as error:
                reason = _reason(error)
                self._give_up()
                # Empty: the offline run has the same id, and one run should be one folder to send.
                for left in set(self._folder.glob("wandb/run-*")) - before:
                    shutil.rmtree(left, ignore_errors=True)
        try:
            self._run = self._begin("offline")
        except Exception as error:
            self._lose(error)
            return
        if reason is None:
            log.info(f"W&B run kept on disk; send it with: {self._sync()}")
        else:
            log.warning(f"W&B cannot be reached ({reason}), so this run is kept on disk; send it with: {self._sync()}")
        self._replay(before)

    def _replay(self, before: Set[Path]) -> None:
        """Tell W&B of the epochs that are complete. What stands in the folders of `before` is then superseded."""

        def send(run: Any) -> None:
            for metrics in self._history:
                _log(run, metrics)

        if self._try("the epochs before", send):
            self._superseded = [file for folder in before if (file := folder / f"run-{self.run_id}.wandb").is_file()]
            self._settled = time.monotonic() + 2 * FLUSH_INTERVAL

    def _supersede(self) -> None:
        """Let `wandb sync` pass over what the run's folders of before hold, as it does with what it has sent itself.

        Sent after this one, they would put the end of the killed run in the place of this one's. Only called once this
        one's folder is on disk; nothing is removed.
        """
        for file in self._superseded:
            with contextlib.suppress(OSError):
                file.with_suffix(".wandb.synced").touch()
        self._superseded = []

    def _begin(self, mode: Literal["online", "offline"]) -> Any:
        """Start a W&B run, or raise what it raises."""

        def begin() -> Any:
            import wandb

            self._service = start_service()
            if self._interrupted.is_set():  # while the process started: nobody else knows of it
                self._end_core()
                raise RuntimeError("interrupted")
            settings = wandb.Settings(
                silent=True,
                console="off",
                # Only what a reader of the run looks for. The code is in git and its state in the checkpoint; the
                # machine's name, its users' and packages are nobody's business.
                disable_code=True,
                disable_git=True,
                save_code=False,
                label_disable=True,
                host="",
                program="",
                x_disable_meta=True,
                x_save_requirements=False,
                # What is on disk can be sent later even if W&B's process is killed.
                x_transaction_log_flush_interval=FLUSH_INTERVAL,
                init_timeout=START_TIMEOUT,
                finish_timeout=max(END_TIMEOUT - 5, END_TIMEOUT / 2),
                finish_timeout_raises=True,
            )
            # A sweep's agent has named these already, and starts a trial that was preempted once more.
            named = "WANDB_SWEEP_ID" in os.environ
            resume: Literal["allow", "auto"] | None = None
            if mode == "offline" and "WANDB_RESUME" in os.environ:
                # Marked as `allow`, its steps are counted on from the server's when it is sent: each epoch twice.
                resume = "auto"
            elif mode == "online" and (named or self._goes_on) and "WANDB_RESUME" not in os.environ:
                resume = "allow"
            run = wandb.init(
                mode=mode,
                dir=str(self._folder),
                project=None if named else self._config.project,
                entity=None if named else self._config.entity,
                id=None if named else self.run_id,
                resume=resume,
                name=f"{self._folder.parent.name}/{self._folder.name}",
                config=self._run_config,
                settings=settings,
            )
            for handler in self._debug_logs():
                # On a full disk, each of its lines would be a traceback on the terminal.
                handler.handleError = logging.NullHandler().emit  # type: ignore[method-assign]
            run.define_metric("epoch", hidden=True)
            # The summary is ours to write: the best epoch's, not the last one's.
            run.define_metric("*", step_metric="epoch", summary="none")
            run.define_metric(self._monitor, step_metric="epoch", summary=goal(self._monitor))
            return run

        self.run_id = self.run_id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        run = within(START_TIMEOUT + CALL_TIMEOUT, begin)
        self.run_id = run.id
        return run

    def _try(self, what: str, action: Callable[[Any], object], seconds: float | None = None) -> bool:
        """Hand `what` over in `seconds`, else `CALL_TIMEOUT`: it may be refused alone, or W&B be lost with it."""
        if self._run is None:
            return False
        run = self._run
        try:
            within(seconds or CALL_TIMEOUT, lambda: action(run))
            return True
        except Exception as error:
            if isinstance(error, TimeoutError) or _disk_is_full(error) or self._core_has_ended():
                self._lose(error)
            elif not self._missed:
                self._missed = True
                log.warning(f"W&B did not take {what}: {_reason(error)}; the run goes on being tracked")
        return False

    def _lose(self, error: Exception) -> None:
        """Say that W&B is lost, and give it up; it is not asked again, so this is said once."""
        send = f"; send what it has kept with: {self._sync()}" if self._run is not None else ""
        log.warning(f"W&B failed, the run goes on without it: {_reason(error)}{send}")
        self._give_up()

    def _sync(self) -> str:
        """The command that sends what is on disk."""
        # Without the flag, `wandb sync` skips a run that was once online.
        flag = () if self._run.offline else ("--include-online",)
        return to_copy("wandb", "sync", *flag, self._run.sync_dir)

    def _debug_logs(self) -> list[logging.FileHandler]:
        """What writes W&B's own `debug.log` of this run."""
        ours = (self._folder / "wandb").resolve()
        files = [item for item in logging.getLogger("wandb").handlers if isinstance(item, logging.FileHandler)]
        return [item for item in files if Path(item.baseFilename).resolve().is_relative_to(ours)]

    def _core(self) -> subprocess.Popen[bytes] | None:
        """W&B's own process; None where there is none yet, or where it is another program's."""
        with contextlib.suppress(AttributeError):
            core: subprocess.Popen[bytes] = self._service._connection._proc._process
            return core
        return None

    def _core_has_ended(self) -> bool:
        core = self._core()
        try:
            # Its socket closes a moment before it has ended.
            return core is not None and core.wait(0.2) is not None
        except subprocess.TimeoutExpired:
            return False

    def _end_core(self) -> None:
        if core := self._core():
            core.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                core.wait(1)

    def _give_up(self) -> None:
        """End W&B's own process, so that nothing waits for it any more and a later run starts a new one.

        Else the interpreter's exit would wait for it, and the next run of a sweep would meet it.
        """
        self._run = None
        self._end_core()
        # W&B closes these when the run ends well, and else writes to them as long as we live.
        for handler in self._debug_logs():
            logging.getLogger("wandb").removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()

        def forget() -> None:
            import wandb

            wandb.teardown()

        with contextlib.suppress(Exception):
            within(1, forget)


def _line(metrics: dict[str, float]) -> str:
    return json.dumps(metrics) + "\n"


def _log(run: Any, metrics: dict[str, float]) -> None:
    """Tell W&B of an epoch, unless its server has had it from an earlier process of this run."""
    step = int(metrics["epoch"]) - 1
    if step >= run.starting_step:
        # One `log` an epoch: W&B's early stopping counts them. Without `commit` it would wait for the next step.
        run.log(metrics, step=step, commit=True)


def _parsed(line: str) -> Any:
    """The JSON of a whole line; None where it is none."""
    with contextlib.suppress(ValueError):
        return json.loads(line) if line.endswith("\n") else None
    return None


def _reason(error: Exception) -> str:
    # Advice on a setting of W&B's is none to a user of ours.
    return "it does not answer" if isinstance(error, TimeoutError) else one_line(error).split(" Consider increasing")[0]


def _disk_is_full(error: Exception) -> bool:
    # W&B's own process says nothing when it cannot write what the run has told it.
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def _exit_code(error: BaseException | None) -> int:
    """What the process will exit with, as far as it can be known here."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, MlopsError):
        return 2
    return 0 if error is None else 1
