"""An exponential moving average of the weights (Polyak averaging), which is evaluated and kept in their place."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def follow(model: nn.Module, decay: float) -> tuple[nn.Module, Callable[[int], None]]:
    """The network to evaluate and keep, and what to call after step 0, 1, ...; the model itself when `decay` is 0.

    After n steps the average forgets with min(decay, (1 + n) / (10 + n)), as TensorFlow's does: a short run is not
    dragged down by its first weights. Running statistics of batch norm are averaged with the weights. The averaged
    weights are all its state.
    """
    if decay == 0:
        return model, _nothing

    forget = 0.0

    def mix(averaged: Any, current: Any, _: Tensor | int) -> None:
        if not torch.is_floating_point(averaged[0]):
            torch._foreach_copy_(averaged, current)  # counters, which have no mean
            return
        torch._foreach_lerp_(averaged, current, 1 - forget)

    average = AveragedModel(model, multi_avg_fn=mix, use_buffers=True)

    def after_update(step: int) -> None:
        nonlocal forget
        forget = min(decay, (1 + step) / (10 + step))
        # Its own count would be one more thing to save; at 0 it copies the weights.
        average.n_averaged.fill_(step)
        average.update_parameters(model)

    return average.module, after_update


def _nothing(_step: int) -> None:
    pass
