"""Bodies to images: what clients send is understood, everything else is refused, and nothing is kept."""

import asyncio
import io
import json
import string
from collections.abc import Mapping
from typing import Any

import pytest
import requests
import urllib3
from hypothesis import example, given
from hypothesis import strategies as st
from urllib3.fields import RequestField

from mlops.serving.problem import Problem
from mlops.serving.settings import Limits
from mlops.serving.upload import Body, Reader, Upload, features_of, images_of

LIMITS = Limits(body_bytes=5000, waiting_bytes=8000, files=4, seconds=0.2)
FORM = "multipart/form-data; boundary=XX"


def form(*parts: bytes, end: bytes = b"--XX--\r\n") -> Body:
    return Body(b"".join(b"--XX\r\n" + part + b"\r\n" for part in parts) + end, FORM)


def part(
    content: bytes = b"abc", name: bytes = b"file", head: bytes = b"", file: bytes = b'; filename="a.png"'
) -> bytes:
    return b'Content-Disposition: form-data; name="' + name + b'"' + file + b"\r\n" + head + b"\r\n" + content


def refused(body: Body, field: str = "file") -> Problem:
    with pytest.raises(Problem) as caught:
        images_of(body, field, LIMITS)
    return caught.value


def outcome(body: Body) -> int:
    """The status that a body leads to."""
    try:
        images_of(body, "file", LIMITS)
    except Problem as problem:
        return problem.status
    return 200


# Names as people have them; browsers send quotes as %22 and line ends as %0D%0A, and clients differ in backslashes.
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), min_size=1, max_size=60)


@given(st.lists(st.tuples(NAMES, st.binary(max_size=300)), min_size=1, max_size=4))
def test_what_urllib3_sends_comes_out_as_it_went_in(files: list[tuple[str, bytes]]):
    fields = [("file", (name, content, "image/png")) for name, content in files]
    content, kind = urllib3.encode_multipart_formdata([("note", "x"), *fields])
    assert images_of(Body(content, kind), "file", LIMITS) == [Upload(*one) for one in files]


@given(NAMES, st.binary(max_size=3000))
def test_what_requests_sends_comes_out_as_it_went_in(name: str, content: bytes):
    sent = requests.Request("POST", "http://x", files={"data": (name, io.BytesIO(content))}).prepare()
    assert isinstance(sent.body, bytes)
    assert images_of(Body(sent.body, sent.headers["Content-Type"]), "data", LIMITS) == [Upload(name, content)]


@given(st.binary(max_size=200), st.text(string.ascii_letters + string.digits + "'()+_,-./:=?", min_size=1, max_size=70))
def test_any_boundary_and_any_bytes_that_do_not_hold_it_are_understood(content: bytes, boundary: str):
    marker = boundary.encode()
    if b"--" + marker in content:
        return
    body = b"--" + marker + b"\r\n" + part(content) + b"\r\n--" + marker + b"--\r\n"
    kind = f'multipart/form-data; boundary="{boundary}"'
    assert images_of(Body(body, kind), "file", LIMITS) == [Upload("a.png", content)]


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b'form-data; name="file"; filename="a;b.png"', "a;b.png"),
        (b'form-data; name="file"; filename="../../etc/passwd"', "../../etc/passwd"),
        (b'form-data; name="file"; filename="C:\\fakepath\\a.png"', "a.png"),
        (b'form-data; name="file"; filename="a%22b.png"', "a%22b.png"),
        (b'form-data; name="file"; filename="a\\"b.png"', 'a"b.png'),
        ('form-data; name="file"; filename="größe 日本.png"'.encode(), "größe 日本.png"),
        (b'form-data; name="file"; filename="gr\xf6\xdfe.png"', "gr\ufffd\ufffde.png"),
        (b"form-data; name=file; filename=a.png", "a.png"),
        (b'FORM-DATA; NAME="file"; FileName="a.png"', "a.png"),
        (b'form-data; name="file"; filename=""', ""),
        (b'form-data; name="file"', None),
        (b"form-data; name=\"file\"; filename*=UTF-8''a.png", None),
        (b'form-data; filename="a.png"; name="file"', "a.png"),
        (b'form-data; name="file"; filename="' + b"x" * 300 + b'.png"', "x" * 251 + ".png"),
    ],
)
def test_names_of_files_as_clients_write_them(head: bytes, name: str | None):
    found = images_of(form(b"Content-Disposition: " + head + b"\r\n\r\nabc"), "file", LIMITS)
    assert found == [Upload(name, b"abc")]


def test_only_the_field_that_is_asked_for_is_taken_in_its_order():
    body = form(part(b"1"), part(b"x", b"other"), part(b"2"), part(b"y", b""))
    assert [one.content for one in images_of(body, "file", LIMITS)] == [b"1", b"2"]


def test_text_before_the_first_part_and_after_the_last_is_passed_over():
    body = form(part(b"1"), end=b"--XX--\r\nepilogue")
    assert images_of(body, "file", LIMITS)[0].content == b"1"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"--XX",
        b"--XX\r\n",
        b"--XX\r\n" + part(),
        b"--XX\r\n" + part() + b"\r\n",
        b"--XX\r\n" + part() + b"\r\n--XX",
        b"--XX\r\n" + part() + b"\r\n--XX-",
        b"--YY\r\n" + part() + b"\r\n--YY--\r\n",
        b"--XX\n" + part().replace(b"\r\n", b"\n") + b"\n--XX--\n",
        b"--XX\r\n\r\nabc\r\n--XX--\r\n",
        b"--XX\r\nContent-Type: image/png\r\n\r\nabc\r\n--XX--\r\n",
        b"--XX\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--XX--\r\n",
        b'--XX\r\nContent-Disposition: attachment; name="file"\r\n\r\nabc\r\n--XX--\r\n',
        b"--XX\r\nContent Disposition: x\r\n\r\nabc\r\n--XX--\r\n",
        b"--XX\r\n: x\r\n\r\nabc\r\n--XX--\r\n",
        b"--XX\r\nno colon at all\r\n\r\nabc\r\n--XX--\r\n",
        b"--XX\r\n" + part(head=b"X: " + b"y" * 4500 + b"\r\n") + b"\r\n--XX--\r\n",
        b"--XX\r\n" + part(head=b"X: y\r\n" * 20) + b"\r\n--XX--\r\n",
        b"\x00" * 100,
    ],
)
def test_a_broken_form_is_told_as_such(content: bytes):
    problem = refused(Body(content, FORM))
    assert problem.status == 400
    assert problem.detail.startswith("broken multipart body: ")


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 40))
def test_a_form_that_is_damaged_anywhere_is_a_problem_or_a_form(noise: bytes, at: int, cut: int):
    whole = form(part(b"1"), part(b"2", head=b"Content-Type: image/png\r\n")).content
    damaged = whole[:at] + noise + whole[at + cut :]
    assert outcome(Body(damaged, FORM)) in {200, 400, 413, 415, 422}


@example("IMAGE/")
@given(st.text(st.characters(max_codepoint=255), max_size=100))
def test_no_content_type_is_a_fault(kind: str):
    # For an image, whose decoder has the last word, the body may be taken only where no form is promised.
    assert outcome(Body(b"--XX--\r\n", kind)) in {200, 400, 415, 422}
    for told in (f"multipart/form-data; boundary={kind}", f"multipart/form-data;{kind}"):
        assert outcome(Body(b"--XX--\r\n", told)) in {400, 415, 422}


@pytest.mark.parametrize("kind", ["multipart/form-data", 'multipart/form-data; boundary=""', f"{FORM}{'X' * 69}"])
def test_a_form_without_a_fitting_boundary_is_told_what_it_lacks(kind: str):
    problem = refused(Body(form(part()).content, kind))
    assert (problem.status, problem.detail) == (
        400,
        "content-type: multipart/form-data needs a boundary of 1 to 70 letters",
    )


def test_a_head_that_would_take_long_to_read_is_not_read():
    problem = refused(Body(b"", 'multipart/form-data; a="' + ";" * 500_000))
    assert (problem.status, problem.detail) == (415, "content-type: must be at most 1,000 letters")


def test_a_form_without_the_field_is_told_what_it_has():
    problem = refused(form(part(name=b"image"), part(name=b"x")))
    assert (problem.status, problem.detail) == (422, "the form has no field file; it has image, x")
    assert refused(Body(b"--XX--\r\n", FORM)).status in {400, 422}


def test_more_files_and_more_parts_than_allowed_are_refused():
    assert len(images_of(form(*[part()] * 4), "file", LIMITS)) == 4
    problem = refused(form(*[part()] * 5))
    assert (problem.status, problem.detail) == (413, "5 files: at most 4 at once")
    problem = refused(form(*[part(b"", b"x")] * 1000))
    assert (problem.status, problem.detail) == (413, "a form of more than 36 parts")


@pytest.mark.parametrize("kind", [b"text/plain", b"application/json", b"image", b"text/html; charset=x"])
def test_a_part_that_says_to_be_something_else_is_refused_by_its_name(kind: bytes):
    problem = refused(form(part(), part(head=b"Content-Type: " + kind + b"\r\n")))
    assert problem.status == 415
    assert problem.detail == f"a.png: content-type {kind.decode().partition(';')[0]}: send an image"


@pytest.mark.parametrize("kind", ["image/png", "IMAGE/PNG", "image/x-any; q=1", "application/octet-stream"])
def test_the_bytes_of_one_image_may_be_the_body(kind: str):
    assert images_of(Body(b"abc", kind), "file", LIMITS) == [Upload(None, b"abc")]
    problem = refused(Body(b"", kind))
    assert (problem.status, problem.detail) == (422, "the body is empty; send an image")


@pytest.mark.parametrize("kind", ["", "text/plain", "application/json", "multipart/mixed; boundary=XX", "x", "image"])
def test_any_other_body_is_told_what_to_send(kind: str):
    problem = refused(Body(b"abc", kind))
    assert problem.status == 415
    assert "send multipart/form-data with the field file" in problem.detail


# Features.


def rows(text: str | bytes, kind: str = "application/json") -> list[list[float]]:
    return features_of(Body(text.encode() if isinstance(text, str) else text, kind), 3, 2)


def not_rows(text: str | bytes, kind: str = "application/json") -> tuple[int, str]:
    with pytest.raises(Problem) as caught:
        rows(text, kind)
    return caught.value.status, caught.value.detail


@given(st.lists(st.tuples(*[st.floats(-3.4e38, 3.4e38) | st.integers(-(10**20), 10**20)] * 2), min_size=1, max_size=3))
def test_rows_of_numbers_come_out_as_they_went_in(given_rows: list[tuple[float, float]]):
    for indent in (None, 4):
        text = json.dumps({"features": given_rows, "more": 1}, indent=indent)
        assert rows(text, "Application/JSON; charset=utf-8") == [list(row) for row in given_rows]


@pytest.mark.parametrize(
    ("text", "status", "problem"),
    [
        ("", 400, "the body is no JSON"),
        ("{", 400, "the body is no JSON"),
        (b"\xff\xfe\xff", 400, "the body is no JSON"),
        ("[" * 1500, 400, "the body is no JSON"),
        ('{"features": [[1, 1' + "0" * 900 + "e" * 5 + "]]}", 400, "the body is no JSON"),
        ("null", 422, "features: must be a list of rows"),
        ("[[1, 2]]", 422, "features: must be a list of rows"),
        ('{"features": []}', 422, "features: must be a list of rows"),
        ('{"features": {"a": 1}}', 422, "features: must be a list of rows"),
        ('{"features": [1, 2]}', 422, "features: must be a list of rows"),
        ('{"features": [[1, 2], "12"]}', 422, "features: must be a list of rows"),
        ('{"features": [[1, 2], []]}', 422, "features[1]: 0 numbers: must be 2"),
        ('{"features": [[1, 2, 3]]}', 422, "features[0]: 3 numbers: must be 2"),
        ('{"features": [[1, NaN]]}', 422, "features[0]: must be finite numbers that float32 can hold"),
        ('{"features": [[1, Infinity]]}', 422, "features[0]: must be finite numbers"),
        ('{"features": [[1, 1e999]]}', 422, "features[0]: must be finite numbers"),
        ('{"features": [[1, 3.5e38]]}', 422, "features[0]: must be finite numbers"),
        ('{"features": [[1, 1' + "0" * 900 + "]]}", 422, "features[0]: must be finite numbers"),
        ('{"features": [[1, true]]}', 422, "features[0]: must be finite numbers"),
        ('{"features": [[1, null]]}', 422, "features[0]: must be finite numbers"),
        ('{"features": [[1, "2"]]}', 422, "features[0]: must be finite numbers"),
        ('{"features": [[1, [2]]]}', 422, "features[0]: must be finite numbers"),
        ('{"features": [[1, 2], [1, 2], [1, 2], [1, 2]]}', 413, "features: 4 rows: at most 3 at once"),
        (
            '{"features": [[1, 2]]' + " " * 2000 + "}",
            413,
            "features: more than 1,600 bytes: at most 3 rows of 2 numbers",
        ),
    ],
)
def test_anything_but_rows_of_so_many_numbers_is_refused(text: str | bytes, status: int, problem: str):
    told = not_rows(text)
    assert told[0] == status
    assert told[1].startswith(problem)


@pytest.mark.parametrize(
    "kind", ["", "image/png", "application/jsonx", "text/json", "multipart/form-data; boundary=XX"]
)
def test_features_in_another_form_are_told_theirs(kind: str):
    told = not_rows('{"features": [[1, 2]]}', kind)
    assert told == (415, 'this model takes application/json: {"features": [[2 numbers], ...]}')


# Reading, within limits.


class Wire:
    """What a caller sends: bytes, each a message; None hangs up; a number waits so many seconds; an error is raised."""

    def __init__(self, *sent: bytes | float | BaseException | None) -> None:
        self._sent = list(sent)

    async def __call__(self) -> Mapping[str, Any]:
        one = self._sent.pop(0)
        if isinstance(one, float):
            await asyncio.sleep(one)
            one = self._sent.pop(0)
        if isinstance(one, BaseException):
            raise one
        if one is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": one, "more_body": bool(self._sent)}


def used(reader: Reader) -> int:
    return reader._budget._used


async def read(reader: Reader, *sent: bytes | float | BaseException | None, **headers: bytes) -> Body:
    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return await reader.read(named, Wire(*sent))


def reading(reader: Reader, *sent: bytes | float | None, **headers: bytes) -> Problem:
    with pytest.raises(Problem) as caught:
        asyncio.run(read(reader, *sent, **headers))
    assert used(reader) == 0
    return caught.value


def test_a_body_comes_whole_however_it_was_cut():
    reader = Reader(LIMITS)
    for sent in ([b"abcdef"], [b"abc", b"def"], [b"", b"abcdef", b""], [b"a", 0.01, b"bcdef"]):
        body = asyncio.run(read(reader, *sent, content_type=b"image/png"))
        assert body == Body(b"abcdef", "image/png", charged=6)
        assert used(reader) == 6
        reader.release(body)
        assert used(reader) == 0


@pytest.mark.parametrize("told", [b"5001", b"9" * 18, b"9" * 5000, b"0" * 5000 + b"5"])
def test_a_length_beyond_the_limit_is_refused_before_a_byte_is_read(told: bytes):
    problem = reading(Reader(LIMITS), content_length=told)  # nothing is there to be read
    assert (problem.status, problem.detail) == (413, "a body of more than 5,000 bytes")


@pytest.mark.parametrize("sent", [[b"x" * 5001], [b"x" * 3000, b"x" * 2001], [b"x"] * 5001])
def test_a_body_beyond_the_limit_is_refused_whatever_its_length_says(sent: list[bytes]):
    for length in (b"5", b"-1", b"", b"abc", "٣".encode()):
        assert reading(Reader(LIMITS), *sent, content_length=length).status == 413


@pytest.mark.parametrize("sent", [[5.0, b"x"], [b"x", 5.0, b"x"], [b"x", 0.11, b"x", 0.11, b"x"]])
def test_a_body_that_comes_too_slowly_is_given_up_with_its_connection(sent: list[bytes | float]):
    problem = reading(Reader(LIMITS), *sent)
    assert (problem.status, problem.detail) == (408, "the body took longer than 0.2 s")
    assert problem.headers == {"Connection": "close"}


@pytest.mark.parametrize("sent", [[None], [b"x", None], [b"x", b"y", 0.01, None]])
def test_a_caller_who_hangs_up_is_no_fault(sent: list[bytes | float | None]):
    assert reading(Reader(LIMITS), *sent).status == 400


def test_a_compressed_body_is_not_unpacked():
    problem = reading(Reader(LIMITS), b"x" * 100, content_encoding=b"gzip")
    assert (problem.status, problem.detail) == (415, "content-encoding: send the body as it is")


def test_bodies_that_wait_together_are_limited_and_the_next_may_come_when_one_is_done():
    async def act() -> None:
        reader = Reader(LIMITS)
        first, second = await read(reader, b"x" * 5000), await read(reader, b"x" * 1500, b"x" * 1500)
        for sent in ([b"x"], [b"", b"x"], [b"", b"x" * 5000]):
            with pytest.raises(Problem) as caught:
                await read(reader, *sent)
            assert caught.value.status == 429
            assert caught.value.headers == {"Retry-After": "1"}
        reader.release(second)
        reader.release(await read(reader, b"x" * 3000))
        reader.release(first)
        assert used(reader) == 0

    asyncio.run(act())


STEPS = st.none() | st.binary(max_size=4000) | st.just(OSError("gone")) | st.just(asyncio.CancelledError())


@given(
    st.lists(
        st.tuples(
            st.lists(STEPS, min_size=1, max_size=5),
            st.sampled_from([b"", b"3", b"6000"]),
            st.sampled_from([b"identity", b"gzip"]),
        ),
        max_size=6,
    )
)
def test_whatever_goes_wrong_nothing_stays_counted(bodies: list[tuple[list[Any], bytes, bytes]]):
    async def act() -> None:
        reader, kept = Reader(LIMITS), []
        for sent, length, encoding in bodies:
            try:
                kept.append(await read(reader, *sent, content_length=length, content_encoding=encoding))
            except (Problem, OSError, asyncio.CancelledError, IndexError):
                continue
        assert used(reader) == sum(len(body.content) for body in kept)
        for body in kept:
            reader.release(body)
        assert used(reader) == 0

    asyncio.run(act())


def test_quoted_names_of_urllib3_survive_as_it_writes_them():
    field = RequestField.from_tuples("file", ('a"b\n.png', b"x", "image/png"))
    content, kind = urllib3.encode_multipart_formdata([field])
    assert images_of(Body(content, kind), "file", LIMITS) == [Upload("a%22b%0A.png", b"x")]
