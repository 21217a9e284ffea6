"""Which code and which machine: what a checkpoint remembers of the place it was made in."""

import hashlib
import logging
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlops
from mlops.errors import MlopsError, printable
from mlops.git import git

log = logging.getLogger(__name__)


def describe_code(folder: Path = Path(__file__).parent) -> dict[str, Any]:
    """The package's version and, of the git checkout that holds `folder`, the commit, whether its tree is changed, and
    the SHA-256 of the changes. Where there is no checkout, the commit is that of the variable MLOPS_COMMIT.
    """
    commit = git(folder, "rev-parse", "HEAD")
    changed = git(folder, "status", "--porcelain") if commit else None
    diff = f"{git(folder, 'diff', 'HEAD')}{_new_files(folder)}" if changed else None
    return {
        "version": mlops.__version__,
        "commit": commit.strip() if commit else _told_commit(),
        "dirty": bool(changed) if commit else None,
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
    }


def _told_commit() -> str | None:
    """The commit that a container image was built from, where it was told so."""
    told = os.environ.get("MLOPS_COMMIT")
    if told and not re.fullmatch("[0-9a-f]{40}", told):
        log.warning(f"MLOPS_COMMIT={printable(told[:50])}: is no commit, which is 40 hexadecimal digits; it is ignored")
        return None
    return told or None


def _new_files(folder: Path) -> str:
    """Names and hashes of the files that git does not know yet and is not told to ignore: no diff has them."""
    root = (git(folder, "rev-parse", "--show-toplevel") or "").strip()
    listed = git(Path(root), "ls-files", "--others", "--exclude-standard", "-z") if root else None
    names = [name for name in (listed or "").split("\0") if name]
    known = git(Path(root), "hash-object", "--", *names) if names else None
    return "\n".join([*names, known or ""])


def describe_environment(device: str, threads: int, precision: str) -> dict[str, Any]:
    """Versions and hardware. Nothing else of the environment is read: no variables, no user, no host name."""
    import numpy as np
    import PIL
    import torch
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "platform": platform.platform(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        "threads": threads,
        "precision": precision,
    }


def check_clean(code: Mapping[str, Any], required: bool) -> None:
    """Warn of uncommitted changes; where a clean tree is `required`, refuse them, and a tree that git does not know.

    Raises:
        MlopsError: the tree is not clean although it is required to be.
    """
    if required and code["dirty"] is not False:
        reason = "the git tree has uncommitted changes" if code["dirty"] else "the code is in no git tree"
        raise MlopsError(f"training.require_clean=true: {reason}; commit it all, or set this to false")
    if code["dirty"]:
        log.warning(
            "the git tree has uncommitted changes: the checkpoint keeps the commit and the changes' hash, from which "
            "nobody can get them back; commit first, or see training.require_clean"
        )


def describe_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`torch 2.14.0 -> 2.15.0`: what two plain descriptions do not agree in, a line each."""
    keys = [*before, *(key for key in now if key not in before)]
    return [f"{key} {before.get(key)} -> {now.get(key)}" for key in keys if before.get(key) != now.get(key)]
