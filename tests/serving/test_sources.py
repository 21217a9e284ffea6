"""Where models come from: a file is taken when it is another one, and only as a whole."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from mlops import onnx_file
from mlops.errors import MlopsError
from mlops.serving.sources import Source
from serving.models import write_model


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "own").mkdir()
    write_model(tmp_path / "m.onnx")
    return Source("m", str(tmp_path / "m.onnx"), tmp_path / "own")


def kept(source: Source) -> int:
    return len(list(source.folder.iterdir()))


def test_a_file_is_copied_so_that_nobody_changes_what_workers_read(source: Source):
    assert source.look()
    assert source.snapshot is not None
    content = Path(source.where).read_bytes()
    assert source.snapshot.sha256 == hashlib.sha256(content).hexdigest()
    Path(source.where).write_bytes(b"")
    assert source.snapshot.path.read_bytes() == content


def test_the_same_file_is_not_taken_again(source: Source):
    assert source.look()
    first = source.snapshot
    assert not source.look()
    os.utime(source.where, (1, 1))
    assert not source.look()
    assert not source.look(again=True)
    assert source.snapshot is first
    assert kept(source) == 1


def test_another_file_is_another_snapshot_even_if_it_was_there_before(source: Source):
    """Whoever still reads the first one, or removes it, does not hit the third."""
    here = Path(source.where)
    paths = []
    for scale in (8.0, 1.0, 8.0):
        write_model(here, scale=scale)
        os.utime(here, (len(paths), len(paths)))
        assert source.look()
        assert source.snapshot is not None
        paths.append(source.snapshot.path)
    assert len(set(paths)) == 3
    assert source.replaced == paths[:2]


def test_a_bad_file_is_told_of_once_and_leaves_the_one_before(source: Source):
    source.look()
    before = source.snapshot
    Path(source.where).write_bytes(b"text")
    with pytest.raises(MlopsError, match="no ONNX file"):
        source.look()
    assert "no ONNX file" in str(source.refused)
    assert not source.look()
    assert "no ONNX file" in str(source.refused)
    assert source.snapshot is before
    assert kept(source) == 1
    write_model(Path(source.where))
    assert not source.look()  # it is what it was
    assert source.refused is None


def test_a_file_that_is_missing_is_told_of_as_long_as_it_is(source: Source):
    source.look()
    Path(source.where).unlink()
    for _ in range(2):
        with pytest.raises(MlopsError, match="no such file"):
            source.look()


def test_a_file_that_is_too_large_to_be_a_model_is_not_copied(source: Source, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 100)
    with pytest.raises(MlopsError, match="is larger than 100 bytes; that is no ONNX file"):
        source.look()
    assert kept(source) == 0


@pytest.mark.skipif(os.name != "posix", reason="Windows has no named pipes in folders")
def test_a_pipe_is_not_waited_for(source: Source):
    Path(source.where).unlink()
    os.mkfifo(source.where)
    with pytest.raises(MlopsError, match="is a device or a pipe"):
        source.look()


def test_what_is_secret_in_an_address_is_not_shown(tmp_path: Path):
    assert "secret" not in Source("m", "https://user:secret@host/m.onnx", tmp_path).shown


def test_a_copy_that_failed_is_tried_again_at_the_next_look(source: Source, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mlops.serving.sources.shutil.copyfile", full)
        with pytest.raises(MlopsError, match="No space left"):
            source.look()
    assert source.look()
    assert source.refused is None
