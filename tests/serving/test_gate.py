"""What every request passes: an id, a key, a line of log that gives nothing away, and an answer whatever happens."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import prometheus_client
import pytest

from mlops.serving.gate import Gate, Notes, respond
from mlops.serving.keys import Doorkeeper, new_key
from mlops.serving.metrics import Metrics
from mlops.serving.problem import Problem, busy

Messages = list[dict[str, Any]]
App = Callable[..., Awaitable[None]]


async def fine(scope: Any, receive: Any, send: Any) -> None:
    await respond(200, b"{}", {"Content-Type": "application/json"}, send)


class Asked:
    """A gate around `app`, what it sent, what it logged and what it counted."""

    def __init__(self, app: App = fine, keys: Path | None = None) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self.lines: list[dict[str, Any]] = []
        self.sent: Messages = []
        metrics = Metrics(self.registry)
        self.gate = Gate(app, Doorkeeper(keys, None), metrics, lambda line: self.lines.append(json.loads(line)))

    def __call__(self, path: str = "/x", method: str = "GET", **headers: str) -> "Asked":
        listed = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": listed, "query_string": b"secret=1"}

        async def send(message: dict[str, Any]) -> None:
            self.sent.append(message)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"body"}

        self.sent.clear()
        asyncio.run(self.gate({**scope, "client": ("10.1.2.3", 5)}, receive, send))
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> Any:
        return json.loads(b"".join(message.get("body", b"") for message in self.sent))


@pytest.mark.parametrize("given", ["a", "A-b_c.9", "x" * 64])
def test_an_id_of_the_callers_own_is_given_back(given: str):
    asked = Asked()(x_request_id=given)
    assert asked.headers[b"x-request-id"] == given.encode()
    assert asked.lines[0]["id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\nb", "a;b", "é", "<script>", '{"a":1}', "a\n"])
def test_an_id_that_could_steer_a_log_is_replaced(given: str):
    asked = Asked()
    found = asked(x_request_id=given).headers[b"x-request-id"].decode()
    assert found != given
    assert len(found) == 32
    assert asked(x_request_id=given).headers[b"x-request-id"].decode() != found


def test_a_line_of_log_tells_what_happened_and_nothing_of_what_was_sent(tmp_path: Path):
    key, line = new_key("alice")
    (tmp_path / "keys").write_text(line)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        notes: Notes = scope["notes"]
        notes.route, notes.model, notes.images = "/models/{name}/predict", "signs", 3
        await fine(scope, receive, send)

    asked = Asked(app, tmp_path / "keys")
    asked("/models/signs/predict", "POST", authorization=f"Bearer {key}", x_secret="file-name.png", cookie="c=1")
    (told,) = asked.lines
    assert told.pop("time") > 1.7e9
    assert told.pop("ms") >= 0
    assert told == {
        "level": "info",
        "event": "request",
        "id": asked.headers[b"x-request-id"].decode(),
        "method": "POST",
        "route": "/models/{name}/predict",
        "status": 200,
        "client": "10.1.2.3",
        "model": "signs",
        "images": 3,
        "key": "alice",
    }


def test_a_refusal_is_a_problem_with_its_headers_and_is_counted():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise busy("come back later", 7.4)

    asked = Asked(app)(x_request_id="mine")
    assert asked.status == 429
    assert asked.headers[b"retry-after"] == b"7"
    assert asked.headers[b"content-type"] == b"application/problem+json"
    assert asked.body == {
        "type": "about:blank",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "come back later",
        "request_id": "mine",
    }
    labels = {"route": "unmatched", "model": "", "status": "429"}
    assert asked.registry.get_sample_value("mlops_requests_total", labels) == 1
    assert asked.registry.get_sample_value("mlops_requests_in_progress") == 0


def test_a_fault_is_answered_with_500_and_its_traceback_goes_to_the_log_alone(caplog: pytest.LogCaptureFixture):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("inner detail")

    with caplog.at_level(logging.ERROR):
        asked = Asked(app)(x_request_id="mine")
    assert asked.status == 500
    assert "inner detail" not in json.dumps(asked.body)
    assert asked.lines[0]["level"] == "error"
    (record,) = caplog.records
    assert record.getMessage() == "request mine fails"
    assert record.exc_info is not None


def test_a_fault_behind_half_an_answer_sends_no_second_one(caplog: pytest.LogCaptureFixture):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    with caplog.at_level(logging.CRITICAL):
        asked = Asked(app)()
    assert [message["type"] for message in asked.sent] == ["http.response.start"]


def test_a_request_that_the_end_of_the_server_cancels_is_told_to_come_again():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise asyncio.CancelledError

    asked = Asked(app)
    with pytest.raises(asyncio.CancelledError):
        asked()
    assert asked.lines[0]["status"] == 503
    labels = {"route": "unmatched", "model": "", "status": "503"}
    assert asked.registry.get_sample_value("mlops_requests_total", labels) == 1
    assert asked.registry.get_sample_value("mlops_requests_in_progress") == 0


def test_connections_are_kept_until_the_server_is_about_to_end():
    asked = Asked()
    assert b"connection" not in asked().headers
    asked.gate.draining = True
    assert asked().headers[b"connection"] == b"close"

    async def refused(scope: Any, receive: Any, send: Any) -> None:
        raise Problem(404, "no")

    asked = Asked(refused)
    asked.gate.draining = True
    assert asked().headers[b"connection"] == b"close"


@pytest.mark.parametrize(
    "path", ["/predict", "/models", "/version", "/v2", "/v2/models/a/infer", "/nowhere", "/health/"]
)
def test_without_its_key_a_request_gets_no_further_than_the_gate(tmp_path: Path, path: str):
    key, line = new_key("alice")
    (tmp_path / "keys").write_text(line)
    reached: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])
        await fine(scope, receive, send)

    asked = Asked(app, tmp_path / "keys")
    asked.gate.direct["/predict"] = app
    for method in ("GET", "POST", "HEAD", "DELETE"):
        assert asked(path, method).status == 401
        assert asked.headers[b"www-authenticate"] == b"Bearer"
    assert reached == []
    assert asked(path, "POST", x_api_key=key).status == 200
    assert reached == [path]


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"])
def test_probes_need_no_key(tmp_path: Path, path: str):
    (tmp_path / "keys").write_text(new_key("alice")[1])
    assert Asked(fine, tmp_path / "keys")(path).status == 200


def test_a_refusal_at_the_gate_has_the_form_of_the_protocol_where_that_was_asked(tmp_path: Path):
    (tmp_path / "keys").write_text(new_key("alice")[1])
    asked = Asked(fine, tmp_path / "keys")
    assert asked("/v2/models/a/infer", "POST").body == {"error": "send a key: Authorization: Bearer KEY"}
    assert asked.headers[b"content-type"] == b"application/json"
    assert asked("/predict", "POST").body["title"] == "Unauthorized"


def test_a_problem_is_short_and_steers_no_terminal():
    problem = Problem(422, "\x1b[31m\n\u202e" + "x" * 10_000)
    assert problem.detail.startswith(r"\x1b[31m\n\u202e")
    assert len(problem.detail) < 600
    json.loads(Problem(422, "half \ud800 a pair").answer("id")[0])
