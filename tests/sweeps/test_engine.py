"""The engine with real worker processes, whose trainer only plays: what it does with every way in which a trial ends."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from mlops import stopping
from mlops.errors import MlopsError
from mlops.sweeps import engine as engines
from mlops.sweeps.engine import Engine, Slot, Workplace, workplace
from mlops.sweeps.parameters import Choice
from mlops.sweeps.pool import Began, Ended, Epoch, Job, Worker
from mlops.sweeps.space import EarlyStop, Space
from mlops.sweeps.trials import Row, Trials, open_trials

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")

EPOCHS = 3


@dataclass(frozen=True)
class Player:
    """Plays what `act=` says, and notes in a file what it has been asked to do."""

    notes: Path

    def warm_up(self) -> None:
        self.notes.parent.mkdir(exist_ok=True)

    def check(self, variants: Sequence[Sequence[str]]) -> list[str]:
        if any("act=exit" in overrides for overrides in variants):
            os._exit(7)
        return [text for overrides in variants for text in overrides if text == "act=wrong"]

    def train(self, job: Job, say: Callable[[Began], None], ask: Callable[[Epoch], bool]) -> Ended:
        with self.notes.open("a") as file:
            file.write(f"{job.number} {os.getpid()}\n")
        (act,) = [text.partition("=")[2] for text in job.overrides if text.startswith("act=")]
        name, _, value = act.partition("-")
        say(Began(EPOCHS, 0))
        if name == "raise":
            raise RuntimeError("what nobody foresaw")
        if name == "exit":
            print("last words", flush=True)
            os._exit(7)
        if name == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "fail":
            return Ended(0.1, {}, 0, failure="the first line\nthe second line")
        if name == "diverge":
            return Ended(0.1, {}, 1, failure="the loss is nan", diverged=True)
        with stopping.deferred():  # as in training
            for epoch in range(1, EPOCHS + 1):
                steps = dict.fromkeys(range(1, epoch + 1), float(value))
                try:
                    ends = ask(Epoch(steps, epoch == EPOCHS))
                except BaseException as error:
                    with self.notes.open("a") as file:
                        file.write(f"{type(error).__name__}\n")
                    raise
                if ends:
                    return Ended(0.1, {}, epoch, stopped=True)
                if name == "wait":
                    _sleep_until_asked_to_stop()
                    # As a trial that has saved.
                    job.folder.mkdir(parents=True)
                    (job.folder / "saved").touch()
                stopping.check()
        return Ended(0.1, {"val_Accuracy": float(value)}, EPOCHS)

    def report(self, checkpoint: Path) -> None:
        if checkpoint.parent.name == "die":
            raise KeyError("what nobody foresaw")
        if not checkpoint.exists():
            raise MlopsError(f"{checkpoint}: is not there")
        (checkpoint.parent / "report").touch()


def _sleep_until_asked_to_stop() -> None:
    give_up = time.monotonic() + 60
    while stopping.heard() is None and time.monotonic() < give_up:
        time.sleep(0.01)


@dataclass
class Seen:
    """A view that remembers the ends."""

    rows: list[Row] = field(default_factory=list)
    shown: Callable[[Sequence[Slot]], None] = lambda _: None

    def show(self, slots: Sequence[Slot]) -> None:
        self.shown(slots)

    def ended(self, row: Row) -> None:
        self.rows.append(row)


@dataclass(frozen=True)
class Stage:
    """A sweep whose trials play `acts`, in this order."""

    trials: Trials
    place: Workplace
    view: Seen
    most: int
    notes: Path

    def run(self) -> None:
        Engine(self.trials, self.place, most=self.most, view=self.view).run()

    @property
    def states(self) -> list[str]:
        return [row.state for row in self.trials.rows()]

    @property
    def played(self) -> list[tuple[int, int]]:
        """The number of each trial that a worker began with, and that worker's process."""
        lines = [line.split() for line in self.notes.read_text().splitlines()]
        return [(int(number), int(pid)) for number, pid in lines]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    stopping.listen()
    with ExitStack() as stack:

        def set_up(
            *acts: str, jobs: int = 1, early_stop: EarlyStop | None = None, target: float | None = None
        ) -> Stage:
            searched = {"act": Choice(acts)}
            space = Space(
                tmp_path / "s.yaml", "grid", "val_Accuracy", True, target, searched, early_stop, None, agents=False
            )
            trials = open_trials(
                space,
                name="s",
                folder=tmp_path,
                storage=None,
                shared=[],
                each=[],
                seed=0,
                lost_after=900,
                new_folder=lambda number: tmp_path / "outputs" / str(number),
            )
            player = Player(tmp_path / "notes")
            place = workplace(jobs, lambda slot: Worker(slot, player, tmp_path / f"worker-{slot}.log"))
            return Stage(trials, stack.enter_context(place), Seen(), len(acts), player.notes)

        yield set_up
    stopping.listen()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    left = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ended just now
            left += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    assert left == []


def test_one_worker_trains_trial_after_trial_and_a_crash_costs_it_alone(play: Callable[..., Stage]):
    stage = play("ok-0.5", "diverge-", "exit-", "fail-", "ok-0.75")
    stage.run()
    assert stage.states == ["complete", "diverged", "failed", "failed", "complete"]
    assert [row.number for row in stage.view.rows] == [0, 1, 2, 3, 4]
    assert [number for number, _ in stage.played] == [0, 1, 2, 3, 4], "each once"
    first, second = (pid for _, pid in stage.played[2:4])
    assert [pid for _, pid in stage.played] == [first] * 3 + [second] * 2
    rows = stage.trials.rows()
    assert rows[0].steps == {1: 0.5, 2: 0.5, 3: 0.5}
    assert rows[1].failure == "the loss is nan"
    assert rows[2].failure == "the worker ended with exit code 7\nlast words"
    assert rows[3].failure == "the first line\nthe second line"
    best = stage.trials.best()
    assert best is not None
    assert (best.number, best.value) == (4, 0.75)


@pytest.mark.slow
def test_a_worker_that_is_killed_or_raises_is_replaced_and_its_last_lines_are_kept(play: Callable[..., Stage]):
    stage = play("kill-", "raise-", "ok-0.5")
    stage.run()
    assert stage.states == ["failed", "failed", "complete"]
    assert len({pid for _, pid in stage.played}) == 3
    killed, raised, _ = stage.trials.rows()
    assert killed.failure == "the worker was killed by SIGKILL: out of memory?"
    assert raised.failure.splitlines()[-1] == "RuntimeError: what nobody foresaw"
    assert 1 < len(raised.failure.splitlines()) <= 8


def test_five_failures_in_a_row_end_the_sweep_and_a_divergence_or_a_success_between_them_does_not(
    play: Callable[..., Stage],
):
    between = ("fail-1", "fail-2", "fail-3", "fail-4", "ok-0.5", "fail-5", "fail-6", "diverge-", "fail-7", "fail-8")
    stage = play(*between, "fail-9", "fail-10", "fail-11", "ok-0.6")
    with pytest.raises(
        MlopsError, match="the last 5 trials failed, one after the other, the last one with: the second"
    ):
        stage.run()
    assert [number for number, _ in stage.played] == list(range(13))
    # Started again, it goes on where it was.
    stage.run()
    assert stage.states[-2:] == ["failed", "complete"]


@pytest.mark.slow
def test_two_jobs_run_at_once_and_no_trial_twice(play: Callable[..., Stage]):
    stage = play(*(f"ok-0.{number}" for number in range(1, 9)), jobs=2)
    most = []
    stage.view.shown = lambda slots: most.append(sum(slot.held is not None for slot in slots))
    stage.run()
    assert stage.states == ["complete"] * 8
    assert sorted(number for number, _ in stage.played) == list(range(8))
    assert max(most) == 2


@pytest.mark.slow
def test_a_trial_that_is_not_among_the_best_ends_at_the_word_of_the_sweep(play: Callable[..., Stage]):
    stage = play("ok-0.75", "ok-0.25", "ok-0.875", early_stop=EarlyStop(2, 2))
    stage.run()
    assert stage.states == ["complete", "stopped", "complete"]
    assert [row.epochs for row in stage.trials.rows()] == [3, 2, 3]


@pytest.mark.slow
def test_no_new_trial_is_begun_once_one_has_reached_the_target(play: Callable[..., Stage]):
    stage = play("ok-0.5", "ok-0.75", "ok-0.875", target=0.75)
    stage.run()
    assert stage.states == ["complete", "complete"]


@pytest.mark.parametrize(("number", "end"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_ends_the_sweep_soon_and_the_trial_that_runs_saves_and_stays_unfinished(
    number: signal.Signals, end: type[BaseException], play: Callable[..., Stage], tmp_path: Path
):
    stage = play("wait-0.5")

    def signal_once(slots: Sequence[Slot]) -> None:
        if slots[0].epoch == 1:
            os.kill(os.getpid(), number)

    stage.view.shown = signal_once
    with pytest.raises(end):
        stage.run()
    started = time.monotonic()
    stage.place.close()
    assert time.monotonic() - started < 20
    assert (tmp_path / "outputs" / "0" / "saved").exists()
    assert stage.states == ["running"]


def test_a_worker_that_waits_for_an_answer_when_the_sweep_stops_does_not_hold_it_up(play: Callable[..., Stage]):
    stage = play("ok-0.5")
    worker = stage.place.worker(stage.place.slots[0])
    worker.send("train", Job(0, ("act=ok-0.5",), Path("outputs/0")))
    assert [type(worker.receive()) for _ in range(2)] == [Began, Epoch]
    started = time.monotonic()
    stage.place.close()  # which answers nobody
    assert time.monotonic() - started < 20


@pytest.mark.slow
def test_a_worker_whose_sweep_has_ended_meets_no_error_in_its_trial(play: Callable[..., Stage]):
    stage = play("ok-0.5")
    worker = stage.place.worker(stage.place.slots[0])
    worker.send("train", Job(0, ("act=ok-0.5",), Path("outputs/0")))
    assert [type(worker.receive()) for _ in range(2)] == [Began, Epoch]
    worker.connection.close()
    assert worker.obituary() == "the worker ended with exit code 130"
    assert stage.notes.read_text().splitlines()[1:] == ["SystemExit"]


@pytest.mark.slow
def test_a_trial_that_another_machine_has_taken_over_ends_here(
    play: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engines.kept, "BEAT", 0.0)
    stage = play("wait-0.5", "ok-0.25")

    give_up = time.monotonic() + 40

    def take_over(slots: Sequence[Slot]) -> None:
        assert time.monotonic() < give_up, stage.states
        held = slots[0].held
        if held is not None and held.number == 0 and slots[0].epoch == 1:
            stage.trials._storage.set_trial_user_attr(held.trial._trial_id, engines.kept.OWNER, "another")
        elif stage.states == ["running", "complete"]:
            # Nothing is left to do here, and the sweep waits for the other machine, which ends its trial now.
            stage.trials.study.tell(0, 0.75)

    stage.view.shown = take_over
    stage.run()
    rows = stage.trials.rows()
    assert [(row.state, row.value, row.ours) for row in rows] == [("complete", 0.75, False), ("complete", 0.25, True)]


def test_a_worker_that_dies_over_a_report_while_the_page_is_drawn_does_not_hold_up_the_sweep(
    play: Callable[..., Stage], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    place = play("ok-0.5").place
    checkpoint = tmp_path / "die" / "best_model.pth"
    give_up = time.monotonic() + 40
    with place.reporting(checkpoint):
        worker = place.slots[0].worker
        while worker is not None and worker.alive and time.monotonic() < give_up:
            time.sleep(0.05)
    assert "no report was written" in caplog.text
    assert "KeyError" in caplog.text
    assert place.slots[0].worker is None


@pytest.mark.slow
def test_workers_check_overrides_and_write_reports_and_say_how_they_ended(
    play: Callable[..., Stage], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    place = play("ok-0.5").place
    done: list[str] = []
    assert place.check([["a=1"], ["act=wrong"]], lambda: done.append("meanwhile")) == ["act=wrong"]
    assert done == ["meanwhile"]
    checkpoint = tmp_path / "best_model.pth"
    with place.reporting(checkpoint):
        assert not checkpoint.exists()
    assert f"no report was written: {checkpoint}: is not there" in caplog.text
    caplog.clear()
    checkpoint.touch()
    with place.reporting(checkpoint):
        pass
    assert caplog.text == ""
    assert (tmp_path / "report").exists()
    (problem,) = place.check([["act=exit"]], lambda: None)
    assert problem == "the settings cannot be checked: the worker ended with exit code 7"
    assert place.check([["a=1"]], lambda: None) == []
