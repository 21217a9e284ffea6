"""`mlops reproduce`: a file that tells the truth is confirmed bit for bit; one that does not is found out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Command
from mlops import checkpoint
from samples import QUICK, png

# Each trains, some several times.
pytestmark = pytest.mark.slow

LATEST = Path("models/latest/best_model.pth")
RUN = (*QUICK, "training.ema=0.9", "augment.mixup=0.3", "training.label_smoothing=0.1")


@pytest.fixture
def trained(pictures: Path, workplace: Path, hydra_command: Command) -> Path:
    assert hydra_command("train", *RUN, f"data.root={pictures}").code == 0
    return LATEST


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """The file with something changed and every digest right again: what a liar would mail."""
    read = checkpoint.read(path)
    weights, story = dict(read.state_dict), json.loads(json.dumps(read.metadata))
    change(weights, story)
    told = {key: value for key, value in story.items() if key not in ("format", "digest", "weights_digest")}
    checkpoint.save(Path("changed.pth"), weights, told)
    return Path("changed.pth")


def test_a_true_file_is_confirmed_bit_for_bit(trained: Path, mlops_command: Command):
    done = mlops_command("reproduce", trained)
    assert done.code == 0, done.err
    assert "identical, bit for bit" in done.out
    assert [line for line in done.err.splitlines() if line.endswith(": identical")] == [
        f"epoch {number}: identical" for number in (1, 2, 3)
    ]


def test_the_models_in_use_and_the_file_itself_are_left_alone(trained: Path, mlops_command: Command):
    before = trained.read_bytes()
    copy = shutil.copyfile(trained, "mailed.pth")
    assert mlops_command("reproduce", copy).code == 0
    assert trained.read_bytes() == before == Path(copy).read_bytes()


def test_the_first_epochs_alone_can_be_proven(trained: Path, mlops_command: Command):
    done = mlops_command("reproduce", trained, "--epochs", "2", "--json")
    assert done.code == 0
    proof = json.loads(done.out)
    assert (proof["identical"], proof["epochs"], proof["first_different"]) == (True, 2, None)


def test_changed_weights_are_found_with_how_far_they_are_off(trained: Path, mlops_command: Command):
    def change(weights: dict[str, Any], story: dict[str, Any]) -> None:
        name = next(iter(weights))
        weights[name] = weights[name].clone()
        weights[name][0, 0, 0, 0] += 0.25

    done = mlops_command("reproduce", rewrite(trained, change), "--json")
    assert done.code == 1
    proof = json.loads(done.out)
    assert proof["first_different"] is None
    assert proof["largest_weight"] == pytest.approx(0.25, rel=1e-6)


def test_a_metric_that_was_made_up_is_named_with_its_epoch(trained: Path, mlops_command: Command):
    def change(weights: dict[str, Any], story: dict[str, Any]) -> None:
        story["history"][1]["val_loss"] = 0.001

    done = mlops_command("reproduce", rewrite(trained, change))
    assert done.code == 1
    assert "DIFFERENT from epoch 2 on" in done.out
    assert "val_loss" in done.out
    assert "0.001" in done.out
    assert "epoch 1: identical" in done.err
    assert "epoch 2: DIFFERENT" in done.err


def test_another_config_than_the_one_it_was_trained_with_is_found_in_the_first_epoch(
    trained: Path, mlops_command: Command
):
    def change(weights: dict[str, Any], story: dict[str, Any]) -> None:
        story["config"]["seed"] = 7

    proof = json.loads(mlops_command("reproduce", rewrite(trained, change), "--json").out)
    assert proof["first_different"] == 1
    assert proof["largest_weight"] > 0


def test_a_score_on_the_test_split_that_was_made_up_is_found(trained: Path, mlops_command: Command):
    def change(weights: dict[str, Any], story: dict[str, Any]) -> None:
        story["metrics"]["test_loss"] = 0.0

    done = mlops_command("reproduce", rewrite(trained, change), "--json")
    proof = json.loads(done.out)
    assert done.code == 1
    assert [found["name"] for found in proof["differences"]] == ["test_loss"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("classes", lambda story: story["classes"].reverse()),
        ("input", lambda story: story["input"].update(mean=[0.9] * 3)),
        ("temperature", lambda story: story.update(temperature=0.05)),
        ("epoch", lambda story: story.update(epoch=1, metrics=story["metrics"] | {"epoch": 1})),
    ],
)
def test_whatever_else_a_file_claims_is_compared(
    name: str, change: Callable[[dict[str, Any]], None], trained: Path, mlops_command: Command
):
    if name == "epoch":  # a kept epoch that was another, and weights that were not looked at for it

        def lie(weights: dict[str, Any], story: dict[str, Any]) -> None:
            first = next(iter(weights))
            weights[first] = weights[first] + 1
            change(story)
    else:

        def lie(weights: dict[str, Any], story: dict[str, Any]) -> None:
            change(story)

    done = mlops_command("reproduce", rewrite(trained, lie), "--json")
    proof = json.loads(done.out)
    assert (done.code, proof["identical"]) == (1, False)
    assert any(line.startswith(f"{name} ") for line in proof["claims"])
    assert proof["same_weights"] == (name != "epoch")


def test_epochs_that_never_were_are_found(trained: Path, mlops_command: Command):
    def change(weights: dict[str, Any], story: dict[str, Any]) -> None:
        story["history"].append(story["history"][-1] | {"epoch": 4})
        story["epoch_digests"].append("0" * 64)

    proof = json.loads(mlops_command("reproduce", rewrite(trained, change), "--json").out)
    assert (proof["identical"], proof["epochs"], proof["first_different"]) == (False, 3, 4)


def test_a_last_pth_is_not_what_a_file_claims(trained: Path, workplace: Path, mlops_command: Command):
    (last,) = workplace.glob("outputs/*/*/last.pth")
    done = mlops_command("reproduce", last)
    assert (done.code, done.errors) == (
        2,
        [f"{last}: holds a run between two steps; name the best_model.pth beside it"],
    )


def test_what_differs_in_code_versions_and_machine_is_said_first(trained: Path, mlops_command: Command):
    def change(weights: dict[str, Any], story: dict[str, Any]) -> None:
        story["environment"]["torch"] = "2.0.0"
        story["code"]["commit"] = "0" * 40

    done = mlops_command("reproduce", rewrite(trained, change), "--epochs", "1")
    assert done.code == 0, "the same weights are the same, whatever made them"
    warnings = [line for line in done.err.splitlines() if line.startswith("warning: ")]
    assert any(line.startswith("warning: torch 2.0.0 -> ") for line in warnings)
    assert any(line.startswith(f"warning: code commit {'0' * 40} -> ") for line in warnings)
    assert done.err.index("torch 2.0.0") < done.err.index("epoch 1: identical")


def test_data_that_has_moved_is_named_and_data_that_has_changed_is_refused(
    trained: Path, pictures: Path, workplace: Path, mlops_command: Command
):
    moved = pictures.rename(workplace / "moved")
    done = mlops_command("reproduce", trained)
    assert done.code == 2
    assert mlops_command("reproduce", trained, "--data", moved, "--epochs", "1").code == 0
    (moved / "red" / "00.png").write_bytes(png(4321))
    done = mlops_command("reproduce", trained, "--data", moved)
    assert done.code == 2
    (line,) = done.errors
    assert "is not the data this checkpoint was trained on" in line


def test_more_epochs_than_there_were_are_refused(trained: Path, mlops_command: Command):
    done = mlops_command("reproduce", trained, "--epochs", "4")
    assert (done.code, done.errors) == (2, ["--epochs=4: the checkpoint was trained for 3"])


def test_a_run_that_was_stopped_is_proven_as_far_as_it_came(trained: Path, mlops_command: Command):
    def change(weights: dict[str, Any], story: dict[str, Any]) -> None:
        story["temperature"] = None
        story["history"] = story["history"][: story["epoch"]]
        story["epoch_digests"] = story["epoch_digests"][: story["epoch"]]

    kept = checkpoint.read_metadata(trained)["epoch"]
    proof = json.loads(mlops_command("reproduce", rewrite(trained, change), "--json").out)
    assert (proof["epochs"], proof["first_different"]) == (kept, None)


def test_other_start_weights_are_refused(trained: Path, pictures: Path, hydra_command: Command, mlops_command: Command):
    shutil.copyfile(trained, "start.pth")
    more = ["model.weights=start.pth", "seed=1"]
    assert hydra_command("train", *RUN, f"data.root={pictures}", *more).code == 0
    assert mlops_command("reproduce", trained, "--epochs", "1").code == 0
    shutil.copyfile(trained, "start.pth")
    done = mlops_command("reproduce", trained)
    assert done.code == 2
    assert done.errors[0].startswith("model.weights=start.pth: has SHA-256 ")
