"""The exact state of a run between two steps: what last.pth holds beside the weights, and how it is put back.

Order, augmentation, dropout and schedule are pure functions of the step (`data/keyed.py`), so that none of them has a
state to save.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlops.errors import MlopsError
from mlops.training.loop import Position

Tensors = dict[str, Tensor]
Plain = dict[str, Any]


def capture(
    position: Position,
    *,
    model: nn.Module,
    kept: nn.Module,
    best: Mapping[str, Tensor] | None,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
) -> tuple[Tensors, Plain]:
    """The state as named tensors and plain values. The weights of `kept` are not among them: the file has them anyway.

    Args:
        model: the network that learns.
        kept: the one that is evaluated: the moving average of `model`, or `model` itself.
        best: the weights of the best epoch so far.

    Raises:
        MlopsError: the optimizer keeps what is neither a tensor nor a plain value.
    """
    tensors: Tensors = {}
    if kept is not model:
        tensors |= {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in (best or {}).items()}
    if position.step:
        tensors["epoch.losses"] = torch.stack(position.losses)
        tensors["epoch.predictions"] = torch.cat(position.predictions)
        tensors["epoch.labels"] = torch.cat(position.labels)
    saved = optimizer.state_dict()
    numbers: dict[str, Plain] = {}
    for index, values in saved["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = _plain(optimizer, name, value)
    groups = [
        {name: _plain(optimizer, name, value) for name, value in group.items() if name != "params"}
        for group in saved["param_groups"]
    ]
    return tensors, {
        "epoch": position.epoch,
        "step": position.step,
        "optimizer": {"state": numbers, "groups": groups},
        "scaler": scaler.state_dict(),
    }


def restore(
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
    kept_weights: Mapping[str, Tensor],
    *,
    model: nn.Module,
    kept: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
) -> tuple[Position, Tensors | None]:
    """Put a captured state back. Returns the position to go on from, and the weights of the best epoch so far."""
    device = next(model.parameters()).device
    kept.load_state_dict(kept_weights)
    if kept is not model:
        model.load_state_dict(_below("model.", tensors))
    fresh = optimizer.state_dict()
    state: dict[int, Plain] = {int(index): dict(values) for index, values in plain["optimizer"]["state"].items()}
    for full, tensor in _below("optimizer.", tensors).items():
        index, name = full.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    groups = [
        # JSON has no tuples, and what was one (betas) is one again.
        group | {name: tuple(value) if isinstance(group.get(name), tuple) else value for name, value in saved.items()}
        for group, saved in zip(fresh["param_groups"], plain["optimizer"]["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    scaler.load_state_dict(dict(plain["scaler"]))
    position = Position(int(plain["epoch"]))
    if plain["step"]:
        epoch = {name: tensor.to(device) for name, tensor in _below("epoch.", tensors).items()}
        position.losses = list(epoch["losses"].unbind())
        position.predictions, position.labels = [epoch["predictions"]], [epoch["labels"]]
    return position, _below("best.", tensors) or None


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _plain(optimizer: Optimizer, name: str, value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(optimizer, name, item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise MlopsError(
        f"training.optimizer: {type(optimizer).__name__} keeps {name}, a {type(value).__name__}, which no file of ours "
        "holds; a run with it could not be resumed exactly: take another optimizer"
    )
