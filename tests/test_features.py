"""What a trainer expects, switched on by a config as a user does it, and what it leaves in the checkpoint."""

import json
import re
from pathlib import Path

import hydra
import pytest
import torch
import torchvision
from omegaconf import OmegaConf

from conftest import Command
from mlops import checkpoint
from mlops.checkpoint import read_metadata, rebuild
from mlops.config import check, check_targets
from mlops.entrypoint import register
from mlops.targets import MODELS, OPTIMIZERS, read_allowed
from samples import COLOURS, QUICK, ROOT, png

LATEST = Path("models/latest/best_model.pth")
SQUEEZENET = [setting for setting in QUICK if not setting.startswith(("model.", "data.image_size"))]
SQUEEZENET += [
    "model._target_=torchvision.models.squeezenet1_1",
    "~model.width",
    "~model.dropout",
    "data.image_size=32",
]


def test_transfer_learning_starts_from_a_file_and_rebuilding_does_not_ask_for_it(
    pictures: Path, workplace: Path, hydra_command: Command, mlops_command: Command
):
    torch.manual_seed(0)
    given = torchvision.models.squeezenet1_1().state_dict()
    torch.save(given, "start.pth")
    settings = [*SQUEEZENET, f"data.root={pictures}", "model.weights=start.pth", "training.epochs=2"]
    done = hydra_command("train", *settings, "training.freeze_epochs=2")
    assert done.code == 0, done.err
    kept = checkpoint.read(LATEST)
    assert set(kept.metadata["start"]) == {"weights", "sha256"}
    assert kept.metadata["start"]["weights"] == "start.pth"
    # Frozen for the whole run: the backbone is still what the file held, and the head is not.
    assert all(torch.equal(t, given[n]) for n, t in kept.state_dict.items() if not n.startswith("classifier.1."))
    assert kept.state_dict["classifier.1.weight"].shape == (3, 512, 1, 1)
    assert kept.metadata["input"]["mean"] == [0.485, 0.456, 0.406]
    (workplace / "start.pth").unlink()
    rebuild(checkpoint.read(LATEST), MODELS | OPTIMIZERS)
    assert f"start.pth, SHA-256 {kept.metadata['start']['sha256'][:12]}" in mlops_command("info").out
    assert mlops_command("evaluate", LATEST, "--json", "-").code == 0


def test_a_run_goes_on_from_a_checkpoint_of_another(pictures: Path, workplace: Path, hydra_command: Command):
    settings = [*QUICK, f"data.root={pictures}"]
    assert hydra_command("train", *settings).code == 0
    LATEST.rename("first.pth")
    done = hydra_command(
        "train", *settings, "model.weights=first.pth", "training.optimizer.lr=1e-12", "training.epochs=1"
    )
    assert done.code == 0, done.err
    first, second = checkpoint.read(Path("first.pth")), checkpoint.read(LATEST)
    torch.testing.assert_close(second.state_dict["head.weight"], first.state_dict["head.weight"])
    assert second.metadata["input"] == first.metadata["input"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["training.freeze_epochs=4", "model.weights=x"], "training.freeze_epochs=4: is more than training.epochs=3"),
        (["training.freeze_epochs=1"], "training.freeze_epochs=1: model.weights=null leaves nothing worth keeping"),
        (["model.weights=nothing.pth"], "model.weights=nothing.pth: is no file here, nor published weights"),
        (["model.weights=3"], "model.weights=3: must be the name of published weights, a file or null"),
        (
            ["model=resnet18", "~model.width", "model.weights=IMAGENET"],
            "published weights of this network (DEFAULT, IMAGENET1K_V1)",
        ),
        (
            ["training.accumulate=7"],
            "training.accumulate=7: leaves fewer than 2 of training.batch_size=12 images a part",
        ),
        (["training.ema=1"], "training.ema=1: must be below 1"),
        (["training.class_weights=equal"], "training.class_weights=equal: must be one of balanced or null"),
        (["augment.mixup=-1"], "augment.mixup=-1: must be at least 0"),
    ],
)
def test_a_mistake_costs_no_run(
    overrides: list[str], problem: str, pictures: Path, workplace: Path, hydra_command: Command
):
    settings = QUICK if "model=resnet18" not in overrides else [s for s in QUICK if s != "model.width=8"]
    overrides = [override for override in overrides if override != "~model.width"]
    done = hydra_command("train", *settings, f"data.root={pictures}", *overrides)
    assert done.code == 2
    assert any(problem in line for line in done.errors), done.errors
    assert list(workplace.iterdir()) == []


def test_start_weights_of_another_width_cost_no_run_folder_of_weights(
    pictures: Path, workplace: Path, hydra_command: Command
):
    assert hydra_command("train", *QUICK, f"data.root={pictures}", "training.epochs=1").code == 0
    done = hydra_command("train", *QUICK, f"data.root={pictures}", f"model.weights={LATEST}", "model.width=16")
    assert done.code == 2
    (line,) = done.errors
    assert line.startswith(
        f"model.weights={LATEST}: do not fit SignNet: stem.0.weight is [8, 3, 3, 3], not [16, 3, 3, 3]"
    )


@pytest.mark.slow
def test_everything_at_once_trains_and_is_a_function_of_the_seed(
    pictures: Path, workplace: Path, hydra_command: Command
):
    every = [
        *QUICK,
        f"data.root={pictures}",
        "training.ema=0.9",
        "training.clip_norm=1",
        "training.accumulate=2",
        "training.class_weights=balanced",
        "training.precision=fp16",
        "training.patience=5",
        *("augment.blur=1", "augment.noise=0.05", "augment.erase=0.2", "augment.mixup=0.4", "augment.cutmix=1"),
    ]
    kept = []
    for _ in range(2):
        assert hydra_command("train", *every).code == 0
        kept.append(checkpoint.read(LATEST))
    assert kept[0].metadata["environment"]["precision"] == "fp16"
    assert all(torch.equal(kept[0].state_dict[n], kept[1].state_dict[n]) for n in kept[0].state_dict)
    # Mixed images are learned from, and their labels are the ones that metrics are counted by.
    assert 0 < kept[0].metadata["history"][0]["train_Accuracy"] <= 1


def test_what_is_kept_with_a_moving_average_is_the_average(pictures: Path, workplace: Path, hydra_command: Command):
    settings = [*QUICK, f"data.root={pictures}", "training.epochs=1"]
    weights = []
    for more in ([], ["training.ema=0.99"]):
        assert hydra_command("train", *settings, *more).code == 0
        weights.append(checkpoint.read(LATEST).state_dict["head.weight"])
    assert not torch.equal(*weights)
    # Three steps: the average of the first ones lies near the weights but is not them.
    torch.testing.assert_close(*weights, atol=0.1, rtol=0)


def test_patience_ends_a_run_that_gets_no_better(pictures: Path, workplace: Path, hydra_command: Command):
    settings = [s for s in QUICK if not s.startswith("training.epochs")]
    more = ["training.epochs=50", "training.patience=2", "training.optimizer.lr=1e-12"]
    done = hydra_command("train", *settings, f"data.root={pictures}", *more)
    assert done.code == 0, done.err
    story = read_metadata(LATEST)
    (log,) = workplace.glob("outputs/*/*/metrics.jsonl")
    epochs = len(log.read_text().splitlines())
    assert epochs == story["epoch"] + 2 < 50
    assert "no better for 2 epochs" in done.err


@pytest.mark.slow
def test_profile_leaves_a_table_and_a_trace(workplace: Path, hydra_command: Command):
    done = hydra_command("train", "debug=profile", "tracking=off", "data.limit=1000", "training.batch_size=32")
    assert done.code == 0, done.err
    (folder,) = workplace.glob("outputs/*/*/profile")
    table = (folder / "table.txt").read_text()
    assert all(name in table for name in ("step", "batch: cut, augment, normalise", "aten::convolution_backward"))
    assert table in done.out
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "step" for event in events) == 10
    assert not (workplace / "models").exists()


@pytest.mark.slow
def test_a_profile_longer_than_the_run_says_so(workplace: Path, hydra_command: Command):
    for batches in (1, 3):
        done = hydra_command("train", "debug=profile", "tracking=off", f"training.limit_batches={batches}")
        assert done.code == 0, done.err
        assert f"warning: training.profile=10: takes 15 steps and the run had {batches}" in done.err


RECIPES = sorted(path.stem for path in (ROOT / "configshydra" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_opens_with_its_command_its_time_and_its_result(recipe: str):
    head = (ROOT / "configshydra" / "experiment" / f"{recipe}.yaml").read_text().split("defaults:")[0]
    assert f"invoke train -o experiment={recipe}" in head
    assert re.search(r"\d+ (s|seconds|minutes|hours)\b", head)
    assert (
        "means of 3 seeds, benchmarks/accuracy.py" in head or "Result: not measured, the data was not at hand" in head
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in ("gtsrb", "cifar10")])
def test_a_fine_tuning_recipe_runs_on_any_folder(recipe: str, pictures: Path, workplace: Path, hydra_command: Command):
    torch.manual_seed(0)
    network = {"eyes": "efficientnet_v2_s", "cats_dogs": "resnet18"}[recipe]
    torch.save(getattr(torchvision.models, network)().state_dict(), "published.pth")
    small = ["data.image_size=32", "data.split.val=0.2", "data.split.test=0.2", "training.batch_size=12"]
    done = hydra_command(
        *("train", f"experiment={recipe}", f"data.root={pictures}", "model.weights=published.pth", "debug=smoke"),
        *(*small, "training.threads=2", "tracking=off"),
    )
    assert done.code == 0, done.err
    (file,) = workplace.glob("outputs/*/*/best_model.pth")
    assert read_metadata(file)["config"]["training"]["freeze_epochs"] == 1


MENU = {
    group: sorted(path.stem for path in (ROOT / "configshydra" / group).glob("*.yaml"))
    for group in ("model", "training", "augment", "data", "experiment", "debug")
}
COMBINATIONS = [
    *([f"{group}={choice}"] for group in ("model", "training", "augment", "data") for choice in MENU[group]),
    *([f"experiment={recipe}", f"debug={debug}"] for recipe in RECIPES for debug in MENU["debug"]),
]


@pytest.mark.parametrize("choices", COMBINATIONS, ids=" ".join)
def test_every_choice_of_the_menu_composes_into_a_config_without_a_mistake(choices: list[str]):
    register()
    needs = ["data.root=x", "++model.weights=null", "training.freeze_epochs=0"]
    needs += ["data.dataset=MNIST"] if choices == ["data=torchvision"] else []
    with hydra.initialize_config_dir(str(ROOT / "configshydra"), version_base="1.3"):
        raw = OmegaConf.to_container(hydra.compose("config", [*choices, *needs]), resolve=True)
    raw.pop("hydra", None)
    assert check(raw) == []
    assert check_targets(raw, read_allowed(ROOT / "configshydra")) == []
    if "debug=overfit" in choices:
        assert set(raw["augment"].values()) == {0.0}
        assert raw["training"]["patience"] is None


def test_a_part_of_a_batch_is_never_a_single_image(pictures: Path, workplace: Path, hydra_command: Command):
    # 36 training images in batches of 13: with parts of one image, batch norm at one pixel would fail.
    settings = [*QUICK, f"data.root={pictures}", "training.batch_size=13", "training.accumulate=6", "training.epochs=1"]
    done = hydra_command("train", *settings)
    assert done.code == 0, done.err


@pytest.mark.slow
def test_patience_waits_for_a_frozen_backbone(pictures: Path, workplace: Path, hydra_command: Command):
    assert hydra_command("train", *QUICK, f"data.root={pictures}", "training.epochs=1").code == 0
    LATEST.rename("first.pth")
    more = ["model.weights=first.pth", "training.freeze_epochs=5", "training.patience=1", "training.optimizer.lr=1e-12"]
    done = hydra_command("train", *QUICK, f"data.root={pictures}", "training.epochs=20", *more)
    assert done.code == 0, done.err
    logs = sorted(workplace.glob("outputs/*/*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    assert 6 <= len(logs[-1].read_text().splitlines()) < 12


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
def test_a_compiled_run_thaws_averages_and_accumulates(pictures: Path, workplace: Path, hydra_command: Command):
    assert hydra_command("train", *QUICK, f"data.root={pictures}", "training.epochs=1").code == 0
    start = checkpoint.read(LATEST).state_dict
    LATEST.rename("first.pth")
    more = ["training.compile=true", "training.ema=0.5", "training.accumulate=2", "training.clip_norm=1"]
    more += ["model.weights=first.pth", "training.freeze_epochs=1", "training.monitor=train_loss"]
    done = hydra_command("train", *QUICK, f"data.root={pictures}", *more)
    assert done.code == 0, done.err
    kept = checkpoint.read(LATEST)
    assert list(kept.state_dict) == list(start)  # no names of the compiler's
    assert kept.metadata["epoch"] > 1
    assert not torch.equal(kept.state_dict["stem.0.weight"], start["stem.0.weight"])


@pytest.mark.slow
def test_a_new_model_does_not_stand_beside_the_report_of_the_one_before(
    pictures: Path, workplace: Path, hydra_command: Command, mlops_command: Command
):
    settings = [*QUICK, f"data.root={pictures}", "training.epochs=1"]
    assert hydra_command("train", *settings).code == 0
    assert mlops_command("report").code == mlops_command("report", "--split", "val").code == 0
    assert (LATEST.parent / "report" / "index.html").exists()
    assert (LATEST.parent / "report-val" / "index.html").exists()
    assert hydra_command("train", *settings, "seed=1").code == 0
    assert [path.name for path in LATEST.parent.iterdir()] == ["best_model.pth"]


def test_a_checkpoint_does_not_choose_what_is_downloaded_and_where_to(
    pictures: Path, workplace: Path, hydra_command: Command, mlops_command: Command
):
    assert hydra_command("train", *QUICK, f"data.root={pictures}", "training.epochs=1").code == 0
    kept = checkpoint.read(LATEST)
    data = kept.metadata["config"]["data"] | {
        "source": "torchvision",
        "dataset": "Food101",
        "downloads": str(workplace / "theirs"),
    }
    story = kept.metadata | {"config": kept.metadata["config"] | {"data": data}}
    story["data"] = story["data"] | {"name": "elsewhere"}
    checkpoint.save(Path("theirs.pth"), kept.state_dict, story)
    done = mlops_command("evaluate", "theirs.pth")
    assert done.code == 2
    assert done.errors == [
        "data/downloads: does not hold torchvision's Food101, the data of this checkpoint; fetch it with: "
        "invoke preprocess-data -o data=torchvision -o data.dataset=Food101"
    ]
    assert not (workplace / "theirs").exists()
    assert not (workplace / "data" / "downloads").exists()


def test_two_classes_of_a_table_of_labels_can_be_mixed(workplace: Path, hydra_command: Command):
    rows = ["path,label"]
    for number in range(30):
        name, colour = ("eye open", COLOURS["red"]) if number % 2 else ("eye, shut", COLOURS["blue"])
        (workplace / "set").mkdir(exist_ok=True)
        (workplace / "set" / f"{number}.png").write_bytes(png(number, colour=colour))
        rows.append(f'{number}.png,"{name}"')
    (workplace / "set" / "labels.csv").write_text("\n".join(rows))
    settings = [s for s in QUICK if s != "data=folder"]
    done = hydra_command("train", "data=csv", "data.root=set", *settings, "augment.mixup=0.4", "training.epochs=15")
    assert done.code == 0, done.err
    story = read_metadata(LATEST)
    assert story["classes"] == ["eye open", "eye, shut"]
    assert story["metrics"]["val_Accuracy"] > 0.8
