"""An exponential moving average of the weights (Polyak averaging), which is evaluated and kept in their place."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def follow(model: nn.Module, decay: float) -> tuple[nn.Module, Callable[[], None]]:
    """The network to evaluate and keep, and what to call after every step; the model itself when `decay` is 0.

    After n steps the average forgets with min(decay, (1 + n) / (10 + n)), as TensorFlow's does: a short run is not
    dragged down by its first weights. Running statistics of batch norm are averaged with the weights.
    """
    if decay == 0:
        return model, _nothing

    # Counted here: torch hands its own count over on the device, and reading it there would make every step wait.
    steps = 0

    def mix(averaged: Any, current: Any, _: Tensor | int) -> None:
        if not torch.is_floating_point(averaged[0]):
            torch._foreach_copy_(averaged, current)  # counters, which have no mean
            return
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + steps) / (10 + steps)))

    average = AveragedModel(model, multi_avg_fn=mix, use_buffers=True)

    def after_update() -> None:
        nonlocal steps
        average.update_parameters(model)
        steps += 1

    return average.module, after_update


def _nothing() -> None:
    pass
