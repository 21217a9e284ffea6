"""What `mlops serve` may be told: the schema of its YAML file, every check that needs no model, and their defaults."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mlops.errors import MlopsError, one_line
from mlops.files import check_regular
from mlops.image import FORMATS

# Of models and ensembles: they stand in paths, logs and metrics.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+/?")
# Routes of our own, which no alias may take.
_OURS = (
    *("/health", "/version", "/models", "/predict", "/ensembles", "/v2", "/page"),
    *("/docs", "/redoc", "/openapi.json", "/noop"),
)
_MIB = 1024**2

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Limits(_Strict):
    """What one request, and all that wait together, may take of a worker."""

    body_bytes: Annotated[int, Field(ge=1024)] = 10 * _MIB
    # Of all images of a request together.
    pixels: Positive = 25_000_000
    files: Annotated[int, Field(ge=1, le=1000)] = 32
    # Images that wait in front of a model.
    queue: Annotated[int, Field(ge=1, le=100_000)] = 256
    # Bytes of requests that are being read or wait.
    waiting_bytes: Annotated[int, Field(ge=1024)] = 128 * _MIB
    # To answer a request that is there; to upload it, as long again.
    seconds: Seconds = 10.0
    formats: tuple[str, ...] = FORMATS

    @field_validator("formats", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or not value or not set(map(str, value)) <= set(FORMATS):
            raise ValueError(f"must be some of {', '.join(FORMATS)}")
        return tuple(value)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.waiting_bytes < self.body_bytes:
            raise ValueError(f"waiting_bytes={self.waiting_bytes}: must be at least body_bytes={self.body_bytes}")
        return self


class Ensemble(_Strict):
    """Models asked side by side: the mean of their probabilities, weighted by `members` where that is a map."""

    members: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]

    @field_validator("members", mode="before")
    @classmethod
    def _alike(cls, value: Any) -> Any:
        if isinstance(value, list):
            if not all(isinstance(name, str) for name in value):
                raise ValueError("must be a list of names, or a map of names to weights")
            if len(set(value)) < len(value):
                raise ValueError("names a model twice; give it a weight instead")
            value = dict.fromkeys(value, 1.0)
        if not isinstance(value, dict) or len(value) < 2:
            raise ValueError("must be two or more models: a list, or a map of names to weights")
        return {name: float(weight) if type(weight) is int else weight for name, weight in value.items()}


class Alias(_Strict):
    """A path that clients call already: whom it asks, and the form field that holds its images."""

    to: str
    field: str = "file"


class Keys(_Strict):
    """Who may ask, and how often."""

    file: str | None = None
    # Requests a second of each key, and how many it may save up.
    rate: Annotated[float, Field(gt=0, le=1e6)] | None = None
    burst: Annotated[float, Field(ge=1, le=1e6)] | None = None

    @model_validator(mode="after")
    def _both(self) -> Self:
        if self.burst is not None and self.rate is None:
            raise ValueError(f"burst={self.burst:g}: limits nothing without rate; add one")
        return self


class Settings(_Strict):
    """All that `serve.yaml` may say."""

    models: dict[str, str] = {}
    default: str | None = None
    ensembles: dict[str, Ensemble] = {}
    aliases: dict[str, Alias] = {}
    limits: Limits = Limits()
    # The most images that a model computes at once; by the size of its images when null.
    batch: Annotated[int, Field(ge=1, le=1024)] | None = None
    keys: Keys = Keys()
    cors: tuple[str, ...] = ()
    # After SIGTERM, new requests are answered for so long, while load balancers learn of it.
    drain_seconds: Annotated[float, Field(ge=0, le=600)] = 1.0
    # How often files are looked at with --reload.
    reload_seconds: Seconds = 1.0
    log: Literal["requests", "problems"] = "requests"

    @field_validator("ensembles", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: {"members": told} if isinstance(told, list) else told for name, told in value.items()}
        return value

    @field_validator("aliases", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {path: {"to": told} if isinstance(told, str) else told for path, told in value.items()}
        return value

    @field_validator("cors", mode="before")
    @classmethod
    def _origins(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise ValueError("must be a list of origins, such as https://example.org")
        for origin in value:
            if not isinstance(origin, str) or not re.fullmatch(r"https?://[^/\s*]+", origin):
                raise ValueError(f"{origin!r}: must be an origin, such as https://example.org, without a path or a *")
        return tuple(value)

    @model_validator(mode="after")
    def _names(self) -> Self:
        problems = []
        names = [*self.models, *self.ensembles]
        problems += [
            f"{name!r}: must be 1 to 64 letters of A-Z a-z 0-9 . _ -, and begin with none of . -"
            for name in names
            if not is_name(name)
        ]
        problems += [f"{name}: is a model and an ensemble; rename one" for name in {*self.models} & {*self.ensembles}]
        for path, alias in self.aliases.items():
            if not _PATH.fullmatch(path) or {".", ".."} & {*path.split("/")}:  # clients resolve those
                problems.append(f"aliases: {path!r}: must be a path such as /image_classify")
            elif any(path.rstrip("/") == own or path.startswith(f"{own}/") for own in _OURS):
                problems.append(f"aliases: {path}: is a route of this server already; choose another")
            if not alias.field:
                problems.append(f"aliases: {path}: field: must not be empty")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def check_links(self) -> None:
        """That ensembles, aliases and the default lead to models, once all models are named.

        Raises:
            MlopsError: they do not.
        """
        known = f"known: {', '.join([*self.models, *self.ensembles]) or 'none'}"
        problems = [
            f"ensembles.{name}.members: {member}: is no model; {known}"
            for name, ensemble in self.ensembles.items()
            for member in ensemble.members
            if member not in self.models
        ]
        targets = [(f"aliases.{path}", alias.to) for path, alias in self.aliases.items()]
        targets += [("default", self.default)] if self.default is not None else []
        problems += [
            f"{where}: {name}: is no model or ensemble; {known}"
            for where, name in targets
            if name not in self.models and name not in self.ensembles
        ]
        if problems:
            raise MlopsError(problems)


def is_name(name: str) -> bool:
    """Whether a model may be called so."""
    return _NAME.fullmatch(name) is not None


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # yaml has no types
    """YAML, where a key must not be there twice: the first would be passed over in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A map.

        Raises:
            yaml.YAMLError: a key is there twice, or cannot be one.
        """
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(None, None, f"{key}: is there twice", node.start_mark)
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found


def read_settings(path: Path | None) -> Settings:
    """The settings in a YAML file, or the defaults.

    Raises:
        MlopsError: it is missing or not readable, or something in it is not as it must be.
    """
    if path is None:
        return Settings()
    check_regular(path, str(path))
    try:
        told = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe one
    except FileNotFoundError as error:
        raise MlopsError(f"{path}: no such file") from error
    # ValueError, among others: a date that is none.
    except (OSError, ValueError, AttributeError, yaml.YAMLError, RecursionError) as error:
        raise MlopsError(f"{path}: cannot be read as YAML: {one_line(error)}") from error
    if told is not None and not isinstance(told, dict):
        raise MlopsError(f"{path}: must be a map of settings")
    try:
        return Settings.model_validate(told or {})
    except ValidationError as error:
        raise MlopsError([f"{path}: {_problem(one)}" for one in error.errors()]) from error


def _problem(one: Any) -> str:
    place = ".".join(str(part) for part in one["loc"])
    message = str(one["msg"]).removeprefix("Value error, ")
    value = one.get("input")
    shown = f"={value!r}" if isinstance(value, str | int | float | bool) and one["type"] != "extra_forbidden" else ""
    if one["type"] == "extra_forbidden":
        return f"{place}: no such setting"
    if one["type"] in {"dict_type", "model_type"}:
        return f"{place}{shown}: must be a map of settings"
    return f"{place}{shown}: {message[:1].lower()}{message[1:]}" if place else message
