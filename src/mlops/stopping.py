"""SIGTERM and Ctrl-C, heard at once and obeyed where nothing is lost by it.

As a rule a signal raises where it arrives. While `deferred`, it is only remembered, and `check` raises at the next
place that can be stopped at: the training loop saves there first. An exception that is raised inside somebody's
`__del__` or callback is swallowed by Python; `check` then raises it again.
"""

import logging
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")

_heard: signal.Signals | None = None
_deferred = False


def listen() -> None:
    """From here on, SIGTERM and SIGINT are ours."""
    global _heard, _deferred
    _heard, _deferred = None, False
    signal.signal(signal.SIGTERM, _hear)
    # Who starts a run in the background with Ctrl-C ignored means it.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _hear)


def heard() -> signal.Signals | None:
    """The signal that asked this process to stop, if one did."""
    return _heard


def check() -> None:
    """Stop here if a signal asked for it.

    Raises:
        SystemExit: with 143, after SIGTERM.
        KeyboardInterrupt: after SIGINT.
    """
    if _heard is not None:
        _stop(_heard)


def checked(items: Iterable[T]) -> Iterator[T]:
    """`items`, with a place to stop at before each."""
    for item in items:
        check()
        yield item


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, a signal waits for `check`, at the latest for the end; a second Ctrl-C does not."""
    global _deferred  # noqa: PLW0603 - one process, one state
    outer = _deferred
    if not outer:
        check()
    _deferred = True
    try:
        yield
    finally:
        _deferred = outer
    if not outer:
        check()


def _hear(number: int, _frame: FrameType | None) -> None:
    global _heard
    first, _heard = _heard is None, _heard or signal.Signals(number)
    if first and not _deferred:
        _stop(_heard)
    # A cluster may send SIGTERM again while the stack unwinds; a person who presses Ctrl-C again means now.
    if not first and number == signal.SIGINT:
        raise KeyboardInterrupt


def _stop(how: signal.Signals) -> None:
    if how == signal.SIGINT:
        raise KeyboardInterrupt
    # Sent again, it must not end the interpreter while that ends by itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log.warning("SIGTERM: stopping")
    raise SystemExit(143)
