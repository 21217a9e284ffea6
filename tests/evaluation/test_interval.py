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


def test_many_groups_are_no_more_work_than_few():
    right = np.random.default_rng(0).random(200_000) < 0.9
    low, high = accuracy_interval(right, [str(number) for number in range(200_000)])
    # The normal approximation, good for so many.
    wide = 1.96 * (0.9 * 0.1 / 200_000) ** 0.5
    assert (low, high) == pytest.approx((right.mean() - wide, right.mean() + wide), abs=wide / 5)
