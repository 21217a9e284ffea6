import torch
from torch import nn

from mlops.training.freeze import build_mode


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2)
    )


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_while_it_is_frozen_only_the_head_changes_and_then_everything_does():
    model = network()
    mode = build_mode(model, num_classes=2, frozen_steps=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    images, labels = torch.randn(8, 3, 6, 6), torch.arange(8) % 2
    changed = []
    for step in range(3):
        before = state(model)
        mode(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        changed.append({name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])})
    assert changed[0] == changed[1] == {"5.weight", "5.bias"}
    assert changed[2] == set(model.state_dict())


def test_the_mode_is_a_function_of_the_step_alone():
    resumed = network()
    build_mode(resumed, num_classes=2, frozen_steps=2)(5)  # a run that goes on after the frozen steps
    assert all(parameter.requires_grad for parameter in resumed.parameters())
    assert all(module.training for module in resumed.modules())


def test_nothing_is_frozen_where_nothing_is_asked_for_whatever_the_network_ends_in():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    build_mode(model, num_classes=7, frozen_steps=0)(0)
    assert all(module.training for module in model.modules())
