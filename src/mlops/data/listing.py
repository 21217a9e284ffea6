"""What every source gives: a tree of files, the classes, and one entry an image. And the CSV reader they share."""

import csv
import io
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mlops.data.tree import Tree
from mlops.errors import MlopsError
from mlops.image import MAX_BYTES

SPLITS = ("train", "val", "test")
# As people name them, in folders and in columns.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
ROI_COLUMNS = ("Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2")
# Every mistake in a table is found at once, but nobody reads a thousand lines.
MOST_PROBLEMS = 20


@dataclass(frozen=True, slots=True)  # there may be millions
class Entry:
    """One image that the source names.

    `split` is None where the source leaves it open. `box` is the part of the picture to use: left, top, right, bottom
    in stored pixels, right and bottom exclusive; empty where the source gives one that is no four whole numbers (the
    image is then unreadable), None for the whole picture.
    """

    path: str
    label: int
    group: str
    split: str | None = None
    box: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Listing:
    """All images of a source, in the order of their paths."""

    tree: Tree
    classes: list[str]
    entries: list[Entry]


def in_order(tree: Tree, classes: list[str], entries: list[Entry]) -> Listing:
    """A listing of `entries`.

    Raises:
        MlopsError: a path is named twice.
    """
    ordered = sorted(entries, key=lambda entry: entry.path)
    for one, other in pairwise(ordered):
        if one.path == other.path:
            raise MlopsError(f"{tree.label}: names {one.path} twice; every image has one label")
    return Listing(tree, classes, ordered)


def find_table(tree: Tree, name: str, where: str) -> str:
    """The folder, empty or ending in a slash, in which `name` lies: the root, or the one an archive was packed with.

    Raises:
        MlopsError: it is not there; `where` says which setting asks for it.
    """
    if name in tree.names:
        return ""
    below = [found for found in tree.names if found.endswith(f"/{name}") and found.count("/") == name.count("/") + 1]
    if len(below) != 1:
        raise MlopsError(f"{tree.label}: holds no {name}; {where}")
    return below[0].removesuffix(name)


def read_csv(tree: Tree, name: str, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of every row; between commas, semicolons or tabs, whichever the header has most of.

    Raises:
        MlopsError: it cannot be read, lacks one of `columns`, or holds nothing.
    """
    try:
        content = tree.read(name)
        if len(content) > MAX_BYTES:
            raise MlopsError(f"{tree.label}: {name} is larger than {MAX_BYTES:,} bytes; part it, or drop columns")
        text = content.decode("utf-8-sig")
        header = text[: text.find("\n")]
        delimiter = max(",;\t", key=header.count)
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
        reader.fieldnames = [field.strip() for field in reader.fieldnames or ()]
        missing = [column for column in columns if column not in reader.fieldnames]
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


def read_box(row: dict[str, str]) -> tuple[int, ...]:
    """The box of a row with `ROI_COLUMNS`; empty when it is no four whole numbers."""
    texts = [(row[column] or "").strip() for column in ROI_COLUMNS]
    return tuple(map(int, texts)) if all(re.fullmatch(r"-?[0-9]{1,9}", text) for text in texts) else ()


def refuse(problems: list[str]) -> None:
    """Raise what was found, if anything, with the rest of a long list as a number."""
    if problems:
        more = len(problems) - MOST_PROBLEMS
        rest = [f"and {more:,} more problems"] if more > 0 else []
        raise MlopsError(problems[:MOST_PROBLEMS] + rest)


def group_by_name(pattern: str | None) -> Callable[[str], str]:
    """From a path to its group: what `pattern` finds in the file name (its first group, or all of it); else the path.

    Where a pattern finds nothing the group is empty, and `refuse_unmatched` names the file.
    """
    if pattern is None:
        return str
    compiled = re.compile(pattern)

    def together(path: str) -> str:
        match = compiled.search(path.rsplit("/", 1)[-1])
        return ((match[1] if compiled.groups else match[0]) if match else None) or ""

    return together


def refuse_unmatched(pattern: str | None, entries: list[Entry]) -> None:
    """Raise when `pattern` found no group for some of `entries`."""
    unmatched = [entry.path.rsplit("/", 1)[-1] for entry in entries if not entry.group]
    if unmatched:
        raise MlopsError(f"data.group={pattern}: does not match {len(unmatched)} file names, such as {unmatched[0]}")


def check_classes(classes: Sequence[str], where: str) -> list[str]:
    """What is wrong with names of classes, one line each: they end up in tables, on terminals and in folders.

    Refused are names that cannot be printed on a line, that a spreadsheet would run as a formula, and those that people
    and some file systems take for the same.
    """
    mend = "rename the folder or the label"
    problems = []
    for name in classes:
        if not name.isprintable():
            problems.append(f"{where}: class {name!r} has a line break or another unprintable character; {mend}")
        # Spreadsheets take full-width signs for the plain ones.
        first = unicodedata.normalize("NFKC", name[:1])
        if first in ("=", "@") or (first in ("+", "-") and not re.fullmatch(r".(\d+([.,]\d*)?|[.,]\d+)", name)):
            problems.append(f"{where}: class {name!r} would be run as a formula by a spreadsheet; {mend}")
    alike = defaultdict(list)
    for name in classes:
        alike[unicodedata.normalize("NFC", name.strip()).casefold()].append(name)
    for names in alike.values():
        if len(names) > 1:
            # ASCII, because what tells them apart may be invisible.
            shown = " and ".join(f"{name!a}" for name in names)
            problems.append(f"{where}: classes {shown} differ only in {_difference(names)}; {mend} of all but one")
    return problems


def _difference(names: Sequence[str]) -> str:
    if len({name.casefold() for name in names}) == 1:
        return "case"
    if len({name.strip() for name in names}) == 1:
        return "the blanks around them"
    if len({unicodedata.normalize("NFC", name) for name in names}) == 1:
        return "how Unicode writes the same letters"
    return "case, blanks or how Unicode writes the same letters"
