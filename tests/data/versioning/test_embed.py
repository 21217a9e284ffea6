"""The data set that the committed `data.dvc` describes is made again, byte for byte."""

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import yaml

from conftest import Command
from mlops.config import DataConfig
from mlops.data.sources import digits, open_source
from mlops.data.versioning.embed import ARCHIVE, DVC_MD5, SHA256
from mlops.data.versioning.here import version_of
from samples import ROOT

# The committed pointer, kept apart: a user's own data.dvc takes its place.
FIXTURE = ROOT / "tests" / "fixtures" / "digits.dvc"


@pytest.fixture
def project(workplace: Path) -> Path:
    """A fresh clone's data files: no bucket, nothing pulled."""
    shutil.copytree(ROOT / ".dvc", workplace / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local"))
    shutil.copy(ROOT / ".dvcignore", workplace)
    shutil.copy(FIXTURE, workplace / "data.dvc")
    return workplace


def test_the_archive_and_its_version_are_those_of_the_fixture(project: Path, mlops_command: Command):
    assert mlops_command("data", "embed").code == 0
    archive = project / "data" / ARCHIVE
    sums = (project / "data" / "SHA256SUMS").read_bytes()
    files = [("SHA256SUMS", sums), (ARCHIVE, archive.read_bytes())]
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == SHA256
    # As DVC counts a folder: the MD5 of this JSON.
    listed = [{"md5": hashlib.md5(content).hexdigest(), "relpath": name} for name, content in files]
    told = yaml.safe_load(FIXTURE.read_text())
    (out,) = told["outs"]
    assert out["md5"] == f"{hashlib.md5(json.dumps(listed).encode()).hexdigest()}.dir" == DVC_MD5
    assert (out["size"], out["nfiles"]) == (sum(len(content) for _, content in files), 2)
    assert told["meta"] == {"sha256sums": hashlib.sha256(sums).hexdigest(), "sha256sums_of": DVC_MD5}


def test_the_archive_holds_the_digits_and_is_read_in_place(project: Path, mlops_command: Command):
    assert mlops_command("data", "embed").code == 0
    with tarfile.open(project / "data" / ARCHIVE) as archive:
        assert len(archive.getnames()) == 1797
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in archive} == {(0, 0, 0, "", 0o644)}
    config = DataConfig(source="folder", root=f"data/{ARCHIVE}")
    listing, own = open_source(config), digits()
    assert [(entry.path, entry.label) for entry in listing.entries] == [(e.path, e.label) for e in own.entries]
    assert listing.tree.read("7/0007.pgm") == own.tree.read("7/0007.pgm")
    version = version_of(config)
    assert version is not None
    assert version.md5 == DVC_MD5


def test_without_a_bucket_pulling_writes_it(project: Path, mlops_command: Command):
    done = mlops_command("data", "pull")
    assert done.code == 0, done.err
    assert (project / "data" / ARCHIVE).exists()
    assert DVC_MD5 in done.out


def test_the_digits_take_the_place_of_nothing(project: Path, mlops_command: Command):
    (project / "data").mkdir()
    (project / "data" / "mine.png").write_text("x")
    done = mlops_command("data", "embed")
    assert done.code == 2
    assert "holds mine.png; the digits belong into an empty folder" in done.errors[0]
    (project / "data" / "mine.png").unlink()
    for name in (ARCHIVE, "SHA256SUMS"):
        (project / "data" / name).write_text("my own")
        for command in ("embed", "pull"):
            done = mlops_command("data", command)
            assert done.code == 2
            assert f"holds {name}; the digits belong" in done.errors[0]
            assert (project / "data" / name).read_text() == "my own"
        (project / "data" / name).unlink()
    (project / "data.dvc").write_text(FIXTURE.read_text().replace(DVC_MD5, f"{'0' * 32}.dir"))
    done = mlops_command("data", "embed")
    assert done.code == 2
    assert "does not name the digits" in done.errors[0]
    assert not (project / "data" / ARCHIVE).exists()
