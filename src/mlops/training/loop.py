"""The loop. It is handed ready-made values and reads no config."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlops.data.batches import Batch
from mlops.data.keyed import key
from mlops.errors import MlopsError
from mlops.evaluation.metrics import epoch_metrics
from mlops.training.device import Autocast
from mlops.training.schedule import Schedule

_REMEDY = "try a smaller training.optimizer.lr or training.precision=fp32"

Metrics = dict[str, float]
Step = Callable[[Batch], tuple[Tensor, Tensor]]


def fit(
    *,
    epochs: int,
    batches: Callable[[int], Iterable[Batch]],
    step: Step,
    evaluate: Callable[[], Metrics],
    after_step: Callable[[int, int, Tensor], None],
    after_epoch: Callable[[Metrics], None],
    stop: Callable[[], bool],
    num_classes: int,
) -> None:
    """Train for `epochs` epochs, or until `stop` says so; after each, hand its metrics to `after_epoch`.

    Raises:
        MlopsError: a loss is not finite; nothing of that epoch was handed on.
    """
    for epoch in range(epochs):
        losses, predictions, labels = [], [], []
        for batch in batches(epoch):
            loss, logits = step(batch)
            after_step(epoch, len(batch.labels), loss)
            losses.append(loss)
            predictions.append(logits.argmax(dim=1))
            labels.append(batch.labels)
        loss = _finite(torch.stack(losses), epoch)
        trained = epoch_metrics("train", torch.cat(predictions), torch.cat(labels), loss.mean(), num_classes)
        metrics = {"epoch": epoch + 1, **trained, **evaluate()}
        if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
            raise MlopsError(f"epoch {epoch + 1}: {bad[0]} is {metrics[bad[0]]} after its last step; {_REMEDY}")
        after_epoch(metrics)
        if stop():
            break


def make_step(
    *,
    forward: Callable[[Tensor], Tensor],
    optimizer: Optimizer,
    schedule: Schedule,
    loss_function: Callable[[Tensor, Tensor], Tensor],
    autocast: Autocast,
    scaler: torch.amp.GradScaler,
    set_mode: Callable[[int], None],
    after_update: Callable[[], None],
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
        after_update: called when the weights have changed.
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
        after_update()
        return torch.stack(losses).sum(), torch.cat(logits)

    return step


def _finite(losses: Tensor, epoch: int) -> Tensor:
    # Looked at once an epoch: a look at every step would make an accelerator wait for the CPU.
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        position = int(bad[0])
        raise MlopsError(
            f"epoch {epoch + 1}, step {position + 1} of {len(losses)}: the loss is {float(losses[position])}; {_REMEDY}"
        )
    return losses
