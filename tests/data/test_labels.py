"""A table that says what is on each picture."""

from pathlib import Path

import pytest

from mlops.config import DataConfig
from mlops.data.labels import labelled
from mlops.data.listing import Entry
from mlops.data.sources import open_source
from mlops.data.tree import MemoryTree, open_tree
from mlops.errors import MlopsError
from samples import png


def tree(table: str, *names: str, at: str = "labels.csv") -> MemoryTree:
    return MemoryTree("images", {at: table.encode(), **dict.fromkeys(names, b"")})


def test_paths_and_labels_are_read_and_the_classes_are_those_of_the_table():
    listing = labelled(tree("path,label\nb.png,dog\na.png,cat\n", "a.png", "b.png", "unnamed.png"), "labels.csv")
    assert listing.classes == ["cat", "dog"]
    assert listing.entries == [Entry("a.png", 0, "a.png"), Entry("b.png", 1, "b.png")]


def test_splits_as_people_name_them_and_groups_are_taken_where_they_are():
    rows = "path,label,split,group\na.png,x,Training,p1\nb.png,y,valid,p2\nc.png,x,TEST,\nd.png,y,,p2\n"
    entries = labelled(tree(rows, "a.png", "b.png", "c.png", "d.png"), "labels.csv").entries
    assert [entry.split for entry in entries] == ["train", "val", "test", None]
    assert [entry.group for entry in entries] == ["p1", "p2", "c.png", "p2"]


def test_a_list_of_classes_fixes_them_and_their_order():
    found = labelled(tree("path,label\na.png,cat\nb.png,dog\n", "a.png", "b.png"), "labels.csv", allowed=["dog", "cat"])
    assert found.classes == ["dog", "cat"]
    assert [entry.label for entry in found.entries] == [1, 0]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_spreadsheets_write_is_read(delimiter: str):
    rows = '\ufeffpath,label\r\na.png,cat\r\nb.png,"dog, small"\r\n'.replace("png,", f"png{delimiter}")
    rows = rows.replace("path,", f"path{delimiter}")
    assert labelled(tree(rows, "a.png", "b.png"), "labels.csv").classes == ["cat", "dog, small"]


def test_blanks_around_names_and_values_mean_nothing():
    found = labelled(tree("path, label\na.png, cat\nb.png, dog \n", "a.png", "b.png"), "labels.csv")
    assert found.classes == ["cat", "dog"]


def test_paths_are_relative_to_the_table_wherever_it_lies():
    packed = tree("path,label\ntrain/a.png,x\nb.png,y\n", "set/train/a.png", "set/b.png", at="set/labels.csv")
    assert [entry.path for entry in labelled(packed, "labels.csv").entries] == ["set/b.png", "set/train/a.png"]
    named = tree("path,label\na.png,x\nb.png,y\n", "meta/a.png", "meta/b.png", at="meta/my.csv")
    assert [entry.path for entry in labelled(named, "meta/my.csv").entries] == ["meta/a.png", "meta/b.png"]


def test_an_expression_groups_by_file_name_unless_there_is_a_column():
    rows = "path,label\np1_a.png,x\np1_b.png,x\np2_a.png,y\n"
    names = ("p1_a.png", "p1_b.png", "p2_a.png")
    assert [e.group for e in labelled(tree(rows, *names), "labels.csv", group="^[^_]+").entries] == ["p1", "p1", "p2"]
    with pytest.raises(MlopsError, match=r"data\.group=\^x: does not match 3 file names, such as p1_a\.png"):
        labelled(tree(rows, *names), "labels.csv", group="^x")
    both = "path,label,group\np1_a.png,x,1\n"
    with pytest.raises(MlopsError, match="has a column group already; use one of them"):
        labelled(tree(both, *names), "labels.csv", group="^[^_]+")


def test_boxes_are_read_where_they_are_asked_for():
    rows = "path,label,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2\na.png,x,1,2,30,40\nb.png,y,1,2,wide,40\n"
    boxes = [entry.box for entry in labelled(tree(rows, "a.png", "b.png"), "labels.csv", roi=True).entries]
    assert boxes == [(1, 2, 30, 40), ()]
    assert [e.box for e in labelled(tree(rows, "a.png", "b.png"), "labels.csv").entries] == [None, None]
    with pytest.raises(MlopsError, match=r"has no column Roi\.X1"):
        labelled(tree("path,label\na.png,x\n", "a.png"), "labels.csv", roi=True)


def test_all_that_is_wrong_is_named_at_once_with_line_value_and_near_match():
    rows = [
        "path,label,split",
        "a.png,cat,train",
        "a.png,dog,test",
        "none.png,cat,",
        "../b.png,cat,",
        "/etc/passwd,cat,",
        "b.png,cta,",
        "c.png,,",
        "d.png,dog,tset",
    ]
    images = tree("\n".join(rows), "a.png", "b.png", "c.png", "d.png")
    with pytest.raises(MlopsError) as caught:
        labelled(images, "labels.csv", allowed=["cat", "dog"])
    assert caught.value.problems == [
        "images: labels.csv line 3: path=a.png: is named before, in labels.csv line 2",
        "images: labels.csv line 4: path=none.png: is not there",
        "images: labels.csv line 5: the path '../b.png' leaves its root; only relative paths inside it are read",
        "images: labels.csv line 6: the path '/etc/passwd' leaves its root; only relative paths inside it are read",
        "images: labels.csv line 7: label=cta: is not in data.classes; did you mean cat?",
        "images: labels.csv line 8: label: is empty; every image needs one",
        "images: labels.csv line 9: split=tset: is no split; did you mean test?",
    ]


def test_a_thousand_mistakes_are_twenty_lines_and_a_number():
    rows = "path,label\n" + "".join(f"{n}.png,x\n" for n in range(1000))
    with pytest.raises(MlopsError) as caught:
        labelled(tree(rows), "labels.csv")
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "and 980 more problems"


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("path,class\na.png,x\n", "labels.csv has no column label; it needs path, label"),
        ("path,label\n", "labels.csv holds no rows"),
        ("path,label\na.png\n", "labels.csv line 2: has no label"),
        ("", "labels.csv has no column path"),
    ],
)
def test_a_table_that_lacks_something_is_named(table: str, problem: str):
    with pytest.raises(MlopsError) as caught:
        labelled(tree(table, "a.png"), "labels.csv")
    assert problem in str(caught.value)


def test_no_table_says_which_setting_names_it():
    images = MemoryTree("images", {"a.png": b""})
    with pytest.raises(MlopsError, match=r"images: holds no labels\.csv; .*data\.csv=NAME names another"):
        labelled(images, "labels.csv")
    with pytest.raises(MlopsError, match=r"data\.csv: the path '\.\./x\.csv' leaves its root"):
        labelled(images, "../x.csv")


def test_the_source_csv_reads_folders_and_archives_alike(tmp_path: Path):
    files = {"labels.csv": b"path,label\na.png,x\nb.png,y\n", "a.png": png(1), "b.png": png(2)}
    import zipfile

    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name, data in files.items():
            (tmp_path / "folder" / name).write_bytes(data)
            archive.writestr(name, data)
    found = [open_source(DataConfig(source="csv", root=str(tmp_path / name))) for name in ("folder", "images.zip")]
    assert found[0].entries == found[1].entries
    assert open_tree(tmp_path / "images.zip").read("a.png") == found[0].tree.read("a.png")


def test_a_table_may_be_named_as_a_shell_completes_it():
    assert labelled(tree("path,label\na.png,x\nb.png,y\n", "a.png", "b.png"), "./labels.csv").classes == ["x", "y"]


def test_a_table_that_is_too_large_to_read_whole_is_refused_and_not_cut(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mlops.data.listing.MAX_BYTES", 20)
    with pytest.raises(MlopsError, match=r"labels\.csv is larger than 20 bytes"):
        labelled(tree("path,label\na.png,x\nb.png,y\n", "a.png", "b.png"), "labels.csv")
