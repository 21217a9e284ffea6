import csv
import dataclasses
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from conftest import Command
from mlops import checkpoint, config, onnx_file, targets
from mlops.data.prepare import build_index, prepare
from mlops.models.build import build_model
from mlops.provenance import describe_code, describe_environment
from mlops.training.record import describe_epoch, describe_run
from samples import COLOURS, png

SIZE = 12


def write_checkpoint(work: Path, **data: object) -> Path:
    """An untrained network on `work/pictures`, that answers differently for different pictures."""
    raw = config.complete({"data": {"source": "folder", "root": str(work / "pictures"), "image_size": SIZE, **data}})
    settings = config.load(raw | {"model": {"_target_": "mlops.models.TinyCNN", "width": 4, "hidden": 8}})
    prepared = prepare(build_index(settings.data), work / "data" / "processed")
    model = build_model(settings.model, targets.MODELS, num_classes=3, image_size=SIZE, channels_last=True)
    with torch.no_grad():
        model.head[-1].weight.mul_(20)
    code, environment = describe_code(), describe_environment("cpu", 1, "fp32")
    story = describe_run(settings, prepared, overrides=[], code=code, environment=environment, start=None)
    story["input"] |= {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    story |= describe_epoch({}, [], 1) | {"epoch_digests": []}
    checkpoint.save(work / "best_model.pth", model.state_dict(), story | {"temperature": 1.7})
    return work / "best_model.pth"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of many sizes, a checkpoint on them, and its export as model.onnx."""
    work = tmp_path_factory.mktemp("export")
    for index, (name, colour) in enumerate(COLOURS.items()):
        (work / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            file = work / "pictures" / name / f"{number:02}.png"
            file.write_bytes(png(100 * index + number, size=(10 + 3 * number, 40 - number), colour=colour))
    write_checkpoint(work)
    subprocess.run([sys.executable, "-m", "mlops.cli", "export", "best_model.pth"], cwd=work, check=True)
    return work


@pytest.fixture
def mlops(mlops_command: Command, made: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(made)
    return mlops_command


def metadata(path: Path) -> dict:
    return onnx_file.read(path).metadata


def test_a_checkpoint_becomes_one_file_that_was_compared_on_its_validation_files(mlops: Command, tmp_path: Path):
    done = mlops("export", "best_model.pth", "-o", tmp_path / "m.onnx")
    assert (done.code, done.errors) == (0, [])
    assert [path.name for path in tmp_path.glob("m*")] == ["m.onnx"]
    told, story = metadata(tmp_path / "m.onnx"), checkpoint.read_metadata(Path("best_model.pth"))
    count = story["data"]["counts"]["val"]
    parity = told["parity"]
    assert {parity["native"]["of"], parity["resized"]["of"]} == {"validation images"}
    assert {parity["native"]["images"], parity["resized"]["images"]} == {count}
    assert 0 < parity["native"]["largest_difference"] <= 1e-5
    assert parity["resized"]["agreement"] == 1.0
    assert 0 < parity["resized"]["largest_difference"] < 0.2
    assert (
        f"at 12 x 12   probabilities differ from the checkpoint's by {parity['native']['largest_difference']:.1e}"
        in (done.out)
    )
    assert "100.00% get the same class" in done.out
    assert f"mlops predict {tmp_path / 'm.onnx'} PICTURE_OR_FOLDER" in done.out.replace("uv run ", "")
    assert told["classes"] == ["blue", "green", "red"]
    assert told["input"] == story["input"] | {"resizes": True}
    assert (told["format"], told["temperature"], told["reference"]) == (1, 1.7, None)
    assert (told["checkpoint"], told["metrics"], told["data"]) == (story["digest"], story["metrics"], story["data"])
    assert told["config"]["model"] == story["config"]["model"]


def test_the_graph_is_valid_onnx_without_other_files_and_takes_any_number_and_size(made: Path):
    model = onnx.load(made / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    (taken,), (given,) = model.graph.input, model.graph.output
    assert taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [side.dim_param or side.dim_value for side in taken.type.tensor_type.shape.dim] == ["N", "H", "W", 3]
    assert [side.dim_param or side.dim_value for side in given.type.tensor_type.shape.dim] == ["N", 3]


def test_the_same_checkpoint_gives_the_same_bytes_and_none_of_them_names_the_machine(
    mlops: Command, made: Path, tmp_path: Path
):
    mlops("export", "best_model.pth", "-o", tmp_path / "again.onnx")
    content = (made / "model.onnx").read_bytes()
    assert (tmp_path / "again.onnx").read_bytes() == content
    for place in (made, made.parent, Path(sys.prefix), Path(torch.__file__).parent, Path(__file__).parents[2]):
        assert str(place).encode() not in content
    assert b".py" not in content
    # An absolute path of the config keeps its last name.
    assert metadata(made / "model.onnx")["config"]["data"]["root"] == "pictures"


def test_predict_says_the_same_by_either_file(mlops: Command):
    by_torch, by_onnx = (
        list(csv.DictReader(io.StringIO(mlops("predict", file, "pictures", "--csv", "-").out)))
        for file in ("best_model.pth", "model.onnx")
    )
    assert len(by_torch) == 60
    assert [(row["path"], row["label"]) for row in by_onnx] == [(row["path"], row["label"]) for row in by_torch]
    ours, theirs = (np.array([float(row["probability"]) for row in rows]) for rows in (by_torch, by_onnx))
    assert np.abs(ours - theirs).max() <= 1e-5
    assert len({row["label"] for row in by_torch}) > 1
    assert "Predictions" in mlops("predict", "model.onnx", "pictures/red/00.png").out


BLOCKED = ("torch", "onnx", "onnxscript", "omegaconf", "hydra", "yaml", "sklearn", "torchmetrics", "filelock", "wandb")


def test_predict_needs_nothing_of_the_training_and_says_what_the_checkpoint_says(made: Path, mlops: Command):
    code = (
        f"import sys\nfor name in {BLOCKED}: sys.modules[name] = None\n"
        "from mlops.cli import main\nmain(['predict', 'model.onnx', 'pictures/red', '--csv', '-'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=made, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 21
    by_torch = csv.reader(io.StringIO(mlops("predict", "best_model.pth", "pictures/red", "--csv", "-").out))
    for (path, label, chance), expected in zip(csv.reader(io.StringIO(done.stdout)), by_torch, strict=True):
        assert (path, label) == tuple(expected[:2])
        assert label == "label" or abs(float(chance) - float(expected[2])) <= 1e-5


def test_predict_lists_what_it_cannot_read(mlops: Command, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"no image")
    done = mlops("predict", "model.onnx", tmp_path / "a.png", "pictures/red/01.png", "nowhere.png")
    assert done.code == 2
    assert "pictures/red/01.png" in done.out
    assert [problem.split(": ")[1] for problem in done.errors] == ["not an image of a known format", "no such file"]


def test_without_its_pictures_the_prepared_images_and_generated_files_are_compared(
    mlops: Command, made: Path, tmp_path: Path
):
    moved = made / "moved"
    (made / "pictures").rename(moved)
    try:
        done = mlops("export", "best_model.pth", "-o", tmp_path / "m.onnx")
    finally:
        moved.rename(made / "pictures")
    assert done.code == 0, done.err
    parity = metadata(tmp_path / "m.onnx")["parity"]
    assert (parity["native"]["of"], parity["resized"]["of"]) == ("validation images", "generated pictures")


def test_pictures_that_are_no_longer_the_same_are_not_taken_for_the_validation_files(
    mlops: Command, made: Path, tmp_path: Path
):
    kept = {path: path.read_bytes() for path in (made / "pictures").rglob("*.png")}
    for path in kept:
        path.write_bytes(png(7))
    try:
        mlops("export", "best_model.pth", "-o", tmp_path / "m.onnx")
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    parity = metadata(tmp_path / "m.onnx")["parity"]
    assert (parity["native"]["of"], parity["resized"]["of"]) == ("validation images", "generated pictures")


def test_from_the_file_alone_it_is_compared_on_generated_pictures_and_says_so(
    mlops_command: Command, made: Path, tmp_path: Path, workplace: Path
):
    story = checkpoint.read_metadata(made / "best_model.pth")
    story["config"]["data"]["root"] = str(tmp_path / "gone")
    held = checkpoint.read(made / "best_model.pth").state_dict
    checkpoint.save(Path("alone.pth"), held, {key: value for key, value in story.items() if key != "digest"})
    done = mlops_command("export", "alone.pth")
    assert done.code == 0, done.err
    parity = metadata(Path("model.onnx"))["parity"]
    assert (parity["native"]["of"], parity["resized"]["of"]) == ("generated pictures", "generated pictures")
    assert parity["native"]["images"] > 50
    (line,) = [line for line in done.out.splitlines() if "not on its data" in line]
    assert str(tmp_path / "gone") in line


def test_other_images_can_be_compared(mlops: Command, tmp_path: Path):
    shutil.make_archive(str(tmp_path / "some"), "zip", "pictures", "red")
    mlops("export", "best_model.pth", "-o", tmp_path / "m.onnx", "--data", tmp_path / "some.zip", "--images", "7")
    parity = metadata(tmp_path / "m.onnx")["parity"]
    assert [(part["of"], part["images"]) for part in parity.values()] == [("given images", 7)] * 2
    (tmp_path / "empty").mkdir()
    done = mlops("export", "best_model.pth", "-o", tmp_path / "m.onnx", "--data", tmp_path / "empty")
    assert (done.code, done.errors) == (2, [f"--data={tmp_path / 'empty'}: holds no images"])


def test_a_model_for_padded_boxes_is_compared_on_the_boxes_and_says_what_it_wants(
    mlops_command: Command, workplace: Path
):
    (workplace / "pictures").mkdir()
    rows = ["path,label,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2"]
    for number in range(30):
        name = list(COLOURS)[number % 3]
        (workplace / "pictures" / f"{number}.png").write_bytes(png(number, size=(30, 24), colour=COLOURS[name]))
        rows.append(f"{number}.png,{name},3,4,{15 + number % 9},20")
    (workplace / "pictures" / "labels.csv").write_text("\n".join(rows))
    file = write_checkpoint(workplace, source="csv", roi=True, resize="pad", filter="bicubic")
    done = mlops_command("export", file)
    assert done.code == 0, done.err
    assert "trained on the boxes of its pictures only" in done.err
    told = metadata(workplace / "model.onnx")
    assert told["input"]["crop"] == "roi"
    assert told["parity"]["resized"]["of"] == "validation images"
    assert told["parity"]["resized"]["agreement"] == 1.0
    assert "trained on the boxes of its pictures only" in mlops_command("predict", "model.onnx", "pictures").err


def test_a_filter_that_onnx_has_not_leaves_the_resizing_to_the_client(
    mlops_command: Command, made: Path, workplace: Path
):
    shutil.copytree(made / "pictures", workplace / "pictures")
    file = write_checkpoint(workplace, filter="lanczos")
    done = mlops_command("export", file)
    assert done.code == 0, done.err
    assert "images uint8 [N, H, W, 3] of 12 x 12 only" in done.out
    assert "ONNX has no lanczos filter: resize before, as mlops predict does" in done.out
    told = metadata(workplace / "model.onnx")
    assert told["input"]["resizes"] is False
    assert told["parity"]["resized"] is None
    by_torch, by_onnx = (
        mlops_command("predict", f, "pictures", "--csv", "-").out for f in ("best_model.pth", "model.onnx")
    )
    labels = [[row.rsplit(",", 1)[0] for row in text.splitlines()] for text in (by_torch, by_onnx)]
    assert labels[0] == labels[1]


TWO_FACED = """
import torch
from torch import nn


class TwoFaced(nn.Module):
    # Gives away something else than it was scored with.
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, images):
        logits = self.head(images.mean(dim=(2, 3)))
        return logits * 1.01 if torch.compiler.is_exporting() else logits
"""


def test_a_graph_that_answers_otherwise_is_not_written(mlops: Command, made: Path, workplace: Path, tmp_path: Path):
    (made / "faces.py").write_text(TWO_FACED)
    story = checkpoint.read_metadata(made / "best_model.pth")
    story["config"]["model"] = {"_target_": "faces.TwoFaced"}
    weights = {"head.weight": torch.randn(3, 3), "head.bias": torch.randn(3)}
    file, output = tmp_path / "two.pth", tmp_path / "two.onnx"
    checkpoint.save(file, weights, {key: value for key, value in story.items() if key != "digest"})
    output.write_bytes(b"the old one")
    done = mlops("export", file, "-o", output, "--allow", "faces.TwoFaced")
    assert done.code == 2
    (line,) = done.errors
    assert "from the checkpoint's on" in line
    assert "validation images at the native size, more than 1e-05; nothing was written" in line
    assert output.read_bytes() == b"the old one"
    assert sorted(path.name for path in tmp_path.glob("*two*")) == ["two.onnx", "two.pth"]
    refused = mlops("export", file, "-o", output)
    assert refused.code == 2
    assert "faces.TwoFaced: is not an allowed name" in refused.errors[0]


@pytest.mark.parametrize("output", ["best_model.pth", "model", "pictures"])
def test_a_name_by_which_no_model_would_be_known_is_refused_before_any_work(output: str, mlops: Command, made: Path):
    before = (made / "best_model.pth").read_bytes()
    done = mlops("export", "best_model.pth", "-o", output)
    assert (done.code, done.errors) == (
        2,
        [f"-o {output}: must be a file that ends in .onnx, by which it is recognised"],
    )
    assert (made / "best_model.pth").read_bytes() == before


def test_the_metadata_is_json_that_any_reader_understands(made: Path):
    told = {entry.key: json.loads(entry.value) for entry in onnx.load(made / "model.onnx").metadata_props}
    assert told == metadata(made / "model.onnx")
    assert dataclasses.asdict(config.load(config.complete(told["config"])))["seed"] == told["config"]["seed"]
