"""A closed loop of clients that costs little: prebuilt requests over plain sockets, kept alive, in one process.

    python benchmarks/rivals/load.py PORT PATH FOLDER --clients 50 --seconds 10

Each client sends a picture of FOLDER as multipart/form-data, waits for the whole answer and sends the next. A time is
from just before sending to the answer's last byte. Prints JSON: what was answered, times and own processor seconds.
"""

import argparse
import json
import selectors
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

BOUNDARY = "bench-4f1c2e"
# A slow server is given more seconds, until so many answers have come.
LEAST, PATIENCE = 20, 30


def request(path: str, name: str, content: bytes) -> bytes:
    """A whole POST of one picture in the field `file`."""
    body = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        f"Content-Type: image/png\r\n\r\n"
    ).encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()  # fmt: skip
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def length(answer: bytes) -> int | None:
    """Bytes that an answer has in all, once its head is there.

    Raises:
        ValueError: it does not say so by Content-Length.
    """
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = answer[:end].lower()
    _, found, rest = head.partition(b"\r\ncontent-length:")
    if not found:
        raise ValueError(f"an answer without Content-Length: {head!r}")
    return end + 4 + int(rest.split(b"\r\n", 1)[0])


@dataclass
class Client:
    """One connection, and the request that it waits for."""

    port: int
    requests: Sequence[bytes]
    turn: int
    connection: socket.socket = field(init=False)
    started: float = 0.0
    answer: bytes = b""

    def __post_init__(self) -> None:
        self.connect()

    def connect(self) -> None:
        self.connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        self.connection.settimeout(None)  # else each call polls first
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self) -> None:
        """The next request."""
        self.turn = (self.turn + 1) % len(self.requests)
        self.answer = b""
        self.started = time.perf_counter()
        self.connection.sendall(self.requests[self.turn])

    def receive(self) -> str | None:
        """The status of an answer that is whole; "closed" where none will come; None where more is to come."""
        try:
            part = self.connection.recv(65536)
        except ConnectionError:
            part = b""
        self.answer += part
        whole = length(self.answer)
        if whole is not None and len(self.answer) >= whole:
            return self.answer[9:12].decode()
        return None if part else "closed"


def ask(port: int, content: bytes) -> tuple[int, bytes]:
    """Status and body of one answer, on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(content)
        answer = connection.recv(65536)
        while (whole := length(answer)) is None or len(answer) < whole:
            more = connection.recv(65536)
            if not more:
                raise ConnectionResetError("closed in the middle of an answer")
            answer += more
    return int(answer[9:12]), answer.partition(b"\r\n\r\n")[2]


def run(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> dict[str, object]:
    """Keep `clients` requests on their way for some seconds. What is on its way at the end is not counted."""
    selector = selectors.DefaultSelector()
    statuses, times = Counter[str](), list[float]()
    # Far from one another, so that pictures are mixed.
    waiting = [Client(port, requests, number * 37 % len(requests)) for number in range(clients)]
    for client in waiting:
        selector.register(client.connection, selectors.EVENT_READ, client)
    clock = time.perf_counter
    cpu, began = time.process_time(), clock()
    end = began + seconds
    for client in waiting:
        client.send()
    while (now := clock()) < end or (len(times) < LEAST and now < end + PATIENCE):
        for key, _ in selector.select(max(end - now, 0.1)):
            client = key.data
            if (status := client.receive()) is None:
                continue
            statuses[status] += 1
            if status != "closed":
                times.append(clock() - client.started)
            closes = status != "200" and (status == "closed" or b"connection: close" in client.answer.lower())
            try:
                if not closes:
                    client.send()
            except ConnectionError:
                closes = True
            if closes:
                selector.unregister(client.connection)
                client.connection.close()
                client.connect()
                selector.register(client.connection, selectors.EVENT_READ, client)
                client.send()
    took, cpu = clock() - began, time.process_time() - cpu
    for client in waiting:
        client.connection.close()
    return {"statuses": dict(statuses), "seconds": took, "cpu": cpu, **_times(times)}


def _times(times: list[float]) -> dict[str, float]:
    """Quantiles in milliseconds."""
    times.sort()
    if not times:
        return {"p50": float("nan"), "p95": float("nan"), "p99": float("nan"), "worst": float("nan")}
    of = {f"p{q}": 1000 * times[min(len(times) - 1, len(times) * q // 100)] for q in (50, 95, 99)}
    return {**of, "worst": 1000 * times[-1]}


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10)
    asked = parser.parse_args()
    requests = [request(asked.path, file.name, file.read_bytes()) for file in sorted(asked.folder.glob("*.png"))]
    print(json.dumps(run(asked.port, requests, asked.clients, asked.seconds)))


if __name__ == "__main__":
    main()
