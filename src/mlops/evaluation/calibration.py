"""Whether a probability of 90 % is right nine times out of ten: temperature scaling and the calibration error.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", 2017.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from mlops.errors import MlopsError

BINS = 15
# Logits that are off by more than tenfold are a fault of the network; a temperature would only hide it.
LOWEST, HIGHEST = 0.1, 10.0
# Each step halves the interval: 60 of them leave nothing of it that float64 could tell apart.
_STEPS = 60
# The largest float32 below 1.
_ALMOST_ONE = 1 - 2**-24


def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Softmax of `logits / temperature`, float64 `[N, classes]`. The temperature never changes which is largest."""
    return (logits.double() / temperature).softmax(dim=1)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature, from `LOWEST` to `HIGHEST`, at which validation logits `[N, classes]` fit their labels best.

    Minimises the negative log likelihood in the one parameter. It is convex in 1 / temperature, so halving the interval
    by the sign of its slope finds the minimum, the same one every time. Never worse on these images than 1.0, which
    is returned where nothing is better.

    A network without a mistake would be fitted to be sure of everything. As after N draws without a mistake (Laplace's
    rule of succession, used for calibration by Platt, 1999), 1 / (N + 2) of each label therefore goes to all classes
    alike: enough for a finite answer on a small split, and nothing on a large one.
    """
    logits, spread = logits.double(), 1 / (len(labels) + 2)
    target = logits.gather(1, labels[:, None])[:, 0] * (1 - spread) + logits.mean(dim=1) * spread
    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        expected = (probabilities(logits, math.exp(middle)) * logits).sum(dim=1)
        # The slope in 1 / temperature: above zero, the network is surer than it is right.
        if float((expected - target).mean()) > 0:
            low = middle
        else:
            high = middle
    found = math.exp((low + high) / 2)
    return found if negative_log_likelihood(logits, labels, found) < negative_log_likelihood(logits, labels) else 1.0


def negative_log_likelihood(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """Cross entropy of `logits / temperature` against labels int64 `[N]`, in float64."""
    return float(torch.nn.functional.cross_entropy(logits.double() / temperature, labels))


def temperature_of(metadata: Mapping[str, Any]) -> float:
    """The temperature of a checkpoint; 1.0 for one whose training has not ended.

    Raises:
        MlopsError: it is no number above 0.
    """
    found = metadata.get("temperature")
    if found is None:
        return 1.0
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 < found < math.inf:
        raise MlopsError(f"checkpoint: temperature={found!r}: must be a number above 0; train again")
    return float(found)


def calibration_error(chances: Tensor, labels: Tensor) -> float:
    """Expected calibration error of the likeliest class, in 15 bins of equal width: 0 is perfect.

    The mean distance between how sure a network is and how often it is right, of probabilities `[N, classes]`.
    """
    # torchmetrics would put a confidence of exactly 1 into a sixteenth bin of its own.
    return float(multiclass_calibration_error(chances.clamp(max=_ALMOST_ONE), labels, chances.shape[1], n_bins=BINS))


def reliability(chances: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """Of each bin of `calibration_error` that holds images: its `bin`, their `n`, mean `confidence` and `accuracy`."""
    confidence, said = chances.clamp(max=_ALMOST_ONE).max(dim=1)
    confidence = confidence.float()
    bins = torch.bucketize(confidence, torch.linspace(0, 1, BINS + 1), right=True) - 1
    return [
        {
            "bin": number,
            "n": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float((said == labels)[inside].double().mean()),
        }
        for number in range(BINS)
        if (inside := bins == number).any()
    ]
