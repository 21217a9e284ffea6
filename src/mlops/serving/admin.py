"""The other port: metrics of all workers together, and administration. It has no keys: no public network may see it."""

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from mlops.errors import MlopsError, one_line

# A reload waits for every worker to have loaded the model and warmed it up.
RELOAD_SECONDS = 120.0


class Administered(Protocol):
    """What the supervisor shows and does."""

    def health(self) -> dict[str, Any]:
        """The workers, and whether all of them are ready."""

    def models(self) -> list[dict[str, Any]]:
        """Each model's file, and its state in each worker."""

    def reload(self, name: str, seconds: float) -> dict[str, Any] | None:
        """Look at the file of a model and load it; its state then, or None where there is no such model."""

    def pids(self) -> dict[str, int]:
        """The processes, by what to call them."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # The library's own asks the network for the name of the address, which may take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()


class _Quiet(WSGIRequestHandler):
    timeout = 30

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that it has
        pass


def start(host: str, port: int, folder: Path, administered: Administered) -> int:
    """Answer there in threads of their own, of the counts that workers keep in `folder`; returns the port.

    Raises:
        MlopsError: the address is taken, or none of this machine's.
    """
    app = _application(folder, administered)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        kind: type[_Server] = type("_Server", (_Server,), {"address_family": family})
        server = make_server(host, port, app, server_class=kind, handler_class=_Quiet)
    except (OSError, OverflowError, UnicodeError) as error:
        raise MlopsError(
            f"--admin-host={host} --admin-port={port}: cannot listen there: {one_line(error)}; choose another"
        ) from error
    threading.Thread(target=server.serve_forever, name="admin", daemon=True).start()
    return int(server.server_port)


def _application(folder: Path, administered: Administered) -> Callable[..., Iterable[bytes]]:
    from prometheus_client import CollectorRegistry, make_wsgi_app
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    registry.register(_Processes(administered))
    metrics = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        if path == "/metrics" and method == "GET":
            answer: Iterable[bytes] = metrics(environ, start_response)
            return answer
        status, told = _answer(method, path, administered)
        body = json.dumps(told, ensure_ascii=False).encode()
        kind = "application/json" if status == 200 else "application/problem+json"
        phrase = HTTPStatus(status).phrase
        start_response(f"{status} {phrase}", [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]

    return application


def _answer(method: str, path: str, administered: Administered) -> tuple[int, dict[str, Any]]:
    if path == "/health" and method == "GET":
        told = administered.health()
        return (200, told) if told["ready"] else (503, _problem(503, told["reason"]) | told)
    if path == "/models" and method == "GET":
        return 200, {"models": administered.models()}
    if path.startswith("/models/") and path.endswith("/reload") and method == "POST":
        name = path.removeprefix("/models/").removesuffix("/reload")
        if (state := administered.reload(name, RELOAD_SECONDS)) is None:
            return 404, _problem(404, f"no model {name[:64]!r}")
        return (200, state) if not state["refused"] else (409, _problem(409, state["refused"]) | state)
    return 404, _problem(404, "there are GET /metrics, /health, /models and POST /models/NAME/reload")


def _problem(status: int, detail: str) -> dict[str, Any]:
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}


class _Processes:
    """What the system says of the processes: Prometheus' own process metrics, one for each."""

    def __init__(self, administered: Administered) -> None:
        self._administered = administered

    def collect(self) -> Iterator[Any]:
        """Metric families as Prometheus names them, with the label `process`."""
        from prometheus_client import ProcessCollector
        from prometheus_client.metrics_core import Metric

        families: dict[str, Metric] = {}
        for name, pid in self._administered.pids().items():
            for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    known.add_sample(sample.name, {**sample.labels, "process": name}, sample.value)
        yield from families.values()
