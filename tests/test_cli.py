import csv
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import Command
from mlops import checkpoint
from samples import COLOURS, QUICK, png


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run on red, green and blue pictures succeeded."""
    work = tmp_path_factory.mktemp("trained")
    for index, (name, colour) in enumerate(COLOURS.items()):
        (work / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            (work / "pictures" / name / f"{number:02}.png").write_bytes(png(100 * index + number, colour=colour))
    overrides = [setting for setting in QUICK if "epochs" not in setting]
    subprocess.run(
        [sys.executable, "-m", "mlops.train", *overrides, "training.epochs=10", "data.root=pictures"],
        cwd=work,
        check=True,
        capture_output=True,
    )
    return work


@pytest.fixture
def mlops(mlops_command: Command, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(trained)
    return mlops_command


LATEST = "models/latest/best_model.pth"


def test_help_lists_the_commands_and_imports_nothing_heavy():
    code = (
        "import sys; from mlops.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'hydra', 'numpy', 'PIL', 'wandb', 'matplotlib', 'sklearn', 'yaml', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    commands = ("info", "diff", "evaluate", "predict", "report", "export", "reproduce", "adopt", "publish")
    assert all(command in done.stdout for command in commands)
    assert done.stdout.endswith("[]\n")


def test_info_is_a_page_and_json_is_all_of_it(mlops: Command, trained: Path):
    page = mlops("info")
    assert page.code == 0
    assert "3 classes: blue, green, red" in page.out
    assert "mlops.models.SignNet" in page.out
    assert json.loads(mlops("info", "--json").out) == checkpoint.read_metadata(trained / LATEST)


def test_evaluate_scores_the_test_split_as_training_did(mlops: Command, trained: Path):
    table = mlops("evaluate")
    assert table.code == 0
    assert all(word in table.out for word in ("accuracy", "macro f1", "precision", "blue", "Confusion matrix"))
    printed = mlops("evaluate", "--json", "-")
    scores = json.loads(printed.out)
    story = checkpoint.read_metadata(trained / LATEST)
    assert scores["n"] == 12
    assert scores["accuracy"] == story["metrics"]["test_Accuracy"]
    assert scores["loss"] == story["metrics"]["test_loss"]
    assert set(scores["per_class"]["red"]) == {"precision", "recall", "f1", "n"}
    assert scores["temperature"] == story["temperature"]
    assert scores["ece"] == story["metrics"]["test_ECE"]
    low, high = scores["accuracy_interval"]
    assert low <= scores["accuracy"] <= high
    assert f"{low:.2%} to {high:.2%} (95 % interval)" in table.out
    assert f"{scores['ece']:.2%} (before scaling by temperature {scores['temperature']:.3f}" in table.out
    assert scores["top5_accuracy"] is None
    assert "top-5" not in table.out
    mlops("evaluate", LATEST, "--split", "val", "--json", "val.json")
    assert json.loads((trained / "val.json").read_text())["loss"] == story["metrics"]["val_loss"]


def test_evaluate_takes_any_folder_or_archive_with_some_of_the_classes(mlops: Command, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:
        for name in ("green", "red"):
            for number in range(5):
                archive.writestr(f"{name}/{number}.png", png(1000 + number, colour=COLOURS[name]))
    scores = json.loads(mlops("evaluate", LATEST, tmp_path / "new.zip", "--json", "-").out)
    assert scores["n"] == 10
    assert scores["per_class"]["blue"]["n"] == 0
    assert scores["accuracy"] == 1.0
    assert scores["accuracy_interval"] == [pytest.approx(0.025**0.1), 1.0]  # ten images, each its own group


def split_set(root: Path) -> Path:
    """`train/`: 6 pictures that are what they say; `test/`: 4, all of them mislabelled."""
    other = {"green": "red", "red": "green"}
    for seed, (split, count) in enumerate((("train", 3), ("test", 2))):
        for name in other:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                colour = COLOURS[name if split == "train" else other[name]]
                (root / split / name / f"{number}.png").write_bytes(png(10 * seed + number, colour=colour))
    return root


def warnings(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("warning: ")]


def test_of_data_with_splits_one_is_scored_or_all_with_a_warning(mlops: Command, tmp_path: Path):
    root = split_set(tmp_path / "new")
    test = mlops("evaluate", LATEST, root, "--split", "test", "--json", "-")
    scores = json.loads(test.out)
    assert (scores["n"], scores["accuracy"], scores["data"]) == (4, 0.0, f"{root} (test)")
    assert warnings(test.err) == []
    assert json.loads(mlops("evaluate", LATEST, root, "--split", "train", "--json", "-").out)["accuracy"] == 1.0
    both = mlops("evaluate", LATEST, root, "--json", "-")
    assert json.loads(both.out)["n"] == 10
    (line,) = warnings(both.err)
    assert "names splits of its own: train (6 images), test (4 images)" in line
    assert "--split" in line
    done = mlops("evaluate", LATEST, root, "--split", "val")
    assert done.errors == [f"--split=val: {root} puts no image there; it names train (6 images), test (4 images)"]


def test_a_split_of_data_without_splits_is_refused(mlops: Command):
    done = mlops("evaluate", LATEST, "pictures", "--split", "test")
    assert done.code == 2
    assert done.errors == [
        "--split=test: pictures puts no image there; it names no splits; leave --split out to score all its images"
    ]


def test_evaluate_takes_an_expression_for_groups_as_training_does(mlops: Command, trained: Path, tmp_path: Path):
    # 00.png to 09.png, 10.png to 19.png, of each class
    done = mlops("evaluate", LATEST, "pictures", "--group", r"^\d", "--json", "-")
    scores = json.loads(done.out)
    assert (scores["n"], scores["n_groups"]) == (60, 2)
    assert warnings(done.err) == []
    assert json.loads(mlops("evaluate", LATEST, "pictures", "--json", "-").out)["n_groups"] == 60
    grouped = changed(trained, tmp_path / "g.pth", lambda told: told["config"]["data"].update(group="^[^_]+'\x1b"))
    (line,) = warnings(mlops("evaluate", grouped, "pictures").err)
    assert "every image as a group of its own" in line
    assert r"""--group '^[^_]+'"'"'\x1b'""" in line
    assert warnings(mlops("evaluate", grouped, "pictures", "--group", "^.").err) == []


def test_groups_that_the_data_names_itself_are_not_named_twice(mlops: Command, trained: Path, tmp_path: Path):
    for number, colour in enumerate(("red", "red", "blue")):
        (tmp_path / f"{number}.png").write_bytes(png(number, colour=COLOURS[colour]))
    (tmp_path / "labels.csv").write_text("path,label,group\n0.png,red,a\n1.png,red,a\n2.png,blue,b\n")

    def of_a_table(told: dict[str, Any]) -> None:
        told["config"]["data"].update(source="csv", group="^.")

    file = changed(trained, tmp_path / "csv.pth", of_a_table)
    own = mlops("evaluate", file, tmp_path, "--json", "-")
    assert json.loads(own.out)["n_groups"] == 2
    assert warnings(own.err) == []
    twice = mlops("evaluate", file, tmp_path, "--group", "^.")
    assert twice.errors == [f"--group=^.: {tmp_path} names groups of its own already; leave --group out"]


def test_evaluate_prepares_the_data_again_when_it_is_gone_and_refuses_other_data(
    mlops: Command, trained: Path, tmp_path: Path
):
    again = mlops("evaluate", LATEST, "--json", "-", "--processed", tmp_path / "again")
    assert json.loads(again.out)["accuracy"] == json.loads(mlops("evaluate", "--json", "-").out)["accuracy"]
    image = trained / "pictures" / "red" / "00.png"
    before = image.read_bytes()
    image.write_bytes(png(5))
    changed = mlops("evaluate", LATEST, "--processed", tmp_path / "other")
    image.write_bytes(before)
    assert changed.code == 2
    assert "is not the data this checkpoint was trained on" in changed.errors[0]


def test_predict_names_what_is_on_files_and_in_folders(mlops: Command, tmp_path: Path):
    (tmp_path / "new" / "deep").mkdir(parents=True)
    (tmp_path / "new" / "deep" / "g.png").write_bytes(png(7, colour=COLOURS["green"]))
    (tmp_path / "r.png").write_bytes(png(8, colour=COLOURS["red"]))
    table = mlops("predict", LATEST, tmp_path / "r.png", tmp_path / "new")
    assert table.code == 0
    assert "red" in table.out
    assert "green" in table.out
    printed = mlops("predict", LATEST, tmp_path / "r.png", tmp_path / "new", "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert [(row["path"], row["label"]) for row in rows] == [
        (str(tmp_path / "r.png"), "red"),
        (str(tmp_path / "new" / "deep" / "g.png"), "green"),
    ]
    assert all(0.34 < float(row["probability"]) <= 1 for row in rows)


def changed(trained: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the checkpoint whose metadata `change` has changed."""
    loaded = checkpoint.read(trained / LATEST)
    metadata = {key: value for key, value in loaded.metadata.items() if key != "digest"}
    change(metadata)
    checkpoint.save(path, loaded.state_dict, metadata)
    return path


def with_temperature(trained: Path, path: Path, temperature: float | None) -> Path:
    return changed(trained, path, lambda told: told.update(temperature=temperature))


def test_predict_scales_its_probabilities_by_the_temperature(mlops: Command, trained: Path, tmp_path: Path):
    import torch

    def probability(temperature: float | None) -> float:
        file = with_temperature(trained, tmp_path / "t.pth", temperature)
        return float(mlops("predict", file, "pictures/red/01.png", "--csv", "-").out.splitlines()[1].split(",")[-1])

    plain, cold, hot = probability(None), probability(0.5), probability(5.0)
    assert 1 / 3 < hot < plain < cold <= 1
    assert probability(1.0) == plain
    # Of three classes; the other two share what is left in a proportion that is bounded, not known.
    odds = torch.tensor(plain / (1 - plain))
    assert hot < float(odds ** (1 / 5) / (1 + odds ** (1 / 5)))


# Clears a screen, as two bytes and as one, and turns what follows around.
STEERING = ["\x1b[2J\x1b[H", "\x9b2J", "\u202ederc"]


@pytest.fixture
def steering(trained: Path, tmp_path: Path) -> Path:
    """A checkpoint whose class names would steer a terminal."""
    return changed(trained, tmp_path / "steering.pth", lambda told: told.update(classes=STEERING))


def test_class_names_do_not_steer_a_terminal(mlops: Command, steering: Path):
    for arguments in (["evaluate"], ["predict", "pictures"], ["info"]):
        done = mlops(arguments[0], steering, *arguments[1:])
        assert done.code == 0, done.err
        assert not any(mark in done.out for mark in "\x1b\x9b\u202e")
        assert r"\x1b[2J" in done.out
    assert json.loads(mlops("evaluate", steering, "--json", "-").out)["classes"] == STEERING
    # A pipe has them as they are.
    assert "\x9b2J" in mlops("predict", steering, "pictures", "--csv", "-").out


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals that Python can make")
@pytest.mark.parametrize(
    "words",
    [
        pytest.param("predict {} pictures/red --csv -", marks=pytest.mark.slow),
        pytest.param("evaluate {} --json -", marks=pytest.mark.slow),
        "info {} --json",
    ],
)
def test_what_is_meant_for_a_pipe_does_not_steer_a_terminal(words: str, trained: Path, steering: Path):
    import pty

    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "mlops.cli", *words.format(steering).split()]
    run = subprocess.Popen(command, stdout=end, stderr=subprocess.PIPE, cwd=trained)
    os.close(end)
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(terminal)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    text = shown.decode()
    assert text.count("\n") > 20
    assert not any(mark in text for mark in "\x1b\x9b\u202e")
    assert r"\u202ederc" in text


@pytest.mark.slow
def test_a_pipe_gets_utf8_whatever_the_machine_uses(trained: Path, tmp_path: Path):
    file = changed(trained, tmp_path / "dog.pth", lambda told: told.update(classes=["blue", "green", "\u72ac"]))
    done = subprocess.run(
        [sys.executable, "-m", "mlops.cli", "predict", file, "pictures/red/00.png", "--csv", "-"],
        cwd=trained,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ",\u72ac," in done.stdout.decode("utf-8")


@pytest.mark.parametrize("command", [["evaluate"], ["report"], ["predict", "pictures"]])
def test_a_checkpoint_with_an_impossible_temperature_is_refused(
    command: list[str], mlops: Command, trained: Path, tmp_path: Path
):
    file = with_temperature(trained, tmp_path / "t.pth", 0.0)
    done = mlops(command[0], file, *command[1:])
    assert done.code == 2
    assert done.errors == [f"{file}: temperature=0.0: must be from 0.001 to 1000"]


def test_a_report_is_written_beside_the_checkpoint_and_is_that_of_the_run(mlops: Command, trained: Path):
    done = mlops("report")
    assert done.code == 0
    folder = trained / "models" / "latest" / "report"
    assert f"page  {folder.relative_to(trained) / 'index.html'}" in done.out
    (run,) = (trained / "outputs").glob("*/*/report")
    for written in run.iterdir():
        assert (folder / written.name).read_bytes() == written.read_bytes(), written.name
    assert json.loads((folder / "test.json").read_text()) == json.loads(mlops("evaluate", "--json", "-").out)


def test_a_report_of_another_split_leaves_that_of_the_test_split_alone(mlops: Command, trained: Path, tmp_path: Path):
    assert mlops("report", LATEST, "--split", "val").code == 0
    assert (trained / "models" / "latest" / "report-val" / "val.json").exists()
    assert mlops("report", LATEST, "--split", "train", "--output", tmp_path / "there").code == 0
    assert json.loads((tmp_path / "there" / "train.json").read_text())["n"] == 36
    assert "36 train images right" in (tmp_path / "there" / "index.html").read_text()


def test_a_report_without_the_data_is_made_from_the_file_alone_and_says_so(
    mlops: Command, trained: Path, tmp_path: Path
):
    (trained / "pictures").rename(trained / "moved")
    try:
        done = mlops("report", LATEST, "--processed", tmp_path / "none", "--output", tmp_path / "report")
    finally:
        (trained / "moved").rename(trained / "pictures")
    assert done.code == 0
    assert "without scores  " in done.out
    text = (tmp_path / "report" / "index.html").read_text()
    assert "No pictures and no scores class by class: data.root=pictures: no such folder" in text
    story = checkpoint.read_metadata(trained / LATEST)
    assert f"{story['metrics']['test_Accuracy']:.2%}" in text
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"index.html", "curves.png"}


def test_a_page_without_scores_never_replaces_a_report_with_scores(mlops: Command, trained: Path, tmp_path: Path):
    assert mlops("report", LATEST, "--output", tmp_path / "report").code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    (trained / "pictures").rename(trained / "moved")
    try:
        done = mlops("report", LATEST, "--processed", tmp_path / "none", "--output", tmp_path / "report")
        # A page of another split would take the place of this one as well.
        val = mlops("report", LATEST, "--split", "val", "--processed", "none", "--output", tmp_path / "report")
    finally:
        (trained / "moved").rename(trained / "pictures")
    assert (done.code, val.code) == (2, 2)
    (line,) = done.errors
    assert line.startswith(f"{tmp_path / 'report'}: holds a report with scores")
    assert "data.root=pictures: no such folder" in line
    assert "--output" in line
    assert {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()} == before


@pytest.mark.parametrize("fault", ["damaged", "no room"])
def test_data_that_is_here_but_cannot_be_used_is_an_error_and_no_page(
    fault: str, mlops: Command, trained: Path, tmp_path: Path
):
    if fault == "damaged":
        (prepared,) = (trained / "data" / "processed").glob("*/manifest.json")
        shutil.copytree(prepared.parent, tmp_path / "processed" / prepared.parent.name)
        (tmp_path / "processed" / prepared.parent.name / "manifest.json").write_text("{}")
    else:
        (tmp_path / "processed").write_text("a file where the folder should be")
    done = mlops("report", LATEST, "--processed", tmp_path / "processed", "--output", tmp_path / "report")
    assert done.code == 2
    assert ("is damaged" if fault == "damaged" else "cannot be used") in done.errors[0]
    assert not (tmp_path / "report").exists()


def test_other_data_in_its_place_is_a_page_without_scores(mlops: Command, trained: Path, tmp_path: Path):
    image = trained / "pictures" / "red" / "00.png"
    before = image.read_bytes()
    image.write_bytes(png(5))
    done = mlops("report", LATEST, "--processed", tmp_path / "other", "--output", tmp_path / "report")
    image.write_bytes(before)
    assert done.code == 0
    assert "is not the data this checkpoint was trained on" in (tmp_path / "report" / "index.html").read_text()


def test_a_checkpoint_whose_training_did_not_end_has_a_report(mlops: Command, trained: Path, tmp_path: Path):
    loaded = checkpoint.read(trained / LATEST)
    story = {key: value for key, value in loaded.metadata.items() if key != "digest"}
    story["metrics"] = {key: value for key, value in story["metrics"].items() if not key.startswith("test_")}
    checkpoint.save(tmp_path / "cut.pth", loaded.state_dict, story | {"temperature": None})
    assert mlops("report", tmp_path / "cut.pth").code == 0
    scores = json.loads((tmp_path / "report" / "test.json").read_text())
    assert scores["temperature"] == 1.0
    assert scores["ece"] == scores["ece_before"]


def test_predict_names_what_it_cannot_read_and_still_predicts_the_rest(mlops: Command, tmp_path: Path):
    (tmp_path / "r.png").write_bytes(png(8, colour=COLOURS["red"]))
    (tmp_path / "page.png").write_bytes(b"<html>")
    (tmp_path / "empty").mkdir()
    done = mlops(
        "predict",
        LATEST,
        *(tmp_path / name for name in ("r.png", "page.png", "none.png", "empty")),
        "--csv",
        tmp_path / "p.csv",
    )
    assert done.code == 2
    assert done.errors == [
        f"{tmp_path / 'page.png'}: not an image of a known format",
        f"{tmp_path / 'none.png'}: no such file",
        f"{tmp_path / 'empty'}: folder without images",
    ]
    assert (tmp_path / "p.csv").read_text().splitlines()[1].startswith(f"{tmp_path / 'r.png'},red,")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["info", "none.pth"], "none.pth: no such file; train first"),
        (["evaluate", "pictures/red/01.png"], "is not a checkpoint of this project"),
        (["evaluate", LATEST, "nowhere"], "DATA=nowhere: no such folder or archive"),
        (["evaluate", LATEST, "--split", "dev"], "--split=dev: must be one of train, val, test"),
        (["evaluate", LATEST, "pictures", "--group", "("], "--group=(: is not a regular expression: missing ), unterm"),
        (
            ["evaluate", LATEST, "pictures", "--group", "left"],
            "--group=left: does not match 60 file names, such as 00.png",
        ),
        (["evaluate", LATEST, "--group", "^."], "--group=^.: goes with DATA"),
        (["predict", "pictures", "pictures"], "pictures"),
        (["report", "none.pth"], "none.pth: no such file; train first"),
        (["report", "pictures/red/01.png"], "is not a checkpoint of this project"),
        (["report", LATEST, "--split", "dev"], "--split=dev: must be one of train, val, test"),
        (["report", LATEST, "--output", "pictures/red/01.png"], "pictures/red/01.png"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], problem: str, mlops: Command):
    done = mlops(*arguments)
    assert done.code == 2
    assert len(done.errors) == 1
    assert problem in done.errors[0]


@pytest.mark.parametrize(
    "words", ["info {}", "evaluate {}", "report {}", "predict {} pictures", "export {}", "reproduce {}", "diff {} {}"]
)
def test_every_command_takes_an_address_in_the_place_of_a_file(words: str, mlops: Command):
    done = mlops(*words.format("memory://empty/x.pth", LATEST).split())
    assert done.code == 2
    assert done.errors == [
        "memory://empty/x.pth: no such file, nor a model published under that name; check the address"
    ]


def test_a_class_the_checkpoint_does_not_know_is_named(mlops: Command, tmp_path: Path):
    for name in ("red", "violet"):
        (tmp_path / "new" / name).mkdir(parents=True)
        (tmp_path / "new" / name / "1.png").write_bytes(png())
    done = mlops("evaluate", LATEST, tmp_path / "new")
    assert done.errors == [f"{tmp_path / 'new'}: the checkpoint knows no class violet; it knows blue, green, red"]


def test_a_damaged_image_in_a_folder_to_score_is_refused_not_left_out(mlops: Command, tmp_path: Path):
    for name in ("red", "blue"):
        (tmp_path / "new" / name).mkdir(parents=True)
        (tmp_path / "new" / name / "1.png").write_bytes(png())
    (tmp_path / "new" / "red" / "2.png").write_bytes(b"")
    done = mlops("evaluate", LATEST, tmp_path / "new")
    assert done.code == 2
    assert "red/2.png: empty file" in done.errors[0]


def test_evaluate_takes_gtsrb_in_its_own_layout(hydra_command: Command, mlops_command: Command, tmp_path: Path):
    rows = []
    for class_id, colour in ((3, COLOURS["red"]), (14, COLOURS["blue"])):
        for track in range(5):
            for frame in range(3):
                name = f"Train/{class_id}/{class_id:05}_{track:05}_{frame:05}.png"
                rows.append(f"{class_id},{name}")
                (tmp_path / "signs" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "signs" / name).write_bytes(png(100 * class_id + 10 * track + frame, colour=colour))
    (tmp_path / "signs" / "Train.csv").write_text("\n".join(["ClassId,Path", *rows]))
    (tmp_path / "signs" / "signnames.csv").write_text("ClassId,SignName\n3,Speed limit\n14,Stop\n")
    overrides = [setting for setting in QUICK if setting != "data=folder"]
    assert hydra_command("train", "data=gtsrb", f"data.root={tmp_path}/signs", *overrides).code == 0
    scores = json.loads(mlops_command("evaluate", LATEST, tmp_path / "signs", "--json", "-").out)
    assert (scores["n"], scores["n_groups"]) == (30, 10)
    assert set(scores["per_class"]) == {"Speed limit", "Stop"}
    own = json.loads(mlops_command("evaluate", LATEST, "--json", "-").out)
    assert own["n"] == 3 * own["n_groups"]  # whole tracks
    # The official test images stand in a table of their own, without tracks.
    (tmp_path / "signs" / "Test").mkdir()
    (tmp_path / "signs" / "Test" / "0.png").write_bytes(png(5, colour=COLOURS["red"]))
    (tmp_path / "signs" / "Test.csv").write_text("ClassId,Path\n3,Test/0.png\n")
    test = mlops_command("evaluate", LATEST, tmp_path / "signs", "--split", "test", "--json", "-")
    assert json.loads(test.out)["n"] == 1
    both = mlops_command("evaluate", LATEST, tmp_path / "signs", "--json", "-")
    assert json.loads(both.out)["n"] == 31
    (line,) = warnings(both.err)
    assert "test (1 images), 30 images in none; all are scored together" in line


def test_a_checkpoint_of_boxes_says_so_and_is_scored_on_boxes(
    hydra_command: Command, mlops_command: Command, tmp_path: Path, workplace: Path
):
    rows = []
    for class_id, colour in ((3, COLOURS["red"]), (14, COLOURS["blue"])):
        for track in range(8):
            # The ground has the other class's colour: without its box, a picture says the wrong thing.
            name = f"Train/{class_id}/{class_id:05}_{track:05}_00000.png"
            other = COLOURS["blue"] if class_id == 3 else COLOURS["red"]
            whole = Image.open(io.BytesIO(png(track, (40, 40), other)))
            whole.paste(Image.open(io.BytesIO(png(track + 1, (8, 8), colour))), (16, 16))
            (tmp_path / "signs" / name).parent.mkdir(parents=True, exist_ok=True)
            whole.save(tmp_path / "signs" / name)
            rows.append(f"16,16,24,24,{class_id},{name}")
    header = "Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path"
    (tmp_path / "signs" / "Train.csv").write_text("\n".join([header, *rows]))
    overrides = [setting for setting in QUICK if setting != "data=folder" and "epochs" not in setting]
    settings = ["data=gtsrb", f"data.root={tmp_path}/signs", "data.roi=true", "training.epochs=8"]
    done = hydra_command("train", *settings, *overrides)
    assert done.code == 0, done.err
    assert checkpoint.read_metadata(workplace / LATEST)["input"]["crop"] == "roi"
    boxed = mlops_command("evaluate", LATEST, tmp_path / "signs", "--json", "-")
    assert json.loads(boxed.out)["accuracy"] == 1.0
    assert "warning" not in boxed.err
    # As folders of whole pictures there are no boxes to cut by.
    whole = mlops_command("evaluate", LATEST, tmp_path / "signs" / "Train", "--json", "-")
    assert json.loads(whole.out)["accuracy"] < 0.5
    picture = tmp_path / "signs" / rows[0].rsplit(",", 1)[1]
    for said in (whole, mlops_command("predict", LATEST, picture)):
        assert said.code == 0
        (line,) = [line for line in said.err.splitlines() if line.startswith("warning: ")]
        assert "trained on the boxes of its pictures only (data.roi=true)" in line


def test_evaluate_takes_a_table_of_labels(hydra_command: Command, mlops_command: Command, tmp_path: Path):
    lines = []
    for label, (name, colour) in enumerate(COLOURS.items()):
        for number in range(10):
            path = tmp_path / "set" / f"{name}{number}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(png(100 * label + number, colour=colour))
            lines.append(f"{path.name},{name}")
    (tmp_path / "set" / "labels.csv").write_text("\n".join(["path,label", *lines]))
    overrides = [setting for setting in QUICK if setting != "data=folder"]
    assert hydra_command("train", "data=csv", f"data.root={tmp_path}/set", *overrides).code == 0
    (tmp_path / "set" / "labels.csv").write_text("\n".join(["path,label", *lines[:15]]))
    scores = json.loads(mlops_command("evaluate", LATEST, tmp_path / "set", "--json", "-").out)
    assert scores["n"] == 15
    assert {name: row["n"] for name, row in scores["per_class"].items()} == {"blue": 10, "green": 5, "red": 0}
