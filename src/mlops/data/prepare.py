"""Source -> index -> split -> `data/processed/<name>-<fingerprint>/`: the same inputs give the same folder, once."""

import contextlib
import csv
import dataclasses
import hashlib
import json
import logging
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import PIL

import mlops
from mlops import image
from mlops.config import DataConfig
from mlops.data import split as splitting
from mlops.data.arrays import ArrayWriter, channel_statistics, load, sync
from mlops.data.card import write_card
from mlops.data.decode import Geometry, Unreadable, decode_all
from mlops.data.duplicates import settle
from mlops.data.hashes import hash_all
from mlops.data.listing import SPLITS, Entry, Listing, check_classes
from mlops.data.sources import open_source
from mlops.data.versioning.here import NotHereError, request, version_of
from mlops.data.versioning.pointer import Version, need_root
from mlops.data.versioning.versions import one_at_a_time, pull
from mlops.errors import MlopsError, one_line, printable, shorten
from mlops.files import sync_folder, write_text, writing_to
from mlops.image import Pixels
from mlops.progress import bar

log = logging.getLogger(__name__)

# Part of every fingerprint: raise it when the same index would give other arrays.
LAYOUT = 1
FORGOTTEN = "none of it is used; remove the folder and prepare again"


@dataclass(frozen=True, slots=True)
class Item:
    """One image of the index: an entry, its split and the SHA-256 of its bytes (empty when unreadable)."""

    entry: Entry
    split: str
    sha256: str


@dataclass(frozen=True)
class Index:
    """What is to be prepared: every image by split and path, before any is decoded.

    `dropped` has the path and the reason of every image that is left out as a copy of another. `version` is the one
    that the files were found to be of, all of them.
    """

    name: str
    listing: Listing
    items: list[Item]
    dropped: list[dict[str, str]]
    config: DataConfig
    fingerprint: str
    version: Version | None = None

    @property
    def classes(self) -> list[str]:
        return self.listing.classes


@dataclass(frozen=True)
class Prepared:
    """A prepared folder, opened; `version` is the one of `data.dvc` that its images are of."""

    folder: Path
    manifest: dict[str, Any]
    version: Version | None = None

    @property
    def classes(self) -> list[str]:
        return list(self.manifest["classes"])

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    def images(self, split: str) -> Pixels:
        """uint8 `[N, H, W, 3]`, mapped from disk; changes stay private to this process."""
        images: Pixels = load(self.folder / f"{split}.images.npy")
        return images

    def labels(self, split: str) -> npt.NDArray[np.int64]:
        """int64 `[N]`."""
        return np.asarray(load(self.folder / f"{split}.labels.npy"))

    def paths(self, split: str) -> list[str]:
        """The path of every image in the source, in the order of the arrays."""
        return self._column("path", split)

    def groups(self, split: str) -> list[str]:
        """The group of every image, in the order of the arrays."""
        return self._column("group", split)

    def hashes(self, split: str) -> list[str]:
        """The SHA-256 of every image's file, in the order of the arrays."""
        return self._column("sha256", split)

    def _column(self, name: str, split: str) -> list[str]:
        with (self.folder / "index.csv").open(encoding="utf-8", newline="") as file:
            return [row[name] for row in csv.DictReader(file) if row["split"] == split]


def build_index(config: DataConfig) -> Index:
    """List, limit, split and hash the images that `config` names. Nothing is decoded or written.

    Versioned files are held against the manifest of their version first; with `data.pull=auto`, those that are missing
    are fetched.

    Raises:
        MlopsError: as `version_of`, `open_source`, `duplicates.settle` and `split.assign` do.
    """
    version = _settle_version(config)
    listing = open_source(config)
    entries = splitting.limit(listing.entries, config.limit, config.split.seed)
    hashes = hash_all(listing.tree, entries)
    entries, hashes, dropped = settle(
        entries, hashes, listing.classes, config.duplicates, lambda entry: image.is_image(listing.tree.read(entry.path))
    )
    splits = splitting.assign(entries, listing.classes, config.split)
    items = [Item(*item) for item in zip(entries, splits, hashes, strict=True)]
    items.sort(key=lambda item: (SPLITS.index(item.split), item.entry.path))
    name = config.name or _name_of(config.root or config.dataset or config.source)
    return Index(name, listing, items, dropped, config, _fingerprint(config, listing.classes, items), version)


def _settle_version(config: DataConfig) -> Version | None:
    try:
        return version_of(config)
    except NotHereError as error:
        if config.pull != "auto":
            raise
        with one_at_a_time(need_root()):
            with contextlib.suppress(NotHereError):
                return version_of(config)  # another run has fetched it meanwhile
            log.info(f"{one_line(error)}; fetching it (data.pull=auto)")
            pull(need_root())
        return version_of(config)


def prepare(index: Index, processed: Path) -> Prepared:
    """Decode what `index` lists into its folder below `processed`, unless that is there already.

    Several processes may call this at once: one works, the others wait and share. A killed one leaves nothing that
    looks finished.

    Raises:
        MlopsError: too many images are unreadable, a class lost all its images, or the disk is full.
    """
    folder = processed / f"{index.name}-{index.fingerprint}"
    if not folder.exists():
        with writing_to(processed):
            processed.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(processed / f".{folder.name}.lock")
            try:
                lock.acquire(timeout=0.5)
            except filelock.Timeout:
                log.info(f"waiting for another run that prepares {folder.name}")
                lock.acquire()
            try:
                if not folder.exists():
                    _build(index, folder)
            finally:
                lock.release()
    prepared = dataclasses.replace(open_prepared(folder), version=index.version)
    _check_skipped(prepared.manifest["skipped"], len(index.items), index.config.max_bad)
    _note_version(prepared, index)
    return prepared


def check_prepared(prepared: Prepared, config: DataConfig | None = None) -> None:
    """Hold what somebody else has prepared against what preparing it here would have refused.

    Raises:
        MlopsError: its classes or labels are none, or it is not what `config` asks for.
    """
    classes, manifest = prepared.classes, prepared.manifest
    problems = check_classes(classes, str(prepared.folder))
    for split in SPLITS:
        labels = prepared.labels(split)
        if labels.dtype != np.int64 or (len(labels) and not 0 <= labels.min() <= labels.max() < len(classes)):
            problems.append(f"{prepared.folder}: {split} has labels that are none of its {len(classes)} classes")
    if config is not None and manifest["image_size"] != config.image_size:
        problems.append(
            f"{prepared.folder}: is of {manifest['image_size']} pixels, not data.image_size={config.image_size}"
        )
    if problems:
        raise MlopsError([f"{problem}; {FORGOTTEN}" for problem in problems])
    if config is not None:
        total = sum(len(prepared.labels(split)) for split in SPLITS) + len(manifest["skipped"])
        _check_skipped(manifest["skipped"], total, config.max_bad)


def _note_version(prepared: Prepared, index: Index) -> None:
    """Let the manifest of a folder say which version and which settings last came to these same arrays."""
    told = _origin(index)
    if index.version is not None and any(prepared.manifest.get(key) != value for key, value in told.items()):
        prepared.manifest.update(told)
        try:
            write_text(prepared.folder / "manifest.json", json.dumps(prepared.manifest, indent=1, ensure_ascii=False))
        except MlopsError as error:
            # Of a folder that may only be read, the arrays are as good.
            log.warning(f"{one_line(error)}; `invoke data-push --processed` will not know this folder's version")


def _origin(index: Index) -> dict[str, Any]:
    config, version = index.config, index.version
    return {
        "source": {
            "kind": config.source,
            "root": config.root or config.dataset,
            "dvc_md5": version.md5 if version else None,
            "dvc_rev": version.revision if version else None,
        },
        "request": describe_request(config),
    }


def describe_request(config: DataConfig) -> dict[str, Any]:
    """Which images, and what this code makes of them: the same request and version give the same arrays."""
    return {"layout": LAYOUT, "image": image.VERSION, **request(config)}


def open_prepared(folder: Path) -> Prepared:
    """Open a prepared folder.

    Raises:
        MlopsError: it is missing, or its files do not fit each other.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        prepared = Prepared(folder, manifest)
        for split in SPLITS:
            expected = sum(manifest["counts"][split].values())
            size = manifest["image_size"]
            if prepared.images(split).shape != (expected, size, size, 3) or prepared.labels(split).shape != (expected,):
                raise MlopsError(f"{folder}: {split} does not hold the {expected} images of its manifest; {FORGOTTEN}")
    except FileNotFoundError as error:
        raise MlopsError(f"{error.filename}: is missing; prepare the data (`invoke preprocess-data`)") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MlopsError(f"{folder}: is damaged ({type(error).__name__}); {FORGOTTEN}") from error
    return prepared


def _build(index: Index, folder: Path) -> None:
    # We hold the lock, so what others left half-done is nobody's.
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(stale)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        manifest = _write_arrays(index, temporary)
        write_text(temporary / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))
        write_card(temporary, manifest)
        temporary.chmod(0o755)
        temporary.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info(f"prepared {len(index.items) - len(manifest['skipped']):,} images in {folder}")


def _write_arrays(index: Index, folder: Path) -> dict[str, Any]:
    """Write arrays and index.csv into `folder`; return the manifest."""
    config, classes = index.config, index.classes
    geometry = Geometry(config.image_size, config.image_size, config.resize, config.filter)
    counts = {split: Counter(dict.fromkeys(classes, 0)) for split in SPLITS}
    skipped: list[dict[str, str]] = []
    labels: dict[str, list[int]] = {split: [] for split in SPLITS}
    names = [item.entry.path for item in index.items]
    boxes = [item.entry.box for item in index.items]
    decoded = decode_all(index.listing.tree, names, geometry, config.workers, boxes)
    with ExitStack() as stack:
        file = stack.enter_context((folder / "index.csv").open("w", encoding="utf-8", newline=""))
        progress = stack.enter_context(bar("preparing", len(names)))
        shape = (geometry.height, geometry.width, 3)
        writers = {s: stack.enter_context(ArrayWriter(folder / f"{s}.images.npy", shape)) for s in SPLITS}
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "sha256", "width", "height", "label", "group", "split"])
        for item, result in zip(index.items, decoded, strict=True):
            progress.advance(1)
            entry = item.entry
            if isinstance(result, Unreadable):
                skipped.append({"path": entry.path, "reason": result.reason})
                log.warning(printable(f"{index.listing.tree.label}/{entry.path}: {result.reason}; skipped"))
                continue
            writers[item.split].append(result.pixels)
            labels[item.split].append(entry.label)
            counts[item.split][classes[entry.label]] += 1
            table.writerow([entry.path, item.sha256, result.width, result.height, entry.label, entry.group, item.split])
        sync(file)
    _check_skipped(skipped, len(names), config.max_bad)
    for split in SPLITS:
        with (folder / f"{split}.labels.npy").open("wb") as array:
            np.save(array, np.array(labels[split], dtype=np.int64))
            sync(array)
    lost = [f"{name} in train" for name in classes if counts["train"][name] == 0]
    lost += [split for split in SPLITS if not labels[split]]
    if lost:
        raise MlopsError(f"{index.listing.tree.label}: no readable image is left of {shorten(lost)}")
    mean, std = channel_statistics(load(folder / "train.images.npy"))
    return {
        "name": index.name,
        "fingerprint": index.fingerprint,
        "classes": classes,
        "image_size": config.image_size,
        "resize": config.resize,
        "filter": config.filter,
        "crop": "roi" if config.roi else None,
        "counts": {split: dict(counts[split]) for split in SPLITS},
        "mean": mean,
        "std": std,
        **_origin(index),
        "split": asdict(config.split),
        "skipped": skipped,
        "dropped": index.dropped,
        "versions": {
            "mlops": mlops.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _fingerprint(config: DataConfig, classes: list[str], items: Sequence[Item]) -> str:
    """A hash of the files' hashes and of every setting that changes the arrays."""
    settings = {
        "layout": LAYOUT,
        "image": image.VERSION,
        "image_size": config.image_size,
        "resize": config.resize,
        "filter": config.filter,
        "classes": classes,
        "items": [
            # Without boxes as it was before there were any: prepared data and checkpoints keep their fingerprints.
            [
                i.entry.path,
                i.sha256,
                i.entry.label,
                i.entry.group,
                i.split,
                *([] if i.entry.box is None else [i.entry.box]),
            ]
            for i in items
        ],
    }
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def _name_of(root: str) -> str:
    stem = Path(root).absolute().name.split(".")[0].lower()
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in stem).strip("-") or "data"


def _check_skipped(skipped: Sequence[dict[str, str]], total: int, max_bad: float) -> None:
    if len(skipped) <= total * max_bad:
        return
    named = [f"{bad['path']} ({bad['reason']})" for bad in skipped]
    raise MlopsError(
        f"{len(skipped)} unreadable images, more than the {int(total * max_bad)} of {total:,} "
        f"(data.max_bad={max_bad:g}) that may be skipped: "
        f"{shorten(named, 5)}; mend or remove them, or raise data.max_bad"
    )
