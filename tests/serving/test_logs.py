"""Lines of log: one an event, each valid JSON, whatever is in it and whoever writes beside it."""

import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TextIO

import pytest

from mlops.serving.logs import JsonFormatter, Lines


class Clock:
    """Keeps what is to be called later."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self.waiting.append((seconds, what))


def formatted(message: str, *given: object, error: BaseException | None = None) -> str:
    found = error and (type(error), error, error.__traceback__)
    record = logging.LogRecord("mlops.serving.shelf", logging.ERROR, "f.py", 1, message, given, found or None)
    return JsonFormatter().format(record)


def test_a_record_is_one_line_that_says_when_what_and_from_where():
    told = json.loads(formatted("model %s: refused", "m"))
    assert {key: told[key] for key in ("level", "event", "message")} == {
        "level": "error",
        "event": "shelf",
        "message": "model m: refused",
    }
    assert abs(told["time"] - time.time()) < 60


def test_what_others_wrote_cannot_begin_a_line_or_steer_a_terminal():
    line = formatted('a\nb\x1b[31m"', error=ValueError("x\ny"))
    assert "\n" not in line
    assert "\x1b" not in line
    assert json.loads(line)["message"] == 'a\\nb\\x1b[31m"'
    assert "ValueError" in json.loads(line)["traceback"]


def test_lines_are_written_together_and_soon():
    clock, stream = Clock(), io.StringIO()
    lines = Lines(clock.later, stream)
    for number in range(3):
        lines.tell(str(number))
    assert stream.getvalue() == ""
    ((seconds, flush),) = clock.waiting
    assert seconds <= 0.1
    flush()
    assert stream.getvalue().splitlines() == ["0", "1", "2"]
    lines.tell("later")
    assert len(clock.waiting) == 2


def test_many_lines_do_not_wait():
    stream = io.StringIO()
    lines = Lines(Clock().later, stream)
    for number in range(450):
        lines.tell(str(number))
    assert len(stream.getvalue().splitlines()) == 400
    lines.flush()
    assert stream.getvalue().splitlines() == [str(number) for number in range(450)]


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_is_no_reason_to_fail_requests():
    lines: Lines = Lines(Clock().later, Full())
    for _ in range(300):
        lines.tell("line")
    lines.flush()


_WRITER = """
import sys
from mlops.serving.logs import Lines
lines = Lines(lambda *_: None)
for number in range(6000):
    lines.tell(sys.argv[1] * (100 + number % 50))
lines.flush()
"""


@pytest.mark.skipif(os.name != "posix", reason="pipes of Windows are others")
def test_lines_of_several_processes_do_not_come_in_one_another():
    reading, writing = os.pipe()
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, letter], stderr=writing) for letter in "abc"]
    os.close(writing)
    pipe: TextIO
    with os.fdopen(reading) as pipe:
        time.sleep(0.5)  # the pipe is full
        text = pipe.read().splitlines()
    for writer in writers:
        assert writer.wait(30) == 0
    assert len(text) == 18000
    assert [line for line in text if len(set(line)) != 1] == []
