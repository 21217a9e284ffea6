import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from mlops import page
from mlops.evaluation import figures
from mlops.evaluation.evaluate import Evaluated
from mlops.evaluation.pictures import pictures_of
from mlops.evaluation.report import worst_mistakes, write_report
from samples import attributes


def evaluated(classes: int, images: int = 60, size: int = 8, groups: list[str] | None = None) -> Evaluated:
    """Images of `classes` classes, all recognised but every fifth, which is taken for the next class."""
    labels = torch.arange(images) % classes
    said = torch.where(torch.arange(images) % 5 == 4, (labels + 1) % classes, labels)
    # The later, the surer.
    logits = torch.nn.functional.one_hot(said, classes) * torch.linspace(3, 9, images)[:, None]
    pixels = np.random.default_rng(0).integers(0, 256, (images, size, size, 3), dtype=np.uint8)
    paths = [f"{label}/{number}.png" for number, label in enumerate(labels.tolist())]
    return Evaluated("pictures (test)", logits, labels, paths, groups or paths, pixels)


def story(classes: list[str], epochs: int = 3, **more: Any) -> dict[str, Any]:
    """Everything in a checkpoint but its weights, as far as a report reads it."""
    history = [
        {"epoch": e, **{f"{side}_{name}": 1 / e for side in ("train", "val") for name in ("loss", "Accuracy", "F1")}}
        for e in range(1, epochs + 1)
    ]
    return {
        "config": {"model": {"_target_": "mlops.models.SignNet"}, "training": {"epochs": epochs}},
        "classes": classes,
        "input": {"height": 8, "width": 8, "resize": "squash", "filter": "bilinear"},
        "metrics": {"val_Accuracy": 0.875, "val_F1": 0.8125},
        "history": history,
        "epoch": 2,
        "data": {
            "name": "pictures",
            "fingerprint": "abc",
            "split_seed": 0,
            "counts": {"test": 60, "train": 9, "val": 9},
        },
        "code": {"version": "0.1.0", "commit": "c0ffee", "dirty": False},
        "environment": dict.fromkeys(("platform", "device", "precision", "python", "torch", "numpy"), "x")
        | {"threads": 2},
        "created": "2030-01-02T03:04:05+00:00",
        "overrides": ["model.width=8", "data.group=^[^_]+"],
    } | more


def report(folder: Path, names: list[str], found: Evaluated | None = None) -> str:
    found = found or evaluated(len(names))
    scores = found.scores(names, temperature=1.5)
    write_report(folder, story(names), "test", scores, mistakes=worst_mistakes(found, names, 1.5))
    return (folder / "index.html").read_text()


NAMES = ["ant", "bee", "cow", "dog", "elk", "fox"]


def test_a_report_is_a_page_its_figures_and_its_scores(tmp_path: Path):
    text = report(tmp_path, NAMES)
    scores = json.loads((tmp_path / "test.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {
        *("index.html", "test.json", "curves.png", "confusion_matrix.png", "per_class.png", "reliability.png")
    }
    low, high = scores["accuracy_interval"]
    for shown in (
        *("pictures: 80.00% of 60 test images right", f"{low:.2%} to {high:.2%}", f"{scores['macro_f1']:.4f}"),
        *(f"{scores['ece']:.2%}", f"{scores['ece_before']:.2%}", f"{scores['top5_accuracy']:.2%}"),
        *("kept: epoch 2, 0.5000", "12 in 60 images", "taken for", "c0ffee", "data.group=^[^_]+", "training.threads=2"),
    ):
        assert page.text(shown) in text, shown


def test_the_pictures_are_png_files_by_name(tmp_path: Path):
    found = evaluated(6)
    pictures = write_report(tmp_path, story(NAMES), "val", found.scores(NAMES, 1.0))
    assert set(pictures) == {"curves", "confusion_matrix", "per_class", "reliability"}
    for path in pictures.values():
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert (pixels[0, 0] == 255).all()
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
        assert not (pixels == [1, 254, 2]).all(axis=2).any()  # the page's ink is not a colour of pictures
    assert (tmp_path / "val.json").exists()


def test_the_same_run_gives_the_same_page(tmp_path: Path):
    assert report(tmp_path / "one", NAMES) == report(tmp_path / "other", NAMES)


def test_class_names_paths_and_settings_are_text_and_never_markup(tmp_path: Path):
    evil = '<script>alert("1")</script><img src=x onerror="alert(2)">\x1b[2J\n$\\frac{'
    found = evaluated(2)
    found = Evaluated(
        evil, found.logits, found.labels, [evil + path for path in found.paths], found.groups, found.images
    )
    names = [evil, evil * 40]
    told = story(names, overrides=[evil], created=evil)
    told["config"]["model"]["_target_"] = told["code"]["commit"] = told["data"]["name"] = evil
    told["config"]["model"][evil] = [evil]
    told["code"]["version"] = told["data"]["fingerprint"] = told["data"]["split_seed"] = evil
    told["input"] = {**told["input"], "resize": evil, "filter": evil}
    told["environment"] |= dict.fromkeys(("platform", "device", "precision", "python", "torch", "numpy"), evil)
    write_report(tmp_path, told, "test", found.scores(names, 1.0), mistakes=worst_mistakes(found, names, 1.0))
    write_report(tmp_path / "without", told, "test", missing=evil)
    for name in ("index.html", "without/index.html"):
        text = (tmp_path / name).read_text()
        assert "<script" not in text
        assert "<img src=x" not in text
        assert not {found for found in attributes(text) if found == "script" or found.endswith(".onerror")}
        assert "\x1b" not in text
        assert text.count("alert") > 10


def test_a_page_without_scores_says_what_is_missing_and_keeps_the_rest(tmp_path: Path):
    write_report(tmp_path, story(NAMES), "test", missing="data/gone: is not there")
    text = (tmp_path / "index.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "curves.png"}
    for shown in ("data/gone: is not there", "87.50%", "0.8125", "kept: epoch 2", "model.width=8", "_target_"):
        assert shown in text
    assert "Calibration" not in text


def test_a_checkpoint_that_does_not_say_its_command_has_a_page_too(tmp_path: Path):
    told = story(NAMES)
    del told["overrides"]
    write_report(tmp_path, told, "test")
    assert "mlops.train" not in (tmp_path / "index.html").read_text().split("<main>")[1]


def test_the_worst_mistakes_are_the_surest_wrong_ones_and_each_group_is_shown_once():
    names = list("abcdef")
    found = evaluated(6)
    mistakes = worst_mistakes(found, names, 1.0)
    assert [m.path.split("/")[1] for m in mistakes[:3]] == ["59.png", "54.png", "49.png"]
    assert [(m.true, m.said) for m in mistakes[:2]] == [("f", "a"), ("a", "b")]
    assert len(mistakes) == 12
    assert mistakes[0].probability == pytest.approx(float(found.logits[59].double().softmax(dim=0).max()))
    assert mistakes[0].probability > worst_mistakes(found, names, 2.0)[0].probability
    assert np.array_equal(mistakes[0].pixels, found.images[59])
    tracks = worst_mistakes(evaluated(6, groups=[str(i // 20) for i in range(60)]), names, 1.0)
    assert [m.path.split("/")[1] for m in tracks] == ["59.png", "39.png", "19.png"]


def test_pictures_of_mistakes_stay_small_when_images_are_large():
    found = evaluated(2, images=5, size=600)
    # Every other column white: of every second or third pixel nothing but black or white would be left.
    found.images[:] = 0
    found.images[:, :, ::2] = 255
    (mistake, *_) = worst_mistakes(found, ["a", "b"], 1.0)
    assert mistake.pixels.shape == (256, 256, 3)
    assert mistake.pixels.mean() == pytest.approx(127.5, abs=1)
    assert 0 < mistake.pixels.min() < mistake.pixels.max() < 255


@pytest.mark.parametrize(("classes", "named"), [(2, 2), (10, 10), (43, 43), (1000, 50)])
def test_the_confusion_matrix_is_readable_for_any_number_of_classes(classes: int, named: int):
    names = [f"class number {i} with a name that is much too long for any axis" for i in range(classes)]
    scores = evaluated(classes, images=2 * classes + 20).scores(names, 1.0)
    pictures = pictures_of(story(names), scores)
    for name, draw in (("confusion_matrix", figures.draw_confusion), ("per_class", figures.draw_per_class)):
        figure = Figure(figsize=pictures[name].size, layout=pictures[name].layout)
        with page.drawing_style(page.PICTURE_INK):
            draw(figure, scores)
            figure.draw_without_rendering()
        (axes,) = figure.axes
        labels = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert len(labels) == named
        # No two lie on each other, and none beyond the picture.
        places = sorted((box.y0, box.y1) for box in labels)
        assert all(upper[0] >= lower[1] - 1 for lower, upper in itertools.pairwise(places))
        assert min(box.x0 for box in labels) >= 0
        assert not axes.get_ylabel() or axes.yaxis.label.get_window_extent().x0 >= 0
        assert axes.get_window_extent().width > figure.get_window_extent().width / 3
    assert ("Of 1,000 classes" in pictures["confusion_matrix"].panels[0][1]) == (classes == 1000)


def test_of_too_many_classes_those_with_the_most_mistakes_are_shown():
    matrix = np.diag(np.full(200, 9))
    matrix[150, 7] = 5
    matrix[160, 170] = 1
    shown = figures.most_confused(matrix)
    assert len(shown) == 50
    assert {150, 7, 160, 170} <= set(shown)
    assert shown == sorted(shown)


def test_the_bars_begin_with_the_worst_class_and_leave_out_those_that_do_not_occur():
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    logits = 5 * torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 2, 1, 1]), 4).float()
    found = Evaluated("x", logits, labels, list("123456"), list("123456"), np.zeros((6, 2, 2, 3), np.uint8))
    assert [name for name, _ in figures.worst_classes(found.scores(list("abcd"), 1.0))] == ["c", "b", "a"]


def test_one_epoch_is_a_point_that_can_be_seen(tmp_path: Path):
    write_report(tmp_path, story(NAMES, epochs=1, epoch=1), "test")
    assert "kept: epoch 1, 1.0000" in (tmp_path / "index.html").read_text()


def test_figures_shrink_on_a_phone_no_further_than_they_can_be_read(tmp_path: Path):
    text = report(tmp_path, [f"class {i}" for i in range(43)])
    widths = [int(width) for width in re.findall(r'<svg style="min-width:(\d+)px"', text)]
    assert len(widths) == 6
    assert min(widths) < 340 < max(widths)


def test_mistakes_are_on_the_page_at_their_prepared_size(tmp_path: Path):
    import base64

    text = report(tmp_path, NAMES)
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(found) == 12
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(found[0])))), evaluated(6).images[59])
