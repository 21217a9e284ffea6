"""The OpenAPI description of routes that FastAPI does not see through."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from mlops.serving.gate import OPEN
from mlops.serving.settings import Settings

_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong, and what to do"},
        "request_id": {"type": "string"},
    },
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
_CHOICE = {
    "type": "object",
    "required": ["class", "probability"],
    "properties": {"class": {"type": "string"}, "probability": _PROBABILITY},
}
_PREDICTION = {
    "type": "object",
    "required": ["file", "class", "probability", "top"],
    "properties": {
        "file": {"type": ["string", "null"], "description": "Its name in the form; null without one"},
        "class": {"type": "string"},
        "probability": _PROBABILITY,
        "top": {"type": "array", "items": {"$ref": "#/components/schemas/Choice"}},
    },
}
_ANSWER = {
    "type": "object",
    "required": ["predictions", "milliseconds"],
    "properties": {
        "model": {"type": "string"},
        "version": {"type": "string", "description": "The beginning of the SHA-256 of the model's file"},
        "ensemble": {"type": "string"},
        "models": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["model", "version"],
                "properties": {"model": {"type": "string"}, "version": {"type": "string"}},
            },
        },
        "predictions": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Prediction"}},
        "milliseconds": {"type": "number", "minimum": 0},
    },
}
_NULLABLE_TEXT = {"type": ["string", "null"]}
_MODEL = {
    "type": "object",
    "required": ["name", "ready", "refused"],
    "description": "Of one that has not been loaded yet, only name, ready and refused are there",
    "properties": {
        "name": {"type": "string"},
        "ready": {"type": "boolean"},
        "refused": {**_NULLABLE_TEXT, "description": "Why the file that is there now is not in use"},
        "version": {"type": "string"},
        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "kind": {"enum": ["images", "features"]},
        "classes": {"type": "array", "items": {"type": "string"}},
        "input": {"type": "object"},
        "waiting": {"type": "integer", "minimum": 0, "description": "Images that wait in front of it"},
        "checkpoint": _NULLABLE_TEXT,
        "metrics": {"type": ["object", "null"]},
        "created": _NULLABLE_TEXT,
    },
}
_MODELS = {
    "type": "object",
    "required": ["default", "models", "ensembles"],
    "properties": {
        "default": _NULLABLE_TEXT,
        "models": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
        "ensembles": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "members"],
                "properties": {
                    "name": {"type": "string"},
                    "members": {"type": "object", "additionalProperties": _PROBABILITY},
                },
            },
        },
    },
}
_SCHEMAS = {
    "Problem": _PROBLEM,
    "Choice": _CHOICE,
    "Prediction": _PREDICTION,
    "Answer": _ANSWER,
    "Model": _MODEL,
    "Models": _MODELS,
    "ProtocolError": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
}


def _words(*keys: str) -> dict[str, Any]:
    return {"type": "object", "required": list(keys), "properties": {key: {"type": "string"} for key in keys}}


def _flag(key: str) -> dict[str, Any]:
    return {"type": "object", "required": [key], "properties": {key: {"type": "boolean"}}}


# What FastAPI's own routes answer with 200.
_ANSWERS = {
    "/health": _words("status"),
    "/health/live": _words("status"),
    "/health/ready": _words("status"),
    "/version": _words("version", "onnxruntime", "python"),
    "/models": {"$ref": "#/components/schemas/Models"},
    "/models/{name}": {"$ref": "#/components/schemas/Model"},
    "/v2": _words("name", "version"),
    "/v2/health/live": _flag("live"),
    "/v2/health/ready": _flag("ready"),
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
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": description, "content": {"application/problem+json": {"schema": schema}}}


NOT_READY: dict[int | str, dict[str, Any]] = {503: _refusal("Not every model answers, and why")}
UNKNOWN: dict[int | str, dict[str, Any]] = {404: _refusal("No such model")}


def describe(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """The whole description; made once."""
    if app.openapi_schema is None:
        told = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        paths = told.setdefault("paths", {})
        for path, schema in _ANSWERS.items():
            paths[path]["get"]["responses"]["200"]["content"] = {"application/json": {"schema": schema}}
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
            response["content"] = {"application/json": {"schema": {"$ref": "#/components/schemas/ProtocolError"}}}
        headers = response["headers"] = {"X-Request-ID": {"required": True, "schema": {"type": "string"}}}
        if status in {"429", "503"}:
            headers["Retry-After"] = {"required": True, "schema": {"type": "integer", "minimum": 1}}
        if status == "401":
            headers["WWW-Authenticate"] = {"required": True, "schema": {"type": "string"}}


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
    return {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "enum": [*known]}}


def _protocol(settings: Settings) -> dict[str, Any]:
    """The routes of the Open Inference Protocol that are asked of a model; the protocol itself says more."""
    if not settings.models:
        return {}
    version = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
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
                    "responses": {
                        "200": _json_answer(summary, {"type": "object", "required": ["name"]}),
                        **{str(status): _refusal(_REFUSALS[status]) for status in (404, 503)},
                    },
                }
            }
        told[f"/v2/models/{{name}}{place}/infer"] = {"post": _infer(f"v2_infer{end}", parameters)}
    return told


def _infer(operation: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"type": "string"},
            "datatype": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "data": {"type": "array"},
            "parameters": {"type": "object"},
        },
    }
    request = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": tensor},
            "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
            "parameters": {"type": "object"},
        },
    }
    answer = {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "minItems": 1, "items": tensor},
        },
    }
    answered = _json_answer("The probabilities, or their highest classes", answer)
    answered["content"]["application/octet-stream"] = _BINARY
    return {
        "tags": ["Open Inference Protocol"],
        "summary": "Ask a model",
        "operationId": operation,
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "description": "With binary tensor data, Inference-Header-Content-Length says where its JSON ends",
            "content": {"application/json": {"schema": request}, "application/octet-stream": _BINARY},
        },
        "responses": {"200": answered, **{str(status): _refusal(text) for status, text in _REFUSALS.items()}},
    }


def _json_answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _predict(summary: str, operation: str, field: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    file = {"type": "string", "format": "binary", "description": "An image; the field may be there several times"}
    form = {
        "type": "object",
        "required": [field],
        "properties": {field: {"type": "array", "minItems": 1, "items": file}},
    }
    rows = {"type": "array", "minItems": 1, "items": {"type": "array", "items": {"type": "number"}}}
    features = {"type": "object", "required": ["features"], "properties": {"features": rows}}
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
                    "multipart/form-data": {"schema": form},
                    "image/png": _BINARY,
                    "image/jpeg": _BINARY,
                    "application/octet-stream": _BINARY,
                    "application/json": {"schema": features},
                },
            },
            "responses": {
                "200": _json_answer("The likeliest classes of each image", {"$ref": "#/components/schemas/Answer"}),
                **{str(status): _refusal(text) for status, text in _REFUSALS.items()},
            },
        }
    }
