"""How far an accuracy on these images may be from that on others of their kind."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlops.data.keyed import key

RESAMPLES = 2000
# 95 %: as much is left out below as above.
_TAIL = 0.025


def accuracy_interval(right: npt.NDArray[np.bool_], groups: Sequence[str]) -> tuple[float, float]:
    """The 95 % interval of an accuracy, by a percentile bootstrap over groups (Efron, 1979; Davison and Hinkley, 1997).

    `right` `[N]` says of each image whether it was recognised, `groups` which belong together. Frames of one track are
    right or wrong together, so whole groups are drawn, with replacement: drawing images would promise too much. The
    same input gives the same numbers.

    Groups that are all right, or all wrong, leave nothing to draw from. Then the far end is the exact one of Clopper
    and Pearson (1934) with groups as the trials: after 12 right ones in a row it is 73.5 %, not 100 %. A mistake never
    makes the interval promise more than none would: those ends bound every other interval over as many groups. One
    group that is right in part says nothing of others: 0 to 1.
    """
    numbers: dict[str, int] = {}
    member = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    count = len(numbers)
    exact = _TAIL ** (1 / count)
    if right.all():
        return exact, 1.0
    if not right.any():
        return 0.0, 1 - exact
    if count == 1:
        return 0.0, 1.0
    sizes = np.stack([np.bincount(member[right], minlength=count), np.bincount(member, minlength=count)], axis=1)
    # Groups with as many images, of which as many are right, are the same draw: few kinds stand for all groups.
    kinds, frequencies = np.unique(sizes, axis=0, return_counts=True)
    generator = np.random.default_rng(key(0, "accuracy interval"))
    drawn = generator.multinomial(count, frequencies / count, size=RESAMPLES) @ kinds
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [_TAIL, 1 - _TAIL])
    # Of a few groups that differ little, every draw is alike.
    return min(float(low), exact), max(float(high), 1 - exact)
