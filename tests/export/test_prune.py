import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from mlops.errors import MlopsError
from mlops.export.prune import remove_channels
from mlops.models import SignNet, TinyCNN


def widths(model: nn.Module) -> list[int]:
    return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]


def test_whole_channels_go_in_sixteens_and_the_head_keeps_its_classes():
    model = SignNet(43, width=32)
    before = copy.deepcopy(model.state_dict())
    pruned, told = remove_channels(model, 0.3, 48, 48, 43, seed=0)
    assert widths(pruned) == [16, 16, 16, 16, 48, 48, 48, 96, 96, 96]
    assert pruned.head.out_features == 43
    assert pruned(torch.zeros(2, 3, 48, 48)).shape == (2, 43)
    assert told["weights"]["before"] == sum(p.numel() for p in model.parameters())
    assert told["weights"]["after"] == sum(p.numel() for p in pruned.parameters()) < 0.6 * told["weights"]["before"]
    assert told["operations"]["after"] < 0.5 * told["operations"]["before"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_smallest_channels_go():
    model = TinyCNN(3, image_size=16, width=4, hidden=8)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        first.weight[1].mul_(1e-4)
    kept = first.weight[[0, 2, 3]].detach().clone()
    pruned, _ = remove_channels(model, 0.25, 16, 16, 3, seed=0)
    assert torch.equal(next(m for m in pruned.modules() if isinstance(m, nn.Conv2d)).weight, kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        lambda: torchvision.models.resnet18(num_classes=7),
        lambda: timm.create_model("mobilenetv3_small_050", num_classes=7),
    ],
)
def test_networks_of_torchvision_and_timm_can_be_pruned(build):
    pruned, told = remove_channels(build().eval(), 0.4, 64, 64, 7, seed=0)
    assert pruned(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert told["weights"]["after"] < 0.8 * told["weights"]["before"]


def test_a_network_that_loses_no_channel_is_said_so():
    with pytest.raises(MlopsError, match=r"--prune=0\.01: takes no channel of SignNet"):
        remove_channels(SignNet(3, width=16), 0.01, 16, 16, 3, seed=0)


def test_a_network_whose_head_is_not_known_is_one_line():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))
    with pytest.raises(MlopsError, match="--prune: the last layer of Sequential is not as wide as there are classes"):
        remove_channels(model, 0.5, 16, 16, 3, seed=0)


class Odd(nn.Module):
    """What depends on what, nobody can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(images).mean(dim=(2, 3))
        if features.shape[1] != 8:
            raise ValueError("eight channels were expected")
        return self.head(features)


def test_a_network_that_cannot_be_pruned_is_one_line():
    with pytest.raises(MlopsError, match="--prune: Odd cannot be pruned: eight channels were expected"):
        remove_channels(Odd(), 0.5, 16, 16, 3, seed=0)
