"""Key files: what lets whoever has it into a bucket has no place in a folder that is shared.

`python -m mlops.credentials FILE...` is the pre-commit hook; `mlops doctor` asks the same of the whole tree.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlops.errors import MlopsError, fail

# What Google's clients read as credentials: a service account's key, a person's own log-in.
_GOOGLE_SECRETS = {"service_account": "private_key", "authorized_user": "refresh_token"}
_PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----(?:\s|\\+[rn])*[A-Za-z0-9+/=]{16}")
# A key is a few kilobytes.
_MOST_BYTES = 64 * 1024
# Nobody's own files, or too many.
_NOT_LOOKED_INTO = {".git", ".venv", "venv", "node_modules", "outputs", "data", "wandb", "site"}


def key_in(path: Path) -> str | None:
    """What kind of key a file holds, in words; None where it holds none or cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    if b'"type"' in content:
        try:
            told = json.loads(content)
        except (ValueError, RecursionError):
            told = None
        if isinstance(told, dict) and told.get(_GOOGLE_SECRETS.get(str(told.get("type")), "")):
            return f"Google credentials ({told['type']})"
    return "a private key" if _PRIVATE_KEY.search(content) else None


def keys_below(root: Path) -> Iterator[tuple[Path, str]]:
    """Every file below a folder that holds a key, with its kind. Data, runs and environments are not looked into."""
    for folder, folders, files in os.walk(root):
        skipped = _NOT_LOOKED_INTO if Path(folder) == root else {".git", "node_modules", "__pycache__"}
        folders[:] = sorted(name for name in folders if name not in skipped)
        for name in sorted(files):
            if (kind := key_in(Path(folder) / name)) is not None:
                yield (Path(folder) / name).relative_to(root), kind


def refuse(paths: Iterable[Path]) -> None:
    """Raise where one of some files holds a key.

    Raises:
        MlopsError: with each that does.
    """
    found = [(path, kind) for path in paths if (kind := key_in(path)) is not None]
    if found:
        raise MlopsError(
            [
                f"{path}: holds {kind}; move it out of the repository and name it by "
                "GOOGLE_APPLICATION_CREDENTIALS, or by `dvc remote modify --local NAME credentialpath`"
                for path, kind in found
            ]
        )


def main() -> None:
    """The entrypoint: the files to look into are the arguments."""
    try:
        refuse(map(Path, sys.argv[1:]))
    except MlopsError as error:
        fail(error)


if __name__ == "__main__":
    main()
