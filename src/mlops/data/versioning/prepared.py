"""Prepared folders as versions of their own: a fresh clone fetches few large arrays instead of preparing again.

`data/` is one output of DVC's and may hold no other, so what is versioned lies beside it, in `processed/`: hard links
to the folders of `data/processed/`, which cost nothing, and `processed.dvc`.
"""

import dataclasses
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlops.config import DataConfig
from mlops.data.prepare import Prepared, check_prepared, describe_request, open_prepared
from mlops.data.versioning import versions
from mlops.data.versioning.dvc import dvc
from mlops.data.versioning.here import versioned
from mlops.data.versioning.pointer import PREPARED, PREPARED_POINTER, Pointer, Version, read_pointer
from mlops.data.versioning.remote import need_remote, reach
from mlops.errors import MlopsError, shorten
from mlops.files import sync_folder, write_text, writing_to
from mlops.git import revision_of

log = logging.getLogger(__name__)


def push_prepared(root: Path, processed: Path) -> list[str]:
    """Send the folders in `processed` that were prepared from the version that `data.dvc` names; returns their names.

    Raises:
        MlopsError: there is none; the bucket cannot be reached; the disk is full.
    """
    pointer = versions.need_pointer(root)
    found = [folder for folder, manifest in _manifests(processed) if manifest["source"].get("dvc_md5") == pointer.md5]
    if not found:
        raise MlopsError(
            f"{processed}: holds nothing that was prepared from version {pointer.md5[:8]} of {pointer.file.name}; "
            "`invoke preprocess-data` with the settings of your training prepares it"
        )
    remote = need_remote(root)
    bucket = reach(remote)
    twin = root / PREPARED
    stale = [old for old in sorted(twin.glob("*")) if old.name not in {folder.name for folder in found}]
    if others := [old for old in stale if not (old / "manifest.json").is_file()]:
        raise MlopsError(
            f"{twin}: holds {shorten([old.name for old in others])}, which is no prepared data; what is versioned as "
            f"{PREPARED_POINTER} lies there: move that away"
        )
    with writing_to(twin):
        twin.mkdir(exist_ok=True)
        for old in stale:
            shutil.rmtree(old)
        for folder in found:
            _link_tree(open_prepared(folder).folder, twin / folder.name)
    added = dvc(root, "add", PREPARED, doing=f"recording {PREPARED}")
    versions.succeeded(added, f"{twin}: cannot be recorded", root)
    if (recorded := _pointer(root)) is not None:
        versions.send(root, recorded, remote, bucket)
    return [folder.name for folder in found]


def pull_prepared(root: Path, processed: Path) -> list[str]:
    """Fetch the prepared folders that `processed.dvc` names into `processed`; returns the names of those.

    Raises:
        MlopsError: no prepared data is versioned here; or as `versions.fetch`.
    """
    pointer = _pointer(root)
    if pointer is None:
        raise MlopsError(
            f"{root / PREPARED_POINTER}: is not there, so no prepared data is versioned; `invoke data-push "
            "--processed` makes it, `invoke data-pull` brings the images themselves"
        )
    remote = need_remote(root)
    versions.fetch(root, pointer, remote, reach(remote))
    names = []
    with writing_to(processed):
        processed.mkdir(parents=True, exist_ok=True)
        for folder in sorted(path for path in (root / PREPARED).iterdir() if path.is_dir()):
            check_prepared(open_prepared(folder))
            _link_tree(folder, processed / folder.name)
            names.append(folder.name)
    return names


def find_prepared(config: DataConfig, processed: Path) -> Prepared | None:
    """What was prepared with these settings from the version that `data.dvc` names, though the images are not here.

    Raises:
        MlopsError: the folder is damaged.
    """
    if (found := versioned(config)) is None:
        return None
    pointer, wanted = found[0], describe_request(config)
    for folder, manifest in _manifests(processed):
        if manifest["source"].get("dvc_md5") == pointer.md5 and manifest.get("request") == wanted:
            log.info(f"data: {config.root} is not here; {folder} was prepared from it, version {pointer.md5[:8]}")
            version = Version(pointer.md5, revision_of(pointer.file))
            prepared = dataclasses.replace(open_prepared(folder), version=version)
            check_prepared(prepared, config)
            return prepared
    return None


def _pointer(root: Path) -> Pointer | None:
    return read_pointer(root / PREPARED_POINTER, PREPARED)


def _manifests(processed: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(processed.glob("[!.]*/manifest.json")):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(manifest["source"], dict):
                yield path.parent, manifest
        except (OSError, ValueError, KeyError, TypeError):
            continue  # `open_prepared` says what is wrong with one that is asked for


def _link_tree(folder: Path, place: Path) -> None:
    """`folder` as `place` too: hard links where the disk has them, else copies. Whole or not at all."""
    if place.exists():
        # The same arrays, by their name; but they may be known as those of a later version by now.
        told = (folder / "manifest.json").read_text(encoding="utf-8")
        if told != (place / "manifest.json").read_text(encoding="utf-8"):
            write_text(place / "manifest.json", told)
        return
    temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent))
    try:
        shutil.copytree(folder, temporary, copy_function=_link, dirs_exist_ok=True)
        temporary.chmod(0o755)
        temporary.rename(place)
        sync_folder(place.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
