"""The engine: hands trials to workers, hears them epoch by epoch, and writes down what came of each."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Protocol

from mlops import stopping
from mlops.errors import MlopsError
from mlops.sweeps import trials as kept
from mlops.sweeps.pool import STOP_SECONDS, Began, Checked, Ended, Epoch, Job, Message, Reported, Worker, tail
from mlops.sweeps.trials import Held, Row, Trials

log = logging.getLogger(__name__)

# So many failures one after the other are no accidents of single trials.
MOST_FAILURES = 5
TICK = 0.5
# Seconds between two looks at what other machines do.
WAIT = 5.0
LAST_LINES = 6


@dataclass
class Slot:
    """A place where one trial runs at a time: its worker, the trial, and how far that is.

    `began` and `said` are times of the monotonic clock; `first` is the epoch that the trial started from.
    """

    number: int
    worker: Worker | None = None
    held: Held | None = None
    epochs: int = 0
    epoch: int = 0
    first: int = 0
    best: float | None = None
    began: float = 0.0
    training: float = 0.0
    beaten: float = field(default_factory=time.monotonic)

    def take(self, held: Held) -> None:
        """Begin with a trial."""
        self.held, self.epochs, self.epoch, self.first, self.best = held, 0, 0, 0, None
        self.began = self.training = time.monotonic()

    def seconds_left(self) -> float | None:
        """Until the end of the trial, by its epochs so far; None before the first."""
        done = self.epoch - self.first
        return None if done < 1 else (time.monotonic() - self.training) / done * (self.epochs - self.epoch)


class View(Protocol):
    """Who is shown what happens."""

    def show(self, slots: Sequence[Slot]) -> None:
        """Called about twice a second, and after everything that happens."""

    def ended(self, row: Row) -> None:
        """A trial is over."""


class Engine:
    """Runs trials until there are `most`, one in each slot of the workplace."""

    def __init__(self, trials: Trials, place: "Workplace", *, most: int, view: View) -> None:
        self._trials, self._place, self._most, self._view = trials, place, most, view
        self._slots = place.slots
        self._failures: list[str] = []
        self._enough = self._waits = False

    def run(self) -> None:
        """All trials, those of before first.

        Raises:
            MlopsError: the last few trials failed, one after the other.
            SystemExit, KeyboardInterrupt: as a signal asks; the trials that ran have saved where they are.
        """
        with stopping.deferred():
            while stopping.heard() is None:
                self._assign()
                if any(slot.held for slot in self._slots):
                    self._listen()
                elif not self._wait_for_others():
                    break
            if stopping.heard() is not None:
                log.warning("stopping: the running trials save where they are; the same command goes on with them")

    def _wait_for_others(self) -> bool:
        """Whether other machines have trials that run; waits for a while where they have.

        The best is known when all are over, and one that is never told of its end has to be taken over.
        """
        others = [row for row in self._trials.rows() if row.state == "running" and not row.ours]
        if not others:
            return False
        if not self._waits:
            self._waits = True
            hosts = ", ".join(sorted({row.host for row in others if row.host}))
            log.info(f"nothing left to start; waiting for {len(others)} trials that run on {hosts or 'other machines'}")
        end = time.monotonic() + WAIT
        while time.monotonic() < end and stopping.heard() is None:
            time.sleep(TICK)
            self._view.show(self._slots)
        return True

    def _assign(self) -> None:
        for slot in self._slots:
            if slot.held is not None:
                continue
            held = self._next()
            if held is None:
                return
            slot.take(held)
            worker = self._place.worker(slot)
            worker.send("train", Job(held.number, held.overrides, held.folder))

    def _next(self) -> Held | None:
        running = [slot.held.number for slot in self._slots if slot.held is not None]
        if (held := self._trials.unfinished(running)) is not None:
            log.info(f"trial {held.number}: goes on in {held.folder}")
            return held
        return None if self._reached() else self._trials.ask(self._most)

    def _reached(self) -> bool:
        """Whether some trial is as good as the file asks for (`metric.target`)."""
        space = self._trials.space
        if not self._enough and space.target is not None and (best := self._trials.best()) is not None:
            value = best.value or 0.0
            self._enough = value >= space.target if space.maximize else value <= space.target
            if self._enough:
                log.info(f"trial {best.number} has reached metric.target={space.target:g}: no new trials")
        return self._enough

    def _listen(self) -> None:
        """Hear what the workers say, for a moment."""
        busy = {
            slot.worker.connection: slot for slot in self._slots if slot.held is not None and slot.worker is not None
        }
        for ready in connection.wait(list(busy), timeout=TICK):
            slot = busy[ready]  # type: ignore[index]
            said = slot.worker.receive() if slot.worker else None
            if said is not None:
                self._hear(slot, said)
            elif stopping.heard() is None:
                self._lose(slot)
        if stopping.heard() is None:
            self._beat()
        self._view.show(self._slots)

    def _hear(self, slot: Slot, said: Message) -> None:
        held, worker = slot.held, slot.worker
        if held is None or worker is None:
            return
        match said:
            case Began(epochs, done):
                slot.epochs, slot.epoch, slot.first, slot.training = epochs, done, done, time.monotonic()
            case Epoch(steps, last):
                slot.epoch = max(steps)
                slot.best = steps[slot.epoch]
                worker.send("go on", self._trials.report(held, steps, last=last))
            case Ended():
                self._note(slot, held, said)

    def _note(self, slot: Slot, held: Held, ended: Ended) -> None:
        if ended.crashed and slot.worker is not None:
            slot.worker.close(STOP_SECONDS)
            slot.worker = None
        told = {kept.SECONDS: ended.seconds, kept.EPOCHS: ended.epochs, kept.METRICS: dict(ended.metrics)}
        if ended.diverged:
            self._trials.stop(held, **told, **{kept.FAILURE: ended.failure})
        elif ended.failure:
            self._trials.fail(held, **told, **{kept.FAILURE: ended.failure})
        elif ended.stopped:
            self._trials.stop(held, **told)
        else:
            self._trials.complete(held, ended.metrics[self._trials.space.metric], **told)
        slot.held = None
        self._tell(held.number)
        self._count(ended.failure if not ended.diverged else "")

    def _lose(self, slot: Slot) -> None:
        """A worker has ended without a word about its trial: killed, out of memory, a fault in a library."""
        if slot.held is None or slot.worker is None:
            return
        held, obituary = slot.held, slot.worker.obituary()
        lines = [*obituary.splitlines(), *tail(held.folder / "train.log", lines=LAST_LINES)]
        seconds, failure = time.monotonic() - slot.began, "\n".join(lines)
        self._note(slot, held, Ended(seconds, {}, slot.epoch, failure=failure, crashed=True))

    def _tell(self, number: int) -> None:
        row = next(row for row in self._trials.rows() if row.number == number)
        self._view.ended(row)

    def _count(self, failure: str) -> None:
        self._failures = [*self._failures, failure] if failure else []
        if len(self._failures) >= MOST_FAILURES:
            last = failure.strip().splitlines()[-1]
            raise MlopsError(
                f"the last {MOST_FAILURES} trials failed, one after the other, the last one with: {last}; the sweep is "
                "stopped: mend that and start it again"
            )

    def _beat(self) -> None:
        for slot in self._slots:
            if slot.held is None or slot.worker is None or time.monotonic() - slot.beaten < kept.BEAT:
                continue
            slot.beaten = time.monotonic()
            if not self._trials.beat(slot.held):
                log.warning(f"trial {slot.held.number}: another machine has taken it over; it ends here")
                slot.worker.terminate()
                slot.worker.close(STOP_SECONDS)
                slot.held = slot.worker = None


@contextmanager
def workplace(jobs: int, start: Callable[[int], Worker]) -> Iterator["Workplace"]:
    """`jobs` slots, the first one with a worker that warms up already. At the end, trials that run are saved."""
    place = Workplace([Slot(number) for number in range(jobs)], start)
    try:
        place.worker(place.slots[0])
        yield place
    finally:
        place.close()


@dataclass(frozen=True)
class Workplace:
    """Where trials are trained. `start` makes the worker of a slot."""

    slots: Sequence[Slot]
    start: Callable[[int], Worker]

    def worker(self, slot: Slot) -> Worker:
        """The worker of a slot, a new one where it has none or a dead one."""
        if slot.worker is None or not slot.worker.alive:
            if slot.worker is not None:
                slot.worker.close(0)
            slot.worker = self.start(slot.number)
        return slot.worker

    def check(self, variants: Sequence[Sequence[str]], meanwhile: Callable[[], object]) -> list[str]:
        """What is wrong with these overrides, by the word of a worker; `meanwhile` is called while that warms up."""
        worker = self._begin("check", variants)
        meanwhile()
        answer = self._hear(worker)
        return answer.problems if isinstance(answer, Checked) else [f"the settings cannot be checked: {answer}"]

    @contextmanager
    def reporting(self, checkpoint: Path) -> Iterator[None]:
        """Let a worker write the report of a trial, while something else is done here."""
        worker = self._begin("report", checkpoint)
        yield
        answer = self._hear(worker)
        failure = answer.failure if isinstance(answer, Reported) else str(answer)
        if failure:
            log.warning(f"{checkpoint.parent}: no report was written: {failure}")

    def close(self) -> None:
        """End the workers; those that train save first, the others have nothing to say any more."""
        training = [slot.worker for slot in self.slots if slot.worker is not None and slot.held is not None]
        for worker in training:
            worker.terminate()
        end = time.monotonic() + STOP_SECONDS
        for slot in self.slots:
            if slot.worker is not None:
                slot.worker.close(max(0.0, end - time.monotonic()) if slot.held is not None else 0.0)

    def _begin(self, *message: object) -> Worker:
        """Give the first worker something to do beside trials."""
        worker = self.worker(self.slots[0])
        worker.send(*message)
        return worker

    def _hear(self, worker: Worker) -> Message | str:
        """Its answer; or how it ended, which may be a while ago."""
        while not connection.wait([worker.connection], timeout=TICK):
            stopping.check()
        answer = worker.receive()
        if answer is not None and not isinstance(answer, Ended):
            return answer
        failure = worker.obituary() if answer is None else answer.failure
        worker.close(STOP_SECONDS)
        self.slots[0].worker = None
        return failure
