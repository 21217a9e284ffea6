"""The figures of a report. Each is drawn once for the page and once as a picture, by the same function.

Class names are untrusted and may be in any script: they are cut short and never read as matplotlib's mathematics.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import FigureBase
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from mlops.errors import printable
from mlops.evaluation.calibration import BINS
from mlops.page import BLUE, ORANGE

# Names on both sides and a number in each cell; names on one side; beyond, only the classes that matter most.
NAMED, _NUMBERED, SHOWN = 12, 25, 50
# Inches of one of two figures that stand side by side on a page, or above each other on a phone.
PANEL, TALL_PANEL = (4.9, 3.3), (4.9, 3.7)
FEW = 10
_INK_ON_ORANGE = "#1c2430"

Scores = Mapping[str, Any]
History = Sequence[Mapping[str, float]]


def draw_curve(figure: FigureBase, history: History, metric: str, best_epoch: int) -> None:
    """`metric` of training and validation over the epochs, with the kept epoch marked."""
    axes = figure.subplots()
    few = len(history) < 3
    for side, name, colour in (("train", "training (augmented)", ORANGE), ("val", "validation", BLUE)):
        points = [(row["epoch"], row[f"{side}_{metric}"]) for row in history if f"{side}_{metric}" in row]
        epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
        axes.plot(epochs, values, label=name, color=colour, marker="o" if few else "", markersize=4)
        kept = [(epoch, value) for epoch, value in points if epoch == best_epoch and side == "val"]
        if kept:
            axes.plot(*kept[0], "o", color=colour, markersize=7, label=f"kept: epoch {best_epoch}, {kept[0][1]:.4f}")
    axes.set(xlabel="Epoch", title=metric.capitalize())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True)
    axes.legend(frameon=False, fontsize=9)


def draw_reliability(figure: FigureBase, bins: Sequence[Mapping[str, float]], title: str) -> None:
    """How often the network was right against how sure it was, and below, how often it was that sure.

    Bars of fewer than `FEW` images are pale: chance may have made them.
    """
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    left = np.array([row["bin"] for row in bins]) / BINS
    sides = {"width": 0.92 / BINS, "align": "edge"}
    colours = [mpl.colors.to_rgba(BLUE, 0.75 if row["n"] >= FEW else 0.25) for row in bins]
    above.bar(left, [row["accuracy"] for row in bins], color=colours, **sides)
    above.plot([0, 1], [0, 1], linestyle=":", color=mpl.rcParams["text.color"], label="perfect", linewidth=1)
    above.plot(
        [row["confidence"] for row in bins],
        [row["accuracy"] for row in bins],
        "o",
        color=ORANGE,
        markersize=4,
        label="mean of the bar's images",
        clip_on=False,
    )
    above.set(xlim=(0, 1), ylim=(0, 1.05), ylabel="Share right", title=title)
    # Bars may stand anywhere; no corner is free for sure.
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    below.bar(left, [row["n"] for row in bins], color=BLUE, alpha=0.75, **sides)
    # One bin holds nearly all of a good network's images; the others must not vanish.
    below.set_yscale("log")
    below.yaxis.set_major_locator(LogLocator(numticks=3))
    below.yaxis.set_minor_locator(NullLocator())
    below.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    below.set(
        ylim=(0.5, 2 * max(row["n"] for row in bins)), xlabel="Probability of the predicted class", ylabel="Images"
    )
    for axes in (above, below):
        axes.grid(visible=True, axis="y")
        axes.set_axisbelow(True)


def confusion_size(classes: int) -> tuple[float, float]:
    """Inches of the confusion matrix."""
    if classes <= NAMED:
        side = max(2.0, 0.37 * classes)
        return side + 1.2, side + 1.2
    side = (0.3 if classes <= _NUMBERED else 0.165) * min(classes, SHOWN)
    return side + 2.9, side + 0.7


def draw_confusion(figure: FigureBase, scores: Scores) -> None:
    """True classes in rows, predicted ones in columns; blue is right, orange wrong, by the share of the true class.

    Of more classes than can be read, those with the most mistakes.
    """
    numbered, whole = len(scores["classes"]) > NAMED, np.array(scores["confusion_matrix"])
    chosen = most_confused(whole)
    names = [short(scores["classes"][i], 34 if numbered else 16) for i in chosen]
    matrix, totals, count = whole[np.ix_(chosen, chosen)], np.maximum(whole.sum(axis=1)[chosen], 1), len(chosen)
    axes = figure.subplots()
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal", xlabel="Predicted", ylabel="True")
    filled = [(int(row), int(column)) for row, column in np.argwhere(matrix)]
    # Few mistakes are the rule and the reason to look: they start at a colour that can be seen.
    shares = [float(matrix[cell] / totals[cell[0]]) for cell in filled]
    opacity = [
        0.15 + 0.85 * s if row == column else 0.3 + 0.7 * s for (row, column), s in zip(filled, shares, strict=True)
    ]
    colours = [(BLUE if row == column else ORANGE, o) for (row, column), o in zip(filled, opacity, strict=True)]
    cells = [Rectangle((column - 0.47, row - 0.47), 0.94, 0.94) for row, column in filled]
    axes.add_collection(PatchCollection(cells, facecolors=[mpl.colors.to_rgba(*c) for c in colours], linewidths=0))
    if count <= _NUMBERED:
        for (row, column), o in zip(filled, opacity, strict=True):
            on_dark = "white" if row == column else _INK_ON_ORANGE
            colour = on_dark if o > 0.55 else mpl.rcParams["text.color"]
            axes.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", fontsize=9, color=colour)
    size = 9 if count <= _NUMBERED else 7.5
    rows = [f"{name} {i}" for name, i in zip(names, chosen, strict=True)] if numbered else names
    axes.set_yticks(range(count), rows, fontsize=size, parse_math=False)
    columns = [str(i) for i in chosen] if numbered else names
    angle = 90 if numbered else 45 if any(len(name) > 3 for name in names) else 0
    axes.set_xticks(range(count), columns, fontsize=size, parse_math=False, rotation=angle, **_anchor(angle))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(visible=True, which="minor", linewidth=0.6)
    axes.tick_params(which="minor", length=0)


def per_class_size(classes: int) -> tuple[float, float]:
    """Inches of the bars of all classes: beside the matrix of a few, as wide as the page for many."""
    if classes <= NAMED:
        return PANEL[0], confusion_size(classes)[1]
    return 8.5, 0.9 + 0.24 * min(classes, SHOWN)


def draw_per_class(figure: FigureBase, scores: Scores) -> None:
    """F1 of each class that occurs, the worst first, with how many images it has. Of many classes, the worst."""
    rows = worst_classes(scores)[:SHOWN]
    axes: Axes = figure.subplots()
    places, longest = range(len(rows)), 34 if len(scores["classes"]) > NAMED else 22
    axes.barh(places, [row["f1"] for _, row in rows], color=BLUE, alpha=0.75, height=0.72)
    for place, (_, row) in zip(places, rows, strict=True):
        axes.text(row["f1"] + 0.01, place, f"{row['f1']:.3f}", va="center", fontsize=9)
    axes.set_yticks(
        places, [f"{short(name, longest)} ({row['n']:,})" for name, row in rows], fontsize=9, parse_math=False
    )
    axes.set(xlim=(0, 1.12), xticks=np.linspace(0, 1, 6), ylim=(len(rows) - 0.4, -0.6), xlabel="F1")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)


def worst_classes(scores: Scores) -> list[tuple[str, Mapping[str, float]]]:
    """(name, scores) of the classes that occur, the lowest F1 first."""
    occurring = [(name, row) for name, row in scores["per_class"].items() if row["n"]]
    return sorted(occurring, key=lambda item: (item[1]["f1"], item[0]))


def most_confused(matrix: npt.NDArray[np.int64]) -> list[int]:
    """The classes to show of a confusion matrix: all, or those with the most mistakes, in their order."""
    mistakes = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix)
    return sorted(np.argsort(-mistakes, kind="stable")[:SHOWN].tolist())


def short(name: str, longest: int) -> str:
    """A class name that fits beside an axis."""
    name = printable(name)
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _anchor(angle: int) -> dict[str, Any]:
    return {"ha": "right", "rotation_mode": "anchor"} if angle == 45 else {}
