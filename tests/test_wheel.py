"""The package as a library: installed from its wheel, far from this repository, with a network of the user's own."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from mlops.checkpoint import read_metadata
from samples import ROOT

NETWORK = """
from torch import Tensor, nn


class Pooled(nn.Module):
    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """An environment that holds the wheel (and, to save the download, borrows the libraries of this one)."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    install = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # As a plain path entry: the .pth file that points to this repository is then not obeyed.
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "OMP_NUM_THREADS": "1"}
    return programs, environment


@pytest.mark.slow
def test_the_wheel_trains_a_users_own_network_from_another_folder(
    elsewhere: tuple[Path, dict[str, str]], tmp_path: Path
):
    programs, environment = elsewhere
    work = tmp_path / "theirs"
    (work / "mine" / "model").mkdir(parents=True)
    (work / "theirnet.py").write_text(NETWORK)
    (work / "mine" / "model" / "pooled.yaml").write_text("_target_: theirnet.Pooled\nwidth: 4\n")
    (work / "mine" / "allowed_targets.yaml").write_text("- theirnet.Pooled\n")

    def train(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [str(programs / "mlops-train"), "--config-dir", "mine", "tracking=off", "debug=smoke", *overrides]
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)

    done = train("model=pooled")
    assert done.returncode == 0, done.stderr
    (file,) = work.glob("outputs/*/*/best_model.pth")
    story = read_metadata(file)
    assert story["config"]["model"] == {"_target_": "theirnet.Pooled", "width": 4}
    assert story["code"]["commit"] is None
    where = subprocess.run(
        [programs / "python", "-c", "import mlops; print(mlops.__file__)"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path / "venv") in where.stdout

    evaluate = [str(programs / "mlops"), "evaluate", str(file), "--json", "-"]
    refused = subprocess.run(evaluate, cwd=work, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "theirnet.Pooled: is not an allowed name" in refused.stderr
    scored = subprocess.run(
        [*evaluate, "--allow", "theirnet.Pooled"], cwd=work, env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(scored.stdout)["n"] == 362
    # From the file alone, with nothing of this repository or of theirs around it.
    empty = tmp_path / "empty"
    empty.mkdir()
    for words in (
        ["info", str(file.absolute())],
        ["predict", str(file.absolute()), str(empty), "--allow", "theirnet.Pooled"],
    ):
        done = subprocess.run(
            [str(programs / "mlops"), *words],
            cwd=empty,
            env=environment | {"PYTHONPATH": os.pathsep.join([environment["PYTHONPATH"], str(work)])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == (0 if words[0] == "info" else 2), done.stderr
        assert words[0] == "info" or done.stderr == f"error: {empty}: folder without images\n"

    wrong = train("model=poled")
    assert wrong.returncode == 2
    assert "model=poled: no such choice; did you mean model=pooled?" in wrong.stderr
    (work / "mine" / "allowed_targets.yaml").unlink()
    refused = train("model=pooled")
    assert refused.returncode == 2
    assert "model._target_=theirnet.Pooled: is not an allowed name" in refused.stderr
