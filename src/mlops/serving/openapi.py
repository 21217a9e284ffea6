"""The OpenAPI description of routes that FastAPI does not see through."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

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
_SCHEMAS = {"Problem": _PROBLEM, "Choice": _CHOICE, "Prediction": _PREDICTION, "Answer": _ANSWER}
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
        paths["/predict"] = _predict("Ask the default model", "predict", "file")
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        paths["/models/{name}/predict"] = _predict("Ask a model", "predict_model", "file", name)
        paths["/ensembles/{name}/predict"] = _predict("Ask an ensemble", "predict_ensemble", "file", name)
        for number, (path, alias) in enumerate(settings.aliases.items()):
            paths[path] = _predict(f"Ask {alias.to}", f"alias_{number}", alias.field)
        components = told.setdefault("components", {})
        components.setdefault("schemas", {}).update(_SCHEMAS)
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        # The empty one: servers without keys ask for none.
        told["security"] = [{}, {"bearer": []}, {"header": []}]
        for path in paths.values():
            for operation in path.values():
                operation["responses"].setdefault("401", _refusal(_REFUSALS[401]))
        app.openapi_schema = told
    return app.openapi_schema


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
    binary = {"schema": {"type": "string", "format": "binary"}}
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
                    "image/png": binary,
                    "image/jpeg": binary,
                    "application/octet-stream": binary,
                    "application/json": {"schema": features},
                },
            },
            "responses": {
                "200": {
                    "description": "The likeliest classes of each image",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Answer"}}},
                },
                **{str(status): _refusal(text) for status, text in _REFUSALS.items()},
            },
        }
    }
