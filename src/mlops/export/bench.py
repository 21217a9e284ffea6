"""`mlops bench`: how fast and how right models are, measured side by side in one run. No torch for .onnx alone.

A machine is never twice equally fast, so the models take turns, round after round; what counts are medians over rounds
and the ratio to the first model within each round.
"""

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from mlops.errors import MlopsError
from mlops.export.candidates import Candidate, Scored, accuracy, given_images, open_candidate, own_images
from mlops.progress import bar

# Seconds that each model has in a round for single images, and for batches.
_SECONDS_SINGLE, _SECONDS_BATCHES = 0.15, 0.3
# The 99th percentile of fewer calls is that of chance.
_LEAST_SINGLE = 20
_MOST_THREADS, _MOST_BATCH, _MOST_ROUNDS = 1024, 4096, 1000


@dataclass(frozen=True)
class Settings:
    """How it is measured: `threads` of each model (0: one for each core), images in a batch, and rounds."""

    threads: int = 1
    batch: int = 32
    rounds: int = 7

    def check(self) -> None:
        """Raise with all that is out of range."""
        ranges = {"threads": (0, _MOST_THREADS), "batch": (1, _MOST_BATCH), "rounds": (1, _MOST_ROUNDS)}
        problems = [
            f"--{name}={getattr(self, name)}: must be from {low} to {high}"
            for name, (low, high) in ranges.items()
            if not low <= getattr(self, name) <= high
        ]
        if problems:
            raise MlopsError(problems)


@dataclass
class _Times:
    """Of one model: seconds of each call with one image, and images a second in each round."""

    single: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


def bench(
    files: Sequence[tuple[Path, str]], data: Path | None, processed: Path, allow: Collection[str], settings: Settings
) -> dict[str, Any]:
    """Measure models, given as (file, name), side by side. The result is plain values: docs/export.md says which.

    Accuracy is that on `data`, a folder of images with classes as folders, or on each model's own validation images.

    Raises:
        MlopsError: a file is no model, cannot be run, or `data` does not fit.
    """
    settings.check()
    problems, candidates = list[str](), list[Candidate]()
    for path, name in files:
        try:
            candidates.append(open_candidate(path, name, settings.threads, allow))
        except MlopsError as error:
            problems += error.problems
    if problems:
        raise MlopsError(problems)
    scored = own_images(candidates, processed) if data is None else given_images(candidates, data)
    right = [None if images is None else accuracy(one, images) for one, images in zip(candidates, scored, strict=True)]
    inputs = [_inputs(one, images, settings.batch) for one, images in zip(candidates, scored, strict=True)]
    times = _measure(candidates, inputs, settings)
    rows = [
        _row(one, found, times[0], None if share is None or images is None else (share, len(images.labels)))
        for one, found, share, images in zip(candidates, times, right, scored, strict=True)
    ]
    return {
        "threads": settings.threads,
        "cores": os.cpu_count(),
        "batch": settings.batch,
        "rounds": settings.rounds,
        "scored_on": None if all(share is None for share in right) else str(data) if data else "validation images",
        "models": rows,
    }


def _inputs(candidate: Candidate, scored: Scored | None, batch: int) -> npt.NDArray[Any]:
    """A batch to measure with: images that it is scored on, or noise."""
    rng = np.random.default_rng(0)
    size = candidate.size
    if size is None:
        return rng.normal(size=(batch, candidate.given["features"])).astype(np.float32)
    if scored is not None:
        return np.ascontiguousarray(scored.images[np.arange(batch) % len(scored.images)])
    return rng.integers(0, 256, (batch, size.height, size.width, 3), dtype=np.uint8)


def _measure(candidates: Sequence[Candidate], inputs: Sequence[npt.NDArray[Any]], settings: Settings) -> list[_Times]:
    times = [_Times() for _ in candidates]
    order = list(range(len(candidates)))
    with bar("measuring", settings.rounds * len(candidates), "turns") as progress:
        for place in order:  # first calls allocate, and compile
            for _ in range(2):
                candidates[place].answer(inputs[place])
                candidates[place].answer(inputs[place][:1])
        for _ in range(settings.rounds):
            for place in order:
                _take_turn(candidates[place], inputs[place], times[place])
                progress.advance(1, title=f"measuring {candidates[place].name}")
            order.reverse()  # so that none is always the one after the slow one
    return times


def _take_turn(candidate: Candidate, given: npt.NDArray[Any], times: _Times) -> None:
    one, started, calls = given[:1], time.perf_counter(), 0
    while calls < _LEAST_SINGLE or time.perf_counter() - started < _SECONDS_SINGLE:
        before = time.perf_counter()
        candidate.answer(one)
        times.single.append(time.perf_counter() - before)
        calls += 1
    started, done = time.perf_counter(), 0
    while not done or time.perf_counter() - started < _SECONDS_BATCHES:
        candidate.answer(given)
        done += len(given)
    times.rates.append(done / (time.perf_counter() - started))


def _row(candidate: Candidate, times: _Times, first: _Times, right: tuple[float, int] | None) -> dict[str, Any]:
    ratios = [rate / base for rate, base in zip(times.rates, first.rates, strict=True)]
    low, high = (float(np.percentile(times.single, share) * 1e3) for share in (50, 99))
    return {
        "file": candidate.name,
        "bytes": candidate.bytes,
        "runs_on": "torch" if candidate.torch else "onnxruntime",
        "latency_ms": {"p50": low, "p99": high, "calls": len(times.single)},
        "images_per_second": {"median": median(times.rates), "lowest": min(times.rates), "highest": max(times.rates)},
        "ratio": {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "accuracy": None if right is None else right[0],
        "images": None if right is None else right[1],
    }
