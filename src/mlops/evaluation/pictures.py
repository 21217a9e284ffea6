"""Which figures a report has. The page and the files beside it are drawn by the same functions."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, Literal

from matplotlib.figure import Figure, FigureBase

from mlops import page
from mlops.evaluation import figures

Panel = tuple[Callable[[FigureBase], None], str]


@dataclass(frozen=True)
class Picture:
    """One figure, or several of one size side by side. Of each panel, what draws it and what it says."""

    size: tuple[float, float]
    panels: Sequence[Panel]
    # "compressed" is matplotlib's word for axes whose cells stay square.
    layout: Literal["constrained", "compressed"] = "constrained"

    def as_png(self) -> bytes:
        """A picture of its own, on white."""
        width, height = self.size
        buffer = BytesIO()
        with page.drawing_style(page.PICTURE_INK), warnings.catch_warnings():
            # Class names may be in any script; a box in a picture is no reason to disturb a run.
            warnings.filterwarnings("ignore", message="Glyph")
            whole = Figure(figsize=(width * len(self.panels), height), layout=self.layout)
            parts: Any = whole.subfigures(1, len(self.panels), squeeze=False)[0]
            for part, (draw, _) in zip(parts, self.panels, strict=True):
                draw(part)
            whole.savefig(buffer, format="png", dpi=120)
        return buffer.getvalue()

    def as_html(self) -> str:
        """Part of a page; panels stand below each other where there is no room."""
        found = []
        with page.drawing_style():
            for draw, caption in self.panels:
                figure = Figure(figsize=self.size, layout=self.layout)
                draw(figure)
                found.append(page.figure(figure, caption))
        return found[0] if len(found) == 1 else page.beside(found)


def pictures_of(story: Mapping[str, Any], scores: Mapping[str, Any] | None) -> dict[str, Picture]:
    """The pictures of a report by name; without scores, only what `story` (a checkpoint's metadata) holds."""

    def curve(metric: str, caption: str) -> Panel:
        return partial(figures.draw_curve, history=story["history"], metric=metric, best_epoch=story["epoch"]), caption

    curves = [curve("loss", "Cross entropy: lower is better"), curve("Accuracy", "Share of the images that are right")]
    # Adopted weights were not trained here.
    found = {"curves": Picture(figures.PANEL, curves)} if story["history"] else {}
    if scores is None:
        return found

    def diagram(key: str, title: str, caption: str) -> Panel:
        return partial(figures.draw_reliability, bins=scores["reliability"][key], title=title), caption

    count = len(scores["classes"])
    some = f" Of {count:,} classes the {figures.SHOWN} worst." if count > figures.SHOWN else ""
    matrix = f"Rows are true, columns predicted. Blue is right, orange wrong, by the share of the true class.{some}"
    return found | {
        "confusion_matrix": Picture(
            figures.confusion_size(count), [(partial(figures.draw_confusion, scores=scores), matrix)], "compressed"
        ),
        "per_class": Picture(
            figures.per_class_size(count),
            [(partial(figures.draw_per_class, scores=scores), f"F1, and in brackets how many images.{some}")],
        ),
        "reliability": Picture(
            figures.TALL_PANEL,
            [
                diagram("before", "Before scaling", f"As trained: calibration error {scores['ece_before']:.2%}"),
                diagram(
                    "after",
                    "After scaling",
                    f"With the temperature {scores['temperature']:.3f}: calibration error {scores['ece']:.2%}",
                ),
            ],
        ),
    }
