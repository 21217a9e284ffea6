"""Models of either kind, opened to be compared, and the labelled images that each is scored on. No torch for .onnx."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlops.data.decode import Geometry
from mlops.errors import MlopsError, shorten
from mlops.evaluation.predict import geometry
from mlops.export.given import MOST_SCORED, find_given, read_given
from mlops.export.parity import spread
from mlops.image import Pixels
from mlops.inference import OnnxModel
from mlops.progress import bar

if TYPE_CHECKING:
    from mlops.data.prepare import Prepared

_BATCH = 32

# From what a model takes, `[N, ...]`, to probabilities `[N, classes]`.
Answer = Callable[[npt.NDArray[Any]], npt.NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class Candidate:
    """One model of a comparison.

    Args:
        name: what the user called it.
        bytes: of its file.
        given: the `input` of its metadata.
        data: of its metadata: which data it was trained on; empty where nobody knows.
        torch: whether it is a checkpoint.
        calibrated: rows of its validation images that it was calibrated on.
    """

    name: str
    bytes: int
    classes: list[str]
    given: Mapping[str, Any]
    data: Mapping[str, Any]
    answer: Answer
    torch: bool
    calibrated: frozenset[int] = frozenset()

    @property
    def size(self) -> Geometry | None:
        """How images go in; None of a model of features."""
        return None if "features" in self.given else geometry(self.given)


@dataclass(frozen=True)
class Scored:
    """Images of the native size, uint8 `[N, height, width, 3]`, and their classes, int64 `[N]`."""

    images: Pixels
    labels: npt.NDArray[np.int64]


def open_candidate(path: Path, name: str, threads: int, allow: Collection[str]) -> Candidate:
    """A model.onnx, or a checkpoint.

    Raises:
        MlopsError: it is neither, or cannot be run.
    """
    if path.suffix.lower() == ".onnx":
        model = OnnxModel.read(path, threads=threads)
        told = model.metadata.get("data")
        data = told if isinstance(told, dict) else {}
        return Candidate(
            name,
            path.stat().st_size,
            model.classes,
            model.input,
            data,
            model.predict,
            torch=False,
            calibrated=_calibrated(model.metadata.get("quantized")),
        )
    from mlops.checkpoint import is_checkpoint, read_metadata

    if path.exists() and not is_checkpoint(path):
        raise MlopsError(f"{path}: is neither a model that ends in .onnx nor a checkpoint of this project")
    if not path.exists():
        read_metadata(path)  # says what to do
    try:
        import torch
    except ImportError as error:
        raise MlopsError(f"{path}: needs torch to run; export it: mlops export {path} -o model.onnx") from error
    from mlops import config as schema
    from mlops import targets
    from mlops.checkpoint import read, rebuild
    from mlops.evaluation.calibration import temperature_of
    from mlops.export.run import own_answer

    if threads:
        torch.set_num_threads(threads)
    held = read(path)
    model_ = rebuild(held, targets.read_allowed(schema.config_folder()).union(allow))
    given, data = held.metadata["input"], held.metadata["data"]
    answer = own_answer(model_, given, temperature_of(held.metadata))
    return Candidate(name, path.stat().st_size, held.classes, given, data, answer, torch=True)


def _calibrated(quantized: Any) -> frozenset[int]:
    rows = quantized.get("calibration_rows") if isinstance(quantized, dict) else None
    return frozenset(row for row in rows if isinstance(row, int)) if isinstance(rows, list) else frozenset()


def given_images(candidates: Sequence[Candidate], data: Path) -> list[Scored | None]:
    """For each model the images of `data`, as it takes them, with the names of their folders as classes.

    Raises:
        MlopsError: there are none, one cannot be read, or lies in a folder that is no class.
    """
    files = find_given(data).few(MOST_SCORED)
    folders = [PurePosixPath(name).parent.name for name in files.names]
    if bare := [name for name, folder in zip(files.names, folders, strict=True) if not folder]:
        raise MlopsError(f"--data={data}: {shorten(bare)}: lie in no folder, whose name would be their class")
    problems = [
        f"--data={data}: {candidate.name} knows no class {shorten(unknown)}; folders must be named as classes: "
        f"{shorten(candidate.classes, 8)}"
        for candidate in candidates
        if candidate.size and (unknown := sorted(set(folders).difference(candidate.classes)))
    ]
    if problems:
        raise MlopsError(problems)
    prepared: dict[Geometry, Pixels] = {}
    found: list[Scored | None] = []
    for candidate in candidates:
        if candidate.size is None:
            found.append(None)
            continue
        if candidate.size not in prepared:
            prepared[candidate.size] = read_given(files, candidate.size)
        numbers = {name: number for number, name in enumerate(candidate.classes)}
        labels = np.array([numbers[folder] for folder in folders], dtype=np.int64)
        found.append(Scored(prepared[candidate.size], labels))
    return found


def own_images(candidates: Sequence[Candidate], processed: Path) -> list[Scored | None]:
    """For each model the validation images of the data that it was trained on; None where that is not prepared here.

    Models of the same data share them, and none is scored on what calibrated another.
    """
    own = [_own_data(candidate, processed) for candidate in candidates]
    calibrated: dict[Path, set[int]] = {}
    for candidate, prepared in zip(candidates, own, strict=True):
        if prepared is not None:
            calibrated.setdefault(prepared.folder, set()).update(candidate.calibrated)
    shared: dict[Path, Scored | None] = {}
    for prepared in own:
        if prepared is not None and prepared.folder not in shared:
            labels, left_out = prepared.labels("val"), calibrated[prepared.folder]
            rows = [row for row in spread(len(labels), MOST_SCORED) if row not in left_out]
            images = np.asarray(prepared.images("val")[rows])
            shared[prepared.folder] = Scored(images, labels[rows]) if rows else None
    return [None if prepared is None else shared[prepared.folder] for prepared in own]


def _own_data(candidate: Candidate, processed: Path) -> "Prepared | None":
    """The data that a model was trained on, where it is prepared here as the model takes it."""
    name = f"{candidate.data.get('name')}-{candidate.data.get('fingerprint')}"
    # The name comes out of a file that anybody may have made; it must not lead elsewhere.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or not (processed / name).is_dir():
        return None
    try:
        from mlops.data.prepare import open_prepared
    except ImportError:  # where only what a server needs is installed
        return None
    prepared, size = open_prepared(processed / name), candidate.size
    if size is None or prepared.classes != candidate.classes:
        return None
    return prepared if prepared.images("val").shape[1:3] == (size.height, size.width) else None


def accuracy(candidate: Candidate, scored: Scored) -> float:
    """The share of images of which a model gives the right class."""
    right = 0
    with bar(f"scoring {candidate.name}", len(scored.labels)) as progress:
        for start in range(0, len(scored.labels), _BATCH):
            images = np.ascontiguousarray(scored.images[start : start + _BATCH])
            right += int((candidate.answer(images).argmax(axis=1) == scored.labels[start : start + _BATCH]).sum())
            progress.advance(len(images))
    return right / len(scored.labels)
