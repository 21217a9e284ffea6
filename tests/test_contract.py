from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops import contract
from mlops.story import differences, show_story
from samples import position, story


def complete(**changes: Any) -> dict[str, Any]:
    return {"format": 1, **story(), "weights_digest": "0" * 64, "digest": "0" * 64, **changes}


BEFORE_THE_FIRST_EPOCH: dict[str, Any] = {"metrics": {}, "history": [], "epoch_digests": [], "epoch": 0, "step": 0}
UNKNOWN_DATA = dict.fromkeys(("name", "fingerprint", "dvc_md5", "split_seed", "counts"))
ADOPTED = {"file": "x.pth", "sha256": "0" * 64, "entry": None, "by": "0.1.0", "assumed": ["mean"]}


def adopted(**changes: Any) -> dict[str, Any]:
    told = complete(**BEFORE_THE_FIRST_EPOCH, adopted=ADOPTED, data=UNKNOWN_DATA, overrides=None)
    return {**told, **changes}


def test_what_a_training_writes_is_in_order():
    assert contract.check(complete()) == []
    assert contract.check(complete(**BEFORE_THE_FIRST_EPOCH, temperature=1.5, reference={})) == []
    assert contract.check(complete(resume=position(), resume_digest="0" * 64, resumed=[{"step": 1}])) == []
    start = {"weights": "DEFAULT", "sha256": "0" * 64}
    code = {"version": "1", "commit": "c0ffee", "dirty": True, "diff_sha256": "0" * 64}
    assert contract.check(complete(start=start, code=code)) == []


def test_adopted_weights_need_not_tell_their_data():
    assert contract.check(adopted()) == []
    assert contract.check(complete(data=UNKNOWN_DATA)) == [
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
        (change("input", height=2049), "input.height=2049: must be from 1 to 2048"),
        (change("input", width=True), "input.width=true: must be a whole number"),
        (change("input", channels=1), "input.channels=1: must be 3"),
        (change("input", mean=[0.1, 0.2]), "input.mean=[0.1, 0.2]: must be three numbers"),
        (change("input", std=[1, 1, 0]), "input.std=[1, 1, 0]: must be from 1e-06 to 1e+06"),
        (change("input", std=[1, 1, 1e-9]), "input.std=[1, 1, 1e-09]: must be from"),
        (change("input", width=17), "input: is 16 x 17, and config.data.image_size=16; both sides must be that"),
        (change("data", counts={"train": 1, "val": -1, "test": 0}), "data.counts.val=-1: must be at least 0"),
        (change("environment", threads=0), "environment.threads=0: must be at least 1"),
        (change("environment", precision="fp8"), "environment.precision=fp8: must be one of fp32, bf16, fp16"),
        (change("metrics", val_loss=-2e39), "metrics.val_loss=-2e+39: must be at most 1e+39 in size"),
        (change("metrics", epoch=2), "metrics.epoch=2: must be the kept epoch, epoch=1"),
        (lambda told: told.update(epoch=0), "metrics.epoch=1: must be the kept epoch, epoch=0, from 1"),
        (lambda told: told.update(epoch=2), "epoch=2: must be from 0 to 1, the epochs of history"),
        (lambda told: told["history"][0].update(epoch=7), "history[0].epoch=7: must be 1"),
        (lambda told: told["epoch_digests"].pop(), "epoch_digests: are 0 and history has 1 epochs; must be one for"),
        (lambda told: told.update(overrides=None), "overrides=null: must be a list, each item text"),
        (lambda told: told.update(step=-1), "step=-1: must be at least 0"),
        (lambda told: told.update(temperature=1e4), "temperature=10000.0: must be from 0.001 to 1000"),
        (lambda told: told.update(classes=[str(n) for n in range(100_001)]), "classes: are 100,001; must be at most"),
        (lambda told: told.update(history=[{}] * 100_001), "history: has 100,001 epochs; must be at most 100,000"),
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
        (lambda told: told.update(epoch=-1), "epoch=-1: must be from 0 to 1"),
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


def test_a_loss_may_be_as_large_as_batch_norm_makes_it_at_first():
    told = complete()
    told["metrics"]["val_loss"] = told["history"][0]["val_loss"] = 154_959_003_648.0
    assert contract.check(told) == []


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        (adopted(adopted={}), "adopted.file: is missing"),
        (adopted(adopted=ADOPTED | {"more": 1}), "adopted.more=1: is not a field of a checkpoint"),
        (adopted(adopted=ADOPTED | {"assumed": "mean"}), "adopted.assumed=mean: must be a list, each item text"),
        (adopted(history=story()["history"], epoch_digests=["0"]), "epoch_digests: are 1 and history has 1 epochs"),
        (adopted(metrics={"epoch": 0, "test_Accuracy": 1.0}), "metrics.epoch=0: must be the kept epoch"),
    ],
)
def test_adopted_weights_say_what_is_known_of_them_and_no_more(told: dict[str, Any], problem: str):
    assert any(found.startswith(problem) for found in contract.check(told)), contract.check(told)


@pytest.mark.parametrize(
    ("resume", "problem"),
    [
        ({}, "resume.epoch: is missing"),
        (position(more=1), "resume.more=1: is not a field of a checkpoint"),
        (position(step=-1), "resume.step=-1: must be at least 0"),
        (position(epoch=1.5), "resume.epoch=1.5: must be a whole number"),
        (position(finished=1), "resume.finished=1: must be true or false"),
        (position(tracker="../x"), "resume.tracker=../x: must be letters, digits, - and _, at most 128"),
        (position(tracker="x" * 129), "resume.tracker=x"),
        (position(scaler=None), "resume.scaler=null: must be a mapping"),
        (position(optimizer={"state": {}}), "resume.optimizer.groups: is missing"),
        (position(optimizer={"state": {}, "groups": [1]}), "resume.optimizer.groups=[1]: must be a list"),
        (position(optimizer={"state": {"0": 1}, "groups": []}), "resume.optimizer.state: must be mappings"),
        (position(optimizer={"state": {"x": {}}, "groups": []}), "resume.optimizer.state: must be mappings"),
    ],
)
def test_a_place_to_go_on_from_is_one(resume: dict[str, Any], problem: str):
    found = contract.check(complete(resume=resume, resume_digest="0" * 64))
    assert any(line.startswith(problem) for line in found), found


def test_all_problems_are_listed_at_once_but_not_without_end():
    told = complete(temperature=-1, classes=["a"], epoch=-3)
    told["input"]["channels"] = 4
    assert len(contract.check(told)) == 5, contract.check(told)
    told["history"] = [{"epoch": n + 1} for n in range(1000)]
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
