"""Atomic writes and safe paths."""

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mlops.errors import MlopsError

# Errors of the file system that the user mends, not we, and how.
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_WRONG_PLACE = {
    *(
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    ),
    *(errno.ENOENT, errno.ENOTEMPTY),
}


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it is fsynced and renamed to `path`, else removed.

    A reader sees the old file or the new one, never half of one, also after a power cut.

    Raises:
        MlopsError: the disk is full or may not be written to, the old file is intact then; or `path` is a device.
    """
    # What a link names is replaced, not the link.
    path = path.resolve() if path.is_symlink() else path
    check_regular(path, str(path))
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as file:  # Windows syncs only what is open for writing
                os.fsync(file.fileno())
            # mkstemp's file is private to its owner; what we keep has the mode any new file would have.
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def check_regular(path: Path, where: str) -> None:
    """Refuse devices, pipes and sockets: to read one may take for ever, and a new file would take its place.

    What is missing or a folder is left to whoever opens it. `where` begins the problem.

    Raises:
        MlopsError: it is one.
    """
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise MlopsError(f"{where}: is a device or a pipe, not a file; name a file")


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process, and remove the temporary files that a killed one left in it.

    Raises:
        MlopsError: another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise MlopsError(f"{folder}: another process is at work in it; stop that one first") from error
    try:
        for left in folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically; into a device or a pipe, as it is."""
    with writing_to(path):
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8", newline="\n")
            return
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission or an impossible path into one line for the user."""
    try:
        yield
    except OSError as error:
        if (problem := users_to_mend(error, path)) is None:
            raise
        raise problem from error


def users_to_mend(error: OSError, path: Path | None = None) -> MlopsError | None:
    """One line for the user, or None when the error is not theirs to mend."""
    where = path or error.filename
    if error.errno in _NO_ROOM:
        return MlopsError(f"{where}: cannot be written: {error.strerror}; free some space or choose another path")
    if error.errno in _WRONG_PLACE and where is not None:
        return MlopsError(f"{where}: cannot be used: {error.strerror}; choose another path or change its permissions")
    return None


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable. Windows has no handle on a folder and needs none."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_relative(name: str, where: str) -> str:
    """`name` as a normal relative POSIX path that stays inside its root.

    Raises:
        MlopsError: the name is absolute, empty, holds `..`, a drive letter, a NUL or a backslash.
    """
    path = PurePosixPath(name)
    unsafe = not name or "\0" in name or "\\" in name or path.is_absolute() or ".." in path.parts
    if unsafe or (len(name) > 1 and name[1] == ":"):
        raise MlopsError(f"{where}: the path {name!r} leaves its root; only relative paths inside it are read")
    return path.as_posix()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
