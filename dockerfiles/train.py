"""What the training image runs: `mlops-train` with the overrides that follow the image, and what variables ask for.

MLOPS_DATA_PULL=1
    data.pull=auto: what data.dvc names is fetched by DVC first. data.dvc and .dvc/config are those of the image where
    /work has none of its own.
MLOPS_DATA_REMOTE=gs://bucket/path
    Fetch it from there, and not from where .dvc/config says.
MLOPS_EXPORT=gs://bucket/path/model.onnx
    Afterwards, write the model for `mlops serve`, into a bucket or a file.
MLOPS_PUBLISH=gs://bucket/models/NAME
    Afterwards, publish the checkpoint under that name.

A bucket that is not there is refused before anything is trained. Signals go to whatever runs; exit codes are its own.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mlops.data.versioning.remote import check_url
from mlops.errors import MlopsError, fail
from mlops.files import write_text
from mlops.publish import PART_TIMEOUT
from mlops.registry import ANSWER_TIMEOUT, is_address
from mlops.storage import ask, open_bucket, shown

# Of the image. `.dvc/` is where the project's data is looked for: a copy of it, in the current folder.
PROJECT = Path("/opt/project")
OURS = "# Written by the training image.\n"
LATEST = Path("models/latest/best_model.pth")


@dataclass(frozen=True)
class Asked:
    """What the environment asks for beside a training; None is nothing."""

    pull: bool
    remote: str | None
    export: str | None
    publish: str | None


def main(overrides: Sequence[str], environment: Mapping[str, str] = os.environ, project: Path = PROJECT) -> int:
    """Train, and what is asked for before and after it; the exit code of the first that is not 0."""
    signal.signal(signal.SIGTERM, _forward)
    signal.signal(signal.SIGINT, _forward)
    try:
        asked = read(environment)
        if asked.pull:
            bring_project(project, asked.remote)
        started = time.time()
        code = run("mlops.train", *(["data.pull=auto"] if asked.pull else []), *overrides)
        if code or not (asked.export or asked.publish):
            return code
        checkpoint = find_trained(started)
        if asked.export and (code := export(checkpoint, asked.export)):
            return code
        return run("mlops.cli", "publish", checkpoint, asked.publish) if asked.publish else 0
    except MlopsError as error:
        fail(error)


def read(environment: Mapping[str, str]) -> Asked:
    """The variables, with what can be known to be wrong with them.

    Raises:
        MlopsError: a value is none of those it may have, or a bucket is not there or may not be read.
    """
    given = {name: environment.get(name) or None for name in _CHECKS}
    problems: list[str] = []
    for name, value in given.items():
        try:
            if value is not None:
                _CHECKS[name](value)
        except MlopsError as error:
            problems += [f"{name}={problem}" for problem in error.problems]
    if problems:
        raise MlopsError(problems)
    pull, remote = given["MLOPS_DATA_PULL"] == "1", given["MLOPS_DATA_REMOTE"]
    if remote and not pull:
        raise MlopsError(f"MLOPS_DATA_REMOTE={shown(remote)}: nothing is fetched from it without MLOPS_DATA_PULL=1")
    return Asked(pull, remote, given["MLOPS_EXPORT"], given["MLOPS_PUBLISH"])


def bring_project(project: Path, remote: str | None) -> None:
    """Put the image's data.dvc and .dvc/config here, unless this folder is a project of its own.

    Raises:
        MlopsError: it is, and a remote is given, which would have to be written into it.
    """
    local = Path(".dvc/config.local")
    if Path(".dvc").is_dir() and not (local.is_file() and local.read_text(encoding="utf-8").startswith(OURS)):
        if remote:
            raise MlopsError(
                f"MLOPS_DATA_REMOTE={shown(remote)}: {Path.cwd()} has a .dvc/config of its own; leave this out, or set "
                "it there with `mlops data remote`"
            )
        return
    shutil.copytree(project, ".", dirs_exist_ok=True)
    # DVC would look for git.
    text = f"{OURS}[core]\n    no_scm = true\n"
    if remote:
        text += f"    remote = told\n['remote \"told\"']\n    url = {check_url(remote)}\n    verify = true\n"
    write_text(local, text)


def find_trained(since: float) -> Path:
    """The checkpoint that was written, or fetched by a run that goes on, since then.

    Raises:
        MlopsError: there is none.
    """
    found = [path for path in (*Path("outputs").glob("*/*/best_model.pth"), LATEST) if path.is_file()]
    new = [path for path in found if path.stat().st_mtime >= since]
    if not new:
        raise MlopsError(
            f"{Path.cwd()}: holds no checkpoint of this run to export or publish; it may have ended before: "
            "mlops publish outputs/DATE/RUN/best_model.pth gs://bucket/models/NAME"
        )
    return max(new, key=lambda path: (path != LATEST, path.stat().st_mtime))


def export(checkpoint: Path, where: str) -> int:
    """Write a checkpoint as ONNX into a file or, by way of one beside the checkpoint, into a bucket."""
    file = checkpoint.parent / "model.onnx" if is_address(where) else Path(where)
    if (code := run("mlops.cli", "export", checkpoint, "--output", file)) or not is_address(where):
        return code
    base, _, name = where.rpartition("/")
    bucket = open_bucket(base, ANSWER_TIMEOUT)
    ask(bucket, lambda: bucket.put(file, name, lambda: None), PART_TIMEOUT)
    print(f"{file} is at {shown(where)}", flush=True)  # noqa: T201
    return 0


def run(module: str, *words: str | Path) -> int:
    """Run a command of the project to its end; killed by a signal, 128 and its number."""
    global _running  # noqa: PLW0603 - one process, one state
    if _heard is not None:
        return 128 + _heard
    # In a session of its own: Ctrl-C in a terminal reaches it through us, once.
    _running = subprocess.Popen([sys.executable, "-m", module, *map(str, words)], start_new_session=True)
    # What came while it was started.
    if _heard is not None:
        _running.send_signal(_heard)
    code = _running.wait()
    _running = None
    return code if code >= 0 else 128 - code


def _forward(number: int, _frame: FrameType | None) -> None:
    global _heard  # noqa: PLW0603 - one process, one state
    _heard = number
    if _running is not None:
        _running.send_signal(number)


def _check_switch(value: str) -> None:
    if value not in ("0", "1"):
        raise MlopsError(f"{value}: must be 0 or 1")


def _check_model(value: str) -> None:
    if not value.endswith(".onnx"):
        raise MlopsError(f"{shown(value)}: must end in .onnx: a file, or gs://bucket/path/model.onnx")
    if is_address(value):
        _check_bucket(value)


def _check_name(value: str) -> None:
    if not is_address(value.rstrip("/").rpartition("/")[0]):
        raise MlopsError(f"{shown(value)}: names no model in a bucket; write gs://bucket/models/NAME")
    _check_bucket(value)


def _check_bucket(address: str) -> None:
    bucket = open_bucket(address.rstrip("/").rpartition("/")[0], ANSWER_TIMEOUT)
    ask(bucket, bucket.look, ANSWER_TIMEOUT)


_CHECKS: Mapping[str, Callable[[str], object]] = {
    "MLOPS_DATA_PULL": _check_switch,
    "MLOPS_DATA_REMOTE": check_url,
    "MLOPS_EXPORT": _check_model,
    "MLOPS_PUBLISH": _check_name,
}
_running: "subprocess.Popen[bytes] | None" = None
_heard: int | None = None

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
