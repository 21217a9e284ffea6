import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from conftest import Command
from mlops import checkpoint, config
from mlops.errors import MlopsError
from mlops.story import config_as_yaml, differences
from samples import QUICK, position, story

LATEST = "models/latest/best_model.pth"


def saved(path: Path, weight: float = 1.0, **changes: Any) -> Path:
    checkpoint.save(path, {"w": torch.tensor([weight])}, story(**changes))
    return path


def test_a_page_tells_what_how_well_and_where_from(
    mlops_command: Command, workplace: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("UV", raising=False)  # which would come before the command
    told = story()
    told["config"]["training"] |= {"epochs": 30, "patience": 5}
    told["metrics"] = told["metrics"] | {"test_Accuracy": 0.75, "test_F1": 0.7, "test_ECE": 0.02, "test_Top5": 0.9}
    code = {"version": "0.1.0", "commit": "c0ffee" * 6, "dirty": True, "diff_sha256": "d" * 64}
    start = {"weights": "ResNet18_Weights.DEFAULT", "sha256": "5a" * 32}
    saved(workplace / "x.pth", **told | {"temperature": 1.25, "code": code, "start": start})
    page = " ".join(mlops_command("info", "x.pth").out.split())
    for words in (
        "recognises 2 classes: cat, dög",
        "test accuracy 75.00% of 10 images, macro F1 0.7000, among the five likeliest 90.00%",
        "validation accuracy 33.33% of 10 images, macro F1 0.3000",
        "calibration temperature 1.250, its probabilities are off by 2.00% on average",
        "epoch 1 of 30, best val_Accuracy",
        "input 16 x 16 RGB, squash, bilinear",
        "model mlops.models.SignNet",
        "started from ResNet18_Weights.DEFAULT, SHA-256 5a5a5a5a5a5a",
        "data pets-0123456789abcdef, split seed 0: 80 train, 10 val, 10 test",
        "code mlops 0.1.0, git c0ffeec0ffee with changes",
        "command mlops-train model.width=8",
        "training.epochs 30 ",
        "training.patience 5 ",
        "created 2026-11-21 06:30:00 UTC",
    ):
        assert words in page, words
    assert "training.batch_size" not in page  # as by default


def test_a_page_says_that_a_training_has_not_ended(mlops_command: Command, workplace: Path):
    saved(workplace / "best.pth")
    assert "1 of 20, best val_Accuracy; the training has not ended" in mlops_command("info", "best.pth").out
    saved(workplace / "last.pth", resume=position(epoch=1, step=3), step=17)
    assert "1 of 20 epochs done, at step 17; it can go on from here" in mlops_command("info", "last.pth").out
    saved(workplace / "start.pth", resume=position(), metrics={}, history=[], epoch_digests=[], epoch=0, step=0)
    assert "0 of 20 epochs done, at step 0" in mlops_command("info", "start.pth").out


def test_a_page_says_that_weights_were_adopted(mlops_command: Command, workplace: Path):
    data = dict.fromkeys(("name", "fingerprint", "dvc_md5", "split_seed", "counts"))
    known = {"file": "theirs.pt", "sha256": "0" * 64, "entry": None, "by": "0.1.0", "assumed": []}
    before = {"metrics": {}, "history": [], "epoch_digests": [], "epoch": 0, "step": 0, "overrides": None}
    saved(workplace / "x.pth", adopted=known, data=data, **before)
    page = " ".join(mlops_command("info", "x.pth").out.split())
    assert "adopted weights that were trained elsewhere" in page
    assert "data not known" in page


@pytest.mark.parametrize("command", [["info", "a.pth"], ["info", "a.pth", "--config"], ["diff", "a.pth", "b.pth"]])
def test_no_torch_is_imported(command: list[str], workplace: Path):
    saved(workplace / "a.pth")
    saved(workplace / "b.pth", 2.0)
    code = (
        f"import sys; from mlops.cli import main\ntry: main({command!r})\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'hydra', 'omegaconf', 'PIL', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert len(done.stdout) > 50


TEXTS = ["${oc.env:HOME}", r"\${a}", r"\\${a} \${b}", "${", "1e-5", "1_000", "null", "true", "on", "yes", "~", "", " ",
         "'\"", "a: b # c", "- x", "2026-11-21", "0x10", "1:30", ".inf", "\n", "\t\u202e\x1b", "ü犬😀", "@x", "*a", "&a", "!!x"]  # fmt: skip


def composed(text: str) -> dict[str, Any]:
    """The values as Hydra has them in the end: read by its loader, resolved once."""
    found = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    assert isinstance(found, dict)
    del found["defaults"]
    return found


def as_printed(value: Any) -> Any:
    told = story()
    told["config"]["model"]["note"] = value
    return composed(config_as_yaml(told))["model"]["note"]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_stays_that_text(text: str):
    assert as_printed(text) == text
    assert as_printed({text or "x": [text]}) == {text or "x": [text]}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.sampled_from("${}\\:abc_.'\" \n1e-5"), max_size=12),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcon1e5", min_size=1, max_size=4), inner, max_size=3),
        max_leaves=8,
    )
)  # fmt: skip
def test_any_value_comes_back_as_it_was_and_of_its_type(value: Any):
    if "???" not in repr(value):
        found = as_printed(value)
        assert json.dumps(found) == json.dumps(value)


@pytest.mark.slow
def test_a_config_is_printed_as_one_that_trains_the_same_again(
    workplace: Path, pictures: Path, hydra_command: Command, mlops_command: Command
):
    strange = ["tracking.project='\\${oc.env:HOME}'", "tracking.entity='1e-5'", "data.name=null", "data.group='^[^_]+'"]
    words = [
        *QUICK,
        f"data.root={pictures}",
        *strange,
        "training.patience=null",
        "training.optimizer.betas=[0.8,0.9]",
    ]
    assert hydra_command("train", *words).code == 0
    first = checkpoint.read_metadata(Path(LATEST))
    assert first["config"]["tracking"]["project"] == "${oc.env:HOME}"
    Path("mine").mkdir()
    Path("mine/again.yaml").write_text(mlops_command("info", LATEST, "--config").out, encoding="utf-8")
    Path(LATEST).rename("first.pth")
    done = hydra_command("train", "--config-dir", "mine", "--config-name", "again")
    assert done.code == 0, done.err
    assert checkpoint.read_metadata(Path(LATEST))["config"] == first["config"]
    same = mlops_command("diff", "first.pth", LATEST)
    assert same.code == 0, same.out
    # Overrides and groups on top.
    more = ["augment=none", "training.epochs=1", "model=tinycnn", "~model.dropout", "model.hidden=16", "seed=4"]
    done = hydra_command("train", "--config-dir", "mine", "--config-name", "again", *more)
    assert done.code == 0, done.err
    changed = checkpoint.read_metadata(Path(LATEST))["config"]
    assert changed["model"] == {"_target_": "mlops.models.TinyCNN", "width": 32, "hidden": 16}
    assert (changed["training"]["epochs"], changed["seed"]) == (1, 4)
    assert changed["training"]["optimizer"] == first["config"]["training"]["optimizer"]
    assert set(changed["augment"].values()) == {0.0}


def test_a_printed_config_says_how_another_model_takes_the_place_of_this_one():
    told = story()
    told["config"]["model"] |= {"dropout": 0.1, "not: a\nname": 1}
    page = config_as_yaml(told)
    assert "left out: model=resnet18 ~model.width ~model.dropout\n" in page
    assert yaml.safe_load(page)["model"]["width"] == 8


def test_of_the_times_that_a_run_went_on_the_last_are_shown(mlops_command: Command, workplace: Path):
    saved(workplace / "x.pth", resumed=[{"step": step} for step in range(1000, 1100)])
    page = mlops_command("info", "x.pth").out
    assert "100 times elsewhere" in page
    assert "step 1099" in page
    assert page.count("at step") == 3


def test_a_model_for_onnx_is_pointed_to_predict(mlops_command: Command, workplace: Path):
    (workplace / "m.onnx").write_bytes(b"x")
    done = mlops_command("info", "m.onnx")
    assert (done.code, len(done.errors)) == (2, 1)
    assert "is a model of `mlops export`, not a checkpoint; `mlops predict` takes it" in done.errors[0]


def test_a_setting_that_came_later_is_printed_with_its_default():
    told = story()
    del told["config"]["training"]["save_every"], told["config"]["run"]
    assert composed(config_as_yaml(told)) == config.complete(story()["config"])


@pytest.mark.parametrize("change", [{"hydra": {}}, {"seed": "x"}, {"model": {"_target_": "a.B", "c": "???"}}])
def test_what_is_no_config_is_not_printed(change: dict[str, Any]):
    told = story()
    told["config"] |= change
    with pytest.raises(MlopsError, match="checkpoint: config: "):
        config_as_yaml(told)


def test_the_same_but_for_when_it_was_made_is_the_same(mlops_command: Command, workplace: Path):
    saved(workplace / "a.pth")
    saved(workplace / "b.pth", created="2027-01-01T00:00:00+00:00", overrides=["x=1"])
    done = mlops_command("diff", "a.pth", "b.pth")
    assert (done.code, done.out.split("\n")[0]) == (0, "The same")
    assert json.loads(mlops_command("diff", "a.pth", "b.pth", "--json").out) == {"same": True, "differences": {}}


def test_what_differs_is_named_by_section_and_key(mlops_command: Command, workplace: Path):
    other = story()
    other["config"]["training"]["optimizer"]["lr"] = 0.02
    other["config"]["augment"]["flip"] = 1  # not 1.0
    other["config"]["model"]["norm"] = None
    other["classes"] = ["cat", "dog"]
    other["history"] = [other["metrics"], other["metrics"] | {"epoch": 2}]
    other["epoch_digests"] *= 2
    saved(workplace / "a.pth")
    other["environment"]["threads"] = 2
    saved(workplace / "b.pth", 2.0, **other)
    done = mlops_command("diff", "a.pth", "b.pth")
    assert done.code == 1
    text = " ".join(done.out.split())
    for words in (
        "Weights weights_digest ",
        "Config ",
        "augment.flip 0 -> 1",
        "training.optimizer.lr 0.01 -> 0.02",
        "model.norm (none) -> null",
        "Classes classes ['cat', 'dög'] -> ['cat', 'dog']",
        "Environment threads 1 -> 2",
        "history 1 epochs -> 2 epochs",
    ):
        assert words in text, (words, text)
    found = json.loads(mlops_command("diff", "a.pth", "b.pth", "--json").out)["differences"]
    assert found["config"]["training.optimizer.lr"] == {"a": 0.01, "b": 0.02}
    assert found["config"]["model.norm"] == {"b": None}
    assert set(found) == {"weights", "config", "classes", "environment", "metrics", "training"}


def test_every_field_is_compared():
    first = {**story(), "format": 1, "weights_digest": "a", "digest": "b"}
    for name in set(first) - {"created", "overrides", "digest", "format"}:
        assert differences(first, first | {name: {"another": 1}}), name
        assert differences(first, {key: value for key, value in first.items() if key != name}), name
    assert differences(first, first) == {}


def test_of_epochs_the_first_that_differs_is_named():
    first = story(epoch_digests=["a", "b", "c"])
    (found,) = differences(first, story(epoch_digests=["a", "x", "y"])).values()
    assert found == {"epoch_digests, first that differs": (2, 2)}


def test_a_file_that_cannot_be_read_is_exit_code_2_and_both_are_named(mlops_command: Command, workplace: Path):
    done = mlops_command("diff", "none.pth", "nor.pth")
    assert done.code == 2
    assert [line.split(":")[0] for line in done.errors] == ["none.pth", "nor.pth"]


def test_yaml_is_yaml_to_any_reader():
    assert yaml.safe_load(config_as_yaml(story()))["training"]["epochs"] == 20
