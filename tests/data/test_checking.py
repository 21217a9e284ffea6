"""The check of a source: what a person should know before training on it, and what must be mended first."""

import io
import json
import tarfile
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlops.config import DataConfig
from mlops.data.checking.check import Checked, check_source, describe_source, show_checked
from mlops.data.listing import check_classes
from mlops.data.prepare import build_index
from mlops.errors import MlopsError
from samples import attributes, png


def photograph(seed: int) -> Image.Image:
    """Soft blobs of colour: no two seeds have anything in common."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((48, 40), Image.Resampling.BICUBIC)


def write(path: Path, picture: Image.Image | bytes, **options: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, bytes):
        path.write_bytes(picture)
    else:
        picture.save(path, **options)


def check(root: Path | str, group: str | None = None) -> Checked:
    """The report on `root`, beside it."""
    config = describe_source(str(root), layout=None, group=group, csv=None)
    return check_source(config, Path(f"{root}-checked"))


def paths(found: dict) -> list[list[str]]:
    return [[one["path"] for one in pair["pictures"]] for pair in found["listed"]]


@pytest.fixture
def open_root(tmp_path: Path) -> Path:
    """Two classes of 12 photographs, none like another, without splits."""
    for seed in range(24):
        write(tmp_path / "open" / ("cat" if seed % 2 else "dog") / f"{seed:02}.png", photograph(seed))
    return tmp_path / "open"


@pytest.fixture
def split_root(tmp_path: Path) -> Path:
    """Two classes with 6 photographs in each of train, val and test."""
    for seed in range(36):
        split = ("train", "val", "test")[seed % 3]
        write(tmp_path / "split" / split / ("cat" if seed % 2 else "dog") / f"{seed:02}.png", photograph(seed))
    return tmp_path / "split"


def test_data_without_fault_has_no_fault(open_root: Path, split_root: Path):
    for root in (open_root, split_root):
        checked = check(root)
        assert (checked.leaks, checked.problems) == ([], [])
        assert [found["count"] for found in checked.values["alike"].values()] == [0, 0, 0, 0]
        assert checked.values["copies"]["count"] == 0
        assert json.loads(checked.json.read_text(encoding="utf-8")) == checked.values


def test_a_limit_looks_at_some_images_only(open_root: Path):
    config = describe_source(str(open_root), layout=None, group=None, csv=None)
    checked = check_source(replace(config, limit=10), open_root.parent / "some")
    assert checked.values["images"] == 10
    assert sorted(path.name for path in (open_root.parent / "some").iterdir()) == ["check.json", "index.html"]


def test_a_copy_byte_for_byte_in_two_splits_of_the_source_is_a_leak(split_root: Path):
    write(split_root / "test" / "cat" / "again.png", (split_root / "train" / "cat" / "03.png").read_bytes())
    checked = check(split_root)
    assert checked.leaks == [
        f"{split_root}: 1 picture in two splits of the source, byte for byte: test/cat/again.png (test, cat) = "
        "train/cat/03.png (train, cat); keep one copy of each, or set data.duplicates=drop"
    ]
    assert checked.problems == []
    assert checked.values["leaking"] == {"pictures": 1, "pairs": 0, "groups": 0}


def test_a_copy_encoded_anew_in_two_splits_of_the_source_is_a_leak(split_root: Path):
    write(split_root / "val" / "cat" / "again.jpg", photograph(3), quality=70)
    write(split_root / "test" / "dog" / "smaller.png", photograph(6).resize((36, 30)))
    checked = check(split_root)
    (line,) = checked.leaks
    assert line.startswith(f"{split_root}: 2 pairs of near-identical pictures across splits of the source: ")
    # Where a camera never moves.
    fixed = check_source(
        describe_source(str(split_root), layout=None, group=None, csv=None), split_root.parent / "o", near_leaks=False
    )
    assert fixed.leaks == []
    assert "2 pairs of near-identical pictures are in two splits of the source." in fixed.values["remarks"]
    assert "train/cat/03.png (train, cat) ~ val/cat/again.jpg (val, cat)" in line
    assert "test/dog/smaller.png (test, dog) ~ train/dog/06.png (train, dog)" in line
    assert len(checked.values["alike"]["leaks"]["listed"]) == 2
    assert checked.values["alike"]["drawn"]["count"] == 0


def test_a_group_in_two_splits_of_the_source_is_a_leak(tmp_path: Path):
    rows = ["path,label,split,group"]
    for seed in range(24):
        write(tmp_path / "csv" / f"{seed}.png", photograph(seed))
        rows.append(f"{seed}.png,{'cat' if seed % 2 else 'dog'},{('train', 'test')[seed // 18]},patient {seed // 4}")
    (tmp_path / "csv" / "labels.csv").write_text("\n".join(rows))
    checked = check(tmp_path / "csv")
    assert checked.leaks == [
        f"{tmp_path / 'csv'}: 1 group in two splits of the source: patient 4; keep each in one split, or mend data.group"
    ]
    assert checked.problems == []
    # The rest is drawn around it.
    assert checked.values["splits"]["drawn"] == ["val"]


def test_copies_where_training_draws_the_splits_are_no_leak(open_root: Path):
    write(open_root / "cat" / "copy.png", (open_root / "cat" / "01.png").read_bytes())
    checked = check(open_root)
    assert (checked.leaks, checked.problems) == ([], [])
    assert checked.values["copies"]["extra"] == 1
    (found,) = checked.values["copies"]["listed"]
    assert [one["path"] for one in found] == ["cat/01.png", "cat/copy.png"]
    assert found[0]["split"] == found[1]["split"]


def test_likenesses_across_drawn_splits_are_shown_with_what_to_do(open_root: Path):
    for seed in range(24):
        write(open_root / ("cat" if seed % 2 else "dog") / f"{seed:02}-b.jpg", photograph(seed), quality=80)
    checked = check(open_root)
    assert (checked.leaks, checked.problems) == ([], [])
    alike = checked.values["alike"]
    assert alike["drawn"]["count"] > 0
    assert alike["drawn"]["count"] + alike["groups"]["count"] == 24
    assert all(pair["pictures"][0]["split"] != pair["pictures"][1]["split"] for pair in alike["drawn"]["listed"])
    assert "name what belongs together by data.group" in checked.values["remarks"][0]
    page = checked.page.read_text(encoding="utf-8")
    assert "Near-identical across drawn splits" in page
    assert page.count("data:image/png") == 48
    # Named as groups, they are parted no more.
    assert [found["count"] for found in check(open_root, group=r"^\d+").values["alike"].values()] == [0, 0, 0, 0]


def test_the_drawn_splits_are_those_of_training(open_root: Path):
    write(open_root / "cat" / "copy.png", (open_root / "cat" / "01.png").read_bytes())
    config = describe_source(str(open_root), layout=None, group=None, csv=None)
    drawn = {split: sum(held.values()) for split, held in check(open_root).values["counts"].items()}
    splits = [item.split for item in build_index(config).items]
    assert drawn == {split: splits.count(split) for split in ("train", "val", "test")}


def test_a_picture_under_two_labels_is_a_problem_and_one_like_it_a_remark(open_root: Path):
    write(open_root / "cat" / "02.png", (open_root / "dog" / "02.png").read_bytes())
    write(open_root / "cat" / "04.jpg", photograph(4), quality=80)
    checked = check(open_root)
    assert checked.leaks == []
    assert checked.problems == [
        f"{open_root}: 1 picture under two labels, byte for byte: cat/02.png (cat) = dog/02.png (dog); keep the right "
        "one, or set data.duplicates=drop"
    ]
    assert paths(checked.values["alike"]["labels"]) == [["cat/04.jpg", "dog/04.png"]]
    assert any("have two labels" in remark for remark in checked.values["remarks"])


def test_what_cannot_be_read_is_named_with_its_reason(open_root: Path):
    bomb = io.BytesIO()
    Image.new("1", (10_001, 10_000)).save(bomb, "PNG")
    write(open_root / "cat" / "bomb.png", bomb.getvalue())
    write(open_root / "cat" / "empty.png", b"")
    write(open_root / "dog" / "page.png", b"<html>404")
    checked = check(open_root)
    (line,) = checked.problems
    assert line.startswith(f"{open_root}: 3 of 27 images cannot be read: cat/bomb.png (10001 x 10000 is more than ")
    assert [one["reason"] for one in checked.values["unreadable"]["listed"]][1:] == [
        "empty file",
        "not an image of a known format",
    ]
    assert (checked.values["images"], checked.values["readable"]) == (27, 24)


def test_where_nothing_can_be_read_there_is_a_report_too(tmp_path: Path):
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        write(tmp_path / "bad" / name, b"no")
    checked = check(tmp_path / "bad")
    assert "4 of 4 images cannot be read" in checked.problems[0]
    assert "not an image of a known format" in checked.page.read_text(encoding="utf-8")


def test_a_class_that_cannot_be_split_and_a_single_class_are_problems(open_root: Path, tmp_path: Path):
    write(open_root / "fox" / "1.png", photograph(99))
    (line,) = check(open_root).problems
    assert line.startswith("data.split: class fox has too few groups of images (1)")
    for seed in range(5):
        write(tmp_path / "one" / "cat" / f"{seed}.png", photograph(seed))
    assert check(tmp_path / "one").problems == [
        f"{tmp_path / 'one'}: holds one class only (cat); a classifier needs two or more"
    ]


def test_remarks_tell_of_few_images_imbalance_and_missing_contrast(open_root: Path):
    for seed in range(100, 130):
        write(open_root / "dog" / f"{seed}.png", photograph(seed))
    for seed in range(5):
        write(open_root / "dog" / f"blank-{seed}.png", png(seed, (20, 20), colour=(200, 200, 200 + seed)))
        write(open_root / "dog" / f"white-{seed}.png", Image.new("RGB", (20 + seed, 20), "white"))
    checked = check(open_root)
    said = "\n".join(checked.values["remarks"])
    assert "Classes with fewer than 20 images: 1 of 2 (cat)" in said
    assert "dog has 4.3 times the images of cat" in said
    assert "5 pictures with hardly any contrast: dog/white-0.png" in said
    # White is like white, and says nothing.
    assert sum(found["count"] for found in checked.values["alike"].values()) == 0


def test_names_out_of_the_data_are_text_and_never_markup(tmp_path: Path):
    evil = "<img src=x onerror=alert(1)>"
    for seed in range(6):
        write(tmp_path / "evil" / evil / f"{evil}{seed}.png", photograph(seed))
        write(tmp_path / "evil" / "b" / f"{seed}.jpg", photograph(seed), quality=80)
    write(tmp_path / "evil" / "b" / f"{evil}.png", b"")
    checked = check(tmp_path / "evil")
    page = checked.page.read_text(encoding="utf-8")
    assert checked.values["alike"]["labels"]["count"] == 6
    assert not {"img.onerror", "script"} & attributes(page)
    assert "&lt;img src=x onerror" in page


def test_hundreds_of_pairs_make_a_page_of_a_few_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mlops.data.checking.findings._MOST_LISTED", 30)
    for seed in range(60):
        for split in ("train", "test"):
            # Noise: nothing compresses worse.
            picture = Image.open(io.BytesIO(png(seed, (64, 64))))
            write(tmp_path / "many" / split / str(seed % 2) / f"{seed}.png", picture.point(lambda v: min(v + 1, 255)))
            write(tmp_path / "many" / split / str(seed % 2) / f"{seed}.{split}.bmp", picture)
    checked = check(tmp_path / "many")
    alike = checked.values["alike"]["leaks"]
    assert alike["count"] >= 60
    assert len(alike["listed"]) == 30
    assert len(checked.values["copies"]["listed"]) == 30
    page = checked.page.read_text(encoding="utf-8")
    # 24 pairs across splits and 24 across groups.
    assert page.count("data:image/png") == 96
    assert len(page) < 2_500_000


def test_a_film_is_shown_once_and_not_frame_by_frame(tmp_path: Path):
    frame = photograph(0)
    for number in range(20):
        write(tmp_path / "film" / "train" / "cat" / f"a{number}.png", frame.point(lambda v, n=number: min(v + n, 255)))
        write(tmp_path / "film" / "train" / "cat" / f"{number}.png", photograph(100 + number))
        write(tmp_path / "film" / "test" / "cat" / f"b{number}.jpg", frame, quality=95 - number)
        write(tmp_path / "film" / "test" / "dog" / f"{number}.png", photograph(200 + number))
        write(tmp_path / "film" / "train" / "dog" / f"{number}.png", photograph(300 + number))
    checked = check(tmp_path / "film", group=r"^[ab]|\d+")
    assert checked.values["alike"]["leaks"]["count"] >= 40
    page = checked.page.read_text(encoding="utf-8")
    assert page.count("data:image/png") == 2
    assert f"{checked.values['alike']['leaks']['count'] - 1} more of the same two groups" in page


def tar_of(root: Path, around: str = "") -> Path:
    with tarfile.open(f"{root}.tar", "w") as archive:
        archive.add(root, arcname=around or ".")
    return Path(f"{root}.tar")


def found_layout(path: Path, layout: str | None = None, csv: str | None = None) -> str:
    return describe_source(str(path), layout=layout, group=None, csv=csv).source


def test_the_layout_is_found_by_looking(open_root: Path, tmp_path: Path):
    assert describe_source("digits", layout=None, group=None, csv=None) == DataConfig()
    assert found_layout(open_root) == "folder"
    assert found_layout(tar_of(open_root, "around")) == "folder"
    (open_root / "cat" / "labels.csv").write_text("")
    assert found_layout(open_root) == "folder"
    (open_root / "tables").mkdir()
    (open_root / "tables" / "mine.csv").write_text("")
    assert found_layout(open_root, csv="tables/mine.csv") == "csv"
    (open_root / "Train.csv").write_text("")
    assert found_layout(open_root) == "gtsrb"
    assert found_layout(tar_of(open_root, "around")) == "gtsrb"
    assert found_layout(open_root, layout="folder") == "folder"
    (open_root / "labels.csv").write_text("")
    assert found_layout(tar_of(open_root)) == "csv"
    config = describe_source(str(open_root), layout="folder", group=r"^\d", csv=None)
    assert (config.root, config.group) == (str(open_root), r"^\d")


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("nowhere", {}, "SOURCE=nowhere: no such folder or archive"),
        ("digits", {"layout": "csv"}, "digits: has no layout and no table"),
        ("digits", {"group": "a"}, "--group=a: digits has groups of its own"),
        (".", {"layout": "cvs"}, "--layout=cvs: is no layout; choices: folder, csv, gtsrb"),
        (".", {"layout": "folder", "csv": "a.csv"}, "--csv=a.csv: layout folder reads no table"),
        (".", {"layout": "folder", "group": "("}, "data.group=(: is not a regular expression"),
    ],
)
def test_what_does_not_fit_is_refused(source: str, options: dict, said: str, workplace: Path):
    with pytest.raises(MlopsError, match=said.replace("(", r"\(").replace(".", r"\.")):
        describe_source(source, **{"layout": None, "group": None, "csv": None, **options})


def test_the_summary_says_what_was_found_and_where_it_is(split_root: Path, capsys: pytest.CaptureFixture[str]):
    write(split_root / "test" / "cat" / "again.jpg", photograph(3), quality=80)
    checked = check(split_root)
    show_checked(checked)
    said = " ".join(capsys.readouterr().out.split())
    assert f"source folder, {split_root}" in said
    assert "images 37 in 2 classes" in said
    assert "near-identical 1 pair in two splits of the source" in said
    assert "leaks between splits 1" in said
    assert str(checked.page) in said


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (["cat", "dog"], []),
        (["-1", "+2.5", "0", "-,5", "a=b", "Ärger", "stop (1)"], []),
        (["a\nb", "c"], [r"pets: class 'a\nb' has a line break or another unprintable character; rename"]),
        (["a\u202eb", "c"], ["has a line break or another unprintable character"]),
        (["=1+1", "@x", "-x", "+1-2", "\uff1d1"], ["'=1+1' would be run as a formula", "'@x'", "'-x'", "'+1-2'", "1'"]),
        (
            ["Cat", "cat", "dog"],
            ["pets: classes 'Cat' and 'cat' differ only in case; rename the folder or the label of"],
        ),
        (["cat", "cat "], ["'cat' and 'cat ' differ only in the blanks around them"]),
        ([unicodedata.normalize(form, "é") for form in ("NFC", "NFD")], [r"'\xe9' and 'e\u0301' differ only in how"]),
        (["STRASSE", "straße"], ["differ only in case"]),
    ],
)
def test_names_of_classes_that_make_trouble_are_named(classes: Sequence[str], said: Sequence[str]):
    problems = check_classes(classes, "pets")
    assert len(problems) == len(said)
    for problem, part in zip(problems, said, strict=True):
        assert part in problem


def test_a_report_has_the_problems_of_names_of_classes(open_root: Path):
    (open_root / "cat").rename(open_root / "Dog ")
    assert any("differ only in" in problem for problem in check(open_root).problems)
