"""The queue in front of a model, with a model that computes when the test lets it."""

import asyncio
import io
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from mlops.inference import OnnxModel
from mlops.serving.batching import Batcher, fitting
from mlops.serving.problem import Problem
from mlops.serving.settings import Limits
from mlops.serving.upload import Upload
from samples import png


class Model:
    """Answers with the mean of each image; waits before each batch where it is `held`."""

    kind = "images"

    def __init__(self, side: int = 4) -> None:
        self.input = {"height": side, "width": side, "resize": "squash", "filter": "bilinear", "resizes": True}
        self.classes = ["a", "b"]
        self.batches: list[tuple[int, ...]] = []
        self.free = threading.Event()
        self.free.set()
        self.begun = threading.Semaphore(0)
        self.fails: Exception | None = None

    def predict(self, array: Any) -> Any:
        self.begun.release()
        assert self.free.wait(20)
        self.batches.append(array.shape)
        if self.fails is not None:
            raise self.fails
        mean = array.reshape(len(array), -1).mean(axis=1).astype(np.float32)
        return np.stack([mean, 255 - mean], axis=1)


class Later(Executor):
    """Runs what it is given when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        self.waiting.append(lambda: fn(*args, **kwargs))
        return Future()

    def run(self) -> None:
        waiting, self.waiting = self.waiting, []
        for one in waiting:
            thread = threading.Thread(target=one)
            thread.start()
            thread.join()


SMALL = Upload("small.png", png(1))
LIMITS = Limits(queue=16, seconds=20)


def large() -> Upload:
    buffer = io.BytesIO()
    Image.new("RGB", (1000, 600), (10, 20, 30)).save(buffer, format="PNG")
    return Upload("large.png", buffer.getvalue())


def batcher(model: Model, decoders: Executor | None = None, limits: Limits = LIMITS, **more: Any) -> Batcher:
    return Batcher(cast(OnnxModel, model), limits, decoders or Later(), **more)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(bounded())


async def until(holds: Callable[[], object]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


async def held(model: Model, one: Batcher) -> "asyncio.Task[Any]":
    """A request that the model is computing, until it is set free."""
    model.free.clear()
    task = asyncio.ensure_future(one.compute(np.zeros((1, 4, 4, 3), np.uint8)))
    await until(lambda: model.begun.acquire(blocking=False))
    return task


async def told(asked: Awaitable[Any]) -> Problem:
    with pytest.raises(Problem) as caught:
        await asked
    return caught.value


def test_a_lone_request_is_computed_at_once():
    async def test() -> None:
        model = Model()
        one = batcher(model)
        await one.classify([SMALL])  # libraries are loaded
        times = []
        for _ in range(20):
            started = time.perf_counter()
            await one.classify([SMALL])
            times.append(time.perf_counter() - started)
        assert min(times) < 0.05
        assert {shape[0] for shape in model.batches} == {1}

    run(test)


def test_what_comes_while_the_model_computes_is_computed_together_and_each_gets_its_own():
    async def test() -> None:
        model, seen = Model(), []
        one = batcher(model, observe=lambda images, _: seen.append(images))
        first = await held(model, one)
        levels = [10, 200, 30, 90, 120]
        rest = [asyncio.ensure_future(one.compute(np.full((1, 4, 4, 3), level, np.uint8))) for level in levels]
        await until(lambda: one.waiting == 5)
        model.free.set()
        await first
        assert [float((await task)[0, 0]) for task in rest] == levels
        assert [shape[0] for shape in model.batches] == [1, 5]
        assert seen == [1, 5]

    run(test)


def test_no_batch_is_larger_than_the_largest():
    async def test() -> None:
        model = Model()
        one = batcher(model, largest=4)
        first = await held(model, one)
        rest = [asyncio.ensure_future(one.classify([SMALL] * count)) for count in (3, 3, 1, 7)]
        await until(lambda: one.waiting == 14)
        model.free.set()
        await first
        assert [len(await task) for task in rest] == [3, 3, 1, 7]
        assert max(shape[0] for shape in model.batches) == 4

    run(test)


def test_a_queue_that_is_full_refuses_and_says_when_to_come_again():
    async def test() -> None:
        model = Model()
        one = batcher(model)
        first = await held(model, one)
        rest = [asyncio.ensure_future(one.classify([SMALL] * 8)) for _ in range(2)]
        await until(lambda: one.waiting == 16)
        problem = await told(one.classify([SMALL]))
        assert (problem.status, int(problem.headers["Retry-After"])) == (429, 1)
        assert (await told(one.classify([SMALL] * 17))).status == 413
        model.free.set()
        await asyncio.gather(first, *rest)
        assert one.waiting == 0
        await one.classify([SMALL])

    run(test)


def test_what_nobody_waits_for_any_more_is_not_computed():
    async def test() -> None:
        model = Model()
        one = batcher(model)
        first = await held(model, one)
        gone = [asyncio.ensure_future(one.classify([SMALL])) for _ in range(5)]
        stays = asyncio.ensure_future(one.classify([SMALL] * 2))
        await until(lambda: one.waiting == 7)
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        model.free.set()
        await asyncio.gather(first, stays)
        assert [shape[0] for shape in model.batches] == [1, 2]
        assert one.waiting == 0

    run(test)


def test_what_takes_too_long_is_504_and_the_next_is_answered():
    async def test() -> None:
        model = Model()
        one = batcher(model, limits=Limits(seconds=0.5))
        first = await held(model, one)
        assert (await told(first)).status == 504
        assert (await told(one.classify([SMALL]))).status == 504
        model.free.set()
        await one.classify([SMALL])
        assert [shape[0] for shape in model.batches] == [1, 1]  # nobody waited for the second

    run(test)


def test_a_bad_image_is_the_problem_of_its_own_request_only():
    async def test() -> None:
        model, seen = Model(), []
        one = batcher(model, observe=lambda images, _: seen.append(images))
        first = await held(model, one)
        bad = asyncio.ensure_future(one.classify([Upload("bad.png", png(2)[:60])]))
        good = asyncio.ensure_future(one.classify([SMALL]))
        await until(lambda: one.waiting == 2)
        model.free.set()
        await first
        problem = await told(bad)
        assert problem.status == 422
        assert problem.detail.startswith("bad.png: ")
        assert (await good).shape == (1, 2)
        assert seen == [1, 1]

    run(test)


def test_an_answer_that_is_no_number_is_the_problem_of_its_own_request_only():
    async def test() -> None:
        model = Model()
        one = batcher(model)
        first = await held(model, one)
        bad = asyncio.ensure_future(one.compute(np.full((1, 4), np.nan, np.float32)))
        good = asyncio.ensure_future(one.compute(np.full((1, 4), 7, np.float32)))
        await until(lambda: one.waiting == 2)
        model.free.set()
        await first
        assert (await told(bad)).status == 422
        assert (await good)[0, 0] == 7

    run(test)


def test_arrays_of_several_sizes_are_computed_apart():
    async def test() -> None:
        model = Model()
        one = batcher(model)
        first = await held(model, one)
        rest = [asyncio.ensure_future(one.compute(np.zeros((1, side, 5, 3), np.uint8))) for side in (5, 6, 5)]
        await until(lambda: one.waiting == 3)
        model.free.set()
        await asyncio.gather(first, *rest)
        assert sorted(model.batches) == [(1, 4, 4, 3), (1, 5, 5, 3), (1, 5, 5, 3), (1, 6, 5, 3)]

    run(test)


def test_a_model_that_fails_answers_the_next_request():
    async def test() -> None:
        model = Model()
        one = batcher(model)
        for error, status in ((RuntimeError("divided by zero"), 422), (MemoryError(), 503)):
            model.fails = error
            assert (await told(one.classify([SMALL]))).status == status
        model.fails = None
        await one.classify([SMALL])

    run(test)


def test_small_images_do_not_wait_for_large_ones_which_still_count_in_the_queue():
    async def test() -> None:
        model, decoders = Model(), Later()
        one = batcher(model, decoders)
        slow = [asyncio.ensure_future(one.classify([large()])) for _ in range(10)]
        await until(lambda: len(decoders.waiting) == 10)
        assert one.waiting == 10
        await one.classify([SMALL])  # at once
        assert (await told(one.classify([SMALL] * 7))).status == 429
        assert not any(task.done() for task in slow)
        decoders.run()
        await asyncio.gather(*slow)
        assert one.waiting == 0

    run(test)


def test_a_large_image_is_not_decoded_for_a_caller_who_has_gone(monkeypatch: pytest.MonkeyPatch):
    async def test() -> None:
        model, decoders = Model(), Later()
        one = batcher(model, decoders)
        gone = asyncio.ensure_future(one.classify([large()]))
        await until(lambda: decoders.waiting)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        decoded = []
        monkeypatch.setattr(one, "_decode", lambda *given: decoded.append(given))
        decoders.run()
        await until(lambda: one.waiting == 0)
        assert (decoded, model.batches) == ([], [])

    run(test)


def test_a_large_image_that_is_damaged_is_refused():
    async def test() -> None:
        model, decoders = Model(), Later()
        one = batcher(model, decoders)
        found = large()
        damaged = Upload("large.png", found.content[:200])
        asked = asyncio.ensure_future(one.classify([damaged]))
        await until(lambda: decoders.waiting or asked.done())
        decoders.run()
        assert (await told(asked)).status == 422
        await until(lambda: one.waiting == 0)

    run(test)


def test_one_that_is_closed_answers_what_waits_and_who_comes_late_and_then_its_thread_ends():
    async def test() -> None:
        model, decoders = Model(), Later()
        one = batcher(model, decoders, limits=Limits(queue=16, seconds=2))
        aside = asyncio.ensure_future(one.classify([large()]))
        await until(lambda: decoders.waiting)
        first = await held(model, one)
        waits = asyncio.ensure_future(one.classify([SMALL]))
        await asyncio.sleep(0)
        one.close()
        # It was told of this model before there was a newer one.
        late = asyncio.ensure_future(one.classify([SMALL]))
        await asyncio.sleep(0.05)
        model.free.set()
        decoders.run()
        await asyncio.gather(first, waits, late, aside)
        await one.classify([SMALL])
        await asyncio.to_thread(one.join, 10)
        assert not one._thread.is_alive()

    run(test)


def test_the_larger_the_images_the_smaller_the_batch():
    counts = [fitting(cast(OnnxModel, Model(side))) for side in (8, 48, 224, 300, 2000)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 8
    assert counts[-2:] == [1, 1]
