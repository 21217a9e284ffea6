"""The manifest of a version: what is here is held against it, file by file."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlops.data.versioning.sums import Compared, compare, describe, list_files, read_sums, write_sums_of
from mlops.errors import MlopsError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / ".dvcignore").write_text("/data/processed\n/data/downloads\n*.part\n")
    for name in (
        "pets/cat/1.png",
        "pets/dog/1.png",
        "pets/processed/1.png",
        "signs.tar",
        "processed/x/a.npy",
        "a.part",
    ):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(name)
    return tmp_path / "data"


def test_what_dvcignore_leaves_out_is_in_no_manifest(data: Path):
    assert list_files(data) == ["pets/cat/1.png", "pets/dog/1.png", "pets/processed/1.png", "signs.tar"]
    assert list_files(data, "pets/dog") == ["pets/dog/1.png"]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum here")
def test_sha256sum_reads_the_manifest(data: Path):
    whole = write_sums_of(data)
    assert hashlib.sha256((data / "SHA256SUMS").read_bytes()).hexdigest() == whole
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(command, cwd=data, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == 4


def test_a_file_that_was_changed_cut_removed_or_added_is_named(data: Path):
    write_sums_of(data)
    assert compare(data, read_sums(data)).same
    (data / "signs.tar").write_text("signs.ta")
    (data / "pets/cat/1.png").unlink()
    (data / "pets/cat/2.png").write_text("new")
    found = compare(data, read_sums(data))
    assert found == Compared(["signs.tar"], ["pets/cat/1.png"], ["pets/cat/2.png"])
    assert describe(found) == "changed: signs.tar; missing: pets/cat/1.png; new: pets/cat/2.png"
    assert compare(data, read_sums(data), "pets/dog").same
    assert compare(data, read_sums(data), "signs.tar") == Compared(["signs.tar"])
    assert compare(data, read_sums(data), "pets") == Compared([], ["pets/cat/1.png"], ["pets/cat/2.png"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("abc  signs.tar", "line 1: is not `<SHA-256>  <path>`"),
        (f"{'a' * 64}  ../x", "the path '../x' leaves its root"),
        (f"{'a' * 64}  /etc/passwd", "leaves its root"),
        (f"{'a' * 64}  x\n{'b' * 64}  x", "line 2: names x twice"),
    ],
)
def test_a_manifest_that_is_none_is_named(data: Path, line: str, said: str):
    (data / "SHA256SUMS").write_text(line + "\n")
    with pytest.raises(MlopsError, match="SHA256SUMS") as caught:
        read_sums(data)
    assert said in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses such names itself")
def test_links_and_names_with_line_breaks_are_refused_all_at_once(data: Path):
    (data / "pets/cat/l.png").symlink_to("/etc/passwd")
    (data / "elsewhere").symlink_to("/etc")
    (data / "a\nb.png").write_text("x")
    with pytest.raises(MlopsError) as caught:
        write_sums_of(data)
    assert len(caught.value.problems) == 3
    assert sum("is a link; copy the file there instead" in line for line in caught.value.problems) == 2
    assert r"a\nb.png': its name has a character that no manifest can hold; rename it" in str(caught.value)
    assert not (data / "SHA256SUMS").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_is_refused_and_never_waited_for(data: Path):
    os.mkfifo(data / "pets" / "pipe")
    with pytest.raises(MlopsError, match="pipe: is a device or a pipe, not a file; remove it"):
        write_sums_of(data)
    (data / "pets" / "pipe").unlink()
    write_sums_of(data)
    (data / "signs.tar").unlink()
    os.mkfifo(data / "signs.tar")
    with pytest.raises(MlopsError, match="is a device or a pipe"):
        compare(data, read_sums(data))


def test_a_manifest_that_came_with_the_data_is_not_overwritten(data: Path):
    ours = write_sums_of(data)
    own = f"{'a' * 64}  signs.tar\n"
    (data / "SHA256SUMS").write_text(own)
    with pytest.raises(
        MlopsError, match=r"is not the manifest of data\.dvc, and would be replaced by it; rename yours"
    ):
        write_sums_of(data, ours)
    assert (data / "SHA256SUMS").read_text() == own
    (data / "SHA256SUMS").unlink()
    write_sums_of(data, ours)
    # What was recorded before is replaced, whatever has changed; and so is what a killed `data add` has left.
    (data / "signs.tar").write_text("changed")
    second = write_sums_of(data, ours)
    (data / "new.tar").write_text("new")
    assert write_sums_of(data, ours) != second


def test_an_empty_folder_is_no_version(tmp_path: Path):
    (tmp_path / "data").mkdir()
    with pytest.raises(MlopsError, match="holds no files to version; put the images there"):
        write_sums_of(tmp_path / "data")
