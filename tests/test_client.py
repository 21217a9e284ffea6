import io
import json
import logging
import pickle
import re
import shutil
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from conftest import Command
from mlops.client import Client, ClientError, Prediction, Refused, ServerError, UnreachableError, transport
from mlops.errors import MlopsError
from samples import ROOT

KEY = "s3cret-key"


class Reply(dict[str, Any]):
    """status, headers, body (JSON or bytes); or `act`, which has the connection for itself."""


class Asked:
    """A request as it came in."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self.method, self.path, self.headers = handler.command, handler.path, handler.headers
        self.connection = handler.client_address
        self.body = handler.rfile.read(int(self.headers.get("Content-Length", 0)))

    @property
    def files(self) -> list[tuple[str, bytes]]:
        """Name (as it stands in the header) and bytes of every part."""
        boundary = self.headers["Content-Type"].partition("boundary=")[2].encode()
        found = []
        for part in self.body.split(b"--" + boundary)[1:-1]:
            head, _, data = part.partition(b"\r\n\r\n")
            name = re.search(rb'name="file"; filename="([^"\r\n]*)"\r\n', head)
            assert name, head
            found.append((name[1].decode(), data.removesuffix(b"\r\n")))
        return found


class Server(ThreadingHTTPServer):
    """A small `mlops serve`: `replies` come first, one a request; then every image is of the class it begins with."""

    daemon_threads = True

    def server_bind(self) -> None:
        # HTTPServer's own asks the name service for this machine's name, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Reply] = []
        self.asked: list[Asked] = []
        self.prefix = ""
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, asked: Asked) -> Reply:
        route, _, query = asked.path.removeprefix(self.prefix).partition("?")
        if route in ("/health", "/health/ready"):
            return Reply(body={"status": "ok"})
        if route == "/version":
            return Reply(body={"version": "0.1.0", "python": "3.12"})
        if asked.headers["Content-Type"] == "application/json":
            rows = json.loads(asked.body)["features"]
            return Reply(body=answer([prediction(None, str(row[0])) for row in rows]))
        if bad := [name for name, data in asked.files if data.startswith(b"bad")]:
            return problem(415, f"{bad[0]}: not an image of a known format")
        if sum(len(data) for _, data in asked.files) > 1000:
            return problem(413, "larger than 1,000 bytes")
        top = int(query.partition("top=")[2] or 1)
        return Reply(body=answer([prediction(name, data.decode()[:1], top) for name, data in asked.files]))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def handle_one(self) -> None:
        asked = Asked(self)
        with self.server.lock:
            self.server.asked.append(asked)
            reply = self.server.replies.pop(0) if self.server.replies else None
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            self.reply(reply or self.server.answer(asked))
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    do_GET = do_POST = handle_one  # noqa: N815

    def reply(self, reply: Reply) -> None:
        if act := reply.get("act"):
            self.close_connection = True
            act(self)
            return
        body = reply.get("body", b"")
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(reply.get("status", 200))
        for name, value in {"Content-Length": len(content), **reply.get("headers", {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def prediction(file: str | None, label: str, top: int = 1) -> dict[str, Any]:
    others = [{"class": f"other {n}", "probability": 0.1 / n} for n in range(1, top)]
    return {"file": file, "class": label, "probability": 0.75, "top": [{"class": label, "probability": 0.75}, *others]}


def answer(predictions: list[dict[str, Any]]) -> dict[str, Any]:
    return {"model": "signs", "version": "1f2e3d4c5b6a", "predictions": predictions, "milliseconds": 3.21}


def problem(status: int, detail: str, **headers: Any) -> Reply:
    told = {"type": "about:blank", "title": "A Title", "status": status, "detail": detail, "request_id": "abc"}
    return Reply(status=status, body=told, headers={"Content-Type": "application/problem+json", **headers})


def hang_up(handler: Handler) -> None:
    handler.connection.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=lambda: made.serve_forever(poll_interval=0.01))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as made:
        yield made


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return sum(self.slept)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(transport, "time", made)
    return made


def test_an_image_may_be_a_path_bytes_or_an_open_file(client: Client, server: Server, tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(b"a1")
    with path.open("rb") as opened:
        found = client.predict([path, str(path), b"b2", bytearray(b"c3"), io.BytesIO(b"d4"), opened])
    assert [(p.file, p.label) for p in found] == [
        (str(path), "a"), (str(path), "a"), (None, "b"), (None, "c"), (None, "d"), (str(path), "a"),
    ]  # fmt: skip
    assert found[0] == Prediction(str(path), "a", 0.75, (("a", 0.75),), "signs", "1f2e3d4c5b6a", 3.21)
    # Of the path, the server learns the name alone.
    assert [name for name, _ in server.asked[0].files] == ["a.png", "a.png", "image-3", "image-4", "image-5", "a.png"]
    with path.open("rb") as opened:
        for single in (path, str(path), b"a1", memoryview(b"a1"), io.BytesIO(b"a1"), opened):
            assert [p.label for p in client.predict(single)] == ["a"]
    assert client.predict([]) == []


def test_models_ensembles_and_top_are_asked_for_by_their_routes(client: Client, server: Server):
    (found,) = client.predict(b"a", top=3)
    assert found.top == (("a", 0.75), ("other 1", 0.1), ("other 2", 0.05))
    client.predict(b"a", model="a b/ü")
    both = {"ensemble": "both", "models": [{"model": "a", "version": "1"}, {"model": "b", "version": "2"}]}
    server.replies.append(Reply(body=both | {"predictions": [prediction(None, "a")], "milliseconds": 1}))
    (found,) = client.predict(b"a", ensemble="both", top=2)
    assert (found.model, found.version) == ("both", "1+2")
    assert [asked.path for asked in server.asked] == [
        "/predict?top=3", "/models/a%20b%2F%C3%BC/predict", "/ensembles/both/predict?top=2",
    ]  # fmt: skip


def test_features_are_sent_in_parts_that_a_server_takes(client: Client, server: Server):
    found = client.features([[n, 0.5] for n in range(300)], model="iris")
    assert [p.label for p in found] == [f"{float(n)}" for n in range(300)]
    assert [len(json.loads(asked.body)["features"]) for asked in server.asked] == [256, 44]
    with pytest.raises(MlopsError, match="must be a finite number"):
        client.features([[float("nan")]])


def test_rows_that_are_too_large_together_are_sent_again_in_halves(client: Client, server: Server):
    server.replies += [problem(413, "too large"), problem(413, "too large")]
    assert [p.label for p in client.features([[n] for n in range(5)])] == [f"{n}.0" for n in range(5)]
    assert [len(json.loads(asked.body)["features"]) for asked in server.asked] == [5, 2, 1, 1, 3]
    server.replies.append(problem(413, "too large"))
    with pytest.raises(ServerError, match="413 A Title: too large"):
        client.features([[1]])


@pytest.mark.parametrize("rows", [[["abc"]], [[10**400]], [[None]], [3], 3])
def test_rows_that_are_no_numbers_are_one_line(client: Client, server: Server, rows: Any):
    with pytest.raises(MlopsError, match=r"^features: must be rows of numbers: .+"):
        client.features(rows)
    assert server.asked == []


def test_what_is_no_image_is_one_line(client: Client, server: Server):
    said = "is no image; give a path, bytes, or a file opened with mode rb"
    with pytest.raises(MlopsError, match=f"^image-1: int {said}$"):
        client.predict([3])  # type: ignore[list-item]
    with pytest.raises(MlopsError, match=f"^images: NoneType {said}$"):
        client.predict(None)  # type: ignore[arg-type]
    good, bad = client.each([b"a", 3])  # type: ignore[list-item]
    assert isinstance(good, Prediction)
    assert isinstance(bad, Refused)
    assert bad.reason == f"int {said}"


def test_what_a_server_has_and_how_it_is(client: Client, server: Server):
    assert client.version() == {"version": "0.1.0", "python": "3.12"}
    assert client.health()
    assert client.ready()
    server.replies.append(problem(503, "no model", **{"Retry-After": 1}))
    assert not client.ready()
    model = {"name": "signs", "version": "1f", "kind": "images", "classes": ["a", "b"], "ready": True, "refused": None}
    told = {"default": "signs", "models": [model], "ensembles": [{"name": "both", "members": {"a": 0.5, "b": 0.5}}]}
    server.replies.append(Reply(body=told))
    served = client.models()
    assert served.default == "signs"
    assert served.models[0].classes == ("a", "b")
    assert served.ensembles == {"both": {"a": 0.5, "b": 0.5}}
    server.replies.append(Reply(status=404))
    with pytest.raises(ServerError, match="404 Not Found"):
        client.health()
    with Client("http://127.0.0.1:1") as nobody:
        assert not nobody.health()


def test_what_may_pass_is_tried_again(client: Client, server: Server, clock: Clock):
    server.replies += [problem(503, "no model is ready"), Reply(act=hang_up), Reply(status=502), problem(429, "full")]
    assert client.predict(b"a")[0].label == "a"
    assert len(server.asked) == 5
    # The waits are drawn from 0 to a limit that doubles.
    assert all(0 <= wait <= limit for wait, limit in zip(clock.slept, (0.25, 0.5, 1, 2), strict=True))
    assert len({asked.body for asked in server.asked}) == 1


def test_a_wait_that_the_server_asks_for_is_kept(client: Client, server: Server, clock: Clock):
    server.replies += [problem(429, "full", **{"Retry-After": 7}), problem(503, "starting", **{"Retry-After": "soon"})]
    client.predict(b"a")
    assert 7 <= clock.slept[0] <= 7.25
    assert clock.slept[1] <= 0.5


def test_no_wait_goes_beyond_the_time_that_there_is(server: Server, clock: Clock):
    with Client(server.url, timeout=10, retries=99) as client:
        server.replies += [problem(503, "starting", **{"Retry-After": 4})] * 9
        with pytest.raises(ServerError, match="503 A Title: starting"):
            client.predict(b"a")
        assert len(server.asked) == 3
        assert sum(clock.slept) < 10
        server.replies = [problem(429, "come back tomorrow", **{"Retry-After": 86_400})]
        with pytest.raises(ServerError, match="come back tomorrow"):
            client.predict(b"a")
        assert sum(clock.slept) < 10


@pytest.mark.parametrize("status", [400, 401, 404, 405, 408, 413, 415, 422, 500, 504])
def test_other_refusals_are_told_at_once(client: Client, server: Server, clock: Clock, status: int):
    server.replies.append(problem(status, "a.png: damaged"))
    with pytest.raises(ServerError) as told:
        client.predict(b"a")
    assert len(server.asked) == 1
    assert clock.slept == []
    error = told.value
    assert (error.status, error.title, error.detail, error.request_id) == (status, "A Title", "a.png: damaged", "abc")
    assert str(error) == f"{server.url}/predict: {status} A Title: a.png: damaged (request abc)"
    assert isinstance(error, ClientError)
    assert isinstance(error, MlopsError)
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


def test_nobody_there_is_said_in_one_line_after_all_retries(clock: Clock):
    with Client("http://127.0.0.1:1") as client, pytest.raises(UnreachableError) as told:
        client.predict(b"a")
    assert len(clock.slept) == 4
    said = "http://127.0.0.1:1/predict: no connection: Connection refused; is mlops serve running there?"
    assert str(told.value) == said


def test_a_server_that_vanishes_in_mid_answer_is_asked_again(server: Server, clock: Clock):
    def half(handler: Handler) -> None:
        handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"model": "si')
        handler.connection.close()

    def half_chunk(handler: Handler) -> None:
        handler.wfile.write(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\n{"model": "si')
        handler.connection.close()

    with Client(server.url, concurrency=1) as client:
        server.replies += [Reply(act=half), Reply(act=half_chunk)]
        assert client.predict(b"a")[0].label == "a"
        server.replies += [Reply(act=half)] * 5
        with pytest.raises(UnreachableError, match="/predict: it broke off: "):
            client.predict(b"a")
        # What broke does not hold the one connection that there is.
        assert client.predict(b"a")[0].label == "a"


def test_time_is_over_for_servers_that_are_silent_or_send_a_byte_now_and_then(server: Server):
    def drip(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(200):
            time.sleep(0.05)
            handler.wfile.write(b" ")

    with Client(server.url, timeout=0.3, concurrency=1) as client:
        for act in (drip, lambda handler: time.sleep(10)):
            server.replies.append(Reply(act=act))
            start = time.monotonic()
            with pytest.raises(UnreachableError, match=r"no whole answer within 0\.3 s"):
                client.predict(b"a")
            assert time.monotonic() - start < 5


GOOD = prediction(None, "a")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>", b"\xff", b"[" * 100_000, b"null", b"[]", b'{"predictions": []}', b"9" * 5000,
        answer([]), answer([GOOD, GOOD]), answer([GOOD | {"probability": 2}]), answer([GOOD | {"class": None}]),
        answer([GOOD | {"probability": float("nan")}]), answer([GOOD | {"top": 3}]), answer([GOOD | {"top": [1]}]),
        {**answer([GOOD]), "milliseconds": None}, {**answer([GOOD]), "version": 3},
    ],
)  # fmt: skip
def test_an_answer_that_is_none_of_ours_is_told_and_not_asked_for_again(client: Client, server: Server, body: Any):
    server.replies.append(Reply(body=body))
    with pytest.raises(ServerError, match="/predict: 200 OK: but not the answer of an mlops serve; is the URL its own"):
        client.predict(b"a")
    assert len(server.asked) == 1


def test_an_answer_without_end_is_cut(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transport, "MOST_ANSWER", 200_000)
    sent = []

    def endless(status: bytes) -> Callable[[Handler], None]:
        def act(handler: Handler) -> None:
            handler.wfile.write(b"HTTP/1.1 " + status + b" X\r\n\r\n")
            try:
                while True:
                    handler.wfile.write(b"[" * 65_536)
                    sent.append(1)
            except OSError:
                pass

        return act

    with Client(server.url, concurrency=1) as client:
        server.replies += [Reply(act=endless(b"200")), Reply(act=endless(b"404"))]
        with pytest.raises(ServerError, match="not the answer of an mlops serve"):
            client.predict(b"a")
        with pytest.raises(ServerError, match=r"404 Not Found$"):
            client.predict(b"a")
        assert client.predict(b"a")[0].label == "a"
    assert len(sent) < 500


def test_errors_that_are_no_problem_documents_are_told_by_their_status(client: Client, server: Server):
    server.replies += [Reply(status=413, body=b"<html>nginx</html>"), Reply(status=599), Reply(status=404, body=[1])]
    for said in ("413 Request Entity Too Large|413 Content Too Large", "599 is no known status", "404 Not Found"):
        with pytest.raises(ServerError, match=said):
            client.predict(b"a")


def test_a_redirect_is_not_followed(server: Server):
    server.replies.append(Reply(status=308, headers={"Location": "https://example.org/"}))
    with (
        Client(server.url, key=KEY) as client,
        pytest.raises(ServerError, match=r"it has moved to https://example\.org/"),
    ):
        client.predict(b"a")
    assert len(server.asked) == 1


def test_connections_are_kept(client: Client, server: Server):
    for _ in range(5):
        client.predict(b"a")
    assert len({asked.connection for asked in server.asked}) == 1


def test_a_connection_that_was_closed_meanwhile_is_made_anew(client: Client, server: Server, clock: Clock):
    server.replies.append(Reply(body=answer([prediction(None, "a")]), headers={"Connection": "close"}))
    client.predict(b"a")
    assert client.predict(b"a")[0].label == "a"


def test_many_images_go_in_parts_several_at_once_and_come_in_order(server: Server):
    images = [f"{chr(97 + n % 26)}".encode() * 40 for n in range(100)]
    with Client(server.url, concurrency=3, files=8, size=200) as client:
        found = client.predict(images)
    assert [p.label for p in found] == [chr(97 + n % 26) for n in range(100)]
    assert {len(asked.files) for asked in server.asked} == {5}
    assert server.most_at_once <= 3
    assert len({asked.connection for asked in server.asked}) <= 3
    server.asked.clear()
    with Client(server.url, files=2, size=200) as client:
        client.predict([b"a", b"b", b"c", b"d" * 300, b"e"])
    assert sorted(len(asked.files) for asked in server.asked) == [1, 1, 1, 2]


def test_images_stay_on_the_disk_until_their_turn(server: Server):
    taken = []

    def endless() -> Iterator[bytes]:
        while True:
            taken.append(1)
            yield b"a"

    with Client(server.url, concurrency=2, files=4) as client:
        answers = client.each(endless())
        assert [next(answers).label for _ in range(8)] == ["a"] * 8
        answers.close()
    assert len(taken) < 40


def test_threads_may_share_a_client(server: Server):
    with Client(server.url, concurrency=2) as client, ThreadPoolExecutor(8) as threads:
        found = [*threads.map(lambda n: client.predict(str(n).encode())[0].label, [*range(10)] * 5)]
    assert found == [str(n) for n in range(10)] * 5
    assert len({asked.connection for asked in server.asked}) <= 2


def test_what_is_too_large_together_goes_in_smaller_parts(client: Client, server: Server):
    assert [p.label for p in client.predict([b"a" * 400, b"b" * 400, b"c" * 400])] == ["a", "b", "c"]
    with pytest.raises(ServerError, match="413 A Title: larger than 1,000 bytes"):
        client.predict([b"a", b"b" * 1001])


def test_each_finds_the_bad_images_among_many(client: Client, server: Server, tmp_path: Path):
    bad = tmp_path / "b.png"
    bad.write_bytes(b"bad")
    found = [*client.each([b"a", bad, b"c", tmp_path / "none.png", b"e", b"bad too", io.StringIO("f")])]
    assert [f.label if isinstance(f, Prediction) else f.reason for f in found] == [
        "a", "not an image of a known format", "c", "no such file", "e", "not an image of a known format",
        "is open for reading text; open it with mode rb",
    ]  # fmt: skip
    assert isinstance(found[1], Refused)
    assert found[1].file == str(bad)
    with pytest.raises(ServerError, match=r"415 A Title: b\.png: not an image"):
        client.predict([b"a", bad, b"c"])
    with pytest.raises(MlopsError, match=r"none\.png: no such file"):
        client.predict(tmp_path / "none.png")
    with pytest.raises(MlopsError, match=f"^{re.escape(str(tmp_path))}: Is a directory$"):
        client.predict(tmp_path)
    # One that concerns all of them ends it.
    server.replies.append(problem(401, "no such key"))
    with pytest.raises(ServerError, match="401"):
        next(client.each([b"a", b"b"]))


@pytest.mark.parametrize(
    ("name", "arrives"),
    [
        ('a"b.png', "a%22b.png"),
        ("a\r\nX-Evil: 1\r\n\r\n.png", "a%0D%0AX-Evil: 1%0D%0A%0D%0A.png"),
        ("Straßenschild 猫 🛑.png", "Straßenschild 猫 🛑.png"),
        ("a\\.png\\", "a\\.png\\"),
        ("half \udcff.png", "half ?.png"),
        ("a; filename=b.png", "a; filename=b.png"),
    ],
)
def test_names_arrive_as_browsers_send_them(client: Client, server: Server, name: str, arrives: str):
    file = io.BytesIO(b"a")
    file.name = f"/home/me/{name}"
    assert client.predict(file)[0].file == file.name
    assert server.asked[0].files == [(arrives, b"a")]


def test_a_real_parser_reads_what_is_sent(client: Client, server: Server):
    from python_multipart.multipart import FormParser

    contents = [bytes(range(256)) * 3, b"\r\n--", b""]
    server.replies.append(Reply(body=answer([prediction(None, "a")] * 3)))
    client.predict(contents)
    found: list[Any] = []
    boundary = server.asked[0].headers["Content-Type"].partition("boundary=")[2]
    parser = FormParser("multipart/form-data", None, found.append, boundary=boundary)
    parser.write(server.asked[0].body)
    parser.finalize()
    for file, content in zip(found, contents, strict=True):
        file.file_object.seek(0)
        assert (file.field_name, file.file_object.read()) == (b"file", content)
        file.close()


def test_the_key_is_sent_and_never_shown(server: Server, caplog: pytest.LogCaptureFixture, clock: Clock):
    caplog.set_level(logging.DEBUG)
    with Client(server.url, key=KEY) as client:
        server.replies += [problem(503, f"{KEY} is early"), problem(401, f"{KEY} is no key", **{"X-Request-ID": KEY})]
        with pytest.raises(ServerError) as told:
            client.predict(b"a")
        shown = [repr(client), str(client), repr(told.value), str(vars(told.value)), caplog.text]
    assert server.asked[0].headers["Authorization"] == f"Bearer {KEY}"
    assert "*** is no key" in shown[3]
    assert "again in" in caplog.text
    assert KEY not in "".join(shown)
    for bad in ("", "a b", f"{KEY}\n", f"{KEY}\r\nX: 1", f"{KEY}ü"):
        with pytest.raises(MlopsError, match=r"^the API key is empty, or holds spaces") as refused:
            Client(server.url, key=bad)
        assert KEY not in str(refused.value)


@pytest.mark.parametrize("end", ["", "/", "//", "/signs", "/signs/", "/a/b%20c/"])
def test_a_server_may_be_below_a_path(server: Server, end: str):
    server.prefix = end.rstrip("/")
    with Client(server.url + end) as client:
        client.predict(b"a")
        assert client.version()["version"] == "0.1.0"
    assert [asked.path for asked in server.asked] == [f"{server.prefix}/predict", f"{server.prefix}/version"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000", "url=localhost:8000: must be http://HOST:PORT or https://HOST"),
        ("", "url=: must be http://HOST:PORT"),
        ("ftp://a", "url=ftp://a: must be http"),
        ("http://", "url=http://: must be http"),
        ("http://a:99999", "is no address of a server: Port out of range"),
        ("http://a:b", "is no address of a server"),
        ("http://[::1", "is no address of a server"),
        ("http://a b/", "url=http://a b/: is no address of a server|no such host"),
        ("http://me:s3cret@a/", "url of a: holds a name or a password"),
        ("http://a/?key=1", "must end before"),
        ("http://" + "a" * 70, "is no address of a server|no such host"),
    ],
)
def test_a_wrong_url_is_told_in_one_line(url: str, said: str):
    with pytest.raises(MlopsError, match=said) as told:
        Client(url).predict(b"a")
    assert "s3cret" not in str(told.value)
    assert "\n" not in str(told.value)


def test_arguments_that_cannot_be_are_refused(client: Client, server: Server):
    for change in ({"timeout": 0}, {"timeout": float("inf")}, {"retries": -1}, {"concurrency": 0}, {"files": 0}):
        with pytest.raises(MlopsError, match=f"{next(iter(change))}=.*: must be"):
            Client(server.url, **change)
    for asked in ({"top": 0}, {"top": 1001}, {"model": ".."}, {"model": ""}, {"model": "a", "ensemble": "b"}):
        with pytest.raises(MlopsError, match=f"{next(iter(asked))}="):
            client.predict(b"a", **asked)
    assert server.asked == []


def test_certificates_are_checked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    made = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run(
        ["openssl", *made.split(), "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    monkeypatch.setattr(server, "handle_error", lambda *_: None)
    with Client(server.url.replace("http://127.0.0.1", "https://localhost")) as client:
        with pytest.raises(UnreachableError, match=r"no secure connection: .*WRONG_VERSION_NUMBER"):
            client.predict(b"a")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with pytest.raises(UnreachableError, match=r"no secure connection: .*certificate verify failed"):
            client.predict(b"a")
        assert clock.slept == []
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    with Client(server.url.replace("http://127.0.0.1", "https://localhost")) as client:
        assert client.predict(b"a")[0].label == "a"
    with (
        Client(server.url.replace("http://", "https://")) as client,
        pytest.raises(UnreachableError, match="IP address mismatch"),
    ):
        client.predict(b"a")


def test_it_imports_neither_torch_nor_numpy():
    code = "import sys, mlops.client; print([m for m in ('torch', 'numpy', 'PIL', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def folder(workplace: Path) -> Path:
    """`new/a.png`, `new/deep/b.jpg` and what is no image by its name."""
    (workplace / "new" / "deep").mkdir(parents=True)
    for name, data in (("a.png", b"a"), ("deep/b.jpg", b"b"), ("notes.txt", b"x"), (".c.png", b"c")):
        (workplace / "new" / name).write_bytes(data)
    return workplace


def test_mlops_predict_asks_a_server(mlops_command: Command, server: Server, folder: Path):
    (folder / "d.png").write_bytes(b"d")
    table = mlops_command("predict", "--url", server.url, "d.png", "new")
    assert table.code == 0
    assert "Predictions" in table.out
    printed = mlops_command("predict", "d.png", "new", "--csv", "-", "--url", server.url + "/")
    assert printed.out == "path,label,probability\nd.png,d,0.750000\nnew/a.png,a,0.750000\nnew/deep/b.jpg,b,0.750000\n"
    assert [len(asked.files) for asked in server.asked] == [3, 3]
    mlops_command("predict", "--url", server.url, "--model", "signs", "d.png", "--csv", "table.csv")
    assert server.asked[-1].path == "/models/signs/predict"
    assert (folder / "table.csv").read_text() == "path,label,probability\nd.png,d,0.750000\n"


def test_mlops_predict_lists_what_the_server_or_the_disk_refuses(mlops_command: Command, server: Server, folder: Path):
    (folder / "new" / "bad.png").write_bytes(b"bad")
    (folder / "empty").mkdir()
    done = mlops_command("predict", "--url", server.url, "none.png", "new", "empty", "--csv", "-")
    assert done.code == 2
    assert [line.split(",")[0] for line in done.out.splitlines()[1:]] == ["new/a.png", "new/deep/b.jpg"]
    assert done.errors == [
        "none.png: no such file", "new/bad.png: not an image of a known format", "empty: folder without images",
    ]  # fmt: skip


def test_mlops_predict_takes_the_key_from_a_file_or_the_environment(
    mlops_command: Command, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MLOPS_API_KEY", raising=False)
    (folder / "key").write_text(f"{KEY}\n")
    words = ["predict", "--url", server.url, "new/a.png"]
    mlops_command(*words)
    mlops_command(*words, "--key-file", "key")
    monkeypatch.setenv("MLOPS_API_KEY", "of-the-environment")
    mlops_command(*words)
    mlops_command(*words, "--key-file", "key")
    assert [asked.headers["Authorization"] for asked in server.asked] == [
        None, f"Bearer {KEY}", "Bearer of-the-environment", f"Bearer {KEY}",
    ]  # fmt: skip
    (folder / "two").write_text(f"{KEY}\n{KEY}\n")
    for name, said in (("two", "must hold one key on one line"), ("none", "cannot be read: No such file"), ("new", "")):
        done = mlops_command(*words, "--key-file", name)
        assert done.code == 2
        assert done.errors[0].startswith(f"--key-file={name}: {said}")
        assert KEY not in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "name a model and an image: mlops predict MODEL IMAGE..., or mlops predict --url URL IMAGE..."),
        ("x.pth", "x.pth: name an image or a folder as well: mlops predict MODEL IMAGE..."),
        ("--url http://a", "--url=http://a: name an image or a folder as well"),
        ("--url http://a x.onnx new", "x.onnx: leave it out: with --url the server has the models"),
        ("--url http://a --allow my.Net new", "--allow: is for checkpoints on this machine"),
        ("--model signs x.pth new", "--model: is for a server; give its --url"),
        ("--key-file key x.pth new", "--key-file: is for a server; give its --url"),
        ("http://a new", "http://a: is a server, not a model; put --url before it"),
        ("--url a new", "url=a: must be http://HOST:PORT"),
    ],
)
def test_mlops_predict_tells_what_does_not_go_together(mlops_command: Command, folder: Path, words: str, said: str):
    done = mlops_command("predict", *words.split())
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert done.errors[0].startswith(said)


def test_mlops_predict_says_in_one_line_what_a_server_says(mlops_command: Command, server: Server, folder: Path):
    server.replies.append(problem(404, "no such model: x; known: signs"))
    done = mlops_command("predict", "--url", server.url, "--model", "x", "new")
    assert (done.code, done.out) == (2, "")
    said = f"{server.url}/models/x/predict: 404 A Title: no such model: x; known: signs (request abc)"
    assert done.errors == [said]


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_the_load_test_counts_wrong_answers(server: Server, workplace: Path, fails: bool):
    (workplace / "pictures").mkdir()
    (workplace / "pictures" / "a.png").write_bytes(b"a")
    if fails:
        (workplace / "pictures" / "b.png").write_bytes(b"bad")
    words = "--headless -u 3 -r 3 -t 2s --html load.html --only-summary"
    done = subprocess.run(
        [sys.executable, "-m", "locust", "-f", ROOT / "tests" / "performance" / "locustfile.py", *words.split()],
        env={"TARGET_HOST": server.url, "IMAGES_FOLDER": "pictures", "WAIT_SECONDS": "0.05", "MLOPS_API_KEY": KEY},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "415: b.png: not an image" in done.stderr) == ((1, True) if fails else (0, False)), (
        done.stderr
    )
    assert "/predict (5 images)" in (workplace / "load.html").read_text()
    assert {asked.headers["Authorization"] for asked in server.asked if asked.method == "POST"} == {f"Bearer {KEY}"}
