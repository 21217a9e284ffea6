"""What a person sees while work goes on: a bar on a terminal, plain lines elsewhere. All of it on standard error."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mlops.errors import printable
from mlops.stopping import check

console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

# Without a terminal, a long bar says where it is about this often.
SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_FRAMES = 0.1

log = logging.getLogger(__name__)


class ConsoleHandler(logging.Handler):
    """Log lines above the bar instead of through it."""

    def __init__(self, stream: None = None) -> None:  # noqa: ARG002
        # `stream` is what Hydra's own console handler is configured with; ours has one place to go.
        super().__init__()

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        message = self.format(record)
        # A traceback keeps its lines; anything else is one line and may hold names that somebody else chose.
        console.print(prefix + (message if record.exc_info else printable(message)))


class Bar:
    """Progress of one piece of work, counted in `unit`."""

    def __init__(self, title: str, total: int, unit: str, display: Progress | None, done: int = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self._display = display
        self._task = display.add_task(title, total=total, completed=done, text="") if display else None
        self._done = self._before = done
        self._started = self._said = time.monotonic()

    def advance(self, count: int, text: Callable[[], str] = str, title: str | None = None) -> None:
        """`count` more are done; `title` replaces the title.

        `text` is called, for what stands behind the rate, only when something is shown: a loss is fetched from the
        device a few times a second, not at every step.
        """
        check()
        self._done += count
        self.title = title or self.title
        now = time.monotonic()
        if now - self._said < (SECONDS_BETWEEN_LINES if self._display is None else SECONDS_BETWEEN_FRAMES):
            return
        self._said = now
        rate = (self._done - self._before) / max(now - self._started, 1e-9)
        line = f"{rate:,.0f} {self.unit}/s  {text()}".rstrip()
        if self._display is not None and self._task is not None:
            self._display.update(self._task, completed=self._done, description=self.title, text=line)
        else:
            left = (self.total - self._done) / rate
            log.info(f"{self.title}: {self._done:,} of {self.total:,} {self.unit}, {line}, {left:,.0f} s left")


@contextmanager
def bar(title: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Bar]:
    """A bar that goes away when the work is done; what should stay is said through the log.

    `done` of `total` are behind us when it begins. Each advance is a place where a signal may stop the work.
    """
    if not console.is_terminal:
        yield Bar(title, total, unit, None, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, transient=True) as display:
        yield Bar(title, total, unit, display, done)
