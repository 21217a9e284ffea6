"""Images that somebody gives to a checkpoint: which of them, in which groups, and what may be wrong about that."""

import dataclasses
import re
import shlex
from collections import Counter
from pathlib import Path

from mlops.checkpoint import Checkpoint
from mlops.data.listing import SPLITS, Listing, group_by_name
from mlops.data.sources import folder, read_tree
from mlops.data.tree import Tree, open_tree
from mlops.errors import MlopsError, one_line, printable
from mlops.evaluation.predict import warn_of_crop
from mlops.progress import console


def list_given(data: Path, checkpoint: Checkpoint, split: str | None, group: str | None) -> Listing:
    """The images of `data` to score: all, or those that it puts into `split` itself, in groups by `group`.

    Raises:
        MlopsError: it cannot be read, puts nothing into `split`, or `group` does not fit its file names.
    """
    listing = _of_split(_list(open_tree(data, "DATA"), checkpoint), split)
    return _grouped(listing, group, checkpoint.config.data.group)


def check_group(pattern: str, data: Path | None) -> None:
    """Raise when `pattern` is no regular expression, or there is nothing to group."""
    if data is None:
        raise MlopsError(f"--group={pattern}: goes with DATA; the checkpoint's own data has the groups of its training")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise MlopsError(f"--group={pattern}: is not a regular expression: {one_line(error)}") from error


def _list(tree: Tree, checkpoint: Checkpoint) -> Listing:
    """The images of `tree` in the layout the checkpoint was trained on where it has that table, else as folders."""
    settings = checkpoint.config.data
    table = {"gtsrb": "Train.csv", "csv": settings.csv}.get(settings.source)
    if table and any(name == table or name.endswith(f"/{table}") for name in tree.names):
        # An expression for groups and the list of classes belong to training; here every label may be named.
        return read_tree(tree, dataclasses.replace(settings, classes=None, group=None, roi=_crops(checkpoint)))
    warn_of_crop(checkpoint.metadata["input"])
    return folder(tree, None)


def _crops(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.metadata["input"].get("crop") == "roi")


def _of_split(listing: Listing, split: str | None) -> Listing:
    """The images that the source itself puts into `split`; all of them where that is None, with a warning of splits."""
    known = Counter(entry.split for entry in listing.entries if entry.split is not None)
    given = ", ".join(f"{name} ({known[name]:,} images)" for name in SPLITS if name in known)
    if split is None:
        if known:
            rest = len(listing.entries) - known.total()
            _warn(
                f"{listing.tree.label} names splits of its own: {given}{f', {rest:,} images in none' if rest else ''}; "
                "all are scored together, also those to train on; --split takes one"
            )
        return listing
    entries = [entry for entry in listing.entries if entry.split == split]
    if not entries:
        why = f"it names {given}" if known else "it names no splits; leave --split out to score all its images"
        raise MlopsError(f"--split={split}: {listing.tree.label} puts no image there; {why}")
    return dataclasses.replace(listing, entries=entries)


def _grouped(listing: Listing, pattern: str | None, trained: str | None) -> Listing:
    """`listing` with the groups that `pattern` finds in file names.

    `trained` is the checkpoint's expression. It is only named: an expression out of a file that anybody may have made
    can be one that never ends.
    """
    alone = all(entry.group == entry.path for entry in listing.entries)
    if pattern is None:
        if trained is not None and alone:
            _warn(
                "the interval takes every image as a group of its own, and this checkpoint was trained with groups; if "
                f"the files of {listing.tree.label} are named alike: --group {shlex.quote(trained)}"
            )
        return listing
    if not alone:
        raise MlopsError(f"--group={pattern}: {listing.tree.label} names groups of its own already; leave --group out")
    together = group_by_name(pattern)
    entries = [dataclasses.replace(entry, group=together(entry.path)) for entry in listing.entries]
    unmatched = [entry.path.rsplit("/", 1)[-1] for entry in entries if not entry.group]
    if unmatched:
        raise MlopsError(f"--group={pattern}: does not match {len(unmatched)} file names, such as {unmatched[0]}")
    return dataclasses.replace(listing, entries=entries)


def _warn(what: str) -> None:
    console.print(printable(f"warning: {what}"))
