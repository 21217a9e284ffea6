"""The OpenAPI description of routes that FastAPI does not see through."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from mlops.serving.gate import OPEN
from mlops.serving.settings import Settings


def _object(must: dict[str, Any], may: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object with all the keys of `must`, and perhaps some of `may`."""
    return {"type": "object", "required": [*must], "properties": {**must, **(may or {})}}


def _list(items: dict[str, Any], least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


_TEXT, _FLAG, _ANY = {"type": "string"}, {"type": "boolean"}, {"type": "object"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_COUNT = {"type": "integer", "minimum": 0}
_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_SCHEMAS = {
    "Problem": _object(
        {
            "type": _TEXT,
            "title": _TEXT,
            "status": {"type": "integer"},
            "detail": {**_TEXT, "description": "What is wrong, and what to do"},
            "request_id": _TEXT,
        }
    ),
    "ProtocolError": _object({"error": _TEXT}),
    "Choice": _object({"class": _TEXT, "probability": _PROBABILITY}),
    "Prediction": _object(
        {
            "file": {**_TEXT_OR_NULL, "description": "Its name in the form; null without one"},
            "class": _TEXT,
            "probability": _PROBABILITY,
            "top": _list(_ref("Choice")),
        }
    ),
    "Answer": _object(
        {"predictions": _list(_ref("Prediction"), 1), "milliseconds": {"type": "number", "minimum": 0}},
        {
            "model": _TEXT,
            "version": {**_TEXT, "description": "The beginning of the SHA-256 of the model's file"},
            "ensemble": _TEXT,
            "models": _list(_object({"model": _TEXT, "version": _TEXT})),
        },
    ),
    "Model": {
        **_object(
            {
                "name": _TEXT,
                "ready": _FLAG,
                "refused": {**_TEXT_OR_NULL, "description": "Why the file that is there now is not in use"},
            },
            {
                "version": _TEXT,
                "sha256": {**_TEXT, "pattern": "^[0-9a-f]{64}$"},
                "kind": {"enum": ["images", "features"]},
                "classes": _list(_TEXT),
                "input": _ANY,
                "waiting": {**_COUNT, "description": "Images that wait in front of it"},
                "checkpoint": _TEXT_OR_NULL,
                "metrics": {"type": ["object", "null"]},
                "data": {"type": ["object", "null"]},
                "created": _TEXT_OR_NULL,
            },
        ),
        "description": "Of one that has not been loaded yet, only name, ready and refused are there",
    },
    "Models": _object(
        {
            "default": _TEXT_OR_NULL,
            "models": _list(_ref("Model")),
            "ensembles": _list(
                _object({"name": _TEXT, "members": {"type": "object", "additionalProperties": _PROBABILITY}})
            ),
        }
    ),
}
# What FastAPI's own routes answer with 200.
_ANSWERS = {
    "/health": _object({"status": _TEXT}),
    "/health/live": _object({"status": _TEXT}),
    "/health/ready": _object({"status": _TEXT}),
    "/version": _object({"version": _TEXT, "onnxruntime": _TEXT, "python": _TEXT}),
    "/models": _ref("Models"),
    "/models/{name}": _ref("Model"),
    "/v2": _object({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)}),
    "/v2/health/live": _object({"live": _FLAG}),
    "/v2/health/ready": _object({"ready": _FLAG}),
}
_REFUSALS = {
    400: "A broken form or JSON",
    401: "No key, or an unknown one",
    404: "No such model",
    408: "The body came too slowly",
    413: "Too many bytes, pixels or files",
    415: "Not a type or a format that is taken",
    422: "A damaged or missing image, or a bad parameter",
    429: "The queue is full, or the key has asked too often: see Retry-After",
    503: "No model is ready",
    504: "No answer in time",
}


def _refusal(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/problem+json": {"schema": _ref("Problem")}}}


def _responses(description: str, content: dict[str, Any], refusals: Iterable[int] = _REFUSALS) -> dict[str, Any]:
    told = {"200": {"description": description, "content": content}}
    return {**told, **{str(status): _refusal(_REFUSALS[status]) for status in refusals}}


NOT_READY: dict[int | str, dict[str, Any]] = {503: _refusal("Not every model answers, and why")}
UNKNOWN: dict[int | str, dict[str, Any]] = {404: _refusal("No such model")}


def describe(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """The whole description; made once."""
    if app.openapi_schema is None:
        told = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        paths = told.setdefault("paths", {})
        for path, schema in _ANSWERS.items():
            paths[path]["get"]["responses"]["200"]["content"] = _json(schema)
        paths |= _asked(settings) | _protocol(settings)
        components = told.setdefault("components", {})
        components.setdefault("schemas", {}).update(_SCHEMAS)
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        # The empty one: servers without keys ask for none.
        told["security"] = [{}, {"bearer": []}, {"header": []}]
        for path, operations in paths.items():
            for operation in operations.values():
                _complete(path, operation)
        app.openapi_schema = told
    return app.openapi_schema


def _complete(path: str, operation: dict[str, Any]) -> None:
    """What is true of every route: keys, the error of the protocol, headers."""
    responses = operation["responses"]
    # FastAPI's own, for parameters that are not as declared: a name in a path is always text.
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    if path in OPEN:
        operation["security"] = []
    else:
        for status in (401, 429):
            responses.setdefault(str(status), _refusal(_REFUSALS[status]))
    for status, response in responses.items():
        if status != "200" and path.startswith("/v2/"):
            response["content"] = _json(_ref("ProtocolError"))
        headers = response["headers"] = {"X-Request-ID": {"required": True, "schema": _TEXT}}
        if status in {"429", "503"}:
            headers["Retry-After"] = {"required": True, "schema": {"type": "integer", "minimum": 1}}
        if status == "401":
            headers["WWW-Authenticate"] = {"required": True, "schema": _TEXT}


def _asked(settings: Settings) -> dict[str, Any]:
    """The routes that predict."""
    told = {"/predict": _predict("Ask the default model", "predict", "file")}
    if settings.models:
        told["/models/{name}/predict"] = _predict("Ask a model", "predict_model", "file", _name(settings.models))
    if settings.ensembles:
        path = "/ensembles/{name}/predict"
        told[path] = _predict("Ask an ensemble", "predict_ensemble", "file", _name(settings.ensembles))
    for number, (path, alias) in enumerate(settings.aliases.items()):
        told[path] = _predict(f"Ask {alias.to}", f"alias_{number}", alias.field)
    return told


def _name(known: Iterable[str]) -> dict[str, Any]:
    return {"name": "name", "in": "path", "required": True, "schema": {**_TEXT, "enum": [*known]}}


def _protocol(settings: Settings) -> dict[str, Any]:
    """The routes of the Open Inference Protocol that are asked of a model; the protocol itself says more."""
    if not settings.models:
        return {}
    version = {"name": "version", "in": "path", "required": True, "schema": _TEXT}
    told: dict[str, Any] = {}
    for place, more in (("", []), ("/versions/{version}", [version])):
        parameters, end = [_name(settings.models), *more], "_version" if more else ""
        for tail, summary in (("", "A model"), ("/ready", "Whether it answers"), ("/config", "As Triton describes it")):
            told[f"/v2/models/{{name}}{place}{tail}"] = {
                "get": {
                    "tags": ["Open Inference Protocol"],
                    "summary": summary,
                    "operationId": f"v2_model{tail.replace('/', '_')}{end}",
                    "parameters": parameters,
                    "responses": _responses(summary, _json(_object({"name": _TEXT})), (404, 503)),
                }
            }
        told[f"/v2/models/{{name}}{place}/infer"] = {"post": _infer(f"v2_infer{end}", parameters)}
    return told


def _infer(operation: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    tensor = _object(
        {"name": _TEXT, "datatype": _TEXT, "shape": _list(_COUNT)}, {"data": {"type": "array"}, "parameters": _ANY}
    )
    request = _object(
        {"inputs": {**_list(tensor, 1), "maxItems": 1}},
        {"id": _TEXT, "outputs": _list(_object({"name": _TEXT})), "parameters": _ANY},
    )
    answer = _object({"model_name": _TEXT, "model_version": _TEXT, "outputs": _list(tensor, 1)}, {"id": _TEXT})
    either = {**_json(answer), "application/octet-stream": _BINARY}
    return {
        "tags": ["Open Inference Protocol"],
        "summary": "Ask a model",
        "operationId": operation,
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "description": "With binary tensor data, Inference-Header-Content-Length says where its JSON ends",
            "content": {**_json(request), "application/octet-stream": _BINARY},
        },
        "responses": _responses("The probabilities, or their highest classes", either),
    }


def _predict(summary: str, operation: str, field: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    file = {"type": "string", "format": "binary", "description": "An image; the field may be there several times"}
    features = _object({"features": _list(_list({"type": "number"}), 1)})
    top = {
        "name": "top",
        "in": "query",
        "description": "How many classes of each image are told",
        "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1},
    }
    return {
        "post": {
            "tags": ["predict"],
            "summary": summary,
            "operationId": operation,
            "parameters": [*parameters, top],
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {"schema": _object({field: _list(file, 1)})},
                    "image/png": _BINARY,
                    "image/jpeg": _BINARY,
                    "application/octet-stream": _BINARY,
                    **_json(features),
                },
            },
            "responses": _responses("The likeliest classes of each image", _json(_ref("Answer"))),
        }
    }
