"""Whether the images of a run are what `data.dvc` names, file by file: asked before anything is made of them."""

import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any

from mlops.config import DataConfig
from mlops.data.versioning.embed import DVC_MD5, SHA256, make_archive
from mlops.data.versioning.pointer import DATA, POINTER, Pointer, Version, find_root, read_pointer
from mlops.data.versioning.sums import SUMS, compare, read_sums
from mlops.errors import MlopsError, shorten
from mlops.files import sha256_of
from mlops.git import revision_of

log = logging.getLogger(__name__)

# Settings that do not change what is prepared.
_FREE = ("downloads", "workers", "pull", "max_bad")


class NotHereError(MlopsError):
    """The version that `data.dvc` names is not here, or not whole; pulling brings it."""


def versioned(config: DataConfig) -> tuple[Pointer, str] | None:
    """The pointer that covers `data.root`, and the path of `data.root` in `data/`; None where none does.

    Raises:
        MlopsError: `data.dvc` is not one that may be read.
    """
    project = find_root()
    if project is None or config.root is None or config.source == "torchvision":
        return None
    # Not resolved: a link in `data/` is refused when the manifest is written.
    path = Path(config.root).absolute()
    if not path.is_relative_to(project / DATA) or ".." in path.parts:
        return None
    below = path.relative_to(project / DATA).as_posix()
    pointer = read_pointer(project / POINTER)
    return None if pointer is None else (pointer, "" if below == "." else below)


def version_of(config: DataConfig) -> Version | None:
    """The version that the images of `config` are of, once every file of theirs was compared; None if of none.

    Raises:
        NotHereError: files are missing, or all of `data/` is of another version.
        MlopsError: a file was changed or cut after it was versioned; `data.dvc` or the manifest cannot be read.
    """
    if config.source == "digits":
        return _embedded()
    if (found := versioned(config)) is None:
        return None
    pointer, below = found
    data, root = pointer.root / DATA, config.root
    named = _short(pointer.md5)
    if pointer.sums is None:
        log.info(f"{POINTER} was written by DVC alone: files are not checked; `mlops data add` adds a manifest of them")
        return None
    if not (data / SUMS).is_file():
        if not Path(str(root)).exists():
            raise NotHereError(f"data.root={root}: is not here; `invoke data-pull` brings version {named} of {POINTER}")
        log.warning(
            f"{root} is in no version: {POINTER} names other data; `invoke data-push` makes it the next version"
        )
        return None
    if sha256_of(data / SUMS) != pointer.sums:
        raise NotHereError(
            f"{data}: is of another version than {POINTER} ({named}); `invoke data-pull` brings that one, "
            "`invoke data-push --replace` makes what is here the next version"
        )
    sums = read_sums(data)
    compared = compare(data, sums, below, hidden=True)
    if compared.changed:
        raise MlopsError(
            [
                f"{data / name}: was changed or cut after it was versioned ({POINTER} names {named}); remove it and "
                "`invoke data-pull`, or make what is here the next version: `invoke data-push`"
                for name in compared.changed
            ]
        )
    if compared.missing or not (compared.unknown or Path(str(root)).exists()):
        lost = shorten([str(data / name) for name in compared.missing] or [str(root)])
        raise NotHereError(f"{lost}: missing, of version {named} of {POINTER}; `invoke data-pull` brings it")
    named_here = not below or any(name == below or name.startswith(f"{below}/") for name in sums)
    if compared.unknown or not named_here:
        log.warning(
            f"{data}: {shorten(compared.unknown or [below])} not in version {named} of {POINTER}: the checkpoint will "
            "name no version; `invoke data-push` makes what is here the next one"
        )
        return None
    version = Version(pointer.md5, revision_of(pointer.file))
    log.info(f"data: {root}, as version {version.short} of {POINTER} has it")
    return version


def request(config: DataConfig) -> dict[str, Any]:
    """The settings that say which images, and what is to be made of them, wherever the project lies."""
    told = {name: value for name, value in dataclasses.asdict(config).items() if name not in _FREE}
    if (found := versioned(config)) is not None:
        told["root"] = f"{DATA}/{found[1]}"
    return told


def _embedded() -> Version | None:
    project = find_root()
    pointer = read_pointer(project / POINTER) if project else None
    what = "data: the 1,797 digits that ship with scikit-learn (data=digits)"
    if pointer is None:
        log.info(what)
        return None
    if pointer.md5 != DVC_MD5:
        log.info(f"{what}; {POINTER} names other data, which data=folder data.root={DATA} and the like take")
        return None
    if hashlib.sha256(make_archive()).hexdigest() != SHA256:
        log.warning(f"{what}; this scikit-learn ships others than those that {POINTER} names")
        return None
    log.info(f"{what}, which are what {POINTER} names: there is nothing to pull")
    return Version(pointer.md5, revision_of(pointer.file))


def _short(md5: str) -> str:
    return md5[:8]
