"""Files in a bucket, through fsspec: `gs://...`, a folder (of a network share), or what else is installed.

An object appears whole or not at all, and one that is said to be there was compared with what was sent. The libraries
are imported when a bucket is opened. Their messages are not passed on: they hold addresses that let others write.
"""

import base64
import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mlops import gcs
from mlops.deadline import within
from mlops.errors import MlopsError, one_line
from mlops.files import atomic, users_to_mend, write_text

T = TypeVar("T")

# Bytes sent in one request, a multiple of 256 KiB as GCS wants it: this much of a file is in memory.
CHUNK = 16 * 1024**2
_TRIES = 3
# For a question that is asked before a run starts: a long listing takes longer than a write.
READ_TIMEOUT = 60.0


@dataclass(frozen=True)
class Entry:
    """An object as a listing shows it: bytes, and the MD5 in base64 where the bucket keeps one."""

    size: int
    md5: str | None


class Bucket:
    """The objects below a URL; a name is a relative POSIX path. Every call may take as long as the network does.

    Raises:
        MlopsError: by every method: the reason, in one line, names the URL without what is secret in it.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """`options` go to the file system, in the place of what is found in the environment."""
        self.url = shown(url)
        if "::" in url:
            raise MlopsError(f"{self.url}: chained URLs are not read; name one place, such as gs://bucket/folder")
        scheme = _scheme(url)
        self._gcs = _is_gcs(url)
        try:
            import fsspec

            told = (gcs.options() if self._gcs else {}) | dict(options or {})
            self._fs, self._root = fsspec.core.url_to_fs(url, **told)
        except ImportError as error:
            raise MlopsError(f"{self.url}: needs a package that is not installed: {one_line(error)}") from error
        except Exception as error:
            known = "" if _is_known(scheme) else "; gs://bucket/folder and folders are known"
            reason = f"{scheme}:// is no kind of storage" if known else gcs.reason(error)
            raise MlopsError(f"{self.url}: {reason}{known}") from error
        self._root = str(self._root).rstrip("/")
        self._folder = Path(self._root or "/") if scheme in {"file", "local"} else None
        if self._folder is None and not self._root.strip("/") and scheme != "memory":
            raise MlopsError(f"{self.url}: names no bucket; write gs://bucket/folder")

    def look(self) -> None:
        """Ask for one name: whether the bucket is there and may be read."""
        if not self._gcs:
            if self._folder is not None and not self._folder.is_dir():
                raise MlopsError(f"{self.url}: no such folder; mount it or make it first")
            self.folders()
            return
        bucket, _, prefix = self._root.partition("/")
        with self._told():
            self._fs.call("GET", "b/{}/o", bucket, prefix=prefix, maxResults=1, json_out=True)

    def prove(self, name: str) -> None:
        """Write a small object, replace it and read it back: what saving and resuming will need.

        A bucket may allow new objects only, and then it is the second save that fails.
        """
        self.write(name, "{}")
        self.write(name, "{}\n")
        if self.read(name) != b"{}\n":
            raise MlopsError(f"{self.url}: what was written reads back as something else")

    def put(self, path: Path, name: str, sent: Callable[[], object]) -> None:
        """Copy a file as it is when it is opened; a file that is replaced meanwhile does no harm.

        `sent` is called whenever a part has arrived.
        """
        if self._folder is not None:
            target = self._target(name)
            with path.open("rb") as source, atomic(target) as temporary, temporary.open("wb") as file:
                while part := source.read(CHUNK):
                    file.write(part)
                    sent()
            return
        with self._told():
            callback = _callback(lambda _: sent())
            if self._gcs:
                # Opens the file once, and compares the MD5 of what it has read with that of the finished object.
                options = {"consistency": "md5", "chunksize": CHUNK}
                self._fs.put_file(str(path), self._path(name), callback=callback, **options)
                return
            size = path.stat().st_size
            self._fs.put_file(str(path), self._path(name), callback=callback)
            if self._fs.info(self._path(name))["size"] != size:
                raise MlopsError(f"{self.url}: {name} arrived with another size than it was sent with")

    def write(self, name: str, text: str) -> None:
        """Write a small object."""
        if self._folder is not None:
            write_text(self._target(name), text)
            return
        with self._told():
            options = {"consistency": "md5"} if self._gcs else {}
            self._fs.pipe_file(self._path(name), text.encode(), **options)

    def read(self, name: str) -> bytes | None:
        """A small object, or None where there is none; of a large one, its beginning."""
        try:
            with self._told():
                return bytes(self._fs.cat_file(self._path(name), start=0, end=2**20))
        except MlopsError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def get(self, name: str, path: Path, received: Callable[[int], object]) -> None:
        """Copy an object to `path`, as `atomic` gives one; `received` hears of bytes as they come."""
        heard = 0

        def hear(count: int) -> None:
            nonlocal heard
            heard += count
            received(count)

        for left in reversed(range(_TRIES)):
            with self._told(path):
                # Asked anew for each try: the object may have been replaced while it was read.
                entry = _entry(self._fs.info(self._path(name)))
                self._fs.get_file(self._path(name), str(path), callback=_callback(hear))
            if _arrived(path, entry):
                hear(max(entry.size - heard, 0))  # of a local copy nothing was heard
                return
            if not left:
                raise MlopsError(f"{self.url}: {name or 'it'} does not arrive as it is there; try again")

    def entry(self, name: str) -> Entry | None:
        """An object as it is now; None where there is none of that name. An empty name is that of the URL itself."""
        try:
            with self._told():
                self._fs.invalidate_cache()
                info = self._fs.info(self._path(name))
        except MlopsError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return None
            raise
        return _entry(info) if info["type"] == "file" else None

    def files(self, folder: str) -> dict[str, Entry]:
        """All objects below a folder, by their names in it."""
        with self._told():
            self._fs.invalidate_cache()
            start = f"{self._path(folder)}/"
            found = self._fs.find(start, detail=True)
        # A marker of a folder, as consoles make them, ends in a slash.
        names = [str(name) for name in found if str(name).startswith(start) and not str(name).endswith("/")]
        return {name.removeprefix(start): _entry(found[name]) for name in names}

    def folders(self, folder: str = "") -> list[str]:
        """The names of the folders in a folder; none where there is no such folder."""
        try:
            with self._told():
                self._fs.invalidate_cache()
                found = self._fs.ls(self._path(folder), detail=True)
        except MlopsError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return []
            raise
        return [str(info["name"]).rstrip("/").split("/")[-1] for info in found if info["type"] == "directory"]

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _target(self, name: str) -> Path:
        # A share that is not mounted is an empty place on the local disk, or none.
        if self._folder is None or not self._folder.is_dir():
            raise MlopsError(f"{self.url}: no such folder; mount it or make it first")
        return self._folder / name

    @contextlib.contextmanager
    def _told(self, path: Path | None = None) -> Iterator[None]:
        """Turn what a library raises into one line, but for a full disk under `path`, the local file."""
        try:
            yield
        except MlopsError:
            raise
        except Exception as error:
            # A library's own kinds of OSError are about the network, whatever their number.
            ours = type(error).__module__ == "builtins" and isinstance(error, OSError) and users_to_mend(error, path)
            if path and ours:
                raise  # `atomic` knows what the file will be called
            raise MlopsError(f"{self.url}: {gcs.reason(error)}") from error


def same(path: Path, entry: Entry) -> bool:
    """Whether a local file has the size of an object and its MD5; without an MD5 there is no saying so."""
    return entry.md5 is not None and _arrived(path, entry)


def shown(url: str) -> str:
    """A URL as it may be printed: without a user's name and password."""
    bare = re.sub(r"//[^/]*@", "//", url)
    return bare if bare.endswith("://") else bare.rstrip("/")


def open_bucket(url: str, seconds: float = READ_TIMEOUT, options: Mapping[str, Any] | None = None) -> Bucket:
    """A `Bucket`, in a limited time; what takes long there is the search for credentials."""
    # Imports are the disk's time, not the network's.
    with contextlib.suppress(Exception):
        from fsspec import get_filesystem_class

        if _is_gcs(url):
            gcs.options()
        get_filesystem_class(_scheme(url))
    try:
        return within(seconds, lambda: Bucket(url, options))
    except TimeoutError as error:
        raise MlopsError(f"{shown(url)}: no credentials were found within {seconds:.0f} s; {gcs.LOG_IN}") from error


def ask(
    bucket: Bucket, action: Callable[[], T], seconds: float = READ_TIMEOUT, moved: Callable[[], object] | None = None
) -> T:
    """The result of a call of `bucket`, or one line after `seconds` without one; `moved` as in `within`."""
    try:
        return within(seconds, action, moved)
    except TimeoutError as error:
        raise MlopsError(
            f"{bucket.url}: no answer within {seconds:.0f} s; check the network and the credentials"
        ) from error


def _scheme(url: str) -> str:
    return url.split("://", maxsplit=1)[0] if "://" in url else "file"


def _is_gcs(url: str) -> bool:
    return _scheme(url) in {"gs", "gcs"}


def _callback(moved: Callable[[int], object]) -> Any:
    """What fsspec calls with the bytes that have gone by."""
    from fsspec.callbacks import Callback

    class Moved(Callback):  # type: ignore[misc, unused-ignore]
        def relative_update(self, inc: int = 1) -> None:
            moved(inc)

        def absolute_update(self, value: int) -> None:
            moved(value)

    return Moved()


def _arrived(path: Path, entry: Entry) -> bool:
    """Whether a local file is an object's, as far as can be told."""
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    if entry.md5 is None:
        return True
    with path.open("rb") as file:
        total = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False))
    return base64.b64encode(total.digest()).decode() == entry.md5


def _is_known(scheme: str) -> bool:
    from fsspec.registry import known_implementations, registry

    return scheme in known_implementations or scheme in registry


def _entry(info: dict[str, Any]) -> Entry:
    return Entry(int(info["size"]), info.get("md5Hash"))
