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
from itertools import repeat

from mlops.data.tree import Tree
from mlops.errors import MlopsError, one_line
from mlops.geometry import Filter, Resize
from mlops.image import Decoded, ImageError, decode

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


# A name in the tree and, where only a part of the picture is wanted, its box.
Work = tuple[str, Sequence[int] | None]


def decode_one(tree: Tree, name: str, geometry: Geometry, box: Sequence[int] | None = None) -> Decoded | Unreadable:
    """One image of the tree, or the part of it in `box`, or why not."""
    try:
        return decode(tree.read(name), (geometry.height, geometry.width), geometry.resize, geometry.filter, box)
    except ImageError as error:
        return Unreadable(str(error))
    except OSError as error:
        return Unreadable(error.strerror or one_line(error))


def decode_all(
    tree: Tree,
    names: Sequence[str],
    geometry: Geometry,
    workers: int,
    boxes: Sequence[Sequence[int] | None] | None = None,
) -> Iterator[Decoded | Unreadable]:
    """Decode `names` in order with `workers` processes; 0 is one for each core, where the work is long enough.

    `boxes` holds the box of each name, or None for the whole picture; left out, all are whole.

    Raises:
        MlopsError: a process died, most likely for want of memory.
    """
    work: list[Work] = list(zip(names, boxes or repeat(None), strict=False))
    if workers == 0:
        # How long the work is, the first images tell: thousands of icons may be less than a hundred photographs.
        started, first = time.monotonic(), work[:CHUNK]
        for name, box in first:
            yield decode_one(tree, name, geometry, box)
        work = work[CHUNK:]
        seconds = (time.monotonic() - started) / max(len(first), 1) * len(work)
        workers = cores() if seconds > SECONDS_WORTH_PROCESSES else 1
    if workers == 1:
        for name, box in work:
            yield decode_one(tree, name, geometry, box)
        return
    workers = min(workers, MOST_PROCESSES)
    # Spawned, not forked: the parent may hold threads of torch. `decode_one` needs neither torch nor Hydra.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(tree, geometry))
    waiting: deque[Future[list[Decoded | Unreadable]]] = deque()
    try:
        for start in range(0, len(work), CHUNK):
            waiting.append(pool.submit(_decode_chunk, work[start : start + CHUNK]))
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


def _decode_chunk(work: Sequence[Work]) -> list[Decoded | Unreadable]:
    return [decode_one(_worker[0], name, _worker[1], box) for name, box in work]
