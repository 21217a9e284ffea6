"""The image of the training, run as a job would run it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers import engine
from containers.engine import GIGABYTE, Container
from containers.test_api_image import BLUE, ask, eventually, free_port, serving
from integration.bucket import BUCKET, Emulator
from mlops.checkpoint import read_metadata
from samples import ROOT

pytestmark = pytest.mark.containers

QUICK = ("tracking=off", "training.device=cpu")


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Emulator]:
    with Emulator(tmp_path / "bucket") as emulator:
        yield emulator


def training(image: str, volume: Path, *words: str, **environment: str) -> Container:
    return Container(image, words, 4 * GIGABYTE, environment, [(volume, "/work", True)])


def test_it_trains_the_embedded_data_and_sends_what_the_server_serves(
    train_image: str, api_image: str, writable: Path, bucket: Emulator
):
    told = {
        "MLOPS_EXPORT": f"gs://{BUCKET}/digits/model.onnx",
        "MLOPS_PUBLISH": f"gs://{BUCKET}/models/digits",
    }
    with training(train_image, writable, *QUICK, "training.epochs=3", **told, **bucket.environment) as run:
        started = time.monotonic()
        code = run.wait()
        took = time.monotonic() - started
        assert code == 0, run.err.read_text() + run.out.read_text()
    (checkpoint,) = writable.glob("outputs/*/*/best_model.pth")
    story = read_metadata(checkpoint)
    print(f"trained, exported and published in {took:.0f} s: val_Accuracy {story['metrics']['val_Accuracy']}")
    assert story["config"]["training"]["epochs"] == 3
    assert story["data"]["name"] == "digits"
    assert (story["code"]["commit"], story["code"]["dirty"]) == (engine.COMMIT, None)
    assert checkpoint.stat().st_uid == 65534
    info = subprocess.run(
        [sys.executable, "-m", "mlops.cli", "info", told["MLOPS_PUBLISH"], "--json"],
        env={**os.environ, **bucket.environment, "MLOPS_CACHE": str(writable / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(info.stdout)["digest"] == story["digest"]
    port = free_port()
    with serving(api_image, port, told["MLOPS_EXPORT"], environment=bucket.environment) as server:
        eventually(lambda: ask(port, "GET", "/health/ready")[0] == 200, server)
        status, answer = ask(port, "POST", "/predict", BLUE)
        assert (status, answer["predictions"][0]["class"] in story["classes"]) == (200, True)


def test_it_pulls_its_data_by_dvc_from_the_bucket_that_it_is_told(
    train_image: str, writable: Path, bucket: Emulator, tmp_path: Path
):
    sender = tmp_path / "sender"
    (sender / ".dvc").mkdir(parents=True)
    for name in ("data.dvc", ".dvcignore", ".dvc/config"):
        shutil.copy(ROOT / name, sender / name)
    (sender / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    for words in (("embed",), ("remote", f"gs://{BUCKET}/versions"), ("push",)):
        command = [sys.executable, "-m", "mlops.cli", "data", *words]
        environment = {**os.environ, **bucket.environment}
        done = subprocess.run(command, cwd=sender, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    told = {"MLOPS_DATA_PULL": "1", "MLOPS_DATA_REMOTE": f"gs://{BUCKET}/versions", **bucket.environment}
    words = (*QUICK, "data=folder", "data.root=data/digits.tar", "data.image_size=8", "debug=smoke")
    with training(train_image, writable, *words, **told) as run:
        assert run.wait() == 0, run.err.read_text()
        assert "fetching" in run.err.read_text() + run.out.read_text()
    (checkpoint,) = writable.glob("outputs/*/*/best_model.pth")
    assert read_metadata(checkpoint)["data"]["dvc_md5"] in (ROOT / "data.dvc").read_text()


def test_a_wrong_override_is_one_line_and_exit_code_2(train_image: str, writable: Path):
    with training(train_image, writable, "training.epoch=3") as run:
        assert run.wait() == 2
        (line,) = run.err.read_text().splitlines()
        assert line.startswith("error: training.epoch=3: ")
        assert "training.epochs" in line


def test_an_unknown_bucket_is_refused_before_anything_is_trained(train_image: str, writable: Path, bucket: Emulator):
    told = {"MLOPS_PUBLISH": "gs://no-such-bucket/models/x"}
    with training(train_image, writable, *QUICK, **told, **bucket.environment) as run:
        assert run.wait(60) == 2
        (line,) = run.err.read_text().splitlines()
        assert line.startswith("error: MLOPS_PUBLISH=gs://no-such-bucket")
    assert list(writable.iterdir()) == []


def test_a_data_folder_that_cannot_be_written_is_one_line_that_names_it(
    train_image: str, writable: Path, tmp_path: Path
):
    (data := tmp_path / "data").mkdir()
    mounts = [(writable, "/work", True), (data, "/work/data", False)]
    with Container(train_image, [*QUICK, "debug=smoke"], 4 * GIGABYTE, mounts=mounts) as run:
        assert run.wait() == 2
        (line,) = [line for line in run.err.read_text().splitlines() if line.startswith("error: ")]
        assert "data/processed" in line
        assert "Read-only file system" in line
    words = [*QUICK, "debug=smoke", "paths.processed=processed"]
    with Container(train_image, words, 4 * GIGABYTE, mounts=mounts) as run:
        assert run.wait() == 0, run.err.read_text()


def test_without_a_place_to_write_to_it_says_so_in_one_line(train_image: str):
    with Container(train_image, [*QUICK, "debug=smoke"], 4 * GIGABYTE) as run:
        assert run.wait() == 2
        (line,) = run.err.read_text().splitlines()
        assert "Read-only file system" in line


def test_a_user_of_any_number_can_run_it(train_image: str, writable: Path):
    os.chown(writable, 12345, 12345)
    mounts = [(writable, "/work", True)]
    with Container(train_image, [*QUICK, "debug=smoke"], 4 * GIGABYTE, mounts=mounts, user=12345) as run:
        assert run.wait() == 0, run.err.read_text()


def test_sigterm_reaches_the_run_which_saves_itself(train_image: str, writable: Path):
    with training(train_image, writable, *QUICK, "training.epochs=100000", MLOPS_EXPORT="model.onnx") as run:
        eventually(lambda: list(writable.glob("outputs/*/*/best_model.pth")), run, 120)
        print("in training: " + ", ".join(f"{name} {count / 1e6:.0f} MB" for name, count in run.used.items()))
        run.kill("TERM")
        assert run.wait(60) == 143
        assert "SIGTERM: stopping" in run.err.read_text()
    assert list(writable.glob("outputs/*/*/last.pth"))
    assert not (writable / "model.onnx").exists()
