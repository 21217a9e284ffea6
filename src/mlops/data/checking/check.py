"""`mlops data check`: look at every image of a source before anybody trains on it."""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlops import config as settings
from mlops.config import DataConfig
from mlops.data import split as splitting
from mlops.data.checking.copies import find_copies
from mlops.data.checking.facts import look
from mlops.data.checking.findings import describe
from mlops.data.checking.found import Found, many
from mlops.data.checking.show import pair_pictures, render
from mlops.data.checking.sides import find_sides
from mlops.data.hashes import hash_all
from mlops.data.listing import Listing
from mlops.data.sources import open_source, read_tree
from mlops.data.tree import Tree, open_tree
from mlops.errors import MlopsError
from mlops.files import write_text, writing_to
from mlops.tables import pairs

_ALIKE = {
    "leaks": "in two splits of the source",
    "drawn": "in two drawn splits",
    "labels": "under two labels",
    "groups": "within a class and split",
}
LAYOUTS = ("folder", "csv", "gtsrb")


@dataclass(frozen=True)
class Checked:
    """Where the report is, what it says as plain values, and what is wrong: one line each.

    `leaks` are between splits that the source gives, `problems` all else that must be mended.
    """

    page: Path
    json: Path
    values: dict[str, Any]

    @property
    def leaks(self) -> list[str]:
        return list(self.values["leaks"])

    @property
    def problems(self) -> list[str]:
        return list(self.values["problems"])


def describe_source(source: str, *, layout: str | None, group: str | None, csv: str | None) -> DataConfig:
    """The settings of what a user named: a folder, a .tar, a .zip, or `digits`.

    Without `layout` the source is looked at: with a table `labels.csv`, or the one that `csv` names, it is csv; with
    `Train.csv` gtsrb; else folder.

    Raises:
        MlopsError: it is not there, or the arguments do not fit it or each other.
    """
    if layout not in (None, *LAYOUTS):
        raise MlopsError(f"--layout={layout}: is no layout; choices: {', '.join(LAYOUTS)}")
    if csv and layout not in (None, "csv"):
        raise MlopsError(f"--csv={csv}: layout {layout} reads no table of yours; leave out one of them")
    if source == "digits":
        kind, root = "digits", None
        if layout or csv:
            raise MlopsError("digits: has no layout and no table; leave out --layout and --csv, or name ./digits")
    else:
        kind, root = layout or _layout(open_tree(Path(source), "SOURCE"), csv), source
    if group and kind in ("digits", "gtsrb"):
        raise MlopsError(f"--group={group}: {kind} has groups of its own; leave it out")
    raw = settings.defaults()
    raw["data"] |= {"source": kind, "root": root, "group": group} | ({"csv": csv} if csv else {})
    return settings.load(raw).data


def check_source(config: DataConfig, output: Path, *, near_leaks: bool = True) -> Checked:
    """Look at every image that `config` names, and write `index.html` and `check.json` into `output`.

    Near-copies in two splits of the source are leaks unless `near_leaks` is false: where a camera never moves, all of
    its pictures are alike.

    Raises:
        MlopsError: there is nothing to look at, or the layout is not what it should be; whatever is wrong with images,
            labels and splits is in the report instead.
    """
    listing = _listing(config)
    hashes = hash_all(listing.tree, listing.entries)
    sides = find_sides(listing.tree, listing.entries, hashes, listing.classes, config.split)
    with writing_to(output):
        output.mkdir(parents=True, exist_ok=True)
        # Beside the report, because where temporary files go may be small, or memory.
        with tempfile.TemporaryDirectory(prefix=".check.", dir=output, ignore_cleanup_errors=True) as folder:
            facts = look(listing.tree, listing.entries, config.workers, Path(folder))
            copies = find_copies(listing.entries, hashes, sides, facts)
            # Mapped from that folder, which Windows removes only when nothing is.
            facts = replace(facts, pixels=facts.pixels[:0].copy())
    found = Found(config, listing, sides, facts, copies, near_leaks)
    values = describe(found)
    write_text(output / "check.json", json.dumps(values, indent=1, ensure_ascii=False))
    write_text(output / "index.html", render(values, pair_pictures(found)))
    return Checked(output / "index.html", output / "check.json", values)


def show_checked(checked: Checked) -> None:
    """What was checked and found, and where the report is. Leaks and problems are counted, for they are errors."""
    values = checked.values
    alike = values["alike"]
    given, drawn = values["splits"]["given"], values["splits"]["drawn"]
    counts = {split: sum(values["counts"][split].values()) for split in values["counts"] if split}
    pairs(
        "Checked",
        [
            ("source", ", ".join(filter(None, (values["source"]["kind"], values["source"]["root"])))),
            ("images", f"{values['images']:,} in {len(values['classes']):,} classes"),
            *(
                (split, f"{n:,} images{'' if split in given else ', as training would draw'}")
                for split, n in counts.items()
            ),
            *([] if given or drawn else [("splits", "cannot be drawn")]),
            ("unreadable", f"{values['unreadable']['count']:,}" if values["unreadable"]["count"] else "none"),
            (
                "byte for byte the same",
                f"{values['copies']['extra']:,} copies" if values["copies"]["extra"] else "none",
            ),
            (
                "near-identical",
                ", ".join(
                    f"{many(alike[kind]['count'], 'pair')} {words}"
                    for kind, words in _ALIKE.items()
                    if alike[kind]["count"]
                )
                or "none",
            ),
            ("leaks between splits", sum(values["leaking"].values()) or "none"),
            ("problems", len(checked.problems) or "none"),
            *(("worth a look", remark) for remark in values["remarks"]),
            ("page", checked.page),
            ("json", checked.json),
        ],
    )


def _layout(tree: Tree, csv: str | None) -> str:
    """What a tree looks like. A table lies at its root, or in the one folder that everything was packed with."""
    tops = {name.split("/", 1)[0] for name in tree.names}
    prefixes = ["", *(f"{top}/" for top in tops if len(tops) == 1)]
    found = {table for table in (DataConfig.csv, "Train.csv") for prefix in prefixes if prefix + table in tree.names}
    return "csv" if csv or DataConfig.csv in found else "gtsrb" if found else "folder"


def _listing(config: DataConfig) -> Listing:
    # `open_source` refuses what the report shows: a single class, and names of classes.
    tree_of_files = config.source in LAYOUTS
    listing = read_tree(open_tree(Path(config.root or "")), config) if tree_of_files else open_source(config)
    return replace(listing, entries=splitting.limit(listing.entries, config.limit, config.split.seed))
