import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from conftest import Command
from export.test_run import BLOCKED
from mlops.export import bench as benches
from mlops.export import graph as graphs
from mlops.export.bench import Settings, bench
from mlops.export.candidates import Candidate
from mlops.inference import OnnxModel
from samples import png

QUICK = ("--rounds", "2", "--batch", "4")
INPUT = {"height": 8, "width": 8, "resize": "squash", "filter": "bilinear", "resizes": False, "crop": None}


def write(path: Path, *, features: int | None = None) -> Path:
    """A model that tells dark from bright, or the sign of a sum of features."""
    taken = "uint8[N, 8, 8, 3] images" if features is None else f"float[N, {features}] features"
    name = taken.rsplit(" ", 1)[1]
    made = parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]> m ({taken}) => (float[N, 2] probabilities) {{
            numbers = Cast <to = 1> ({name})
            rows = Flatten <axis = 1> (numbers)
            level = ReduceMean <keepdims = 1> (rows, axes)
            far = Sub (level, middle)
            bright = Sigmoid (far)
            dark = Sub (one, bright)
            probabilities = Concat <axis = 1> (dark, bright)
        }}"""
    )
    constants = {"axes": np.array([1]), "middle": np.float32(128 if features is None else 0), "one": np.float32(1)}
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    given = INPUT if features is None else {"features": features, "names": None}
    graphs.set_metadata(made, {"format": 1, "classes": ["dark", "bright"], "input": given})
    path.write_bytes(made.SerializeToString())
    return path


@pytest.fixture
def folders(workplace: Path) -> Path:
    """`labelled/<class>/<n>.png`, of which one of eight lies in the wrong folder; and model.onnx."""
    for number in range(8):
        bright = number % 2 == 1
        folder = workplace / "labelled" / ("bright" if bright or number == 0 else "dark")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(png(number, colour=(220,) * 3 if bright else (20,) * 3))
    write(workplace / "model.onnx")
    return workplace / "labelled"


def test_models_are_measured_side_by_side_and_scored(folders: Path, mlops_command: Command):
    write(Path("again.onnx"))
    done = mlops_command("bench", "model.onnx", "again.onnx", "--data", folders, *QUICK, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["threads"], told["batch"], told["rounds"], told["scored_on"]) == (1, 4, 2, str(folders))
    first, second = told["models"]
    assert [first["file"], second["file"]] == ["model.onnx", "again.onnx"]
    assert (first["accuracy"], first["images"]) == (7 / 8, 8)
    assert first["bytes"] == Path("model.onnx").stat().st_size
    assert first["ratio"] == {"median": 1.0, "lowest": 1.0, "highest": 1.0}
    assert second["ratio"]["lowest"] <= second["ratio"]["median"] <= second["ratio"]["highest"]
    for row in (first, second):
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p99"]
        assert row["latency_ms"]["calls"] >= 40
        assert 0 < row["images_per_second"]["lowest"] <= row["images_per_second"]["highest"]


def test_a_person_gets_a_table(folders: Path, mlops_command: Command):
    done = mlops_command("bench", "model.onnx", "--data", folders, *QUICK, "--threads", "2")
    assert "2 threads, batches of 4" in done.out
    (row,) = [line for line in done.out.splitlines() if line.startswith("model.onnx")]
    assert "87.50%" in row
    assert f"accuracy on 8 images: {folders}" in done.out


def test_what_has_no_images_has_no_accuracy(folders: Path, mlops_command: Command):
    write(Path("rows.onnx"), features=5)
    done = mlops_command("bench", "rows.onnx", "model.onnx", *QUICK)
    assert done.code == 0, done.err
    (row,) = [line for line in done.out.splitlines() if line.startswith("rows.onnx")]
    assert row.split()[-1] == "-"
    assert "no accuracy: the models' own data is not prepared here" in done.out


def test_the_ratio_is_that_of_speeds_within_a_round(monkeypatch: pytest.MonkeyPatch):
    speeds = {"slow": [10.0, 20.0, 30.0], "fast": [30.0, 40.0, 90.0]}

    def turn(candidate: Candidate, given: np.ndarray, times: benches._Times) -> None:
        times.rates.append(speeds[candidate.name][len(times.rates)])
        times.single.append(0.002)

    monkeypatch.setattr(benches, "_take_turn", turn)

    def open_one(path: Path, name: str, *rest: object) -> Candidate:
        return Candidate(name, 1, ["a", "b"], {"features": 3, "names": None}, {}, lambda x: x[:, :2], torch=False)

    monkeypatch.setattr(benches, "open_candidate", open_one)
    told = bench([(Path("a"), "slow"), (Path("b"), "fast")], None, Path("none"), (), Settings(rounds=3))
    assert told["models"][1]["ratio"] == {"median": 3.0, "lowest": 2.0, "highest": 3.0}
    assert told["models"][1]["images_per_second"] == {"median": 40.0, "lowest": 30.0, "highest": 90.0}
    assert told["models"][0]["latency_ms"]["p50"] == pytest.approx(2.0)


def test_models_alone_need_nothing_of_the_training(folders: Path):
    code = (
        f"import sys\nfor name in {BLOCKED}: sys.modules[name] = None\n"
        "from mlops.cli import main\nmain(['bench', 'model.onnx', '--data', 'labelled', '--rounds', '1', '--json'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"][0]["accuracy"] == 7 / 8


def test_everything_wrong_is_said_at_once_in_one_line_each(folders: Path, mlops_command: Command):
    Path("notes.txt").write_text("no model")
    done = mlops_command("bench", "notes.txt", "missing.onnx", "model.onnx", "missing.pth")
    assert done.code == 2
    assert [line.split(": ")[0] for line in done.errors] == ["notes.txt", "missing.onnx", "missing.pth"]
    assert "is neither a model that ends in .onnx nor a checkpoint" in done.errors[0]
    (folders / "green").mkdir()
    (folders / "green" / "1.png").write_bytes(png())
    (problem,) = mlops_command("bench", "model.onnx", "--data", folders).errors
    assert problem == (
        f"--data={folders}: model.onnx knows no class green; folders must be named as classes: dark, bright"
    )
    (folders / "loose.png").write_bytes(png())
    (problem,) = mlops_command("bench", "model.onnx", "--data", folders).errors
    assert problem == f"--data={folders}: loose.png: lie in no folder, whose name would be their class"
    (folders / "loose.png").unlink()
    (folders / "dark" / "broken.png").write_bytes(b"nothing")
    (folders / "green" / "1.png").unlink()
    (problem,) = mlops_command("bench", "model.onnx", "--data", folders).errors
    assert problem == f"{folders}/dark/broken.png: not an image of a known format; mend or remove it"
    assert mlops_command("bench").errors == [
        "FILE: is missing; name one or more models: mlops bench best_model.pth model.onnx"
    ]
    assert mlops_command("bench", "model.onnx", "--threads", "-1", "--rounds", "0").errors == [
        "--threads=-1: must be from 0 to 1024",
        "--rounds=0: must be from 1 to 1000",
    ]


def test_the_model_in_these_tests_is_one_that_can_be_served(folders: Path):
    onnx.checker.check_model(onnx.load("model.onnx"))
    assert OnnxModel.read(Path("model.onnx")).predict(np.zeros((1, 8, 8, 3), np.uint8)).argmax() == 0
