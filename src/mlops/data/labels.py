"""A CSV that says what is on each picture: the columns `path` and `label`, and `split` and `group` where wanted."""

import difflib

from mlops.data.listing import (
    ROI_COLUMNS,
    SPLIT_NAMES,
    Entry,
    Listing,
    find_table,
    group_by_name,
    in_order,
    read_box,
    read_csv,
    refuse,
    refuse_unmatched,
)
from mlops.data.tree import Tree
from mlops.errors import MlopsError, shorten
from mlops.files import safe_relative


def labelled(
    tree: Tree, name: str, *, allowed: list[str] | None = None, group: str | None = None, roi: bool = False
) -> Listing:
    """The images that the CSV `name` lists. Its paths are relative to its own folder.

    Args:
        allowed: the classes in their order; any other label is refused. All labels in the table when None.
        group: an expression on file names, as in `folder`; refused beside a column `group`, because one must win.
        roi: use of each picture the box that the columns `Roi.X1`, `Roi.Y1`, `Roi.X2`, `Roi.Y2` give.

    Raises:
        MlopsError: with every row that is wrong.
    """
    name = safe_relative(name, "data.csv")
    prefix = find_table(tree, name, "data.source=csv needs it; data.csv=NAME names another")
    rows = read_csv(tree, prefix + name, ("path", "label", *(ROI_COLUMNS if roi else ())))
    if group and "group" in rows[0][1]:
        raise MlopsError(f"data.group={group}: {tree.label}/{prefix}{name} has a column group already; use one of them")
    folder = (prefix + name).rpartition("/")[0]
    found = [
        (f"{tree.label}: {name} line {number}", {key: value.strip() for key, value in row.items() if key and value})
        for number, row in rows
    ]
    classes = allowed or sorted({row["label"] for _, row in found if "label" in row})
    refuse(_problems(found, tree, folder, classes))
    order = {label: position for position, label in enumerate(classes)}
    together = group_by_name(group)
    entries = []
    for _, row in found:
        path = _join(folder, row["path"], "")
        own = row.get("group") or together(path)
        split = SPLIT_NAMES[row["split"].lower()] if row.get("split") else None
        entries.append(Entry(path, order[row["label"]], own, split, read_box(row) if roi else None))
    refuse_unmatched(group, entries)
    return in_order(tree, classes, entries)


def _problems(rows: list[tuple[str, dict[str, str]]], tree: Tree, folder: str, classes: list[str]) -> list[str]:
    present, seen, known = set(tree.names), dict[str, str](), set(classes)
    problems = []
    for where, row in rows:
        try:
            path = _join(folder, row.get("path", ""), where)
        except MlopsError as error:
            problems += error.problems
        else:
            if path not in present:
                problems.append(f"{where}: path={row['path']}: is not there")
            elif path in seen:
                problems.append(f"{where}: path={row['path']}: is named before, in {seen[path].rpartition(': ')[2]}")
            seen.setdefault(path, where)
        label, split = row.get("label", ""), row.get("split", "")
        if not label:
            problems.append(f"{where}: label: is empty; every image needs one")
        elif label not in known:
            problems.append(f"{where}: label={label}: is not in data.classes; {_hint(label, classes)}")
        if split and split.lower() not in SPLIT_NAMES:
            problems.append(f"{where}: split={split}: is no split; {_hint(split, list(SPLIT_NAMES))}")
    return problems


def _hint(value: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(value, choices, n=1)
    return f"did you mean {close[0]}?" if close else f"it has {shorten(choices, 8)}"


def _join(folder: str, path: str, where: str) -> str:
    return f"{folder}/{safe_relative(path, where)}" if folder else safe_relative(path, where)
