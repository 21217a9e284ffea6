"""Pictures that are the same byte for byte."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops.config import SplitConfig
from mlops.data.duplicates import settle
from mlops.data.listing import Entry
from mlops.data.split import assign
from mlops.errors import MlopsError

CLASSES = ["cat", "dog"]


def entry(path: str, label: int = 0, split: str | None = None, **more: object) -> Entry:
    return Entry(path, label, more.pop("group", path), split, **more)


def done(entries: list[Entry], hashes: str, action: str = "refuse", pictures: bool = True):
    """`hashes` has one letter an entry; a blank is an unreadable file."""
    return settle(entries, [letter.strip() for letter in hashes], CLASSES, action, lambda _: pictures)


def test_without_copies_all_stays_as_it_is():
    entries = [entry("a"), entry("b", 1), entry("c", split="test")]
    assert done(entries, "abc") == (entries, ["a", "b", "c"], [])


def test_copies_that_we_place_get_one_group_with_all_that_their_groups_hold():
    entries = [entry("a", group="p2"), entry("b", group="p1"), entry("c", group="p2"), entry("d", group="p3")]
    kept, _, dropped = done(entries, "xxyz")
    assert [e.group for e in kept] == ["p1", "p1", "p1", "p3"]
    assert dropped == []


def test_copies_within_a_given_test_split_keep_their_groups():
    entries = [entry("a", split="test"), entry("b", split="test")]
    assert done(entries, "xx")[0] == entries


def test_unreadable_files_and_pages_that_say_404_are_no_copies():
    entries = [entry("a"), entry("b", 1)]
    assert done(entries, "  ")[0] == entries
    assert done(entries, "xx", pictures=False)[0] == entries


def test_different_boxes_of_one_picture_are_different_images():
    entries = [entry("a", 0, box=(0, 0, 5, 5)), entry("b", 1, box=(5, 5, 9, 9))]
    assert done(entries, "xx")[0] == entries


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        (entry("a", 0, "train"), entry("b", 0, "test"), "a (train, cat) = b (test, cat)"),
        (entry("a", 0, "val"), entry("b", 0, "test"), "a (val, cat) = b (test, cat)"),
        (entry("a", 0), entry("b", 1), "a (cat) = b (dog)"),
        (entry("a", 0, "test"), entry("b", 1, "test"), "a (test, cat) = b (test, dog)"),
    ],
)
def test_a_copy_in_two_splits_or_classes_of_the_source_is_refused_by_name(one: Entry, other: Entry, named: str):
    with pytest.raises(MlopsError) as caught:
        done([one, other, entry("c")], "xxy")
    (line,) = caught.value.problems
    assert f"1 picture stands in two splits or classes, byte for byte: {named}; mend the source, or set" in line
    assert "data.duplicates=drop" in line


def test_dropping_keeps_the_test_split_whole_then_val():
    entries = [entry("a", split="train"), entry("b", split="val"), entry("c", split="test"), entry("d", split="val")]
    kept, hashes, dropped = done([*entries, entry("e", 1)], "xxxyy", "drop")
    assert [e.path for e in kept] == ["c", "d"]
    assert hashes == ["x", "y"]
    assert dropped == [
        {"path": "a", "reason": "the same picture as c (test, cat)"},
        {"path": "b", "reason": "the same picture as c (test, cat)"},
        {"path": "e", "reason": "the same picture as d (val, cat)"},
    ]


def test_dropping_leaves_out_all_training_copies_with_two_labels_but_nothing_of_test():
    entries = [entry("a", 0), entry("b", 1), entry("c", 0), entry("d", 0, "test"), entry("e", 1, "test")]
    kept, _, dropped = done(entries, "xxxyy", "drop")
    assert [e.path for e in kept] == ["d", "e"]
    assert {one["path"]: one["reason"] for one in dropped} == {
        "a": "the same picture as b (dog)",
        "b": "the same picture as a (cat)",
        "c": "the same picture as b (dog)",
    }


@given(letters=st.lists(st.sampled_from("abcdefghijkl"), min_size=40, max_size=80), seed=st.integers(0, 99))
def test_copies_never_stand_on_two_sides_of_a_split_that_we_draw(letters: list[str], seed: int):
    # A dozen pictures, copied at random, and enough others for every split.
    entries = [entry(f"{n:03}", 0) for n in range(len(letters))]
    entries += [entry(f"z{n:03}", n % 2) for n in range(40)]
    hashes = [*letters, *(f"other{n}" for n in range(40))]
    kept, digests, _ = settle(entries, hashes, CLASSES, "refuse", lambda _: True)
    splits = assign(kept, CLASSES, SplitConfig(0.2, 0.2, seed))
    sides = defaultdict(set)
    for digest, split in zip(digests, splits, strict=True):
        sides[digest].add(split)
    assert all(len(found) == 1 for found in sides.values())
