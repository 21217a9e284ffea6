"""Images of several requests are decoded and computed together, off the event loop, in one thread for each model.

The thread takes all that waits, up to the largest batch, whenever it is free: one request alone is computed at once,
and the more there are, the larger the batches become. There is no time to wait for others, and none to set.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from math import prod
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from mlops.errors import one_line
from mlops.image import FormatError, ImageError, Opened, Pixels, TooLargeError
from mlops.inference import OnnxModel, Probabilities
from mlops.serving.problem import Problem, busy
from mlops.serving.settings import Limits
from mlops.serving.upload import Upload

log = logging.getLogger(__name__)

# More pixels than this are decoded by another thread, so that small images need not wait for them.
_SMALL = 500_000
# A batch gains from company until its images fill the caches: some eight images of 48 x 48, one of 224 x 224.
_BATCH_PIXELS, _LARGEST = 20_000, 32

Array = npt.NDArray[Any]
Observe = Callable[[int, float], None]


class _Job:
    """What one request wants computed: images as files, or an array that is ready."""

    __slots__ = ("array", "aside", "count", "future", "uploads")

    def __init__(self, uploads: Sequence[Upload], array: Array | None, future: "asyncio.Future[Probabilities]") -> None:
        self.uploads, self.array, self.future = uploads, array, future
        self.count = len(uploads) if array is None else len(array)
        self.aside = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image or row of the array."""
        return () if self.array is None else tuple(map(int, self.array.shape[1:]))


class Batcher:
    """The queue in front of a model, and the thread that empties it."""

    def __init__(
        self,
        model: OnnxModel,
        limits: Limits,
        decoders: Executor,
        *,
        largest: int | None = None,
        observe: Observe = lambda images, seconds: None,  # noqa: ARG005
    ) -> None:
        """`decoders` decode large images; `observe` hears of every batch: its images and seconds."""
        self.largest = largest or fitting(model)
        self._model, self._limits, self._decoders, self._observe = model, limits, decoders, observe
        given = model.input
        self._native = (given["height"], given["width"], 3) if model.kind == "images" else (given["features"],)
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        # Each is written by one thread only: the event loop's, and the batches'.
        self._put = self._taken = 0
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images that no batch has taken yet, or that are being decoded aside."""
        return self._put - self._taken

    async def classify(self, uploads: Sequence[Upload]) -> Probabilities:
        """Probabilities float32 `[N, classes]` of N image files.

        Raises:
            Problem: one of them is no image that is taken here, the queue is full, or it took too long.
        """
        return await self._ask(uploads, None)

    async def compute(self, array: Array) -> Probabilities:
        """The same of what the model takes: uint8 `[N, H, W, 3]`, or features float32 `[N, F]`.

        Raises:
            Problem: the queue is full, or it took too long.
        """
        return await self._ask((), array)

    def close(self) -> None:
        """Compute what waits, and end when nothing has come for the time that a request may take."""
        self._queue.put(None)

    def join(self, seconds: float) -> None:
        """Wait for that."""
        self._thread.join(seconds)

    async def _ask(self, uploads: Sequence[Upload], array: Array | None) -> Probabilities:
        job = _Job(uploads, array, self._loop.create_future())
        if job.count > self._limits.queue:
            raise Problem(413, f"{job.count:,} images at once: at most {self._limits.queue:,}")
        if self.waiting + job.count > self._limits.queue:
            raise busy("the queue is full; send it again later")
        seconds = self._limits.seconds
        timer = self._loop.call_later(seconds, _expire, job, seconds)
        self._give(job)
        try:
            return await job.future
        finally:
            timer.cancel()

    def _give(self, job: _Job) -> None:
        self._put += job.count
        self._queue.put(job)

    def _work(self) -> None:
        closing, aside = False, 0
        while True:
            jobs, count, idle = list[_Job](), 0, False
            while count < self.largest:
                try:
                    # Whoever was told of this model before there was a newer one may come yet.
                    job = self._queue.get(block=not jobs, timeout=self._limits.seconds if closing else None)
                except Empty:
                    idle = not jobs
                    break
                if job is None:
                    closing = True
                    break
                jobs.append(job)
                count += job.count
            self._taken += count
            aside -= sum(job.aside for job in jobs)
            if jobs:
                aside += self._batch([job for job in jobs if not job.future.done()])  # else its caller has gone
            elif idle and not aside:
                return

    def _batch(self, jobs: list[_Job]) -> int:
        """Answer the jobs; returns how many were set aside for their large images."""
        started, ready, answers, aside = time.perf_counter(), list[_Job](), list[tuple[_Job, Any]](), 0
        for job in jobs:
            try:
                if job.array is None:
                    opened = [self._open(upload) for upload in job.uploads]
                    pixels = sum(image.pixels for image in opened)
                    if pixels > self._limits.pixels:
                        most = self._limits.pixels
                        raise Problem(413, f"{pixels:,} pixels in {len(opened)} images: at most {most:,} at once")
                    if pixels > _SMALL:
                        job.aside = True
                        aside += 1
                        self._taken -= job.count  # it waits again
                        self._decoders.submit(self._decode_aside, job, opened)
                        continue
                    job.array = self._decode(job, opened)
                ready.append(job)
            except Exception as error:  # a Problem, or a bug that its own request should tell of
                answers.append((job, error))
        alike = [job for job in ready if job.shape == self._native]
        answers += self._compute(alike, self.largest) if alike else []
        for job in ready:
            if job.shape != self._native:  # the graph resizes it, which takes memory by its own size
                answers += self._compute([job], max(1, self.largest * prod(self._native) // max(1, prod(job.shape))))
        if answers:
            self._observe(sum(job.count for job in ready), time.perf_counter() - started)
            self._loop.call_soon_threadsafe(_deliver, answers)
        return aside

    def _compute(self, jobs: list[_Job], size: int) -> list[tuple[_Job, Any]]:
        """Answers for jobs of one shape, computed `size` rows at once."""
        arrays = [job.array for job in jobs if job.array is not None]
        try:
            joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            parts = [self._model.predict(joined[at : at + size]) for at in range(0, len(joined), size)]
            rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        except Exception as error:  # whatever onnxruntime raises, or no memory
            if len(jobs) > 1:  # the others need not fail for one
                return [answer for job in jobs for answer in self._compute([job], size)]
            log.warning(f"the model cannot compute a request: {one_line(error)}")
            if isinstance(error, MemoryError):
                return [(jobs[0], Problem(503, "no memory for this now; send it again later", {"Retry-After": "1"}))]
            return [(jobs[0], Problem(422, "the model cannot compute this"))]
        answers, at, finite = list[tuple[_Job, Any]](), 0, bool(np.isfinite(rows).all())
        for job in jobs:
            mine = rows[at : at + job.count]
            at += job.count
            if finite or np.isfinite(mine).all():
                answers.append((job, mine))
            else:
                answers.append((job, Problem(422, "the model has no finite probabilities for this")))
        return answers

    def _open(self, upload: Upload) -> Opened:
        name = f"{upload.name}: " if upload.name else ""
        formats = self._limits.formats
        try:
            opened = Opened(upload.content, formats=formats, most_pixels=self._limits.pixels)
            if opened.animated:
                raise Problem(422, f"{name}is animated; send one picture")
        except FormatError as error:
            raise Problem(415, f"{name}{error}; send {', '.join(formats)}") from None
        except TooLargeError as error:
            raise Problem(413, f"{name}{error}; send it smaller") from None
        except ImageError as error:
            raise Problem(422, f"{name}{error}") from None
        return opened

    def _decode(self, job: _Job, opened: list[Opened]) -> Pixels:
        given, images = self._model.input, list[Pixels]()
        size = (given["height"], given["width"])
        opened.reverse()
        for upload in job.uploads:
            try:
                # Taken from the list, so that no more than one is in memory at its full size.
                images.append(opened.pop().decode(size, given["resize"], given["filter"]).pixels)
            except ImageError as error:
                raise Problem(422, f"{upload.name or 'the image'}: is damaged: {error}") from None
        return images[0][None] if len(images) == 1 else np.stack(images)

    def _decode_aside(self, job: _Job, opened: list[Opened]) -> None:
        try:
            if not job.future.done():
                job.array = self._decode(job, opened)
        except Exception as error:
            self._loop.call_soon_threadsafe(_deliver, [(job, error)])
        # Also where that failed: the thread counts what comes back.
        self._loop.call_soon_threadsafe(self._queue.put, job)


def _expire(job: _Job, seconds: float) -> None:
    if not job.future.done():
        job.future.set_exception(Problem(504, f"no answer within {seconds:g} s; send it again later"))


def fitting(model: OnnxModel) -> int:
    """The largest batch that is worth its memory and its time."""
    if "height" not in model.input:
        return _LARGEST
    side: int = model.input["height"] * model.input["width"]
    return max(1, min(_LARGEST, _BATCH_PIXELS // side))


def _deliver(answers: Sequence[tuple[_Job, Any]]) -> None:
    """In the event loop: callers that have gone meanwhile are passed over."""
    for job, answer in answers:
        if job.future.done():
            continue
        if isinstance(answer, BaseException):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)
