"""The folder that the processes of a server share. It goes with the server, or, had that been killed, with the next."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "mlops-serve-"


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A new one, with an empty `metrics` in it. Those that nobody uses any more are removed."""
    # One without `metrics` may be so new that nobody has said yet that it is in use.
    for found in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/metrics"):
        _remove_unused(found.parent)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        use(folder)
        (folder / "metrics").mkdir()
        yield folder


def use(folder: Path) -> None:
    """Say that a folder is in use, until this process ends, however that comes."""
    with contextlib.suppress(ImportError, OSError):  # Windows, or no locks on this disk: nothing is removed there
        import fcntl

        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)


def _remove_unused(folder: Path) -> None:
    with contextlib.suppress(ImportError, OSError):  # as above; or it is in use, or another user's
        import fcntl

        if folder.lstat().st_uid != os.geteuid():
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(descriptor)
