"""The loop. It is handed ready-made values and reads no config."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlops.data.batches import Batch
from mlops.data.keyed import key
from mlops.errors import MlopsError
from mlops.evaluation.metrics import epoch_metrics
from mlops.training.device import Autocast
from mlops.training.schedule import Schedule

REMEDY = "try a smaller training.optimizer.lr or training.precision=fp32"


class DivergenceError(MlopsError):
    """A loss, a metric or a weight is not a number: these settings do not train."""


Metrics = dict[str, float]
Step = Callable[[Batch], tuple[Tensor, Tensor]]


@dataclass
class Position:
    """How far a run is: the epochs behind it, and of the present one the steps that are done.

    Of each step its loss (scalar), the predicted and the true classes (int64 `[N]`), which the epoch's metrics are
    made from.
    """

    epoch: int = 0
    losses: list[Tensor] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    @property
    def step(self) -> int:
        return len(self.losses)

    def add(self, loss: Tensor, predictions: Tensor, labels: Tensor) -> None:
        """One step further."""
        self.losses.append(loss)
        self.predictions.append(predictions)
        self.labels.append(labels)

    def next_epoch(self) -> None:
        """The first step of the next epoch."""
        self.epoch += 1
        self.losses, self.predictions, self.labels = [], [], []


def fit(
    position: Position,
    *,
    epochs: int,
    batches: Callable[[int, int], Iterable[Batch]],
    step: Step,
    learning_rate: Callable[[int, int], float],
    evaluate: Callable[[], Metrics],
    after_step: Callable[[int, Tensor], None],
    after_epoch: Callable[[Metrics], None],
    stop: Callable[[], bool],
    num_classes: int,
) -> None:
    """Train from `position` to the end of `epochs` epochs, or until `stop` says so.

    `position` moves along. An epoch's batches and learning rates are asked for by epoch and step, both from 0; its
    metrics are handed to `after_epoch`.

    Raises:
        DivergenceError: a loss is not finite; nothing of that epoch was handed on.
    """
    while position.epoch < epochs and not stop():
        for batch in batches(position.epoch, position.step):
            loss, logits = step(batch)
            position.add(loss, logits.argmax(dim=1), batch.labels)
            after_step(len(batch.labels), loss)
        check_finite(position, learning_rate)
        predictions, labels = torch.cat(position.predictions), torch.cat(position.labels)
        trained = epoch_metrics("train", predictions, labels, torch.stack(position.losses).mean(), num_classes)
        metrics = {"epoch": position.epoch + 1, **trained, **evaluate()}
        if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
            raise DivergenceError(
                f"epoch {position.epoch + 1}: {bad[0]} is {metrics[bad[0]]} after its last step; {REMEDY}"
            )
        position.next_epoch()
        after_epoch(metrics)


def check_finite(position: Position, learning_rate: Callable[[int, int], float]) -> None:
    """Whether every loss of the present epoch is a number. Waits for the device, so it is not asked at every step.

    Raises:
        DivergenceError: one is not; it names the first.
    """
    bad = (~torch.isfinite(torch.stack(position.losses))).nonzero()
    if len(bad):
        first = int(bad[0])
        raise DivergenceError(
            f"epoch {position.epoch + 1}, step {first + 1}: the loss is {float(position.losses[first])} at a learning "
            f"rate of {learning_rate(position.epoch, first):.3g}; {REMEDY}"
        )


def make_step(
    *,
    forward: Callable[[Tensor], Tensor],
    optimizer: Optimizer,
    schedule: Schedule,
    loss_function: Callable[[Tensor, Tensor], Tensor],
    autocast: Autocast,
    scaler: torch.amp.GradScaler,
    set_mode: Callable[[int], None],
    after_update: Callable[[int], None],
    accumulate: int,
    clip_norm: float | None,
    seed: int,
) -> Step:
    """One step of training: a batch in, its loss (scalar) and logits `[N, classes]` out, both detached.

    Args:
        forward: the network, or its compiled form: images `[N, 3, H, W]` to logits.
        loss_function: logits and targets to a loss for each image, `[N]`.
        scaler: of fp16 gradients; a disabled one for other precisions.
        set_mode: puts the network into training mode for a step; what is frozen may depend on it.
        after_update: called with the step when the weights have changed.
        accumulate: how many parts a batch is computed in. Their gradients add up to the whole batch's.
        clip_norm: the largest norm of all gradients together.
    """
    highest = [group["lr"] for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def step(batch: Batch) -> tuple[Tensor, Tensor]:
        # Dropout draws from torch's global generator; seeded here, it is a function of (seed, step) as all else is.
        torch.manual_seed(key(seed, "step", batch.step))
        for group, lr in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = lr * schedule(batch.step)
        set_mode(batch.step)
        optimizer.zero_grad(set_to_none=True)
        losses, logits = [], []
        for images, targets in zip(
            batch.images.tensor_split(accumulate), batch.targets.tensor_split(accumulate), strict=True
        ):
            with autocast():
                output = forward(images)
            logits.append(output.detach().float())
            loss = loss_function(output.float(), targets).sum() / len(batch.targets)
            torch.autograd.backward(scaler.scale(loss))
            losses.append(loss.detach())
        if clip_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        scaler.step(optimizer)
        scaler.update()
        after_update(batch.step)
        return torch.stack(losses).sum(), torch.cat(logits)

    return step
