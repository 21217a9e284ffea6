"""The graph of an ONNX model from elsewhere, made into one of ours: the same network between our input and output."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, compose, helper, numpy_helper, parser, shape_inference

from mlops.adoption.onnx_input import Taken
from mlops.export import graph as graphs

# Operators that are written here mean the same from this operator set on; and this one brought antialiased resizing.
OLDEST_OPSET, RESIZING_OPSET = 9, 18
_INSIDE = "adopted/"
# What operators of ai.onnx.ml call the names and the numbers of their classes; linear and support vector ones say ints.
_NAMES, _NUMBERS = ("classlabels_strings",), ("classlabels_int64s", "classlabels_ints")


def opsets(model: ModelProto) -> dict[str, int]:
    """The version of each operator set; ONNX's own as ""."""
    return {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}


def class_names(model: ModelProto) -> list[str]:
    """The classes that a classifier of ai.onnx.ml names itself, in the order of its scores; none where it does not."""
    return [text.decode(errors="replace") for text in _first(model, _NAMES, "strings")]


def class_numbers(model: ModelProto) -> list[int]:
    """As `class_names`, the numbers that it has for its classes."""
    return list(_first(model, _NUMBERS, "ints"))


def _first(model: ModelProto, names: Sequence[str], kind: str) -> Sequence[Any]:
    """ZipMap's before those of the classifier: by them its users know the scores."""
    for node in sorted(model.graph.node, key=lambda node: node.op_type != "ZipMap"):
        for attribute in node.attribute:
            if attribute.name in names and (found := getattr(attribute, kind)):
                return cast(Sequence[Any], found)
    return ()


def without_maps(model: ModelProto) -> None:
    """Take out ZipMap, which makes a dictionary of every row: the array that goes into it becomes the output."""
    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "ZipMap"]:
        for value in graph.output:
            if value.name == node.output[0]:
                value.CopyFrom(helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, [None, None]))
        graph.node.remove(node)


def free_batch(model: ModelProto, taken: Taken) -> None:
    """Let a graph that was fixed to some rows take any number, as far as its input and its reshapes say that number.

    Whether that was all, only running it tells.
    """
    if taken.batch is None:
        return
    inferred = shape_inference.infer_shapes(model).graph
    shapes = {value.name: _shape(value) for value in (*inferred.value_info, *inferred.output)}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    for number, node in enumerate(model.graph.node):
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        wanted = [int(side) for side in constants[node.input[1]].reshape(-1)]
        if not wanted or wanted[0] != taken.batch:
            continue
        if -1 in wanted:
            known = shapes.get(node.output[0], [])
            if len(known) != len(wanted) or None in known[1:]:
                continue
            wanted = [taken.batch, *(int(side or 0) for side in known[1:])]
        name = f"{_INSIDE}any_batch_{number}"
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1, *wanted[1:]], dtype=np.int64), name))
        node.input[1] = name
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value == taken.batch:
            dims[0].dim_param = "N"
    del model.graph.value_info[:]


def keep_output(model: ModelProto, name: str) -> None:
    """Only one output, and only the nodes and constants that it is made of."""
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    needed, waiting = set[str](), [name]
    while waiting:
        if (current := waiting.pop()) not in needed:
            needed.add(current)
            if (node := makers.get(current)) is not None:
                waiting += node.input
    nodes = [node for node in graph.node if needed.intersection(node.output)]
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    outputs = [value for value in graph.output if value.name == name]
    # From before ONNX 1.5: constants stand among the inputs as well.
    inputs = [value for value in graph.input if value.name not in {tensor.name for tensor in graph.initializer}]
    for field, kept in (
        (graph.node, nodes),
        (graph.initializer, constants),
        (graph.output, outputs),
        (graph.input, inputs),
    ):
        copies = [type(one).FromString(one.SerializeToString()) for one in kept]
        del field[:]
        field.extend(copies)
    del graph.value_info[:]


def wrap(
    model: ModelProto, taken: Taken, given: Mapping[str, Any], *, outputs: int, classes: int, logits: bool
) -> ModelProto:
    """Our contract around a graph with one output.

    `given` is the `input` of the metadata. `outputs` is how many scores a row has: `classes`, or 1 for two classes.
    """
    used = opsets(model)
    header = f'<ir_version: {model.ir_version}, opset_import: ["" : {used[""]}]>'
    inside = graphs.own_names(model, _INSIDE, everything=True)
    front = _of_features(header, taken) if taken.kind == "features" else _of_images(header, taken, given)
    back = _to_probabilities(header, outputs, classes, logits)
    for part in (front, back):
        # What ai.onnx.ml asks for must be the same in all that is merged.
        part.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in used.items() if domain)
    front, back = (graphs.own_names(part, f"mlops_{n}/") for part, n in ((front, "input"), (back, "output")))
    (value,) = inside.graph.output
    merged = compose.merge_models(front, inside, io_map=[("pixels", f"{_INSIDE}{taken.name}")])
    merged = compose.merge_models(merged, back, io_map=[(value.name, "scores")])
    graphs.tidy(merged, used)
    onnx.checker.check_model(merged)
    return merged


def _of_images(header: str, taken: Taken, given: Mapping[str, Any]) -> ModelProto:
    """uint8 `[N, H, W, 3]` to what the graph takes, in the order of docs/export.md."""
    height, width, first = given["height"], given["width"], taken.layout == "nchw"
    constants: dict[str, Any] = {}
    if given["resizes"]:
        resizing, constants = graphs.resizing(given)
        steps, current, sides = [resizing], "resized", "H, W"
    else:
        steps, current, sides = [], "images", f"{height}, {width}"

    def add(name: str, operator: str, *more: str) -> None:
        nonlocal current
        steps.append(f"{name} = {operator} ({', '.join([current, *more])})")
        current = name

    if first:
        add("channels_first", "Transpose <perm = [0, 3, 1, 2]>")
    if taken.type != TensorProto.UINT8:
        add("numbers", f"Cast <to = {TensorProto.FLOAT}>")
        scaled = any(given["mean"]) or any(value != 1 for value in given["std"])
        if scaled or taken.scale == "0-1":
            add("scaled", "Div", "highest")
        if scaled:
            add("centred", "Sub", "mean")
            add("normalised", "Div", "std")
            if taken.scale == "0-255":
                add("ranged", "Mul", "highest")
        shape = (1, 3, 1, 1) if first else (1, 1, 1, 3)
        constants |= {name: np.array(given[name], dtype=np.float32).reshape(shape) for name in ("mean", "std")}
        constants["highest"] = np.float32(255)
    if taken.order == "bgr":
        add("reordered", f"Gather <axis = {1 if first else 3}>", "blue_first")
        constants["blue_first"] = np.array([2, 1, 0])
    add("pixels", f"Cast <to = {taken.type}>")
    shape_text = f"N, 3, {height}, {width}" if first else f"N, {height}, {width}, 3"
    text = "\n".join(steps)
    model = parser.parse_model(
        f"{header} prepare (uint8[N, {sides}, 3] images) => ({_name(taken.type)}[{shape_text}] pixels) {{\n{text}\n}}"
    )
    graphs.fill(model, **{name: value for name, value in constants.items() if _is_read(model.graph, name)})
    return model


def _of_features(header: str, taken: Taken) -> ModelProto:
    return parser.parse_model(
        f"{header} prepare (float[N, {taken.features}] features) => "
        f"({_name(taken.type)}[N, {taken.features}] pixels) {{\n"
        f"pixels = Cast <to = {taken.type}> (features)\n}}"
    )


def _to_probabilities(header: str, outputs: int, classes: int, logits: bool) -> ModelProto:
    # Some models leave the sides of a picture of one pixel behind the scores, or no axis at all.
    steps = [f"numbers = Cast <to = {TensorProto.FLOAT}> (scores)", "rows = Reshape (numbers, shape)"]
    constants: dict[str, Any] = {"shape": np.array([-1, outputs])}
    if outputs == classes:
        steps.append(f"probabilities = {'Softmax <axis = 1>' if logits else 'Identity'} (rows)")
    else:
        constants["one"] = np.float32(1)
        steps += [
            f"second = {'Sigmoid' if logits else 'Identity'} (rows)",
            "first = Sub (one, second)",
            "probabilities = Concat <axis = 1> (first, second)",
        ]
    text = "\n".join(steps)
    model = parser.parse_model(
        f"{header} answer (float[N, {outputs}] scores) => (float[N, {classes}] probabilities) {{\n{text}\n}}"
    )
    graphs.fill(model, **constants)
    return model


def _name(type_: int) -> str:
    return str(TensorProto.DataType.Name(type_)).lower()


def _is_read(graph: GraphProto, name: str) -> bool:
    return any(name in node.input for node in graph.node)


def _shape(value: onnx.ValueInfoProto) -> Sequence[int | None]:
    return [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
