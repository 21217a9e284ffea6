"""Checkpoints and models in a bucket, as files here: fetched into a cache that is named by their content.

An address is that of a file, or of what `publish.py` has written: `NAME`, `NAME/latest`, `NAME/<digest>`. What is in a
bucket is untrusted: only the digest is taken from `latest`, and what it leads to must be the checkpoint of that digest.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops.checkpoint import BEST, read_metadata
from mlops.errors import MlopsError, printable
from mlops.files import atomic
from mlops.mirrored import STALL_TIMEOUT
from mlops.progress import bar
from mlops.storage import Bucket, Entry, ask, open_bucket, same, shown

LATEST = "latest"
# Seconds: a person waits for each of these answers.
ANSWER_TIMEOUT = 30.0
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Found:
    """An object that an address leads to: `name` below the bucket's URL, empty for the URL itself.

    `digest` is that of the checkpoint where the address or its `latest` names it.
    """

    bucket: Bucket
    name: str
    entry: Entry
    digest: str | None = None

    @property
    def address(self) -> str:
        """What leads to this very file also once `latest` has moved, without what is secret in the URL."""
        return f"{self.bucket.url}/{self.digest}" if self.digest else self.bucket.url


def is_address(where: str) -> bool:
    """Whether this names an object in a bucket, not a file here."""
    return "://" in where


def local(where: str) -> Path:
    """The file that a path or an address names; an object is fetched into the cache if it is not there as it is now.

    Raises:
        MlopsError: it cannot be fetched, within the time of `ANSWER_TIMEOUT` and `STALL_TIMEOUT`, or is not what its
            address says. A path is not looked at.
    """
    return fetch(find(where)) if is_address(where) else Path(where)


@contextlib.contextmanager
def opened(where: str) -> Iterator[Path]:
    """`local`; what is raised inside about the file names what the user typed."""
    path = local(where)
    with named(path, name_of(where)):
        yield path


def name_of(where: str) -> str:
    """What to call a path or an address before a person, who may show it to others."""
    return shown(where) if is_address(where) else str(Path(where))


@contextlib.contextmanager
def named(path: Path, name: str) -> Iterator[None]:
    """Let problems say `name` for a file whose place means nothing to the user."""
    try:
        yield
    except MlopsError as error:
        raise MlopsError([problem.replace(printable(str(path)), name) for problem in error.problems]) from error


def folder_of(where: str) -> Path:
    """Where files go that belong beside a checkpoint: its folder, or the current one where it is in a bucket."""
    return Path() if is_address(where) else Path(where).parent


def find(where: str) -> Found:
    """Ask what an address leads to. Nothing is fetched.

    Raises:
        MlopsError: there is nothing, it may not be read, or there is no answer within `ANSWER_TIMEOUT`.
    """
    url = where.rstrip("/")
    if not is_address(url):
        raise MlopsError(f"{where}: names nothing in a bucket; write gs://bucket/folder/file")
    base, _, last = url.rpartition("/")
    pinned = last if DIGEST.fullmatch(last) else None
    bucket = open_bucket(base if pinned or last == LATEST else url, ANSWER_TIMEOUT)

    def look() -> Found:
        if not pinned and last != LATEST and (entry := bucket.entry("")):
            return Found(bucket, "", entry)
        digest = pinned or read_latest(bucket, LATEST)
        entry = bucket.entry(f"{digest}/{BEST}") if digest else None
        if digest and entry:
            return Found(bucket, f"{digest}/{BEST}", entry, digest)
        if is_address(base):
            Bucket(base).look()  # says so where it is the bucket that is missing
        if digest:
            raise MlopsError(f"{bucket.url}/{digest}: no such checkpoint; publish it (again) with mlops publish")
        raise MlopsError(f"{shown(where)}: no such file, nor a model published under that name; check the address")

    return ask(bucket, look, ANSWER_TIMEOUT)


def fetch(found: Found) -> Path:
    """The file in the cache that holds an object as it is now; downloaded where there is none, or a changed one.

    Raises:
        MlopsError: it cannot be read or written, or is not the checkpoint with the digest of its address.
    """
    url = f"{found.bucket.url}/{found.name}".rstrip("/")
    # An object of which no MD5 is kept (a composite one, or storage of another kind) is fetched each time.
    md5 = found.entry.md5
    content = base64.b64decode(md5).hex() if md5 else hashlib.sha256(url.encode()).hexdigest()
    # The last part of its name stays: weights are recognised by it, and formats by its end.
    path = cache_folder() / content / (re.sub(r"[^\w.+=@-]", "_", url.rpartition("/")[2])[-80:].lstrip(".") or "object")
    if not same(path, found.entry):
        try:
            with atomic(path) as temporary:
                download(found.bucket, found.name, found.entry.size, temporary)
        except MlopsError:
            # Windows does not replace a file that somebody reads: then another process has brought it meanwhile.
            if not same(path, found.entry):
                raise
    if found.digest:
        with named(path, url):
            told = read_metadata(path)["digest"]
        if told != found.digest:
            raise MlopsError(f"{url}: is another checkpoint, {told}; publish the right one again with mlops publish")
    return path


def cache_folder() -> Path:
    """Where fetched files are kept: MLOPS_CACHE, or `mlops` in the user's folder for such. It may be removed any time.

    Raises:
        MlopsError: it cannot be made.
    """
    own, common = os.environ.get("MLOPS_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if not common and sys.platform == "win32":
        common = os.environ.get("LOCALAPPDATA")
    try:
        folder = Path(own).expanduser() if own else Path(common or "~/.cache").expanduser() / "mlops"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        reason = getattr(error, "strerror", None) or "there is no home folder"
        raise MlopsError(
            f"{own or common or '~/.cache'}: no place to keep downloads: {reason}; name one in MLOPS_CACHE"
        ) from error
    return folder.absolute()


class NoModelError(MlopsError):
    """A `latest` that leads nowhere."""


def read_latest(bucket: Bucket, name: str) -> str | None:
    """The digest in a `latest`; None where there is none."""
    if (raw := bucket.read(name)) is None:
        return None
    try:
        told: Any = json.loads(raw)
        digest = told["digest"] if isinstance(told, dict) else None
    except (ValueError, KeyError, RecursionError):
        digest = None
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise NoModelError(f"{bucket.url}/{name}: leads to no model; publish it again with mlops publish")
    return digest


def download(bucket: Bucket, name: str, size: int, path: Path) -> None:
    """Copy an object of about `size` bytes to `path`, as `atomic` gives one, behind a bar.

    Raises:
        MlopsError: it cannot be read, or nothing came for `STALL_TIMEOUT`.
    """
    received = 0

    with bar(f"fetching {name or bucket.url}", size, "bytes") as progress:

        def hear(count: int) -> None:
            nonlocal received
            received += count
            progress.advance(count)

        ask(bucket, lambda: bucket.get(name, path, hear), STALL_TIMEOUT, lambda: received)
