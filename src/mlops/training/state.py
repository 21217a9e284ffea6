"""The exact state of a run between two steps: what last.pth holds beside the weights, and how it is put back.

Order, augmentation, dropout and schedule are pure functions of the step (`data/keyed.py`), so that none of them has a
state to save.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlops.errors import MlopsError, shorten
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


@dataclass(frozen=True)
class Bounds:
    """What a state must fit beside the network: epochs of the run, steps of an epoch, images of a step, and classes."""

    epochs: int
    steps: int
    images: int
    classes: int


def check(
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
    kept_weights: Mapping[str, Tensor],
    history: int,
    bounds: Bounds,
    *,
    model: nn.Module,
    kept: nn.Module,
    build_optimizer: Callable[[list[nn.Parameter]], Optimizer],
    scaler: torch.amp.GradScaler,
) -> list[str]:
    """All in which a state out of a file, which anybody may have made, is none that this run could have been in.

    `history` is the number of epochs that the file tells of.
    """
    own = model.state_dict()
    problems = _misfits("its weights", kept_weights, own)
    problems += _misfits("model", _below("model.", tensors), own if kept is not model else {})
    problems += _misfits("best", _below("best.", tensors), own if history else {})
    if not plain["epoch"] == history <= bounds.epochs:
        problems.append(f"epoch={plain['epoch']}: it tells of {history} epochs, and the run has {bounds.epochs}")
    epoch, step = _below("epoch.", tensors), plain["step"]
    counted = {"losses": step, "predictions": step * bounds.images, "labels": step * bounds.images} if step else {}
    if step > bounds.steps or {name: list(tensor.shape) for name, tensor in epoch.items()} != {
        name: [count] for name, count in counted.items()
    }:
        problems.append(f"step={step}: its running epoch is not one of {bounds.steps} steps of {bounds.images} images")
    elif step and any(
        tensor.dtype != torch.int64 or int(tensor.min()) < 0 or int(tensor.max()) >= bounds.classes
        for tensor in (epoch["predictions"], epoch["labels"])
    ):
        problems.append(f"step={step}: its running epoch holds other classes than the {bounds.classes} of the run")
    problems += _optimizer_problems(tensors, plain["optimizer"], list(model.parameters()), build_optimizer)
    wanted = scaler.state_dict()
    if plain["scaler"].keys() != wanted.keys() or not all(_is_number(value) for value in plain["scaler"].values()):
        problems.append(f"scaler: does not hold {', '.join(wanted) or 'nothing'}, all numbers")
    return problems


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
    """Put a captured state back, which `check` found nothing wrong with.

    Returns the position to go on from, and the weights of the best epoch so far.
    """
    device = next(model.parameters()).device
    kept.load_state_dict(kept_weights)
    if kept is not model:
        model.load_state_dict(_below("model.", tensors))
    fresh = optimizer.state_dict()
    groups = [
        # JSON has no tuples, and what was one (betas) is one again.
        group | {name: tuple(value) if isinstance(group.get(name), tuple) else value for name, value in saved.items()}
        for group, saved in zip(fresh["param_groups"], plain["optimizer"]["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": _states(tensors, plain["optimizer"]), "param_groups": groups})
    scaler.load_state_dict(dict(plain["scaler"]))
    position = Position(int(plain["epoch"]))
    if plain["step"]:
        epoch = {name: tensor.to(device) for name, tensor in _below("epoch.", tensors).items()}
        position.losses = list(epoch["losses"].unbind())
        position.predictions, position.labels = [epoch["predictions"]], [epoch["labels"]]
    return position, _below("best.", tensors) or None


def _states(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[int, Plain]:
    """An optimizer's state by the index of its parameter."""
    states: dict[int, Plain] = {int(index): dict(values) for index, values in plain["state"].items()}
    for full, tensor in _below("optimizer.", tensors).items():
        index, _, name = full.partition(".")
        states.setdefault(int(index), {})[name] = tensor
    return states


def _optimizer_problems(
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
    parameters: list[nn.Parameter],
    build: Callable[[list[nn.Parameter]], Optimizer],
) -> list[str]:
    try:
        states = _states(tensors, plain)
    except (ValueError, TypeError, AttributeError):
        return ["optimizer: its state is not kept by parameter"]
    # What one step leaves of a parameter that nobody uses.
    example = nn.Parameter(torch.zeros(2, 3))
    probe = build([example])
    example.grad = torch.ones_like(example)
    probe.step()
    wanted = probe.state_dict()["state"].get(0, {})
    groups = probe.state_dict()["param_groups"]
    if len(plain["groups"]) != len(groups) or any(
        {*saved, "params"} != {*group} or any(not _alike(value, group[name]) for name, value in saved.items())
        for saved, group in zip(plain["groups"], groups, strict=False)
    ):
        return ["optimizer: its settings are not those of the run's optimizer"]
    for index, values in states.items():
        if not 0 <= index < len(parameters) or values.keys() != wanted.keys():
            return [f"optimizer: its state of parameter {index} does not hold {', '.join(wanted) or 'nothing'}"]
        for name, value in values.items():
            like, shape = wanted[name], parameters[index].shape
            fits = (
                isinstance(value, Tensor)
                and (value.shape == shape if like.shape == example.shape else value.shape == like.shape)
                and value.is_floating_point() == like.is_floating_point()
                if isinstance(like, Tensor)
                else _alike(value, like)
            )
            if not fits:
                return [f"optimizer: its {name} of parameter {index} does not fit that parameter"]
    return []


def _misfits(what: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    bad = [
        name
        for name in [*wanted, *(name for name in found if name not in wanted)]
        if name not in found
        or name not in wanted
        or found[name].shape != wanted[name].shape
        or found[name].dtype != wanted[name].dtype
    ]
    return [f"{what}: not those of the run's network in {shorten(bad)}"] if bad else []


def _alike(saved: Any, fresh: Any) -> bool:
    """Whether a value out of JSON can stand where a fresh optimizer has another."""
    if isinstance(fresh, (tuple, list)):
        return isinstance(saved, list) and len(saved) == len(fresh) and all(map(_alike, saved, fresh))
    if _is_number(fresh):
        return _is_number(saved)
    return type(saved) is type(fresh)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


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
