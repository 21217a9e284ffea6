import copy
import sys
from typing import Any

import pytest
import torch
from torch import nn

from mlops.errors import MlopsError
from mlops.models import SignNet, TinyCNN
from mlops.models.build import build_model, check_model, find_head
from mlops.targets import MODELS

SIGNNET = {"_target_": "mlops.models.SignNet", "width": 8}
TINYCNN = {"_target_": "mlops.models.TinyCNN", "width": 8, "hidden": 16}


def build(node: dict[str, Any], seed: int = 0, **more: Any) -> nn.Module:
    given = {"num_classes": 5, "image_size": 16, "channels_last": True, **more}
    return build_model(node, MODELS, seed=seed, **given)


@pytest.mark.parametrize("node", [SIGNNET, TINYCNN])
@pytest.mark.parametrize("size", [8, 16, 33])
def test_a_network_gives_one_logit_for_each_class_and_learns_from_every_weight(node: dict[str, Any], size: int):
    model = build(node, image_size=size)
    logits = model(torch.randn(4, 3, size, size))
    assert logits.shape == (4, 5)
    model(torch.randn(4, 3, size, size)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_tinycnn_is_three_blocks_and_a_512_unit_head():
    model = TinyCNN(num_classes=43, image_size=64)
    assert sum(isinstance(part, nn.Conv2d) for part in model.modules()) == 3
    assert [part.out_features for part in model.modules() if isinstance(part, nn.Linear)] == [512, 43]
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_310_347


def test_signnet_sees_a_dark_picture_as_it_sees_a_bright_one():
    torch.manual_seed(0)
    model = SignNet(num_classes=3, width=4).eval().double()
    dark = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(model(3 * dark + 1), model(dark), atol=1e-4, rtol=0)
    assert (model(dark.square()) - model(dark)).abs().max() > 2e-4


def test_the_weights_are_a_function_of_the_seed():
    torch.manual_seed(123)
    one, same, other = build(SIGNNET), build(SIGNNET), build(SIGNNET, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.head.weight, other.head.weight)


def test_channels_last_is_how_the_weights_lie():
    kernel = dict(build(SIGNNET).named_parameters())["stages.0.body.0.weight"]
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert not kernel.is_contiguous()


@pytest.mark.parametrize(
    ("node", "size", "problem"),
    [
        ({"_target_": "mlops.models.SignNet", "width": 0}, 16, "cannot be built"),
        ({"_target_": "mlops.models.SignNet", "num_classes": 7}, 16, "gives (2, 7) for 2 images, but there are 5"),
        (TINYCNN, 7, "cannot be built: image_size=7: must be at least 8"),
        (TINYCNN | {"image_size": 16}, 8, "cannot take images of 8 x 8 pixels (data.image_size)"),
        ({"_target_": "os.getcwd"}, 16, "is not an allowed name"),
    ],
)
def test_a_network_that_cannot_be_trained_is_named_before_any_data(node: dict[str, Any], size: int, problem: str):
    (found,) = check_model(node, MODELS, num_classes=5, image_size=size)
    assert problem in found


def test_a_network_that_fits_has_no_problem():
    assert check_model(SIGNNET, MODELS, num_classes=5, image_size=16) == []


def test_a_target_that_is_no_network_is_refused():
    with pytest.raises(MlopsError, match=r"built a Counter, not a torch\.nn\.Module"):
        build_model(
            {"_target_": "collections.Counter"},
            ["collections.Counter"],
            num_classes=2,
            image_size=8,
            channels_last=False,
        )


@pytest.mark.parametrize(
    ("node", "head"),
    [
        ({"_target_": "torchvision.models.resnet18"}, "fc"),
        ({"_target_": "torchvision.models.efficientnet_v2_s", "dropout": 0.3}, "classifier.1"),
        ({"_target_": "torchvision.models.squeezenet1_1"}, "classifier.1"),
        ({"_target_": "torchvision.models.regnet_x_400mf"}, "fc"),  # cannot be built on the meta device
        ({"_target_": "torchvision.models.vit_b_16", "image_size": 64}, "heads.head"),
        ({"_target_": "mlops.models.timm_model", "model_name": "vit_tiny_patch16_224", "img_size": 64}, "head"),
        (SIGNNET, "head"),
        (TINYCNN, "head.4"),
    ],
)
def test_the_networks_of_the_libraries_get_a_head_for_the_classes(node: dict[str, Any], head: str):
    assert check_model(node | {"weights": "DEFAULT"}, MODELS, num_classes=5, image_size=64) == []
    with torch.device("meta" if "regnet" not in node["_target_"] else "cpu"):
        model = build_model(node, MODELS, num_classes=5, image_size=64, channels_last=False)
    assert find_head(model, 5) == head


def test_every_allowed_network_of_torchvision_is_there():
    import torchvision

    known = set(torchvision.models.list_models(module=torchvision.models))
    allowed = {name.rsplit(".", 1)[1] for name in MODELS if name.startswith("torchvision.")}
    assert known - allowed == {"googlenet", "inception_v3"}
    assert allowed <= known


@pytest.mark.parametrize("name", ["no_such_net", "hf-hub:somebody/evil", "local-dir:/tmp", "../x"])
def test_timm_is_asked_for_its_own_networks_only(name: str):
    (problem,) = check_model(
        {"_target_": "mlops.models.timm_model", "model_name": name}, MODELS, num_classes=5, image_size=64
    )
    assert f"model_name={name}: timm has no such network" in problem


def test_without_timm_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    node = {"_target_": "mlops.models.timm_model", "model_name": "resnet18"}
    (problem,) = check_model(node, MODELS, num_classes=5, image_size=64)
    assert "timm is not installed; uv sync --group timm, or pip install timm" in problem


def test_a_head_that_cannot_be_told_from_the_backbone_is_refused():
    with pytest.raises(MlopsError, match=r"the last layer of Sequential is 1 of width 7, not the 5 of the classes"):
        find_head(torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 7)), 5)


def test_signnet_answers_as_exactly_on_dark_even_pictures_as_elsewhere():
    torch.manual_seed(0)
    model = SignNet(num_classes=5).eval()
    # Levels of 8 to 12 of 255, normalised with the statistics of daylight.
    images = ((torch.rand(4, 32, 32, 3) * 4 + 8) / 255 - 0.35) / 0.25
    channels_last = images.permute(0, 3, 1, 2)
    with torch.inference_mode():
        standard = model.standardise(channels_last - channels_last.mean(dim=(1, 2, 3), keepdim=True))
        exact = copy.deepcopy(model).double()(channels_last.double())
        found = model(channels_last)
    assert standard.std() > 0.5
    assert (found - exact).abs().max() < 2e-6 * exact.abs().max()
