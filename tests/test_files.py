import errno
import os
from pathlib import Path

import pytest

from mlops.errors import MlopsError
from mlops.files import atomic, safe_relative, write_text, writing_to


def test_a_write_that_fails_half_way_keeps_the_old_file_and_leaves_no_other(tmp_path: Path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_write_replaces_the_file_and_makes_its_folder(tmp_path: Path):
    path = tmp_path / "new" / "file"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_new_file_has_the_mode_that_any_new_file_would_have(tmp_path: Path):
    write_text(tmp_path / "ours", "")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_full_disk_is_one_line_for_the_user_and_a_bug_keeps_its_traceback(tmp_path: Path):
    with pytest.raises(MlopsError, match="No space left on device; free some space"), writing_to(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="Bad file descriptor"), writing_to(tmp_path):
        raise OSError(errno.EBADF, "Bad file descriptor")


def test_an_impossible_path_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(MlopsError, match=r"cannot be used: .*; choose another path"):
            write_text(path, "text")


def test_a_link_is_followed_and_not_replaced(tmp_path: Path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


@pytest.mark.skipif(os.name != "posix", reason="Windows has no named pipes in folders")
def test_text_goes_into_a_pipe_and_no_file_takes_the_place_of_one(tmp_path: Path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "text")
        assert os.read(end, 100) == b"text"
    finally:
        os.close(end)
    for path in (pipe, link):
        with pytest.raises(MlopsError, match="is a device or a pipe, not a file; name a file"), atomic(path):
            pass
        assert path.is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "link"}


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "C:/x", "a\\..\\x", "", "a\0b"])
def test_a_path_that_leaves_its_root_is_refused(name: str):
    with pytest.raises(MlopsError, match=r"Train\.csv line 2: the path .* leaves its root"):
        safe_relative(name, "Train.csv line 2")


def test_a_path_inside_its_root_is_normalised():
    assert safe_relative("./a//b.png", "here") == "a/b.png"
