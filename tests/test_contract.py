from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops import contract
from mlops.story import differences, show_story
from samples import story


def complete(**changes: Any) -> dict[str, Any]:
    return {"format": 1, **story(), "weights_digest": "0" * 64, "digest": "0" * 64, **changes}


def test_what_a_training_writes_is_in_order():
    assert contract.check(complete()) == []
    assert contract.check(complete(metrics={}, history=[], epoch=0, step=0, temperature=1.5, reference={})) == []
    assert contract.check(complete(resume={"step": 1}, resume_digest="0" * 64, resumed=[{"step": 1}])) == []
    start = {"weights": "DEFAULT", "sha256": "0" * 64}
    code = {"version": "1", "commit": "c0ffee", "dirty": True, "diff_sha256": "0" * 64}
    assert contract.check(complete(start=start, code=code)) == []


def test_adopted_weights_need_not_tell_their_data():
    data = dict.fromkeys(("name", "fingerprint", "dvc_md5", "split_seed", "counts"))
    assert contract.check(complete(adopted={"by": "them"}, data=data, metrics={}, history=[])) == []
    assert contract.check(complete(data=data)) == [
        f"data.{name}=null: must be {kind}"
        for name, kind in (
            ("name", "text"),
            ("fingerprint", "text"),
            ("split_seed", "a whole number"),
            ("counts", "a mapping"),
        )
    ]


@pytest.mark.parametrize("name", sorted(complete()))
def test_every_field_is_needed_and_has_its_type(name: str):
    without = {key: value for key, value in complete().items() if key != name}
    assert contract.check(without) == [f"{name}: is missing"]
    (problem,) = contract.check(complete(**{name: {1: 2} if name == "temperature" else -1.5}))[:1]
    assert problem.startswith(name), problem


@pytest.mark.parametrize("section", ["input", "data", "code", "environment"])
def test_every_field_of_a_section_is_needed(section: str):
    for name in story()[section]:
        told = complete()
        del told[section][name]
        assert contract.check(told) == [f"{section}.{name}: is missing"]


def change(section: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda told: told[section].update(values)


@pytest.mark.parametrize(
    ("alter", "problem"),
    [
        (change("input", height=4097), "input.height=4097: must be from 1 to 4096"),
        (change("input", width=True), "input.width=true: must be a whole number"),
        (change("input", channels=1), "input.channels=1: must be 3"),
        (change("input", mean=[0.1, 0.2]), "input.mean=[0.1, 0.2]: must be three numbers"),
        (change("input", std=[1, 1, 0]), "input.std=[1, 1, 0]: must be above 0"),
        (change("input", resize="crop"), "input.resize=crop: must be one of squash, pad"),
        (change("input", more=1), "input.more=1: is not a field of a checkpoint"),
        (change("data", counts={"train": 1, "val": 1}), "data.counts.test: is missing"),
        (change("metrics", val_loss="low"), "metrics.val_loss=low: must be a number"),
        (change("metrics", val_loss=float("nan")), "its metadata holds nan, which is no number"),
        (change("metrics", epoch=2**63), "its metadata holds a number of more than 64 bits"),
        (
            lambda told: told["history"].append({"epoch": 2}),
            "history[1]: lacks train_loss, train_Accuracy, train_F1, val_",
        ),
        (lambda told: told.update(epoch=-1), "epoch=-1: must be at least 0"),
        (lambda told: told.update(resume={}), "resume: must come with the digest"),
        (lambda told: told.update(classes=["a", ""]), "classes=['a', '']: must be two or more names, each once"),
        (lambda told: told.update(temperature=float("inf")), "its metadata holds inf"),
        (lambda told: told["config"].update(training=3), "config.training: must be a mapping"),
        (lambda told: told["config"]["training"].pop("epochs"), "config.training.epochs: is missing"),
        (change("metrics", test_Accuracy=0.5), "metrics: lacks test_F1"),
        (lambda told: told["config"].update(model={"width": 3}), "config.model: must be a mapping with the name"),
    ],
)
def test_a_value_out_of_place_is_named(alter: Callable[[dict[str, Any]], None], problem: str):
    told = complete()
    alter(told)
    assert any(found.startswith(problem) for found in contract.check(told)), contract.check(told)


def test_all_problems_are_listed_at_once_but_not_without_end():
    told = complete(temperature=-1, classes=["a"], epoch=-3)
    told["input"]["channels"] = 4
    assert len(contract.check(told)) == 4
    told["history"] = [{"epoch": n} for n in range(1000)]
    assert contract.check(told)[-1].startswith("and 98")
    assert len(contract.check(told)) == 21


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(sorted(complete())), JSON), st.sampled_from(["input", "data", "config", None]))
def test_no_metadata_whatever_is_a_traceback(values: dict[str, Any], section: str | None):
    told = complete(**values) if section is None else complete(**{section: story()[section] | values})
    if not contract.check(told):
        show_story(Path("x.pth"), told)
        differences(told, complete())


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (1, 1.0), (0.0, -0.0), ([1], (1,)), ({"a": 1}, {"a": True}), ("1", 1), ([1], [1, 2])]
)
def test_values_of_other_types_are_not_the_same(one: Any, other: Any):
    assert contract.same(one, one)
    assert not contract.same(other, one)
    assert not contract.same([other], [one])
