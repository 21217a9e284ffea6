"""What goes into an ONNX model from elsewhere: what its graph tells, and what `--input` and `--scores` say of the rest.

--input images:WORD,...      nchw or nhwc; 0-1 or 0-255; rgb or bgr
--input features:F           so many numbers in a row, or their names between commas
--scores KIND[:OUTPUT]       logits or probabilities, and which of several outputs they are
"""

from dataclasses import dataclass
from typing import Literal, cast

from onnx import ModelProto, TensorProto

from mlops.errors import MlopsError, shorten
from mlops.onnx_file import MOST_FEATURES

Kind = Literal["images", "features"]
_WORDS = {"nchw": "layout", "nhwc": "layout", "0-1": "scale", "0-255": "scale", "rgb": "order", "bgr": "order"}
_SAID = {"layout": "nchw or nhwc", "scale": "0-1 or 0-255", "order": "rgb or bgr"}
_NUMBERS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}
_WHOLE = {TensorProto.INT32, TensorProto.INT64}
_IMAGE_RANK, _FEATURE_RANK = 4, 2


@dataclass(frozen=True)
class Said:
    """What `--input` says; None is what was not said."""

    kind: Kind | None = None
    layout: str | None = None
    scale: str | None = None
    order: str | None = None
    features: int | None = None
    names: list[str] | None = None


@dataclass(frozen=True)
class Taken:
    """What a graph takes.

    Args:
        name: of its input.
        type: of its numbers, as ONNX counts them.
        batch: how many rows it is fixed to; None where any number goes.
        height, width: of images, pixels; None where the graph leaves them open.
        layout: `nchw` or `nhwc` of images.
        scale: `0-1` or `0-255`.
        order: `rgb` or `bgr`.
        features: how many numbers are in a row.
    """

    kind: Kind
    name: str
    type: int
    batch: int | None
    height: int | None = None
    width: int | None = None
    layout: str = "nchw"
    scale: str = "0-1"
    order: str = "rgb"
    features: int = 0
    names: list[str] | None = None


def read_said(text: str | None) -> Said:
    """`--input` as values.

    Raises:
        MlopsError: it is not of that form.
    """
    if text is None:
        return Said()
    kind, _, rest = text.partition(":")
    parts = [part.strip() for part in rest.split(",")] if rest.strip() else []
    if kind == "features":
        return _read_features(text, parts)
    if kind != "images":
        raise MlopsError(f"--input={text}: must begin with images or features, such as images:0-1,rgb or features:512")
    found: dict[str, str] = {}
    for part in parts:
        field = _WORDS.get(part.lower())
        if field is None:
            raise MlopsError(f"--input={text}: {part!r} is none of {', '.join(_SAID.values())}")
        if field in found:
            raise MlopsError(f"--input={text}: says {found[field]} and {part.lower()}; only one of them can be")
        found[field] = part.lower()
    return Said("images", found.get("layout"), found.get("scale"), found.get("order"))


def _read_features(text: str, parts: list[str]) -> Said:
    if not parts:
        return Said("features")
    if len(parts) == 1 and parts[0].isdecimal():
        if not 0 < int(parts[0]) <= MOST_FEATURES:
            raise MlopsError(f"--input={text}: must be from 1 to {MOST_FEATURES:,} numbers in a row")
        return Said("features", features=int(parts[0]))
    if not all(part and part.isprintable() for part in parts) or len(set(parts)) < len(parts):
        raise MlopsError(f"--input={text}: must be a number, or the name of each feature once: features:height,weight")
    return Said("features", features=len(parts), names=parts)


def read_scores(text: str | None) -> tuple[str | None, str | None]:
    """`--scores` as what the model gives and the name of the output; None is what was not said.

    Raises:
        MlopsError: it is not of that form.
    """
    if text is None:
        return None, None
    kind, colon, output = text.partition(":")
    if kind not in ("logits", "probabilities") or (colon and not output):
        raise MlopsError(f"--scores={text}: must be logits or probabilities, and may name an output: logits:OUTPUT")
    return kind, output or None


def look_at_input(model: ModelProto, said: Said, where: str) -> Taken:
    """What a model takes, by its graph and, for what that leaves open, by `said`.

    Raises:
        MlopsError: it takes something else than images or rows of numbers, or `said` is missing or contradicts it.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1 or not inputs[0].type.HasField("tensor_type"):
        named = shorten([value.name for value in inputs], 5) or "none"
        raise MlopsError(f"{where}: takes {len(inputs)} inputs ({named}); it must take one array; export it so")
    tensor = inputs[0].type.tensor_type
    # Some exporters write -1 for what is open.
    dims = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
    kind = cast("Kind | None", {_IMAGE_RANK: "images", _FEATURE_RANK: "features"}.get(len(dims)))
    shown = f"{TensorProto.DataType.Name(tensor.elem_type).lower()} [{', '.join(str(dim or '?') for dim in dims)}]"
    known = _NUMBERS | ({TensorProto.UINT8} if kind == "images" else _WHOLE)
    if kind is None or tensor.elem_type not in known:
        raise MlopsError(
            f"{where}: takes {shown}; images are float or uint8 of four dimensions, features numbers of two"
        )
    if said.kind not in (None, kind):
        raise MlopsError(f"--input={said.kind}: {where} takes {shown}, which are {kind}")
    if kind == "features":
        return _look_at_features(inputs[0].name, tensor.elem_type, dims, said, where)
    return _look_at_images(inputs[0].name, tensor.elem_type, dims, said, where)


def _look_at_features(name: str, type_: int, dims: list[int | None], said: Said, where: str) -> Taken:
    count = dims[1] or said.features
    if count is None:
        raise MlopsError(f"{where}: does not tell how many numbers a row has; say it: --input features:512")
    if said.features not in (None, count):
        raise MlopsError(f"--input=features: {said.features} were named, and {where} takes {count} in a row")
    if count > MOST_FEATURES:
        raise MlopsError(f"{where}: takes {count:,} numbers in a row; at most {MOST_FEATURES:,} are taken")
    return Taken("features", name, type_, dims[0], features=count, names=said.names)


def _look_at_images(name: str, type_: int, dims: list[int | None], said: Said, where: str) -> Taken:
    layouts = [layout for layout, place in (("nchw", 1), ("nhwc", 3)) if dims[place] in (3, None)]
    sure = [layout for layout, place in (("nchw", 1), ("nhwc", 3)) if dims[place] == 3]
    problems = []
    if not layouts:
        raise MlopsError(f"{where}: takes {dims[1]} or {dims[3]} channels; images have 3: red, green, blue")
    found = said.layout or (sure[0] if len(sure) == 1 else layouts[0] if len(layouts) == 1 else None)
    if found is None:
        problems.append(f"{where}: does not tell whether its channels come first; say it: --input images:nchw or nhwc")
    elif found not in layouts:
        problems.append(f"--input=images:{found}: {where} has its 3 channels elsewhere: {layouts[0]}")
    whole = type_ == TensorProto.UINT8
    scale = said.scale or ("0-255" if whole else None)
    if scale is None:
        problems.append(
            f"{where}: does not tell whether it takes pixels from 0 to 1 or from 0 to 255, before mean and std; say "
            "it: --input images:0-1 or images:0-255"
        )
    elif whole and scale != "0-255":
        problems.append(f"--input=images:{scale}: {where} takes uint8, which is 0-255")
    if problems or found is None or scale is None:
        raise MlopsError(problems)
    height, width = (dims[2], dims[3]) if found == "nchw" else (dims[1], dims[2])
    return Taken("images", name, type_, dims[0], height, width, found, scale, said.order or "rgb")
