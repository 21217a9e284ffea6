"""What a checkpoint says of the code it was made with."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from conftest import Command
from mlops import checkpoint, provenance
from mlops.provenance import describe_code, describe_differences
from samples import QUICK


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "net.py").write_text("width = 8\n")
    git(folder, "add", "net.py")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


def test_a_clean_tree_is_its_commit(repository: Path):
    told = describe_code(repository)
    assert told["commit"] == git(repository, "rev-parse", "HEAD")
    assert (told["dirty"], told["diff_sha256"]) == (False, None)


def test_every_kind_of_change_makes_it_dirty_and_has_a_hash_of_its_own(repository: Path):
    found = []
    (repository / "net.py").write_text("width = 16\n")
    found.append(describe_code(repository))
    (repository / "net.py").write_text("width = 32\n")
    found.append(describe_code(repository))
    git(repository, "checkout", "--quiet", "net.py")
    (repository / "new.py").write_text("depth = 2\n")
    found.append(describe_code(repository))
    (repository / "new.py").write_text("depth = 3\n")
    found.append(describe_code(repository))
    assert all(told["dirty"] for told in found)
    assert len({told["diff_sha256"] for told in found}) == 4


@pytest.mark.parametrize("told", [None, ""])
def test_outside_of_git_nothing_is_claimed(
    told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.delenv("MLOPS_COMMIT", raising=False)
    if told is not None:
        monkeypatch.setenv("MLOPS_COMMIT", told)  # as in an image that was built without a commit
    code = describe_code(tmp_path)
    assert (code["commit"], code["dirty"], code["diff_sha256"]) == (None, None, None)
    assert caplog.messages == []


def test_outside_of_git_the_commit_is_the_one_that_an_image_was_told_and_nothing_is_said_of_changes(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
):
    told = "0123456789" * 4
    monkeypatch.setenv("MLOPS_COMMIT", told)
    code = describe_code(tmp_path)
    assert (code["commit"], code["dirty"], code["diff_sha256"]) == (told, None, None)
    assert describe_code(repository)["commit"] == git(repository, "rev-parse", "HEAD")


@pytest.mark.parametrize("told", ["main", "0123abc", "0" * 39, "0" * 41, "A" * 40, "0" * 40 + "\n", "\x1b[2J" * 99])
def test_what_is_no_commit_is_ignored_with_one_line(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("MLOPS_COMMIT", told)
    assert describe_code(tmp_path)["commit"] is None
    (line,) = caplog.messages
    assert line.startswith("MLOPS_COMMIT=")
    assert line.isprintable()
    assert len(line) < 300


def test_differences_name_what_is_new_and_what_is_gone():
    assert describe_differences({"a": 1, "b": 2}, {"b": 3, "c": 4}) == ["a 1 -> None", "b 2 -> 3", "c None -> 4"]


@pytest.mark.parametrize(
    ("dirty", "problem"),
    [
        (
            True,
            "training.require_clean=true: the git tree has uncommitted changes; commit it all, or set this to false",
        ),
        (None, "training.require_clean=true: the code is in no git tree; commit it all, or set this to false"),
        (False, None),
    ],
)
@pytest.mark.slow
def test_training_warns_of_a_dirty_tree_and_refuses_it_where_a_clean_one_is_required(
    dirty: bool | None,
    problem: str | None,
    pictures: Path,
    workplace: Path,
    hydra_command: Command,
    monkeypatch: pytest.MonkeyPatch,
):
    told: dict[str, Any] = {"version": "0.1.0", "commit": "c", "dirty": dirty, "diff_sha256": "d" if dirty else None}
    monkeypatch.setattr(provenance, "describe_code", lambda: told)
    settings = [*QUICK, f"data.root={pictures}", "training.epochs=1"]
    done = hydra_command("train", *settings)
    assert done.code == 0
    assert ("warning: the git tree has uncommitted changes" in done.err) == bool(dirty)
    assert checkpoint.read_metadata(Path("models/latest/best_model.pth"))["code"] == told
    done = hydra_command("train", *settings, "training.require_clean=true")
    assert (done.code, done.errors) == ((2, [problem]) if problem else (0, []))
