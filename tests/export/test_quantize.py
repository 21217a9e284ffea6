import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper, parser
from torch import nn

from mlops.errors import MlopsError
from mlops.export import graph as graphs
from mlops.export.quantize import fold_pooling, quantize
from mlops.models import SignNet

RNG = np.random.default_rng(0)
GIVEN = {
    **{"height": 16, "width": 16, "channels": 3, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]},
    **{"resize": "squash", "filter": "bilinear", "crop": None},
}
IMAGES = RNG.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def the_same_numbers_in_any_order_of_tests() -> None:
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def answer(model: onnx.ModelProto, name: str, given: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {name: given})[0]


def count_quantized(model: onnx.ModelProto) -> tuple[int, int]:
    """How many convolutions and products of matrices are computed in eight bits, and how many there are."""
    quantised = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    heavy = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return sum(set(node.input[:2]) <= quantised for node in heavy), len(heavy)


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    torch.manual_seed(0)
    model = SignNet(5, width=8)
    model(torch.randn(32, 3, 16, 16))  # no batch norm stands at its start
    return graphs.trace(model.eval(), 16, 16)


@pytest.fixture(scope="module")
def quantized(network: onnx.ModelProto) -> onnx.ModelProto:
    return quantize(network, IMAGES, GIVEN)


def test_every_convolution_and_product_computes_in_eight_bits(network: onnx.ModelProto, quantized: onnx.ModelProto):
    assert count_quantized(network) == (0, 11)
    assert count_quantized(quantized) == (11, 11)
    weights = [t for t in quantized.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    assert len(weights) == 10
    # Seven bits, so that no processor's sums of two products overflow.
    assert all(np.abs(numpy_helper.to_array(weight).astype(int)).max() <= 64 for weight in weights)


def test_its_answers_stay_near(network: onnx.ModelProto, quantized: onnx.ModelProto):
    whole, small = (answer(graphs.assemble(one, GIVEN, 5, 1.0), "images", IMAGES) for one in (network, quantized))
    assert 0 < np.abs(whole - small).max() < 0.05
    assert (whole.argmax(axis=1) == small.argmax(axis=1)).mean() >= 0.9


def test_only_the_network_is_touched_and_only_operators_of_onnx_are_used(quantized: onnx.ModelProto):
    made = graphs.assemble(quantized, GIVEN, 5, 1.0)
    assert [(entry.domain, entry.version) for entry in made.opset_import] == [("", 20)]
    assert {node.domain for node in made.graph.node} == {""}
    kinds = [node.op_type for node in made.graph.node]
    assert "QuantizeLinear" not in kinds[: kinds.index("InstanceNormalization")]
    assert kinds[-2:] == ["Div", "Softmax"]


def test_the_same_images_give_the_same_bytes(network: onnx.ModelProto, quantized: onnx.ModelProto):
    assert quantize(network, IMAGES, GIVEN).SerializeToString(deterministic=True) == quantized.SerializeToString(
        deterministic=True
    )


def test_onnxruntime_runs_it_by_integer_kernels_throughout(quantized: onnx.ModelProto, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 4  # that such a file fits this machine only
    onnxruntime.InferenceSession(quantized.SerializeToString(), options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert kinds.count("QLinearConv") == 10
    assert kinds.count("QGemm") == 1
    assert not {"Conv", "Gemm", "AveragePool", "QLinearAveragePool"}.intersection(kinds)


def pooled(side: int, window: int, *, pads: str = "0, 0, 0, 0", kernel: int = 1) -> onnx.ModelProto:
    made = parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]> n (float[N, 4, {side}, {side}] x) => (float[N, 6, A, B] y) {{
            p = AveragePool <kernel_shape = [{window}, {window}], strides = [{window}, {window}], pads = [{pads}], ceil_mode = 1> (x)
            y = Conv <kernel_shape = [{kernel}, {kernel}]> (p, w, b)
        }}"""
    )
    for name, shape in (("w", (6, 4, kernel, kernel)), ("b", (6,))):
        made.graph.initializer.append(numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name))
    return made


@pytest.mark.parametrize("window", [2, 3])
def test_pooling_before_a_pointwise_convolution_becomes_part_of_it_and_nothing_else_changes(window: int):
    made = pooled(12, window)
    before = made.SerializeToString()
    folded = fold_pooling(made)
    assert [node.op_type for node in folded.graph.node] == ["Conv"]
    assert made.SerializeToString() == before
    x = RNG.normal(size=(2, 4, 12, 12)).astype(np.float32)
    assert np.allclose(answer(folded, "x", x), answer(made, "x", x), atol=1e-5)


@pytest.mark.parametrize("made", [pooled(13, 2), pooled(12, 2, pads="1, 1, 1, 1"), pooled(12, 2, kernel=3)])
def test_pooling_whose_windows_do_not_tile_the_picture_stays(made: onnx.ModelProto):
    assert [node.op_type for node in fold_pooling(made).graph.node] == ["AveragePool", "Conv"]


def test_a_network_without_anything_to_gain_is_refused():
    class Mean(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3))

    with pytest.raises(MlopsError, match="--quantize=int8: the network has no Conv, Gemm, MatMul"):
        quantize(graphs.trace(Mean().eval(), 16, 16), IMAGES, GIVEN)
