"""Sources: what a layout of files means. Each gives a listing; none decodes an image."""

import re
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from mlops.config import DataConfig
from mlops.data.downloads import torchvision
from mlops.data.labels import labelled
from mlops.data.listing import (
    ROI_COLUMNS,
    SPLIT_NAMES,
    Entry,
    Listing,
    check_classes,
    find_table,
    group_by_name,
    in_order,
    read_box,
    read_csv,
    refuse,
    refuse_unmatched,
)
from mlops.data.tree import MemoryTree, Tree, open_tree
from mlops.errors import MlopsError, shorten
from mlops.files import safe_relative
from mlops.image import EXTENSIONS

_TRACK_FRAME = re.compile(r"(\d+)_(\d+)_(\d+)\.\w+$")


def open_source(config: DataConfig) -> Listing:
    """List the images that `config` names.

    Raises:
        MlopsError: there is nothing, or not what the layout asks for.
    """
    if config.source == "digits":
        return digits()
    if config.source == "torchvision":
        return torchvision(config.dataset or "", Path(config.downloads))
    listing = read_tree(open_tree(Path(config.root or "")), config)  # `root` is there: config.check asks for it
    if len(listing.classes) < 2:
        raise MlopsError(
            f"{listing.tree.label}: holds one class only ({listing.classes[0]}); a classifier needs two or more"
        )
    refuse(check_classes(listing.classes, listing.tree.label))
    return listing


def read_tree(tree: Tree, config: DataConfig) -> Listing:
    """List the images of a tree in the layout that `config` names: csv, gtsrb or folder."""
    if config.source == "csv":
        return labelled(tree, config.csv, allowed=config.classes, group=config.group, roi=config.roi)
    return gtsrb(tree, config.roi) if config.source == "gtsrb" else folder(tree, config.group)


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


def gtsrb(tree: Tree, roi: bool = False) -> Listing:
    """The German Traffic Sign Recognition Benchmark (Stallkamp et al., 2012) in the layout most people have.

    `Train.csv` with `ClassId` and `Path`, images named `<class>_<track>_<frame>`; a track is one sign filmed while
    driving past, its frames are near-duplicates, so it is the group. `Test.csv` and `signnames.csv` where they are.
    With `roi`, the columns `Roi.X1`, ... give the box of the sign, which is all that is used of a picture.
    """
    prefix = find_table(tree, "Train.csv", "data.source=gtsrb needs it (data.source=folder does not)")
    columns = ("ClassId", "Path", *(ROI_COLUMNS if roi else ()))
    rows: list[tuple[tuple[int, dict[str, str]], str, str | None]]
    rows = [(row, "Train.csv", None) for row in read_csv(tree, prefix + "Train.csv", columns)]
    if prefix + "Test.csv" in tree.names:
        rows += [(row, "Test.csv", "test") for row in read_csv(tree, prefix + "Test.csv", columns)]
    present = set(tree.names)
    ids, parsed = set(), []
    for (number, row), file, split in rows:
        where = f"{tree.label}: {file} line {number}"
        path = prefix + safe_relative(row["Path"], where)
        if path not in present:
            raise MlopsError(f"{where}: names {row['Path']}, which is not there")
        if not re.fullmatch(r"[0-9]{1,6}", row["ClassId"]):
            raise MlopsError(f"{where}: ClassId={row['ClassId'][:60]!r}: must be a whole number")
        match = _TRACK_FRAME.search(PurePosixPath(path).name)
        if split is None and match is None:
            raise MlopsError(f"{where}: {row['Path']} is not named <class>_<track>_<frame>, so its track is unknown")
        group = f"{int(row['ClassId'])}/{match[2]}" if match and split is None else path
        ids.add(int(row["ClassId"]))
        parsed.append((path, int(row["ClassId"]), group, split, read_box(row) if roi else None))
    names = _sign_names(tree, prefix)
    order = {class_id: position for position, class_id in enumerate(sorted(ids))}
    classes = [names.get(class_id, str(class_id)) for class_id in order]
    if repeated := [name for name, count in Counter(classes).items() if count > 1]:
        raise MlopsError(
            f"{tree.label}: signnames.csv names several classes {shorten(repeated)}; give each its own name"
        )
    entries = [Entry(path, order[class_id], group, split, box) for path, class_id, group, split, box in parsed]
    return in_order(tree, classes, entries)


def folder(tree: Tree, group: str | None) -> Listing:
    """`<class>/*` or `<split>/<class>/*`, with splits named train, val and test as people name them.

    `group` is a regular expression searched in the file name: its first group, or all of it, names what stays together.
    """
    prefix = _single_folder(tree.names)
    names = [name.removeprefix(prefix) for name in tree.names]
    tops = {name.split("/", 1)[0] for name in names if "/" in name}
    splits_first = "train" in {SPLIT_NAMES.get(top.lower()) for top in tops}
    if splits_first and (strange := sorted(top for top in tops if top.lower() not in SPLIT_NAMES)):
        raise MlopsError(f"{tree.label}: {shorten(strange)} beside train/ is no split; splits are train, val and test")
    if tops and all(top.lower() in SPLIT_NAMES for top in tops) and not splits_first:
        raise MlopsError(
            f"{tree.label}: holds {shorten(sorted(tops))} but no train folder; add it or leave out the splits"
        )
    depth = 2 if splits_first else 1  # how many folders name the class
    found = []
    for name in names:
        *folders, file_name = name.split("/")
        if len(folders) >= depth and file_name.lower().endswith(EXTENSIONS):
            split = SPLIT_NAMES[folders[0].lower()] if splits_first else None
            found.append((prefix + name, folders[depth - 1], split))
    if not found:
        raise MlopsError(
            f"{tree.label}: holds no images as <class>/<image>; image files end in {', '.join(EXTENSIONS)}"
        )
    held = {"/".join(path.removeprefix(prefix).split("/")[:depth]) for path, _, _ in found}
    class_folders = {
        f.removeprefix(prefix)
        for f in tree.folders
        if f.startswith(prefix) and f.removeprefix(prefix).count("/") == depth - 1
    }
    if empty := sorted(class_folders - held):
        raise MlopsError(f"{tree.label}/{prefix}{empty[0]}: class folder without images; fill it or remove it")
    classes = sorted({class_name for _, class_name, _ in found})
    order = {name: position for position, name in enumerate(classes)}
    together = group_by_name(group)
    entries = [Entry(path, order[class_name], together(path), split) for path, class_name, split in found]
    refuse_unmatched(group, entries)
    return in_order(tree, classes, entries)


def _sign_names(tree: Tree, prefix: str) -> dict[int, str]:
    path = prefix + "signnames.csv"
    if path not in tree.names:
        return {}
    rows = read_csv(tree, path, ("ClassId", "SignName"))
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
