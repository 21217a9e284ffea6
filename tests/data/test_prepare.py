import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlops.config import DataConfig, SplitConfig
from mlops.data import arrays
from mlops.data import prepare as preparing
from mlops.data.prepare import build_index, open_prepared, prepare
from mlops.errors import MlopsError
from mlops.image import decode

# The real photographs, where somebody has them: GTSRB as a folder, .tar or .zip.
TRACKS = os.environ.get("MLOPS_TEST_GTSRB", "")


def config(root: Path, **changes: object) -> DataConfig:
    return replace(DataConfig(source="folder", root=str(root), image_size=8, split=SplitConfig(0.2, 0.2)), **changes)


def test_the_prepared_folder_holds_what_the_contract_says(pictures: Path, tmp_path: Path):
    prepared = prepare(build_index(config(pictures)), tmp_path / "processed")
    assert prepared.folder.name == f"pictures-{prepared.fingerprint}"
    assert sorted(path.name for path in prepared.folder.iterdir()) == [
        "card.html",
        "card.json",
        "index.csv",
        "manifest.json",
        *(f"{split}.{what}.npy" for split in ("test", "train", "val") for what in ("images", "labels")),
    ]
    with (prepared.folder / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "sha256", "width", "height", "label", "group", "split"]
    for split, count in (("train", 36), ("val", 12), ("test", 12)):
        images, labels = prepared.images(split), prepared.labels(split)
        assert (images.shape, images.dtype, labels.dtype) == ((count, 8, 8, 3), np.uint8, np.int64)
        own = [row for row in rows if row["split"] == split]
        for row, image, label in zip(own, images, labels, strict=True):
            data = (pictures / row["path"]).read_bytes()
            assert row["sha256"] == hashlib.sha256(data).hexdigest()
            assert (row["width"], row["height"], int(row["label"])) == ("12", "10", label)
            np.testing.assert_array_equal(image, decode(data, (8, 8)).pixels)
        assert prepared.paths(split) == [row["path"] for row in own]
        assert prepared.groups(split) == [row["group"] for row in own]
    manifest = json.loads((prepared.folder / "manifest.json").read_text())
    assert manifest["classes"] == ["blue", "green", "red"]
    assert manifest["counts"]["val"] == {"blue": 4, "green": 4, "red": 4}
    scaled = prepared.images("train") / 255
    np.testing.assert_allclose(manifest["mean"], scaled.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(manifest["std"], scaled.std(axis=(0, 1, 2)))


def test_the_same_inputs_give_the_same_folder_and_are_decoded_once(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = prepare(build_index(config(pictures)), tmp_path / "processed")
    monkeypatch.setattr(preparing, "decode_all", lambda *_: pytest.fail("decoded twice"))
    assert prepare(build_index(config(pictures)), tmp_path / "processed").folder == first.folder


def test_every_change_of_the_arrays_gives_another_folder(pictures: Path):
    base = config(pictures)
    fingerprints = {build_index(base).fingerprint}
    for changed in (
        {"image_size": 9},
        {"resize": "pad"},
        {"filter": "nearest"},
        {"split": SplitConfig(0.2, 0.2, seed=1)},
        {"limit": 30},
        {"group": r"\d\d"},
    ):
        fingerprints.add(build_index(replace(base, **changed)).fingerprint)
    image = pictures / "blue" / "00.png"
    image.write_bytes(image.read_bytes() + b"\0")
    fingerprints.add(build_index(base).fingerprint)
    image.rename(pictures / "red" / "99.png")
    fingerprints.add(build_index(base).fingerprint)
    assert len(fingerprints) == 9


def test_what_does_not_change_the_arrays_gives_the_same_folder(pictures: Path, tmp_path: Path):
    base = build_index(config(pictures)).fingerprint
    moved = tmp_path / "elsewhere"
    pictures.rename(moved)
    assert build_index(config(moved, workers=2, max_bad=0.5, name="other")).fingerprint == base


def test_the_digits_keep_the_fingerprint_that_checkpoints_name():
    # Prepared data and checkpoints of before there were boxes and copies must be found again.
    config = DataConfig(image_size=16, split=SplitConfig(0.1, 0.2))
    assert build_index(config).fingerprint == "c7099d786cbf9bba"


@pytest.mark.skipif(not TRACKS, reason="MLOPS_TEST_GTSRB does not say where the 13,070 photographs are")
def test_the_real_signs_keep_theirs():
    assert build_index(DataConfig(source="gtsrb", root=TRACKS)).fingerprint == "52f0a444aa4d49c1"


def test_copies_stay_on_one_side_whatever_their_group(pictures: Path, tmp_path: Path):
    for number in range(20):
        # In another folder of the same class and under another name.
        (pictures / "blue" / "again").mkdir(exist_ok=True)
        copy = pictures / "blue" / "again" / f"copy{number}.png"
        copy.write_bytes((pictures / "blue" / f"{number:02}.png").read_bytes())
    index = build_index(config(pictures))
    sides: dict[str, set[str]] = {}
    for item in index.items:
        sides.setdefault(item.sha256, set()).add(item.split)
    assert all(len(found) == 1 for found in sides.values())
    assert {item.split for item in index.items if "copy" in item.entry.path} == {"train", "val", "test"}
    assert index.dropped == []


def test_dropped_copies_are_listed_and_their_reason_kept(pictures: Path, tmp_path: Path):
    image = (pictures / "blue" / "00.png").read_bytes()
    (pictures / "red" / "99.png").write_bytes(image)
    with pytest.raises(MlopsError, match=r"blue/00\.png \(blue\) = red/99\.png \(red\)"):
        build_index(config(pictures))
    prepared = prepare(build_index(config(pictures, duplicates="drop")), tmp_path / "processed")
    assert prepared.manifest["dropped"] == [
        {"path": "blue/00.png", "reason": "the same picture as red/99.png (red)"},
        {"path": "red/99.png", "reason": "the same picture as blue/00.png (blue)"},
    ]
    assert sum(len(prepared.labels(split)) for split in ("train", "val", "test")) == 59


def signs(root: Path, boxes: bool = True) -> DataConfig:
    """GTSRB in its layout: 2 classes of 6 tracks of 2 frames, white signs on coloured ground."""
    rows = ["Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path" if boxes else "ClassId,Path"]
    for number, (c, t, f) in enumerate((c, t, f) for c in range(2) for t in range(6) for f in range(2)):
        pixels = np.zeros((30, 20, 3), dtype=np.uint8)
        pixels[..., c] = 10 + number
        pixels[5:25, 4:16] = 255
        path = root / f"Train/{c}/{c:05}_{t:05}_{f:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        rows.append(f"{'4,5,16,25,' if boxes else ''}{c},{path.relative_to(root)}")
    (root / "Train.csv").write_text("\n".join(rows))
    return DataConfig(source="gtsrb", root=str(root), image_size=8, split=SplitConfig(0.2, 0.2))


def test_the_region_of_interest_is_all_that_is_left_and_is_part_of_the_fingerprint(tmp_path: Path):
    settings = signs(tmp_path / "signs")
    whole = prepare(build_index(settings), tmp_path / "processed")
    cut = prepare(build_index(replace(settings, roi=True, workers=2)), tmp_path / "processed")
    assert (whole.manifest["crop"], cut.manifest["crop"]) == (None, "roi")
    assert whole.fingerprint != cut.fingerprint
    assert (cut.images("train") == 255).all()
    assert not (whole.images("train") == 255).all()
    with (cut.folder / "index.csv").open(newline="") as file:
        assert {(row["width"], row["height"]) for row in csv.DictReader(file)} == {("12", "20")}
    table = (tmp_path / "signs" / "Train.csv").read_text()
    (tmp_path / "signs" / "Train.csv").write_text(table.replace("4,5,16,25,", "4,5,15,25,", 1))
    assert build_index(replace(settings, roi=True)).fingerprint != cut.fingerprint
    assert build_index(settings).fingerprint == whole.fingerprint


def test_a_box_outside_the_picture_or_none_is_skipped_like_an_unreadable_image(tmp_path: Path):
    settings = replace(signs(tmp_path / "signs"), roi=True)
    table = (tmp_path / "signs" / "Train.csv").read_text()
    table = table.replace("4,5,16,25,", "4,5,99,25,", 1).replace("4,5,16,25,", "4,5,x,25,", 1)
    (tmp_path / "signs" / "Train.csv").write_text(table)
    with pytest.raises(MlopsError) as caught:
        prepare(build_index(settings), tmp_path / "processed")
    assert "2 unreadable images" in str(caught.value)
    assert "(its box 4, 5, 99, 25 is empty or leaves the 20 x 30 picture)" in str(caught.value)
    assert "(its box is not four whole numbers)" in str(caught.value)
    prepared = prepare(build_index(replace(settings, max_bad=0.1)), tmp_path / "processed")
    assert len(prepared.manifest["skipped"]) == 2


def test_statistics_of_large_images_are_exact_and_need_little_memory(monkeypatch: pytest.MonkeyPatch):
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), dtype=np.uint8)
    monkeypatch.setattr(arrays, "PART_BYTES", 1)
    mean, std = arrays.channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 1, 2)))


def test_unreadable_images_are_listed_with_their_reason_and_skipped_up_to_the_limit(pictures: Path, tmp_path: Path):
    (pictures / "blue" / "00.png").write_bytes(b"")
    (pictures / "red" / "01.png").write_bytes(b"<html>")
    with pytest.raises(MlopsError) as caught:
        prepare(build_index(config(pictures)), tmp_path / "processed")
    assert "2 unreadable images, more than the 0 of 60 (data.max_bad=0.001)" in str(caught.value)
    assert "blue/00.png (empty file)" in str(caught.value)
    assert [path.suffix for path in (tmp_path / "processed").iterdir()] == [".lock"]
    prepared = prepare(build_index(config(pictures, max_bad=0.05)), tmp_path / "processed")
    assert sum(len(prepared.labels(split)) for split in ("train", "val", "test")) == 58
    assert {bad["path"]: bad["reason"] for bad in prepared.manifest["skipped"]} == {
        "blue/00.png": "empty file",
        "red/01.png": "not an image of a known format",
    }
    with pytest.raises(MlopsError, match="2 unreadable images"):  # the limit holds for what is already prepared, too
        prepare(build_index(config(pictures)), tmp_path / "processed")


def test_the_log_of_a_skipped_image_is_one_line_that_steers_no_terminal(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in pictures.rglob("*.png"):
            archive.write(path, path.relative_to(pictures).as_posix())
        archive.writestr("red/\x1b[2J\nerror: x.png", b"")
    prepare(build_index(config(tmp_path / "set.zip", max_bad=0.05)), tmp_path / "processed")
    (line,) = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert line.endswith(r"red/\x1b[2J\nerror: x.png: empty file; skipped")


def test_a_class_without_a_readable_training_image_is_refused(pictures: Path, tmp_path: Path):
    for path in (pictures / "blue").iterdir():
        path.write_bytes(b"")
    with pytest.raises(MlopsError, match="no readable image is left of blue in train"):
        prepare(build_index(config(pictures, max_bad=1.0)), tmp_path / "processed")


def test_processes_give_what_one_process_gives(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (pictures / "blue" / "07.png").write_bytes(b"broken")
    one = prepare(build_index(config(pictures, max_bad=0.1, workers=1)), tmp_path / "one")
    monkeypatch.setattr("mlops.data.decode.CHUNK", 7)
    two = prepare(build_index(config(pictures, max_bad=0.1, workers=2)), tmp_path / "two")
    for name in ("train.images.npy", "val.labels.npy", "index.csv"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    assert one.manifest["skipped"] == two.manifest["skipped"]


def test_long_work_takes_all_cores_and_short_work_starts_none(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    started = []

    class Pool(ProcessPoolExecutor):
        def __init__(self, workers: int, **options: Any) -> None:
            started.append(workers)
            super().__init__(workers, **options)

    monkeypatch.setattr("mlops.data.decode.ProcessPoolExecutor", Pool)
    monkeypatch.setattr("mlops.data.decode.CHUNK", 5)
    short = prepare(build_index(config(pictures)), tmp_path / "short")
    assert started == []
    monkeypatch.setattr("mlops.data.decode.SECONDS_WORTH_PROCESSES", 0.0)
    monkeypatch.setattr("mlops.data.decode.cores", lambda: 2)
    long = prepare(build_index(config(pictures)), tmp_path / "long")
    assert started == [2]
    assert (short.folder / "index.csv").read_bytes() == (long.folder / "index.csv").read_bytes()
    np.testing.assert_array_equal(short.images("train"), long.images("train"))


def test_a_damaged_folder_is_named_with_what_to_do(pictures: Path, tmp_path: Path):
    folder = prepare(build_index(config(pictures)), tmp_path / "processed").folder
    whole = (folder / "val.images.npy").read_bytes()
    (folder / "val.images.npy").write_bytes(whole[:-100])
    with pytest.raises(MlopsError, match=r"is damaged .* remove the folder and prepare again"):
        open_prepared(folder)
    (folder / "val.images.npy").unlink()
    with pytest.raises(MlopsError, match=r"val\.images\.npy: is missing"):
        open_prepared(folder)


def test_changing_a_mapped_array_does_not_change_the_file(pictures: Path, tmp_path: Path):
    prepared = prepare(build_index(config(pictures)), tmp_path / "processed")
    before = prepared.images("val").copy()
    prepared.images("val")[:] = 0
    np.testing.assert_array_equal(prepared.images("val"), before)


def command(pictures: Path, *more: str) -> list[str]:
    settings = ["data=folder", f"data.root={pictures}", "data.image_size=256", *more]
    return [sys.executable, "-m", "mlops.preprocess", *settings]


def test_four_runs_at_once_all_succeed_and_the_work_is_done_once(pictures: Path, workplace: Path):
    runs = [
        subprocess.Popen(command(pictures), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    said = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0] * 4, said
    assert sum("prepared 60 images in" in err for _, err in said) == 1
    left = [path.name for path in (workplace / "data" / "processed").iterdir() if not path.name.startswith(".")]
    assert len([name for name in left if name.startswith("pictures-")]) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither SIGTERM nor process groups")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_killed_run_leaves_nothing_that_looks_finished_and_no_process(name: str, pictures: Path, workplace: Path):
    how = signal.Signals[name]
    many = ["data.image_size=512", "data.workers=2"]
    # Each is decoded to 512 pixels, which takes seconds.
    for folder in pictures.iterdir():
        data = next(folder.iterdir()).read_bytes()
        for number in range(700):
            (folder / f"more{number}.png").write_bytes(data)
    run = subprocess.Popen(
        command(pictures, *many), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    processed = workplace / "data" / "processed"
    deadline = time.monotonic() + 60
    while not list(processed.glob(".*.tmp/index.csv")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(run.pid, how)
    run.communicate(timeout=60)
    assert run.returncode == (143 if how == signal.SIGTERM else -how)
    assert not list(processed.glob("pictures-*"))
    if how == signal.SIGTERM:
        assert not list(processed.glob(".*.tmp"))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and group_lives(run.pid):
        time.sleep(0.1)
    assert not group_lives(run.pid)


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
