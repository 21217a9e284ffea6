"""Which version the images of a run are of: compared before anything is made of them."""

import json
import logging
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import Command
from mlops.config import DataConfig
from mlops.data.versioning.here import NotHereError, request, version_of
from mlops.data.versioning.pointer import Version, write_sums
from mlops.data.versioning.sums import write_sums_of
from mlops.errors import MlopsError
from samples import ROOT, write_pictures

MD5 = "1b478f572e2ecdc183deccbbd5c0cd89.dir"


@pytest.fixture
def project(workplace: Path) -> Path:
    """60 pictures in `data/pictures`, recorded as `mlops data add` does, without DVC's part of it."""
    (workplace / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvcignore", workplace)
    (workplace / "data.dvc").write_text(f"outs:\n- md5: {MD5}\n  hash: md5\n  path: data\n")
    write_pictures(workplace / "data" / "pictures")
    record(workplace)
    return workplace


def record(project: Path) -> None:
    write_sums(project / "data.dvc", write_sums_of(project / "data"))


def config(root: str = "data/pictures") -> DataConfig:
    return DataConfig(source="folder", root=root)


def problem(root: str = "data/pictures") -> str:
    with pytest.raises(MlopsError) as caught:
        version_of(config(root))
    return str(caught.value)


def test_what_is_as_recorded_is_of_that_version_and_knows_its_commit(project: Path):
    assert version_of(config()) == Version(MD5, None)
    for words in (
        ("init", "-q"),
        ("add", "data.dvc"),
        ("-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "x"),
    ):
        subprocess.run(["git", *words], cwd=project, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True)
    assert version_of(config()) == Version(MD5, head.stdout.strip())
    with (project / "data.dvc").open("a") as file:
        file.write("# edited\n")
    assert version_of(config()) == Version(MD5, None)


def test_a_file_that_was_changed_or_cut_is_named_and_nothing_is_prepared(project: Path, hydra_command: Command):
    changed, cut = project / "data/pictures/red/01.png", project / "data/pictures/blue/02.png"
    changed.write_bytes(changed.read_bytes() + b"\0")
    cut.write_bytes(cut.read_bytes()[:50])
    for command in ("preprocess", "train"):
        done = hydra_command(command, "data=folder", "data.root=data/pictures", "data.image_size=8")
        assert done.code == 2
        assert [line.split(": ")[0] for line in done.errors] == [str(cut), str(changed)]
        assert (
            "was changed or cut after it was versioned (data.dvc names 1b478f57); remove it and `invoke data-pull`"
            in (done.errors[0])
        )
    assert not list(project.glob("data/processed/*/manifest.json"))


def test_only_what_the_run_reads_is_compared(project: Path):
    write_pictures(project / "data" / "others")
    record(project)
    (project / "data/others/red/01.png").write_bytes(b"changed")
    assert version_of(config()) == Version(MD5, None)


def test_missing_files_can_be_pulled_and_are_named(project: Path):
    (project / "data/pictures/red/01.png").unlink()
    with pytest.raises(NotHereError, match=r"01\.png: missing, of version 1b478f57 of data\.dvc; `invoke data-pull`"):
        version_of(config())
    shutil.rmtree(project / "data/pictures")
    with pytest.raises(NotHereError, match="missing"):
        version_of(config())
    shutil.rmtree(project / "data")
    with pytest.raises(NotHereError, match=r"data\.root=data/pictures: is not here; `invoke data-pull` brings version"):
        version_of(config())


def test_a_pointer_that_has_moved_on_is_not_the_version_that_is_here(project: Path):
    write_sums(project / "data.dvc", "a" * 64)
    assert "is of another version than data.dvc (1b478f57); `invoke data-pull` brings that one" in problem()


def test_a_manifest_that_was_edited_does_not_hide_a_change(project: Path):
    (project / "data/pictures/red/01.png").write_bytes(b"changed")
    (project / "data" / "SHA256SUMS").unlink()
    write_sums_of(project / "data")
    assert "is of another version than data.dvc" in problem()


def test_new_files_and_files_of_no_version_are_trained_on_but_named_by_no_version(
    project: Path, caplog: pytest.LogCaptureFixture
):
    shutil.copy("data/pictures/red/01.png", "data/pictures/red/99.png")
    assert version_of(config()) is None
    assert "pictures/red/99.png not in version 1b478f57 of data.dvc: the checkpoint will name no version" in caplog.text
    caplog.clear()
    (project / "data" / "SHA256SUMS").unlink()
    assert version_of(config()) is None
    assert "data/pictures is in no version: data.dvc names other data" in caplog.text
    write_pictures(project / "elsewhere")
    assert version_of(config("elsewhere")) is None


def test_what_dvcignore_hides_is_of_no_version_if_a_run_reads_it(project: Path, caplog: pytest.LogCaptureFixture):
    write_pictures(project / "data" / "downloads" / "own")
    assert version_of(config("data/downloads/own")) is None
    with (project / ".dvcignore").open("a") as file:
        file.write("*.extra.png\n")
    shutil.copy("data/pictures/red/01.png", "data/pictures/red/99.extra.png")
    caplog.clear()
    assert version_of(config()) is None
    assert "pictures/red/99.extra.png not in version 1b478f57" in caplog.text
    (project / "data" / "pictures" / "red" / "99.extra.png").unlink()
    assert version_of(config()) == Version(MD5, None)
    (project / "data" / "empty").mkdir()
    assert version_of(config("data/empty")) is None


def test_a_pointer_by_dvc_alone_names_a_version_that_nobody_has_compared(
    project: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    (project / "data.dvc").write_text(f"outs:\n- md5: {MD5}\n  path: data\n")
    assert version_of(config()) is None
    assert "`mlops data add` adds a manifest" in caplog.text


def test_the_checkpoint_and_the_prepared_data_name_the_version(project: Path, hydra_command: Command):
    settings = ("data=folder", "data.root=data/pictures", "data.image_size=8")
    (project / "data" / "SHA256SUMS").rename("kept")
    assert hydra_command("preprocess", *settings).code == 0
    (manifest,) = project.glob("data/processed/*/manifest.json")
    assert json.loads(manifest.read_text())["source"]["dvc_md5"] is None
    # Recorded afterwards: the same arrays are of that version now.
    Path("kept").rename(project / "data" / "SHA256SUMS")
    assert hydra_command("preprocess", *settings).code == 0
    told = json.loads(manifest.read_text())
    assert (told["source"]["dvc_md5"], told["source"]["dvc_rev"]) == (MD5, None)
    assert told["request"]["root"] == "data/pictures"


def test_a_request_is_the_same_from_elsewhere_and_with_other_workers(project: Path):
    one = request(config())
    assert one == request(DataConfig(source="folder", root=str(project / "data" / "pictures"), workers=3, pull="auto"))
    assert one != request(DataConfig(source="folder", root="data/pictures", image_size=48))


def test_without_the_project_or_with_digits_nothing_is_asked(project: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    assert version_of(DataConfig()) is None
    assert "ship with scikit-learn (data=digits); data.dvc names other data" in caplog.text
    shutil.rmtree(project / ".dvc")
    assert version_of(config()) is None
