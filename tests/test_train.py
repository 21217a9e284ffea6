"""Whole runs, as a user makes them."""

import html
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import Command
from mlops import checkpoint
from samples import ON_CPU, QUICK, ROOT


def only_run(workplace: Path) -> Path:
    (folder,) = (workplace / "outputs").glob("*/*")
    return folder


def test_a_run_leaves_what_the_contract_says(pictures: Path, workplace: Path, hydra_command: Command):
    done = hydra_command("train", *QUICK, f"data.root={pictures}", "model.dropout=0.1")
    assert done.code == 0, done.err
    folder = only_run(workplace)
    assert {path.name for path in folder.iterdir()} == {
        ".hydra",
        ".lock",
        "best_model.pth",
        "last.pth",
        "metrics.jsonl",
        "report",
        "train.log",
    }
    assert {path.name for path in (folder / "report").iterdir()} == {
        *("index.html", "test.json"),
        *("curves.png", "confusion_matrix.png", "per_class.png", "reliability.png"),
    }
    for shown in ("test accuracy", str(Path("models/latest/best_model.pth")), "report", "train.log", "mlops evaluate"):
        assert shown in done.out
    assert "epoch 3/3" in (folder / "train.log").read_text()

    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    wanted = {
        "train_loss",
        "val_loss",
        "train_Accuracy",
        "val_Accuracy",
        "val_Precision",
        "val_Recall",
        "val_F1",
        "epoch",
    }
    assert set(history[0]) >= wanted

    loaded = checkpoint.read(folder / "best_model.pth")
    story = loaded.metadata
    best = max(history, key=lambda row: (row["val_Accuracy"], -row["val_loss"]))
    assert story["history"] == history
    assert story["epoch"] == best["epoch"]
    assert story["metrics"].items() >= best.items()
    assert story["step"] == 3 * best["epoch"]
    assert story["classes"] == ["blue", "green", "red"]
    assert story["config"]["training"]["threads"] == story["environment"]["threads"] == torch.get_num_threads()
    assert story["config"]["model"] == {"_target_": "mlops.models.SignNet", "width": 8, "dropout": 0.1}
    assert story["data"]["name"] == "pictures"
    assert set(story) == {
        *(
            "format",
            "config",
            "classes",
            "input",
            "metrics",
            "history",
            "epoch",
            "step",
            "epoch_digests",
            "start",
            "data",
        ),
        *("code", "environment", "created", "temperature", "reference", "weights_digest", "digest", "overrides"),
    }
    assert 0.1 <= story["temperature"] <= 10
    assert story["overrides"] == [*QUICK, f"data.root={pictures}", "model.dropout=0.1"]
    scores = json.loads((folder / "report" / "test.json").read_text())
    assert (scores["n"], scores["accuracy"]) == (12, story["metrics"]["test_Accuracy"])
    latest = workplace / "models" / "latest" / "best_model.pth"
    assert latest.read_bytes() == (folder / "best_model.pth").read_bytes()


def test_the_temperature_is_fitted_on_validation_and_calibrates_the_test_split(workplace: Path, hydra_command: Command):
    more = ["training.epochs=2", "training.label_smoothing=0.3", "tracking=off", "promote=false"]
    assert hydra_command("train", *more).code == 0
    scores = json.loads((only_run(workplace) / "report" / "test.json").read_text())
    story = checkpoint.read_metadata(only_run(workplace) / "best_model.pth")
    # Smoothed labels teach a network to be less sure than it is right.
    assert scores["temperature"] == story["temperature"] < 0.9
    assert scores["ece"] == story["metrics"]["test_ECE"] < scores["ece_before"] / 2


@pytest.mark.slow
def test_the_command_in_the_report_makes_the_same_weights_again(
    pictures: Path, workplace: Path, hydra_command: Command
):
    assert hydra_command("train", *QUICK, f"data.root={pictures}", "data.group=^[^_]+", "training.epochs=2").code == 0
    (first,) = workplace.glob("outputs/*/*/best_model.pth")
    page = html.unescape((first.parent / "report" / "index.html").read_text())
    command = (
        page[page.index("python -m mlops.train") :].split("</pre>")[0].replace("\\\n", "")
    )  # as a shell joins lines
    assert hydra_command("train", *shlex.split(command)[3:]).code == 0
    (second,) = set(workplace.glob("outputs/*/*/best_model.pth")) - {first}
    one, same = weights(first), weights(second)
    assert all(torch.equal(one[name], same[name]) for name in one)
    told = [checkpoint.read_metadata(path)["overrides"] for path in (first, second)]
    assert told[1] == [*told[0], f"training.threads={torch.get_num_threads()}"]


def weights(file: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(file).state_dict


@pytest.mark.slow
def test_the_same_command_twice_gives_the_same_weights_bit_for_bit(
    pictures: Path, workplace: Path, hydra_command: Command
):
    for outputs, seed in (("one", 0), ("same", 0), ("other", 1)):
        overrides = (f"data.root={pictures}", f"seed={seed}", f"paths.outputs={outputs}")
        assert hydra_command("train", *QUICK, *overrides).code == 0
    one, same, other = (
        weights(*workplace.glob(f"{outputs}/*/*/best_model.pth")) for outputs in ("one", "same", "other")
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_the_best_epoch_is_judged_by_the_monitor(pictures: Path, workplace: Path, hydra_command: Command):
    more = [
        "training.monitor=val_loss",
        "training.epochs=6",
        "training.optimizer.lr=0.3",
        "training.schedule.name=constant",
    ]
    assert hydra_command("train", *QUICK, f"data.root={pictures}", *more).code == 0
    story = checkpoint.read_metadata(only_run(workplace) / "best_model.pth")
    losses = [row["val_loss"] for row in story["history"]]
    assert story["epoch"] == 1 + losses.index(min(losses))


@pytest.mark.parametrize("more", [["debug=smoke"], ["--multirun", "seed=0,1"]], ids=["debug", "sweep"])
def test_a_debug_run_and_a_trial_of_a_sweep_do_not_replace_the_latest_model(
    more: list[str], pictures: Path, workplace: Path, hydra_command: Command
):
    done = hydra_command("train", *QUICK, f"data.root={pictures}", *more)
    assert done.code == 0, done.err
    runs = list((workplace / "outputs").glob("*/*/best_model.pth"))
    assert len(runs) == (2 if "--multirun" in more else 1)
    assert not (workplace / "models").exists()


def test_smoke_sees_two_batches_of_everything(pictures: Path, workplace: Path, hydra_command: Command):
    assert hydra_command("train", *QUICK, f"data.root={pictures}", "debug=smoke", "training.batch_size=4").code == 0
    assert checkpoint.read_metadata(only_run(workplace) / "best_model.pth")["config"]["training"]["limit_batches"] == 2
    story = checkpoint.read_metadata(only_run(workplace) / "best_model.pth")
    assert story["step"] == 2 * story["epoch"]


def test_a_limit_of_batches_holds_for_evaluation_too(workplace: Path, hydra_command: Command):
    done = hydra_command("train", "training.limit_batches=1", "training.epochs=1", "tracking=off", "promote=false")
    assert done.code == 0, done.err
    assert json.loads((only_run(workplace) / "report" / "test.json").read_text())["n"] == 256  # of 362


@pytest.mark.slow
def test_overfit_brings_one_batch_to_zero_loss(workplace: Path, hydra_command: Command):
    done = hydra_command("train", "debug=overfit", "tracking=off")
    assert done.code == 0, done.err
    last = json.loads((only_run(workplace) / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["val_loss"] < 0.01
    assert last["val_Accuracy"] == 1.0


def test_overfit_says_so_when_a_network_cannot_learn(workplace: Path, hydra_command: Command):
    done = hydra_command("train", "debug=overfit", "tracking=off", "training.epochs=3", "training.optimizer.lr=1e-9")
    assert done.code == 2
    assert "the loss is still 2." in done.err


def test_all_mistakes_are_reported_at_once_and_no_run_folder_is_made(workplace: Path, hydra_command: Command):
    done = hydra_command(
        "train",
        "sed=1",
        "training.optimizer.lr=abc",
        "training.batch_size=-4",
        "model.widht=3",
        "data=digit",
        "a=[1,",
        "foo",
    )
    assert done.code == 2
    assert len(done.errors) == 7
    for problem in (
        "foo: is not `key=value`",
        "a=[1,: is not `key=value`",
        "data=digit: no such choice; did you mean data=digits?",
        "sed=1: no such key; did you mean seed?",
        "training.batch_size=-4: must be at least 1",
        "training.optimizer.lr=abc: must be a number",
        "model.widht=3: mlops.models.SignNet takes no such parameter; did you mean model.width?",
    ):
        assert any(line.startswith(problem) for line in done.errors), (problem, done.errors)
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["training.optimizer.lr=-1"],
            "training.optimizer: torch.optim.AdamW cannot be built: Invalid learning rate: -1",
        ),
        (["model.width=0"], "model: mlops.models.SignNet cannot be built"),
        (["model=tinycnn", "data.image_size=7"], "image_size=7: must be at least 8"),
        (["data=folder"], "data.root=null: data.source=folder needs a folder"),
        (["--multirun", "seed=0,-1"], "seed=-1: must be at least 0"),
        (["--multirun", "model=signnet,tinycn"], "model=tinycn: no such choice; did you mean model=tinycnn?"),
        (["training.device=${nothing}"], "Interpolation key 'nothing' not found"),
    ],
)
def test_a_mistake_costs_no_run(overrides: list[str], problem: str, workplace: Path, hydra_command: Command):
    done = hydra_command("train", *overrides)
    assert done.code == 2
    assert len(done.errors) == 1
    assert problem in done.errors[0]
    assert list(workplace.iterdir()) == []


def test_a_head_of_another_size_is_refused_before_images_are_decoded(
    pictures: Path, workplace: Path, hydra_command: Command
):
    done = hydra_command("train", *QUICK, f"data.root={pictures}", "model.num_classes=7")
    assert done.code == 2
    assert done.errors == [
        "model: mlops.models.SignNet gives (2, 7) for 2 images, but there are 3 classes, which needs (2, 3); "
        "leave out model.num_classes or set it to 3"
    ]
    assert not (workplace / "data").exists()


def test_a_parameter_that_the_target_takes_needs_no_plus(pictures: Path, workplace: Path, hydra_command: Command):
    more = [
        "training.optimizer._target_=torch.optim.SGD",
        "training.optimizer.momentum=0.9",
        "training.optimizer.nesterov=true",
    ]
    assert hydra_command("train", *QUICK, f"data.root={pictures}", *more).code == 0
    optimizer = checkpoint.read_metadata(only_run(workplace) / "best_model.pth")["config"]["training"]["optimizer"]
    assert optimizer["momentum"] == 0.9


def test_a_loss_that_is_not_finite_ends_the_run_with_one_line(pictures: Path, workplace: Path, hydra_command: Command):
    more = [
        "training.optimizer._target_=torch.optim.SGD",
        "training.optimizer.lr=1e38",
        "training.schedule.name=constant",
    ]
    done = hydra_command("train", *QUICK, f"data.root={pictures}", *more)
    assert done.code == 2
    assert "the loss is " in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("flags", [["--cfg", "job", "--resolve"], ["--help"]])
def test_hydras_own_flags_work(flags: list[str], workplace: Path, hydra_command: Command):
    done = hydra_command("train", *flags)
    assert done.code == 0
    assert "batch_size" in done.out
    if "--help" in flags:
        assert "share of unreadable images that may be skipped" in done.out
        assert "data: cifar10, csv, digits, folder, gtsrb, torchvision" in done.out


def start(module: str, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", module, *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.slow
def test_it_also_runs_as_src_mlops_train_from_the_repository(tmp_path: Path):
    paths = [f"paths.{name}={tmp_path / name}" for name in ("processed", "outputs", "models")]
    overrides = [*ON_CPU, "debug=smoke", "tracking=off", *paths]
    done = subprocess.run(
        [sys.executable, "-m", "src.mlops.train", *overrides], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "outputs").glob("*/*/best_model.pth"))) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM: it ends a process unasked")
@pytest.mark.parametrize(
    ("how", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130)],
)
@pytest.mark.slow  # SIGTERM to a process of its own is tried in test_tasks.py too
def test_a_stopped_run_exits_with_the_signals_code_and_leaves_no_process(
    how: signal.Signals, code: int, pictures: Path, workplace: Path
):
    quick = [setting for setting in QUICK if not setting.startswith(("training.epochs", "tracking"))]
    run = start("mlops.train", *quick, f"data.root={pictures}", "training.epochs=100000")
    try:
        deadline = time.monotonic() + 120
        while not list(workplace.glob("outputs/*/*/best_model.pth")) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(run.pid, how)
        _, err = run.communicate(timeout=60)
    finally:
        run.kill()
        run.communicate()
    assert run.returncode == code, err
    assert "Traceback" not in err
    for name in ("best_model.pth", "last.pth"):
        checkpoint.read(only_run(workplace) / name)
    assert not list(workplace.rglob("*.tmp"))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(run.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a process of the run is still there")


def test_a_key_that_is_called_as_its_entrypoint_is_no_key(hydra_command: Command):
    (error,) = hydra_command("train", "train.epochs=5").errors
    assert error.startswith("train={'epochs': 5}: no such key")
