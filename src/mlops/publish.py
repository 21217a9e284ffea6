"""Checkpoints published under a name in a bucket, where `registry.py` finds them.

`NAME/<digest>/best_model.pth` is a checkpoint and is never another one; `NAME/latest`
(`{"digest": ..., "file": ..., "created": ...}`) leads to one of them, and is written last.
"""

import contextlib
import json
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlops import tables
from mlops.checkpoint import BEST, read, read_metadata
from mlops.errors import MlopsError
from mlops.files import sha256_of, writing_to
from mlops.progress import bar
from mlops.registry import (
    ANSWER_TIMEOUT,
    DIGEST,
    LATEST,
    NoModelError,
    cache_folder,
    download,
    is_address,
    named,
    read_latest,
)
from mlops.storage import CHUNK, Bucket, ask, open_bucket, same, shown

# Seconds. Nothing is heard of a part of an upload (`storage.CHUNK`) before it has arrived: this is 0.5 Mbit/s.
PART_TIMEOUT = 300.0


@dataclass(frozen=True)
class Published:
    """A checkpoint in a bucket: the model's address, the digest, its bytes, whether they were sent, and what `latest`
    led to before.
    """

    address: str
    digest: str
    size: int
    sent: bool
    before: str | None


def publish(path: Path, address: str) -> Published:
    """Copy a finished checkpoint to `<address>/<digest>/`, read it back, and then let `<address>/latest` lead to it.

    Raises:
        MlopsError: it is damaged or not finished, the address is none for a model, or the bucket cannot be written to
            and read from. `latest` then leads to what it led to before.
    """
    base, name = _split(address)
    digest = _finished(path)["digest"]
    bucket = open_bucket(base, ANSWER_TIMEOUT)

    def look() -> str | None:
        bucket.look()
        if bucket.entry(name):
            raise MlopsError(f"{shown(address)}: is a file; name another model")
        with contextlib.suppress(NoModelError):
            return read_latest(bucket, f"{name}/{LATEST}")
        return None

    before = ask(bucket, look, ANSWER_TIMEOUT)
    try:
        sent = _bring(bucket, path, f"{name}/{digest}/{BEST}", digest)
    except MlopsError as error:
        leads = f"{name}/{LATEST} still leads to {before}" if before else f"there is no {name}/{LATEST} yet"
        raise MlopsError([f"{problem}; {leads}" for problem in error.problems]) from error
    if before != digest:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps({"digest": digest, "file": f"{digest}/{BEST}", "created": now})
        ask(bucket, lambda: bucket.write(f"{name}/{LATEST}", f"{text}\n"), ANSWER_TIMEOUT)
    return Published(f"{bucket.url}/{name}", digest, path.stat().st_size, sent, before)


def show_published(published: Published) -> None:
    """Where a checkpoint is, and how it is used from there."""
    address, digest, before = published.address, published.digest, published.before
    sent = "all of it, and read back the same" if published.sent else "nothing: it was there, and reads back the same"
    tables.pairs(
        "Published",
        [
            ("checkpoint", f"{address}/{digest}/{BEST}"),
            ("sent", f"{sent} ({published.size / 1e6:,.1f} MB)"),
            ("latest", "leads to it" + (f"; before, to {before}" if before not in (None, digest) else "")),
        ],
    )
    tables.pairs(
        "Next",
        [
            ("use the latest", tables.to_copy("mlops", "predict", address, "PICTURE_OR_FOLDER")),
            ("use this very one", tables.to_copy("mlops", "predict", f"{address}/{digest}", "PICTURE_OR_FOLDER")),
        ],
    )


def _split(address: str) -> tuple[str, str]:
    """The URL below which a model is published, and its name there."""
    base, _, name = address.rstrip("/").rpartition("/")
    if not is_address(base) or not name:
        raise MlopsError(f"{shown(address)}: names no model in a bucket; write gs://bucket/models/NAME")
    if name == LATEST or DIGEST.fullmatch(name) or name.lower().endswith((".pth", ".onnx")):
        raise MlopsError(f"{shown(address)}: {name} cannot be the name of a model; write gs://bucket/models/NAME")
    return base, name


def _finished(path: Path) -> dict[str, Any]:
    """What a checkpoint tells of itself, verified with its weights."""
    told = read(path).metadata
    if "resume" in told:
        raise MlopsError(f"{path}: holds a run between two steps; publish the {BEST} beside it")
    if told["temperature"] is None and "adopted" not in told:
        raise MlopsError(f"{path}: is of a training that has not ended; let it go on to its end first (resume=latest)")
    return told


def _bring(bucket: Bucket, path: Path, name: str, digest: str) -> bool:
    """Send a checkpoint and read it back. Returns whether it had to be sent.

    Raises:
        MlopsError: what is there now is not what is here.
    """
    here, size = sha256_of(path), path.stat().st_size

    def reads_back() -> bool:
        cache = cache_folder()
        with writing_to(cache), tempfile.TemporaryDirectory(prefix="back-", dir=cache) as folder:
            back = Path(folder) / BEST
            with named(back, f"{bucket.url}/{name}"):
                download(bucket, name, size, back)
                return sha256_of(back) == here and read_metadata(back)["digest"] == digest

    there = ask(bucket, lambda: bucket.entry(name), ANSWER_TIMEOUT)
    if there and (there.md5 is None or same(path, there)):
        with contextlib.suppress(MlopsError):
            if reads_back():
                return False
    _send(bucket, path, name, size)
    if not reads_back():
        raise MlopsError(f"{bucket.url}/{name}: does not read back as it is here; publish it again")
    return True


def _send(bucket: Bucket, path: Path, name: str, size: int) -> None:
    parts = 0

    with bar(f"sending {name}", size, "bytes") as progress:

        def hear() -> None:
            nonlocal parts
            parts += 1
            progress.advance(min(CHUNK, max(size - (parts - 1) * CHUNK, 0)))

        ask(bucket, lambda: bucket.put(path, name, hear), PART_TIMEOUT, lambda: parts)
