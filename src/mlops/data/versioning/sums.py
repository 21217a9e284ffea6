"""`data/SHA256SUMS`: the manifest of all files of a version, in the format that `sha256sum --check` reads.

DVC keeps the files' MD5 in its cache or in the bucket; this one lies beside the files, needs neither, and its own
SHA-256 stands in `data.dvc`. So what is here can be held against the commit, file by file, without a network.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mlops.data.decode import cores
from mlops.errors import MlopsError, one_line, shorten
from mlops.files import check_regular, safe_relative, sha256_of, write_text
from mlops.progress import bar

SUMS = "SHA256SUMS"
# A line of `sha256sum`; names with line breaks, which it would escape, are not versioned.
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_MOST_BYTES = 1024**3


@dataclass(frozen=True)
class Compared:
    """How files differ from their manifest: names relative to its folder, in order."""

    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return not (self.changed or self.missing or self.unknown)


def list_files(folder: Path, below: str = "", ignored: Callable[[str], bool] | None = None) -> list[str]:
    """The files of `data/`, or those in its folder `below`, that a version may hold: relative POSIX paths, without the
    manifest.

    `ignored` is asked of each path, with the name of `folder` before it; what `.dvcignore` leaves out when left out.

    Raises:
        MlopsError: a name cannot be versioned, or is that of a link, a pipe or a device.
    """
    ignored = ignored or _ignored(folder)
    found, problems = [], []
    for here, folders, files in os.walk(folder / below, onerror=_cannot_list):
        kept = []
        for name in [*sorted(folders), *files]:
            path, is_folder = Path(here) / name, name in folders
            relative = path.relative_to(folder).as_posix()
            if ignored(f"{folder.name}/{relative}{'/' if is_folder else ''}") or relative == SUMS:
                continue
            if path.is_symlink():
                problems.append(f"{path}: is a link; copy the file there instead, so that its content is versioned")
            elif not relative.isprintable() or "\\" in relative:
                problems.append(f"{str(path)!a}: its name has a character that no manifest can hold; rename it")
            elif is_folder:
                kept.append(name)
            elif not path.is_file():
                problems.append(f"{path}: is a device or a pipe, not a file; remove it")
            else:
                found.append(relative)
        folders[:] = kept
    if problems:
        raise MlopsError(problems)
    return sorted(found)


def _ignored(folder: Path) -> Callable[[str], bool]:
    """Whether `.dvcignore` leaves out a path, relative to the folder that holds `folder`."""
    import pathspec

    try:
        lines = (folder.parent / ".dvcignore").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return pathspec.GitIgnoreSpec.from_lines(lines).match_file


def write_sums_of(folder: Path, before: str | None = None) -> str:
    """Write the manifest of `folder` into it; returns the SHA-256 of the manifest.

    `before` is the SHA-256 of the one that it replaces. One of another origin, as some data sets bring, is replaced
    only by one that says all that it says.

    Raises:
        MlopsError: as `list_files`; a file cannot be read; the manifest that is there is not ours.
    """
    names = list_files(folder)
    if not names:
        raise MlopsError(f"{folder}: holds no files to version; put the images there, as a folder or an archive")
    text = "".join(f"{hashed}  {name}\n" for name, hashed in _hash(folder, names))
    own = (folder / SUMS).read_bytes() if (folder / SUMS).is_file() else b""
    if hashlib.sha256(own).hexdigest() != before and not set(own.splitlines()) <= set(text.encode().splitlines()):
        raise MlopsError(f"{folder / SUMS}: is not the manifest of data.dvc, and would be replaced by it; rename yours")
    write_text(folder / SUMS, text)
    return hashlib.sha256(text.encode()).hexdigest()


def read_sums(folder: Path) -> dict[str, str]:
    """SHA-256 by name, from the manifest in `folder`.

    Raises:
        MlopsError: it is missing or no manifest.
    """
    path = folder / SUMS
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise MlopsError(f"{path}: is larger than {_MOST_BYTES:,} bytes; it is no manifest")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MlopsError(f"{path}: cannot be read: {one_line(error)}") from error
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise MlopsError(f"{path} line {number}: is not `<SHA-256>  <path>`; `invoke data-pull` brings it back")
        name = safe_relative(match[2], f"{path} line {number}")
        if name in sums:
            raise MlopsError(f"{path} line {number}: names {name} twice; `invoke data-pull` brings it back")
        sums[name] = match[1]
    return sums


def compare(folder: Path, sums: dict[str, str], below: str = "", *, hidden: bool = False) -> Compared:
    """Hold the files of `folder` against their manifest: all, or that one file or those in that folder, `below`.

    With `hidden`, files that `.dvcignore` leaves out of versions count as unknown: a run may read them.
    """

    def concerns(name: str) -> bool:
        return not below or name == below or name.startswith(f"{below}/")

    named = {name: hashed for name, hashed in sums.items() if concerns(name)}
    here = set(_files_below(folder, below, hidden))
    missing = [name for name in named if name not in here]
    hashes = dict(_hash(folder, [name for name in named if name in here]))
    return Compared(
        changed=[name for name, hashed in hashes.items() if hashed != named[name]],
        missing=missing,
        unknown=sorted(here - named.keys()),
    )


def describe(found: Compared) -> str:
    """How files differ, in words."""
    parts = [
        f"{word} {shorten(names)}"
        for word, names in (("changed:", found.changed), ("missing:", found.missing), ("new:", found.unknown))
        if names
    ]
    return "; ".join(parts)


def _files_below(folder: Path, below: str, hidden: bool) -> Iterable[str]:
    if below and (folder / below).is_file():
        return [below]
    if not (folder / below).is_dir():
        return []
    # What was made here, or fetched, is nothing that a run on all of `data/` means.
    made = [f"{folder.name}/{name}/" for name in ("processed", "downloads") if not below]
    return list_files(folder, below, made.__contains__ if hidden else None)


def _hash(folder: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    def hashed(name: str) -> str:
        check_regular(folder / name, str(folder / name))  # it may have become a pipe
        try:
            return sha256_of(folder / name)
        except OSError as error:
            raise MlopsError(f"{folder / name}: cannot be read: {error.strerror or one_line(error)}") from error

    # Hashing large files releases the interpreter; small ones take turns either way.
    with ThreadPoolExecutor(min(cores(), 8)) as pool, bar("checking", len(names), "files") as progress:
        for start in range(0, len(names), 256):
            part = names[start : start + 256]
            yield from zip(part, pool.map(hashed, part), strict=True)
            progress.advance(len(part))


def _cannot_list(error: OSError) -> None:
    raise error
