"""`mlops serve` as a user runs it, and plain HTTP to it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import urllib3


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A server in processes of its own: `with Server(folder, "a=a.onnx") as server`."""

    folder: Path
    words: tuple[str, ...]
    workers: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    wait: bool = True
    url: str = ""
    admin: str = ""

    def __enter__(self) -> Self:
        self.log = self.folder / f"serve-{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "mlops.cli", "serve", *self.words, "--port", "0"]
        command += ["--workers", str(self.workers)]
        self.http = urllib3.PoolManager(retries=False, timeout=30, maxsize=64)
        with self.log.open("w") as file:
            environment = {**os.environ, **self.environment}
            self.process = subprocess.Popen(command, cwd=self.folder, stderr=file, stdout=file, env=environment)
        try:
            self._await_start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        self.http.clear()

    def lines(self) -> list[dict[str, Any]]:
        """Its log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def memory(self) -> int:
        """Bytes of the workers."""
        workers = self.get(f"{self.admin}/health").json["workers"].values()
        return sum(psutil.Process(worker["pid"]).memory_info().rss for worker in workers)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """A request with a body as it is; `path` may be a whole URL."""
        url = path if "://" in path else self.url + path
        found = self.http.request(method, url, body=body, headers=dict(headers or {}))
        return Answer(found.status, found.headers, found.data)

    def until_it_answers(self) -> None:
        """For a server that is not waited for: until somebody listens."""
        end = time.monotonic() + 60
        while True:
            with suppress(urllib3.exceptions.HTTPError):
                if self.get("/health").status == 200:
                    return
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def send(self, path: str, *files: tuple[str, bytes], field: str = "file", **headers: str) -> Answer:
        """A form with files."""
        fields = [(field, (name, content, "image/png")) for name, content in files]
        found = self.http.request("POST", self.url + path, fields=fields, headers=headers)
        return Answer(found.status, found.headers, found.data)

    def _await_start(self) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(self.log.read_text())
            text = self.log.read_text()
            if found := re.search(r"(http://\S+): starting.*administration: (http://[^\s\"]+)", text):
                self.url, self.admin = found[1], found[2]
                if not self.wait or "ready: " in text:
                    return
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())
