"""One ONNX graph from stored pixels to probabilities: resizing, scaling, the network, temperature and softmax."""

import json
import warnings
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, compose, helper, numpy_helper, parser
from torch import nn

import mlops
from mlops.errors import MlopsError, one_line
from mlops.geometry import Filter
from mlops.onnx_file import MOST_BYTES

# onnxruntime 1.17 and OpenVINO 2024 know it already. The IR version goes with it.
OPSET, IR_VERSION = 20, 9
_HEADER = f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>'

# What ONNX has of Pillow's filters. On uint8 images onnxruntime computes them in Pillow's own way (horizontally, then
# vertically, each rounded to eight bits). ONNX has no Lanczos, and its nearest takes another pixel where two are near.
_HALF = 'coordinate_transformation_mode = "half_pixel"'
_FILTERS: Mapping[Filter, str] = {
    "bilinear": f'mode = "linear", antialias = 1, exclude_outside = 1, {_HALF}',
    "bicubic": f'mode = "cubic", cubic_coeff_a = -0.5, antialias = 1, exclude_outside = 1, {_HALF}',
}


def resizes(filter_: Filter) -> bool:
    """Whether a graph can resize as `image.py` does with this filter; else it takes the native size only."""
    return filter_ in _FILTERS


def assemble(network: ModelProto, given: Mapping[str, Any], num_classes: int, temperature: float) -> ModelProto:
    """A network's graph, `pixels` to `logits`, with all that stands around it.

    `images` uint8 `[N, H, W, 3]` to `probabilities` float32 `[N, classes]`, the same bytes every time. `given` is the
    `input` of a checkpoint. N is any number; H and W are any where `resizes` says so of its filter.
    """
    prepared = compose.merge_models(
        own_names(_preparation(given), "mlops_input/"), network, io_map=[("pixels", "pixels")]
    )
    graph = compose.merge_models(
        prepared, own_names(_answer(num_classes, temperature), "mlops_output/"), io_map=[("logits", "logits")]
    )
    tidy(graph, {"": OPSET})
    onnx.checker.check_model(graph, full_check=True)
    return graph


def _preparation(given: Mapping[str, Any]) -> ModelProto:
    """Images as they are stored to pixels as the network takes them, float32 `[N, 3, height, width]`."""
    height, width = given["height"], given["width"]
    sides, steps, constants = f"{height}, {width}", "resized = Identity (images)", dict[str, Any]()
    if resizes(given["filter"]):
        sides, (steps, constants) = "H, W", resizing(given)
    model = parser.parse_model(
        f"""{_HEADER} prepare (uint8[N, {sides}, 3] images) => (float[N, 3, {height}, {width}] pixels) {{
            {steps}
            channels_first = Transpose <perm = [0, 3, 1, 2]> (resized)
            numbers = Cast <to = {TensorProto.FLOAT}> (channels_first)
            scaled = Div (numbers, highest)
            centred = Sub (scaled, mean)
            pixels = Div (centred, std)
        }}"""
    )
    fill(
        model,
        highest=np.float32(255),
        mean=np.array(given["mean"], dtype=np.float32).reshape(1, 3, 1, 1),
        std=np.array(given["std"], dtype=np.float32).reshape(1, 3, 1, 1),
        **constants,
    )
    return model


def resizing(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The steps in ONNX's text form from `images` to `resized`, uint8 `[N, height, width, 3]`, and their constants."""
    resize = f"Resize <{_FILTERS[given['filter']]}>"
    native = np.array([given["height"], given["width"]])
    common = "count = Shape <start = 0, end = 1> (images)"
    if given["resize"] == "squash":
        return (
            f"""{common}
            sizes = Concat <axis = 0> (count, native, channels)
            resized = {resize} (images, , , sizes)""",
            {"native": native, "channels": np.array([3])},
        )
    # In float64 and in the order of image.py: the rounded side is then the same one.
    return (
        f"""{common}
            stored = Shape <start = 1, end = 3> (images)
            stored_sides = Cast <to = {TensorProto.DOUBLE}> (stored)
            ratios = Div (native_sides, stored_sides)
            scale = ReduceMin <keepdims = 1> (ratios)
            exact = Mul (stored_sides, scale)
            rounded = Round (exact)
            at_least_one = Max (rounded, one)
            inner = Cast <to = {TensorProto.INT64}> (at_least_one)
            sizes = Concat <axis = 0> (count, inner, channels)
            fitted = {resize} (images, , , sizes)
            free = Sub (native, inner)
            before = Div (free, two)
            after = Sub (free, before)
            borders = Concat <axis = 0> (before, after)
            resized = Pad (fitted, borders, black, sides)""",
        {
            "native": native,
            "native_sides": native.astype(np.float64),
            "channels": np.array([3]),
            "one": np.float64(1),
            "two": np.array([2]),
            "black": np.uint8(0),
            "sides": np.array([1, 2]),
        },
    )


def trace(model: nn.Module, height: int, width: int) -> ModelProto:
    """The network itself, as torch exports it: `pixels` float32 `[N, 3, height, width]`, normalised, to `logits`.

    Raises:
        MlopsError: the network has something that ONNX has no operators for, or is too large for one file.
    """
    if sum(t.nbytes for t in model.state_dict().values()) > MOST_BYTES * 0.99:
        raise MlopsError(f"export: {type(model).__name__} has more weights than the 2 GiB that one ONNX file can hold")
    example = torch.zeros(2, 3, height, width)
    try:
        with warnings.catch_warnings():
            # The exporter warns of its own and onnxscript's deprecations, which nobody here can mend.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                external_data=False,
                verbose=False,
                opset_version=OPSET,
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("N")},),
            )
    except Exception as error:  # whatever a network of somebody's, or the exporter, raises
        cause = error.__cause__ or error
        first = one_line(Exception(str(cause).strip().split("\n", 1)[0]))
        raise MlopsError(
            f"export: {type(model).__name__} cannot become ONNX: {type(cause).__name__}: {first}"
        ) from error
    network: ModelProto = cast("torch.onnx.ONNXProgram", program).model_proto
    network.ir_version = IR_VERSION  # merging asks for the same one everywhere
    return network


def _answer(num_classes: int, temperature: float) -> ModelProto:
    """Logits to probabilities."""
    model = parser.parse_model(
        f"""{_HEADER} answer (float[N, {num_classes}] logits) => (float[N, {num_classes}] probabilities) {{
            tempered = Div (logits, temperature)
            probabilities = Softmax <axis = 1> (tempered)
        }}"""
    )
    fill(model, temperature=np.float32(temperature))
    return model


def fill(model: ModelProto, **constants: Any) -> None:
    """Give a parsed graph its constants by name."""
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())


def own_names(model: ModelProto, prefix: str, *, everything: bool = False) -> ModelProto:
    """A graph with names that no other has: `prefix` before all of them, of inputs and outputs only if `everything`."""
    prefixed: ModelProto = compose.add_prefix(model, prefix, rename_inputs=everything, rename_outputs=everything)
    return prefixed


def tidy(model: ModelProto, opsets: Mapping[str, int]) -> None:
    """Take out all that does not compute: notes of the exporter, which hold paths of this machine, among them.

    `opsets` are the versions of the operator sets that it uses.
    """
    graph = model.graph
    model.producer_name, model.producer_version = "mlops", mlops.__version__
    del model.opset_import[:]
    # Merging has left one for each part.
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in opsets.items())
    graph.name = "mlops"
    del graph.value_info[:]
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "N"


def set_metadata(model: ModelProto, values: Mapping[str, Any]) -> None:
    """Write metadata in place of what is there: every value as JSON."""
    helper.set_model_props(
        model, {key: json.dumps(value, ensure_ascii=False, allow_nan=False) for key, value in values.items()}
    )
