"""The metrics of an epoch, by torchmetrics: loss, accuracy, and precision, recall and F1 as means over the classes."""

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody knows it by
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassPrecision, MulticlassRecall


def epoch_metrics(prefix: str, predictions: Tensor, labels: Tensor, loss: Tensor, num_classes: int) -> dict[str, float]:
    """`<prefix>_loss`, `_Accuracy`, `_Precision`, `_Recall` and `_F1` of int64 `[N]` predictions and labels.

    Computed once over the whole epoch: a running metric would cost a tenth of a small network's step.
    """
    collection = MetricCollection(
        {
            "Accuracy": MulticlassAccuracy(num_classes, average="micro"),
            "Precision": MulticlassPrecision(num_classes, average="macro"),
            "Recall": MulticlassRecall(num_classes, average="macro"),
            "F1": MulticlassF1Score(num_classes, average="macro"),
        },
        prefix=f"{prefix}_",
    )
    found = collection(predictions.cpu(), labels.cpu())
    return {f"{prefix}_loss": float(loss), **{name: float(value) for name, value in found.items()}}


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy without smoothing, so that it is comparable between runs."""
    return F.cross_entropy(logits.float(), labels)
