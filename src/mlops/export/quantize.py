"""Static quantisation: the network computes in eight bits, calibrated on real images; what stands around it stays.

Scales are found by onnxruntime.quantization and written as QuantizeLinear and DequantizeLinear, operators of ONNX
itself, which any runtime fuses into its own integer kernels. Chosen by measurement (docs/export.md): activations of
unsigned and weights of signed bytes, the only pair that onnxruntime computes fast on x86, and one scale for each
channel of weights.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper, shape_inference

from mlops.errors import MlopsError, one_line
from mlops.export import graph as graphs
from mlops.image import Pixels

_BATCH = 50
# What has a fast integer kernel, and what stands between two of those.
_OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool")
_HEAVY = ("Conv", "Gemm", "MatMul")


def quantize(network: ModelProto, images: Pixels, given: Mapping[str, Any]) -> ModelProto:
    """The network of `graphs.trace` in eight bits: `pixels` to `logits` still, both float32.

    `images` uint8 `[N, height, width, 3]` are what its ranges are measured on; `given` is the `input` of a checkpoint.

    Raises:
        MlopsError: it has nothing that could be quantised, or onnxruntime cannot quantise it.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Batches as onnxruntime asks for them."""

        def __init__(self) -> None:
            self._batches = _normalised(images, given)

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"pixels": batch}

    prepared = fold_pooling(network)
    for number, node in enumerate(prepared.graph.node):
        node.name = f"{node.op_type}_{number}"
    chosen = _from_the_first_heavy_one(prepared.graph.node)
    if not chosen:
        raise MlopsError(
            f"--quantize=int8: the network has no {', '.join(_HEAVY)}, which alone gain by it; export it without"
        )
    # Says that the graph needs no preparing, of which onnxruntime would else remind us on the console.
    add_pre_process_metadata(prepared)
    with tempfile.TemporaryDirectory(prefix="mlops-quantize-") as folder:
        file = Path(folder, "network.onnx")
        try:
            quantize_static(
                prepared,
                str(file),
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_OPERATORS),
                nodes_to_quantize=[node.name for node in chosen],
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                # Seven bits of weight: processors without VNNI add pairs of products in 16 bits, which would overflow
                # there, and the same file would answer otherwise than here.
                reduce_range=True,
            )
            made = onnx.load(file)
        except MemoryError:
            raise
        except Exception as error:  # onnxruntime's quantiser has no exception of its own
            raise MlopsError(f"--quantize=int8: onnxruntime cannot quantise the network: {one_line(error)}") from error
    made.ir_version = graphs.IR_VERSION
    del made.metadata_props[:]
    if any(entry.domain not in ("", "ai.onnx") for entry in made.opset_import):
        used = {node.domain for node in made.graph.node}
        kept = [entry for entry in made.opset_import if entry.domain in used]
        del made.opset_import[:]
        made.opset_import.extend(kept)
    return made


def fold_pooling(network: ModelProto) -> ModelProto:
    """A copy in which average pooling before a 1x1 convolution is part of that convolution: the same numbers.

    onnxruntime computes eight-bit average pooling one number at a time; it took 40 % of a SignNet. Only where windows
    tile the picture exactly, so that each is a mean of as many pixels.
    """
    folded = ModelProto()
    folded.CopyFrom(network)
    graph = folded.graph
    inferred = shape_inference.infer_shapes(folded).graph
    sides = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[2:]]
        for value in (*inferred.value_info, *inferred.input)
    }
    constants = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    readers = {name: node for node in graph.node for name in node.input}
    for pool in [node for node in graph.node if node.op_type == "AveragePool"]:
        after = readers.get(pool.output[0])
        if after is None or uses[pool.output[0]] != 1 or not _is_pointwise(after, constants):
            continue
        window = _attributes(pool)
        kernel, strides = list(window["kernel_shape"]), list(window.get("strides", [1, 1]))
        across = sides.get(pool.input[0], [])
        tiles = kernel == strides and len(across) == 2 and not any(window.get("pads", []))
        if not tiles or any(side == 0 or side % step for side, step in zip(across, kernel, strict=True)):
            continue
        weight = numpy_helper.to_array(constants[after.input[1]])
        spread = np.broadcast_to(weight / np.prod(kernel), (*weight.shape[:2], *kernel)).astype(weight.dtype)
        name = f"{after.input[1]}_pooled"
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(spread), name))
        del after.attribute[:]
        after.attribute.extend(
            [helper.make_attribute("kernel_shape", kernel), helper.make_attribute("strides", strides)]
        )
        after.input[0], after.input[1] = pool.input[0], name
        graph.node.remove(pool)
    used = {name for node in graph.node for name in node.input}
    left = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(left)
    del graph.value_info[:]
    return folded


def _is_pointwise(node: NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether it is a 1x1 convolution over all channels, that moves by one pixel and adds no border."""
    if node.op_type != "Conv" or node.input[1] not in constants or list(constants[node.input[1]].dims[2:]) != [1, 1]:
        return False
    told = _attributes(node)
    ones = set(told.get("strides", [1])) == {1} and not any(told.get("pads", []))
    return ones and told.get("group", 1) == 1 and told.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _from_the_first_heavy_one(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """What is quantised: from the first convolution or product on; what comes before are few and delicate numbers."""
    first = next((place for place, node in enumerate(nodes) if node.op_type in _HEAVY), len(nodes))
    return [node for node in nodes[first:] if node.op_type in _OPERATORS]


def _normalised(images: Pixels, given: Mapping[str, Any]) -> Iterator[npt.NDArray[np.float32]]:
    """Images as the graph prepares them for its network, float32 `[N, 3, height, width]`, a batch at a time."""
    mean, std = (np.array(given[name], dtype=np.float32).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    for start in range(0, len(images), _BATCH):
        scaled = images[start : start + _BATCH].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        yield (scaled - mean) / std
