"""The scores of a classifier on labelled images, as `mlops evaluate` and the report show them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from mlops.evaluation.metrics import epoch_metrics, mean_loss

_METRICS = {
    "loss": "loss",
    "Accuracy": "accuracy",
    "Precision": "macro_precision",
    "Recall": "macro_recall",
    "F1": "macro_f1",
}


def score(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Scores of logits float `[N, classes]` against labels int64 `[N]`, as plain values.

    Macro means are taken over the classes that occur, in the labels or in the predictions. Rows of the confusion
    matrix are true classes, columns predicted ones.
    """
    count, predictions = len(classes), torch.argmax(logits, dim=1)
    overall = epoch_metrics("test", predictions, labels, mean_loss(logits, labels), count)
    confusion = multiclass_confusion_matrix(predictions, labels, count)
    each = {
        "precision": multiclass_precision(predictions, labels, count, average="none"),
        "recall": multiclass_recall(predictions, labels, count, average="none"),
        "f1": multiclass_f1_score(predictions, labels, count, average="none"),
    }
    return {
        "n": len(labels),
        "accuracy": overall["test_Accuracy"],
        "macro_precision": overall["test_Precision"],
        "macro_recall": overall["test_Recall"],
        "macro_f1": overall["test_F1"],
        "loss": overall["test_loss"],
        "classes": list(classes),
        "per_class": {
            name: {**{metric: float(values[i]) for metric, values in each.items()}, "n": int(confusion[i].sum())}
            for i, name in enumerate(classes)
        },
        "confusion_matrix": confusion.tolist(),
    }


def overall_metrics(scores: dict[str, Any]) -> dict[str, float]:
    """The overall scores under the keys that epochs use: `test_loss`, `test_Accuracy`, ..."""
    return {f"test_{name}": scores[key] for name, key in _METRICS.items()}
