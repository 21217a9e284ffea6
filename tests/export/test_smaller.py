"""`mlops export --quantize` and `--prune`, as a user types them."""

import json
import shutil
from pathlib import Path

import pytest

from conftest import Command
from mlops import checkpoint, onnx_file
from mlops.data.prepare import open_prepared
from mlops.export.candidates import open_candidate, own_images
from mlops.inference import OnnxModel
from samples import QUICK, png, write_pictures


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures and the checkpoint of a short training on them."""
    import subprocess
    import sys

    work = tmp_path_factory.mktemp("smaller")
    write_pictures(work / "pictures")
    settings = [setting for setting in QUICK if "epochs" not in setting]
    command = [sys.executable, "-m", "mlops.train", *settings, "training.epochs=6", f"data.root={work / 'pictures'}"]
    subprocess.run([*command, "data.split.val=0.4"], cwd=work, check=True, capture_output=True)
    shutil.copy(work / "models" / "latest" / "best_model.pth", work / "best_model.pth")
    return work


@pytest.fixture
def mlops(mlops_command: Command, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(trained)
    return mlops_command


def test_a_quantised_model_says_what_it_was_calibrated_on_and_what_that_cost(mlops: Command, tmp_path: Path):
    file = tmp_path / "m.onnx"
    done = mlops("export", "best_model.pth", "-o", file, "--quantize", "int8")
    assert (done.code, done.errors) == (0, [])
    told = onnx_file.read(file).metadata
    count = checkpoint.read_metadata(Path("best_model.pth"))["data"]["counts"]["val"]
    quantized = told["quantized"]
    assert (quantized["to"], quantized["calibrated_on"]) == ("int8", count // 2)
    assert quantized["accuracy"]["images"] == count - count // 2
    assert quantized["accuracy"]["of"] == "validation images"
    assert quantized["accuracy"]["before"] - quantized["accuracy"]["after"] <= 0.005
    assert told["parity"]["native"]["agreement"] >= 0.95
    assert told["parity"]["resized"]["agreement"] >= 0.9
    assert told["parity"]["native"]["largest_difference"] > 1e-5
    assert f"int8, calibrated on {count // 2} images; accuracy" in done.out
    assert "mlops bench CHECKPOINT" in done.out
    assert OnnxModel.read(file).classes == ["blue", "green", "red"]


@pytest.mark.slow
def test_bench_scores_no_file_on_what_calibrated_one_and_reads_shared_images_once(mlops: Command, tmp_path: Path):
    whole, small = tmp_path / "whole.onnx", tmp_path / "small.onnx"
    assert mlops("export", "best_model.pth", "-o", whole).code == 0
    assert mlops("export", "best_model.pth", "-o", small, "--quantize", "int8").code == 0
    rows = onnx_file.read(small).metadata["quantized"]["calibration_rows"]
    (folder,) = Path("data/processed").glob("pictures-*")
    prepared = open_prepared(folder)
    rest = sorted(set(range(len(prepared.labels("val")))).difference(rows))
    models = [open_candidate(file, file.name, 1, ()) for file in (whole, small)]
    first, second = own_images(models, Path("data/processed"))
    assert first is not None
    assert second is first
    assert (first.images == prepared.images("val")[rest]).all()
    assert (first.labels == prepared.labels("val")[rest]).all()
    (alone,) = own_images(models[:1], Path("data/processed"))
    assert alone is not None
    assert len(alone.labels) == len(rest) + len(rows)
    told = json.loads(mlops("bench", whole, small, "best_model.pth", "--rounds", "1", "--json").out)
    assert [row["images"] for row in told["models"]] == [len(rest)] * 3


def test_calibration_may_be_on_other_images_with_or_without_classes(mlops: Command, tmp_path: Path):
    file = tmp_path / "m.onnx"
    assert mlops("export", "best_model.pth", "-o", file, "--quantize", "int8", "--data", "pictures").code == 0
    quantized = onnx_file.read(file).metadata["quantized"]
    assert (quantized["calibrated_on"], quantized["accuracy"]["images"]) == (30, 30)
    assert quantized["calibration_rows"] is None
    (tmp_path / "unsorted").mkdir()
    for number in range(24):
        (tmp_path / "unsorted" / f"{number}.png").write_bytes(png(number))
    options = ("--quantize", "int8", "--data", tmp_path / "unsorted", "--allow-loss", "100")
    done = mlops("export", "best_model.pth", "-o", file, *options)
    assert done.code == 0, done.err
    quantized = onnx_file.read(file).metadata["quantized"]
    assert quantized["accuracy"] is None
    assert (quantized["images"], quantized["of"]) == (12, "given images")
    assert "of 12 given images get the same class" in done.out


def test_what_costs_more_than_is_allowed_is_not_written(
    mlops: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from mlops.export import smaller

    file = tmp_path / "m.onnx"
    file.write_bytes(b"the old one")
    really = smaller.scores
    worse = {"before": 0.985, "after": 0.97, "images": 24, "of": "validation images"}
    monkeypatch.setattr("mlops.export.run.scores", lambda *given: really(*given) | {"accuracy": worse})
    done = mlops("export", "best_model.pth", "-o", file, "--quantize", "int8")
    assert done.code == 2
    assert done.errors == [
        "--quantize=int8: the accuracy falls from 98.50% to 97.00% on 24 validation images, by 1.50 points, more than "
        "--allow-loss=0.5; nothing was written; allow more"
    ]
    assert file.read_bytes() == b"the old one"
    assert mlops("export", "best_model.pth", "-o", file, "--quantize", "int8", "--allow-loss", "1.5").code == 0


def test_a_pruned_model_is_smaller_trained_again_and_compared_with_what_it_has_become(
    mlops: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    options = ("--prune", "0.5", "--finetune-epochs", "2", "--allow-loss", "100")
    held = checkpoint.read(Path("best_model.pth"))
    # Drift statistics fill it, of what the whole network answers.
    told = {key: value for key, value in held.metadata.items() if key != "digest"} | {"reference": {"of": "all"}}
    checkpoint.save(Path("with_reference.pth"), held.state_dict, told)
    assert mlops("export", "with_reference.pth", "-o", tmp_path / "whole.onnx").code == 0
    assert onnx_file.read(tmp_path / "whole.onnx").metadata["reference"] == {"of": "all"}
    done = mlops("export", "with_reference.pth", "-o", tmp_path / "m.onnx", *options)
    assert (done.code, done.errors) == (0, [])
    told, story = onnx_file.read(tmp_path / "m.onnx").metadata, checkpoint.read_metadata(Path("best_model.pth"))
    pruned = told["pruned"]
    assert told["reference"] is None
    assert (pruned["share"], pruned["epochs"], pruned["seed"]) == (0.5, 2, 0)
    assert pruned["weights"]["after"] < 0.5 * pruned["weights"]["before"]
    assert pruned["accuracy"]["images"] == story["data"]["counts"]["val"]
    assert pruned["accuracy"]["before"] == pytest.approx(story["metrics"]["val_Accuracy"])
    assert told["metrics"]["val_Accuracy"] == pruned["accuracy"]["after"]
    assert "test_Accuracy" not in told["metrics"]
    assert told["temperature"] != story["temperature"]
    assert told["parity"]["native"]["largest_difference"] <= 1e-5
    assert "fine-tuning: epoch 2/2" in caplog.text
    assert "50% of the channels" in done.out


@pytest.mark.slow
def test_both_go_together_and_come_out_the_same_bit_for_bit(mlops: Command, tmp_path: Path):
    first, second = tmp_path / "1.onnx", tmp_path / "2.onnx"
    options = ("--prune", "0.5", "--finetune-epochs", "1", "--allow-loss", "100", "--quantize", "int8")
    for file in (first, second):
        assert mlops("export", "best_model.pth", "-o", file, *options).code == 0
    assert {"pruned", "quantized"} <= set(onnx_file.read(first).metadata)
    assert second.read_bytes() == first.read_bytes()


def test_without_the_data_neither_is_tried(mlops_command: Command, trained: Path, tmp_path: Path, workplace: Path):
    story = checkpoint.read_metadata(trained / "best_model.pth")
    story["config"]["data"]["root"] = str(tmp_path / "gone")
    held = checkpoint.read(trained / "best_model.pth").state_dict
    checkpoint.save(Path("alone.pth"), held, {key: value for key, value in story.items() if key != "digest"})
    for option, value in (("--quantize", "int8"), ("--prune", "0.5")):
        done = mlops_command("export", "alone.pth", option, value)
        assert done.code == 2
        assert done.errors[0].startswith(option)
        assert str(tmp_path / "gone") in done.errors[0]
        assert not Path("model.onnx").exists()


def test_too_few_images_to_calibrate_on_are_refused(mlops: Command, tmp_path: Path):
    (tmp_path / "few").mkdir()
    for number in range(5):
        (tmp_path / "few" / f"{number}.png").write_bytes(png(number))
    done = mlops(
        "export", "best_model.pth", "-o", tmp_path / "m.onnx", "--quantize", "int8", "--data", tmp_path / "few"
    )
    assert done.errors == [
        "--quantize=int8: 5 given images are too few, half to calibrate on and half to score; name a folder of 20 or "
        "more with --data"
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--quantize", "int4"), "--quantize=int4: must be int8"),
        (("--prune", "1"), "--prune=1: must be above 0 and below 1, the share of channels to take out"),
        (("--prune", "nan"), "--prune=nan: must be above 0 and below 1, the share of channels to take out"),
        (("--prune", "0.3", "--finetune-epochs", "0"), "--finetune-epochs=0: must be at least 1"),
        (("--allow-loss", "-1"), "--allow-loss=-1: must be from 0 to 100, points of accuracy"),
    ],
)
def test_what_is_out_of_range_is_said_before_any_work(options: tuple[str, ...], problem: str, mlops_command: Command):
    assert mlops_command("export", "none.pth", *options).errors == [problem]
