"""The routes of the server: one FastAPI application over a shelf of models.

Those that predict are plain ASGI: FastAPI's own handling of a request costs some 45 us, a tenth of what reading,
decoding and computing a small image do. What they take and answer is in `openapi.py`, beside FastAPI's own description.
"""

import json
import os
import platform
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast

import onnxruntime
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp

import mlops
from mlops.serving import openapi, page, v2
from mlops.serving.gate import Asgi, Gate, Notes, Receive, Send, refuse, respond
from mlops.serving.keys import Doorkeeper
from mlops.serving.metrics import Metrics
from mlops.serving.problem import Problem, not_ready
from mlops.serving.service import Service, v2_metadata
from mlops.serving.settings import Settings
from mlops.serving.shelf import Shelf, Shelved

Scope = MutableMapping[str, Any]
# Answers a request with bytes of JSON, and headers beside.
Handler = Callable[[Scope, Receive], Awaitable[tuple[bytes, dict[str, str]]]]


class _Plain:
    """An ASGI endpoint: a handler, and the name under which it is counted."""

    def __init__(self, route: str, handler: Handler, *, protocol: bool = False) -> None:
        self._route, self._handler, self._protocol = route, handler, protocol

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        notes: Notes = scope["notes"]
        notes.route, notes.protocol = self._route, self._protocol
        try:
            body, headers = await self._handler(scope, receive)
        except Problem as problem:
            await refuse(problem, notes, send)
        else:
            told = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
            await respond(200, body, told, send)


def build(
    settings: Settings,
    shelf: Shelf,
    doorkeeper: Doorkeeper,
    metrics: Metrics,
    tell: Callable[[str], None] | None = None,
) -> tuple[Asgi, Gate]:
    """The application, and its gate, which is told when the server ends."""
    app = FastAPI(
        title="mlops",
        version=mlops.__version__,
        redoc_url=None,
        # The address in a redirect would be the one that the caller claims.
        redirect_slashes=False,
        description="Names what is on pictures. Errors are RFC 9457: application/problem+json.",
    )
    service = Service(settings, shelf, metrics)
    gate = Gate(app, doorkeeper, metrics, tell)
    _predict_routes(app, service, gate)
    _protocol_routes(app, service, gate)
    _other_routes(app, shelf, gate)
    app.router.routes.extend(page.routes())
    app.openapi = lambda: openapi.describe(app, settings)  # type: ignore[method-assign]

    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Problem, _refused)
    app.add_exception_handler(Exception, _refused)

    if not settings.cors:
        return gate, gate
    # Around the gate: a browser must be able to read its refusals too.
    outermost = CORSMiddleware(
        cast("ASGIApp", gate),
        allow_origins=settings.cors,
        allow_methods=("GET", "POST"),
        allow_headers=("Authorization", "Content-Type", "X-API-Key", "X-Request-ID"),
        expose_headers=("X-Request-ID", "Retry-After"),
    )
    return cast("Asgi", outermost), gate


def _predict_routes(app: FastAPI, service: Service, gate: Gate) -> None:
    def to(name: str | None, field: str) -> Handler:
        async def handle(scope: Scope, receive: Receive) -> tuple[bytes, dict[str, str]]:
            return await service.predict(scope, receive, name, field), {}

        return handle

    async def unknown(scope: Scope, receive: Receive) -> tuple[bytes, dict[str, str]]:  # noqa: ARG001
        raise Problem(404, f"there is no {scope['path_params']['name'][:64]!r}; GET /models lists what there is")

    # Route patterns as the metrics have them: names in paths are not labels.
    asked = [("/predict", "/predict", to(None, "file"))]
    asked += [
        (f"/models/{name}/predict", "/models/{name}/predict", to(name, "file")) for name in service.settings.models
    ]
    asked += [
        (f"/ensembles/{name}/predict", "/ensembles/{name}/predict", to(name, "file"))
        for name in service.settings.ensembles
    ]
    asked += [(path, path, to(alias.to, alias.field)) for path, alias in service.settings.aliases.items()]
    if os.environ.get("MLOPS_SERVE_NOOP"):  # for benchmarks

        async def noop(scope: Scope, receive: Receive) -> tuple[bytes, dict[str, str]]:
            return await service.swallow(scope, receive), {}

        asked.append(("/noop", "/noop", noop))
    for path, route, handler in asked:
        gate.direct[path] = _Plain(route, handler)
        _route(app, "POST", path, gate.direct[path])
    for route in ("/models/{name}/predict", "/ensembles/{name}/predict"):
        _route(app, "POST", route, _Plain(route, unknown))


def _protocol_routes(app: FastAPI, service: Service, gate: Gate) -> None:
    shelf = service.shelf

    def noted(request: Request, route: str) -> None:
        request.scope["notes"].route, request.scope["notes"].protocol = route, True

    @app.get("/v2", tags=["Open Inference Protocol"], summary="What this server can do")
    async def server(request: Request) -> JSONResponse:
        noted(request, "/v2")
        return JSONResponse(v2.server_metadata(mlops.__version__))

    @app.get("/v2/health/live", tags=["Open Inference Protocol"], summary="Whether the process answers")
    async def live(request: Request) -> JSONResponse:
        noted(request, "/v2/health/live")
        return JSONResponse({"live": True})

    @app.get(
        "/v2/health/ready",
        tags=["Open Inference Protocol"],
        summary="Whether every model answers",
        responses=openapi.NOT_READY,
    )
    async def ready(request: Request) -> JSONResponse:
        noted(request, "/v2/health/ready")
        _check_ready(shelf, gate)
        return JSONResponse({"ready": True})

    def about(tail: str, answer: Callable[[Shelved], dict[str, Any]]) -> None:
        async def handle(scope: Scope, receive: Receive) -> tuple[bytes, dict[str, str]]:  # noqa: ARG001
            shelved = shelf.model(scope["path_params"]["name"])
            _check_version(scope, shelved)
            return json.dumps(answer(shelved), ensure_ascii=False).encode(), {}

        for path in (f"/v2/models/{{name}}{tail}", f"/v2/models/{{name}}/versions/{{version}}{tail}"):
            _route(app, "GET", path, _Plain(path, handle, protocol=True))

    about("", v2_metadata)
    about("/ready", lambda shelved: {"name": shelved.name, "ready": True})
    about("/config", lambda shelved: v2.model_config(v2_metadata(shelved), most=service.settings.limits.queue))

    async def infer(scope: Scope, receive: Receive) -> tuple[bytes, dict[str, str]]:
        name = scope["path_params"]["name"]
        if "version" in scope["path_params"]:
            _check_version(scope, shelf.model(name))
        return await service.infer(scope, receive, name)

    for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"):
        _route(app, "POST", path, _Plain(path, infer, protocol=True))


def _check_version(scope: Scope, shelved: Shelved) -> None:
    version = scope["path_params"].get("version", shelved.version)
    if version != shelved.version:
        raise Problem(404, f"model {shelved.name} has no version {version[:64]!r}: {shelved.version} is there")


def _check_ready(shelf: Shelf, gate: Gate) -> None:
    if problems := ["the server is about to end"] if gate.draining else shelf.problems():
        raise not_ready("; ".join(problems))


def _other_routes(app: FastAPI, shelf: Shelf, gate: Gate) -> None:
    def noted(request: Request) -> None:
        request.scope["notes"].route = request.scope["path"]

    @app.get("/health", tags=["health"], summary="Whether the process answers")
    @app.get("/health/live", tags=["health"], summary="Whether the process answers")
    async def live(request: Request) -> JSONResponse:
        noted(request)
        return JSONResponse({"status": "ok"})

    @app.get("/health/ready", tags=["health"], summary="Whether every model answers", responses=openapi.NOT_READY)
    async def ready(request: Request) -> JSONResponse:
        noted(request)
        _check_ready(shelf, gate)
        return JSONResponse({"status": "ready"})

    @app.get("/version", tags=["about"], summary="Versions of this server and what it stands on")
    async def version(request: Request) -> JSONResponse:
        noted(request)
        told = {"version": mlops.__version__, "onnxruntime": onnxruntime.__version__}
        return JSONResponse({**told, "python": platform.python_version()})

    @app.get("/models", tags=["about"], summary="The models and ensembles that may be asked")
    async def models(request: Request) -> JSONResponse:
        noted(request)
        return JSONResponse(shelf.report())

    @app.get("/models/{name}", tags=["about"], summary="One model", responses=openapi.UNKNOWN)
    async def model(request: Request, name: str) -> JSONResponse:
        request.scope["notes"].route = "/models/{name}"
        return JSONResponse(shelf.describe(name))


def _route(app: FastAPI, method: str, path: str, endpoint: Asgi) -> None:
    app.router.routes.append(Route(path, endpoint, methods=[method]))


def _refused(request: Request, error: Exception) -> Response:
    notes: Notes = request.scope["notes"]
    if isinstance(error, Problem):
        problem = error
    elif isinstance(error, HTTPException):
        problem = Problem(error.status_code, _detail(request, error), error.headers)
    else:
        problem = Problem(500, "a fault of this server; its log has it")
    protocol = notes.protocol or request.scope["path"].startswith("/v2/")
    body, headers = problem.answer(notes.request_id, protocol=protocol)
    return Response(body, problem.status, headers)


def _detail(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"no route {request.scope['path'][:100]}; GET /docs shows them"
    if error.status_code == 405:
        return f"{request.method} is not taken here; allowed: {(error.headers or {}).get('Allow', 'GET')}"
    return str(error.detail)
