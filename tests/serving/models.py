"""Small models in the form of `mlops export`, made without torch: each knows colours by the mean of the pixels."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto, helper, numpy_helper, parser

COLOURS = ("blue", "green", "red")
# Rows of the head: what speaks for a class in a mean red, green and blue.
_HEAD = np.array([[-1, -1, 2], [-1, 2, -1], [2, -1, -1]], dtype=np.float32)


def write_model(
    path: Path,
    classes: Sequence[str] = COLOURS,
    *,
    size: int = 8,
    scale: float = 8.0,
    work: int = 0,
    metadata: dict[str, object] | None = None,
) -> Path:
    """A model of images: its first classes are blue, green and red, as sure as `scale`; others are never likely.

    Each of `work` rounds costs some 8 million multiplications an image.
    """
    head = np.full((len(classes), 3), -2, np.float32)
    head[: len(_HEAD)] = _HEAD[: len(classes)]
    rounds, value = "", "means"
    for number in range(work):
        rounds += f"wide_{number} = MatMul ({value}, widen) deep_{number} = MatMul (wide_{number}, turn)\n"
        rounds += f"back_{number} = MatMul (deep_{number}, narrow)\n"
        value = f"back_{number}"
    model = parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]>
        mlops (uint8[N, H, W, 3] images) => (float[N, {len(classes)}] probabilities) {{
            numbers = Cast <to = 1> (images)
            sums = ReduceMean <keepdims = 0> (numbers, axes)
            means = Div (sums, highest)
            {rounds}
            logits = MatMul ({value}, head)
            probabilities = Softmax <axis = 1> (logits)
        }}"""
    )
    constants = {"axes": np.array([1, 2]), "highest": np.float32(255), "head": scale * head.T.copy()}
    if work:
        side = 2880
        widen = np.zeros((3, side), np.float32)
        widen[:, :3] = np.eye(3)
        constants |= {"widen": widen, "narrow": widen.T.copy(), "turn": np.eye(side, dtype=np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return _write(path, model, classes, _images(size), metadata)


def write_features(path: Path, classes: Sequence[str] = ("no", "yes")) -> Path:
    """A model of four numbers: the larger their sum, the likelier the last class."""
    model = parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]>
        mlops (float[N, 4] features) => (float[N, {len(classes)}] probabilities) {{
            logits = MatMul (features, head)
            probabilities = Softmax <axis = 1> (logits)
        }}"""
    )
    head = np.zeros((4, len(classes)), np.float32)
    head[:, -1] = 1
    model.graph.initializer.append(numpy_helper.from_array(head, "head"))
    return _write(path, model, classes, {"features": 4, "names": None}, None)


def _images(size: int) -> dict[str, object]:
    told = {"height": size, "width": size, "channels": 3, "mean": [0.0] * 3, "std": [1.0] * 3}
    return {**told, "resize": "squash", "filter": "bilinear", "crop": None, "resizes": True}


def _write(path: Path, model: object, classes: Sequence[str], given: object, metadata: object) -> Path:
    told = {"format": 1, "classes": list(classes), "input": given, "metrics": {"val_Accuracy": 1.0}, **(metadata or {})}
    helper.set_model_props(model, {key: json.dumps(value) for key, value in told.items()})
    path.write_bytes(model.SerializeToString())
    return path


def fails_when_it_runs(model: ModelProto) -> None:
    """Change a model of `write_model` so that it loads, and then cannot compute any image: 3 numbers are no rows of 7."""
    graph = model.graph
    graph.initializer.extend(numpy_helper.from_array(np.array([-1, n]), name) for name, n in (("odd", 7), ("even", 3)))
    graph.node.insert(2, helper.make_node("Reshape", ["sums", "odd"], ["torn"]))
    graph.node.insert(3, helper.make_node("Reshape", ["torn", "even"], ["mended"]))
    graph.node[4].input[0] = "mended"
