"""What git says of a folder; nothing where there is no git, no checkout, or one of another owner."""

import subprocess
from pathlib import Path


def git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints, or None where it fails or takes longer than 10 s."""
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
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def revision_of(path: Path) -> str | None:
    """The commit in which a file became what it is now; None where no commit of this history has it so."""
    if not path.is_file() or (blob := git(path.parent, "hash-object", "--", path.name)) is None:
        return None
    # Those that brought this content or took it away; the oldest brought it.
    commits = git(path.parent, "log", "--format=%H", f"--find-object={blob.strip()}", "--", path.name)
    return commits.split()[-1] if commits and commits.split() else None
