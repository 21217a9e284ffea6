"""Data that must be refused, met as a user meets it: one line, exit code 2, nothing lost and nothing left behind."""

import io
import sys
import tarfile
import zlib
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


def own(name: str) -> bytes:
    """A picture that no other name has."""
    return png(zlib.crc32(name.encode()))


def classes(root: Path, **counts: int) -> Path:
    return write(root, {f"{name}/{n}.png": own(f"{name}/{n}") for name, count in counts.items() for n in range(count)})


def signs(root: Path, *rows: str, header: str = "ClassId,Path") -> Path:
    lines = [header, *(f"{name.split('/')[1]},{name}" for name in TRACKS), *rows]
    return write(root, {"Train.csv": "\n".join(lines).encode()} | {name: png() for name in TRACKS})


def table(*rows: str, header: str = "path,label", **more: bytes) -> Callable[[Path], Path]:
    """labels.csv with `rows` after enough good ones, and the images that it names."""
    names = [f"{label}{n}.png" for label in "ab" for n in range(9)]

    def make(root: Path) -> Path:
        text = "\n".join([header, *(f"{name},{name[0]}" for name in names), *rows])
        return write(root, {"labels.csv": text.encode()} | {name: png(n) for n, name in enumerate(names)} | more)

    return make


def boxed(box: str) -> Callable[[Path], Path]:
    """GTSRB whose first box is `box`; the pictures are 12 x 10."""

    def make(root: Path) -> Path:
        lines = ["Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path"]
        lines += [f"{'1,1,9,9' if n else box},{name.split('/')[1]},{name}" for n, name in enumerate(TRACKS)]
        files = {name: png(n) for n, name in enumerate(TRACKS)}
        return write(root, {"Train.csv": "\n".join(lines).encode()} | files)

    return make


def copies(root: Path) -> Path:
    pictures = {
        f"{split}/{c}/{n}.png": own(f"{split}/{c}/{n}") for split in ("train", "test") for c in "ab" for n in range(9)
    }
    return write(root, pictures | {"train/a/x.png": png(1), "test/a/y.png": png(1)})


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
        ("gtsrb roi", boxed("1,1,13,9"), "(its box 1, 1, 13, 9 is empty or leaves the 12 x 10 picture)"),
        ("gtsrb roi", boxed("9,1,1,9"), "(its box 9, 1, 1, 9 is empty or leaves"),
        ("gtsrb roi", boxed("1,1,x,9"), "(its box is not four whole numbers)"),
        ("gtsrb roi", boxed("1,1,1e9,9"), "(its box is not four whole numbers)"),
        ("gtsrb roi", boxed(f"1,1,{'9' * 5000},9"), "(its box is not four whole numbers)"),
        ("gtsrb roi", signs, "{root}: Train.csv has no column Roi.X1"),
        ("folder roi", lambda root: classes(root, a=9, b=9), "data.roi=true: data.source=folder has no boxes"),
        ("csv", missing, "no such folder or archive"),
        ("csv", lambda root: classes(root, a=9, b=9), "{root}: holds no labels.csv; data.source=csv needs it"),
        ("csv", table(header="file,label"), "{root}: labels.csv has no column path; it needs path, label"),
        ("csv", table("../../etc/passwd,a"), "labels.csv line 20: the path '../../etc/passwd' leaves its root"),
        ("csv", table("/etc/passwd,a"), "labels.csv line 20: the path '/etc/passwd' leaves its root"),
        ("csv", table("none.png,a"), "labels.csv line 20: path=none.png: is not there"),
        ("csv", table("a1.png,a"), "line 20: path=a1.png: is named before, in labels.csv line 3"),
        ("csv [a,b]", table("x.png,B", **{"x.png": png(99)}), "line 20: label=B: is not in data.classes; it has a, b"),
        ("csv", table("x.png,", **{"x.png": png(99)}), "labels.csv line 20: label: is empty"),
        ("csv", table("x.png,b", **{"x.png": png(0)}), "a0.png (a) = x.png (b); mend the source, or set data.dupl"),
        ("csv", table("\0,a"), "labels.csv"),
        ("folder", copies, "test/a/y.png (test, a) = train/a/x.png (train, a)"),
    ],
)
# The same code reads the data for both.
@pytest.mark.parametrize("command", ["preprocess", pytest.param("train", marks=pytest.mark.slow)])
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
    source, *options = source.split()
    settings = ["data.roi=true" if option == "roi" else f"data.classes={option}" for option in options]
    done = hydra_command(command, f"data={source}", f"data.root={path}", "data.image_size=8", "tracking=off", *settings)
    assert done.code == 2, done
    (line,) = done.errors
    assert problem.format(root=root) in line
    assert "Traceback" not in done.err
    assert {p: p.read_bytes() for p in before} == before
    assert not list(workplace.rglob("*.npy"))
    assert not list(workplace.rglob("*.tmp"))


def test_every_row_that_is_wrong_is_named_at_once(tmp_path: Path, workplace: Path, hydra_command: Command):
    (tmp_path / "images").mkdir()
    root = table("none.png,a", "a1.png,b", "../x.png,a")(tmp_path / "images")
    done = hydra_command("preprocess", "data=csv", f"data.root={root}", "data.classes=[a,b,c]")
    assert done.code == 2
    assert [line.split(": ", 2)[1] for line in done.errors] == [f"labels.csv line {n}" for n in (20, 21, 22)]


def test_an_unknown_data_set_is_named_with_its_near_match(workplace: Path, hydra_command: Command):
    done = hydra_command("train", "data=torchvision", "data.dataset=CIFAR_10")
    assert done.code == 2
    assert done.errors[0].startswith("data.dataset=CIFAR_10: no such data set; did you mean CIFAR10? Choices: ")
    assert list(workplace.iterdir()) == []


NOT_ON_WINDOWS = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no folder of such a name")


@pytest.mark.parametrize(
    "name",
    [
        "[red]",
        pytest.param("${oc.env:HOME}", marks=NOT_ON_WINDOWS),  # a colon
        "a=b",
        "$a_b_c$",
    ],
)
@pytest.mark.slow
def test_strange_class_names_are_names_and_nothing_else(
    name: str, tmp_path: Path, workplace: Path, hydra_command: Command
):
    classes(tmp_path / "images", **{name: 9}, plain=9)
    done = hydra_command("train", *QUICK, f"data.root={tmp_path}/images")
    assert done.code == 0, done.err
    assert "\x1b" not in done.out + done.err
    (file,) = workplace.glob("outputs/*/*/best_model.pth")
    assert sorted(checkpoint.read_metadata(file)["classes"]) == sorted([name, "plain"])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        pytest.param(["x\n\x1b[31m"], r"class 'x\n\x1b[31m' has a line break", marks=NOT_ON_WINDOWS),
        (["=cmd"], "class '=cmd' would be run as a formula by a spreadsheet; rename the folder or the label"),
        pytest.param(["Cat", "cat"], "classes 'Cat' and 'cat' differ only in case", marks=NOT_ON_WINDOWS),
    ],
)
def test_names_that_tables_and_folders_cannot_hold_are_refused_before_anything_is_made(
    names: list[str], said: str, tmp_path: Path, workplace: Path, hydra_command: Command
):
    classes(tmp_path / "images", **dict.fromkeys(names, 9), plain=9)
    for command in ("preprocess", "train"):
        done = hydra_command(command, "data=folder", f"data.root={tmp_path}/images", "data.image_size=8")
        assert done.code == 2
        (line,) = done.errors
        assert said in line.replace("\\\\", "\\")
        assert "\x1b" not in done.out + done.err
    assert not list(workplace.glob("data/processed/*/manifest.json"))
