import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from mlops.errors import MlopsError
from mlops.targets import MODELS, OPTIMIZERS, build, check, mismatch, read_allowed

ALLOWED = MODELS | OPTIMIZERS


def problems(**node: Any) -> list[str]:
    return check({"_target_": "torch.optim.AdamW", **node}, "training.optimizer", ALLOWED, ("params",))


def test_a_right_node_has_no_problems():
    assert problems(lr=0.1, betas=[0.9, 0.95], fused=None, amsgrad=True, weight_decay=0) == []


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ({"lr": "abc"}, "training.optimizer.lr=abc: must be a number"),
        ({"lr": True}, "training.optimizer.lr=True: must be a number"),
        ({"amsgrad": 1}, "training.optimizer.amsgrad=1: must be true or false"),
        ({"betas": [0.9]}, "training.optimizer.betas=[0.9]: must be a list of 2 values"),
        ({"lrr": 1}, "did you mean training.optimizer.lr?"),
        ({"momentum": 1}, "torch.optim.AdamW takes no such parameter"),
        ({"eps": {"_target_": "os.system"}}, "a nested _target_ is not supported"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_to_do(parameter: dict[str, Any], expected: str):
    assert any(expected in problem for problem in problems(**parameter))


def test_all_problems_are_listed_at_once():
    assert len(problems(lr="abc", lrr=1, amsgrad=3)) == 3


def test_a_missing_parameter_is_named():
    assert (
        "model.image_size: is missing"
        in check({"_target_": "mlops.models.TinyCNN"}, "model", ALLOWED, ("num_classes",))[0]
    )


@pytest.mark.parametrize(
    "name", ["builtins.open", "pathlib.Path.write_text", "torch.hub.load", "torch.optim", "", None, 3]
)
def test_a_name_that_is_not_allowed_is_refused(name: Any):
    with pytest.raises(MlopsError, match=r"model\._target_="):
        build({"_target_": name}, "model", ALLOWED)


def test_a_refused_module_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "plants_a_file.py").write_text(f"open({str(tmp_path / 'planted')!r}, 'w')\nclass Net: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MlopsError, match="is not an allowed name"):
        build({"_target_": "plants_a_file.Net"}, "model", ALLOWED)
    assert "plants_a_file" not in sys.modules
    assert not (tmp_path / "planted").exists()


def test_a_user_allows_names_of_their_own_in_the_config_folder(tmp_path: Path):
    (tmp_path / "allowed_targets.yaml").write_text("- collections.Counter\n")
    assert build({"_target_": "collections.Counter", "a": 2}, "model", read_allowed(tmp_path)) == {"a": 2}
    assert read_allowed(tmp_path) > MODELS


@pytest.mark.parametrize("text", ["name: x", "- 3", "[", "x"])
def test_a_list_of_names_that_is_none_is_refused(tmp_path: Path, text: str):
    (tmp_path / "allowed_targets.yaml").write_text(text)
    with pytest.raises(MlopsError, match=r"allowed_targets\.yaml"):
        read_allowed(tmp_path)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, int, None),
        (1.0, int, "a whole number"),
        (True, int, "a whole number"),
        (1, float, None),
        ("x", float, "a number"),
        (None, int | None, None),
        ("x", int | None, "a whole number or null"),
        ("b", Literal["a", "b"], None),
        ("c", Literal["a", "b"], "one of a, b"),
        ([1, 2], list[int], None),
        ([1, "x"], list[int], "a list, each item a whole number"),
        ([1, 2], tuple[int, ...], None),
        ("x", Path, None),
        ("x", Any, None),
        ({"a": 1}, dict[str, Any], None),
        ("a", dict[str, Any], "a mapping"),
    ],
)
def test_a_value_is_held_against_an_annotation(value: Any, annotation: Any, expected: str | None):
    assert mismatch(value, annotation) == expected


def test_the_current_folder_is_looked_in_only_for_names_that_the_user_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "besides.py").write_text("class Net: ...\n")
    (tmp_path / "timm.py").write_text("raise SystemExit('a module from a strange folder ran')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "timm" not in entry])
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    build({"_target_": "mlops.models.SignNet", "num_classes": 2}, "model", MODELS)
    assert str(tmp_path) not in sys.path
    assert type(build({"_target_": "besides.Net"}, "model", ["besides.Net"])).__name__ == "Net"
    assert sys.path[-1] == str(tmp_path)
