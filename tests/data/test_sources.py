from pathlib import Path

import pytest

from mlops.config import DataConfig
from mlops.data.sources import Entry, digits, folder, gtsrb, open_source
from mlops.data.tree import MemoryTree
from mlops.errors import MlopsError
from mlops.image import decode
from samples import png


def tree(*names: str, **texts: str) -> MemoryTree:
    """Images by name, and csv files by name without its ending."""
    files = {name: png() for name in names} | {f"{name}.csv": text.encode() for name, text in texts.items()}
    return MemoryTree("images", files)


def frames(class_id: int, track: int, count: int = 2) -> list[str]:
    return [f"Train/{class_id}/{class_id:05}_{track:05}_{frame:05}.png" for frame in range(count)]


def rows(names: list[str]) -> str:
    return "Width,ClassId,Path\n" + "".join(f"9,{name.split('/')[1]},{name}\n" for name in names)


NAMES = [*frames(2, 0), *frames(2, 1), *frames(10, 0)]


def test_the_digits_are_the_real_ones_in_their_order():
    listing = digits()
    assert len(listing.entries) == 1797
    assert listing.classes == [str(digit) for digit in range(10)]
    first = next(entry for entry in listing.entries if entry.path == "0/0000.pgm")
    pixels = decode(listing.tree.read(first.path), (8, 8)).pixels
    # The first row of scikit-learn's first zero: 0 0 5 13 9 1 0 0, of 16.
    assert [round(int(value) * 16 / 255) for value in pixels[0, :, 0]] == [0, 0, 5, 13, 9, 1, 0, 0]


def test_gtsrb_takes_classes_tracks_and_names_from_its_files():
    listing = gtsrb(tree(*NAMES, Train=rows(NAMES), signnames="ClassId,SignName\n2,Speed limit\n10,No passing\n"))
    assert listing.classes == ["Speed limit", "No passing"]
    assert [entry.group for entry in listing.entries] == [
        "10/00000",
        "10/00000",
        "2/00000",
        "2/00000",
        "2/00001",
        "2/00001",
    ]
    assert [entry.label for entry in listing.entries] == [1, 1, 0, 0, 0, 0]
    assert {entry.split for entry in listing.entries} == {None}


def test_gtsrb_without_names_calls_its_classes_by_number():
    assert gtsrb(tree(*NAMES, Train=rows(NAMES))).classes == ["2", "10"]


def test_gtsrb_uses_the_official_test_set_where_it_is():
    test = "ClassId,Path\n2,Test/00000.png\n10,Test/00001.png\n"
    listing = gtsrb(tree(*NAMES, "Test/00000.png", "Test/00001.png", Train=rows(NAMES), Test=test))
    assert [entry.split for entry in listing.entries] == ["test", "test", *[None] * 6]
    assert listing.entries[0] == Entry("Test/00000.png", 0, "Test/00000.png", "test")


def test_gtsrb_gives_the_boxes_of_both_tables_where_they_are_asked_for():
    train = "Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path\n" + "".join(f"1,2,3,4,{n.split('/')[1]},{n}\n" for n in NAMES)
    test = "Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path\n5,6,7,8,2,Test/00000.png\n"
    images = tree(*NAMES, "Test/00000.png", Train=train, Test=test)
    assert [entry.box for entry in gtsrb(images, roi=True).entries] == [(5, 6, 7, 8), *[(1, 2, 3, 4)] * 6]
    assert {entry.box for entry in gtsrb(images).entries} == {None}
    with pytest.raises(MlopsError, match=r"Train\.csv has no column Roi\.X1"):
        gtsrb(tree(*NAMES, Train=rows(NAMES)), roi=True)


def test_gtsrb_is_found_in_the_folder_it_was_packed_with():
    packed = MemoryTree("images", {f"gtsrb/{n}": b"" for n in NAMES} | {"gtsrb/Train.csv": rows(NAMES).encode()})
    assert gtsrb(packed).entries[0].path == "gtsrb/Train/10/00010_00000_00000.png"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Width,Path\n9,x\n", "Train.csv has no column ClassId; it needs ClassId, Path"),
        ("ClassId,Path\n1,../../etc/passwd\n", "Train.csv line 2: the path '../../etc/passwd' leaves its root"),
        ("ClassId,Path\n1,/etc/passwd\n", "Train.csv line 2: the path '/etc/passwd' leaves its root"),
        ("ClassId,Path\n1,Train/1/none.png\n", "line 2: names Train/1/none.png, which is not there"),
        ("ClassId,Path\nx,Train/2/00002_00000_00000.png\n", "line 2: ClassId='x': must be a whole number"),
        ("ClassId,Path\n2,odd.png\n", "odd.png is not named <class>_<track>_<frame>"),
        ("ClassId,Path\n2\n", "line 2: has no Path"),
        ("ClassId,Path\n", "Train.csv holds no rows"),
        ("", "Train.csv has no column ClassId"),
        (f"ClassId,Path\n{'9' * 5000},{NAMES[0]}\n", "must be a whole number"),
        (rows([*NAMES, NAMES[0]]), "names Train/2/00002_00000_00000.png twice"),
    ],
)
def test_a_wrong_train_csv_is_named_with_its_line(text: str, problem: str):
    with pytest.raises(MlopsError) as caught:
        gtsrb(tree(*NAMES, "odd.png", Train=text))
    assert problem in str(caught.value)


def test_gtsrb_without_its_csv_says_which_source_needs_none():
    with pytest.raises(MlopsError, match=r"holds no Train\.csv; .* \(data\.source=folder does not\)"):
        gtsrb(tree(*NAMES))


def test_csv_bytes_that_are_no_text_are_one_line():
    with pytest.raises(MlopsError, match="not readable as CSV"):
        gtsrb(MemoryTree("images", {"Train.csv": b"\xff\xfe\x00Class"}))


def test_a_folder_gives_its_classes_in_order_and_ignores_other_files():
    listing = folder(tree("dog/1.png", "cat/2.JPG", "cat/deep/3.png", "cat/notes.txt", "readme.md"), None)
    assert listing.classes == ["cat", "dog"]
    assert [(entry.path, entry.label) for entry in listing.entries] == [
        ("cat/2.JPG", 0),
        ("cat/deep/3.png", 0),
        ("dog/1.png", 1),
    ]


def test_a_folder_of_splits_keeps_them():
    listing = folder(tree("train/a/1.png", "train/b/2.png", "valid/a/3.png", "Test/b/4.png"), None)
    assert listing.classes == ["a", "b"]
    assert {entry.path: entry.split for entry in listing.entries} == {
        "train/a/1.png": "train",
        "train/b/2.png": "train",
        "valid/a/3.png": "val",
        "Test/b/4.png": "test",
    }


def test_a_folder_beside_train_that_is_no_split_is_refused():
    with pytest.raises(MlopsError, match="other beside train/ is no split"):
        folder(tree("train/a/1.png", "train/b/2.png", "other/a/3.png"), None)


def test_the_one_folder_an_archive_was_packed_with_is_stepped_into():
    listing = folder(tree("pets/images/cat/1.png", "pets/images/dog/2.png"), None)
    assert listing.classes == ["cat", "dog"]


def test_an_expression_groups_images_by_their_file_name():
    names = ["a/p1_left.png", "a/p1_right.png", "b/p2_left.png"]
    assert [entry.group for entry in folder(tree(*names), r"^(p\d+)_").entries] == ["p1", "p1", "p2"]
    assert [entry.group for entry in folder(tree(*names), r"^p\d+").entries] == ["p1", "p1", "p2"]
    assert [entry.group for entry in folder(tree(*names), None).entries] == names
    for pattern in ("p1", r"^(p1)?"):
        with pytest.raises(MlopsError, match=r"does not match 1 file names, such as p2_left\.png"):
            folder(tree(*names), pattern)


@pytest.mark.parametrize("names", [["a/1.png"], ["a/1.png", "a/2.png"], ["train/a/1.png", "test/a/2.png"]])
def test_one_class_only_is_refused(names: list[str], tmp_path: Path):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    with pytest.raises(MlopsError, match=r"holds one class only \(a\)"):
        open_source(DataConfig(source="folder", root=str(tmp_path)))


def test_splits_without_train_are_refused_and_do_not_become_classes():
    with pytest.raises(MlopsError, match="holds test, valid but no train folder"):
        folder(tree("valid/a/1.png", "valid/b/2.png", "test/a/3.png"), None)


def test_images_beside_each_other_without_class_folders_are_refused():
    with pytest.raises(MlopsError, match="holds no images as <class>/<image>"):
        folder(tree("1.png", "2.png"), None)


def test_an_empty_class_folder_is_refused(tmp_path: Path):
    for name in ("cat", "dog", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(png())
    (tmp_path / "dog" / "1.png").write_bytes(png())
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(MlopsError, match="empty: class folder without images; fill it or remove it"):
        open_source(DataConfig(source="folder", root=str(tmp_path)))
