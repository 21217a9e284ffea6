"""Bytes -> uint8 RGB of the asked size: the only decoder and resizer, for training and serving alike. No torch.

What each kind of file becomes:

- EXIF orientation is applied: the picture stands as its viewer shows it.
- 16-bit grey keeps its upper eight bits (65535 becomes 255).
- Floating-point and 32-bit integer pixels have no defined range and are refused.
- CMYK, YCbCr and palettes become RGB; grey is repeated on the three channels.
- Transparent pixels are laid over white.
- Of an animation, the first frame.

A box (left, top, right, bottom; right and bottom exclusive) counts the pixels as they are stored, before orientation:
tools that draw boxes look at the array. What it cuts out is then oriented and resized like a whole picture.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from mlops.geometry import Filter, Resize

# Part of every fingerprint: raise it when the same bytes would give other pixels.
VERSION = 1
# Everything else is refused before its decoder runs: less code sees untrusted bytes.
FORMATS = ("PNG", "JPEG", "PPM", "BMP", "GIF", "TIFF", "WEBP")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".bmp", ".gif", ".tif", ".tiff", ".webp")
ORIENTATION = 0x0112
MAX_PIXELS = 100_000_000
MAX_BYTES = 200_000_000
# Of a head, whose fields, chunks and segments take a few reads each; and bytes of a file that cannot have many.
_MOST_READS, _SMALL = 2000, 50_000

Pixels = npt.NDArray[np.uint8]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class ImageError(Exception):
    """Bytes that are no readable image; the message is the reason, short enough for a table."""


class FormatError(ImageError):
    """Bytes of a format that is not known, or not wanted here."""


class TooLargeError(ImageError):
    """More bytes or pixels than are wanted here."""


@dataclass(frozen=True)
class Decoded:
    """One image at the asked size, and the width and height of what was resized: the picture, oriented, or its box."""

    pixels: Pixels
    width: int
    height: int


def decode(
    data: bytes,
    size: tuple[int, int],
    resize: Resize = "squash",
    filter_: Filter = "bilinear",
    box: Sequence[int] | None = None,
) -> Decoded:
    """Decode `data` to uint8 `[height, width, 3]` for `size = (height, width)`.

    `squash` ignores the aspect ratio; `pad` keeps it and fills with black. Filters are antialiased. Of a picture with
    a `box`, only that part is used.

    Raises:
        ImageError: with the reason.
    """
    return Opened(data, box).decode(size, resize, filter_)


class _Counted(io.BytesIO):
    """A file that is read in no more than so many pieces.

    Pillow reads heads in Python, piece by piece: a file of a million empty pieces would take it a minute.
    """

    left = _MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """As a file does.

        Raises:
            ImageError: it has been read too often.
        """
        self.left -= 1
        if self.left < 0:
            raise ImageError("is in too many pieces")
        return super().read(size)


class Opened:
    """An image of which only the header was read: what that says can be judged before any pixel is.

    Attributes:
        pixels: how many it has, by its header.
        animated: whether there are more frames than the first, which is all that `decode` gives.
    """

    def __init__(
        self,
        data: bytes,
        box: Sequence[int] | None = None,
        *,
        formats: tuple[str, ...] = FORMATS,
        most_pixels: int = MAX_PIXELS,
    ) -> None:
        """Read the header of `data`.

        Raises:
            FormatError: it begins like none of `formats`.
            TooLargeError: it has more than `most_pixels`.
            ImageError: its header is damaged.
        """
        if not data:
            raise ImageError("empty file")
        if len(data) > MAX_BYTES:
            raise TooLargeError(f"larger than {MAX_BYTES:,} bytes")
        self._box = box
        with _judged():
            # Counting costs a small image a tenth of its time, and cannot save it any.
            file = _Counted(data) if len(data) > _SMALL else io.BytesIO(data)
            self._image: Image.Image = Image.open(file, formats=formats)
            if isinstance(file, _Counted):
                # Pixels and frames come in pieces too, of hundreds of bytes each.
                file.left = _MOST_READS + len(data) // 64
            self.pixels = self._image.width * self._image.height
            if self.pixels > most_pixels:
                raise TooLargeError(f"{self._image.width} x {self._image.height} is more than {most_pixels:,} pixels")

    @property
    def animated(self) -> bool:
        with _judged():
            return bool(getattr(self._image, "is_animated", False))

    def decode(self, size: tuple[int, int], resize: Resize = "squash", filter_: Filter = "bilinear") -> Decoded:
        """The image as `decode` gives it; asked once.

        Raises:
            ImageError: with the reason.
        """
        with _judged():
            # Asked before the pixels are loaded: TIFF turns itself then, and forgets.
            orientation = 1 if self._box is None else self._image.getexif().get(ORIENTATION, 1)
            self._image.load()
            upright = self._image
            if upright.getexif().get(ORIENTATION, 1) != 1:  # else this would copy it
                upright = ImageOps.exif_transpose(upright)
            image = _to_rgb(upright if self._box is None else _cut(upright, self._box, orientation))
        return _fit(image, size, resize, filter_)


def _fit(image: Image.Image, size: tuple[int, int], resize: Resize, filter_: Filter) -> Decoded:
    height, width = size
    resample = _FILTERS[filter_]
    if resize == "pad":
        # An extreme aspect ratio would round a side to zero.
        scale = min(width / image.width, height / image.height)
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        canvas = Image.new("RGB", (width, height))
        canvas.paste(image.resize(inner, resample), ((width - inner[0]) // 2, (height - inner[1]) // 2))
        resized = canvas
    else:
        resized = image.resize((width, height), resample)
    return Decoded(np.asarray(resized, dtype=np.uint8), image.width, image.height)


def load_formats() -> None:
    """Import what reads `FORMATS`, which Pillow else does when the first picture comes, and then all that it has."""
    Image.preinit()
    from PIL import TiffImagePlugin, WebPImagePlugin  # noqa: F401 - they make themselves known


def is_image(data: bytes) -> bool:
    """Whether `data` begins like an image that `decode` knows; its pixels may still be damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS):
            return True
    except Exception:  # Pillow's plugins raise nearly anything on damaged bytes
        return False


def shrink(pixels: Pixels, side: int) -> Pixels:
    """uint8 `[H, W, 3]` no larger than `side`, for pages that show many images; a smaller one stays as it is."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.uint8)


def png(pixels: Pixels) -> bytes:
    """uint8 `[H, W, 3]` as a PNG file, for pages that show images."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@contextmanager
def _judged() -> Iterator[None]:
    """Turn whatever Pillow raises on untrusted bytes into an ImageError."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged metadata and of large sizes; the pixels decide, and the size is checked here.
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise FormatError("not an image of a known format") from None
    except Image.DecompressionBombError:
        raise TooLargeError("too many pixels") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged bytes
        raise ImageError(" ".join(str(error).split()) or type(error).__name__) from error


def _cut(upright: Image.Image, box: Sequence[int], orientation: int) -> Image.Image:
    """The part of `upright` that `box` names in the pixels as they were stored, before `orientation` was applied."""
    if len(box) != 4:
        raise ImageError("its box is not four whole numbers")
    left, top, right, bottom = box
    width, height = upright.size if orientation not in (5, 6, 7, 8) else upright.size[::-1]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ImageError(f"its box {left}, {top}, {right}, {bottom} is empty or leaves the {width} x {height} picture")
    turned = {
        2: (width - right, top, width - left, bottom),
        3: (width - right, height - bottom, width - left, height - top),
        4: (left, height - bottom, right, height - top),
        5: (top, left, bottom, right),
        6: (height - bottom, left, height - top, right),
        7: (height - bottom, width - right, height - top, width - left),
        8: (top, width - right, bottom, width - left),
    }
    return upright.crop(turned.get(orientation, (left, top, right, bottom)))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageError("floating-point pixels have no defined range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise ImageError("32-bit integer pixels have no defined range")
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
