"""Where models come from: a file or an object, copied once it was found to be whole, so that all workers load the same.

A file may be replaced, or half written, at any time; what workers read lies in a folder of the server's own.
"""

import hashlib
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops import onnx_file
from mlops.errors import MlopsError, one_line
from mlops.files import check_regular
from mlops.storage import ask, open_bucket, shown

# Seconds: for a question to a bucket, and for a download that stands still.
_ANSWER, _STALL = 30.0, 90.0


@dataclass(frozen=True)
class Snapshot:
    """A model as it was at one moment: a file that nobody changes, and its SHA-256."""

    path: Path
    sha256: str


@dataclass
class Source:
    """The file or address of one model, and what was last seen there.

    Attributes:
        folder: where its snapshots go, and nothing else.
        snapshot: the last that was good.
        refused: why the last one that was looked at is not in use.
        looking: to be held by whoever calls `look`, until what it found is told.
        replaced: files of earlier snapshots.
    """

    name: str
    where: str
    folder: Path
    snapshot: Snapshot | None = None
    refused: str | None = None
    looking: threading.Lock = field(default_factory=threading.Lock, repr=False)
    replaced: list[Path] = field(default_factory=list, repr=False)
    _seen: Any = field(default=None, repr=False)
    _taken: int = 0

    @property
    def shown(self) -> str:
        """The file or address without what is secret in it."""
        return shown(self.where) if "://" in self.where else self.where

    def look(self, *, again: bool = False) -> bool:
        """Look whether there is another file than the last time, and take it; whether `snapshot` is a new one.

        With `again`, also where it does not seem to have changed.

        Raises:
            MlopsError: there is none, or it is no model that may be run. `refused` says so too.
        """
        try:
            return self._look(again)
        except MlopsError as error:
            self.refused = "; ".join(error.problems)
            raise

    def _look(self, again: bool) -> bool:
        try:
            seen = self._stamp()
        except MlopsError:
            self._seen = None  # the same file may come back
            raise
        if seen == self._seen and not again:
            return False
        self._seen = seen
        # No two snapshots have the same path: whoever removes an old one cannot hit one that has just come.
        self._taken += 1
        path = self.folder / f"{self._taken}.onnx"
        temporary = self.folder / f"{self._taken}.tmp"
        try:
            try:
                self._copy(temporary)
            except BaseException:
                self._seen = None  # it was not seen: what failed may not fail the next time
                raise
            with temporary.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            self.refused = None
            if self.snapshot is not None and sha256 == self.snapshot.sha256:
                return False
            onnx_file.inspect(temporary.read_bytes(), self.shown)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        before, self.snapshot = self.snapshot, Snapshot(path, sha256)
        if before is not None:
            self.replaced.append(before.path)
        return True

    def _stamp(self) -> Any:
        """What changes when the file does."""
        if "://" in self.where:
            bucket = open_bucket(self.where, _ANSWER)
            if (entry := ask(bucket, lambda: bucket.entry(""), _ANSWER)) is None:
                raise MlopsError(f"{self.shown}: no such file; check the address")
            self._check_size(entry.size)
            return entry
        path = Path(self.where)
        check_regular(path, self.where)
        if path.suffix.lower() == ".pth":
            raise MlopsError(f"{self.where}: is a checkpoint; export it first: mlops export {self.where} -o model.onnx")
        try:
            told = path.stat()
        except FileNotFoundError as error:
            raise MlopsError(f"{self.where}: no such file; make one with: mlops export CHECKPOINT") from error
        except (OSError, ValueError) as error:
            raise MlopsError(f"{self.where}: cannot be read: {one_line(error)}") from error
        if path.is_dir():
            raise MlopsError(f"{self.where}: is a folder; name the .onnx file in it")
        self._check_size(told.st_size)
        return told.st_mtime_ns, told.st_size, told.st_ino

    def _check_size(self, size: int) -> None:
        if size > onnx_file.MOST_BYTES:
            raise MlopsError(f"{self.shown}: is larger than {onnx_file.MOST_BYTES:,} bytes; that is no ONNX file")

    def _copy(self, target: Path) -> None:
        if "://" in self.where:
            bucket, heard = open_bucket(self.where, _ANSWER), 0

            def hear(count: int) -> None:
                nonlocal heard
                heard += count

            ask(bucket, lambda: bucket.get("", target, hear), _STALL, lambda: heard)
            return
        try:
            shutil.copyfile(self.where, target)
        except OSError as error:
            raise MlopsError(f"{self.where}: cannot be read: {error.strerror or one_line(error)}") from error
