"""A run's files in a bucket, copied while it trains; `mirrored.py` fetches them.

`<url>/<date>/<time>-<id>/` holds what the run folder holds, `<url>/by-wandb-id/<id>.json` names the run of a W&B run.
The copying never costs a run: it happens in one thread, in which a later save of a file takes the place of an earlier
one that has not been sent; a bucket that goes away is one warning, and is tried until it is back.
"""

import json
import logging
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from mlops.checkpoint import LAST
from mlops.errors import MlopsError, one_line, shorten
from mlops.storage import Bucket, ask, open_bucket

log = logging.getLogger(__name__)

# Seconds. At the start of a run a bucket has to answer: a mirror that nobody misses is worse than none. Once for
# its credentials, once for a small write.
CHECK_TIMEOUT = 10.0
# The end waits so long for what is on its way, and so long after SIGTERM: a spot machine is gone 30 s after it, and the
# tracker ends before us.
END_TIMEOUT, STOP_TIMEOUT = 30.0, 15.0
# Between tries while a bucket is away; gcsfs has tried for half a minute each time.
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
# After so long without an answer it is said, whether or not the library has given up.
SILENCE = 120.0

LINKS = "by-wandb-id"
# Ours, written to prove at the start that a run can be mirrored.
PROOF = ".mirror"


class Mirror:
    """A context that copies files of a run into a bucket, in the background.

    Args:
        url: where runs are mirrored, such as gs://bucket/runs; None: nothing is done.
        folder: of the run; its last two parts, `<date>/<time>-<id>`, are the run's name in the bucket.

    Raises:
        MlopsError: on entering, within `CHECK_TIMEOUT`: the bucket cannot be written to, and why.
    """

    def __init__(self, url: str | None, folder: Path) -> None:
        self._url = url
        self._folder = folder
        resolved = folder.resolve()
        self._run = "/".join(resolved.relative_to(resolved.anchor).parts[-2:])
        self._bucket: Bucket | None = None
        # What is to be sent, by its name in the bucket, in the order in which it was asked for.
        self._pending: dict[str, Path | str] = {}
        self._sending: str | None = None
        self._changed = threading.Condition()
        self._ending = threading.Event()
        self._over = False
        # Since when nothing has been heard from the bucket; None while nothing is asked of it.
        self._silent_since: float | None = None
        self._warned = False

    def __enter__(self) -> Self:
        if self._url is None:
            return self
        if _is_folder(self._url, self._run, self._folder):
            log.info(f"{self._folder} is where its run is mirrored; nothing has to be copied")
            return self
        try:
            bucket = open_bucket(self._url, CHECK_TIMEOUT)
            ask(bucket, lambda: bucket.prove(f"{self._run}/{PROOF}"), CHECK_TIMEOUT)
        except MlopsError as error:
            raise MlopsError([f"run.mirror={problem}" for problem in error.problems]) from error
        self._bucket = bucket
        threading.Thread(target=self._work, args=(bucket,), name="mirror", daemon=True).start()
        log.info(f"every save is copied to {bucket.url}/{self._run}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bucket is None:
            return
        seconds = STOP_TIMEOUT if isinstance(error, KeyboardInterrupt | SystemExit) else END_TIMEOUT
        end = time.monotonic() + seconds
        self._ending.set()
        try:
            with self._changed:
                self._changed.notify_all()
                while self._left() and (left := end - time.monotonic()) > 0:
                    self._changed.wait(min(left, 0.2))  # in slices: on Windows, Ctrl-C does not interrupt a wait
        finally:
            with self._changed:
                missing, self._over = self._left(), True
                self._pending.clear()
            if missing:
                names = shorten([name.removeprefix(f"{self._run}/") for name in missing], 5)
                log.warning(f"{self._bucket.url}/{self._run}: not arrived: {names}; the newest are in {self._folder}")

    def copy(self, path: Path) -> None:
        """Send a file of the run folder, or all that are in a folder of it; returns at once.

        A file is opened when its turn comes, so it has to be one that is replaced as a whole (`files.atomic`) or grows.
        """
        if self._bucket is None:
            return
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        self._add({f"{self._run}/{file.relative_to(self._folder).as_posix()}": file.absolute() for file in files})

    def link(self, wandb_run_id: str) -> None:
        """Let `find` lead from a W&B run to this one."""
        if self._bucket is not None:
            self._add({link_name(wandb_run_id): json.dumps({"run": self._run})})

    def _add(self, files: dict[str, Path | str]) -> None:
        with self._changed:
            self._pending |= files
            self._changed.notify_all()
            silent = self._silent_since is not None and time.monotonic() - self._silent_since > SILENCE
        if silent:
            self._warn("does not answer")

    def _left(self) -> list[str]:
        return [*([self._sending] if self._sending else []), *(name for name in self._pending if name != self._sending)]

    def _next(self) -> tuple[str, Path | str] | None:
        """Wait for something to send; None once all is sent and nothing more will come."""
        with self._changed:
            self._sending = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._pending or self._ending.is_set())
            if not self._pending:
                return None
            # What a run goes on from comes first when there may be no time for more.
            names = [name for name in self._pending if self._ending.is_set() and name == f"{self._run}/{LAST}"]
            self._sending = next(iter(names or self._pending))
            self._silent_since = self._silent_since or time.monotonic()
            return self._sending, self._pending.pop(self._sending)

    def _work(self, bucket: Bucket) -> None:
        # One thread: two saves of one file are never under way at once, so that the older cannot come last.
        wait = FIRST_WAIT
        while (item := self._next()) is not None:
            name, content = item
            try:
                if isinstance(content, str):
                    bucket.write(name, content)
                else:
                    bucket.put(content, name, self._hear)
            except Exception as error:
                if isinstance(content, Path) and not content.is_file():
                    continue  # taken away by the run
                self._warn(_reason(error, bucket))
                with self._changed:
                    if self._over:
                        return
                    self._pending.setdefault(name, content)
                # Once the run has ended, time is short.
                if self._ending.wait(wait):
                    time.sleep(min(wait, 1.0))
                wait = min(2 * wait, LONGEST_WAIT)
            else:
                wait = FIRST_WAIT
                self._arrived(bucket)

    def _hear(self) -> None:
        self._silent_since = time.monotonic()

    def _arrived(self, bucket: Bucket) -> None:
        with self._changed:
            warned, self._warned, self._silent_since = self._warned, False, None
        if warned:
            log.info(f"{bucket.url} is back; saves are copied again")

    def _warn(self, reason: str) -> None:
        with self._changed:
            warned, self._warned = self._warned, True
        if not warned and self._bucket:
            log.warning(f"{self._bucket.url}: {reason}; training goes on and the newest save is tried again")


def _is_folder(url: str, run: str, folder: Path) -> bool:
    """Whether the mirror of a run is its own folder: it goes on where it was copied to, on a network share."""
    place = Path(url.removeprefix("file://")) / run
    return place.exists() and folder.exists() and place.samefile(folder)


def link_name(wandb_run_id: str) -> str:
    """The object that names the run of a W&B run."""
    return f"{LINKS}/{quote(wandb_run_id, safe='')}.json"


def _reason(error: Exception, bucket: Bucket) -> str:
    if isinstance(error, MlopsError):
        return error.problems[0].removeprefix(f"{bucket.url}: ")
    return one_line(error) if isinstance(error, OSError) and error.filename else f"fails with {type(error).__name__}"
