"""Public data sets, fetched by torchvision, kept in `data.downloads` and read from there image by image.

A data set is fetched once. What it holds is then written to `listing.json` beside it, last of all and atomically, so
that a folder with a listing is whole, and later runs need neither the network nor torchvision. Sets that torchvision
keeps as one array (CIFAR, MNIST, ...) are laid out as .npy and mapped: memory stays flat, whatever the size.
"""

import contextlib
import json
import logging
import socket
import tarfile
import urllib.error
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import filelock
import numpy as np

from mlops.config import DataConfig
from mlops.data.arrays import ArrayTree
from mlops.data.listing import Entry, Listing, in_order
from mlops.data.published import SETS, gtsrb_training
from mlops.data.tree import FolderTree
from mlops.errors import MlopsError, one_line, shorten
from mlops.files import safe_relative, users_to_mend, write_text, writing_to
from mlops.progress import Bar, bar

log = logging.getLogger(__name__)

LISTING, UNFINISHED, ARRAYS = "listing.json", ".unfinished", "arrays"
# Raise it when listings of before no longer say what today's code would.
FORMAT = 1
# torchvision itself would wait for ever for a host that does not answer.
TIMEOUT_SECONDS = 30.0

# (path below the folder of the data set, label, group, split) of every image
Row = tuple[str, int, str, str | None]


def is_fetched(config: DataConfig) -> bool:
    """Whether the data set that `config` names is there, so that nothing would be downloaded."""
    return (Path(config.downloads) / str(config.dataset) / LISTING).exists()


def torchvision(name: str, downloads: Path) -> Listing:
    """The images of torchvision's data set `name`; fetched into `downloads` unless they are there.

    The official splits stay; validation images are drawn from `train` where there are none. Of GTSRB, a group is a
    track, as in `sources.gtsrb`.

    Raises:
        MlopsError: it cannot be fetched, or what lies there is no listing of ours.
    """
    folder = downloads / name
    if not (folder / LISTING).exists():
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(downloads / f".{name}.lock"):
            if not (folder / LISTING).exists():
                _fetch(name, folder)
    try:
        found = json.loads((folder / LISTING).read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(found["format"])
        where = str(folder / LISTING)
        entries = [
            Entry(safe_relative(path, where), int(label), group, split) for path, label, group, split in found["images"]
        ]
        arrays = tuple(found["arrays"])
        tree = ArrayTree(folder / ARRAYS, arrays) if arrays else FolderTree(folder, [entry.path for entry in entries])
        return in_order(tree, [str(class_name) for class_name in found["classes"]], entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MlopsError(
            f"{folder / LISTING}: is damaged or of another version ({type(error).__name__}); remove it, and it is "
            "made again from what lies beside it"
        ) from error


def _fetch(name: str, folder: Path) -> None:
    """Let torchvision download and unpack, and write the listing. Leaves nothing half-done behind, also when killed."""
    marker = folder / UNFINISHED
    if marker.exists():
        _sweep(name, folder)
    missing = [archive for archive in SETS[name].archives if not (folder / archive).exists()]
    if missing:
        log.info(f"fetching {name} into {folder}")
    write_text(marker, json.dumps([path.relative_to(folder).as_posix() for path in folder.rglob("*")]))
    try:
        with _patience():
            _list(name, folder)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        _sweep(name, folder)
        if isinstance(error, OSError) and (known := users_to_mend(error)):
            raise known from error
        raise MlopsError(_what_to_do(name, folder, error)) from error
    except BaseException:
        _sweep(name, folder)
        raise
    marker.unlink()


def _list(name: str, folder: Path) -> None:
    """Have every split downloaded and opened by torchvision; write what it holds."""
    import torchvision.datasets as library

    rows: list[Row] = []
    arrays: list[str] = []
    classes: list[str] | None = None
    for part in SETS[name].parts:
        dataset = getattr(library, name)(root=str(folder), download=True, **part.options)
        if part.read is None and part.split:
            labels = _save_array(dataset, folder / ARRAYS / f"{part.split}.images.npy")
            paths = ArrayTree(folder / ARRAYS, (part.split,)).names
            rows += [(path, label, path, part.split) for path, label in zip(paths, labels, strict=True)]
            arrays.append(part.split)
        elif part.read:
            for file, label in part.read(dataset, folder):
                path = safe_relative(file.relative_to(folder).as_posix(), name)
                # The file names of GTSRB begin with the track; only training images have one.
                together = f"{label}/{file.name.split('_')[0]}" if part.read is gtsrb_training else path
                rows.append((path, label, together, part.split))
        classes = classes or getattr(dataset, "classes", None)
    listing = {
        "format": FORMAT,
        "arrays": arrays,
        "classes": classes or [str(label) for label in range(max(row[1] for row in rows) + 1)],
        "images": rows,
    }
    write_text(folder / LISTING, json.dumps(listing, ensure_ascii=False))


def _save_array(dataset: Any, path: Path) -> list[int]:
    """Write the images of a set that is one array as uint8 `[N, H, W, 3]` or, grey, `[N, H, W]`; return the labels."""
    images = np.asarray(dataset.data)
    if images.ndim == 4 and images.shape[1] == 3:  # SVHN and STL10 keep channels first
        images = images.transpose(0, 2, 3, 1)
    path.parent.mkdir(exist_ok=True)
    written = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=images.shape)
    written[:] = images
    written.flush()
    return [int(label) for label in (dataset.targets if hasattr(dataset, "targets") else dataset.labels)]


def _sweep(name: str, folder: Path) -> None:
    """Remove what an attempt left behind, but not what was there before it, nor archives that arrived whole."""
    try:
        before = set(json.loads((folder / UNFINISHED).read_text(encoding="utf-8")))
    except ValueError:
        return  # killed while it was written: nothing had begun
    archives = [folder / archive for archive in SETS[name].archives if archive not in before]
    arrived = sorted((path for path in archives if path.exists()), key=lambda path: path.stat().st_mtime_ns)
    # One after the other they come, so it is the last one that may be half there.
    kept = before | {path.relative_to(folder).as_posix() for path in arrived[:-1]}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.relative_to(folder).as_posix() not in kept:
            if path.is_dir() and not path.is_symlink():
                with contextlib.suppress(OSError):  # holds something that is kept
                    path.rmdir()
            else:
                path.unlink()


def _what_to_do(name: str, folder: Path, error: Exception) -> str:
    # The cause of "<urlopen error ...>" is what a person understands.
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    reason = one_line(inner if isinstance(inner, BaseException) else error)
    missing = [archive for archive in SETS[name].archives if not (folder / archive).exists()]
    if missing:
        mend = f"without network, put {shorten(missing, 4)} into {folder}, or choose another data.source"
    else:
        mend = f"the archives in {folder} are damaged or of another version; remove them to fetch them anew"
    return f"data.dataset={name}: cannot be fetched ({reason[:200]}); {mend}"


class _Progress:
    """What torchvision reports its downloads to, in the place of tqdm: our bar, or our plain lines."""

    def __init__(self, total: int | None = None, **_options: Any) -> None:
        self._outer = bar("downloading", (total or 0) // 10**6, "MB")
        self._rest = 0

    def __enter__(self) -> Self:
        self._bar: Bar = self._outer.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._outer.__exit__(*exception)

    def update(self, count: int) -> None:
        self._rest += count
        if self._rest >= 10**6:
            self._bar.advance(self._rest // 10**6)
            self._rest %= 10**6


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Downloads end after a silence, and are shown as everything else is."""
    import torchvision.datasets.utils as library

    timeout, tqdm = socket.getdefaulttimeout(), library.tqdm
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    library.tqdm = _Progress
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout)
        library.tqdm = tqdm
