"""Sources: what a layout of files means. Each gives a listing; none decodes an image."""

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np

from mlops.config import DataConfig
from mlops.data.tree import MemoryTree, Tree, open_tree
from mlops.errors import MlopsError, shorten
from mlops.files import safe_relative
from mlops.image import EXTENSIONS

SPLITS = ("train", "val", "test")
_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_TRACK_FRAME = re.compile(r"(\d+)_(\d+)_(\d+)\.\w+$")


@dataclass(frozen=True)
class Entry:
    """One image that the source names. `split` is None where the source leaves it open."""

    path: str
    label: int
    group: str
    split: str | None = None


@dataclass(frozen=True)
class Listing:
    """All images of a source, in the order of their paths."""

    tree: Tree
    classes: list[str]
    entries: list[Entry]


def open_source(config: DataConfig) -> Listing:
    """List the images that `config` names.

    Raises:
        MlopsError: there is nothing, or not what the layout asks for.
    """
    if config.source == "digits":
        return digits()
    # `root` is there: config.check asks for it.
    tree = open_tree(Path(config.root or ""))
    listing = gtsrb(tree) if config.source == "gtsrb" else folder(tree, config.group)
    if len(listing.classes) < 2:
        raise MlopsError(f"{tree.label}: holds one class only ({listing.classes[0]}); a classifier needs two or more")
    return listing


def digits() -> Listing:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels (Alpaydin and Kaynak, 1998)."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    # 0..16 of a grey PGM file: the same bytes on every platform, which a PNG's compression would not be.
    files = {
        f"{label}/{position:04}.pgm": b"P5 8 8 16\n" + pixels.astype(np.uint8).tobytes()
        for position, (pixels, label) in enumerate(zip(images, labels, strict=True))
    }
    entries = [Entry(path, int(path[0]), group=path) for path in sorted(files)]
    return Listing(MemoryTree("scikit-learn digits", files), [str(digit) for digit in range(10)], entries)


def gtsrb(tree: Tree) -> Listing:
    """The German Traffic Sign Recognition Benchmark (Stallkamp et al., 2012) in the layout most people have.

    `Train.csv` with `ClassId` and `Path`, images named `<class>_<track>_<frame>`; a track is one sign filmed while
    driving past, its frames are near-duplicates, so it is the group. `Test.csv` and `signnames.csv` where they are.
    """
    prefix = _prefix(tree, "Train.csv")
    rows: list[tuple[tuple[int, dict[str, str]], str, str | None]]
    rows = [(row, "Train.csv", None) for row in _read_csv(tree, prefix + "Train.csv", ("ClassId", "Path"))]
    if prefix + "Test.csv" in tree.names:
        rows += [(row, "Test.csv", "test") for row in _read_csv(tree, prefix + "Test.csv", ("ClassId", "Path"))]
    present = set(tree.names)
    ids, parsed = set(), []
    for (number, row), file, split in rows:
        where = f"{tree.label}: {file} line {number}"
        path = prefix + safe_relative(row["Path"], where)
        if path not in present:
            raise MlopsError(f"{where}: names {row['Path']}, which is not there")
        if not re.fullmatch(r"[0-9]{1,6}", row["ClassId"]):
            raise MlopsError(f"{where}: ClassId={row['ClassId']!r}: must be a whole number")
        match = _TRACK_FRAME.search(PurePosixPath(path).name)
        if split is None and match is None:
            raise MlopsError(f"{where}: {row['Path']} is not named <class>_<track>_<frame>, so its track is unknown")
        group = f"{int(row['ClassId'])}/{match[2]}" if match and split is None else path
        ids.add(int(row["ClassId"]))
        parsed.append((path, int(row["ClassId"]), group, split))
    names = _sign_names(tree, prefix)
    order = {class_id: position for position, class_id in enumerate(sorted(ids))}
    classes = [names.get(class_id, str(class_id)) for class_id in order]
    if repeated := [name for name, count in Counter(classes).items() if count > 1]:
        raise MlopsError(
            f"{tree.label}: signnames.csv names several classes {shorten(repeated)}; give each its own name"
        )
    entries = [Entry(path, order[class_id], group, split) for path, class_id, group, split in parsed]
    return _listing(tree, classes, entries)


def folder(tree: Tree, group: str | None) -> Listing:
    """`<class>/*` or `<split>/<class>/*`, with splits named train, val and test as people name them.

    `group` is a regular expression searched in the file name: its first group, or all of it, names what stays together.
    """
    prefix = _single_folder(tree.names)
    names = [name.removeprefix(prefix) for name in tree.names]
    tops = {name.split("/", 1)[0] for name in names if "/" in name}
    splits_first = "train" in {_SPLIT_FOLDERS.get(top.lower()) for top in tops}
    if splits_first and (strange := sorted(top for top in tops if top.lower() not in _SPLIT_FOLDERS)):
        raise MlopsError(f"{tree.label}: {shorten(strange)} beside train/ is no split; splits are train, val and test")
    if tops and all(top.lower() in _SPLIT_FOLDERS for top in tops) and not splits_first:
        raise MlopsError(
            f"{tree.label}: holds {shorten(sorted(tops))} but no train folder; add it or leave out the splits"
        )
    depth = 2 if splits_first else 1  # how many folders name the class
    found = []
    for name in names:
        *folders, file_name = name.split("/")
        if len(folders) >= depth and file_name.lower().endswith(EXTENSIONS):
            split = _SPLIT_FOLDERS[folders[0].lower()] if splits_first else None
            found.append((prefix + name, folders[depth - 1], split, file_name))
    if not found:
        raise MlopsError(
            f"{tree.label}: holds no images as <class>/<image>; image files end in {', '.join(EXTENSIONS)}"
        )
    held = {"/".join(path.removeprefix(prefix).split("/")[:depth]) for path, *_ in found}
    class_folders = {
        f.removeprefix(prefix)
        for f in tree.folders
        if f.startswith(prefix) and f.removeprefix(prefix).count("/") == depth - 1
    }
    if empty := sorted(class_folders - held):
        raise MlopsError(f"{tree.label}/{prefix}{empty[0]}: class folder without images; fill it or remove it")
    classes = sorted({class_name for _, class_name, _, _ in found})
    pattern = re.compile(group) if group else None
    entries, unmatched = [], []
    for path, class_name, split, file_name in found:
        match = pattern.search(file_name) if pattern else None
        together = (match[1] if match.re.groups else match[0]) if match else None
        if pattern and not together:
            unmatched.append(file_name)
        entries.append(Entry(path, classes.index(class_name), together or path, split))
    if unmatched:
        raise MlopsError(f"data.group={group}: does not match {len(unmatched)} file names, such as {unmatched[0]}")
    return _listing(tree, classes, entries)


def _listing(tree: Tree, classes: list[str], entries: list[Entry]) -> Listing:
    ordered = sorted(entries, key=lambda entry: entry.path)
    for one, other in pairwise(ordered):
        if one.path == other.path:
            raise MlopsError(f"{tree.label}: names {one.path} twice; every image has one label")
    return Listing(tree, classes, ordered)


def _prefix(tree: Tree, name: str) -> str:
    """Where `name` lies: at the root, or in the one folder that an archive was packed with."""
    if name in tree.names:
        return ""
    below = [found for found in tree.names if found.endswith(f"/{name}") and found.count("/") == 1]
    if len(below) != 1:
        raise MlopsError(f"{tree.label}: holds no {name}; data.source=gtsrb needs it (data.source=folder does not)")
    return below[0].removesuffix(name)


def _read_csv(tree: Tree, name: str, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    try:
        reader = csv.DictReader(io.StringIO(tree.read(name).decode("utf-8-sig"), newline=""), strict=True)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise MlopsError(f"{tree.label}: {name} has no column {missing[0]}; it needs {', '.join(columns)}")
        rows = [(reader.line_num, row) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise MlopsError(f"{tree.label}: {name} is not readable as CSV: {error}") from error
    except OSError as error:
        raise MlopsError(f"{tree.label}: {name} cannot be read: {error}") from error
    for number, row in rows:
        if short := [column for column in columns if row[column] is None]:
            raise MlopsError(f"{tree.label}: {name} line {number}: has no {short[0]}")
    if not rows:
        raise MlopsError(f"{tree.label}: {name} holds no rows")
    return rows


def _sign_names(tree: Tree, prefix: str) -> dict[int, str]:
    path = prefix + "signnames.csv"
    if path not in tree.names:
        return {}
    rows = _read_csv(tree, path, ("ClassId", "SignName"))
    return {
        int(row["ClassId"]): row["SignName"].strip() for _, row in rows if re.fullmatch(r"[0-9]{1,6}", row["ClassId"])
    }


def _single_folder(names: list[str]) -> str:
    """The path, ending in a slash, of the one folder that holds everything; empty when there is none.

    Archives are often packed with such a folder. It is stepped into only when it holds folders and nothing else.
    """
    prefix = ""
    while True:
        below = [name.removeprefix(prefix) for name in names]
        tops = {name.split("/", 1)[0] for name in below}
        if len(tops) != 1 or any(name.count("/") < 2 for name in below):
            return prefix
        prefix += f"{tops.pop()}/"
