"""Data that must be refused, met as a user meets it: one line, exit code 2, nothing lost and nothing left behind."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from conftest import Command
from mlops import checkpoint
from samples import QUICK, png

TRACKS = [f"Train/{c}/{c:05}_{t:05}_{f:05}.png" for c in (0, 1) for t in range(4) for f in range(2)]


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def classes(root: Path, **counts: int) -> Path:
    return write(root, {f"{name}/{n}.png": png(n) for name, count in counts.items() for n in range(count)})


def signs(root: Path, *rows: str, header: str = "ClassId,Path") -> Path:
    lines = [header, *(f"{name.split('/')[1]},{name}" for name in TRACKS), *rows]
    return write(root, {"Train.csv": "\n".join(lines).encode()} | {name: png() for name in TRACKS})


def missing(root: Path) -> Path:
    return root / "nowhere"


def empty_class(root: Path) -> Path:
    (classes(root, a=9, b=9) / "c").mkdir()
    return root


def linked(root: Path) -> Path:
    (root.parent / "secret.png").write_bytes(png())
    signs(root, "0,Train/0/00000_00009_00000.png")
    (root / "Train/0/00000_00009_00000.png").symlink_to(root.parent / "secret.png")
    return root


def archive(root: Path) -> Path:
    with tarfile.open(root.with_suffix(".tar"), "w") as tar:
        for name in ("a/1.png", "b/1.png", "../x.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png())
            tar.addfile(member, io.BytesIO(png()))
    return root.with_suffix(".tar")


def cut_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()[:900]


def with_file(name: str, data: bytes) -> Callable[[Path], Path]:
    return lambda root: write(classes(root, a=9, b=9), {name: data})


@pytest.mark.parametrize(
    ("source", "make", "problem"),
    [
        (
            "folder",
            missing,
            "data.root={root}/nowhere: no such folder or archive; set data.root to where the images are",
        ),
        ("folder", empty_class, "{root}/c: class folder without images; fill it or remove it"),
        ("folder", lambda root: classes(root, a=9), "{root}: holds one class only (a); a classifier needs two or more"),
        (
            "folder",
            lambda root: classes(root, a=9, b=2),
            "data.split: class b has too few groups of images (2) to stand in",
        ),
        ("folder", lambda root: write(root, {"1.png": png()}), "{root}: holds no images as <class>/<image>"),
        ("folder", with_file("a/cut.jpg", cut_jpeg()), "a/cut.jpg ("),
        ("folder", with_file("a/none.png", b""), "a/none.png (empty file)"),
        ("folder", with_file("a/page.png", b"<html>404</html>"), "a/page.png (not an image of a known format)"),
        ("folder", archive, "the path '../x.png' leaves its root"),
        ("gtsrb", missing, "no such folder or archive"),
        ("gtsrb", lambda root: signs(root, header="Label,Path"), "{root}: Train.csv has no column ClassId"),
        (
            "gtsrb",
            lambda root: signs(root, "1,../../etc/passwd"),
            "Train.csv line 18: the path '../../etc/passwd' leaves",
        ),
        (
            "gtsrb",
            lambda root: signs(root, "1,/etc/passwd"),
            "Train.csv line 18: the path '/etc/passwd' leaves its root",
        ),
        ("gtsrb", linked, "00000_00009_00000.png: is a link that leaves the folder"),
    ],
)
@pytest.mark.parametrize("command", ["preprocess", "train"])
def test_bad_data_is_one_line_and_exit_code_2(
    command: str,
    source: str,
    make: Callable[[Path], Path],
    problem: str,
    tmp_path: Path,
    workplace: Path,
    hydra_command: Command,
):
    root = tmp_path / "images"
    root.mkdir()
    path = make(root)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    done = hydra_command(command, f"data={source}", f"data.root={path}", "data.image_size=8", "tracking=off")
    assert done.code == 2, done
    (line,) = done.errors
    assert problem.format(root=root) in line
    assert "Traceback" not in done.err
    assert {p: p.read_bytes() for p in before} == before
    assert not list(workplace.rglob("*.npy"))
    assert not list(workplace.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["x\n\x1b[31m", "[red]", "${oc.env:HOME}", "a=b", "$a_b_c$"])
def test_strange_class_names_are_names_and_nothing_else(
    name: str, tmp_path: Path, workplace: Path, hydra_command: Command
):
    classes(tmp_path / "images", **{name: 9}, plain=9)
    done = hydra_command("train", *QUICK, f"data.root={tmp_path}/images")
    assert done.code == 0, done.err
    assert "\x1b" not in done.out + done.err
    (file,) = workplace.glob("outputs/*/*/best_model.pth")
    assert sorted(checkpoint.read_metadata(file)["classes"]) == sorted([name, "plain"])
