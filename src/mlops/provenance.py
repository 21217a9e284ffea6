"""Which code and which machine: what a checkpoint remembers of the place it was made in."""

import hashlib
import platform
import subprocess
from pathlib import Path
from typing import Any

import mlops


def describe_code() -> dict[str, Any]:
    """The package's version and, in a git checkout, the commit, whether the tree is changed, and the diff's hash."""
    folder = Path(__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    diff = _git(folder, "diff", "HEAD") if commit else None
    changed = _git(folder, "status", "--porcelain") if commit else None
    return {
        "version": mlops.__version__,
        "commit": commit.strip() if commit else None,
        "dirty": bool(changed) if commit else None,
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
    }


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


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.SubprocessError):  # no git, no checkout, or one of another owner
        return None
    return done.stdout
