"""The trials of a sweep, kept in a database that several machines may share: Optuna's, with who runs what.

A trial belongs to the folder of the sweep that it was started from (its owner). Whoever holds that folder goes on with
its unfinished trials; those of a machine that has not been heard of for long are taken over. So every trial keeps its
number, and none runs twice.
"""

import contextlib
import logging
import math
import secrets
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from mlops.errors import MlopsError
from mlops.files import write_text
from mlops.sweeps import database, suggest
from mlops.sweeps.database import address, patiently, together
from mlops.sweeps.space import Space

log = logging.getLogger(__name__)
T = TypeVar("T")

# Seconds between the signs of life of a running trial.
BEAT = 20.0
# Two machines that take over the same trial at once: the one whose name stands there after so long has it.
SETTLE = 1.0
# Seconds in which a machine that has asked for a trial has put its name to it.
NAMELESS = 60.0

OWNER, HOST, FOLDER, ALIVE, OVERRIDES = "owner", "host", "folder", "alive", "overrides"
METRICS, FAILURE, SECONDS, EPOCHS = "metrics", "failure", "seconds", "epochs"


@dataclass(frozen=True)
class Held:
    """A trial that is ours to run: its number, what it tries, the overrides it is run with, and its run folder."""

    number: int
    values: Mapping[str, Any]
    overrides: tuple[str, ...]
    folder: Path
    trial: Trial


@dataclass(frozen=True)
class Row:
    """A trial as the table and the page show it.

    Args:
        state: running, complete, stopped (early), diverged or failed.
        value: the metric at its best epoch, as far as it came.
        metrics: of its kept epoch and on the test split, once it is complete.
        failure: the last lines of one that failed.
        epochs: how many it has trained.
        steps: the metric by epoch, each the best so far.
    """

    number: int
    values: Mapping[str, Any]
    overrides: tuple[str, ...]
    state: str
    value: float | None
    metrics: Mapping[str, float]
    failure: str
    folder: Path
    host: str
    ours: bool
    seconds: float
    epochs: int
    steps: Mapping[int, float]


class Trials:
    """Open with `open_trials`."""

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        label: str,
        *,
        owner: str,
        private: bool,
        shared: Sequence[str],
        lost_after: float,
        new_folder: Callable[[int], Path],
    ) -> None:
        self.study, self.space, self.label = study, space, label
        self._owner, self._private, self._lost_after = owner, private, lost_after
        self._shared, self._new_folder = tuple(shared), new_folder
        self._storage = study._storage
        self._drawn_from = suggest.distributions(space)

    def ask(self, most: int) -> Held | None:
        """A new trial; None where there are `most` already."""

        def begin() -> Held | None:
            if len(self._all()) >= most:
                return None
            trial = self.study.ask(self._drawn_from)
            if trial.number >= most:
                # Another machine asked at the same moment. It waits for a sweep that is made longer.
                self._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
                return None
            self._claim(trial)
            return self._held(trial)

        return self._patiently(begin)

    def unfinished(self, held: Collection[int]) -> Held | None:
        """The next trial that was started before and is nobody's now, but those numbered in `held`."""

        def find() -> Held | None:
            for found in self._all():
                if found.state != TrialState.RUNNING or found.number in held:
                    continue
                owner = found.user_attrs.get(OWNER)
                asked = (found.datetime_start or datetime.now()).timestamp()  # noqa: DTZ005 - as Optuna wrote it
                silent = time.time() - found.user_attrs.get(ALIVE, asked)
                # One that was asked for by a machine that then died at once has no owner yet.
                patience = self._lost_after if owner else min(self._lost_after, NAMELESS)
                if owner != self._owner and silent < patience and not (self._private and owner is None):
                    continue
                trial = Trial(self.study, found._trial_id)
                if owner != self._owner:
                    self._claim(trial)
                    if not self._private:
                        time.sleep(SETTLE)
                    if self._owner_of(trial) != self._owner:
                        continue
                    host = found.user_attrs.get(HOST, "its machine")
                    log.warning(
                        f"trial {found.number}: {host} has not been heard of for {silent:,.0f} s; it goes on here"
                    )
                return self._held(trial)
            return None

        return self._patiently(find)

    def beat(self, held: Held) -> bool:
        """Say that a trial is being run. Returns whether it is still ours."""

        def say() -> bool:
            if self._owner_of(held.trial) != self._owner:
                return False
            held.trial.set_user_attr(ALIVE, time.time())
            return True

        try:
            return self._patiently(say)
        except UpdateFinishedTrialError:
            return False

    def report(self, held: Held, steps: Mapping[int, float], *, last: bool) -> bool:
        """Note what a trial has reached. Returns whether it is not worth going on, which its last epoch always is.

        Args:
            steps: the best value so far, by epoch, with all epochs of the trial: a stop may have come before some of
                them were noted, and other trials are compared with each.
        """

        def note() -> bool:
            known = self._storage.get_trial(held.trial._trial_id).intermediate_values
            ends = False
            for epoch, best in sorted(steps.items()):
                if epoch not in known:
                    held.trial.report(best, epoch)
                elif epoch != max(known):
                    continue
                ends = held.trial.should_prune() or ends
            return ends and not last

        return self._patiently(note)

    def complete(self, held: Held, value: float, **told: Any) -> None:
        """A trial has ended, and this is what it is worth."""
        if math.isnan(value):
            self.fail(held, **told, **{FAILURE: f"{self.space.metric} is not a number"})
            return
        self._tell(held, TrialState.COMPLETE, value, told)

    def stop(self, held: Held, **told: Any) -> None:
        """A trial was not worth going on with; one that diverged tells its `failure`."""
        self._tell(held, TrialState.PRUNED, None, told)

    def fail(self, held: Held, **told: Any) -> None:
        """A trial has no result."""
        self._tell(held, TrialState.FAIL, None, told)

    def rows(self) -> list[Row]:
        """All trials, by number."""
        return [self._row(found) for found in self._patiently(self._all)]

    def best(self) -> Row | None:
        """The best complete trial: by its best epoch, and of those that are equally good the one of the lowest loss."""
        return best_of(self.rows(), maximize=self.space.maximize)

    def _row(self, found: FrozenTrial) -> Row:
        attributes, steps = found.user_attrs, found.intermediate_values
        failure = str(attributes.get(FAILURE, ""))
        names = {
            TrialState.COMPLETE: "complete",
            TrialState.PRUNED: "diverged" if failure else "stopped",
            TrialState.FAIL: "failed",
        }
        reached = steps[max(steps)] if steps else None
        # Of one that is being asked for, not all is known yet.
        known = self._drawn_from.keys() <= found.params.keys()
        return Row(
            found.number,
            suggest.values_of(self.space, found.params, found.number) if known else {},
            tuple(attributes.get(OVERRIDES, ())),
            names.get(found.state, "running"),
            found.value if found.state == TrialState.COMPLETE else reached,
            attributes.get(METRICS, {}),
            failure,
            Path(attributes.get(FOLDER, ".")),
            str(attributes.get(HOST, "")),
            attributes.get(OWNER) == self._owner,
            float(attributes.get(SECONDS, 0)),
            int(attributes.get(EPOCHS, max(steps, default=0))),
            steps,
        )

    def _all(self) -> list[FrozenTrial]:
        found = self.study.get_trials(deepcopy=False)
        return [trial for trial in found if trial.state != TrialState.WAITING]

    def _owner_of(self, trial: Trial) -> str | None:
        """As the database has it now: a Trial of Optuna's remembers its attributes."""
        owner: str | None = self._storage.get_trial(trial._trial_id).user_attrs.get(OWNER)
        return owner

    def _claim(self, trial: Trial) -> None:
        trial.set_user_attr(HOST, socket.gethostname())
        trial.set_user_attr(ALIVE, time.time())
        trial.set_user_attr(OWNER, self._owner)

    def _held(self, trial: Trial) -> Held:
        """What is known of a trial, which is written down before anything of it is on disk."""
        for name, kind in self._drawn_from.items():
            # Not all is there where it was asked for by a process that died then; drawn again, it is the same.
            trial._suggest(name, kind)
        values = suggest.values_of(self.space, trial.params, trial.number)
        known = trial.user_attrs
        if FOLDER not in known:
            known = {
                OVERRIDES: [*self._shared, *self.space.overrides(values)],
                FOLDER: str(self._new_folder(trial.number)),
            }
            for name, value in known.items():
                trial.set_user_attr(name, value)
        return Held(trial.number, values, tuple(known[OVERRIDES]), Path(known[FOLDER]), trial)

    def _tell(self, held: Held, state: TrialState, value: float | None, told: Mapping[str, Any]) -> None:
        def tell() -> None:
            for name, item in told.items():
                held.trial.set_user_attr(name, item)
            self.study.tell(held.number, value, state=state)

        try:
            self._patiently(tell)
        except (UpdateFinishedTrialError, ValueError):
            # Told before, by a try whose answer was lost, or by the machine that took it over.
            log.warning(f"trial {held.number}: has ended elsewhere already")

    def _patiently(self, call: Callable[[], T]) -> T:
        return patiently(call, self.label)


def best_of(rows: Sequence[Row], *, maximize: bool) -> Row | None:
    """The best complete trial: by its best epoch, and of those that are equally good the one of the lowest loss."""
    sign = -1 if maximize else 1
    return min(
        (row for row in rows if row.state == "complete" and row.value is not None),
        key=lambda row: (sign * (row.value or 0), row.metrics.get("val_loss", math.inf), row.number),
        default=None,
    )


def open_trials(
    space: Space,
    *,
    name: str,
    folder: Path,
    storage: str | None,
    shared: Sequence[str],
    each: Sequence[str],
    seed: int,
    lost_after: float,
    new_folder: Callable[[int], Path],
) -> Trials:
    """The trials of the sweep `name`: those of before, or none yet.

    Args:
        folder: the sweep's, held by this process. It says whose the trials are that are started here.
        storage: a database by its URL; the one in `folder` when None.
        shared: overrides that all trials have in common; `each`: more that are put before those of a new trial.
        lost_after: seconds without a sign of life after which another machine's trial is taken over.
        new_folder: where the run of a trial goes, by its number.

    Raises:
        MlopsError: the database cannot be used, or holds another sweep of that name.
    """
    optuna.logging.disable_default_handler()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url, label = address(storage, folder)
    wait = {"timeout": database.SQLITE_WAIT} if url.get_backend_name() == "sqlite" else {}

    def connect() -> optuna.Study:
        opened = optuna.storages.RDBStorage(
            url.render_as_string(hide_password=False), engine_kwargs={"connect_args": wait}
        )
        return optuna.create_study(
            study_name=name,
            storage=opened,
            sampler=suggest.sampler(space, seed),
            pruner=suggest.pruner(space.early_stop),
            direction="maximize" if space.maximize else "minimize",
            load_if_exists=True,
        )

    # At once: a wrong address, or a database that is not there, is for the person who has just started this.
    study = patiently(lambda: together(connect), label, pauses=())
    # Where files are may differ from machine to machine.
    comparable = [text for text in shared if not text.lstrip("+").startswith("paths.")]
    wanted = space.identity() | {"shared": comparable, "seed": seed}
    known = patiently(lambda: study.user_attrs.get("sweep"), label)
    if known is None or not patiently(lambda: study.get_trials(deepcopy=False), label):
        patiently(lambda: study.set_user_attr("sweep", wanted), label)
    elif differences := [key for key in wanted if known.get(key) != wanted[key]]:
        raise MlopsError(
            f"{label}: the sweep {name} there was started with other {', '.join(map(_in_words, differences))}, and its "
            "trials do not compare with new ones; name this sweep -o sweep.name=..., or start it as before"
        )
    return Trials(
        study,
        space,
        label,
        owner=_owner(folder),
        private=storage is None,
        shared=[*shared, *each],
        lost_after=lost_after,
        new_folder=new_folder,
    )


def _owner(folder: Path) -> str:
    path = folder / "owner"
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8").strip()
    write_text(path, secrets.token_hex(8) + "\n")
    return _owner(folder)


def _in_words(key: str) -> str:
    return {"shared": "overrides (-o)", "goal": "goal of the metric"}.get(key, key)
