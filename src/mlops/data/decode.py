"""Decoding many images in parallel, in order, with flat memory."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from mlops.data.tree import Tree
from mlops.errors import MlopsError, one_line
from mlops.image import Decoded, Filter, ImageError, Resize, decode

CHUNK = 64
# Work of fewer seconds than this is done before processes have started.
SECONDS_WORTH_PROCESSES = 2.0
# Windows can wait for no more handles at once.
MOST_PROCESSES = 61


@dataclass(frozen=True)
class Geometry:
    """What every image is made into."""

    height: int
    width: int
    resize: Resize
    filter: Filter


@dataclass(frozen=True)
class Unreadable:
    """Why an image could not be decoded."""

    reason: str


def cores() -> int:
    """Cores this process may use, which in a container or under `taskset` are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_one(tree: Tree, name: str, geometry: Geometry) -> Decoded | Unreadable:
    """One image of the tree, or why not."""
    try:
        return decode(tree.read(name), (geometry.height, geometry.width), geometry.resize, geometry.filter)
    except ImageError as error:
        return Unreadable(str(error))
    except OSError as error:
        return Unreadable(error.strerror or one_line(error))


def decode_all(tree: Tree, names: Sequence[str], geometry: Geometry, workers: int) -> Iterator[Decoded | Unreadable]:
    """Decode `names` in order with `workers` processes; 0 is one for each core, where the work is long enough.

    Raises:
        MlopsError: a process died, most likely for want of memory.
    """
    if workers == 0:
        # How long the work is, the first images tell: thousands of icons may be less than a hundred photographs.
        started, first = time.monotonic(), names[:CHUNK]
        for name in first:
            yield decode_one(tree, name, geometry)
        names = names[CHUNK:]
        seconds = (time.monotonic() - started) / max(len(first), 1) * len(names)
        workers = cores() if seconds > SECONDS_WORTH_PROCESSES else 1
    if workers == 1:
        for name in names:
            yield decode_one(tree, name, geometry)
        return
    workers = min(workers, MOST_PROCESSES)
    # Spawned, not forked: the parent may hold threads of torch. `decode_one` needs neither torch nor Hydra.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(tree, geometry))
    waiting: deque[Future[list[Decoded | Unreadable]]] = deque()
    try:
        for start in range(0, len(names), CHUNK):
            waiting.append(pool.submit(_decode_chunk, names[start : start + CHUNK]))
            # A few chunks ahead keep every process busy; all of them would hold the whole data set in memory.
            if len(waiting) > 4 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise MlopsError(
            f"data.workers={workers}: a decoding process died, most likely for want of memory; try fewer"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: tuple[Tree, Geometry]


def _begin(tree: Tree, geometry: Geometry) -> None:
    global _worker  # noqa: PLW0603 - a process of a pool has no other place for what all its chunks share
    _worker = (tree, geometry)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decode_chunk(names: Sequence[str]) -> list[Decoded | Unreadable]:
    return [decode_one(_worker[0], name, _worker[1]) for name in names]
