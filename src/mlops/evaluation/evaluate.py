"""What a network makes of a split: always in evaluation mode, in fp32, in the same batches."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlops.data.batches import Batch, Batches
from mlops.data.prepare import FORGOTTEN, Prepared
from mlops.errors import MlopsError
from mlops.evaluation.metrics import epoch_metrics, mean_loss
from mlops.evaluation.scores import score
from mlops.image import Pixels


@dataclass(frozen=True)
class Evaluated:
    """Labelled images and what a network makes of them: everything that scores and a report are made from.

    Logits float32 `[N, classes]`, labels int64 `[N]`, the path and the group of each image, and its pixels as the
    network saw them, uint8 `[N, H, W, 3]`.
    """

    source: str
    logits: Tensor
    labels: Tensor
    paths: Sequence[str]
    groups: Sequence[str]
    images: Pixels

    def scores(self, classes: Sequence[str], temperature: float) -> dict[str, Any]:
        """As `score` gives them, with where the images are from as `data`."""
        return {
            "data": self.source,
            **score(self.logits, self.labels, classes, groups=self.groups, temperature=temperature),
        }


def evaluate_prepared(model: nn.Module, data: Prepared, split: str, batches: Batches) -> Evaluated:
    """What a network makes of the images of a prepared split that are in `batches`.

    Raises:
        MlopsError: index.csv does not list the images of the split.
    """
    images, paths, groups = data.images(split), data.paths(split), data.groups(split)
    if not len(images) == len(paths) == len(groups):
        raise MlopsError(f"{data.folder}: index.csv does not list the {len(images)} images of {split}; {FORGOTTEN}")
    logits, labels = predict_split(model, batches.evaluation())
    rows = batches.rows
    if len(rows) < len(images):
        images = images[rows]
    source = f"{data.folder} ({split})"
    return Evaluated(source, logits, labels, [paths[row] for row in rows], [groups[row] for row in rows], images)


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
