"""Pictures of anybody's -> the likeliest class of each, whatever computes the probabilities. No torch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlops.data.decode import Geometry, Unreadable, decode_all
from mlops.data.tree import FolderTree
from mlops.errors import MlopsError, one_line
from mlops.image import EXTENSIONS, Pixels
from mlops.progress import bar, console

# As many images wait in memory until they are classified.
BATCH = 256
# onnxruntime needs memory for all that a batch makes on its way, and gains nothing from larger ones on a CPU.
_ONNX_BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """The likeliest class of one image."""

    path: str
    label: str
    probability: float


# From uint8 `[N, H, W, 3]` to probabilities `[N, classes]`.
Classify = Callable[[Pixels], npt.NDArray[np.floating[Any]]]


def predict_with_onnx(path: Path, images: Sequence[Path]) -> tuple[list[Prediction], list[tuple[str, str]]]:
    """What the model of `mlops export` makes of images, as `predict_paths` gives it.

    Raises:
        MlopsError: the file is no such model, or cannot be run.
    """
    from mlops.inference import OnnxModel

    model = OnnxModel.read(path)
    if model.kind != "images":
        raise MlopsError(
            f"{path}: takes {model.input['features']} features in a row, not images; serve it with mlops serve, or ask "
            "it by mlops.inference.OnnxModel"
        )

    def classify(pixels: Pixels) -> npt.NDArray[np.floating[Any]]:
        parts = range(0, len(pixels), _ONNX_BATCH)
        return np.concatenate([model.predict(pixels[start : start + _ONNX_BATCH]) for start in parts])

    warn_of_crop(model.input)
    return predict_paths(images, geometry(model.input), model.classes, classify)


def predict_paths(
    images: Sequence[Path], size: Geometry, classes: Sequence[str], classify: Classify
) -> tuple[list[Prediction], list[tuple[str, str]]]:
    """The predictions for image files and for those in folders, and (path, reason) of what could not be read.

    Raises:
        MlopsError: a probability is not finite.
    """
    found: list[Prediction] = []
    unreadable: list[tuple[str, str]] = []
    names: list[str] = []
    pixels: list[Pixels] = []

    def flush() -> None:
        if not names:
            return
        chances = classify(np.stack(pixels))
        if not np.isfinite(chances).all():
            raise MlopsError("the model gives NaN instead of probabilities; its weights are damaged, or too large")
        for name, row in zip(names, chances, strict=True):
            best = int(row.argmax())
            found.append(Prediction(name, classes[best], float(row[best])))
        names.clear()
        pixels.clear()

    for name, result in _decode_paths(images, size):
        if isinstance(result, Unreadable):
            unreadable.append((name, result.reason))
            continue
        names.append(name)
        pixels.append(result)
        if len(names) == BATCH:
            flush()
    flush()
    return found, unreadable


def geometry(given: Mapping[str, Any]) -> Geometry:
    """How images go into a model, by the `input` of its metadata."""
    return Geometry(given["height"], given["width"], given["resize"], given["filter"])


def warn_of_crop(given: Mapping[str, Any]) -> None:
    """Say that pictures without boxes differ from those of the training, where that knew boxes only."""
    if given.get("crop") == "roi":
        console.print(
            "warning: this checkpoint was trained on the boxes of its pictures only (data.roi=true); "
            "pictures without boxes should show the object alone, cut out as closely"
        )


def _decode_paths(images: Sequence[Path], size: Geometry) -> Iterator[tuple[str, Any]]:
    for path in images:
        try:
            if path.is_dir():
                tree = FolderTree(path)
                inside = [name for name in tree.names if name.lower().endswith(EXTENSIONS)]
                if not inside:
                    raise MlopsError("folder without images")
            else:
                path.stat()
                tree, inside = FolderTree(path.absolute().parent, only=[path.name]), [path.name]
        except (OSError, MlopsError) as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else one_line(error)
            yield str(path), Unreadable(reason)
            continue
        with bar("predicting", len(inside)) as progress:
            for name, result in zip(inside, decode_all(tree, inside, size, workers=0), strict=True):
                progress.advance(1)
                shown = str(path / name) if path.is_dir() else str(path)
                yield shown, result if isinstance(result, Unreadable) else result.pixels
