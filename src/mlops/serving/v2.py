"""The Open Inference Protocol v2 over HTTP: what clients of Triton and KServe send, and what they are answered.

The protocol is https://github.com/kserve/open-inference-protocol; binary tensor data and classification are extensions
of Triton's (docs/protocol in github.com/triton-inference-server/server). Values in and out, and no web framework.
A request is anybody's: each mistake in it is a `ProtocolError`, and no size that it names is believed before the bytes
are there. Reading one takes memory of some 30 times its JSON at most, 10 times its binary BYTES, and none for numbers.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mlops.errors import one_line
from mlops.serving.tensors import (
    LENGTH,
    NAMES,
    ProtocolError,
    Tensor,
    brief,
    no_shared_memory,
    read_tensor,
    take,
)

Kind = Literal["images", "features"]

JSON_LENGTH = "Inference-Header-Content-Length"

_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}


@dataclass(frozen=True, slots=True)
class Asked:
    """An output that a request names: `binary` or JSON; its `top` classes as text, or the tensor itself where 0."""

    name: str
    binary: bool
    top: int


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request for an inference, in order in itself; whether it suits a model is `only_input`'s to say.

    Attributes:
        id: the caller's own, to be given back; empty where there is none.
        inputs: by name. Tensors of numbers are aligned, may be read-only and may share the memory of the body; those
            of BYTES are arrays of `bytes` objects. Floats may be NaN or infinite.
        outputs: what is to be answered, in that order; empty: all there is.
        binary: whether outputs are answered as binary data where `outputs` is empty.
    """

    id: str
    inputs: dict[str, Tensor]
    outputs: tuple[Asked, ...]
    binary: bool


def json_length(header: str | None) -> int | None:
    """The bytes of JSON that a request's header `Inference-Header-Content-Length` announces; None: all of the body.

    Raises:
        ProtocolError: it is no number.
    """
    if header is None:
        return None
    if not (header.isascii() and header.isdigit() and len(header) < 19):
        raise ProtocolError(f"{JSON_LENGTH}={brief(header)}: must be a number of bytes")
    return int(header)


def inflate(body: bytes, encoding: str, most: int) -> bytes:
    """A body as it was before `Content-Encoding: gzip` or `deflate` (zlib's format), of `most` bytes at most.

    Raises:
        ProtocolError: it is damaged, it would be larger (status 413), or `encoding` is another one (status 415).
    """
    name = encoding.strip().lower()
    if name in {"", "identity"}:
        return body
    if name not in _WINDOW:
        raise ProtocolError(f"Content-Encoding={brief(encoding)}: must be gzip or deflate", 415)
    stream = zlib.decompressobj(_WINDOW[name])
    try:
        found = stream.decompress(body, most + 1)
    except zlib.error as error:
        raise ProtocolError(f"the body is not what Content-Encoding={name} says: {one_line(error)}") from None
    if len(found) > most:
        raise ProtocolError(f"the body is more than {most:,} bytes when {name} is undone; send less at once", 413)
    if not stream.eof or stream.unused_data:
        raise ProtocolError(f"the body does not end where its {name} does; send one stream of it, complete")
    return found


def parse(body: bytes, json_length: int | None) -> InferRequest:
    """The request in a body: JSON of `json_length` bytes, then its inputs' binary data; None: JSON alone.

    Raises:
        ProtocolError: it is not a request, or not one that keeps to the protocol.
    """
    offset = len(body) if json_length is None else json_length
    if not 0 <= offset <= len(body):
        raise ProtocolError(f"{JSON_LENGTH}={json_length}: must be at most the body's {len(body):,} bytes")
    told = _json(body[:offset])
    parameters = take(told, "parameters", dict, "", {})
    binary = take(parameters, "binary_data_output", bool, "parameters.", False)
    inputs: dict[str, Tensor] = {}
    for index, one in enumerate(take(told, "inputs", list, "")):
        where = f"inputs[{index}]"
        name = _name(one, where, inputs)
        inputs[name], offset = read_tensor(one, f"{where}.", body, offset)
    if not inputs:
        raise ProtocolError("inputs: is empty; must hold what the model is to answer")
    if offset != len(body):
        raise ProtocolError(f"the body goes on for {len(body) - offset:,} bytes after its inputs; must end there")
    asked: dict[str, Asked] = {}
    for index, one in enumerate(take(told, "outputs", list, "", [])):
        where = f"outputs[{index}]"
        name = _name(one, where, asked)
        asked[name] = _asked(one, name, f"{where}.parameters.", binary)
    return InferRequest(take(told, "id", str, "", ""), inputs, tuple(asked.values()), binary)


def only_input(request: InferRequest, metadata: Mapping[str, Any]) -> tuple[str, Tensor]:
    """The name and tensor of the one input that a request gives, held against `model_metadata` before any work is done.

    Raises:
        ProtocolError: it gives several, or one of another name, datatype or shape, or none of its values; or it asks
            for outputs that the model does not have.
    """
    _check_outputs(request, [one["name"] for one in metadata["outputs"]])
    known = {one["name"]: one for one in metadata["inputs"]}
    names = " or ".join(known)
    if len(request.inputs) > 1:
        raise ProtocolError(f"inputs: are {len(request.inputs)}; this model takes one, {names}")
    ((name, tensor),) = request.inputs.items()
    if name not in known:
        raise ProtocolError(f"inputs[0].name={brief(name)}: this model takes {names}")
    datatype, shape = NAMES[tensor.dtype], known[name]["shape"]
    if datatype != known[name]["datatype"]:
        raise ProtocolError(f'inputs[0].datatype="{datatype}": {name} must be {known[name]["datatype"]}')
    fits = len(shape) == tensor.ndim and all(
        there == side or (side == -1 and there > 0) for there, side in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise ProtocolError(f"inputs[0].shape={list(tensor.shape)}: {name} must be {shape}, where -1 is 1 or more")
    return name, tensor


def answer(
    request: InferRequest,
    *,
    model: str,
    version: str,
    outputs: Mapping[str, npt.NDArray[np.float32]],
    labels: Sequence[str],
) -> tuple[bytes, dict[str, str]]:
    """The body that answers `request`, and its headers.

    `outputs` are float32 `[N, C]` by name. One asked for by its top k classes becomes BYTES `[N, min(k, C)]`, each
    "value:index:label" with six decimals as Triton writes it, the highest first; `labels` are the C names.

    Raises:
        ProtocolError: the request asks for an output that is not among them.
    """
    _check_outputs(request, outputs)
    told: list[dict[str, Any]] = []
    parts = [b""]
    for asked in request.outputs or [Asked(name, request.binary, 0) for name in outputs]:
        array = np.ascontiguousarray(outputs[asked.name], "<f4")
        texts = _top(array, asked.top, labels) if asked.top else []
        shape = [len(array), min(asked.top, array.shape[1])] if asked.top else list(array.shape)
        one: dict[str, Any] = {"name": asked.name, "datatype": "BYTES" if asked.top else "FP32", "shape": shape}
        if asked.binary:
            raw = b"".join(map(_with_length, texts)) if asked.top else array.tobytes()
            parts.append(raw)
            one["parameters"] = {"binary_data_size": len(raw)}
        else:
            one["data"] = texts if asked.top else array.ravel().tolist()
        told.append(one)
    head: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": told}
    if request.id:
        head["id"] = request.id
    parts[0] = json.dumps(head, separators=(",", ":")).encode()
    if len(parts) == 1:
        return parts[0], {"Content-Type": "application/json"}
    return b"".join(parts), {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(parts[0]))}


def server_metadata(version: str) -> dict[str, Any]:
    """What `GET /v2` answers; `version` is the package's."""
    extensions = ["binary_tensor_data", "classification", "model_configuration"]
    return {"name": "mlops", "version": version, "extensions": extensions}


def model_metadata(
    name: str, versions: Sequence[str], kind: Kind, takes: Mapping[str, Any], classes: Sequence[str]
) -> dict[str, Any]:
    """What `GET /v2/models/{name}` answers. A side of -1 is of any length; of several inputs, a request gives one.

    `takes` is what the model's file says of its input: `height`, `width` and `resizes` of images, or the number of
    `features`.
    """
    if kind == "features":
        inputs = [{"name": "features", "datatype": "FP32", "shape": [-1, takes["features"]]}]
    else:
        sides = [-1, -1] if takes["resizes"] else [takes["height"], takes["width"]]
        inputs = [
            {"name": "images", "datatype": "UINT8", "shape": [-1, *sides, 3]},
            {"name": "encoded", "datatype": "BYTES", "shape": [-1]},
        ]
    outputs = [{"name": "probabilities", "datatype": "FP32", "shape": [-1, len(classes)]}]
    # The name that Triton has for what runs an .onnx file.
    told = {"name": name, "versions": list(versions), "platform": "onnxruntime_onnx"}
    return {**told, "inputs": inputs, "outputs": outputs}


def model_config(metadata: Mapping[str, Any], *, most: int) -> dict[str, Any]:
    """What `GET /v2/models/{name}/config` answers of a model that takes up to `most` images or rows in one request.

    As in Triton, `dims` leave the first axis out: it is the batch's.
    """

    def tensors(listed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        types = {"UINT8": "TYPE_UINT8", "BYTES": "TYPE_STRING", "FP32": "TYPE_FP32"}
        return [{"name": one["name"], "data_type": types[one["datatype"]], "dims": one["shape"][1:]} for one in listed]

    optional = {"optional": len(metadata["inputs"]) > 1}
    return {
        **{"name": metadata["name"], "platform": metadata["platform"], "backend": "onnxruntime"},
        "max_batch_size": most,
        "input": [{**one, **optional} for one in tensors(metadata["inputs"])],
        "output": tensors(metadata["outputs"]),
    }


def _json(head: bytes) -> dict[str, Any]:
    try:
        told = json.loads(str(head, "utf-8"))
    except UnicodeDecodeError as error:
        raise ProtocolError(f"the request is not UTF-8 at its byte {error.start}") from None
    except RecursionError:
        raise ProtocolError("the request is nested too deep") from None
    except ValueError as error:
        raise ProtocolError(f"the request is not JSON: {one_line(error)}") from None
    if type(told) is not dict:
        raise ProtocolError(f"the request is {brief(told)}: must be an object")
    return told


def _name(one: Any, where: str, others: Mapping[str, Any]) -> str:
    if type(one) is not dict:
        raise ProtocolError(f"{where}={brief(one)}: must be an object")
    name = take(one, "name", str, f"{where}.")
    if name in others:
        raise ProtocolError(f"{where}.name={brief(name)}: is there twice")
    return name


def _asked(one: Mapping[str, Any], name: str, where: str, binary: bool) -> Asked:
    parameters = take(one, "parameters", dict, where.removesuffix("parameters."), {})
    no_shared_memory(parameters, where)
    return Asked(
        name,
        take(parameters, "binary_data", bool, where, binary),
        take(parameters, "classification", int, where, 0),
    )


def _check_outputs(request: InferRequest, known: Mapping[str, Any] | Sequence[str]) -> None:
    for index, asked in enumerate(request.outputs):
        if asked.name not in known:
            raise ProtocolError(f"outputs[{index}].name={brief(asked.name)}: this model gives {', '.join(known)}")


def _top(rows: npt.NDArray[np.float32], top: int, labels: Sequence[str]) -> list[str]:
    """ "value:index:label" of the `top` highest of each row, one row after the other."""
    places = np.argsort(-rows, axis=1, kind="stable")[:, :top]
    values = np.take_along_axis(rows, places, 1)
    return [
        f"{value:.6f}:{place}:{labels[place]}"
        for value, place in zip(values.ravel().tolist(), places.ravel().tolist(), strict=True)
    ]


def _with_length(text: str) -> bytes:
    raw = text.encode()
    return LENGTH.pack(len(raw)) + raw
