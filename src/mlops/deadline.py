"""A limit in time for calls into libraries that keep none of their own."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from mlops.errors import one_line

T = TypeVar("T")


def within(seconds: float, action: Callable[[], T], moved: Callable[[], object] | None = None) -> T:
    """The result of `action`, or what it raises; a `TimeoutError` when it takes longer, and it is left to itself.

    With `moved`, the time starts anew whenever its value changes: then `seconds` bounds a standstill, not the whole.
    """
    future = begin(action)
    end, seen = time.monotonic() + seconds, moved and moved()
    # In slices: on Windows, Ctrl-C does not interrupt a wait.
    while not future.done() and (left := end - time.monotonic()) > 0:
        wait([future], min(left, 0.2))
        if moved and (now := moved()) != seen:
            end, seen = time.monotonic() + seconds, now
    return future.result(0)


def begin(action: Callable[[], T]) -> Future[T]:
    """Start `action` in a thread that nobody has to wait for, the interpreter's end neither."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def work() -> None:
        try:
            future.set_result(action())
        except Exception as error:
            future.set_exception(error)
        except BaseException as error:  # a library's own `sys.exit`: not the run's to obey
            future.set_exception(RuntimeError(f"{type(error).__name__}: {one_line(error)}"))

    threading.Thread(target=work, name="deadline", daemon=True).start()
    return future
