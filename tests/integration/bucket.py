"""A GCS emulator in a process of its own, for tests: what speaks to `gs://` speaks to it.

It ends with the context, and with the process that started it, however that ends.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

BUCKET = "bucket"
# Its standard input is a pipe of ours, which closes with us.
_PROGRAM = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
from gcp_storage_emulator.__main__ import main
main(sys.argv[1:])
"""


def a_port() -> int:
    """A free port that no system gives to whoever asks for any: a server that stops can have it again."""
    while True:
        with suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", random.randrange(20_000, 32_000)))
            return int(free.getsockname()[1])


class Emulator:
    """A context; `url` is where it listens. One that is stopped refuses connections and can be started again.

    `environment` makes gcsfs, DVC and the like use it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        # With its support for rarer kinds of bucket gcsfs would ask the emulator in a way that it never answers.
        return {"STORAGE_EMULATOR_HOST": self.url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}

    def __enter__(self) -> Self:
        for _ in range(5):  # another program may take the port first
            self.port = a_port()
            try:
                self.start()
                break
            except OSError:
                self.stop()
        else:
            raise OSError("the GCS emulator does not start")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the same port as before, with what was there before."""
        words = ["-d", str(self.folder), "start", "--quiet", "--host", "127.0.0.1", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *words, "--default-bucket", BUCKET],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def stop(self) -> None:
        """As when the machine it runs on goes."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """It takes connections and does not answer. Not on Windows."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)
