"""The files below a root: a folder, or a .tar or .zip read in place. Nothing is ever unpacked.

A tree can be sent to another process; each opens its own handle on the first read.
"""

import lzma
import os
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from mlops.errors import MlopsError, one_line
from mlops.files import check_regular, safe_relative
from mlops.image import MAX_BYTES

# What Python's archive readers raise on hostile or damaged bytes, beside their own errors.
_DAMAGED = (EOFError, ValueError, OverflowError, RecursionError, struct.error)


class Tree(ABC):
    """Named byte strings. Names are relative POSIX paths inside the root."""

    def __init__(self, label: str, names: Iterable[str], folders: Iterable[str] = ()) -> None:
        self.label = label
        self.names = sorted(names)
        for name in self.names:
            # Old archives and folders hold names in other encodings; no table or index could be written with them.
            if not name.isascii() and name.encode(errors="replace") != name.encode(errors="surrogatepass"):
                raise MlopsError(f"{label}: the file name {name!a} is not UTF-8; rename it")
        self.folders = sorted({*folders, *(parent for name in self.names for parent in _parents(name))})

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            OSError: it cannot be read.
        """


class MemoryTree(Tree):
    """Files that are made, not read."""

    def __init__(self, label: str, files: dict[str, bytes]) -> None:
        super().__init__(label, files)
        self._files = files

    def read(self, name: str) -> bytes:
        return self._files[name]


class FolderTree(Tree):
    """A folder on disk. Hidden files are left out; a link that leaves the root is refused."""

    def __init__(self, root: Path, only: Iterable[str] | None = None) -> None:
        """`only` names the files to see; nothing else below the root is looked at."""
        self._root = root.resolve()
        super().__init__(str(root), *(self._walk(str(root)) if only is None else (only, [])))

    def _walk(self, label: str) -> tuple[list[str], list[str]]:
        found, found_folders = [], []
        for folder, folders, files in os.walk(self._root, followlinks=True, onerror=_cannot_list):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            here = Path(folder)
            for name in folders:
                found_folders.append((here / name).relative_to(self._root).as_posix())
                if (here / name).is_symlink():
                    self._stays_inside(here / name, label)
                    if (here / name).resolve() in (here, *here.parents):
                        raise MlopsError(f"{here / name}: is a link to a folder that holds it; remove the link")
            for name in files:
                if name.startswith("."):
                    continue
                if (here / name).is_symlink():
                    self._stays_inside(here / name, label)
                found.append((here / name).relative_to(self._root).as_posix())
        return found, found_folders

    def _stays_inside(self, link: Path, label: str) -> None:
        if not link.resolve().is_relative_to(self._root):
            name = link.relative_to(self._root).as_posix()
            raise MlopsError(f"{label}/{name}: is a link that leaves the folder; copy the file there instead")

    def read(self, name: str) -> bytes:
        path = self._root / name
        # A pipe or a device would block for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("not a regular file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)


class TarTree(Tree):
    """An uncompressed .tar, read by offset."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        folders = []
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    name = safe_relative(member.name, str(path))
                    if member.isdir():
                        folders.append(name)
                        continue
                    if member.issym() or member.islnk():
                        raise MlopsError(f"{path}: {name} is a link; pack the files themselves (tar --dereference)")
                    if not member.isreg() or member.issparse():
                        raise MlopsError(f"{path}: {name} is no regular file; only those are read")
                    if name in self._places:
                        raise MlopsError(f"{path}: holds {name} twice; pack it anew")
                    self._places[name] = (member.offset_data, member.size)
                ended = archive.offset
            # Cut between two members, an archive reads like a shorter one; a whole one ends in zeros.
            with path.open("rb") as file:
                file.seek(ended)
                if file.read(tarfile.BLOCKSIZE) != b"\0" * tarfile.BLOCKSIZE:
                    raise MlopsError(f"{path}: ends in the middle: it was cut; copy or pack it anew")
        except (tarfile.TarError, *_DAMAGED) as error:
            raise MlopsError(f"{path}: is not an uncompressed .tar: {one_line(error)}") from error
        super().__init__(str(path), _seen(self._places), _seen(folders))

    def read(self, name: str) -> bytes:
        offset, size = self._places[name]
        # Opened at every read, which costs little: threads and processes share nothing.
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(min(size, MAX_BYTES + 1))


class ZipTree(Tree):
    """A .zip."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._archive: zipfile.ZipFile | None = None
        self._lock = threading.Lock()
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, *_DAMAGED) as error:
            raise MlopsError(f"{path}: is not a readable .zip: {one_line(error)}") from error
        names, folders = set(), []
        for member in members:
            name = safe_relative(member.filename, str(path))
            if member.is_dir():
                folders.append(name)
                continue
            if member.flag_bits & 1:
                raise MlopsError(f"{path}: {name} is encrypted; pack it without a password")
            if name in names:
                raise MlopsError(f"{path}: holds {name} twice; pack it anew")
            names.add(name)
        super().__init__(str(path), _seen(names), _seen(folders))

    def read(self, name: str) -> bytes:
        try:
            with self._lock:
                # Kept open: a .zip's directory is long to read.
                self._archive = self._archive or zipfile.ZipFile(self._path)
            with self._archive.open(name) as file:
                # Never more than the limit, whatever the archive says of itself: a bomb stops here.
                return file.read(MAX_BYTES + 1)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, lzma.LZMAError, *_DAMAGED) as error:
            raise OSError(f"damaged in the archive: {one_line(error)}") from error

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_archive", "_lock")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._archive, self._lock = None, threading.Lock()


def open_tree(root: Path, where: str = "data.root") -> Tree:
    """The tree at `root`: a folder, a .tar or a .zip.

    Raises:
        MlopsError: there is nothing there, or it is something else, or it holds an unsafe name.
    """
    check_regular(root, f"{where}={root}")
    try:
        if root.is_dir():
            return FolderTree(root)
        if not root.exists():
            raise MlopsError(f"{where}={root}: no such folder or archive; set {where} to where the images are")
        if tarfile.is_tarfile(root):
            return TarTree(root)
        if zipfile.is_zipfile(root):
            return ZipTree(root)
    except OSError as error:
        raise MlopsError(f"{where}={root}: cannot be read: {error.strerror or one_line(error)}") from error
    raise MlopsError(f"{where}={root}: is neither a folder nor a .tar nor a .zip")


def _cannot_list(error: OSError) -> None:
    raise error


def _seen(names: Iterable[str]) -> list[str]:
    """Names without hidden files, the root itself and what macOS adds to a .zip."""
    return [n for n in names if not any(part.startswith(".") or part == "__MACOSX" for part in n.split("/"))]


def _parents(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
