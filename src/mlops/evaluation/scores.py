"""The scores of a classifier on labelled images, as `mlops evaluate` and the report show them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from mlops.errors import MlopsError
from mlops.evaluation.calibration import calibration_error, probabilities, reliability
from mlops.evaluation.interval import accuracy_interval
from mlops.evaluation.metrics import epoch_metrics, mean_loss

_METRICS = {
    "loss": "loss",
    "Accuracy": "accuracy",
    "Precision": "macro_precision",
    "Recall": "macro_recall",
    "F1": "macro_f1",
    "Top5": "top5_accuracy",
    "ECE": "ece",
}


def score(
    logits: Tensor, labels: Tensor, classes: Sequence[str], *, groups: Sequence[str], temperature: float
) -> dict[str, Any]:
    """Scores of logits float `[N, classes]` against labels int64 `[N]`, as plain values.

    Macro means are taken over the classes that occur, in the labels or in the predictions. Rows of the confusion
    matrix are true classes, columns predicted ones. `groups` `[N]` names what belongs together, for the interval of
    the accuracy. `ece` and `reliability.after` are of probabilities at `temperature`; `ece_before`,
    `reliability.before` and `loss` are of the logits as they are. `top5_accuracy` is None with five classes or fewer,
    where it would always be 1.

    Raises:
        MlopsError: a probability is not finite; no score would mean anything.
    """
    if not probabilities(logits, temperature).isfinite().all():
        raise MlopsError("the model gives NaN instead of probabilities; its weights are damaged, or too large")
    count, predictions = len(classes), torch.argmax(logits, dim=1)
    overall = epoch_metrics("test", predictions, labels, mean_loss(logits, labels), count)
    confusion = multiclass_confusion_matrix(predictions, labels, count)
    each = {
        "precision": multiclass_precision(predictions, labels, count, average="none"),
        "recall": multiclass_recall(predictions, labels, count, average="none"),
        "f1": multiclass_f1_score(predictions, labels, count, average="none"),
    }
    before, after = probabilities(logits), probabilities(logits, temperature)
    return {
        "n": len(labels),
        "n_groups": len(set(groups)),
        "accuracy": overall["test_Accuracy"],
        "accuracy_interval": list(accuracy_interval((predictions == labels).numpy(), groups)),
        "top5_accuracy": (
            float(multiclass_accuracy(logits.float(), labels, count, average="micro", top_k=5)) if count > 5 else None
        ),
        "macro_precision": overall["test_Precision"],
        "macro_recall": overall["test_Recall"],
        "macro_f1": overall["test_F1"],
        "loss": overall["test_loss"],
        "temperature": temperature,
        "ece": calibration_error(after, labels),
        "ece_before": calibration_error(before, labels),
        "classes": list(classes),
        "per_class": {
            name: {**{metric: float(values[i]) for metric, values in each.items()}, "n": int(confusion[i].sum())}
            for i, name in enumerate(classes)
        },
        "reliability": {"before": reliability(before, labels), "after": reliability(after, labels)},
        "confusion_matrix": confusion.tolist(),
    }


def overall_metrics(scores: dict[str, Any]) -> dict[str, float]:
    """The overall scores under the keys that epochs use: `test_loss`, `test_Accuracy`, ..."""
    return {f"test_{name}": scores[key] for name, key in _METRICS.items() if scores[key] is not None}
