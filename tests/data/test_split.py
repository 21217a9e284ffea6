from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops.config import SplitConfig
from mlops.data.sources import Entry
from mlops.data.split import assign, limit
from mlops.errors import MlopsError


def entries(groups: dict[str, tuple[int, int]], split: str | None = None) -> list[Entry]:
    """`{group: (label, images)}`."""
    return [Entry(f"{g}/{n}", label, g, split) for g, (label, count) in groups.items() for n in range(count)]


def names(items: list[Entry]) -> list[str]:
    return [str(label) for label in range(max(item.label for item in items) + 1)]


@given(
    sizes=st.lists(st.lists(st.integers(1, 30), min_size=3, max_size=25), min_size=2, max_size=6),
    seed=st.integers(0, 1000),
)
def test_no_group_stands_on_two_sides_and_every_class_on_all_three(sizes: list[list[int]], seed: int):
    items = entries({f"{label}-{g}": (label, n) for label, row in enumerate(sizes) for g, n in enumerate(row)})
    splits = assign(items, names(items), SplitConfig(0.15, 0.2, seed))
    sides = defaultdict(set)
    classes = defaultdict(set)
    for item, split in zip(items, splits, strict=True):
        sides[item.group].add(split)
        classes[split].add(item.label)
    assert all(len(found) == 1 for found in sides.values())
    assert all(classes[split] == set(range(len(sizes))) for split in ("train", "val", "test"))


@given(
    members=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=40, max_size=60),
    seed=st.integers(0, 99),
)
def test_groups_of_several_classes_are_not_parted_either(members: list[list[int]], seed: int):
    members += [[0, 1, 2]] * 9
    items = [Entry(f"{g}/{n}", label, str(g)) for g, row in enumerate(members) for n, label in enumerate(row)]
    splits = assign(items, names(items), SplitConfig(0.2, 0.2, seed))
    sides = defaultdict(set)
    for item, split in zip(items, splits, strict=True):
        sides[item.group].add(split)
    assert all(len(found) == 1 for found in sides.values())


def test_the_shares_come_out_in_every_class():
    items = entries(
        {f"{label}-{g}": (label, 1) for label, count in ((0, 1000), (1, 200), (2, 50)) for g in range(count)}
    )
    counts = Counter(zip((i.label for i in items), assign(items, names(items), SplitConfig(0.1, 0.2)), strict=True))
    for label, count in ((0, 1000), (1, 200), (2, 50)):
        assert counts[label, "val"] == pytest.approx(0.1 * count, abs=1)
        assert counts[label, "test"] == pytest.approx(0.2 * count, abs=1)


def test_the_split_depends_on_its_seed_and_not_on_the_order_of_the_images():
    items = entries({f"{label}-{g}": (label, 3) for label in range(3) for g in range(30)})
    one = dict(zip(items, assign(items, names(items), SplitConfig(seed=0)), strict=True))
    backwards = items[::-1]
    assert dict(zip(backwards, assign(backwards, names(items), SplitConfig(seed=0)), strict=True)) == one
    assert dict(zip(items, assign(items, names(items), SplitConfig(seed=1)), strict=True)) != one


def test_the_split_of_a_seed_stays_what_it_was():
    items = entries({f"{label}-{g}": (label, 2) for label in range(2) for g in range(5)})
    splits = assign(items, names(items), SplitConfig(0.2, 0.2, 0))
    held_out = {item.group: split for item, split in zip(items, splits, strict=True) if split != "train"}
    assert held_out == {"0-2": "val", "0-3": "test", "1-0": "test", "1-1": "val"}


def test_splits_that_the_source_gives_stay_and_train_gives_up_what_is_missing():
    given_test = entries({f"t{label}-{g}": (label, 1) for label in range(2) for g in range(5)}, "test")
    rest = entries({f"{label}-{g}": (label, 1) for label in range(2) for g in range(20)}, "train")
    splits = assign(rest + given_test, ["0", "1"], SplitConfig(0.2, 0.2))
    assert splits[len(rest) :] == ["test"] * 10
    assert Counter(splits[: len(rest)]) == {"train": 32, "val": 8}


def test_too_few_groups_for_the_splits_are_named_class_by_class():
    items = entries({"a": (0, 9), "b": (0, 9), "c": (1, 9), "d": (1, 9), "e": (1, 9), "f": (2, 50)})
    with pytest.raises(MlopsError) as caught:
        assign(items, ["cat", "dog", "owl"], SplitConfig())
    assert len(caught.value.problems) == 2
    assert "class cat has too few groups of images (2) to stand in train, val, test" in caught.value.problems[0]
    assert "class owl has too few groups of images (1)" in caught.value.problems[1]


def test_a_source_that_parts_a_group_itself_is_refused():
    items = entries({"a": (0, 1), "b": (1, 1)}, "train") + entries({"a": (0, 1), "c": (1, 1)}, "test")
    with pytest.raises(MlopsError, match="group a stands in"):
        assign(items, ["0", "1"], SplitConfig())


def test_a_class_that_only_the_test_set_has_is_refused():
    items = entries({f"{label}-{g}": (label, 1) for label in range(2) for g in range(9)}, "train")
    with pytest.raises(MlopsError, match="class 2 has too few groups"):
        assign(items + entries({"x": (2, 1)}, "test"), ["0", "1", "2"], SplitConfig())


def test_a_limit_takes_whole_groups_of_every_class_alike():
    items = entries({f"{label}-{g}": (label, 4) for label, count in ((0, 100), (1, 20), (2, 10)) for g in range(count)})
    kept = limit(items, 72, seed=0)
    assert len(kept) == 72
    assert Counter(item.label for item in kept) == {0: 24, 1: 24, 2: 24}
    assert set(Counter(item.group for item in kept).values()) == {4}
    assert limit(items, None, 0) == limit(items, 10_000, 0) == items
