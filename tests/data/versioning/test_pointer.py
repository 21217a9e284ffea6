"""`data.dvc` is read by us before DVC acts on it."""

import shutil
from pathlib import Path

import pytest

from mlops.data.versioning.pointer import Pointer, find_root, read_pointer, write_sums
from mlops.errors import MlopsError
from samples import ROOT

GOOD = """\
outs:
- md5: 1b478f572e2ecdc183deccbbd5c0cd89.dir
  size: 4
  nfiles: 2
  hash: md5
  path: data
"""


def problem(tmp_path: Path, text: str) -> str:
    (tmp_path / "data.dvc").write_text(text)
    with pytest.raises(MlopsError) as caught:
        read_pointer(tmp_path / "data.dvc")
    (line,) = caught.value.problems
    return line.removeprefix(f"{tmp_path / 'data.dvc'}: ")


def test_a_pointer_tells_its_md5_and_the_hash_of_the_manifest(tmp_path: Path):
    file = tmp_path / "data.dvc"
    file.write_text(GOOD)
    assert read_pointer(file) == Pointer(file, "1b478f572e2ecdc183deccbbd5c0cd89.dir", None)
    write_sums(file, "a" * 64)
    assert read_pointer(file) == Pointer(file, "1b478f572e2ecdc183deccbbd5c0cd89.dir", "a" * 64)
    assert read_pointer(tmp_path / "other.dvc") is None
    # `dvc add` alone: another MD5, and the manifest's hash of before.
    file.write_text(file.read_text().replace("md5: 1b47", "md5: 2b47"))
    assert read_pointer(file) == Pointer(file, "2b478f572e2ecdc183deccbbd5c0cd89.dir", None)


def test_the_committed_pointer_is_one_that_may_be_read():
    pointer = read_pointer(ROOT / "data.dvc")
    assert pointer is not None
    assert pointer.sums is not None


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("1b478f", "1b47", "md5=1b47572e2ecdc183deccbbd5c0cd89.dir: must be 32 hexadecimal digits"),
        ("cd89.dir", "cd89", "md5=1b478f572e2ecdc183deccbbd5c0cd89: must be 32 hexadecimal digits and .dir"),
        ("md5: 1b478f572e2ecdc183deccbbd5c0cd89.dir", "md5: [1]", "md5=[1]: must be 32 hexadecimal digits"),
        ("md5: 1b478f572e2ecdc183deccbbd5c0cd89.dir", "md5: ../../../etc/passwd", "md5=../../../etc/passwd: must be"),
        ("path: data", "path: ../data", "the path '../data' leaves its root"),
        ("path: data", "path: /etc", "the path '/etc' leaves its root"),
        ("path: data", "path: src", "path=src: must be data"),
        ("path: data", "path: data\nwdir: ../..", "wdir=../..: must be left out"),
        ("path: data", "path: data\ncmd: rm -rf /", "names a command"),
        ("path: data", "path: data\n- path: src", "outs: must be one output"),
        ("path: data", "path: data\nmeta: {sha256sums: 12}", "meta.sha256sums=12: must be 64 hexadecimal digits"),
        ("outs:", "<<<<<<< HEAD\nouts:", "is not readable as YAML"),
        ("outs:", "outs: !!python/object/apply:os.system ['touch x']\nmore:", "is not readable as YAML"),
    ],
)
def test_a_pointer_that_leads_elsewhere_or_is_broken_is_named(tmp_path: Path, before: str, after: str, said: str):
    assert before in GOOD
    assert said in problem(tmp_path, GOOD.replace(before, after))


def test_a_huge_file_is_not_parsed(tmp_path: Path):
    assert "is no .dvc file" in problem(tmp_path, GOOD + "#" * 100_000)


def test_a_project_is_found_from_below(tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert find_root(tmp_path / "a" / "b") != tmp_path
    shutil.copytree(ROOT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
    assert find_root(tmp_path / "a" / "b") == tmp_path
