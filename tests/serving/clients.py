"""Clients that ask in a loop, each over a connection that it keeps, and remember every answer."""

import http.client
import json
import threading
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

HEADERS = {"Content-Type": "image/png"}


@dataclass
class Clients:
    """`with Clients(url, image, 20) as clients`: they stop with the context, or when nobody listens any more."""

    url: str
    image: bytes
    count: int
    path: str = "/predict"
    answers: list[tuple[int, Any]] = field(default_factory=list)
    # Requests that were sent to their last byte, and then got no answer.
    dropped: list[str] = field(default_factory=list)
    refused: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        """Wait until all have stopped."""
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    @property
    def statuses(self) -> set[int]:
        return {status for status, _ in self.answers}

    def _ask(self) -> None:
        where = urlsplit(self.url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
        try:
            while not self._stop.is_set():
                try:
                    if connection.sock is None:
                        connection.connect()
                    connection.request("POST", self.path, self.image, HEADERS)
                except OSError:
                    self.refused += 1
                    return
                try:
                    answer = connection.getresponse()
                    body = answer.read()
                except (OSError, http.client.HTTPException) as error:
                    self.dropped.append(repr(error))
                    return
                self.answers.append((answer.status, json.loads(body)))
        finally:
            connection.close()
