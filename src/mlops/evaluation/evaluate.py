"""What a network makes of a split: always in evaluation mode, in fp32, in the same batches."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mlops.data.batches import Batch
from mlops.evaluation.metrics import epoch_metrics, mean_loss


def predict_split(model: nn.Module, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Logits float32 `[N, classes]` and labels int64 `[N]` of all batches, on the CPU."""
    model.eval()
    with torch.inference_mode():
        pairs = [(model(batch.images).float().cpu(), batch.labels.cpu()) for batch in batches]
    return torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs])


def evaluate_split(model: nn.Module, batches: Iterable[Batch], prefix: str, num_classes: int) -> dict[str, float]:
    """The metrics of an epoch on a split, under keys that begin with `prefix`."""
    logits, labels = predict_split(model, batches)
    return epoch_metrics(prefix, logits.argmax(dim=1), labels, mean_loss(logits, labels), num_classes)
