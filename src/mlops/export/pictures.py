"""The pictures that a model is compared, calibrated and scored on: the checkpoint's own, given or generated ones."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from mlops.checkpoint import Checkpoint
from mlops.config import DataConfig
from mlops.data.downloads import is_fetched
from mlops.data.prepare import Prepared, open_prepared, prepare
from mlops.data.sources import open_source
from mlops.errors import MlopsError, one_line
from mlops.evaluation.predict import geometry
from mlops.evaluation.run import find_own_data
from mlops.export.given import MOST_SCORED, find_given, read_given
from mlops.export.parity import Files, Native, generated, spread
from mlops.image import Pixels


@dataclass(frozen=True)
class Labelled:
    """Images of the native size, uint8 `[N, height, width, 3]`, and what is on them.

    Args:
        kind: in words, what they are.
        labels: int64 `[N]`, or None where nobody says.
        places: of validation images, their rows among all of them; None of given ones.
    """

    kind: str
    images: Pixels
    labels: npt.NDArray[np.int64] | None
    places: Sequence[int] | None = None

    def rows(self, rows: Sequence[int]) -> "Labelled":
        """Those in some rows."""
        chosen = list(rows)
        return Labelled(
            self.kind,
            self.images[chosen],
            None if self.labels is None else self.labels[chosen],
            None if self.places is None else [self.places[row] for row in chosen],
        )


def own_prepared(checkpoint: Checkpoint, processed: Path, why: str, instead: str = "") -> Prepared:
    """The data that a checkpoint was trained on, prepared again where only its source is here.

    Raises:
        MlopsError: it is not here; `why` begins the problem, and `instead` ends it.
    """
    try:
        found = find_own_data(checkpoint, processed)
    except MlopsError as error:
        raise MlopsError([f"{why}: {problem}{instead}" for problem in error.problems]) from error
    return open_prepared(found) if isinstance(found, Path) else prepare(found, processed)


def labelled(checkpoint: Checkpoint, data: Path | None, processed: Path, why: str) -> Labelled:
    """The images of `data`, with the names of their folders as labels where those are classes; else the validation's.

    Raises:
        MlopsError: there are none, or they cannot be read; `why` begins the problem where the checkpoint's are missing.
    """
    if data is None:
        prepared = own_prepared(checkpoint, processed, why, "; or name a folder of images with --data")
        images, labels = np.asarray(prepared.images("val")), prepared.labels("val")
        everything = Labelled("validation images", images, labels, range(len(labels)))
        return everything.rows(spread(len(labels), MOST_SCORED))
    files = find_given(data).few(MOST_SCORED)
    images = read_given(files, geometry(checkpoint.metadata["input"]))
    folders = [PurePosixPath(name).parent.name for name in files.names]
    known = {name: number for number, name in enumerate(checkpoint.classes)}
    known_all = set(folders) <= set(known)
    return Labelled(files.kind, images, np.array([known[name] for name in folders]) if known_all else None)


def to_compare(
    checkpoint: Checkpoint, data: Path | None, processed: Path, most: int
) -> tuple[Files | Native, str | None]:
    """What to compare on, and why it is not the checkpoint's own validation images."""
    if data is not None:
        return find_given(data).few(most), None
    try:
        own = find_own_data(checkpoint, processed)
    except MlopsError as error:
        return generated(geometry(checkpoint.metadata["input"])), one_line(error)
    kind = "validation images"
    if not isinstance(own, Path):
        items = [item.entry for item in own.items if item.split == "val" and item.sha256]
        files = Files(kind, own.listing.tree, [entry.path for entry in items], [entry.box for entry in items])
        return files.few(most), None
    prepared = open_prepared(own)
    found = _original_files(checkpoint, prepared, most)
    if found is not None:
        return found, None
    rows = spread(len(prepared.labels("val")), most)
    return Native(kind, prepared.images("val")[rows]), None


def _original_files(checkpoint: Checkpoint, prepared: Prepared, most: int) -> Files | None:
    """The files that validation images were made from, where they are still here, and the same."""
    settings = checkpoint.config.data
    if settings.source == "torchvision":
        settings = dataclasses.replace(settings, downloads=DataConfig().downloads)
        if not is_fetched(settings):
            return None
    try:
        listing = open_source(settings)
    except MlopsError:
        return None
    boxes = {entry.path: entry.box for entry in listing.entries}
    expected = dict(zip(prepared.paths("val"), prepared.hashes("val"), strict=True))
    names = list(expected)
    if not set(names) <= set(boxes):
        return None
    files = Files("validation images", listing.tree, names, [boxes[name] for name in names]).few(most)
    try:
        same = all(hashlib.sha256(files.tree.read(name)).hexdigest() == expected[name] for name in files.names)
    except OSError:
        return None
    return files if same else None
