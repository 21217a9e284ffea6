import contextlib
import io
import os
import pickle
import random
import stat
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlops.data.tree import Tree, open_tree
from mlops.errors import MlopsError

FILES = {"a/1.png": b"one", "a/2.png": b"two", "b/3.png": b"three"}


def make(kind: str, folder: Path, files: dict[str, bytes] = FILES) -> Path:
    """A folder, .tar or .zip that holds `files`."""
    path = folder / f"images.{kind}"
    if kind == "folder":
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    return path


@pytest.fixture(params=["folder", "tar", "zip"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    return open_tree(make(request.param, tmp_path))


def test_folder_tar_and_zip_hold_the_same_files(tree: Tree):
    assert tree.names == sorted(FILES)
    assert tree.folders == ["a", "b"]
    assert {name: tree.read(name) for name in tree.names} == FILES


def test_a_tree_that_was_read_can_be_sent_to_another_process(tree: Tree):
    tree.read("a/1.png")
    assert pickle.loads(pickle.dumps(tree)).read("b/3.png") == b"three"


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_hidden_files_and_what_macos_adds_are_left_out(kind: str, tmp_path: Path):
    extra = {".DS_Store": b"", "a/.hidden.png": b"", ".git/x": b""}
    if kind != "folder":
        extra["__MACOSX/a/1.png"] = b""
    assert open_tree(make(kind, tmp_path, FILES | extra)).names == sorted(FILES)


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/x.png"])
def test_an_archive_with_an_unsafe_name_is_refused(kind: str, name: str, tmp_path: Path):
    with pytest.raises(MlopsError, match="leaves its root"):
        open_tree(make(kind, tmp_path, FILES | {name: b""}))


def test_a_link_that_leaves_the_folder_is_refused_and_one_inside_is_followed(tmp_path: Path):
    root = make("folder", tmp_path)
    (root / "a" / "inside.png").symlink_to(root / "b" / "3.png")
    assert open_tree(root).read("a/inside.png") == b"three"
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "a" / "outside.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(MlopsError, match=r"a/outside\.png: is a link that leaves the folder"):
        open_tree(root)


def test_a_linked_folder_outside_and_one_that_holds_itself_are_refused(tmp_path: Path):
    root = make("folder", tmp_path)
    (tmp_path / "other").mkdir()
    (root / "c").symlink_to(tmp_path / "other")
    with pytest.raises(MlopsError, match="leaves the folder"):
        open_tree(root)
    (root / "c").unlink()
    (root / "a" / "loop").symlink_to(root)
    with pytest.raises(MlopsError, match="remove the link"):
        open_tree(root)


def test_a_link_inside_a_tar_is_refused(tmp_path: Path):
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a/x.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(MlopsError, match=r"a/x\.png is a link"):
        open_tree(path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes among its files")
def test_a_pipe_among_the_files_does_not_block(tmp_path: Path):
    root = make("folder", tmp_path)
    os.mkfifo(root / "a" / "pipe.png")
    assert stat.S_ISFIFO((root / "a" / "pipe.png").stat().st_mode)
    with pytest.raises(OSError, match="not a regular file"):
        open_tree(root).read("a/pipe.png")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_holds_a_name_twice_is_refused(tmp_path: Path):
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a/1.png"))
        archive.addfile(tarfile.TarInfo("a/1.png"))
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a/1.png", b"one")
        archive.writestr("a/1.png", b"other")
    for kind in ("tar", "zip"):
        with pytest.raises(MlopsError, match=r"holds a/1\.png twice"):
            open_tree(tmp_path / f"twice.{kind}")


def test_what_is_not_there_or_no_archive_is_one_line(tmp_path: Path):
    with pytest.raises(MlopsError, match=r"data\.root=.*nowhere: no such folder or archive"):
        open_tree(tmp_path / "nowhere")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(MlopsError, match=r"is neither a folder nor a \.tar nor a \.zip"):
        open_tree(tmp_path / "text")


def test_a_compressed_tar_is_refused_with_what_to_do(tmp_path: Path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a/1.png"))
    with pytest.raises(MlopsError, match="compressed"):
        open_tree(tmp_path / "x.tar.gz")


def test_a_damaged_archive_is_one_line(tmp_path: Path):
    whole = make("zip", tmp_path).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-30])
    with pytest.raises(MlopsError, match="cut"):
        open_tree(tmp_path / "cut.zip")


def test_a_name_that_is_not_utf8_is_refused_with_what_to_do(tmp_path: Path):
    root = make("folder", tmp_path)
    try:
        (root / "a" / os.fsdecode(b"gr\xfcn.png")).write_bytes(b"x")
    except (OSError, UnicodeDecodeError):
        pytest.skip("this file system holds only UTF-8 names")
    with pytest.raises(MlopsError, match=r"gr\\udcfcn\.png' is not UTF-8; rename it"):
        open_tree(root)


def test_a_damaged_member_of_a_zip_is_that_images_fault_only(tmp_path: Path):
    path = make("zip", tmp_path, {"a/1.png": bytes(1000), "a/2.png": b"two"})
    data = bytearray(path.read_bytes())
    data[data.index(b"a/1.png") + 7] ^= 0xFF  # the first byte of the deflated data
    path.write_bytes(data)
    tree = open_tree(path)
    with pytest.raises(OSError, match="damaged in the archive"):
        tree.read("a/1.png")
    assert tree.read("a/2.png") == b"two"


def test_many_threads_read_the_same_archive(tmp_path: Path):
    files = {f"a/{n}.png": os.urandom(5000) for n in range(200)}
    for kind in ("tar", "zip"):
        tree = open_tree(make(kind, tmp_path, files))
        with ThreadPoolExecutor(8) as pool:
            assert dict(zip(files, pool.map(tree.read, files), strict=True)) == files


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_random_damage_is_one_line_or_an_unreadable_image_and_never_a_traceback(kind: str, seed: int, tmp_path: Path):
    path = make(kind, tmp_path)
    data, rng = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(8):
        data[rng.randrange(min(len(data), 4096))] = rng.randrange(256)
    path.write_bytes(data)
    try:
        tree = open_tree(path)
    except MlopsError:
        return
    for name in tree.names:
        with contextlib.suppress(OSError):
            tree.read(name)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no named pipes in folders")
def test_a_pipe_is_no_place_for_images_and_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MlopsError, match=r"data\.root=.*pipe: is a device or a pipe, not a file"):
        open_tree(tmp_path / "pipe")


def test_a_tar_that_was_cut_is_refused_wherever_it_was_cut(tmp_path: Path):
    whole = make("tar", tmp_path).read_bytes()
    last = whole.rindex(b"three")
    cut = tmp_path / "cut.tar"
    # Between two members, Python's own reader takes it for a shorter archive.
    for length in range(0, last + 512, 512):
        cut.write_bytes(whole[:length])
        with pytest.raises(MlopsError, match=r"cut\.tar"):
            open_tree(cut)
    cut.write_bytes(whole[: last - last % 512 + 1024])
    assert open_tree(cut).names == sorted(FILES)
