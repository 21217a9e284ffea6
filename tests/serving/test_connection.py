"""Heads of requests that are too large or never end, and connections that only pretend to ask."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from samples import png
from serving.models import write_model
from serving.server import Server

MIB = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("connections")
    write_model(folder / "colours.onnx")
    (folder / "serve.yaml").write_text("models: {c: colours.onnx}\nlimits: {seconds: 1}\ndrain_seconds: 0\n")
    with Server(folder, ("--config", "serve.yaml")) as server:
        yield server


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def heard(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            found += part
    return found


def one_answer(connection: socket.socket) -> bytes:
    """All of the next answer, whose connection stays open."""
    found = b""
    while True:
        head, end, body = found.partition(b"\r\n\r\n")
        if end and len(body) == int(head.lower().partition(b"content-length: ")[2].split()[0]):
            return found
        part = connection.recv(65536)
        assert part, found
        found += part


def ask(server: Server, sent: bytes) -> bytes:
    with connect(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        return heard(connection)


def refusal(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    told: dict[str, Any] = json.loads(body)
    assert f"x-request-id: {told['request_id']}".encode() in head
    return told


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 50 * MIB,
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 5_000_000,
        b"GET /" + b"a" * 30 * MIB,
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 2000 + b"\r\n",
    ],
)
def test_a_head_that_does_not_end_is_refused_before_it_takes_memory(server: Server, sent: bytes):
    pid = server.get(f"{server.admin}/health").json["workers"]["0"]["pid"]
    before, started = psutil.Process(pid).memory_info().rss, time.monotonic()
    answer = ask(server, sent)
    assert time.monotonic() - started < 15
    assert psutil.Process(pid).memory_info().rss - before < 20 * MIB
    # Where it came in one read, it was answered before it was counted; nothing may come after that.
    assert answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 200 ")) or answer == b""
    assert server.get("/health").status == 200


def test_lines_behind_a_body_are_limited_too(server: Server):
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    ask(server, head + b"0\r\n" + b"X: y\r\n" * 2_000_000)
    assert server.get("/health").status == 200


def test_what_is_no_http_is_refused_as_a_problem(server: Server):
    told = refusal(ask(server, b"\x16\x03\x01 no http\r\n\r\n"))
    assert (told["status"], told["title"]) == (400, "Bad Request")


def offering(what: bytes, *lines: bytes) -> bytes:
    """The head of a request with an image, as Java's client sends it where it would rather speak HTTP/2."""
    offer = b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + what, b"HTTP2-Settings: AAEAAEAAAAIAAAAB"
    head = b"POST /predict HTTP/1.1", b"Host: x", b"Content-Type: image/png", *offer, *lines
    return b"\r\n".join(head) + b"\r\n\r\n"


@pytest.mark.parametrize("what", [b"h2c", b"websocket", b"TLS/1.0, IRC/6.9"])
@pytest.mark.parametrize("parts", [1, 3, 400])
def test_an_offer_to_speak_something_else_is_passed_over_and_the_connection_stays(
    server: Server, what: bytes, parts: int
):
    body = png(1, colour=(20, 30, 220))
    length, chunked = offering(what, b"Content-Length: %d" % len(body)), offering(what, b"Transfer-Encoding: chunked")
    for sent in (length + body, chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)):
        with connect(server) as connection:
            for _ in range(2):
                for at in range(0, len(sent), size := -(-len(sent) // parts)):
                    connection.sendall(sent[at : at + size])
                answer = one_answer(connection)
                assert answer.startswith(b"HTTP/1.1 200")
                assert b'"class": "blue"' in answer
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert one_answer(connection).startswith(b"HTTP/1.1 200")


def test_many_offers_in_one_read_are_answered_one_after_the_other(server: Server):
    head = b"GET /health HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
    last = b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n"
    assert ask(server, head * 1100 + last).count(b"HTTP/1.1 200 OK") == 1101


def test_a_head_that_is_wrong_is_refused_whatever_it_offers(server: Server):
    sent = offering(b"h2c", b"Content-Length: 3", b"Transfer-Encoding: chunked") + b"0\r\n\r\n"
    assert refusal(ask(server, sent))["status"] == 400
    assert refusal(ask(server, b"CONNECT a.org:443 HTTP/1.1\r\nHost: a.org\r\n\r\n"))["status"] == 400
    assert refusal(ask(server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))["status"] == 400


@pytest.mark.parametrize("sent", [b"G", b"GET /health HTTP/1.1\r\nHost: x\r\n", b"GET /health HTTP/1.1\r\nX: "])
def test_a_head_that_never_ends_is_given_up_after_a_while(server: Server, sent: bytes):
    with connect(server) as connection:
        started = time.monotonic()
        connection.sendall(sent)
        assert heard(connection) == b""
        assert 0.8 < time.monotonic() - started < 15


def test_a_second_head_that_never_ends_is_given_up_too(server: Server):
    with connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert one_answer(connection).startswith(b"HTTP/1.1 200")
        started = time.monotonic()
        connection.sendall(b"GET /hea")
        assert heard(connection) == b""
        assert 0.8 < time.monotonic() - started < 15


def test_whoever_goes_on_sending_a_body_that_was_refused_is_cut_off(server: Server):
    with connect(server) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        started = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - started < 60:
                connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
        assert time.monotonic() - started < 30


@pytest.mark.slow
def test_a_connection_that_waits_between_requests_is_kept(server: Server):
    with connect(server) as connection:
        for _ in range(2):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert one_answer(connection).startswith(b"HTTP/1.1 200")
            time.sleep(2.4)
    with connect(server) as connection:
        time.sleep(2.4)  # as browsers do before they know what to ask
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert one_answer(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_a_body_that_takes_as_long_as_it_may_is_not_cut_off(server: Server):
    body = png(1, colour=(20, 30, 220))
    with connect(server) as connection:
        for _ in range(3):
            head = (
                f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            connection.sendall(head.encode() + body[:10])
            time.sleep(0.5)
            connection.sendall(body[10:])
            assert one_answer(connection).startswith(b"HTTP/1.1 200")


def test_others_are_answered_meanwhile(server: Server):
    sent = b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 5_000_000
    threads = [threading.Thread(target=ask, args=(server, sent)) for _ in range(4)]
    for thread in threads:
        thread.start()
    slowest = 0.0
    while any(thread.is_alive() for thread in threads):
        started = time.monotonic()
        assert server.get("/health").status == 200
        slowest = max(slowest, time.monotonic() - started)
    assert slowest < 10
