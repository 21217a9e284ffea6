"""Everything that starts from a checkpoint needs only that file."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import Command
from mlops import checkpoint
from mlops.evaluation import evaluate
from mlops.evaluation.evaluate import Evaluated
from mlops.evaluation.run import evaluate_checkpoint
from samples import COLOURS, QUICK, png


def test_logits_of_the_rebuilt_network_are_those_of_the_training_bit_for_bit(
    pictures: Path, workplace: Path, hydra_command: Command, monkeypatch: pytest.MonkeyPatch
):
    seen: list[Evaluated] = []
    really = evaluate.evaluate_prepared

    def evaluate_and_tell(*arguments: object) -> Evaluated:
        seen.append(really(*arguments))  # type: ignore[arg-type]
        return seen[-1]

    for module in ("mlops.evaluation.evaluate", "mlops.evaluation.run"):
        monkeypatch.setattr(f"{module}.evaluate_prepared", evaluate_and_tell)
    done = hydra_command("train", *QUICK, f"data.root={pictures}", "training.ema=0.9", "model.dropout=0.5")
    assert done.code == 0, done.err
    shutil.copy("models/latest/best_model.pth", "alone.pth")
    evaluate_checkpoint(Path("alone.pth"), None, "test", Path("data/processed"), ())
    trained, rebuilt = seen
    assert len(trained.logits) == 12
    assert torch.equal(trained.logits, rebuilt.logits)


@pytest.mark.slow
def test_in_an_empty_folder_every_command_works_from_the_file(
    pictures: Path, workplace: Path, hydra_command: Command, tmp_path: Path
):
    assert hydra_command("train", *QUICK, f"data.root={pictures}").code == 0
    story = checkpoint.read_metadata(Path("models/latest/best_model.pth"))
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy("models/latest/best_model.pth", empty / "x.pth")
    shutil.rmtree(workplace / "data")
    pictures.rename(tmp_path / "moved")
    (empty / "red.png").write_bytes(png(1, colour=COLOURS["red"]))

    def mlops(*words: str | Path) -> str:
        command = [sys.executable, "-m", "mlops.cli", *map(str, words)]
        done = subprocess.run(command, cwd=empty, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "3 classes: blue, green, red" in mlops("info", "x.pth")
    (row,) = csv.DictReader(io.StringIO(mlops("predict", "x.pth", "red.png", "--csv", "-")))
    assert row["label"] in story["classes"]
    scores = json.loads(mlops("evaluate", "x.pth", tmp_path / "moved", "--json", "-"))
    assert scores["n"] == 60
    mlops("report", "x.pth", "--output", "report")
    assert f"{story['metrics']['test_Accuracy']:.2%}" in (empty / "report" / "index.html").read_text()
    assert "The same" in mlops("diff", "x.pth", "x.pth")
    mlops("export", "x.pth", "-o", "x.onnx")
    (same,) = csv.DictReader(io.StringIO(mlops("predict", "x.onnx", "red.png", "--csv", "-")))
    assert same["label"] == row["label"]
    assert {path.name for path in empty.iterdir()} == {"x.pth", "red.png", "report", "x.onnx"}
