"""Runs that `mirror.py` has copied into a bucket: which there are, and their way onto an empty machine."""

import contextlib
import json
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Self

from mlops.checkpoint import LAST, read_metadata
from mlops.errors import MlopsError
from mlops.files import atomic, safe_relative
from mlops.mirror import LINKS, PROOF, link_name
from mlops.progress import Bar, bar
from mlops.storage import Bucket, Entry, ask, open_bucket, same, shown

log = logging.getLogger(__name__)

# Seconds. A download may take as long as it takes, but must not stand still for so long.
STALL_TIMEOUT = 90.0


def find(url: str, wandb_run_id: str) -> str | None:
    """The mirrored run below `url` that was tracked under a W&B run id, as a URL for `fetch`; None where there is none.

    Raises:
        MlopsError: the bucket cannot be read.
    """
    bucket = open_bucket(url)
    name = link_name(wandb_run_id)
    raw = ask(bucket, lambda: bucket.read(name))
    if raw is None:
        return None
    try:
        run = safe_relative(json.loads(raw)["run"], name)
    except (ValueError, KeyError, TypeError) as error:
        raise MlopsError(f"{bucket.url}/{name}: names no run; remove it to start anew") from error
    # A run may have ended before its first save.
    return f"{url.rstrip('/')}/{run}" if LAST in ask(bucket, lambda: bucket.files(run)) else None


def latest(url: str) -> str | None:
    """The newest run below `url` that can be resumed, by its name; None where there is none, as below a run itself."""
    bucket = open_bucket(url)
    found = ask(bucket, lambda: next((run for run in _runs(bucket) if LAST in bucket.files(run)), None))
    return found and f"{url.rstrip('/')}/{found}"


def fetch(url: str, outputs: Path) -> Path:
    """Download a mirrored run into `outputs/<date>/<time>-<id>`; returns that folder.

    A `last.pth` that is there already stays, with all beside it, unless the mirrored one is further. `last.pth` is
    replaced last, so that a download which was cut short is begun again.

    Raises:
        MlopsError: there is no such run, it cannot be read or written, or its `last.pth` is no checkpoint of ours.
    """
    root, run = _split(url)
    bucket = open_bucket(root)
    where = f"{bucket.url}/{run}"
    entries = ask(bucket, lambda: bucket.files(run))
    if LAST not in entries:
        found = ask(bucket, lambda: list(islice(_runs(bucket), 5)))
        there = f"the newest there: {', '.join(found)}" if found else "there are no runs"
        raise MlopsError(f"{where}: no mirrored run with a {LAST}; {there}")
    files = {safe_relative(name, where): entry for name, entry in entries.items() if not _is_ours(name)}
    folder, last = outputs / run, outputs / run / LAST

    if same(last, files[LAST]):
        _fetch_missing(bucket, run, files, folder)
        return folder
    try:
        with _Download(bucket, run, files) as download, atomic(last) as temporary:
            download.file(LAST, temporary)
            ours, theirs = _step(last), _step(temporary, f"{where}/{LAST}")
            if ours is not None and theirs is not None and ours >= theirs:
                raise _LocalStays(ours > theirs)
            download.files(folder, but=LAST)
    except _LocalStays as reason:
        if reason.further:
            log.info(f"{last} is further than the mirrored one: what is here is kept")
        else:
            _fetch_missing(bucket, run, files, folder)
    return folder


def _fetch_missing(bucket: Bucket, run: str, files: dict[str, Entry], folder: Path) -> None:
    """Only what is not here: what is, beside the same last.pth, may be newer than what has been sent."""
    missing = {name: entry for name, entry in files.items() if not (folder / name).exists()}
    if missing:
        with _Download(bucket, run, missing) as download:
            download.files(folder)


class _LocalStays(Exception):  # noqa: N818 - nothing is wrong
    """Leaves a download without replacing anything; `further` than the mirrored run, or as far."""

    def __init__(self, further: bool) -> None:
        super().__init__()
        self.further = further


class _Download:
    """Files of one run, behind one bar."""

    def __init__(self, bucket: Bucket, run: str, files: dict[str, Entry]) -> None:
        self._bucket, self._run, self._files = bucket, run, files
        self._bars = contextlib.ExitStack()
        self._bar: Bar | None = None
        self._received = 0

    def __enter__(self) -> Self:
        total = sum(entry.size for entry in self._files.values())
        self._bar = self._bars.enter_context(bar(f"fetching {self._run}", total, "bytes"))
        return self

    def __exit__(self, *error: Any) -> None:
        self._bars.__exit__(*error)

    def file(self, name: str, path: Path) -> None:
        def get() -> None:
            self._bucket.get(f"{self._run}/{name}", path, self._count)

        ask(self._bucket, get, STALL_TIMEOUT, lambda: self._received)

    def files(self, folder: Path, but: str | None = None) -> None:
        for name in self._files:
            if name != but:
                with atomic(folder / name) as temporary:
                    self.file(name, temporary)

    def _count(self, received: int) -> None:
        self._received += received
        if self._bar:
            self._bar.advance(received)


def _split(url: str) -> tuple[str, str]:
    """The folder of all runs, and the run's name in it."""
    parts = url.rstrip("/").rsplit("/", 2)
    if len(parts) < 3 or not all(parts) or parts[0].endswith((":", ":/")):
        raise MlopsError(f"{shown(url)}: names no run; write gs://bucket/folder/<date>/<time>-<id>")
    return parts[0], safe_relative(f"{parts[1]}/{parts[2]}", shown(url))


def _runs(bucket: Bucket) -> Iterator[str]:
    """The runs in a bucket, the newest first."""
    for day in sorted(bucket.folders(), reverse=True):
        if day != LINKS:
            yield from (f"{day}/{run}" for run in sorted(bucket.folders(day), reverse=True))


def _is_ours(name: str) -> bool:
    last = name.rpartition("/")[2]
    return name == PROOF or (last.startswith(".") and last.endswith(".tmp"))


def _step(path: Path, named: str | None = None) -> int | None:
    """How far a last.pth is, in steps; None where there is none that can be read here.

    Raises:
        MlopsError: it is no checkpoint of ours, and `named` says what to call it.
    """
    try:
        return int(read_metadata(path)["step"])
    except (MlopsError, KeyError, TypeError, ValueError) as error:
        if named is None:
            return None
        raise MlopsError(f"{named}: is not a {LAST} of this project") from error
