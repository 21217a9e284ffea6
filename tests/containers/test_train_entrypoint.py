"""What the training image runs, without the image."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from mlops.data.versioning.remote import read_remote
from mlops.errors import MlopsError
from samples import ROOT

SCRIPT = ROOT / "dockerfiles" / "train.py"
# In the place of the commands: it tells of its words, and does what the last one says.
FAKE = """
import pathlib, signal, sys, time
with open("said", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
do = sys.argv[-1]
if do == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    pathlib.Path("waits").touch()
    time.sleep(60)
if do == "die":
    import os
    os.kill(os.getpid(), signal.SIGKILL)
if do.startswith("exit="):
    sys.exit(int(do[5:]))
if do == "train":
    folder = pathlib.Path("outputs/2026-01-01/12-00-00-abcd")
    folder.mkdir(parents=True)
    (folder / "best_model.pth").touch()
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    specification = importlib.util.spec_from_file_location("train_entrypoint", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "train_entrypoint", module)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """As the image holds it."""
    (tmp_path / "project/.dvc").mkdir(parents=True)
    for name in (".dvc/config", ".dvcignore", "data.dvc"):
        (tmp_path / "project" / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path / "project"


Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def run(script: ModuleType, project: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run it with a fake of every command: the exit code, and the words of those that ran."""
    (workplace / "fake.py").write_text(FAKE)

    def start(command: list[str], **others: bool) -> "subprocess.Popen[bytes]":
        assert command[:2] == [sys.executable, "-m"]
        return subprocess.Popen([sys.executable, "fake.py", *command[2:]], **others)

    monkeypatch.setattr(script, "subprocess", SimpleNamespace(Popen=start))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def main(*overrides: str, **environment: str) -> tuple[int, list[str]]:
        try:
            code = script.main(overrides, environment, project)
        except SystemExit as end:
            code = end.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        said = Path("said").read_text().splitlines() if Path("said").exists() else []
        return code, said

    return main


def test_overrides_reach_the_training_and_its_exit_code_comes_back(run: Run):
    assert run("data=digits", "exit=3") == (3, ["mlops.train data=digits exit=3"])


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
def test_a_training_that_is_killed_ends_with_128_and_the_number(run: Run):
    code, _ = run("die")
    assert code == 128 + signal.SIGKILL


def test_a_training_is_followed_by_the_export_and_the_publishing_of_its_checkpoint(run: Run, tmp_path: Path):
    bucket = tmp_path.as_uri()
    code, said = run("train", MLOPS_EXPORT="signs.onnx", MLOPS_PUBLISH=f"{bucket}/signs")
    best = Path("outputs/2026-01-01/12-00-00-abcd/best_model.pth")
    assert (code, said) == (
        0,
        [
            "mlops.train train",
            f"mlops.cli export {best} --output signs.onnx",
            f"mlops.cli publish {best} {bucket}/signs",
        ],
    )


def test_a_model_is_sent_to_the_bucket_that_was_named(run: Run, tmp_path: Path, workplace: Path):
    exported = workplace / "outputs/2026-01-01/12-00-00-abcd/model.onnx"

    def before() -> None:
        exported.parent.mkdir(parents=True)
        exported.write_bytes(b"a model")
        (exported.parent / "best_model.pth").touch()
        future = time.time() + 60
        os.utime(exported.parent / "best_model.pth", (future, future))

    before()
    code, said = run("go", MLOPS_EXPORT=f"{tmp_path.as_uri()}/signs.onnx")
    assert (code, len(said)) == (0, 2)
    assert (tmp_path / "signs.onnx").read_bytes() == b"a model"


def test_nothing_follows_a_training_that_failed(run: Run):
    assert run("exit=1", MLOPS_EXPORT="signs.onnx") == (1, ["mlops.train exit=1"])


def test_a_checkpoint_of_an_earlier_run_is_not_taken_for_this_ones(
    run: Run, workplace: Path, capsys: pytest.CaptureFixture[str]
):
    (workplace / "models/latest").mkdir(parents=True)
    (workplace / "models/latest/best_model.pth").touch()
    os.utime(workplace / "models/latest/best_model.pth", (1, 1))
    assert run("go", MLOPS_EXPORT="signs.onnx")[0] == 2
    assert "holds no checkpoint of this run to export or publish" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"MLOPS_DATA_PULL": "yes"}, "MLOPS_DATA_PULL=yes: must be 0 or 1"),
        ({"MLOPS_EXPORT": "model.pth"}, "MLOPS_EXPORT=model.pth: must end in .onnx: a file, or gs://"),
        ({"MLOPS_PUBLISH": "models/signs"}, "MLOPS_PUBLISH=models/signs: names no model in a bucket"),
        ({"MLOPS_PUBLISH": "gs://signs"}, "MLOPS_PUBLISH=gs://signs: names no model in a bucket"),
        ({"MLOPS_PUBLISH": "file:///nowhere/at/all"}, "MLOPS_PUBLISH=file:///nowhere/at: no such folder"),
        ({"MLOPS_DATA_REMOTE": "gs://b/x"}, "MLOPS_DATA_REMOTE=gs://b/x: is no bucket"),
        ({"MLOPS_DATA_REMOTE": "gs://bucket/x"}, "MLOPS_DATA_REMOTE=gs://bucket/x: nothing is fetched from it without"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    environment: dict[str, str], problem: str, run: Run, capsys: pytest.CaptureFixture[str]
):
    assert run("train", **environment) == (2, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {problem}")


def test_empty_variables_ask_for_nothing(run: Run):
    nothing = dict.fromkeys(("MLOPS_DATA_PULL", "MLOPS_DATA_REMOTE", "MLOPS_EXPORT", "MLOPS_PUBLISH"), "")
    assert run("go", **nothing) == (0, ["mlops.train go"])
    assert run("go", MLOPS_DATA_PULL="0")[0] == 0
    assert not Path(".dvc").exists()


def test_data_is_pulled_by_the_images_own_data_dvc_from_the_bucket_that_was_named(run: Run, workplace: Path):
    told = {"MLOPS_DATA_PULL": "1", "MLOPS_DATA_REMOTE": "gs://bucket/versions"}
    assert run("go", **told) == (0, ["mlops.train data.pull=auto go"])
    assert (workplace / "data.dvc").read_bytes() == (ROOT / "data.dvc").read_bytes()
    remote = read_remote(workplace)
    assert remote is not None
    assert remote.url == "gs://bucket/versions"
    # In a volume that is used again, another bucket.
    assert run("go", **told | {"MLOPS_DATA_REMOTE": "gs://other/versions"})[0] == 0
    again = read_remote(workplace)
    assert again is not None
    assert again.url == "gs://other/versions"


def test_a_project_that_is_there_stays_as_it_is(run: Run, workplace: Path, capsys: pytest.CaptureFixture[str]):
    (workplace / ".dvc").mkdir()
    (workplace / ".dvc/config").write_text("[core]\n    analytics = false\n")
    assert run("go", MLOPS_DATA_PULL="1")[0] == 0
    assert [path.name for path in (workplace / ".dvc").iterdir()] == ["config"]
    assert run("go", MLOPS_DATA_PULL="1", MLOPS_DATA_REMOTE="gs://bucket/x")[0] == 2
    assert "has a .dvc/config of its own" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM: it ends a process unasked")
def test_sigterm_reaches_the_training_and_nothing_follows(run: Run, script: ModuleType, workplace: Path):
    def send() -> None:
        while not (workplace / "waits").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    assert run("wait", MLOPS_EXPORT="signs.onnx") == (143, ["mlops.train wait"])
    assert script.run("mlops.cli", "export") == 143


def test_the_real_training_answers_a_wrong_override_with_one_line(tmp_path: Path):
    command = [sys.executable, SCRIPT, "training.epoch=3"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLOPS_")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: training.epoch=3: ")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_remote_raises_our_own_error(script: ModuleType):
    with pytest.raises(MlopsError, match="is no bucket"):
        script.read({"MLOPS_DATA_REMOTE": "http://bucket/x"})
