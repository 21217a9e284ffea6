"""Which pictures to compare: pairs of near hashes, found by sorting and not by comparing all with all.

The hashes are sorted several times, each time by their bits in another rotation, and each is compared with the next
few in that order: n log n work. Of hashes that differ in few bits, most rotations have some in which the leading bits,
which bring neighbours together, are the same. Where thousands are alike (frames of one film), the next few are all of
one split; so each is compared with the nearest of another split, class and group too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlops.data.checking.phash import BITS, Hashes

# Of GTSRB's photographs, 98 of 100 copies that `likeness` confirms differ in 10 bits or fewer, whatever was done to
# them; different pictures in 30 on average. A limit of 14 finds a hundredth more, for five times the pairs to look at.
MOST_BITS = 10
_ROTATIONS = tuple(range(0, BITS, 3))
_WINDOW = 16
_MOST_WAITING = 5_000_000
# Nobody looks at so many: what is in two splits or classes was met in the first rotations, where all are alike.
_MOST_PAIRS = 10_000_000

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """Pairs `[M, 2]` of positions with near hashes, the first the lower, each once; how many pairs were compared."""

    pairs: Integers
    compared: int


def near(hashes: Hashes, sides: Sequence[Integers]) -> Candidates:
    """Pairs of hashes that differ in `MOST_BITS` bits or fewer, and that differ in one of `sides`.

    `sides` are such as split, class and group, each `[N]`. In data of many more than a thousand pictures some pairs
    are missed, the more bits they differ in the more; of each set of equal hashes with several sides some are found.
    """
    count = len(hashes)
    found: list[Integers] = []
    waiting = compared = 0
    for rotation in _ROTATIONS:
        order = np.argsort(_rotated(hashes, rotation), kind="stable")
        ordered = hashes[order]
        ordered_sides = [side[order] for side in sides]
        for first, second in _meetings(ordered_sides, count):
            compared += len(first)
            met = np.flatnonzero(np.bitwise_count(ordered[first] ^ ordered[second]) <= MOST_BITS)
            differ = np.zeros(len(met), dtype=np.bool_)
            for side in ordered_sides:
                differ |= side[first[met]] != side[second[met]]
            one, other = order[first[met[differ]]], order[second[met[differ]]]
            found.append(np.minimum(one, other) * count + np.maximum(one, other))
            waiting += len(one)
        if waiting > _MOST_WAITING:
            # Most pairs are found by several rotations: kept once, memory does not grow with the rotations.
            found, waiting = [_once(found)], 0
            if len(found[0]) > _MOST_PAIRS:
                break
    return Candidates(np.stack(np.divmod(_once(found), max(count, 1)), axis=1), compared)


def _once(found: Sequence[Integers]) -> Integers:
    # Sorted, which for millions is many times as fast as the hash table of `np.unique`.
    every = np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)
    once: Integers = every[np.append(True, every[1:] != every[:-1])[: len(every)]]
    return once


def _rotated(hashes: Hashes, by: int) -> Hashes:
    mask = np.uint64((1 << BITS) - 1)
    return ((hashes << np.uint64(by)) | (hashes >> np.uint64(BITS - by))) & mask


def _meetings(ordered: Sequence[Integers], count: int) -> Iterator[tuple[Integers, Integers]]:
    """Which places of a sorted order are compared: each with the next few, and with the nearest of other sides."""
    places = np.arange(count)
    for distance in range(1, min(_WINDOW, count - 1) + 1):
        yield places[:-distance], places[distance:]
    for side in ordered:
        starts = np.append(np.flatnonzero(np.diff(side)) + 1, count)
        after = starts[np.searchsorted(starts, places, side="right").clip(max=len(starts) - 1)]
        before = np.append(0, starts)[np.searchsorted(starts, places, side="right")] - 1
        yield places[after < count], after[after < count]
        yield before[before >= 0], places[before >= 0]
