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
    num_classes: int,
) -> None:
    """Train for `epochs` epochs; after each, hand its metrics to `after_epoch`.

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


def make_step(
    *,
    model: nn.Module,
    optimizer: Optimizer,
    schedule: Schedule,
    loss_function: nn.Module,
    autocast: Autocast,
    seed: int,
) -> Step:
    """One step of training: a batch in, its loss (scalar) and logits `[N, classes]` out, both detached."""
    highest = [group["lr"] for group in optimizer.param_groups]

    def step(batch: Batch) -> tuple[Tensor, Tensor]:
        # Dropout draws from torch's global generator; seeded here, it is a function of (seed, step) as all else is.
        torch.manual_seed(key(seed, "step", batch.step))
        for group, lr in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = lr * schedule(batch.step)
        model.train()
        with autocast():
            logits = model(batch.images)
        logits = logits.float()
        loss = loss_function(logits, batch.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach(), logits.detach()

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
