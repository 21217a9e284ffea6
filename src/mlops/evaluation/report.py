"""What a run leaves for people to look at: numbers as JSON, curves and the confusion matrix as pictures."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from mlops.errors import printable
from mlops.files import atomic, write_text

# Beyond this many classes, numbers in the cells and names on the axes are unreadable.
_READABLE_CLASSES = 25


def write_report(folder: Path, scores: dict[str, Any], history: Sequence[dict[str, float]], best_epoch: int) -> None:
    """Write `test.json`, `curves.png` and `confusion_matrix.png` into `folder`."""
    write_text(folder / "test.json", json.dumps(scores, indent=1, ensure_ascii=False))
    _save(_draw_curves(history, best_epoch), folder / "curves.png")
    _save(
        _draw_confusion(np.array(scores["confusion_matrix"]), [printable(name) for name in scores["classes"]]),
        folder / "confusion_matrix.png",
    )


def _draw_curves(history: Sequence[dict[str, float]], best_epoch: int) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, metric, label in zip(figure.subplots(1, 2), ("loss", "Accuracy"), ("Loss", "Accuracy"), strict=True):
        for side, name in (("train", "training (augmented)"), ("val", "validation")):
            axes.plot(
                epochs, [row[f"{side}_{metric}"] for row in history], label=name, marker="." if len(epochs) < 3 else ""
            )
        axes.axvline(best_epoch, color="grey", linestyle=":", label=f"best epoch ({best_epoch})")
        axes.set(xlabel="Epoch", title=label)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _draw_confusion(matrix: npt.NDArray[np.int64], classes: Sequence[str]) -> Figure:
    count = len(classes)
    figure = Figure(figsize=(min(4 + 0.35 * count, 14), min(3 + 0.35 * count, 13)), layout="constrained")
    axes = figure.subplots()
    rows = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(matrix / rows, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, label="share of the true class", shrink=0.8)
    axes.set(xlabel="Predicted", ylabel="True", title=f"{int(matrix.sum()):,} test images")
    if count <= _READABLE_CLASSES:
        axes.set_xticks(range(count), classes, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(count), classes, parse_math=False)
        for (row, column), value in np.ndenumerate(matrix):
            if value:
                colour = "white" if value > rows[row, 0] / 2 else "black"
                axes.text(column, row, str(value), ha="center", va="center", fontsize=8, color=colour)
    else:
        names = [f"{name if len(name) <= 30 else f'{name[:29]}…'}  {position}" for position, name in enumerate(classes)]
        axes.set_yticks(range(count), names, fontsize=6, parse_math=False)
        axes.set_xticks(range(count), [str(position) for position in range(count)], fontsize=6, rotation=90)
    return figure


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary, warnings.catch_warnings():
        # Class names may be in any script; a box in a picture is no reason to disturb a run.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(temporary, format="png", dpi=120)
