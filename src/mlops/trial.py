"""One trial after the other in a warm process: composed, checked and trained as `mlops.train` does, and kept alike."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops import config as schema
from mlops import resume
from mlops.checkpoint import BEST, LAST, read_metadata
from mlops.config import Config, DataConfig
from mlops.entrypoint import ROOT, Run, composer, normalise
from mlops.errors import MlopsError, one_line
from mlops.files import only_one, write_text
from mlops.sweeps.pool import Began, Ended, Epoch, Job
from mlops.tracking import start_service

if TYPE_CHECKING:
    from mlops.data.prepare import Prepared

log = logging.getLogger(__name__)

# The process that a killed sweep has left behind saves its trial, and then lets go of the folder.
PATIENCE = 60.0
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@dataclass(frozen=True)
class TrialTrainer:
    """What a worker of a sweep does.

    Args:
        folders: the config folder, and those that the user has added; `flags` are the words that did so.
        allowed: names that configs may build.
        metric: what trials are judged by, at their best epoch.
        group: what W&B shows the trials under.
        tracked: whether they have W&B runs.
    """

    folders: tuple[Path, ...]
    flags: tuple[str, ...]
    allowed: frozenset[str]
    metric: str
    group: str
    tracked: bool
    # What this process keeps: the data, and the function that composes.
    _prepared: dict[tuple[str, str], "Prepared"] = field(default_factory=dict)
    _compose: list[Callable[[list[str]], dict[str, Any] | str]] = field(default_factory=list)

    def warm_up(self) -> None:
        """Import what is else imported by the first trial, while the sweep looks at its settings."""
        if self.tracked:
            # It mostly waits, for a process of its own to start.
            threading.Thread(target=start_service, daemon=True).start()
        import sklearn.datasets  # noqa: F401
        import torchmetrics.classification  # noqa: F401
        import torchvision  # noqa: F401

    def check(self, variants: Sequence[Sequence[str]]) -> list[str]:
        """All that is wrong with these lists of overrides; what their targets take included."""
        from mlops.train import check_targets

        return check_all(variants, self.folders, self.metric, lambda raw: check_targets(raw, self.allowed))

    def train(self, job: Job, say: Callable[[Began], None], ask: Callable[[Epoch], bool]) -> Ended:
        """Run a trial, or go on with it. What fails in a foreseen way is told; anything else is raised."""
        from mlops.training.loop import DivergenceError
        from mlops.training.record import best_epoch

        started, stopped, folder = time.monotonic(), False, job.folder
        history: list[dict[str, float]] = []
        os.environ.setdefault("WANDB_RUN_GROUP", self.group)

        def ends_here(*, last: bool) -> bool:
            nonlocal stopped
            best = accumulate(history, lambda *two: best_epoch(two, self.metric))
            steps = {int(now["epoch"]): so_far[self.metric] for now, so_far in zip(history, best, strict=True)}
            stopped = ask(Epoch(steps, last))
            if stopped:
                log.info(f"not among the best after epoch {max(steps)} (early_terminate): this trial ends here")
            return stopped

        def after_epoch(metrics: Mapping[str, float], _digest: str) -> bool:
            history.append(dict(metrics))
            return ends_here(last=len(history) == config.training.epochs)

        folder.mkdir(parents=True, exist_ok=True)
        with _logged(folder / "train.log"), _held(folder):
            try:
                config, run = self._begin(job, after_epoch)
                saved = read_metadata(folder / LAST) if (folder / LAST).exists() else None
                history += saved["history"] if saved else []
                say(Began(config.training.epochs, len(history)))
                over = saved is not None and saved["resume"]["finished"]
                # A stop may have come between the end of an epoch and the word about it: that is asked for again.
                if not history or not ends_here(last=over or len(history) == config.training.epochs):
                    from mlops.train import train

                    train(config, run)
            except MlopsError as error:
                for problem in error.problems:
                    log.error(problem)
                failure, seconds = "\n".join(error.problems), time.monotonic() - started
                diverged = isinstance(error, DivergenceError)
                return Ended(seconds, {}, len(history), failure=failure, diverged=diverged)
            except Exception as error:
                log.exception(one_line(error))
                raise
        metrics = best_epoch(history, self.metric) if stopped else read_metadata(folder / BEST)["metrics"]
        return Ended(time.monotonic() - started, metrics, len(history), stopped)

    def report(self, checkpoint: Path) -> None:
        """Write the report of a trial, into its run folder."""
        from mlops.evaluation.run import report_checkpoint

        config = read_metadata(checkpoint)["config"]
        report_checkpoint(
            checkpoint, checkpoint.parent / "report", "test", Path(config["paths"]["processed"]), self.allowed
        )

    def _begin(self, job: Job, after_epoch: Callable[[Mapping[str, float], str], bool]) -> tuple[Config, Run]:
        folder = job.folder
        resumed = (folder / LAST).exists() or (folder / resume.COMPOSED).exists()
        if resumed:
            saved = resume.read_saved(folder)
            raw, overrides = saved.config, saved.overrides
        else:
            overrides = (*self.flags, *job.overrides)
            if not self._compose:
                self._compose.append(composer(ROOT, self.folders))
            composed = self._compose[0]([normalise(text, self.folders) for text in job.overrides])
            if isinstance(composed, str):
                raise MlopsError(composed)
            raw = composed
            (folder / ".hydra").mkdir(exist_ok=True)
            write_text(folder / ".hydra" / "overrides.yaml", _as_yaml(list(job.overrides)))
            write_text(folder / ".hydra" / "config.yaml", _as_yaml(raw))
            # Last: with this the run can go on.
            resume.write_composed(folder, raw, overrides, sweep=True)
        # What it takes a network to know, the training itself checks; for all that can come up the sweep has before.
        if not resumed and (problems := schema.check(raw) + schema.check_targets(raw, self.allowed)):
            raise MlopsError(problems)
        config = schema.load(raw)
        run = Run(
            folder,
            sweep=True,
            allowed=self.allowed,
            overrides=tuple(overrides),
            resumed=resumed,
            after_epoch=after_epoch,
            locate=self._locate,
            report=False,
        )
        return config, run

    def _locate(self, config: DataConfig, processed: Path) -> "Prepared":
        """The images, found, compared and prepared once for all trials of this process."""
        from mlops.data.locate import locate
        from mlops.data.prepare import Index, prepare

        name = (repr(config), str(processed))
        if name not in self._prepared:
            found = locate(config, processed)
            self._prepared[name] = prepare(found, processed) if isinstance(found, Index) else found
        return self._prepared[name]


def check_all(
    variants: Sequence[Sequence[str]],
    folders: Sequence[Path],
    metric: str,
    check_more: Callable[[dict[str, Any]], list[str]] = lambda _: [],
) -> list[str]:
    """All that is wrong with the configs that lists of overrides compose to, each problem once."""
    compose = composer(ROOT, folders)
    found: list[str] = []
    for overrides in variants:
        raw = compose([normalise(text, folders) for text in overrides])
        problems = [raw] if isinstance(raw, str) else schema.check(raw)
        if not isinstance(raw, str) and not problems:
            monitor = raw["training"]["monitor"]
            if monitor != metric:
                problems.append(
                    f"training.monitor={monitor}: picks the epoch that a trial keeps, and metric.name={metric} judges "
                    f"it; make them one: -o training.monitor={metric}"
                )
            problems += check_more(raw)
        found += [problem for problem in problems if problem not in found and not _again(problem, found)]
    return found


def _again(problem: str, found: Sequence[str]) -> bool:
    """Whether a name that does not exist is known to be wrong already, with another value."""
    name = problem.split("=", 1)[0]
    return "no such" in problem and any(other.split("=", 1)[0] == name and "no such" in other for other in found)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a run folder, once whoever is left in it has let go."""
    end = time.monotonic() + PATIENCE
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(only_one(folder))
                break
            except MlopsError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
        yield


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Write the log of this process into a file, as Hydra does for a run."""
    handler, root = logging.FileHandler(path, encoding="utf-8"), logging.getLogger()
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def _as_yaml(value: Any) -> str:
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
