"""What is kept of a sweep: numbers that nobody else has, trials that go on, and whose they are."""

import math
import sqlite3
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mlops.errors import MlopsError
from mlops.sweeps import trials as kept
from mlops.sweeps.parameters import Choice, Integers, Parameter, Range
from mlops.sweeps.space import EarlyStop, Method, Space
from mlops.sweeps.trials import Held, Trials, open_trials

LR = {"training.optimizer.lr": Range(0.001, 0.1, log=True)}
SEEDS = {"seed": Integers(0, 9)}

Open = Callable[..., Trials]


def space(
    parameters: Mapping[str, Parameter] = LR,
    *,
    method: Method = "random",
    metric: str = "val_Accuracy",
    early_stop: EarlyStop | None = None,
) -> Space:
    maximize = metric != "val_loss"
    return Space(Path("some.yaml"), method, metric, maximize, None, parameters, early_stop, None, agents=False)


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Open the trials of a sweep, by default of one in a folder of its own: `opened(folder="b", storage=url)`."""
    # Another machine takes a trial over at once, and nobody waits long for a database.
    monkeypatch.setattr(kept, "SETTLE", 0.01)
    monkeypatch.setattr(kept.database, "SQLITE_WAIT", 0.5)

    def open_it(searched: Space | None = None, folder: str = "a", **changes: Any) -> Trials:
        (tmp_path / folder).mkdir(exist_ok=True)
        settings: dict[str, Any] = {
            "name": "s",
            "storage": None,
            "shared": ["training.epochs=2"],
            "each": ["training.threads=1"],
            "seed": 0,
            "lost_after": 900.0,
            "new_folder": lambda number: Path("outputs") / folder / str(number),
        }
        return open_trials(searched or space(), folder=tmp_path / folder, **settings | changes)

    return open_it


@pytest.fixture
def shared(tmp_path: Path) -> str:
    """A database that several folders work on."""
    return f"sqlite:///{tmp_path / 'shared.db'}"


def ask(trials: Trials, most: int = 10) -> Held:
    held = trials.ask(most)
    assert held is not None
    return held


def complete(trials: Trials, held: Held, value: float, **metrics: float) -> None:
    trials.complete(held, value, metrics=metrics, seconds=1.5, epochs=2)


def states(trials: Trials) -> list[tuple[int, str]]:
    return [(row.number, row.state) for row in trials.rows()]


def test_trials_are_numbered_from_0_and_end_at_the_number_that_was_asked_for(opened: Open):
    trials = opened()
    held = [ask(trials, 3) for _ in range(3)]
    assert [one.number for one in held] == [0, 1, 2]
    assert trials.ask(3) is None
    assert held[1].folder == Path("outputs/a/1")
    lr = held[1].values["training.optimizer.lr"]
    assert 0.001 <= lr <= 0.1
    assert held[1].overrides == ("training.epochs=2", "training.threads=1", f"training.optimizer.lr={lr}")
    assert len({one.values["training.optimizer.lr"] for one in held}) == 3


def test_what_is_tried_depends_on_the_seed_and_not_on_how_often_the_sweep_was_started(opened: Open, tmp_path: Path):
    once = opened()
    values = [ask(once).values for _ in range(4)]
    assert [ask(opened(folder="b")).values for _ in range(4)] == values
    assert ask(opened(folder="c", seed=1)).values != values[0]


def test_a_grid_tries_every_point_once_also_when_two_machines_ask(opened: Open, shared: str):
    searched = space({"seed": Integers(1, 3), "model.width": Choice((8, 16))}, method="grid")
    one, other = (opened(searched, folder=name, storage=shared) for name in ("a", "b"))
    asked = [ask(trials, 6) for _ in range(3) for trials in (one, other)]
    points = [(held.values["seed"], held.values["model.width"]) for held in asked]
    assert sorted(points) == [(seed, width) for seed in (1, 2, 3) for width in (8, 16)]
    assert one.ask(6) is None
    assert other.ask(6) is None


def test_an_unfinished_trial_goes_on_with_its_overrides_in_its_folder_after_a_restart(opened: Open):
    before = opened()
    finished, cut = ask(before), ask(before)
    complete(before, finished, 0.5)
    trials = opened(each=["training.threads=7"])
    found = trials.unfinished([])
    assert found is not None
    assert (found.number, found.overrides, found.folder) == (cut.number, cut.overrides, cut.folder)
    assert trials.unfinished([cut.number]) is None
    complete(trials, found, 0.6)
    assert trials.unfinished([]) is None
    assert states(trials) == [(0, "complete"), (1, "complete")]


def test_a_sweep_that_was_killed_between_asking_and_claiming_loses_no_trial(opened: Open):
    before = opened()
    before.study.ask(before._drawn_from)  # and here it was killed
    found = opened().unfinished([])
    assert found is not None
    assert found.number == 0
    assert found.folder == Path("outputs/a/0")
    assert found.overrides[:2] == ("training.epochs=2", "training.threads=1")


def test_a_trial_of_another_machine_is_left_alone_while_that_lives_and_taken_over_when_it_does_not(
    opened: Open, shared: str, monkeypatch: pytest.MonkeyPatch
):
    one, other = (opened(folder=name, storage=shared, lost_after=100) for name in ("a", "b"))
    held = ask(one)
    assert other.unfinished([]) is None
    now = kept.time.time()
    monkeypatch.setattr(kept.time, "time", lambda: now + 99)
    assert other.unfinished([]) is None
    assert one.beat(held)
    monkeypatch.setattr(kept.time, "time", lambda: now + 150)
    assert other.unfinished([]) is None, "it has given a sign of life"
    monkeypatch.setattr(kept.time, "time", lambda: now + 200)
    monkeypatch.setattr(kept.socket, "gethostname", lambda: "the-other")
    taken = other.unfinished([])
    assert taken is not None
    assert (taken.number, taken.overrides, taken.folder) == (held.number, held.overrides, held.folder)
    assert not one.beat(held)
    assert other.beat(taken)
    (row,) = other.rows()
    assert row.ours
    assert row.host == "the-other"
    assert not one.rows()[0].ours


def test_of_two_machines_that_take_over_the_same_trial_one_has_it(opened: Open, shared: str):
    dead = opened(folder="dead", storage=shared)
    ask(dead)
    others = [opened(folder=f"m{number}", storage=shared, lost_after=0) for number in range(2)]
    together, found = threading.Barrier(2), []

    def take(trials: Trials) -> None:
        together.wait(30)
        found.append(trials.unfinished([]))

    threads = [threading.Thread(target=take, args=(trials,)) for trials in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    owners = [trials for trials in others if trials.rows()[0].ours]
    assert len(owners) == 1
    assert sum(one is not None for one in found) >= 1


def test_a_machine_that_comes_back_late_neither_beats_nor_ends_the_trial_that_another_has_ended(
    opened: Open, shared: str
):
    late, quick = (opened(folder=name, storage=shared, lost_after=0) for name in ("a", "b"))
    held = ask(late)
    taken = quick.unfinished([])
    assert taken is not None
    complete(quick, taken, 0.75, val_loss=1.0)
    assert not late.beat(held)
    late.complete(held, 0.25, metrics={"val_loss": 9.0}, seconds=1.0, epochs=1)
    late.fail(held, failure="boom", metrics={}, seconds=1.0, epochs=1)
    (row,) = late.rows()
    assert (row.state, row.value, dict(row.metrics), row.failure) == ("complete", 0.75, {"val_loss": 1.0}, "")


def test_two_machines_that_ask_for_the_last_trial_at_once_leave_none_over_and_lose_none(
    opened: Open, shared: str, monkeypatch: pytest.MonkeyPatch
):
    one, other = (opened(folder=name, storage=shared) for name in ("a", "b"))
    really_ask = other.study.ask

    def late(*arguments: Any) -> Any:
        assert ask(one, 1).number == 0
        monkeypatch.setattr(other.study, "ask", really_ask)
        return really_ask(*arguments)

    monkeypatch.setattr(other.study, "ask", late)
    assert other.ask(1) is None
    assert states(one) == [(0, "running")]
    assert other.ask(1) is None
    # A sweep that is made longer goes on counting where it was.
    assert [ask(one, 3).number, ask(other, 3).number] == [1, 2]
    assert one.ask(3) is None
    assert [number for number, _ in states(one)] == [0, 1, 2]


def test_machines_that_start_one_sweep_at_the_same_moment_share_it(opened: Open, shared: str):
    together, found, failed = threading.Barrier(4), [], []

    def begin(number: int) -> None:
        try:
            together.wait(30)
            found.append(ask(opened(folder=f"m{number}", storage=shared)).number)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert sorted(found) == [0, 1, 2, 3]


def test_every_end_of_a_trial_is_told_as_what_it_was(opened: Open):
    trials = opened()
    whole, stopped, diverged, failed, running = (ask(trials) for _ in range(5))
    trials.report(whole, {1: 0.25}, last=False)
    trials.report(whole, {2: 0.5}, last=True)
    complete(trials, whole, 0.5, val_loss=1.25, epoch=2)
    trials.report(stopped, {1: 0.125}, last=False)
    trials.stop(stopped, metrics={}, seconds=0.5, epochs=1)
    trials.stop(diverged, metrics={}, seconds=0.5, epochs=0, failure="the loss is nan")
    trials.fail(failed, metrics={}, seconds=0.5, epochs=0, failure="one\ntwo")
    trials.report(running, {1: 0.375}, last=False)
    rows = opened().rows()
    assert [row.state for row in rows] == ["complete", "stopped", "diverged", "failed", "running"]
    assert [row.value for row in rows] == [0.5, 0.125, None, None, 0.375]
    assert [row.failure for row in rows] == ["", "", "the loss is nan", "one\ntwo", ""]
    assert [row.epochs for row in rows] == [2, 1, 0, 0, 1]
    assert rows[0].metrics == {"val_loss": 1.25, "epoch": 2}
    assert rows[0].steps == {1: 0.25, 2: 0.5}
    assert rows[0].seconds == 1.5
    assert all(row.ours for row in rows)


def test_a_trial_that_ends_without_a_number_is_over_all_the_same(opened: Open):
    trials = opened()
    held = ask(trials)
    complete(trials, held, math.nan)
    assert trials.unfinished([]) is None, "it would be run again for ever"
    assert trials.best() is None


@pytest.mark.parametrize(
    ("metric", "values", "best"), [("val_Accuracy", (0.25, 0.75, 0.5), 1), ("val_loss", (3, 2, 1), 2)]
)
def test_the_best_trial_is_the_best_of_the_complete_ones_in_the_direction_of_the_metric(
    metric: str, values: tuple[float, ...], best: int, opened: Open
):
    trials = opened(space(metric=metric))
    assert trials.best() is None
    for value in values:
        complete(trials, ask(trials), value)
    better = ask(trials)
    trials.report(better, {1: 0.99 if metric == "val_Accuracy" else 0.01}, last=False)
    trials.stop(better, metrics={}, seconds=0.5, epochs=1)
    found = trials.best()
    assert found is not None
    assert (found.number, found.value) == (best, values[best])


def test_of_equally_good_trials_the_one_of_the_lowest_loss_is_the_best(opened: Open):
    trials = opened()
    for loss in (0.5, 0.25, 0.25):
        complete(trials, ask(trials), 0.75, val_loss=loss)
    found = trials.best()
    assert found is not None
    assert found.number == 1


def test_a_trial_that_is_not_among_the_best_stops_at_a_rung_and_never_at_its_last_epoch(opened: Open):
    trials = opened(space(early_stop=EarlyStop(2, 2)))
    good, bad = ask(trials), ask(trials)
    assert [trials.report(good, {epoch: 0.9}, last=False) for epoch in (1, 2, 3)] == [False, False, False]
    assert not trials.report(bad, {1: 0.1}, last=False)
    assert trials.report(bad, {2: 0.1}, last=False)
    assert not trials.report(ask(trials), {2: 0.1}, last=True)


def test_an_epoch_that_is_reported_again_after_a_restart_gets_the_same_answer(opened: Open):
    trials = opened(space(early_stop=EarlyStop(2, 2)))
    good, bad = ask(trials), ask(trials)
    trials.report(good, {2: 0.9}, last=False)
    assert trials.report(bad, {2: 0.1}, last=False)
    # The sweep was killed before it could write that down.
    trials = opened(space(early_stop=EarlyStop(2, 2)))
    held = trials.unfinished([good.number])
    assert held is not None
    assert held.number == bad.number
    assert trials.report(held, {2: 0.1}, last=False)


def test_an_epoch_that_was_missed_at_a_stop_is_compared_by_its_own_value_and_not_by_that_of_a_later_one(opened: Open):
    trials = opened(space(early_stop=EarlyStop(2, 2)))
    good, late, next_one = ask(trials), ask(trials), ask(trials)
    trials.report(good, {1: 0.5, 2: 0.5}, last=False)
    trials.report(late, {1: 0.1}, last=False)
    # It went on elsewhere, past the rung at 2, where it would have been stopped.
    assert trials.report(late, {1: 0.1, 2: 0.1, 3: 0.9}, last=False)
    assert trials.rows()[late.number].steps == {1: 0.1, 2: 0.1, 3: 0.9}
    assert not trials.report(next_one, {1: 0.5, 2: 0.5}, last=False), "as good as the best at 2"


DIFFERENCES = {
    "parameters": {"searched": space(SEEDS)},
    "method": {"searched": space(method="bayes")},
    "early_terminate": {"searched": space(early_stop=EarlyStop(1, 3))},
    r"metric, goal of the metric": {"searched": space(metric="val_loss")},
    r"overrides \(-o\)": {"shared": ["training.epochs=3"]},
    "seed": {"seed": 1},
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_another_sweep_of_that_name_is_refused_and_the_difference_is_said(difference: str, opened: Open):
    ask(opened())
    with pytest.raises(MlopsError, match=rf"the sweep s there was started with other {difference}, and its trials"):
        opened(**DIFFERENCES[difference])
    ask(opened(name="t", **DIFFERENCES[difference]))


def test_a_locked_database_is_said_in_one_line_and_soon(opened: Open, tmp_path: Path):
    ask(opened())
    holder = sqlite3.connect(tmp_path / "a" / "study.db", isolation_level=None)
    try:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(MlopsError, match=r"study\.db: is locked by another program") as refused:
            opened()
    finally:
        holder.close()
    assert len(refused.value.problems) == 1
    ask(opened())


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_database_is_said_in_one_line(content: bytes, opened: Open, tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "study.db").write_bytes(content)
    with pytest.raises(MlopsError, match=r"study\.db: is damaged, or of other software") as refused:
        opened()
    assert len(refused.value.problems) == 1


def test_a_database_that_was_cut_short_is_said_in_one_line(opened: Open, tmp_path: Path):
    path = tmp_path / "a" / "study.db"
    trials = opened()
    for _ in range(20):
        complete(trials, ask(trials, 100), 0.5)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MlopsError, match=r"study\.db: is damaged, or of other software"):
        opened().rows()


BAD_ADDRESSES = {
    "postgresql://me:s3cr3t@127.0.0.1:9/none": r"postgresql://me:\*\*\*@127\.0\.0\.1:9/none: cannot be used",
    "postgresql://127.0.0.1:9/none?user=me&password=s3cr3t": r"postgresql://127\.0\.0\.1:9/none: cannot be used",
    "postgresql://me:s3cr3t@127.0.0.1:port/none": r"sweep\.storage: is not the URL of a database",
    "postgres:me:s3cr3t": r"sweep\.storage: is not the URL of a database",
    "nosuchthing://me:s3cr3t@host/none": r"sweep\.storage: is not the URL of a database",
    "oracle://me:s3cr3t@host/none": r"needs the package \w+; install it",
    "sqlite:////nowhere/s3cr3t-is-a-name/x.db": "unable to open database file",
}


@pytest.mark.parametrize("storage", BAD_ADDRESSES)
def test_a_database_that_is_not_there_is_said_in_one_line_without_its_password(storage: str, opened: Open):
    if storage.startswith("postgresql://"):
        pytest.importorskip("psycopg")
    with pytest.raises(MlopsError, match=BAD_ADDRESSES[storage]) as refused:
        opened(storage=storage)
    assert len(refused.value.problems) == 1
    assert "s3cr3t" not in str(refused.value).replace("s3cr3t-is-a-name", "")
    # No exception that a log could show holds it either.
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_a_trial_that_was_asked_for_by_half_when_its_machine_died_is_drawn_again_and_run(opened: Open):
    wanted = ask(opened(folder="whole")).values
    trials = opened()
    # As Optuna does first; the parameters are commitments of their own.
    trials._storage.create_new_trial(trials.study._study_id)
    (row,) = trials.rows()
    assert (row.state, row.values) == ("running", {})
    assert trials.best() is None
    held = trials.unfinished([])
    assert held is not None
    assert (held.number, held.values) == (0, wanted)


def test_where_a_machine_keeps_its_files_does_not_make_another_sweep_of_it(opened: Open):
    ask(opened(shared=["training.epochs=2", "paths.outputs=here"]))
    assert [row.number for row in opened(shared=["training.epochs=2", "paths.outputs=there"]).rows()] == [0]
