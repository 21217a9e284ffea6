"""Smaller and faster networks: what is asked for, and what it costs on labelled images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlops.errors import MlopsError
from mlops.export.parity import Answer, spread
from mlops.export.pictures import Labelled

# Points of accuracy that making a network smaller may cost, unless the user says otherwise.
ALLOWED_LOSS = 0.5
# So many images tell the range of every activation; fewer than the least tell none.
_CALIBRATION, _LEAST_CALIBRATION = 300, 10
_BATCH = 32


@dataclass(frozen=True)
class Smaller:
    """What makes a network smaller and faster, at a price that is measured.

    Args:
        quantize: `int8` or None.
        prune: the share of channels to take out, above 0 and below 1, or None.
        finetune_epochs: how long the rest is trained after that.
        allow_loss: how many points of accuracy each of the two may cost.
    """

    quantize: str | None = None
    prune: float | None = None
    finetune_epochs: int = 5
    allow_loss: float = ALLOWED_LOSS

    def check(self) -> None:
        """Raise with all that is out of range."""
        problems = []
        if self.quantize not in (None, "int8"):
            problems.append(f"--quantize={self.quantize}: must be int8")
        if self.prune is not None and not 0 < self.prune < 1:
            problems.append(f"--prune={self.prune:g}: must be above 0 and below 1, the share of channels to take out")
        if self.finetune_epochs < 1:
            problems.append(f"--finetune-epochs={self.finetune_epochs}: must be at least 1")
        if not 0 <= self.allow_loss <= 100:
            problems.append(f"--allow-loss={self.allow_loss:g}: must be from 0 to 100, points of accuracy")
        if problems:
            raise MlopsError(problems)


def divide(measured: Labelled) -> tuple[Labelled, Labelled]:
    """Images to calibrate on, from all over, and the others, on which the result is scored."""
    count = len(measured.images)
    if count < 2 * _LEAST_CALIBRATION:
        raise MlopsError(
            f"--quantize=int8: {count} {measured.kind} are too few, half to calibrate on and half to score; name a "
            f"folder of {2 * _LEAST_CALIBRATION} or more with --data"
        )
    rows = spread(count, min(_CALIBRATION, count // 2))
    return measured.rows(rows), measured.rows(sorted(set(range(count)).difference(rows)))


def scores(own: Answer, graph: Answer, measured: Labelled) -> dict[str, Any]:
    """How often a graph gives the class that the checkpoint gives (`own`), and, of labelled images, how often the right
    one before and after."""
    count = len(measured.images)
    starts = range(0, count, _BATCH)
    parts = [np.ascontiguousarray(measured.images[start : start + _BATCH]) for start in starts]
    before, after = (np.concatenate([answer(part).argmax(axis=1) for part in parts]) for answer in (own, graph))
    found: dict[str, Any] = {"agreement": float((before == after).mean()), "accuracy": None}
    if measured.labels is not None:
        right = {name: float((said == measured.labels).mean()) for name, said in (("before", before), ("after", after))}
        found["accuracy"] = {**right, "images": count, "of": measured.kind}
    else:
        found |= {"images": count, "of": measured.kind}
    return found


def check_quantized(told: Mapping[str, Any], allowed: float) -> None:
    """Raise when computing in eight bits costs more than `allowed` points; without labels, when it changes more."""
    if told["accuracy"] is not None:
        check_loss("--quantize=int8", told["accuracy"], allowed)
    elif (lost := 100 * (1 - told["agreement"])) > allowed:
        raise MlopsError(
            f"--quantize=int8: {lost:.2f} % of {told['images']:,} {told['of']} get another class than from the "
            f"checkpoint, more than --allow-loss={allowed:g}; nothing was written"
        )


def check_loss(what: str, accuracy: Mapping[str, Any], allowed: float) -> None:
    """Raise when the accuracy falls by more than `allowed` points; `what` is the option that made it fall."""
    # Rounded: 0.985 - 0.98 is a little more than half a point in floating point.
    lost = round(100 * (accuracy["before"] - accuracy["after"]), 9)
    if lost > allowed:
        remedy = "prune less or train longer (--finetune-epochs), or " if what.startswith("--prune") else ""
        raise MlopsError(
            f"{what}: the accuracy falls from {accuracy['before']:.2%} to {accuracy['after']:.2%} on "
            f"{accuracy['images']:,} {accuracy['of']}, by {lost:.2f} points, more than --allow-loss={allowed:g}; "
            f"nothing was written; {remedy}allow more"
        )
