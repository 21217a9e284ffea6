import itertools
import tracemalloc

import numpy as np
import pytest

from mlops.evaluation.interval import accuracy_interval


def frames_of_tracks(
    seed: int, tracks: int = 60, frames: int = 20, together: float = 0.9
) -> tuple[np.ndarray, list[str]]:
    """Which images are right, 80 % of them on average, and their tracks; frames of one track mostly agree."""
    rng = np.random.default_rng(seed)
    of_track = np.repeat(rng.random(tracks) < 0.8, frames)
    alone = rng.random(tracks * frames) < 0.8
    right = np.where(rng.random(tracks * frames) < together, of_track, alone)
    return right, [str(track) for track in range(tracks) for _ in range(frames)]


def test_the_interval_over_groups_holds_the_truth_as_often_as_it_says_and_the_naive_one_does_not():
    runs, by_group, by_image = 300, 0, 0
    for seed in range(runs):
        right, groups = frames_of_tracks(seed)
        low, high = accuracy_interval(right, groups)
        by_group += low <= 0.8 <= high
        naive_low, naive_high = accuracy_interval(right, [str(number) for number in range(len(right))])
        by_image += naive_low <= 0.8 <= naive_high
        assert high - low > 2 * (naive_high - naive_low)
    assert 0.90 <= by_group / runs <= 0.98
    assert by_image / runs < 0.6


def test_the_interval_is_that_of_a_bootstrap_written_plainly():
    right, groups = frames_of_tracks(1, tracks=40, frames=7)
    # Groups of different sizes: the accuracy is over images, not a mean of groups.
    right, groups = right[:-30], groups[:-30]
    members: dict[str, list[bool]] = {}
    for group, value in zip(groups, right, strict=True):
        members.setdefault(group, []).append(bool(value))
    rng, accuracies = np.random.default_rng(0), []
    for _ in range(20_000):
        chosen = [members[name] for name in rng.choice(list(members), size=len(members))]
        accuracies.append(sum(map(sum, chosen)) / sum(map(len, chosen)))
    assert accuracy_interval(right, groups) == pytest.approx(np.quantile(accuracies, [0.025, 0.975]), abs=0.012)


def test_the_same_input_gives_the_same_numbers_in_any_order():
    right, groups = frames_of_tracks(2)
    order = np.random.default_rng(0).permutation(len(right))
    assert accuracy_interval(right, groups) == accuracy_interval(right[order], [groups[i] for i in order])


def test_images_without_a_mistake_do_not_promise_perfection():
    right = np.ones(12, dtype=bool)
    names = [str(number) for number in range(12)]
    assert accuracy_interval(right, names) == (pytest.approx(0.025 ** (1 / 12)), 1.0)
    # Twelve frames of three signs say less than twelve signs.
    assert accuracy_interval(right, [name[0] for name in "aaaabbbbcccc"]) == (pytest.approx(0.025 ** (1 / 3)), 1.0)
    assert accuracy_interval(~right, names) == (0.0, pytest.approx(1 - 0.025 ** (1 / 12)))


def test_one_group_says_nothing_of_others():
    assert accuracy_interval(np.array([True, False, True]), ["a", "a", "a"]) == (0.0, 1.0)


def test_a_first_mistake_never_makes_the_interval_promise_more():
    # 3 groups of 5 and one mistake: every draw is between 80 % and 100 %, but 3 groups cannot tell that much.
    one_wrong = np.array([True] * 14 + [False])
    assert accuracy_interval(one_wrong, list("aaaaabbbbbccccc")) == (pytest.approx(0.025 ** (1 / 3)), 1.0)
    for count in (2, 3, 7, 20, 180, 1000):
        for size in (1, 5):
            groups = [str(number // size) for number in range(count * size)]
            right = np.ones(len(groups), dtype=bool)
            without, _ = accuracy_interval(right, groups)
            right[0] = False
            low, high = accuracy_interval(right, groups)
            assert low <= without <= high == 1.0
            # And the other way round: one image that is right.
            low, high = accuracy_interval(~right, groups)
            assert low == 0.0 <= 1 - without <= high


@pytest.mark.parametrize("sizes", [[1] * 12, [1] * 60, [5, 5, 5], [2, 9, 4, 4, 1, 7], [30, 1, 1, 1]])
def test_one_more_mistake_never_raises_an_end(sizes: list[int]):
    groups = [str(group) for group, size in enumerate(sizes) for _ in range(size)]
    for seed in range(5):
        right, ends = np.ones(len(groups), dtype=bool), [accuracy_interval(np.ones(len(groups), dtype=bool), groups)]
        for image in np.random.default_rng(seed).permutation(len(groups)):
            right[image] = False
            ends.append(accuracy_interval(right, groups))
        # The draws differ from one to the next by chance, by less than one image.
        assert all(after <= before + 1 / len(groups) for before, after in itertools.pairwise(low for low, _ in ends))
        assert all(after <= before + 1 / len(groups) for before, after in itertools.pairwise(high for _, high in ends))


def test_many_groups_take_no_more_memory_than_their_kinds():
    right = np.random.default_rng(0).random(200_000) < 0.9
    groups = [str(number) for number in range(200_000)]
    tracemalloc.start()
    low, high = accuracy_interval(right, groups)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Drawn group by group, the draws alone would be 2,000 x 200,000 numbers: 3.2 GB.
    assert peak < 100e6
    # The normal approximation, good for so many.
    wide = 1.96 * (0.9 * 0.1 / 200_000) ** 0.5
    assert (low, high) == pytest.approx((right.mean() - wide, right.mean() + wide), abs=wide / 5)
