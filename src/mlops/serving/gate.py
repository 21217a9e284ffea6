"""The outermost layer of the server: request ids, keys, refusals as problems, counts, and a line of log a request."""

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from mlops.serving import page
from mlops.serving.keys import Doorkeeper
from mlops.serving.metrics import Metrics
from mlops.serving.problem import Problem, not_ready

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# Whoever asks for these may have no key: probes, and people who read how to ask.
OPEN = frozenset({"/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"})
_READ = frozenset({"/docs", "/openapi.json"}) | page.PATHS


@dataclass(slots=True)
class Notes:
    """What the layers tell each other of one request; in the ASGI scope as `notes`."""

    request_id: str
    started: float
    route: str = "unmatched"
    model: str = ""
    images: int = 0
    key: str | None = None
    # The Open Inference Protocol has an error of its own.
    protocol: bool = False


class Gate:
    """An ASGI application around another."""

    def __init__(self, app: Asgi, doorkeeper: Doorkeeper, metrics: Metrics, tell: Callable[[str], None] | None) -> None:
        """`tell` takes the line of log of each request; None where they are not wanted."""
        self._app, self._doorkeeper, self._metrics, self._tell = app, doorkeeper, metrics, tell
        # What is asked most by POST, by path: looked up here instead of matched with every route's pattern.
        self.direct: dict[str, Asgi] = {}
        # Once set, connections are closed behind their answers, and the server is not ready.
        self.draining = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request, whatever becomes of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # uvicorn, which has the other one, leaves the body out
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _ID.fullmatch(given) else secrets.token_hex(16)
        notes = Notes(request_id, time.perf_counter())
        scope["notes"], scope["headers_by_name"] = notes, headers
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                if self.draining:
                    own.append((b"connection", b"close"))
                message["headers"] = own
            await send(message)

        self._metrics.began()
        try:
            # A browser asks without a key whether it may ask with one.
            if scope["path"] not in OPEN and scope["path"] not in _READ and scope["method"] != "OPTIONS":
                notes.key = self._doorkeeper.admit(headers)
            direct = self.direct.get(scope["path"]) if scope["method"] == "POST" else None
            await (direct or self._app)(scope, receive, answer)
        except asyncio.CancelledError:  # the server ends, and this took too long
            if not status:
                await refuse(not_ready("the server ends; send it again"), notes, answer)
            raise
        except Problem as problem:
            notes.protocol = notes.protocol or scope["path"].startswith("/v2/")
            await refuse(problem, notes, answer)
        except Exception:
            log.exception(f"request {request_id} fails")
            if not status:  # else half of another answer has been sent
                await refuse(Problem(500, "a fault of this server; its log has it"), notes, answer)
        finally:
            seconds = time.perf_counter() - notes.started
            self._metrics.ended(notes.route, notes.model, status or 499, seconds)
            if self._tell is not None:
                self._tell(_line(scope, notes, status or 499, seconds))


async def respond(status: int, body: bytes, headers: Mapping[str, str], send: Send) -> None:
    """A whole answer."""
    lines = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


async def refuse(problem: Problem, notes: Notes, send: Send) -> None:
    """Answer with a problem."""
    body, headers = problem.answer(notes.request_id, protocol=notes.protocol)
    await respond(problem.status, body, headers, send)


def _line(scope: Mapping[str, Any], notes: Notes, status: int, seconds: float) -> str:
    """JSON; neither images nor names of files nor addresses' queries are in it."""
    client = scope.get("client")
    told = {
        "time": round(time.time(), 3),
        "level": "info" if status < 500 else "error",
        "event": "request",
        "id": notes.request_id,
        "method": scope["method"],
        "route": notes.route,
        "status": status,
        "ms": round(1000 * seconds, 2),
        "client": client[0] if client else None,
    }
    if notes.model:
        told |= {"model": notes.model, "images": notes.images}
    if notes.key:
        told["key"] = notes.key
    return json.dumps(told)
