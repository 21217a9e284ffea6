"""Images made of a million pieces, which Pillow would read for up to a minute, are given up at once."""

import io
import struct
import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from mlops.image import ImageError, decode


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def saved(kind: str, size: int = 8, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def png(before: bytes = b"", after: bytes = b"") -> bytes:
    whole = saved("PNG")
    return whole[:33] + before + whole[33:-12] + after + whole[-12:]


def jpeg(segments: bytes) -> bytes:
    whole = saved("JPEG")
    return whole[:2] + segments + whole[2:]


def gif(blocks: bytes) -> bytes:
    whole = saved("GIF")
    at = whole.index(b",", 13 + 3 * 2 ** ((whole[10] & 7) + 1))
    return whole[:at] + blocks + whole[at:]


SLOW: dict[str, Callable[[], bytes]] = {
    "empty chunks": lambda: png(before=chunk(b"prVt") * 800_000),
    "texts": lambda: png(before=chunk(b"tEXt", b"a\0") * 700_000),
    "empty pixels": lambda: png(after=chunk(b"IDAT") * 800_000),
    "comments of a JPEG": lambda: jpeg(b"\xff\xfe\0\2" * 2_000_000),
    "EXIF in a million parts": lambda: jpeg(b"\xff\xe1\0\x0aExif\0\0II" * 700_000),
    "EXIF in 50,000 parts": lambda: jpeg((b"\xff\xe1\0\xbcExif\0\0" + b"I" * 180) * 50_000),
    "bytes between segments": lambda: jpeg(b"\xff" * 9_000_000),
    "comments of a GIF": lambda: gif(b"\x21\xfe\1a\0" * 1_500_000),
    "comments of a PPM": lambda: b"P6\n" + b"#\n" * 4_000_000 + b"1 1\n255\n123",
    "blanks of a PPM": lambda: b"P6\n" + b" " * 9_000_000 + b"1 1\n255\n123",
}


@pytest.mark.parametrize("case", SLOW)
def test_a_file_of_a_million_pieces_is_given_up_at_once(case: str):
    content, started = SLOW[case](), time.process_time()
    with pytest.raises(ImageError, match="is in too many pieces"):
        decode(content, (8, 8))
    assert time.process_time() - started < 10


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_a_large_picture_is_not_in_too_many_pieces(kind: str):
    assert decode(saved(kind, 1000), (8, 8)).width == 1000


def test_metadata_as_cameras_write_it_is_not_in_too_many_pieces():
    content = saved("JPEG", 500, icc_profile=bytes(255 * 65_000), exif=b"Exif\0\0" + bytes(60_000))
    assert decode(content, (8, 8)).width == 500
    many = png(before=b"".join(chunk(b"tEXt", b"key %d\0value" % number) for number in range(300)))
    assert decode(many, (8, 8)).width == 8
