"""A model from elsewhere is tried before it is believed: on noise, as it is and as it was wrapped."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto

from mlops.adoption import onnx_graph
from mlops.adoption.onnx_input import Taken
from mlops.errors import MlopsError, one_line, shorten
from mlops.inference import OnnxModel, start_session

Arrays = Mapping[str, npt.NDArray[Any]]

# Rows of noise, and how exactly probabilities of half precision add up to one.
_ROWS, _SUM_TOLERANCE = 8, 2e-3
# How far the answer to a row may depend on which other rows came with it.
_ROW_TOLERANCE = 1e-3


def rewrap(
    model: ModelProto,
    taken: Taken,
    given: Mapping[str, Any],
    *,
    classes: list[str],
    wanted: tuple[str | None, str | None],
    where: str,
) -> tuple[ModelProto, str]:
    """The graph in our contract, and whether it gave logits or probabilities.

    `wanted` is what `onnx_input.read_scores` read; what it leaves open is found by trying.

    Raises:
        MlopsError: it cannot be run, gives no score for each class, or cannot be wrapped.
    """
    try:
        onnx_graph.without_maps(model)
        onnx_graph.free_batch(model, taken)
        arrays = _try(model, taken, given, where)
        name = _find_scores(arrays, len(classes), wanted[1], where)
        scores = arrays[name].reshape(_ROWS, -1).astype(np.float64)
        kind = wanted[0] or _tell_kind(scores, name, where)
        onnx_graph.keep_output(model, name)
        made = onnx_graph.wrap(
            model, taken, given, outputs=scores.shape[1], classes=len(classes), logits=kind == "logits"
        )
    except (MlopsError, MemoryError):
        raise
    except Exception as error:  # what onnx's own tools raise about graphs that its checker let pass
        raise MlopsError(f"{where}: cannot be wrapped: {one_line(error)[:300]}") from error
    return made, kind


def _try(model: ModelProto, taken: Taken, given: Mapping[str, Any], where: str) -> dict[str, npt.NDArray[Any]]:
    """What the graph itself makes of rows of noise, by the names of its outputs."""
    session = start_session(model.SerializeToString(), where, 0)
    rng = np.random.default_rng(0)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(taken.type)
    if taken.kind == "features":
        rows = rng.normal(size=(_ROWS, taken.features))
    else:
        sides = [given["height"], given["width"]]
        shape = [3, *sides] if taken.layout == "nchw" else [*sides, 3]
        rows = rng.integers(0, 256, (_ROWS, *shape)) / (255 if taken.scale == "0-1" else 1)
    fixed = f"its batch is fixed to {taken.batch}; " if taken.batch else ""
    remedy = f"{fixed}export it with a batch of any size"
    names = [output.name for output in session.get_outputs() if output.type.startswith("tensor(")]
    try:
        found = session.run(names, {taken.name: rows.astype(dtype)})
    except MemoryError:
        raise
    except Exception as error:  # onnxruntime has a dozen exceptions without a base of their own
        raise MlopsError(f"{where}: cannot take {_ROWS} rows at once: {one_line(error)[:300]}; {remedy}") from error
    if taken.batch and not any(np.ndim(array) and len(array) == _ROWS for array in found):
        raise MlopsError(f"{where}: answers {_ROWS} rows as if they were others; {remedy}")
    return dict(zip(names, found, strict=True))


def _find_scores(arrays: Arrays, classes: int, wanted: str | None, where: str) -> str:
    """The output that has a score for each class."""
    shown = shorten([f"{name} {array.dtype} {list(array.shape)[1:]}" for name, array in arrays.items()], 5)
    if wanted is not None and wanted not in arrays:
        raise MlopsError(f"--scores={wanted}: {where} has no such output; it gives {shown}")
    sizes = (_ROWS * classes, *([_ROWS] if classes == 2 else []))
    fitting = [
        name
        for name, array in arrays.items()
        if wanted in (None, name)
        and np.issubdtype(array.dtype, np.floating)
        and array.size in sizes
        and len(array) == _ROWS
    ]
    if not fitting:
        raise MlopsError(
            f"{where}: gives no score for each of {classes} classes: {shown}, of each row; name as many classes as it "
            "has, with --classes"
        )
    if len(fitting) > 1:
        raise MlopsError(
            f"{where}: gives {shorten(fitting, 5)}, any of which may be scores; say which: --scores logits:{fitting[0]}"
        )
    return fitting[0]


def _tell_kind(scores: npt.NDArray[np.float64], name: str, where: str) -> str:
    """Whether these are probabilities or logits, `[N, classes]`, or `[N, 1]` of the second of two classes."""
    if not np.isfinite(scores).all():
        raise MlopsError(f"{where}: gives NaN or infinity for noise; its weights are damaged, or --input is not right")
    inside = bool((scores >= 0).all() and (scores <= 1 + _SUM_TOLERANCE).all())
    if inside and (scores.shape[1] == 1 or np.abs(scores.sum(axis=1) - 1).max() <= _SUM_TOLERANCE):
        return "probabilities"
    if inside:
        raise MlopsError(
            f"{where}: {name} is from 0 to 1 and does not add up to one: a model of several labels at once is no "
            "classifier; if these are logits all the same: --scores logits"
        )
    return "logits"


def prove(model: OnnxModel, given: Mapping[str, Any], where: str) -> None:
    """Let the finished model answer as a server asks it: alone and together, and at another size where it may.

    Raises:
        MlopsError: it fails, or answers with something else than probabilities.
    """
    rng = np.random.default_rng(1)
    shapes = [(given["height"], given["width"])] if model.kind == "images" else []
    if shapes and given["resizes"]:
        shapes.append((given["height"] + 3, given["width"] + 5))
    trials: list[npt.NDArray[Any]] = [rng.integers(0, 256, (3, *shape, 3), dtype=np.uint8) for shape in shapes]
    if model.kind == "features":
        trials = [rng.normal(size=(3, given["features"])).astype(np.float32)]
    for trial in trials:
        try:
            together = model.predict(trial)
            alone = np.concatenate([model.predict(trial[row : row + 1]) for row in range(len(trial))])
        except MemoryError:
            raise
        except Exception as error:  # onnxruntime has a dozen exceptions without a base of their own
            raise MlopsError(f"{where}: fails on noise: {one_line(error)[:300]}; is --input right?") from error
        if together.shape != (3, len(model.classes)) or alone.shape != together.shape:
            raise MlopsError(f"{where}: gives {list(together.shape)} for 3 rows and {len(model.classes)} classes")
        if not np.isfinite(together).all() or np.abs(together.sum(axis=1) - 1).max() > _SUM_TOLERANCE:
            raise MlopsError(f"{where}: does not give probabilities, which add up to one; is --scores right?")
        if (together < -_SUM_TOLERANCE).any():
            raise MlopsError(f"{where}: gives probabilities below zero; is --scores right?")
        if np.abs(together - alone).max() > _ROW_TOLERANCE:
            raise MlopsError(
                f"{where}: answers otherwise where other rows come along; export it in evaluation mode, with a batch "
                "of any size"
            )
