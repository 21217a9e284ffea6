"""DVC's own commands, each in a process with a bound: one that stands still is ended, and said so.

DVC has no limit of its own: against a host that does not answer it tries for most of a minute a request, and for some
hosts for ever. Its progress, read from a pipe, tells standing still from taking long.
"""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mlops import stopping
from mlops.errors import MlopsError
from mlops.progress import console

log = logging.getLogger(__name__)

# Seconds without any progress; gcsfs gives up on one request after 36 to 51.
STALL_TIMEOUT = 90.0
# Of an upload nothing is heard before a part has arrived: 50 MB, of several files at once.
SEND_TIMEOUT = 600.0
# Seconds of computing that count as progress: hashing and copying large files says nothing else.
WORKED = 0.5
# Without a terminal, DVC's bar is a line about this often.
SECONDS_BETWEEN_LINES = 15.0
# What DVC's bar changes by itself: elapsed time and rate.
_CLOCK = re.compile(r"\[[^\[\]]*\]")
_BAR = re.compile(r"\|.*\[\d+:\d+")


# Its standard input is a pipe of ours, which closes with us: nothing works on when this process is killed.
_PROGRAM = """
import os, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
from dvc.cli import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class Finished:
    """How DVC ended and what it said; `errors` are its lines from the first error on."""

    code: int
    out: str
    errors: list[str] = field(default_factory=list)

    @property
    def reason(self) -> str:
        """What DVC says went wrong, on one line."""
        text = " ".join(line.removeprefix("ERROR: ") for line in self.errors)
        return " ".join(text.split()) or f"exit code {self.code}"


def dvc(root: Path, *arguments: str, doing: str, limit: float | None = None) -> Finished:
    """Run `dvc` at `root`; `doing` is what a person reads that waits for it.

    Its exit code is the caller's to judge.

    Raises:
        MlopsError: it stood still for `limit` seconds, `STALL_TIMEOUT` when left out.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments],
        cwd=root,
        env=_environment(root),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Ctrl-C is ours to hear; we end DVC.
        start_new_session=os.name == "posix",
    )
    listener = _Listener(process, doing, limit or STALL_TIMEOUT)
    try:
        listener.wait()
    finally:
        _end(process)
        listener.join()
    return Finished(process.returncode, listener.out, listener.errors)


def forget_remote(root: Path) -> None:
    """Let DVC ask the bucket what it has: by itself it believes what it has seen there before."""
    for index in _site_cache(root).glob("repo/*/index"):
        shutil.rmtree(index, ignore_errors=True)


def _site_cache(root: Path) -> Path:
    return root / ".dvc" / "tmp" / "site"


def _environment(root: Path) -> dict[str, str]:
    return {
        **os.environ,
        # DVC's own choice is a folder that everybody on the machine may write pickles into.
        "DVC_SITE_CACHE_DIR": str(_site_cache(root)),
        "DVC_IGNORE_ISATTY": "1",  # show progress to a pipe
        "DVC_NO_ANALYTICS": "1",
        "PYTHONIOENCODING": "utf-8",
        # What gcsfs would ask another, unbounded interface for; see gcs.py.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": os.environ.get("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false"),
    }


class _Listener:
    """Reads what a process says, passes progress on, and knows when it last moved."""

    def __init__(self, process: "subprocess.Popen[bytes]", doing: str, limit: float) -> None:
        self.out = ""
        self.errors: list[str] = []
        self._process, self._doing, self._limit = process, doing, limit
        self._moved = self._said = time.monotonic()
        self._seen = ""
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read_out, self._read_errors)]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Until the process ends.

        Raises:
            MlopsError: it says nothing new and computes nothing for as long as it may.
        """
        computed = 0.0
        while self._process.poll() is None:
            stopping.check()
            if (now := _computed(self._process.pid)) - computed > WORKED:
                computed, self._moved = now, time.monotonic()
            if time.monotonic() - self._moved > self._limit:
                raise MlopsError(
                    f"{self._doing}: nothing has moved for {self._limit:.0f} s; check the network, and repeat the "
                    "command: what has arrived is kept"
                )
            time.sleep(0.05)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(5)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()
        if console.is_terminal:
            console.file.write("\r\x1b[K")

    def _read_out(self) -> None:
        if self._process.stdout:
            self.out = self._process.stdout.read().decode("utf-8", errors="replace")

    def _read_errors(self) -> None:
        text, source = "", self._process.stderr
        while source and (part := os.read(source.fileno(), 4096)):
            *lines, text = re.split(r"[\r\n]+", text + part.decode("utf-8", errors="replace"))
            for line in lines:
                self._hear(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line).strip())
        self._hear(text.strip())

    def _hear(self, line: str) -> None:
        if not line or line == "!":
            return
        if not _BAR.search(line):
            if line.startswith("ERROR") or self.errors:
                self.errors.append(line)
            return
        if (said := _CLOCK.sub("", line)) != self._seen:
            self._seen, self._moved = said, time.monotonic()
        if console.is_terminal:
            console.file.write(f"\r\x1b[K{self._doing}: {line}"[: console.width + 4])
            console.file.flush()
        elif time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            log.info(f"{self._doing}: {' '.join(line.split())}")


def _computed(pid: int) -> float:
    """Seconds of processor time that a process has taken."""
    try:
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    except psutil.Error:
        return 0.0


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process that still runs, and all that it has started."""
    if process.poll() is not None:
        return
    # DVC writes objects beside their place and renames them: nothing half-done is left in the way.
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        if os.name == "posix":
            os.killpg(process.pid, number)
        else:
            process.terminate()
        try:
            process.wait(5)
            return
        except subprocess.TimeoutExpired:
            continue
