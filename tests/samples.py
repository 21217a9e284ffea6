"""Small real images, and settings for runs of a few seconds."""

import io
import sys
import zipfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]


def png(seed: int = 0, size: tuple[int, int] = (12, 10), colour: tuple[int, int, int] | None = None) -> bytes:
    """A PNG of noise, or of one colour with a little noise."""
    rng = np.random.default_rng(seed)
    width, height = size
    pixels = rng.integers(0, 256, (height, width, 3))
    if colour is not None:
        pixels = np.clip(np.array(colour) + pixels // 8 - 16, 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def attributes(page: str) -> set[str]:
    """The attributes that a browser finds in HTML, as `tag.attribute`, and the tags themselves."""
    found: set[str] = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.update({tag, *(f"{tag}.{name}" for name, _ in attrs)})

    reader = Reader()
    reader.feed(page)
    reader.close()
    return found


COLOURS = {"blue": (30, 40, 200), "green": (30, 200, 40), "red": (200, 30, 40)}


def write_pictures(root: Path) -> Path:
    """`<class>/<n>.png`: 3 classes of 20 images that differ by colour."""
    for index, (name, colour) in enumerate(COLOURS.items()):
        (root / name).mkdir(parents=True)
        for number in range(20):
            (root / name / f"{number:02}.png").write_bytes(png(100 * index + number, colour=colour))
    return root


# CI's Macs are virtual machines: torch finds MPS there, but no memory behind it.
ON_CPU = ("training.device=cpu",) if sys.platform == "darwin" else ()

# A run of a few seconds on `pictures`: small images, one short epoch after another, no W&B.
QUICK = (
    "data=folder",
    "data.image_size=8",
    "data.split.val=0.2",
    "data.split.test=0.2",
    "model.width=8",
    "training.batch_size=12",
    "training.epochs=3",
    "tracking=off",
    *ON_CPU,
)


def story(**changes: Any) -> dict[str, Any]:
    """All that a checkpoint of a small SignNet tells, as it is handed to `checkpoint.save`."""
    from mlops import config

    values = config.defaults()
    values["model"] = {"_target_": "mlops.models.SignNet", "width": 8}
    values["data"]["image_size"] = 16
    values["training"]["optimizer"] = {"_target_": "torch.optim.AdamW", "lr": 0.01}
    epoch = {"epoch": 1, "train_loss": 1.5, "train_Accuracy": 0.25, "train_F1": 0.2}
    epoch |= {"val_loss": 1.25, "val_Accuracy": 1 / 3, "val_F1": 0.3}
    return {
        "config": values,
        "classes": ["cat", "dög"],
        "input": {
            "height": 16,
            "width": 16,
            "channels": 3,
            "mean": [0.1] * 3,
            "std": [0.2] * 3,
            "resize": "squash",
            "filter": "bilinear",
            "crop": None,
        },
        "metrics": epoch,
        "history": [epoch],
        "epoch": 1,
        "step": 7,
        "epoch_digests": ["0" * 64],
        "start": None,
        "data": {
            "name": "pets",
            "fingerprint": "0123456789abcdef",
            "dvc_md5": None,
            "split_seed": 0,
            "counts": {"train": 80, "val": 10, "test": 10},
        },
        "code": {"version": "0.1.0", "commit": None, "dirty": None, "diff_sha256": None},
        "environment": {
            **dict.fromkeys(("python", "torch", "torchvision", "numpy", "pillow", "platform", "cpu_capability"), "1"),
            **{"device": "cpu", "threads": 1, "precision": "fp32"},
        },
        "created": "2026-11-21T06:30:00+00:00",
        "overrides": ["model.width=8"],
        "temperature": None,
        "reference": None,
        **changes,
    }


def position(**changes: Any) -> dict[str, Any]:
    """The field `resume` of a last.pth at the beginning of its first epoch."""
    told = {"epoch": 0, "step": 0, "optimizer": {"state": {}, "groups": []}, "scaler": {}}
    return {**told, "tracker": None, "finished": False, "sweep": False, **changes}


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None], **options: Any) -> Path:
    """Write a ZIP anew with entries changed: `change(name, data)` gives the new data, or None to leave one out."""
    with zipfile.ZipFile(path) as archive:
        entries = [(name, change(name, archive.read(name))) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in entries:
            if data is not None:
                archive.writestr(name, data)
    return path
