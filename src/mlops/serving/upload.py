"""The body of a request to the images in it, within limits that hold before anything is parsed or kept."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mlops.serving.problem import Problem, busy
from mlops.serving.settings import Limits

Receive = Callable[[], Awaitable[Mapping[str, Any]]]

# Beside the files; a form has a handful.
_MOST_FIELDS = 32
_PLAIN = ("application/octet-stream", "binary/octet-stream")
_LONGEST_NAME = 255
_LONGEST_KIND = 1000
# Digits of a Content-Length.
_LONGEST_LENGTH = 18
# Bytes of JSON that one number may take, with the white space around it.
_WIDEST_NUMBER = 64
# Of a body that is JSON: reading it takes some 30 times its bytes, and holds up the process meanwhile.
MOST_JSON = 4 * 1024**2


@dataclass(frozen=True)
class Upload:
    """One file of a request: its name, where it has one, and its bytes."""

    name: str | None
    content: bytes


@dataclass(frozen=True)
class Body:
    """What a request brought: its bytes, what they are said to be, and how many bytes it may take in memory."""

    content: bytes
    kind: str
    charged: int = 0


class Budget:
    """Bytes of requests that a worker keeps at the same time, and their most."""

    def __init__(self, most: int) -> None:
        self._most, self._used = most, 0

    def take(self, count: int) -> None:
        """Raises a `Problem` where there is no room."""
        if self._used + count > self._most:
            raise busy("too many bytes of other requests wait here; send it again later")
        self._used += count

    def give(self, count: int) -> None:
        """Back."""
        self._used -= count


class Reader:
    """Reads bodies: within `Limits`, and with all others of this worker within a budget."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._budget = limits, Budget(limits.waiting_bytes)

    async def read(self, headers: Mapping[bytes, bytes], receive: Receive, *, compressed: bool = False) -> Body:
        """The whole body. `release` it when its request is answered.

        A `compressed` one is let in as it came, and takes as much as the largest body may.

        Raises:
            Problem: it is too large, too slow, or more than there is room for; or the caller has gone.
        """
        most, told = self._limits.body_bytes, headers.get(b"content-length", b"")
        # Longer ones fit no body, or are padded with zeros; reading them takes Python too long, and it refuses to.
        if told.isdigit() and (len(told) > _LONGEST_LENGTH or int(told) > most):
            raise Problem(413, f"a body of more than {most:,} bytes")
        try:
            async with asyncio.timeout(self._limits.seconds):
                message = await receive()
                if message.get("more_body") or message["type"] != "http.request":
                    content = await self._rest(message, receive)
                else:  # as nearly always
                    content = bytes(message.get("body", b""))
                    if len(content) > most:
                        raise Problem(413, f"a body of more than {most:,} bytes")
                    self._budget.take(len(content))
        except TimeoutError:
            # Whoever sends a letter a second would keep the connection otherwise.
            detail = f"the body took longer than {self._limits.seconds:g} s"
            raise Problem(408, detail, {"Connection": "close"}) from None
        charged = len(content)
        if headers.get(b"content-encoding", b"identity") != b"identity":
            try:
                if not compressed:
                    raise Problem(415, "content-encoding: send the body as it is")
                self._budget.take(most)
            except Problem:
                self._budget.give(charged)
                raise
            charged += most
        return Body(content, headers.get(b"content-type", b"").decode("latin-1"), charged)

    def release(self, body: Body) -> None:
        """Forget a body that was read."""
        self._budget.give(body.charged)

    async def _rest(self, message: Mapping[str, Any], receive: Receive) -> bytes:
        most, content = self._limits.body_bytes, bytearray()
        try:
            while True:
                if message["type"] == "http.disconnect":
                    raise Problem(400, "the caller hung up before the whole body was sent")
                part = message.get("body", b"")
                if len(content) + len(part) > most:
                    raise Problem(413, f"a body of more than {most:,} bytes")
                self._budget.take(len(part))
                content += part
                if not message.get("more_body"):
                    return bytes(content)
                message = await receive()
        except BaseException:
            self._budget.give(len(content))
            raise


def images_of(body: Body, field: str, limits: Limits) -> list[Upload]:
    """The images in a body: a form with files in `field`, or the bytes of one.

    Raises:
        Problem: there are none, too many, or it is something else.
    """
    if len(body.kind) > _LONGEST_KIND:
        raise Problem(415, f"content-type: must be at most {_LONGEST_KIND:,} letters")
    kind, options = parse_options_header(body.kind)
    if kind == b"multipart/form-data":
        return _files(body.content, options, field, limits.files)
    if kind.startswith(b"image/") or kind.decode("latin-1") in _PLAIN:
        if not body.content:
            raise Problem(422, "the body is empty; send an image")
        return [Upload(None, body.content)]
    raise Problem(
        415,
        f"content-type {kind.decode('latin-1') or 'missing'}: send multipart/form-data with the field {field}, or one "
        "image as image/png, image/jpeg, ... or application/octet-stream",
    )


def features_of(body: Body, most: int, width: int) -> list[list[float]]:
    """The rows of `{"features": [[...], ...]}`: at least one, at most `most`, of `width` numbers each.

    Raises:
        Problem: they are something else.
    """
    if not re.match(r"application/json\s*(;|$)", body.kind, re.IGNORECASE):
        raise Problem(415, f'this model takes application/json: {{"features": [[{width} numbers], ...]}}')
    # Parsing takes memory of 20 times the text and holds up all other requests; most of it would be thrown away.
    if len(body.content) > (longest := min(MOST_JSON, 1024 + _WIDEST_NUMBER * most * (width + 1))):
        raise Problem(413, f"features: more than {longest:,} bytes: at most {most:,} rows of {width:,} numbers at once")
    try:
        told = json.loads(body.content)
    except (ValueError, RecursionError):
        raise Problem(400, "the body is no JSON") from None
    rows = told.get("features") if isinstance(told, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise Problem(422, f'features: must be a list of rows: {{"features": [[{width} numbers], ...]}}')
    if len(rows) > most:
        raise Problem(413, f"features: {len(rows):,} rows: at most {most:,} at once")
    for position, row in enumerate(rows):
        if len(row) != width:
            raise Problem(422, f"features[{position}]: {len(row):,} numbers: must be {width:,}")
        if not all(type(number) in (int, float) and abs(number) <= 3.4e38 for number in row):
            raise Problem(422, f"features[{position}]: must be finite numbers that float32 can hold")
    return rows


def _files(content: bytes, options: Mapping[bytes, bytes], field: str, most: int) -> list[Upload]:
    form = _Form(most)
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:  # RFC 2046
        raise Problem(400, "content-type: multipart/form-data needs a boundary of 1 to 70 letters")
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(content)
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, f"broken multipart body: {error}") from None
    if not form.ended:
        raise Problem(400, "broken multipart body: it ends too early")
    found = [part for part in form.parts if part.field == field]
    if not found:
        others = ", ".join(sorted({part.field or "" for part in form.parts})[:5]) or "nothing"
        raise Problem(422, f"the form has no field {field}; it has {others}")
    if len(found) > most:
        raise Problem(413, f"{len(found):,} files: at most {most:,} at once")
    for part in found:
        if part.kind and not part.kind.startswith("image/") and part.kind not in _PLAIN:
            raise Problem(415, f"{part.name or field}: content-type {part.kind}: send an image")
    return [Upload(part.name, b"".join(part.content)) for part in found]


class _Part:
    def __init__(self) -> None:
        # None until its head says it; a name may be empty.
        self.field: str | None = None
        self.name: str | None = None
        self.kind = ""
        self.content: list[bytes] = []

    def header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-disposition":
            kind, options = parse_options_header(value)
            if kind != b"form-data" or b"name" not in options:
                raise Problem(400, "broken multipart body: a part without form-data and a name")
            self.field = options[b"name"].decode("utf-8", "replace")
            if b"filename" in options:
                self.name = options[b"filename"].decode("utf-8", "replace")[-_LONGEST_NAME:]
        elif name == b"content-type":
            self.kind = parse_options_header(value)[0].decode("latin-1")


class _Form:
    """What the parser calls."""

    def __init__(self, most_files: int) -> None:
        self.parts: list[_Part] = []
        self.ended = False
        self._most = most_files + _MOST_FIELDS
        self._name, self._value = b"", b""

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_header_field": self._field,
            "on_header_value": self._add,
            "on_header_end": self._header,
            "on_headers_finished": self._headers,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) == self._most:
            raise Problem(413, f"a form of more than {self._most:,} parts")
        self.parts.append(_Part())

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].content.append(data[start:end])

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header(self) -> None:
        self.parts[-1].header(self._name, self._value)
        self._name = self._value = b""

    def _headers(self) -> None:
        if self.parts[-1].field is None:
            raise Problem(400, "broken multipart body: a part without a name")

    def _end(self) -> None:
        self.ended = True
