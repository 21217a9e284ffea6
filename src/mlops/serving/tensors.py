"""Tensors of the Open Inference Protocol, out of JSON and out of binary data: see `v2.py`."""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mlops.errors import MlopsError

Tensor = npt.NDArray[Any]
_Value = TypeVar("_Value")

# As they lie in binary data.
_DATATYPES = {
    "BOOL": np.dtype("?"),
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    "BYTES": np.dtype(object),
}
NAMES = {dtype: name for name, dtype in _DATATYPES.items()}
_KINDS = {str: "text", dict: "an object", list: "a list", bool: "true or false", int: "a whole number of 0 or more"}
_NUMBERS: dict[str, tuple[set[type], str]] = {"b": ({bool}, "true or false"), "f": ({int, float}, "numbers")}
_WHOLE_NUMBERS: tuple[set[type], str] = ({int}, "whole numbers")
LENGTH = struct.Struct("<I")
# More than any tensor here has, and far from where numpy gives up.
_MOST_AXES, _MOST_VALUES = 16, 2**40


class ProtocolError(MlopsError):
    """One line for the caller, to be sent as `{"error": line}` with the HTTP status `status`."""

    def __init__(self, problem: str, status: int = 400) -> None:
        super().__init__(problem)
        self.status = status


def take(
    section: Mapping[str, Any], key: str, kind: type[_Value], where: str, otherwise: _Value | None = None
) -> _Value:
    """A value of a section that must be of that kind; null is as good as none."""
    value = section.get(key)
    negative = type(value) is int and value < 0
    # By type alone: true is an int to isinstance.
    if type(value) is kind and not negative:
        return value
    if value is not None:
        raise ProtocolError(f"{where}{key}={brief(value)}: must be {_KINDS[kind]}")
    if otherwise is None:
        raise ProtocolError(f"{where}{key}: is missing; must be {_KINDS[kind]}")
    return otherwise


def no_shared_memory(parameters: Mapping[str, Any], where: str) -> None:
    """Refuse tensors that lie in memory which Triton would share with its caller."""
    if "shared_memory_region" in parameters:
        raise ProtocolError(f"{where}shared_memory_region: is not supported; send the data itself")


def read_tensor(told: Mapping[str, Any], where: str, body: bytes, offset: int) -> tuple[Tensor, int]:
    """The tensor that an input describes, and where in the body its binary data ends, having begun at `offset`."""
    datatype = take(told, "datatype", str, where)
    dtype = _DATATYPES.get(datatype)
    if dtype is None:
        raise ProtocolError(f"{where}datatype={brief(datatype)}: must be one of {', '.join(_DATATYPES)}")
    shape = take(told, "shape", list, where)
    if len(shape) > _MOST_AXES or not all(type(side) is int and side >= 0 for side in shape):
        shown = ", ".join(map(brief, shape[:_MOST_AXES]))
        raise ProtocolError(f"{where}shape=[{shown}]: must be up to {_MOST_AXES} whole numbers of 0 or more")
    # Without the zeros: they would hide sides that are too long for numpy.
    if math.prod(side or 1 for side in shape) > _MOST_VALUES:
        raise ProtocolError(f"{where}shape=[{', '.join(map(brief, shape))}]: is too large")
    parameters = take(told, "parameters", dict, where, {})
    no_shared_memory(parameters, f"{where}parameters.")
    if parameters.get("binary_data_size") is None:
        data = _flat(take(told, "data", list, where), shape, where)
        return _converted(data, dtype, where).reshape(shape), offset
    size = take(parameters, "binary_data_size", int, f"{where}parameters.")
    if told.get("data") is not None:
        raise ProtocolError(f"{where}data: there is binary data too; must be one of both")
    if size > len(body) - offset:
        left = f"the {len(body) - offset:,} bytes that the body still has"
        raise ProtocolError(f"{where}parameters.binary_data_size={brief(size)}: must be at most {left}")
    count = math.prod(shape)
    if datatype == "BYTES":
        texts = _texts(body, offset, offset + size, count, where)
        return objects(texts).reshape(shape), offset + size
    if size != count * dtype.itemsize:
        problem = f"{datatype} {shape} are {count * dtype.itemsize:,} bytes"
        raise ProtocolError(f"{where}parameters.binary_data_size={size}: {problem}")
    tensor: Tensor = np.ndarray(shape, dtype, body, offset)
    # Of other bytes numpy makes booleans that are neither true nor false.
    if dtype.kind == "b" and count and tensor.view(np.uint8).max() > 1:
        raise ProtocolError(f"{where.removesuffix('.')}: a BOOL must be 0 or 1")
    return tensor if tensor.flags.aligned else tensor.copy(), offset + size


def _flat(data: list[Any], shape: Sequence[int], where: str) -> list[Any]:
    """The values of a tensor in JSON, whether they come as one list or nested like the shape."""
    sides, count = list(shape), math.prod(shape)
    if data and type(data[0]) is list:
        # Axis by axis instead of value by value: the depth is the caller's.
        rows: list[Any] = [data]
        for side in sides:
            if not all(type(row) is list and len(row) == side for row in rows):
                raise ProtocolError(f"{where}data: must be nested like shape={sides}, or one list")
            rows = [value for row in rows for value in row]
        data = rows
    if len(data) != count:
        raise ProtocolError(f"{where}data: holds {len(data):,} values; shape={sides} are {count:,}")
    return data


def _converted(values: list[Any], dtype: np.dtype[Any], where: str) -> Tensor:
    """Flat values out of JSON as an array, if all are of its kind and in its range."""
    if dtype.kind == "O":
        if not set(map(type, values)) <= {str}:
            raise ProtocolError(f"{where}data: must be text, for BYTES")
        try:
            return objects([text.encode() for text in values])
        except UnicodeEncodeError:
            raise ProtocolError(f"{where}data: holds half a surrogate pair, which is no text") from None
    kinds, meaning = _NUMBERS.get(dtype.kind, _WHOLE_NUMBERS)
    if not set(map(type, values)) <= kinds:
        raise ProtocolError(f"{where}data: must be {meaning}, for {NAMES[dtype]}")
    try:
        with np.errstate(over="raise"):
            return np.array(values, dtype)
    except (OverflowError, FloatingPointError):
        raise ProtocolError(f"{where}data: holds a number that is out of range for {NAMES[dtype]}") from None


def _texts(body: bytes, offset: int, end: int, count: int, where: str) -> list[bytes]:
    """`count` elements of BYTES, each after its length, that take the body from `offset` to `end` exactly."""
    where = where.removesuffix(".")
    if count * LENGTH.size > end - offset:
        raise ProtocolError(f"{where}: its binary data is too short for {count:,} elements of BYTES and their lengths")
    texts = []
    for index in range(count):
        start = offset + LENGTH.size
        # The lengths of those before may have used up the rest.
        length = LENGTH.unpack_from(body, offset)[0] if start <= end else 0
        offset = start + length
        if offset > end:
            raise ProtocolError(f"{where}: its binary data ends within element {index} of {count:,}")
        texts.append(body[start:offset])
    if offset != end:
        raise ProtocolError(f"{where}: its binary data goes on for {end - offset:,} bytes after its last element")
    return texts


def objects(texts: list[bytes]) -> Tensor:
    """A tensor of BYTES."""
    found = np.empty(len(texts), object)
    found[:] = texts
    return found


def brief(value: Any) -> str:
    """A value out of JSON, short, for a problem's line."""
    if isinstance(value, list | dict):
        return "[...]" if isinstance(value, list) else "{...}"
    text = json.dumps(value[:41] if isinstance(value, str) else value, ensure_ascii=False)
    return text if len(text) <= 42 else f"{text[:40]}..."
