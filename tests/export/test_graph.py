import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mlops import image, targets
from mlops.errors import MlopsError
from mlops.export import graph as graphs
from mlops.inference import OnnxModel
from mlops.models.build import build_model

RNG = np.random.default_rng(0)
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


@pytest.fixture(autouse=True)
def the_same_numbers_in_any_order_of_tests() -> None:
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def given(height: int = 24, width: int = 32, resize: str = "squash", filter_: str = "bilinear") -> dict:
    return {
        "height": height,
        "width": width,
        "channels": 3,
        "mean": MEAN,
        "std": STD,
        "resize": resize,
        "filter": filter_,
        "crop": None,
    }


def resizer(told: dict):
    """What the first part of a graph makes of one image: uint8 `[height, width, 3]`, as image.py would."""
    graph = graphs._preparation(told | {"mean": [0, 0, 0], "std": [1 / 255] * 3})
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])

    def resize(pixels: np.ndarray) -> np.ndarray:
        (found,) = session.run(None, {"images": pixels[None]})
        return np.rint(found[0].transpose(1, 2, 0)).astype(int)

    return resize


def noise(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


SIZES = [(24, 32), (48, 64), (25, 33), (12, 16), (7, 9), (100, 130), (24, 90), (60, 32), (1, 1), (200, 150)]


@pytest.mark.parametrize("resize", ["squash", "pad"])
@pytest.mark.parametrize("filter_", ["bilinear", "bicubic"])
def test_a_graph_resizes_as_image_py_does(filter_: str, resize: str):
    ours = resizer(given(resize=resize, filter_=filter_))
    for size in SIZES:
        pixels = noise(*size)
        expected = image.decode(image.png(pixels), (24, 32), resize, filter_).pixels.astype(int)
        off = np.abs(ours(pixels) - expected)
        # Pillow rounds to whole levels between its two passes, and since 13 may take the other one first.
        assert off.mean() < 0.3, size
        assert off.max() <= (1 if filter_ == "bilinear" else 30), size


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_at_the_native_size_nothing_is_resized(resize: str):
    pixels = noise(24, 32)
    assert (resizer(given(resize=resize))(pixels) == pixels).all()


def test_padding_is_where_image_py_puts_it_for_any_size():
    ours = resizer(given(17, 23, resize="pad"))
    for _ in range(150):
        white = np.full((*RNG.integers(1, 80, 2), 3), 255, dtype=np.uint8)
        expected = image.decode(image.png(white), (17, 23), "pad", "bilinear").pixels
        assert (ours(white) == expected).all(), white.shape


@pytest.mark.parametrize("filter_", ["lanczos", "nearest"])
def test_with_a_filter_that_onnx_has_not_a_graph_takes_the_native_size_only(filter_: str):
    assert not graphs.resizes(filter_)
    graph = graphs._preparation(given(filter_=filter_))
    (taken,) = graph.graph.input
    assert [side.dim_value for side in taken.type.tensor_type.shape.dim[1:]] == [24, 32, 3]
    pixels = noise(24, 32)
    assert (resizer(given(filter_=filter_))(pixels) == pixels).all()


def answers(model: nn.Module, told: dict, temperature: float, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities by torch, in float64 from the logits on, and by the graph."""
    graph = graphs.assemble(graphs.trace(model, told["height"], told["width"]), told, 3, temperature)
    metadata = {"classes": ["a", "b", "c"], "input": told | {"resizes": True}}
    found = OnnxModel(graph.SerializeToString(), metadata, where="here").predict(pixels)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
    with torch.inference_mode():
        logits = model((images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1))
    return (logits.double() / temperature).softmax(dim=1).numpy(), found


@pytest.mark.parametrize(
    "name",
    [
        "mlops.models.SignNet",
        "mlops.models.TinyCNN",
        pytest.param("torchvision.models.resnet18", marks=pytest.mark.slow),
    ],
)
def test_a_graph_scales_normalises_and_answers_as_the_network(name: str):
    model = build_model(
        {"_target_": name}, targets.read_allowed(), num_classes=3, image_size=32, channels_last=True
    ).eval()
    # Random weights answer nearly the same for everything.
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    head.bias.data.zero_()
    with torch.no_grad():
        head.weight *= 2 / model(torch.randn(4, 3, 32, 32)).std()
    for count in (1, 5):
        pixels = RNG.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        expected, found = answers(model, given(32, 32), 2.5, pixels)
        assert found.dtype == np.float32
        assert np.abs(expected - found).max() < 1e-5
        assert np.abs(expected - 1 / 3).max() > 0.01
        assert np.abs(answers(model, given(32, 32), 1.0, pixels)[1] - found).max() > 1e-3


class Undecided(nn.Module):
    """Takes a way that depends on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.head(images.mean(dim=(2, 3)))
        return functional.relu(seen) if seen.sum() > 0 else seen


def test_a_network_that_has_no_graph_is_one_line():
    with pytest.raises(MlopsError, match=r"^export: Undecided cannot become ONNX: ") as caught:
        graphs.trace(Undecided().eval(), 8, 8)
    assert len(caught.value.problems) == 1


def test_metadata_is_written_in_place_of_what_was_there():
    graph = graphs._preparation(given())
    graphs.set_metadata(graph, {"classes": ["x"], "format": 1})
    graphs.set_metadata(graph, {"classes": ["ä"]})
    read = onnx.load_from_string(graph.SerializeToString())
    assert {entry.key: entry.value for entry in read.metadata_props} == {"classes": '["ä"]'}
