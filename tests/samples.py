"""Small real images, and settings for runs of a few seconds."""

import io
import sys
from html.parser import HTMLParser
from pathlib import Path

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
