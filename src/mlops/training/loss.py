"""What a step makes small."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn


def build_loss(
    counts: Mapping[str, int],
    *,
    class_weights: Literal["balanced"] | None,
    label_smoothing: float,
    device: torch.device,
) -> nn.CrossEntropyLoss:
    """Cross entropy of logits `[N, classes]` against labels or shares of the classes, one value an image, `[N]`.

    `counts` are the training images of each class, in the order of the logits. `balanced` weighs an image by
    images / (classes * images of its class), as scikit-learn does, so that the weights' mean over the images is one.
    """
    weights = None
    if class_weights == "balanced":
        images = torch.tensor([float(count) for count in counts.values()])
        weights = (images.sum() / (len(images) * images)).to(device)
    return nn.CrossEntropyLoss(weights, label_smoothing=label_smoothing, reduction="none")
