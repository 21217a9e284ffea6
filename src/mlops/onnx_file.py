"""What an .onnx file says of itself, and whether it is safe to run: read before any runtime sees the file.

An ONNX file is a Protocol Buffers message. Here its fields are walked without their schema's library, which a server
would need for nothing else: https://protobuf.dev/programming-guides/encoding and onnx.proto3 of ONNX 1.23.

What is refused: weights in other files (their paths may lead anywhere), operators of other people's libraries, and
anything that was not written by `mlops export` or `mlops adopt`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mlops.errors import MlopsError, one_line
from mlops.files import check_regular
from mlops.geometry import Filter, Resize

# Of our metadata, not of ONNX.
FORMAT = 1
# The operator sets that ONNX itself defines; "" is the short name of ai.onnx.
DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
# All that have graphs of their own. A network without them answers in a time that its size tells.
_LOOPS = ("Loop", "Scan", "If", "SequenceMap")
# Bytes 4 to 8 of onnxruntime's own format. By them alone it decides to read a file so, and an ONNX file can have them.
_OTHER_FORMAT = b"ORTM"
# Of a checkpoint's input, and whether the model brings images to their size itself.
_INPUT = {"height", "width", "channels", "mean", "std", "resize", "filter", "crop", "resizes"}
# As `data.image_size`.
_LARGEST_SIDE = 2048
# Of one row that is no image.
MOST_FEATURES = 1_000_000
# A message of Protocol Buffers cannot be larger.
MOST_BYTES = 2**31 - 1
# As deep as libraries of Protocol Buffers go.
_DEEPEST = 100

# The messages in which tensors and operators lie: the number of a field, and what it holds.
_INSIDE: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_NODE_OPERATOR, _NODE_DOMAIN, _MODEL_OPSET, _MODEL_METADATA = 4, 7, 8, 14
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14


@dataclass(frozen=True)
class OnnxFile:
    """The bytes of a model that was found safe, and what its metadata says, as plain values."""

    content: bytes
    metadata: dict[str, Any]


def read(path: Path) -> OnnxFile:
    """Read a model that `mlops export` or `mlops adopt` wrote.

    Raises:
        MlopsError: it is missing, no ONNX file, of a later format, without our metadata, or unsafe.
    """
    content = read_bytes(path)
    return OnnxFile(content, inspect(content, str(path)))


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that may be an ONNX file.

    Raises:
        MlopsError: it is missing, cannot be read, or is larger than any.
    """
    check_regular(path, str(path))
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise MlopsError(f"{path}: is larger than {MOST_BYTES:,} bytes; that is no ONNX file")
        with path.open("rb") as file:
            return file.read(size)  # no more, should it grow meanwhile
    except FileNotFoundError as error:
        raise MlopsError(f"{path}: no such file; make one with: mlops export CHECKPOINT -o {path}") from error
    except OSError as error:
        raise MlopsError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from error


def inspect(content: bytes, where: str) -> dict[str, Any]:
    """The metadata of a model, once it was found safe. Of `content`, no tensor is decoded and nothing is run.

    Raises:
        MlopsError: as `read`; `where` names the file in it.
    """
    return _check_metadata(check_safe(content, where), where)


def is_ours(texts: Mapping[str, str]) -> bool:
    """Whether metadata, as `check_safe` gives it, is that of a model of this project."""
    return {"format", "classes", "input"} <= set(texts)


def check_safe(content: bytes, where: str) -> dict[str, str]:
    """Refuse a model that nobody should run, whoever wrote it. Returns its metadata, as it stands there.

    Raises:
        MlopsError: it is damaged, of another format, keeps weights elsewhere, has operators that are none of ONNX, or
            loops.
    """
    if content[4:8] == _OTHER_FORMAT:
        raise MlopsError(f"{where}: is of onnxruntime's own format (.ort), which is not read; export it as ONNX")
    found = _Found({}, [], set(), set())
    try:
        _look("model", memoryview(content), found, 0)
    except (_DamagedError, UnicodeDecodeError) as error:
        raise MlopsError(f"{where}: is damaged or no ONNX file: {one_line(error)}") from error
    if not found.graphs or not found.opsets:
        raise MlopsError(f"{where}: is no ONNX file")
    if found.external:
        raise MlopsError(f"{where}: keeps weights in other files, which is not read; export it as one file")
    foreign = sorted({*found.domains, *found.opsets}.difference(DOMAINS))
    if foreign:
        raise MlopsError(f"{where}: uses operators of {', '.join(foreign)}, which are none of ONNX; export it without")
    if loops := sorted(found.operators.intersection(_LOOPS)):
        raise MlopsError(f"{where}: uses {', '.join(loops)}, whose time no size tells; export a network without")
    return found.metadata


class _DamagedError(Exception):
    """Bytes that are no message; why."""


@dataclass
class _Found:
    metadata: dict[str, str]
    opsets: list[str]
    domains: set[str]
    operators: set[str]
    graphs: int = 0
    external: bool = False


def _look(kind: str, message: memoryview, found: _Found, depth: int) -> None:
    """Add what a message and those inside of it hold to `found`."""
    if depth > _DEEPEST:
        raise _DamagedError("messages in messages without an end")
    found.graphs += kind == "graph"
    inside = _INSIDE[kind]
    for number, value in _fields(message):
        if number in inside:
            _look(inside[number], _bytes(value), found, depth + 1)
        elif kind == "tensor":
            # Whichever way says so: a list of places that is not empty, or a location other than "here".
            found.external |= number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0)
        elif kind == "node" and number == _NODE_DOMAIN:
            found.domains.add(_text(value))
        elif kind == "node" and number == _NODE_OPERATOR:
            found.operators.add(_text(value))
        elif kind == "model" and number == _MODEL_OPSET:
            found.opsets.append(_text(dict(_fields(_bytes(value))).get(1, memoryview(b""))))
        elif kind == "model" and number == _MODEL_METADATA:
            entry = dict(_fields(_bytes(value)))
            found.metadata[_text(entry.get(1, memoryview(b"")))] = _text(entry.get(2, memoryview(b"")))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of every field: a whole number, or the bytes of a text, a message or a fixed-width number."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise _DamagedError("a field without a number")
        if kind == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if kind in (1, 5):
            length = 8 if kind == 1 else 4
        elif kind == 2:
            length, position = _varint(message, position)
        else:
            raise _DamagedError(f"a field of kind {kind}")
        if position + length > len(message):
            raise _DamagedError("it ends too early")
        yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise _DamagedError("it ends too early")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _DamagedError("a number without an end")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _DamagedError("a number where a message should be")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode()


def _check_metadata(texts: Mapping[str, str], where: str) -> dict[str, Any]:
    """Our metadata as values, every one of which stands as JSON in the file."""
    if not is_ours(texts):
        raise MlopsError(
            f"{where}: does not say its classes and its input; write it with mlops export, or take it in with mlops "
            "adopt"
        )
    try:
        told = {key: json.loads(text) for key, text in texts.items()}
        # NaN and halves of characters are let in by `loads`, and no answer could name them.
        json.dumps(told, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise MlopsError(f"{where}: its metadata is not readable: {one_line(error)}") from error
    if type(told["format"]) is not int or told["format"] < 1:
        raise MlopsError(f"{where}: was not written by mlops export (format {told['format']!r})")
    if told["format"] > FORMAT:
        raise MlopsError(
            f"{where}: format {told['format']} is later than {FORMAT}, the last known here; use a later mlops"
        )
    classes, given = told["classes"], told["input"]
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise MlopsError(f"{where}: its metadata names no classes; export it again")
    if not (_takes_features(given) or _takes_images(given)):
        what = "features" if isinstance(given, dict) and "features" in given else "images"
        raise MlopsError(f"{where}: its metadata does not say how {what} go in; export it again")
    return told


def _takes_images(given: Any) -> bool:
    sizes = [given.get(side) for side in ("height", "width")] if isinstance(given, dict) else []
    return (
        len(sizes) == 2
        and all(type(size) is int and 0 < size <= _LARGEST_SIDE for size in sizes)
        and given.get("resize") in get_args(Resize)
        and given.get("filter") in get_args(Filter)
        and isinstance(given.get("resizes"), bool)
        and given.get("crop", "") in (None, "roi")
        and _INPUT.issuperset(given)
    )


def _takes_features(given: Any) -> bool:
    if not isinstance(given, dict) or set(given) != {"features", "names"}:
        return False
    count, names = given["features"], given["names"]
    named = isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names)
    return type(count) is int and 0 < count <= MOST_FEATURES and (names is None or named)
