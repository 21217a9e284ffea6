"""The objects of a version, in DVC's cache and in the bucket: which did not come, and why."""

import base64
import json
import re
import tempfile
from hashlib import md5
from pathlib import Path

from mlops.data.versioning.pointer import PREPARED_POINTER, Pointer
from mlops.data.versioning.remote import Remote
from mlops.errors import MlopsError, shorten
from mlops.files import safe_relative
from mlops.progress import bar
from mlops.storage import Bucket, Entry, ask

# Of a version's files, named when they are damaged.
_MOST_NAMED, _MOST_LOOKED_AT = 5, 50
# Seconds for the list of all objects in a bucket, a thousand a request: some millions of them.
LIST_TIMEOUT = 600.0
# It becomes part of a path.
_MD5 = re.compile(r"[0-9a-f]{32}")
_MISSING, _CHANGED = "is not there", "is not there as it was sent: it was changed or cut"


def listing(root: Path, wanted: str) -> dict[str, str] | None:
    """MD5 by name, of the files of a version, as DVC's cache has it; None where it has not, or a damaged one."""
    try:
        return _parsed(_in(_cache(root), wanted).read_bytes(), wanted)
    except OSError:
        return None


def is_cached(root: Path, wanted: str) -> bool:
    """Whether all objects of a version are in DVC's cache."""
    files, cache = listing(root, wanted), _cache(root)
    return files is not None and all(_in(cache, hashed).is_file() for hashed in files.values())


def check_names(root: Path, pointer: Pointer) -> None:
    """Raise where a version, which somebody else has made, would put a file outside of its folder or over another one.

    Raises:
        MlopsError: with each name that would.
    """
    problems, taken = [], dict[str, str]()
    for name in listing(root, pointer.md5) or {}:
        where = f"{pointer.file}: version {pointer.md5[:8]}"
        try:
            plain = safe_relative(name, where)
        except MlopsError as error:
            problems += error.problems
            continue
        other = taken.setdefault(plain.casefold(), name)
        if plain != name or not name.isprintable():
            problems.append(f"{where}: holds {name!a}, which is no plain name of a file; nothing of it is used")
        elif other != name:
            problems.append(f"{where}: holds {other!a} and {name!a}, which some disks take for one; rename one of them")
    if problems:
        raise MlopsError(problems)


def damaged(root: Path, pointer: Pointer, remote: Remote, bucket: Bucket) -> list[str]:
    """What the bucket lacks of a version, or has otherwise than it was sent, one line each; nothing if all is well."""
    try:
        return _damaged(root, pointer, remote, bucket)
    except MlopsError as error:
        return error.problems


def _damaged(root: Path, pointer: Pointer, remote: Remote, bucket: Bucket) -> list[str]:
    files = listing(root, pointer.md5)
    if files is None:
        content, why = _fetch(bucket, pointer.md5)
        files = None if content is None else _parsed(content, pointer.md5)
        if files is None:
            return [_line(remote, pointer, f"the list of files of {pointer.file.name}", pointer.md5, why or _CHANGED)]
    # Those that did not come. Of very many, some: to look at one is to fetch it.
    cache = _cache(root)
    absent = {name: hashed for name, hashed in files.items() if not _in(cache, hashed).exists()}
    problems = []
    for name, hashed in list(absent.items())[:_MOST_LOOKED_AT]:
        _, why = _fetch(bucket, hashed)
        if why:
            problems.append(_line(remote, pointer, f"{pointer.file.stem}/{name}", hashed, why))
    more = len(problems) - _MOST_NAMED
    return problems[:_MOST_NAMED] + ([f"{remote.shown}: and {more:,} more files"] if more > 0 else [])


def send_again(root: Path, pointer: Pointer, bucket: Bucket) -> int:
    """Send what the bucket lacks of a version, or has otherwise; returns how many objects that were.

    DVC asks for the list of files of a version only, and takes all that it names for sent.

    Raises:
        MlopsError: the bucket does not take it, or an object is in the cache neither.
    """
    cache, wanted = _cache(root), {pointer.md5, *(listing(root, pointer.md5) or {}).values()}
    there = ask(bucket, lambda: bucket.files("files/md5"), LIST_TIMEOUT)
    wrong = [
        hashed
        for hashed in sorted(wanted)
        if not _is_right(there.get(f"{hashed[:2]}/{hashed[2:]}"), hashed, _in(cache, hashed))
    ]
    if lost := [hashed for hashed in wrong if not _in(cache, hashed).is_file()]:
        raise MlopsError(
            f"{bucket.url}: lacks {shorten(lost)} of {pointer.file.name}, which are not in DVC's cache either"
        )
    with bar("sending again", len(wrong), "files") as progress:
        for hashed in wrong:
            name, moved = f"files/md5/{hashed[:2]}/{hashed[2:]}", [0]

            def put(name: str = name, hashed: str = hashed, moved: list[int] = moved) -> None:
                bucket.put(_in(cache, hashed), name, lambda: moved.append(0))

            ask(bucket, put, moved=lambda moved=moved: len(moved))  # type: ignore[misc]
            progress.advance(1)
    return len(wrong)


def _is_right(entry: Entry | None, hashed: str, cached: Path) -> bool:
    """Whether an object is what its name says, as far as the bucket tells without sending it."""
    if entry is None:
        return False
    if entry.md5 is not None:
        return base64.b64decode(entry.md5).hex() == hashed.removesuffix(".dir")
    return not cached.is_file() or cached.stat().st_size == entry.size


def _line(remote: Remote, pointer: Pointer, name: str, hashed: str, why: str) -> str:
    push = "invoke data-push" + (" --processed" if pointer.file.name == PREPARED_POINTER else "")
    place = f"files/md5/{hashed[:2]}/{hashed[2:]}"
    return f"{remote.shown}: {name} {why} (object {place}); whoever has this version sends it again by `{push}`"


def _fetch(bucket: Bucket, hashed: str) -> tuple[bytes | None, str]:
    """The bytes of an object, or why it is not to be had; nothing said where it is right."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "object"
        try:
            ask(bucket, lambda: bucket.get(f"files/md5/{hashed[:2]}/{hashed[2:]}", place, lambda _: None))
        except MlopsError as error:
            cause = error.__cause__
            if isinstance(cause, FileNotFoundError):
                return None, _MISSING
            if isinstance(cause, TimeoutError):
                return None, ""  # a large one: there is no saying
            if cause is None or type(cause).__name__ == "ChecksumError":
                return None, _CHANGED
            raise  # of the network, not of the object
        content = place.read_bytes()
    right = md5(content, usedforsecurity=False).hexdigest() == hashed.removesuffix(".dir")
    return (content, "") if right else (None, _CHANGED)


def _parsed(content: bytes, wanted: str) -> dict[str, str] | None:
    if md5(content, usedforsecurity=False).hexdigest() != wanted.removesuffix(".dir"):
        return None
    try:
        files = {str(one["relpath"]): str(one["md5"]) for one in json.loads(content)}
    except (ValueError, KeyError, TypeError):
        return None
    return files if all(map(_MD5.fullmatch, files.values())) else None


def _cache(root: Path) -> Path:
    """Where DVC keeps objects here: to ask for it once is to read four files."""
    from dvc.config import Config

    return Path(Config(str(root / ".dvc"))["cache"].get("dir") or root / ".dvc" / "cache") / "files" / "md5"


def _in(cache: Path, hashed: str) -> Path:
    return cache / hashed[:2] / hashed[2:]
