"""Whether a graph answers as its checkpoint does: the same pixels, and the same files through its own resizer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mlops.data.decode import Geometry, Unreadable, decode_one
from mlops.data.tree import MemoryTree, Tree
from mlops.errors import MlopsError
from mlops.image import Pixels, png
from mlops.progress import bar

# Of the same pixels, the largest difference of a probability; of the same files, the share with the same class.
MOST_DIFFERENCE, LEAST_AGREEMENT = 1e-5, 0.999
_BATCH = 32

# From uint8 `[N, H, W, 3]` to probabilities `[N, classes]`: the checkpoint's own, or the graph's.
Answer = Callable[[Pixels], npt.NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class Files:
    """Pictures as files, or as boxes in them, and in words what they are."""

    kind: str
    tree: Tree
    names: Sequence[str]
    boxes: Sequence[Sequence[int] | None] = field(default=())

    def few(self, most: int) -> "Files":
        """At most so many of them, from all over."""
        rows = spread(len(self.names), most)
        return Files(self.kind, self.tree, [self.names[r] for r in rows], [self.boxes[r] for r in rows if self.boxes])


@dataclass(frozen=True)
class Native:
    """Images of the native size, uint8 `[N, height, width, 3]`, and in words what they are."""

    kind: str
    images: Pixels


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the rows 0 to `count` - 1, at even distances."""
    return sorted({round(row) for row in np.linspace(0, count - 1, min(count, most))})


def compare_native(own: Answer, graph: Answer, pictures: Native, *, exact: bool = True) -> dict[str, Any]:
    """How far the probabilities of a graph are from the checkpoint's `own`, of images of the native size.

    A graph that is not to be `exact`, for it computes in eight bits, is only measured: how often it gives the same
    class, as `agreement`.

    Raises:
        MlopsError: too far.
    """
    count, largest, same = len(pictures.images), 0.0, 0
    with bar("comparing at the native size", count) as progress:
        for start in range(0, count, _BATCH):
            images = np.ascontiguousarray(pictures.images[start : start + _BATCH])
            expected, answers = own(images), graph(images)
            largest = _largest(largest, expected, answers)
            same += int((expected.argmax(axis=1) == answers.argmax(axis=1)).sum())
            progress.advance(len(images))
    return _judge_native(largest, None if exact else same, count, pictures.kind)


def compare_files(
    own: Answer, graph: Answer, files: Files, size: Geometry, *, resized: bool, exact: bool = True
) -> list[dict[str, Any]]:
    """As `compare_native`, of files; and where `resized`, also what the graph makes of each at its stored size.

    Raises:
        MlopsError: too far, classes that differ, or files that cannot be read.
    """
    largest, off, alike, same, unreadable = 0.0, 0.0, 0, 0, list[str]()
    with bar("comparing", len(files.names)) as progress:
        for batch in _batches(files, size, unreadable):
            native = np.stack([prepared for prepared, _ in batch])
            expected, answers = own(native), graph(native)
            largest = _largest(largest, expected, answers)
            alike += int((expected.argmax(axis=1) == answers.argmax(axis=1)).sum())
            for row, (_, stored) in zip(expected, batch, strict=True):
                if resized:
                    (answer,) = graph(stored[None])
                    off = _largest(off, row, answer)
                    same += int(answer.argmax()) == int(row.argmax())
            progress.advance(len(batch))
    if unreadable:
        raise MlopsError(unreadable)
    count = len(files.names)
    found = [_judge_native(largest, None if exact else alike, count, files.kind)]
    return [*found, _judge_resized(same, off, count, files.kind, exact=exact)] if resized else found


def generated(size: Geometry) -> Files:
    """Pictures for where there are none: noise, and shapes as smooth as a photograph's, from tiny to large and long."""
    height, width = size.height, size.width
    sides = [
        (height, width),
        (2 * height, 2 * width),
        (height // 2 + 1, width // 2 + 1),
        (3 * height + 1, 2 * width),
        (height, 3 * width + 2),
        (max(1, height // 3), width),
        (7, 5),
        (5 * height // 2, 7 * width // 3),
    ]
    made = {}
    for number in range(8 * len(sides)):
        rng, (high, wide) = np.random.default_rng(number), sides[number % len(sides)]
        y, x = np.linspace(0, 1, high)[:, None, None], np.linspace(0, 1, wide)[None, :, None]
        # A few slow waves in each channel, and noise from none to much.
        waves = [
            rng.uniform(20, 60, 3) * np.cos(rng.uniform(0, 9, 3) * y + rng.uniform(0, 9, 3) * x + rng.uniform(0, 6, 3))
            for _ in range(4)
        ]
        noise = rng.normal(0, 12 * (number // len(sides) % 4), (high, wide, 3))
        pixels = np.clip(128 + rng.uniform(-60, 60, 3) + sum(waves) + noise, 0, 255)
        made[f"{number:03}.png"] = png(pixels.astype(np.uint8))
    return Files("generated pictures", MemoryTree("generated", made), sorted(made))


def _batches(files: Files, size: Geometry, unreadable: list[str]) -> Iterator[list[tuple[Pixels, Pixels]]]:
    """(pixels at the native size, pixels as they are stored) of the files; what cannot be read goes to the list."""
    batch = []
    for position, name in enumerate(files.names):
        box = files.boxes[position] if files.boxes else None
        prepared = decode_one(files.tree, name, size, box)
        if isinstance(prepared, Unreadable):
            unreadable.append(f"{files.tree.label}/{name}: {prepared.reason}; mend or remove it")
            continue
        # To its own size, a picture is decoded as it is.
        whole = Geometry(prepared.height, prepared.width, "squash", size.filter)
        stored = decode_one(files.tree, name, whole, box)
        if isinstance(stored, Unreadable):
            unreadable.append(f"{files.tree.label}/{name}: {stored.reason}; mend or remove it")
            continue
        batch.append((prepared.pixels, stored.pixels))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _largest(before: float, one: npt.NDArray[np.floating[Any]], other: npt.NDArray[np.floating[Any]]) -> float:
    """The largest difference so far; one that is not finite stays."""
    return float(np.maximum(before, np.abs(one - other).max()))


def _judge_native(largest: float, same: int | None, count: int, kind: str) -> dict[str, Any]:
    """`same`: how many got the same class, of a graph that is not exact."""
    if same is not None:
        return {"images": count, "of": kind, "agreement": same / count, "largest_difference": largest}
    if not largest <= MOST_DIFFERENCE:
        raise MlopsError(
            f"export: a probability differs by {largest:.2g} from the checkpoint's on {count:,} {kind} at the native "
            f"size, more than {MOST_DIFFERENCE:g}; nothing was written"
        )
    return {"images": count, "of": kind, "largest_difference": largest}


def _judge_resized(same: int, off: float, count: int, kind: str, *, exact: bool) -> dict[str, Any]:
    if exact and same / count < LEAST_AGREEMENT:
        raise MlopsError(
            f"export: resized by the graph itself, {count - same:,} of {count:,} {kind} get another class than from "
            f"the checkpoint; {LEAST_AGREEMENT:.1%} must agree; nothing was written"
        )
    return {"images": count, "of": kind, "agreement": same / count, "largest_difference": off}
