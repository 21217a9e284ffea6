"""What a server answers, and how it refuses."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlops.errors import MlopsError


class ClientError(MlopsError):
    """A server refused, did not answer, or did not answer as `mlops serve` does."""


class ServerError(ClientError):
    """An answer that is no result: HTTP's `status`, `title`, `detail`, and the `request_id` that its log has."""

    def __init__(self, url: str, status: int, title: str, detail: str = "", request_id: str | None = None) -> None:
        self.url, self.status, self.title, self.detail, self.request_id = url, status, title, detail, request_id
        said = f"{url}: {status} {title}" + (f": {detail}" if detail else "")
        super().__init__(said + (f" (request {request_id})" if request_id else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        # Between processes, exceptions are made anew from their arguments, which are not these by themselves.
        return type(self), (self.url, self.status, self.title, self.detail, self.request_id)


class UnreachableError(ClientError):
    """No whole answer came: nobody listens, the connection broke, the certificate is wrong, or the time was over."""


@dataclass(frozen=True)
class Prediction:
    """What a model, or an ensemble, makes of one image or row of features."""

    # As it was given; None for bytes, features, and files without a name.
    file: str | None
    label: str
    probability: float
    # (label, probability), the likeliest first.
    top: tuple[tuple[str, float], ...]
    model: str
    # Of an ensemble, those of its members, joined by +.
    version: str
    # That the server took for the whole request, which may have held other images.
    milliseconds: float


@dataclass(frozen=True)
class Refused:
    """An image that could not be read here, or that the server refused; `reason` leaves out the server and the name."""

    file: str | None
    reason: str
    error: MlopsError


@dataclass(frozen=True)
class Model:
    """A model as a server tells of it. `kind`: images or features; `refused`: why the file that is there is not in use.

    Of one that has not been loaded yet, which is not `ready`, there is no more than its name and that reason.
    """

    name: str
    version: str | None
    kind: str | None
    classes: tuple[str, ...]
    input: Mapping[str, Any]
    metrics: Mapping[str, Any]
    ready: bool
    refused: str | None


@dataclass(frozen=True)
class Served:
    """What a server has. `ensembles`: the weight of every member, by name."""

    default: str | None
    models: tuple[Model, ...]
    ensembles: Mapping[str, Mapping[str, float]]


def parse(content: bytes) -> Any:
    """JSON in the narrow sense.

    Raises:
        ValueError: it is none, or holds NaN or infinity.
    """

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        return json.loads(content, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


# What the three functions below raise where an answer is not as it must be.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


def predictions(told: Any, files: Sequence[str | None]) -> list[Prediction]:
    """Those for `files`, by order: a name may be there twice, or have changed on its way."""
    if "ensemble" in told:
        model, version = told["ensemble"], "+".join(member["version"] for member in told["models"])
    else:
        model, version = told["model"], told["version"]
    return [
        Prediction(
            file,
            _text(row["class"]),
            _chance(row["probability"]),
            tuple((_text(one["class"]), _chance(one["probability"])) for one in row["top"]),
            _text(model),
            _text(version),
            float(told["milliseconds"]),
        )
        for file, row in zip(files, told["predictions"], strict=True)
    ]


def served(told: Any) -> Served:
    """The models and ensembles of an answer."""
    ensembles = {_text(one["name"]): dict(one["members"]) for one in told.get("ensembles") or []}
    return Served(told.get("default"), tuple(map(_model, told["models"])), ensembles)


def _model(told: Any) -> Model:
    name, refused = _text(told["name"]), told.get("refused")
    if not told["ready"]:
        return Model(name, None, None, (), {}, {}, False, refused)
    return Model(
        name,
        _text(told["version"]),
        _text(told["kind"]),
        tuple(map(_text, told["classes"])),
        dict(told.get("input") or {}),
        dict(told.get("metrics") or {}),
        True,
        refused,
    )


def versions(told: Any) -> dict[str, str]:
    """Name and version of what a server runs on."""
    return {name: _text(version) for name, version in told.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _chance(value: Any) -> float:
    # Rounded, the mean of several may be a little above 1.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1.001:
        raise ValueError
    return float(value)
