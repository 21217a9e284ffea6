"""The card: what a person sees of the data before training on it."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlops.config import DataConfig, SplitConfig
from mlops.data.card import describe, notes, render, write_card
from mlops.data.prepare import Prepared, build_index, prepare
from samples import png

FACTS = {
    "name": "pets",
    "fingerprint": "0123",
    "source": {"kind": "folder", "root": "pets.tar", "dvc_md5": None},
    "image_size": 32,
    "resize": "squash",
    "filter": "bilinear",
    "crop": None,
    "split": {"val": 0.1, "test": 0.1, "seed": 0},
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "skipped": [],
    "dropped": [],
    "versions": {"mlops": "0"},
    "created": "2026-01-01",
}


def card(counts: dict[str, list[int]], size: tuple[int, int] = (40, 40), **facts: object) -> dict:
    """`counts` has images in train, val and test of each class; every image is `size` and its own group."""
    by_split = {
        split: {name: held[position] for name, held in counts.items()}
        for position, split in enumerate(("train", "val", "test"))
    }
    rows = [
        {
            "sha256": f"{name}{split}{n}",
            "group": f"{name}{split}{n}",
            "split": split,
            "width": size[0],
            "height": size[1],
        }
        for split, held in by_split.items()
        for name, count in held.items()
        for n in range(count)
    ]
    return describe(rows, {**FACTS, "counts": by_split, **facts})


@pytest.fixture
def prepared(pictures: Path, tmp_path: Path) -> Prepared:
    (pictures / "red" / "wide.png").write_bytes(png(5, (60, 10)))
    (pictures / "red" / "bad.png").write_bytes(b"")
    # A copy, in the same class.
    (pictures / "blue" / "zz.png").write_bytes((pictures / "blue" / "00.png").read_bytes())
    config = DataConfig(source="folder", root=str(pictures), image_size=8, max_bad=0.5, split=SplitConfig(0.2, 0.2))
    return prepare(build_index(config), tmp_path / "processed")


def test_card_json_counts_what_is_there(prepared: Prepared):
    found = json.loads((prepared.folder / "card.json").read_text())
    assert found["images"] == {split: len(prepared.labels(split)) for split in ("train", "val", "test")}
    assert sum(found["images"].values()) == 62
    assert found["counts"] == prepared.manifest["counts"]
    assert (found["width"]["min"], found["width"]["median"], found["width"]["max"]) == (12, 12, 60)
    assert found["aspect"]["max"] == 6.0
    assert found["copies"] == 1
    # The copy and its original are one group.
    assert sum(group["count"] for group in found["groups"].values()) == 61
    assert [one["path"] for one in found["skipped"]] == ["red/bad.png"]
    assert found["fingerprint"] == prepared.fingerprint
    for bins in found["histograms"].values():
        assert sum(count for _, count in bins) == 62


def test_card_html_shows_every_class_and_what_was_left_out(prepared: Prepared):
    text = (prepared.folder / "card.html").read_text()
    assert "62 images of 3 classes" in text
    for name, held in prepared.manifest["counts"]["train"].items():
        assert re.search(rf'<td>{name}</td><td class="n">{held}</td>', text)
        assert f'alt="{name}"' in text
    assert "red/bad.png" in text
    assert "empty file" in text
    assert text.count("data:image/png") == 3


def test_the_pictures_of_a_class_are_its_own(prepared: Prepared):
    import base64
    import io

    from PIL import Image

    text = (prepared.folder / "card.html").read_text()
    for name, channel in (("red", 0), ("green", 1), ("blue", 2)):
        data = re.search(rf'alt="{name}" src="data:image/png;base64,([^"]+)"', text)[1]
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).reshape(-1, 3)
        assert pixels.mean(axis=0).argmax() == channel


def test_names_out_of_the_data_are_text_and_never_markup():
    evil = "<img src=x onerror=alert(1)>"
    found = card({evil: [9, 3, 3], "b": [9, 3, 3]}, skipped=[{"path": evil, "reason": evil}], name=evil)
    assert "<img src=x" not in render(found, [(np.zeros((4, 4, 3), np.uint8), [evil])])


def test_notes_are_silent_on_balanced_data_of_a_fitting_size():
    rows = card({"a": [80, 10, 10], "b": [80, 10, 10]}, source={"kind": "digits", "root": None, "dvc_md5": None})
    assert notes(rows) == []


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (card({"a": [80, 9, 9], "b": [20, 9, 9]}), "a has 4.0 times the training images of b"),
        (card({"a": [80, 9, 0], "b": [80, 9, 9]}), "There is no image in test of a"),
        (card({"a": [80, 9, 3], "b": [80, 9, 9]}), "Classes with fewer than 5 test images: 1 of 2 (a)"),
        (card({"a": [80, 9, 9], "b": [80, 9, 9]}, (10, 12)), "10 pixels or less on their shorter side"),
        (card({"a": [80, 9, 9], "b": [80, 9, 9]}, (900, 800)), "800 pixels or more on their shorter side"),
        (card({"a": [80, 9, 9], "b": [80, 9, 9]}, (40, 80)), "100% of the pictures are more than 1.5 times"),
        (card({"a": [80, 9, 9], "b": [80, 9, 9]}), "Every picture is a group of its own."),
        (
            card({"a": [9, 9, 9], "b": [9, 9, 9]}, dropped=[{"path": "x", "reason": "y"}]),
            "Pictures left out: 1, listed below",
        ),
    ],
)
def test_notes_say_what_is_worth_a_look(found: dict, said: str):
    assert any(said in note for note in notes(found))


def test_a_card_of_a_thousand_classes_is_a_page_of_a_few_megabytes_and_quick(tmp_path: Path):
    classes = [f"class {n}" for n in range(1000)]
    # Noise: nothing compresses worse.
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(1000), 2)
    np.save(tmp_path / "train.images.npy", rng.integers(0, 256, (2000, 96, 96, 3), dtype=np.uint8))
    np.save(tmp_path / "train.labels.npy", labels)
    header = "path,sha256,width,height,label,group,split\n"
    lines = [f"{n}.png,{n},96,96,{label},{n},{s}\n" for s in ("train", "val", "test") for n, label in enumerate(labels)]
    (tmp_path / "index.csv").write_text(header + "".join(lines))
    counts = {split: dict.fromkeys(classes, 2) for split in ("train", "val", "test")}
    started = time.process_time()
    write_card(tmp_path, {**FACTS, "counts": counts})
    assert time.process_time() - started < 20
    text = (tmp_path / "card.html").read_text()
    assert len(text) < 6_000_000
    assert "The 400 largest classes of 1,000." in text
    assert text.count("<td>class ") == 1000


def test_prepared_data_of_before_there_were_cards_still_opens(
    prepared: Prepared, capsys: pytest.CaptureFixture[str], pictures: Path
):
    from mlops.data.prepare import open_prepared
    from mlops.tables import show_prepared

    show_prepared(prepared)
    assert f"{prepared.folder}/card.html" in capsys.readouterr().out.replace("\n", "")
    (prepared.folder / "card.html").unlink()
    (prepared.folder / "card.json").unlink()
    manifest = {key: value for key, value in prepared.manifest.items() if key not in ("crop", "dropped")}
    (prepared.folder / "manifest.json").write_text(json.dumps(manifest))
    old = open_prepared(prepared.folder)
    show_prepared(old)
    assert "card" not in capsys.readouterr().out
    config = DataConfig(source="folder", root=str(pictures), image_size=8, max_bad=0.5, split=SplitConfig(0.2, 0.2))
    assert prepare(build_index(replace(config, workers=1)), prepared.folder.parent).folder == prepared.folder


@pytest.mark.parametrize("odd", [(48, 40), (40, 400)])
def test_one_picture_of_another_size_among_hundreds_is_counted(odd: tuple[int, int]):
    rows = [
        {"sha256": str(n), "group": str(n), "split": split, "width": 40, "height": 40}
        for split, count in (("train", 200), ("val", 5), ("test", 5))
        for n in range(count)
    ]
    rows[0] |= {"width": odd[0], "height": odd[1]}
    counts = {"train": {"cat": 200}, "val": {"cat": 5}, "test": {"cat": 5}}
    found = describe(rows, {**FACTS, "counts": counts})
    for bins in (found["histograms"]["longer side, pixels"], found["histograms"]["width / height"]):
        assert sum(count for _, count in bins) == 210
        assert sorted(count for _, count in bins if count) == [1, 209]
