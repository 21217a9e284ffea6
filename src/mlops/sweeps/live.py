"""What a person sees while a sweep runs: a table on a terminal, plain lines elsewhere."""

import logging
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.live import Live as RichLive
from rich.table import Table
from rich.text import Text

from mlops.config import shown
from mlops.errors import printable
from mlops.progress import SECONDS_BETWEEN_LINES, console
from mlops.sweeps.engine import Slot
from mlops.sweeps.trials import Row, Trials, best_of

log = logging.getLogger(__name__)

MOST_ROWS = 30
MARKS = {"complete": "green", "stopped": "yellow", "diverged": "red", "failed": "red", "running": "cyan"}


class Live:
    """A context that shows the trials of a sweep: those that run, the best, and the last that ended."""

    def __init__(self, trials: Trials, most: int, jobs: int) -> None:
        self._trials, self._most, self._jobs = trials, most, jobs
        self._rows: list[Row] = []
        self._slots: Sequence[Slot] = ()
        self._said = time.monotonic()
        self._display: RichLive | None = None

    def __enter__(self) -> Self:
        self._rows = self._trials.rows()
        if console.is_terminal:
            self._display = RichLive(console=console, get_renderable=self._table, refresh_per_second=2, transient=True)
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.stop()

    def show(self, slots: Sequence[Slot]) -> None:
        """What runs now. Without a terminal, a line says so now and then."""
        self._slots = [slot for slot in slots if slot.held is not None]
        if self._display is None and time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            log.info("; ".join([self._summary(), *map(_slot_line, self._slots)]))

    def ended(self, row: Row) -> None:
        """A line that stays for every trial that is over."""
        self._rows = self._trials.rows()
        if row.state == "failed":
            log.warning(f"trial {row.number} failed: {_last_line(row.failure)}  ({row.folder})")
            return
        value = "" if row.value is None else f"{self._trials.space.metric} {number(row.value)}  "
        best = self._best()
        mark = "  best so far" if best is not None and best.number == row.number else ""
        words = {"complete": "", "stopped": "stopped early, ", "diverged": "diverged, "}[row.state]
        log.info(
            f"trial {row.number}: {value}{words}{row.epochs} epochs, {row.seconds:.1f} s  {settings(row.values)}{mark}"
        )

    def _summary(self) -> str:
        over = sum(row.state != "running" for row in self._rows)
        best = self._best()
        found = f", best {number(best.value or 0)} (trial {best.number})" if best is not None else ""
        return f"{over} of {self._most} trials{found}{self._left()}"

    def _best(self) -> Row | None:
        return best_of(self._rows, maximize=self._trials.space.maximize)

    def _left(self) -> str:
        """By the mean time of the trials so far."""
        took = [row.seconds for row in self._rows if row.state in ("complete", "stopped") and row.seconds]
        if not took:
            return ""
        over = sum(row.state != "running" for row in self._rows)
        waiting = max(0, self._most - over - len(self._slots))
        begun = [slot.seconds_left() or 0.0 for slot in self._slots]
        return f", {duration((waiting * sum(took) / len(took) + sum(begun)) / self._jobs)} left"

    def _table(self) -> Table:
        names = list(self._trials.space.searched)
        table = Table(title=Text(self._summary()), title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column in ("trial", *map(printable, short_names(names)), self._trials.space.metric, "state", "time"):
            table.add_column(column, justify="left", no_wrap=True)
        running = {slot.held.number: slot for slot in self._slots if slot.held is not None}
        best, over = self._best(), [row for row in self._rows if row.state != "running" and row.number not in running]
        space_left = max(1, min(MOST_ROWS, console.height - 6 - len(running)))
        kept = over[-space_left:]
        if best is not None and best not in kept:
            kept = [best, *kept[1:]]
        for row in kept:
            style = "bold green" if best is not None and row.number == best.number else ""
            cells = [str(row.number), *_cells(row.values, names), "" if row.value is None else number(row.value)]
            state = Text(row.state, style=MARKS[row.state])
            table.add_row(*map(Text, cells), state, f"{row.seconds:.1f} s", style=style)
        for slot in running.values():
            if slot.held is None:
                continue
            value = "" if slot.best is None else number(slot.best)
            state = Text(f"epoch {slot.epoch}/{slot.epochs}" if slot.epochs else "starting", style=MARKS["running"])
            left = slot.seconds_left()
            cells = [str(slot.held.number), *_cells(slot.held.values, names), value]
            table.add_row(*map(Text, cells), state, "" if left is None else f"{duration(left)} left")
        return table


def short_names(names: Sequence[str]) -> list[str]:
    """The last part of each name, where that is one of a kind; else all of it."""
    last = [name.rsplit(".", 1)[-1] for name in names]
    return [short if last.count(short) == 1 else name for short, name in zip(last, names, strict=True)]


def settings(values: Mapping[str, Any]) -> str:
    """`lr=0.00123 batch_size=64`, short enough for a line."""
    pairs = zip(short_names(list(values)), values.values(), strict=True)
    return " ".join(f"{name}={number(value)}" for name, value in pairs)


def number(value: Any) -> str:
    """Four digits of a real number; anything else as a user would write it."""
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def duration(seconds: float) -> str:
    """`45 s`, `3 min`, `2 h 10 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _cells(values: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [printable(number(values.get(name, ""))) for name in names]


def _last_line(text: str) -> str:
    return printable(next((line for line in reversed(text.splitlines()) if line.strip()), "no word about why"))


def _slot_line(slot: Slot) -> str:
    if slot.held is None:
        return ""
    best = "" if slot.best is None else f", best {number(slot.best)}"
    return f"trial {slot.held.number} at epoch {slot.epoch}/{slot.epochs or '?'}{best}"
