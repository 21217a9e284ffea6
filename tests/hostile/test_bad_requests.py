"""Requests that must be refused, sent to a real server: never 500, never a hang, and the next one is answered."""

import contextlib
import io
import json
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from samples import png
from serving.models import write_features, write_model
from serving.server import Answer, Server

MIB = 2**20
BLUE = png(1, colour=(20, 30, 220))
# What Python and Pillow may keep of one request; Pillow itself gives up a PNG whose texts are more than 64 MiB.
SPARE, MOST_TEXT = 50 * MIB, 64 * MIB


@pytest.fixture(scope="module")
def hostage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of one worker with the limits that it has by itself, but for its patience."""
    folder: Path = tmp_path_factory.mktemp("hostage")
    write_model(folder / "colours.onnx")
    write_features(folder / "numbers.onnx")
    config = "models: {colours: colours.onnx, numbers: numbers.onnx}\nlimits: {seconds: 4}\ndrain_seconds: 0\n"
    (folder / "serve.yaml").write_text(config)
    with Server(folder, ("--config", "serve.yaml")) as server:
        for _ in range(20):  # so that what is loaded with the first requests counts for none of the tests
            server.send("/predict", ("a.png", BLUE))
        yield server


@pytest.fixture
def server(hostage: Server) -> Iterator[Server]:
    """That server; after each test it answers at once, has failed nowhere, and has given the memory back."""
    before = hostage.memory()
    yield hostage
    started = time.monotonic()
    assert hostage.get("/health").status == 200
    assert time.monotonic() - started < 15
    assert hostage.send("/predict", ("a.png", BLUE)).json["predictions"][0]["class"] == "blue"
    assert "traceback" not in hostage.log.read_text().lower()
    assert not [line for line in hostage.lines() if line.get("status", 200) >= 500]
    assert hostage.memory() - before < SPARE + MOST_TEXT


def image(server: Server, content: bytes, kind: str = "image/png", path: str = "/predict") -> Answer:
    return server.ask("POST", path, content, {"Content-Type": kind})


def refused(answer: Answer, *statuses: int) -> str:
    """The detail of a refusal of one of these statuses."""
    assert answer.status in statuses, answer.body[:500]
    assert answer.json["status"] == answer.status
    assert answer.headers["Content-Type"] == "application/problem+json"
    return str(answer.json["detail"])


# Files as no camera writes them.


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def chunks(
    *more: bytes, width: int = 8, height: int = 8, depth: int = 8, colour: int = 2, rows: bytes | None = None
) -> bytes:
    """A PNG with `more` chunks before its pixels."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = (b"\0" + b"\x10\x20\x90" * 8) * 8 if rows is None else rows
    body = b"".join([chunk(b"IHDR", head), *more, chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND")])
    return b"\x89PNG\r\n\x1a\n" + body


def huge_png() -> bytes:
    """13,000 x 13,000 pixels in 20 KB."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 13_000 // 8)
    pixels = b"".join(packer.compress(row * 100) for _ in range(130)) + packer.flush()
    head = struct.pack(">IIBBBBB", 13_000, 13_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND")


def saved(kind: str, size: tuple[int, int] = (64, 64), **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def tiff(*entries: tuple[int, int, int, int], after: int = 0, count: int | None = None) -> bytes:
    """A TIFF of these entries (tag, type, count, value) and 1,000 zeros behind them; `after` is the next directory."""
    directory = struct.pack("<H", len(entries) if count is None else count)
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", after)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(1000)


PLAIN_TIFF = (
    (256, 4, 1, 8),
    (257, 4, 1, 8),
    (258, 3, 1, 8),
    (259, 3, 1, 1),
    (262, 3, 1, 1),
    (273, 4, 1, 200),
    (279, 4, 1, 64),
)


def exif(content: bytes) -> bytes:
    """A JPEG with these bytes as its EXIF."""
    whole = saved("JPEG")
    segment = b"Exif\0\0" + content
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + whole[2:]


def loop_of_exif() -> bytes:
    """EXIF whose directory leads to itself."""
    return exif(b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8))


SIZE_BEYOND = {
    "a PNG of 20 KB and 169 million pixels": huge_png,
    "a PNG that says to be as large as can be": lambda: chunks(width=2**31 - 1, height=2**31 - 1),
    "a PNG that is one long line": lambda: chunks(width=2**31 - 1, height=1),
    "a WEBP": lambda: b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xff\xff\xff\x0f" + bytes(9),
    "a GIF": lambda: (
        b"GIF89a\xff\xff\xff\xff\0\0\0," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x44\x01\0;"
    ),
    "a PPM": lambda: b"P6 99999 99999 255\n" + bytes(100),
    "a BMP": lambda: b"BM" + bytes(8) + struct.pack("<IIiiHHI", 54, 40, 60_000, 60_000, 1, 24, 0) + bytes(20),
    "a TIFF": lambda: tiff((256, 4, 1, 2**31), (257, 4, 1, 2**31), *PLAIN_TIFF[2:]),
    "a JPEG": lambda: saved("JPEG").replace(b"\x08\x00\x40\x00\x40\x03", b"\x08\xff\xff\xff\xff\x03"),
}


@pytest.mark.parametrize("case", SIZE_BEYOND)
def test_an_image_of_too_many_pixels_is_refused_by_its_head(server: Server, case: str):
    content = SIZE_BEYOND[case]()
    assert len(content) < 25_000
    before, started = server.memory(), time.monotonic()
    detail = refused(image(server, content), 413, 422)
    assert time.monotonic() - started < 15
    assert server.memory() - before < SPARE
    assert "pixels" in detail or case == "a WEBP"


def test_images_that_are_too_large_only_together_are_refused(server: Server):
    rows = bytes(1 + 2000 // 8 + 1) * 2000
    one = chunks(width=2000, height=2000, depth=1, colour=0, rows=rows)
    answer = server.send("/predict", *[(f"{number}.png", one) for number in range(9)])
    assert refused(answer, 413) == "36,000,000 pixels in 9 images: at most 25,000,000 at once"


NO_IMAGE = {
    "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "text": b"hello",
    "HTML": b"<!DOCTYPE html><html></html>",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "PDF": b"%PDF-1.7\n",
    "PSD": b"8BPS\0\1" + bytes(100),
    "ICO": b"\0\0\1\0\1\0" + bytes(100),
    "ZIP": b"PK\3\4" + bytes(100),
    "AVIF": b"\0\0\0\x1cftypavif" + bytes(100),
    "FITS": b"SIMPLE  =                    T" + b" " * 2850,
    "zeros": bytes(1000),
    "ELF": b"\x7fELF" + bytes(100),
    "a newline": b"\n",
}


@pytest.mark.parametrize("case", NO_IMAGE)
def test_bytes_of_another_format_are_refused_whatever_they_are_said_to_be(server: Server, case: str):
    for kind in ("image/png", "image/svg+xml", "application/octet-stream"):
        assert refused(image(server, NO_IMAGE[case], kind), 415).startswith("not an image of a known format")
    detail = refused(server.send("/predict", ("x.png", NO_IMAGE[case])), 415)
    assert detail.startswith("x.png: not an image of a known format")


def test_an_empty_body_and_an_empty_file_are_refused(server: Server):
    assert refused(image(server, b""), 422) == "the body is empty; send an image"
    assert refused(server.send("/predict", ("a.png", b"")), 422) == "a.png: empty file"
    refused(server.ask("POST", "/predict", b""), 415)
    refused(server.ask("POST", "/predict"), 415)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_an_image_that_ends_early_is_refused(server: Server, kind: str):
    whole = saved(kind)
    assert image(server, whole).status == 200
    for part in (0.9, 0.5, 0.1):
        refused(image(server, whole[: int(len(whole) * part)]), 415, 422)
    for length in range(1, 40):
        refused(image(server, whole[:length]), 415, 422)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_an_image_that_is_damaged_anywhere_is_answered_or_refused(server: Server, kind: str):
    whole, random = saved(kind, (16, 16)), np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(whole)
        for at in random.integers(0, len(whole), 4):
            damaged[at] = random.integers(0, 256)
        assert image(server, bytes(damaged)).status in {200, 413, 415, 422}


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_an_animation_is_refused(server: Server, kind: str):
    detail = refused(server.send("/predict", ("a.gif", animated(kind))), 422)
    assert detail == "a.gif: is animated; send one picture"


ODD_FILES: dict[str, Callable[[], bytes]] = {
    "text that unpacks to 90 MB": lambda: chunks(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(90 * MIB), 9))),
    "text of 80 MB in chunks of 1 MB": lambda: chunks(
        *[chunk(b"zTXt", b"a%d\0\0" % n + zlib.compress(bytes(MIB - 1000), 9)) for n in range(80)]
    ),
    "international text that unpacks to 90 MB": lambda: chunks(
        chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(90 * MIB), 9))
    ),
    "a colour profile that unpacks to 90 MB": lambda: chunks(
        chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(90 * MIB), 9))
    ),
    "pixels that unpack to 90 MB more than there are": lambda: chunks(rows=bytes(90 * MIB)),
    "a chunk that says to be 2 GB": lambda: chunks(struct.pack(">I", 2**31 - 1) + b"tEXtabc"),
    "a wrong checksum": lambda: chunks()[:-30] + b"\0" + chunks()[-29:],
    "no pixels": lambda: chunks(width=0, height=0),
    "a palette that is not there": lambda: chunks(colour=3),
    "a depth that is none": lambda: chunks(depth=77),
    "EXIF that leads to itself": loop_of_exif,
    "EXIF of 5,000 entries": lambda: exif(
        b"II*\0" + struct.pack("<IH", 8, 5000) + struct.pack("<HHII", 0x10F, 2, 60_000, 0) * 5000
    ),
    "EXIF of a billion values": lambda: exif(
        b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x112, 3, 2**30, 8) + bytes(4)
    ),
    "EXIF of zeros": lambda: exif(bytes(60_000)),
    "a TIFF whose directory leads to itself": lambda: tiff(*PLAIN_TIFF, after=8),
    "a TIFF whose directory leads beyond its end": lambda: tiff(*PLAIN_TIFF, after=2**31),
    "a TIFF of more entries than there are": lambda: tiff(*PLAIN_TIFF, count=65535),
    "a TIFF of a billion strips": lambda: tiff(*PLAIN_TIFF[:5], (273, 4, 2**30, 8), (279, 4, 2**30, 8)),
    "a TIFF of 60,000 samples a pixel": lambda: tiff(*PLAIN_TIFF, (277, 3, 1, 60_000)),
    "a TIFF whose strips are beyond its end": lambda: tiff(*PLAIN_TIFF[:5], (273, 4, 1, 2**31), (279, 4, 1, 2**31)),
    "a TIFF of floating-point pixels": lambda: tiff(*PLAIN_TIFF[:2], (258, 3, 1, 32), *PLAIN_TIFF[3:], (339, 3, 1, 3)),
    "a JPEG of 2,000 scans": lambda: (
        saved("JPEG", progressive=True)[:-2] + b"\xff\xda\0\x08\1\1\0\1\x3f\0" * 2000 + b"\xff\xd9"
    ),
    "a JPEG with a colour profile in 255 parts": lambda: saved("JPEG", icc_profile=bytes(255 * 60_000)),
    "a GIF that never ends its pixels": lambda: saved("GIF")[:-20] + b"\xff" * 100_000,
    "a PPM with numbers of 10,000 digits": lambda: b"P6 " + b"9" * 10_000 + b" 1 255\n",
    "a PPM of text": lambda: b"P3 8 8 255 " + b"300 -1 x " * 100,
    "a WEBP of lies": lambda: b"RIFF" + struct.pack("<I", 2**32 - 1) + saved("WEBP")[8:],
    "a BMP whose pixels are in its head": lambda: saved("BMP")[:10] + struct.pack("<I", 2) + saved("BMP")[14:],
}


@pytest.mark.parametrize("case", ODD_FILES)
def test_a_file_made_to_break_its_decoder_breaks_nothing(server: Server, case: str):
    content = ODD_FILES[case]()
    started, before = time.monotonic(), server.memory()
    answer = image(server, content)
    assert answer.status in {200, 413, 415, 422}, answer.body[:500]
    assert time.monotonic() - started < 15
    # Pixels are unpacked in part, and profiles of megabytes are read; nothing grows to what a file unpacks to.
    assert server.memory() - before < (SPARE + MOST_TEXT if case.startswith("text of 80 MB") else SPARE)


# Bodies.


def test_a_body_of_100_mb_in_chunks_is_given_up_at_the_limit(server: Server):
    before = server.memory()
    body = (bytes(65536) for _ in range(1600))
    found = server.http.request("POST", f"{server.url}/predict", body=body, headers={"Content-Type": "image/png"})
    assert refused(Answer(found.status, found.headers, found.data), 413) == "a body of more than 10,485,760 bytes"
    assert server.memory() - before < SPARE


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "video/mp4", "multipart/mixed", "?"]
)
def test_a_wrong_content_type_is_refused(server: Server, kind: str):
    refused(image(server, BLUE, kind), 415)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip"])
def test_a_compressed_body_is_not_unpacked(server: Server, encoding: str):
    headers = {"Content-Type": "image/png", "Content-Encoding": encoding}
    refused(server.ask("POST", "/predict", zlib.compress(BLUE), headers), 415)


FORM = "multipart/form-data; boundary=XX"
PART = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
BROKEN_FORMS = {
    "no boundary told": (400, "multipart/form-data", PART + BLUE + b"\r\n--XX--\r\n"),
    "another boundary told": (400, "multipart/form-data; boundary=YY", PART + BLUE + b"\r\n--XX--\r\n"),
    "no end": (400, FORM, PART + BLUE),
    "nothing": (400, FORM, b""),
    "garbage": (400, FORM, bytes(range(256)) * 10),
    "a part without a head": (400, FORM, b"--XX\r\n\r\nabc\r\n--XX--\r\n"),
    "a head of 1 MB": (400, FORM, b"--XX\r\nX: " + b"y" * MIB + b"\r\n\r\nabc\r\n--XX--\r\n"),
    "100,000 heads": (400, FORM, b"--XX\r\n" + b"X: y\r\n" * 100_000 + b"\r\nabc\r\n--XX--\r\n"),
    "a thousand fields": (413, FORM, PART.replace(b'"file"', b'"x"') + (b"\r\n" + PART) * 999 + b"\r\n--XX--\r\n"),
    "100,000 empty parts": (413, FORM, b"".join([PART + b"\r\n"] * 100_000) + b"--XX--\r\n"),
    "33 files": (413, FORM, b"".join([PART + BLUE + b"\r\n"] * 33) + b"--XX--\r\n"),
    "another field": (422, FORM, PART.replace(b'"file"', b'"fil"') + BLUE + b"\r\n--XX--\r\n"),
    "a form in a form": (415, FORM, PART + PART + BLUE + b"\r\n--XX--\r\n"),
}


@pytest.mark.parametrize("case", BROKEN_FORMS)
def test_a_form_that_is_none_is_refused_at_once(server: Server, case: str):
    status, kind, body = BROKEN_FORMS[case]
    started = time.monotonic()
    refused(image(server, body, kind), status, 413 if len(body) > 5 * MIB else status)
    assert time.monotonic() - started < 15


def test_a_name_of_a_file_is_given_back_as_text_and_leads_nowhere(server: Server):
    for name in ("../../etc/passwd", "a\0b", "\x1b[31mred", "<script>", "x" * 5000, "\u202egnp.exe"):
        head = f'--XX\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        answer = image(server, head + BLUE + b"\r\n--XX--\r\n", FORM)
        if answer.status == 200:
            assert answer.json["predictions"][0]["file"] == name[-255:]
        else:
            refused(answer, 400)
        answer = image(server, head + b"no image\r\n--XX--\r\n", FORM)
        assert "\x1b" not in refused(answer, 400, 415)
    assert "etc/passwd" not in server.log.read_text()


JSON_BODIES = {
    "deep": (b"[" * 60_000, 400),
    "deep and closed": (b"[" * 30_000 + b"]" * 30_000, 400),
    "deep in features": (b'{"features": [[[' + b"[" * 3000 + b"]" * 3003 + b"}", 400),
    "NaN": (b'{"features": [[NaN, 1, 1, 1]]}', 422),
    "infinite": (b'{"features": [[1e999, 1, 1, 1]]}', 422),
    "a number of 5,000 digits": (b'{"features": [[' + b"9" * 5000 + b", 1, 1, 1]]}", 400),
    "a number of 4,000 digits": (b'{"features": [[' + b"9" * 4000 + b", 1, 1, 1]]}", 422),
    "empty lists": (b'{"features": [' + b"[]," * 1_000_000 + b"[]]}", 413),
    "10 MB of blanks": (b'{"features": ' + b" " * 10_000_000 + b"[[1, 1, 1, 1]]}", 413),
    "half a surrogate": (b'{"features": [["\\ud800", 1, 1, 1]]}', 422),
    "a thousand rows": (b'{"features": [' + b"[1,1,1,1]," * 999 + b"[1,1,1,1]]}", 413),
    "keys that hash alike or not": (json.dumps({str(n): n for n in range(5000)}).encode(), 422),
    "nothing": (b"", 400),
}


@pytest.mark.parametrize("case", JSON_BODIES)
def test_json_made_to_break_its_parser_breaks_nothing(server: Server, case: str):
    body, status = JSON_BODIES[case]
    before = server.memory()
    answer = image(server, body, "application/json", "/models/numbers/predict")
    refused(answer, status, 422 if "deep in" in case else status)
    assert server.memory() - before < SPARE


@pytest.mark.parametrize(
    "query",
    ["top=10000", "top=%D9%A3", "top=" + "0" * 8 + "1" + "5" * 5000, "top=1;top=2", "top=-0", "top=1&top=x", "top=%00"],
)
def test_an_odd_number_of_classes_is_refused(server: Server, query: str):
    refused(image(server, BLUE, path=f"/predict?{query}"), 422)


def test_a_query_that_means_nothing_is_passed_over(server: Server):
    for query in ("x=1", "&&&", "%", "=", "%FF=%FE", "&".join(f"a{n}=1" for n in range(5000))):
        assert image(server, BLUE, path=f"/predict?{query}").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/models/../predict",
        "/models/..%2f..%2fetc%2fpasswd/predict",
        "/models/%2e%2e/predict",
        "/models/a%00b/predict",
        "/models/%0d%0aX:%20y/predict",
        "/models/colours%00/predict",
        f"/models/{'x' * 5000}/predict",
        "/models//predict",
        "/models/COLOURS/predict",
        "//predict",
        "/models/%ED%A0%80/predict",
        "/v2/models/../infer",
    ],
)
def test_a_name_that_leads_elsewhere_leads_nowhere(server: Server, path: str):
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(BLUE)}\r\n"
    answer = raw(server, head.encode() + b"Connection: close\r\n\r\n" + BLUE)
    assert status(answer) == 404
    assert b"\r\nx: y" not in answer.lower()
    assert len(answer) < 1500


# The wire.


def raw(server: Server, *sent: bytes | float, seconds: float = 10) -> bytes:
    """What comes back on a connection of its own, until it is closed; numbers are pauses."""
    host, port = server.url.removeprefix("http://").split(":")
    found = b""
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        with contextlib.suppress(ConnectionError):  # it has heard enough
            for one in sent:
                if isinstance(one, float):
                    time.sleep(one)
                else:
                    connection.sendall(one)
        try:
            while part := connection.recv(65536):
                found += part
        except (ConnectionError, TimeoutError):
            if not found:
                raise
    return found


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def head(*lines: str, method: str = "POST", path: str = "/predict", version: str = "1.1", host: bool = True) -> bytes:
    first = [f"{method} {path} HTTP/{version}", *(["Host: x", "Connection: close"] if host else [])]
    return "\r\n".join([*first, *lines, "", ""]).encode("latin-1")


LENGTH = f"Content-Length: {len(BLUE)}"
TYPE = "Content-Type: image/png"
ON_THE_WIRE = {
    "two lengths": (400, head(TYPE, LENGTH, "Content-Length: 3") + BLUE),
    "the same length twice": (400, head(TYPE, LENGTH, LENGTH) + BLUE),
    "a length and chunks": (400, head(TYPE, LENGTH, "Transfer-Encoding: chunked") + b"0\r\n\r\n"),
    "a negative length": (400, head(TYPE, "Content-Length: -5") + BLUE),
    "a length with a sign": (400, head(TYPE, "Content-Length: +5") + BLUE),
    "a length of letters": (400, head(TYPE, "Content-Length: abc") + BLUE),
    "a length that no number holds": (400, head(TYPE, "Content-Length: " + "9" * 5000) + BLUE),
    "a length of zeros": (413, head(TYPE, "Content-Length: " + "0" * 5000 + "5") + BLUE),
    "a length of 1 TB": (413, head(TYPE, "Content-Length: 1099511627776")),
    "another encoding": (400, head(TYPE, "Transfer-Encoding: bogus") + BLUE),
    "chunks that are not last": (400, head(TYPE, "Transfer-Encoding: chunked, gzip") + BLUE),
    "a chunk of no size": (400, head(TYPE, "Transfer-Encoding: chunked") + b"ZZ\r\nabc\r\n0\r\n\r\n"),
    "a chunk that is longer": (400, head(TYPE, "Transfer-Encoding: chunked") + b"2\r\nabcdef\r\n0\r\n\r\n"),
    "a chunk of 16 EB": (400, head(TYPE, "Transfer-Encoding: chunked") + b"fffffffffffffffff\r\nabc"),
    "a head with a blank in its name": (400, head("A b: c", TYPE, LENGTH) + BLUE),
    "a head with a NUL": (400, head("A: b\0c", TYPE, LENGTH) + BLUE),
    "a head without a colon": (400, head("Abc", TYPE, LENGTH) + BLUE),
    "a head that goes on": (400, head("A: b", " c", TYPE, LENGTH) + BLUE),
    "another protocol": (400, b"\x16\x03\x01\x02\0\x01\0" * 20),
    "HTTP/2": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/9": (400, head(TYPE, LENGTH, version="9.9") + BLUE),
    "no method": (400, b" /predict HTTP/1.1\r\n\r\n"),
    "an unknown method": (400, head(method="HACK", path="/predict")),
    "CONNECT": (400, head(method="CONNECT", path="evil:80")),
    "TRACE": (405, head(method="TRACE", path="/health")),
    "bytes in a path": (400, b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n"),
    "only a newline": (400, b"\r\n\r\nx\r\n\r\n"),
    "a body where none is taken": (405, head(LENGTH, method="GET") + BLUE),
    "a body for health": (200, head(LENGTH, method="GET", path="/health") + BLUE),
    "another host in the path": (200, head(method="GET", path="http://evil.example/health")),
    "a host that is none": (200, b"GET /health HTTP/1.1\r\nHost: \xff/a?b#c\r\nConnection: close\r\n\r\n"),
    "HTTP/1.0": (200, head(TYPE, LENGTH, version="1.0", host=False) + BLUE),
    "the same key twice": (200, head(TYPE, LENGTH, "X-API-Key: a", "X-API-Key: b") + BLUE),
    "the same id twice": (200, head(TYPE, LENGTH, "X-Request-ID: a", "X-Request-ID: b") + BLUE),
}


@pytest.mark.parametrize("case", ON_THE_WIRE)
def test_bytes_that_are_no_proper_http_are_refused_at_once(server: Server, case: str):
    wanted, sent = ON_THE_WIRE[case]
    started = time.monotonic()
    answer = raw(server, sent)
    assert status(answer) == wanted, answer
    assert time.monotonic() - started < 15
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_host_of_the_callers_own_is_neither_counted_nor_told(server: Server):
    raw(server, b"GET /health HTTP/1.1\r\nHost: evil.example/abc?\r\nConnection: close\r\n\r\n")
    metrics = server.get(f"{server.admin}/metrics").body.decode()
    assert "evil" not in metrics
    assert "/abc" not in metrics


def test_a_body_that_never_comes_is_given_up_after_a_while(server: Server):
    sent = [head(TYPE, LENGTH), head(TYPE, LENGTH) + BLUE[:5], head(TYPE, "Transfer-Encoding: chunked")]
    started = time.monotonic()
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda one: raw(server, one), sent))
    assert 3.5 < time.monotonic() - started < 15
    assert [status(answer) for answer in answers] == [408] * 3
    assert all(b"connection: close" in answer.lower() for answer in answers)


def test_a_body_that_comes_a_byte_at_a_time_is_given_up_too(server: Server):
    drops = [one for number in range(20) for one in (BLUE[number : number + 1], 0.3)]
    started = time.monotonic()
    assert status(raw(server, head(TYPE, LENGTH), *drops)) == 408
    assert time.monotonic() - started < 15


def test_a_length_that_promises_more_than_comes_is_no_fault(server: Server):
    host, port = server.url.removeprefix("http://").split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head(TYPE, "Content-Length: 100000") + BLUE)
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head(TYPE, LENGTH) + BLUE)  # gone before its answer


def test_requests_that_are_sent_before_the_answers_are_answered_in_their_order(server: Server):
    one = head(TYPE, LENGTH).replace(b"Connection: close\r\n", b"") + BLUE
    ids = [b"first", b"second", b"third"]
    sent = b"".join(one.replace(b"Host: x", b"Host: x\r\nX-Request-ID: " + name) for name in ids)
    answer = raw(server, sent + head(method="GET", path="/health"))
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    places = [answer.index(b"x-request-id: " + name) for name in ids]
    assert places == sorted(places)


def test_what_follows_a_body_is_another_request_and_no_part_of_it(server: Server):
    inner = head(method="GET", path="/version")
    answer = raw(server, head(TYPE, f"Content-Length: {len(inner)}") + inner)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert status(answer) == 415


def test_a_hundred_callers_who_send_nothing_keep_nobody_else_out(server: Server):
    host, port = server.url.removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(100)]
    try:
        for number, connection in enumerate(idle):
            connection.sendall([b"", b"POST /pre", head(TYPE, LENGTH)[:40], head(TYPE, LENGTH)][number % 4])
        started = time.monotonic()
        assert image(server, BLUE).status == 200
        assert time.monotonic() - started < 15
    finally:
        for connection in idle:
            connection.close()


# Models.


def serve(folder: Path, *words: str) -> tuple[int, str]:
    """Exit code and what is said."""
    command = [sys.executable, "-m", "mlops.cli", "serve", *words, "--port", "0", "--workers", "1"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, ended.stdout + ended.stderr


def external(path: Path) -> None:
    import onnx

    model = onnx.load(write_model(path))
    tensor = next(one for one in model.graph.initializer if one.name == "head")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    path.write_bytes(model.SerializeToString())


def foreign(path: Path) -> None:
    import onnx

    model = onnx.load(write_model(path))
    model.graph.node.append(helper.make_node("Run", ["images"], ["x"], domain="evil"))
    model.opset_import.append(helper.make_opsetid("evil", 1))
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (external, "other files"),
        (foreign, "evil"),
        (lambda path: path.write_bytes(b""), "model.onnx"),
        (lambda path: path.write_bytes(b"\x08\x09" * 1000), "model.onnx"),
        (lambda path: path.write_bytes(BLUE), "model.onnx"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: None, "no such file"),
    ],
)
def test_a_model_that_must_not_run_is_refused_before_anything_is_served(
    tmp_path: Path, make: Callable[[Path], object], problem: str
):
    make(tmp_path / "model.onnx")
    code, said = serve(tmp_path, "model.onnx")
    assert code == 2
    assert problem in said
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "word", ["../x=model.onnx", "a/b=model.onnx", "=model.onnx", "a b=model.onnx", "a=", "x" * 65 + "=m.onnx"]
)
def test_a_model_cannot_be_called_by_a_path(tmp_path: Path, word: str):
    write_model(tmp_path / "model.onnx")
    code, said = serve(tmp_path, word)
    assert code == 2
    assert "Traceback" not in said


def test_without_any_model_the_server_says_that_it_is_not_ready(tmp_path: Path):
    with Server(tmp_path, (), wait=False) as server:
        server.until_it_answers()
        for _ in range(3):
            answer = image(server, BLUE)
            assert "no such file" in refused(answer, 503) or "is being loaded" in answer.json["detail"]
            assert answer.headers["Retry-After"] == "1"
        assert "model" in refused(server.get("/health/ready"), 503)
        assert server.get("/models").json["models"][0]["ready"] is False
