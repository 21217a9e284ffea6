"""Lines of JSON on standard error, one an event."""

import contextlib
import json
import logging
import sys
from collections.abc import Callable
from typing import TextIO

from mlops.errors import printable


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Keys: time (seconds since 1970), level, event, message, and a traceback where there is one."""
        told = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": record.name.removeprefix("mlops.serving."),
            "message": printable(record.getMessage()),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


def start(stream: TextIO = sys.stderr) -> None:
    """Send everything that is logged there."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # It announces its own processes; ours are announced by the supervisor.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)


class Lines:
    """Lines that are written a few at a time: a system call for each request would cost as much as its line."""

    _SECONDS, _MOST = 0.1, 200
    # Bytes that a pipe takes as a whole, so that lines of several processes do not come in one another.
    _WHOLE = 4096

    def __init__(self, later: Callable[[float, Callable[[], None]], object], stream: TextIO = sys.stderr) -> None:
        """`later` calls something after so many seconds, as `loop.call_later` does."""
        self._later, self._stream = later, stream
        self._lines: list[str] = []

    def tell(self, line: str) -> None:
        """Write a line, soon."""
        self._lines.append(line)
        if len(self._lines) == 1:
            self._later(self._SECONDS, self.flush)
        elif len(self._lines) >= self._MOST:
            self.flush()

    def flush(self) -> None:
        """Write what is there, now."""
        if self._lines:
            lines, self._lines = self._lines, []
            with contextlib.suppress(OSError):  # a full disk, or nobody reads: no reason to fail requests
                text = ""
                for line in lines:
                    if text and len(text) + len(line) >= self._WHOLE:
                        self._write(text)
                        text = ""
                    text += line + "\n"
                self._write(text)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
