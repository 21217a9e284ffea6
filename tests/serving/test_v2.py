"""The other side of these tests is Triton's own client: what it writes we read, and what we write it reads."""

import gzip
import json
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import np_to_triton_dtype

from mlops.errors import MlopsError
from mlops.serving import v2
from mlops.serving.tensors import ProtocolError

LABELS = ["stop", "yield: now", "ünder"]
ROWS = np.array([[0.2, 0.7, 0.1], [0.25, 0.25, 0.5]], np.float32)
NUMBERS = st.one_of(
    hnp.boolean_dtypes(), hnp.integer_dtypes(endianness="<"), hnp.unsigned_integer_dtypes(endianness="<"), hnp.floating_dtypes(endianness="<", sizes=(16, 32, 64))
)  # fmt: skip
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
IMAGES = v2.model_metadata("signs", ["1"], "images", {"height": 8, "width": 9, "resizes": True}, LABELS)


def written(array: np.ndarray, name: str = "x", *, binary: bool = True) -> InferInput:
    one = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    return one.set_data_from_numpy(array, binary_data=binary)


def sent(*inputs: InferInput, **others: Any) -> v2.InferRequest:
    return v2.parse(*InferenceServerClient.generate_request_body(list(inputs), **others))


def answered(
    *outputs: InferRequestedOutput, rows: np.ndarray = ROWS, **others: Any
) -> tuple[InferResult, dict[str, str]]:
    request = sent(written(np.zeros((1, 2, 2, 3), np.uint8), "images"), outputs=list(outputs), **others)
    body, headers = v2.answer(request, model="signs", version="abc", outputs={"probabilities": rows}, labels=LABELS)
    length = headers.get(v2.JSON_LENGTH)
    return InferenceServerClient.parse_response_body(body, header_length=length and int(length)), headers


def described(data: Any = None, **changes: Any) -> dict[str, Any]:
    """An input in JSON, in order unless `changes` break it. Those that are ... are left out."""
    one = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, 2] if data is None else data, **changes}
    return {key: value for key, value in one.items() if value is not ...}


def request(*inputs: Any, **others: Any) -> bytes:
    return json.dumps({"inputs": list(inputs) or [described()], **others}).encode()


def refusal(body: bytes, length: int | None = None) -> str:
    with pytest.raises(ProtocolError) as caught:
        v2.parse(body, length)
    assert caught.value.status == 400
    assert isinstance(caught.value, MlopsError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def binary(data: bytes, **changes: Any) -> tuple[bytes, int]:
    """A request for one input as binary data, and the bytes of its JSON."""
    head = request(
        {"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": len(data)}, **changes}
    )
    return head + data, len(head)


def inference_of(datatype: str, shape: list[int], data: bytes) -> np.ndarray:
    return v2.parse(*binary(data, datatype=datatype, shape=shape)).inputs["x"]


class TestWhatTheClientSends:
    @given(hnp.arrays(NUMBERS, SHAPES), st.booleans())
    def test_numbers_arrive_as_they_were(self, array: np.ndarray, binary: bool):
        found = sent(written(array, binary=binary)).inputs["x"]
        assert found.dtype == array.dtype
        assert found.flags.aligned
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, array, strict=True)

    @given(hnp.arrays(object, SHAPES, elements=st.binary(max_size=9)))
    def test_bytes_arrive_as_they_were(self, array: np.ndarray):
        assert sent(written(array)).inputs["x"].tolist() == array.tolist()

    @given(hnp.arrays(object, SHAPES, elements=st.text(st.characters(exclude_categories=["Cs"]), max_size=9)))
    def test_text_arrives_as_utf8(self, array: np.ndarray):
        texts = [text.encode() for text in array.ravel()]
        for found in (sent(written(array, binary=kind)).inputs["x"] for kind in (False, True)):
            assert found.shape == array.shape
            assert found.ravel().tolist() == texts

    @given(st.lists(st.tuples(hnp.arrays(NUMBERS, SHAPES), st.booleans()), min_size=1, max_size=4))
    def test_several_inputs_keep_apart(self, several: list[tuple[np.ndarray, bool]]):
        inputs = [written(array, f"input {index}", binary=kind) for index, (array, kind) in enumerate(several)]
        found = sent(*inputs).inputs
        assert list(found) == [one.name() for one in inputs]
        for (array, _), tensor in zip(several, found.values(), strict=True):
            np.testing.assert_array_equal(tensor, array, strict=True)

    def test_its_id_and_its_outputs_in_their_order(self):
        outputs = [InferRequestedOutput("b", class_count=3), InferRequestedOutput("a", binary_data=False)]
        others = {"sequence_id": 7, "priority": 1, "timeout": 5, "parameters": {"any": "thing"}}
        found = sent(written(ROWS), outputs=outputs, request_id="42", **others)
        assert found.id == "42"
        assert found.outputs == (v2.Asked("b", True, 3), v2.Asked("a", False, 0))

    def test_without_outputs_all_are_asked_for_as_binary_data(self):
        found = sent(written(ROWS))
        assert (found.id, found.outputs, found.binary) == ("", (), True)

    def test_images_are_not_copied(self):
        body, length = InferenceServerClient.generate_request_body([written(np.ones((1, 9, 9, 3), np.uint8))])
        found = v2.parse(body, length).inputs["x"]
        assert np.shares_memory(found, np.frombuffer(body, np.uint8))


class TestJson:
    @given(hnp.arrays(NUMBERS, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=3)))
    def test_data_may_be_nested_like_its_shape(self, array: np.ndarray):
        one = described(array.tolist(), shape=list(array.shape), datatype=np_to_triton_dtype(array.dtype))
        np.testing.assert_array_equal(v2.parse(request(one), None).inputs["x"], array, strict=True)

    def test_whole_numbers_are_good_floats(self):
        assert v2.parse(request(described([1, 2**70])), None).inputs["x"].tolist() == [1.0, float(2**70)]

    def test_null_is_as_good_as_nothing(self):
        found = v2.parse(request(described(parameters=None), id=None, outputs=None, parameters=None), None)
        assert (found.id, found.outputs, found.binary) == ("", (), False)

    def test_all_outputs_follow_the_request_but_for_those_that_say_otherwise(self):
        outputs = [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}]
        found = v2.parse(request(parameters={"binary_data_output": True}, outputs=outputs), None)
        assert [one.binary for one in found.outputs] == [True, False]


class TestBrokenRequests:
    @pytest.mark.parametrize(
        ("body", "length", "problem"),
        [
            (b"", None, "the request is not JSON: Expecting value: line 1 column 1 (char 0)"),
            (b"{", None, "the request is not JSON: Expecting property name"),
            (b"[]", None, "the request is [...]: must be an object"),
            (b"null", None, "the request is null: must be an object"),
            (b'{"inputs": "\xff"}', None, "the request is not UTF-8 at its byte 12"),
            ('{"inputs": []}'.encode("utf-16"), None, "the request is not UTF-8 at its byte 0"),
            ("\ufeff{}".encode(), None, "the request is not JSON: Unexpected UTF-8 BOM"),
            (b"[" * 200_000, None, "the request is nested too deep"),
            (b'{"a":' * 200_000, None, "the request is nested too deep"),
            (b'{"id": ' + b"9" * 5000 + b"}", None, "the request is not JSON: Exceeds the limit"),
            (b"{}", 3, "Inference-Header-Content-Length=3: must be at most the body's 2 bytes"),
            (b"{}", -1, "Inference-Header-Content-Length=-1: must be at most the body's 2 bytes"),
            (b"{}", 0, "the request is not JSON"),
            (b"{}", None, "inputs: is missing; must be a list"),
            (b'{"inputs": {}}', None, "inputs={...}: must be a list"),
            (b'{"inputs": []}', None, "inputs: is empty"),
            (b'{"inputs": [1]}', None, "inputs[0]=1: must be an object"),
            (request() + b"xy", len(request()), "the body goes on for 2 bytes after its inputs"),
            (request(id=5), None, "id=5: must be text"),
            (request(parameters=[]), None, "parameters=[...]: must be an object"),
            (request(parameters={"binary_data_output": 1}), None, "parameters.binary_data_output=1: must be true or false"),
            (request(described(), described()), None, 'inputs[1].name="x": is there twice'),
            (request(outputs={}), None, "outputs={...}: must be a list"),
            (request(outputs=["p"]), None, 'outputs[0]="p": must be an object'),
            (request(outputs=[{}]), None, "outputs[0].name: is missing; must be text"),
            (request(outputs=[{"name": "p"}] * 2), None, 'outputs[1].name="p": is there twice'),
        ],
    )  # fmt: skip
    def test_of_the_request(self, body: bytes, length: int | None, problem: str):
        assert refusal(body, length).startswith(problem)

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"name": ...}, "name: is missing; must be text"),
            ({"name": 1}, "name=1: must be text"),
            ({"datatype": ...}, "datatype: is missing; must be text"),
            ({"datatype": ["FP32"]}, "datatype=[...]: must be text"),
            ({"datatype": "BF16"}, 'datatype="BF16": must be one of BOOL, UINT8, UINT16'),
            ({"datatype": "fp32"}, 'datatype="fp32": must be one of BOOL, UINT8, UINT16'),
            ({"datatype": "\x1b[2J" * 99}, 'datatype="\\u001b[2J\\u001b[2J'),
            ({"shape": ...}, "shape: is missing; must be a list"),
            ({"shape": 2}, "shape=2: must be a list"),
            ({"shape": [-1]}, "shape=[-1]: must be up to 16 whole numbers of 0 or more"),
            ({"shape": [True, 2]}, "shape=[true, 2]: must be up to 16 whole numbers"),
            ({"shape": [2.0]}, "shape=[2.0]: must be up to 16 whole numbers"),
            ({"shape": ["2"]}, 'shape=["2"]: must be up to 16 whole numbers'),
            ({"shape": [[2]]}, "shape=[[...]]: must be up to 16 whole numbers"),
            ({"shape": [1] * 17}, "shape=[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]: must be up to 16"),
            ({"shape": [2**32, 2**32]}, "shape=[4294967296, 4294967296]: is too large"),
            ({"shape": [0, 2**63]}, "shape=[0, 9223372036854775808]: is too large"),
            ({"shape": [10**4000]}, "shape=[1000000000000000000000000000000000000000...]: is too large"),
            ({"shape": [3]}, "data: holds 2 values; shape=[3] are 3"),
            ({"shape": []}, "data: holds 2 values; shape=[] are 1"),
            ({"shape": [10**9]}, "data: holds 2 values; shape=[1000000000] are 1,000,000,000"),
            ({"data": ...}, "data: is missing; must be a list"),
            ({"data": "ab"}, 'data="ab": must be a list'),
            ({"data": {"0": 1}}, "data={...}: must be a list"),
            ({"data": [[1], [2]]}, "data: must be numbers, for FP32"),
            ({"data": [[[1, 2]]], "shape": [1, 2]}, "data: must be nested like shape=[1, 2], or one list"),
            ({"data": [[1, 2], [3]], "shape": [2, 2]}, "data: must be nested like shape=[2, 2], or one list"),
            ({"data": [[1, 2], 3], "shape": [2, 2]}, "data: must be nested like shape=[2, 2], or one list"),
            ({"data": [1, [2]], "shape": [2]}, "data: must be numbers, for FP32"),
            ({"data": [[[5]]], "shape": []}, "data: must be numbers, for FP32"),
            ({"data": [1, None]}, "data: must be numbers, for FP32"),
            ({"data": [1, True]}, "data: must be numbers, for FP32"),
            ({"data": [1, "2"]}, "data: must be numbers, for FP32"),
            ({"data": [1, 1e39]}, "data: holds a number that is out of range for FP32"),
            ({"data": [1, 10**400]}, "data: holds a number that is out of range for FP32"),
            ({"datatype": "FP16", "data": [1, 70000]}, "data: holds a number that is out of range for FP16"),
            ({"datatype": "UINT8", "data": [0, 256]}, "data: holds a number that is out of range for UINT8"),
            ({"datatype": "UINT64", "data": [0, -1]}, "data: holds a number that is out of range for UINT64"),
            ({"datatype": "INT64", "data": [0, 2**63]}, "data: holds a number that is out of range for INT64"),
            ({"datatype": "INT32", "data": [0, float("nan")]}, "data: must be whole numbers, for INT32"),
            ({"datatype": "INT32", "data": [0, 1.0]}, "data: must be whole numbers, for INT32"),
            ({"datatype": "INT8", "data": [0, False]}, "data: must be whole numbers, for INT8"),
            ({"datatype": "BOOL", "data": [0, 1]}, "data: must be true or false, for BOOL"),
            ({"datatype": "BYTES", "data": ["a", 1]}, "data: must be text, for BYTES"),
            ({"datatype": "BYTES", "data": ["a", "\ud800"]}, "data: holds half a surrogate pair"),
            ({"parameters": 3}, "parameters=3: must be an object"),
            ({"parameters": {"binary_data_size": 8}}, "data: there is binary data too; must be one of both"),
            ({"parameters": {"shared_memory_region": "r"}}, "parameters.shared_memory_region: is not supported"),
        ],
    )  # fmt: skip
    def test_of_an_input(self, changes: dict[str, Any], problem: str):
        assert refusal(request(described(**changes))).startswith(f"inputs[0].{problem}")

    @pytest.mark.parametrize(
        ("size", "problem"),
        [
            (True, "=true: must be a whole number of 0 or more"),
            (-8, "=-8: must be a whole number of 0 or more"),
            (8.0, "=8.0: must be a whole number of 0 or more"),
            ("8", '="8": must be a whole number of 0 or more'),
            (9, "=9: must be at most the 8 bytes that the body still has"),
            (2**70, "=1180591620717411303424: must be at most the 8 bytes that the body still has"),
            (7, "=7: FP32 [2] are 8 bytes"),
        ],
    )
    def test_of_the_size_of_binary_data(self, size: Any, problem: str):
        found = refusal(*binary(bytes(8), parameters={"binary_data_size": size}))
        assert found == f"inputs[0].parameters.binary_data_size{problem}"

    @pytest.mark.parametrize(
        ("datatype", "shape", "data", "problem"),
        [
            ("FP32", [3], bytes(8), ".parameters.binary_data_size=8: FP32 [3] are 12 bytes"),
            ("FP32", [2], bytes(12), ".parameters.binary_data_size=12: FP32 [2] are 8 bytes"),
            ("UINT8", [10**9], b"", ".parameters.binary_data_size=0: UINT8 [1000000000] are 1,000,000,000 bytes"),
            ("BOOL", [2], b"\1\2", ": a BOOL must be 0 or 1"),
            ("BYTES", [1], b"", ": its binary data is too short for 1 elements of BYTES and their lengths"),
            ("BYTES", [10**9], bytes(40), ": its binary data is too short for 1,000,000,000 elements of BYTES"),
            ("BYTES", [1], b"\5\0\0\0abcd", ": its binary data ends within element 0 of 1"),
            ("BYTES", [1], b"\xff\xff\xff\xffabcd", ": its binary data ends within element 0 of 1"),
            ("BYTES", [2], b"\4\0\0\0abcd", ": its binary data ends within element 1 of 2"),
            ("BYTES", [2], b"\3\0\0\0abcd", ": its binary data ends within element 1 of 2"),
            ("BYTES", [1], b"\3\0\0\0abcd", ": its binary data goes on for 1 bytes after its last element"),
            ("BYTES", [0], b"\0\0\0\0", ": its binary data goes on for 4 bytes after its last element"),
        ],
    )  # fmt: skip
    def test_of_binary_data(self, datatype: str, shape: list[int], data: bytes, problem: str):
        assert refusal(*binary(data, datatype=datatype, shape=shape)).startswith(f"inputs[0]{problem}")

    @pytest.mark.parametrize(
        ("parameters", "problem"),
        [
            (1, "=1: must be an object"),
            ({"binary_data": "yes"}, '.binary_data="yes": must be true or false'),
            ({"classification": -1}, ".classification=-1: must be a whole number of 0 or more"),
            ({"classification": True}, ".classification=true: must be a whole number of 0 or more"),
            ({"shared_memory_region": "r"}, ".shared_memory_region: is not supported; send the data itself"),
        ],
    )
    def test_of_an_output(self, parameters: Any, problem: str):
        assert refusal(request(outputs=[{"name": "p", "parameters": parameters}])) == f"outputs[0].parameters{problem}"

    @settings(max_examples=200)
    @given(st.data())
    def test_a_good_request_with_any_bytes_changed_is_read_or_refused(self, data: st.DataObject):
        texts = np.array([b"ab", b""], object)
        inputs = [written(ROWS, "a"), written(texts, "b"), written(ROWS > 0.3, "c", binary=False)]
        body, length = InferenceServerClient.generate_request_body(inputs, [InferRequestedOutput("p", class_count=2)])
        broken = bytearray(body)
        for place in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=3)):
            broken[place] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(body))) if data.draw(st.booleans()) else len(body)
        read_or_refused(bytes(broken[:cut]), length + data.draw(st.sampled_from([-1, 0, 0, 0, 1])))

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["name", "shape", "data", "parameters"]), inner, max_size=4)
            ),
            max_leaves=9,
        ),
        st.sampled_from(["name", "datatype", "shape", "data", "parameters", None]),
    )
    def test_any_json_in_any_place_is_read_or_refused(self, value: Any, place: str | None):
        one = described(**{place: value}) if place else value
        read_or_refused(request(one, outputs=value), None)
        read_or_refused(request(one), None)

    @pytest.mark.parametrize(
        "data", [b"[]," * 30_000, b'{"":0},' * 30_000, b"[0]," * 30_000, "[],\N{GRINNING FACE}".encode() * 30_000]
    )
    def test_memory_stays_a_small_multiple_of_the_body(self, data: bytes):
        body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1000000000],"data":[' + data[:-1] + b"]}]}"
        tracemalloc.start()
        try:
            read_or_refused(body, None)
            assert tracemalloc.get_traced_memory()[1] < 35 * len(body)
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("datatype", ["UINT8", "FP64", "BYTES"])
    def test_a_shape_alone_takes_no_memory(self, datatype: str):
        body, length = binary(b"", datatype=datatype, shape=[10**9])
        tracemalloc.start()
        try:
            read_or_refused(body, length)
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()


def read_or_refused(body: bytes, length: int | None) -> None:
    problem = ""
    try:
        v2.parse(body, length)
    except ProtocolError as error:
        problem = str(error)
    assert problem.isprintable()


class TestJsonLength:
    def test_is_a_number_or_nothing(self):
        assert v2.json_length(None) is None
        assert v2.json_length("120") == 120

    @pytest.mark.parametrize("header", ["", "-1", "+1", "1.0", " 1", "1_0", "٣", "²", "1" * 19, "0x1"])
    def test_refuses_all_else(self, header: str):
        with pytest.raises(ProtocolError, match="must be a number of bytes"):
            v2.json_length(header)


class TestOnlyInput:
    def test_finds_images_and_encoded_ones(self):
        pixels = np.ones((2, 5, 6, 3), np.uint8)
        name, found = v2.only_input(sent(written(pixels, "images")), IMAGES)
        assert name == "images"
        np.testing.assert_array_equal(found, pixels, strict=True)
        name, found = v2.only_input(sent(written(np.array([b"png", b"jpeg"], object), "encoded")), IMAGES)
        assert (name, found.tolist()) == ("encoded", [b"png", b"jpeg"])

    @pytest.mark.parametrize(
        ("inputs", "problem"),
        [
            ([("images", np.zeros((1, 2, 3), np.uint8))], "inputs[0].shape=[1, 2, 3]: images must be [-1, -1, -1, 3], where -1 is 1 or more"),
            ([("images", np.zeros((0, 2, 2, 3), np.uint8))], "inputs[0].shape=[0, 2, 2, 3]: images must be"),
            ([("images", np.zeros((1, 2, 2, 4), np.uint8))], "inputs[0].shape=[1, 2, 2, 4]: images must be"),
            ([("images", np.zeros((1, 2, 2, 3), np.float32))], 'inputs[0].datatype="FP32": images must be UINT8'),
            ([("encoded", np.zeros(2, np.uint8))], 'inputs[0].datatype="UINT8": encoded must be BYTES'),
            ([("pixels", np.zeros(2, np.uint8))], 'inputs[0].name="pixels": this model takes images or encoded'),
            ([(name, np.zeros((1, 2, 2, 3), np.uint8)) for name in ("images", "encoded")], "inputs: are 2; this model takes one"),
        ],
    )  # fmt: skip
    def test_refuses_what_the_model_does_not_take(self, inputs: list[tuple[str, np.ndarray]], problem: str):
        with pytest.raises(ProtocolError) as caught:
            v2.only_input(sent(*(written(array, name) for name, array in inputs)), IMAGES)
        assert str(caught.value).startswith(problem)

    def test_an_output_that_the_model_lacks_is_refused_before_any_work(self):
        asked = sent(written(np.zeros((1, 2, 2, 3), np.uint8), "images"), outputs=[InferRequestedOutput("logits")])
        with pytest.raises(ProtocolError) as caught:
            v2.only_input(asked, IMAGES)
        assert str(caught.value) == 'outputs[0].name="logits": this model gives probabilities'


class TestAnswer:
    def test_binary_by_default(self):
        result, headers = answered(request_id="7")
        np.testing.assert_array_equal(result.as_numpy("probabilities"), ROWS, strict=True)
        told = result.get_response()
        assert (told["model_name"], told["model_version"], told["id"]) == ("signs", "abc", "7")
        assert headers["Content-Type"] == "application/octet-stream"

    def test_json_where_asked_for(self):
        result, headers = answered(InferRequestedOutput("probabilities", binary_data=False))
        np.testing.assert_array_equal(result.as_numpy("probabilities"), ROWS, strict=True)
        assert headers == {"Content-Type": "application/json"}
        assert "id" not in result.get_response()

    @pytest.mark.parametrize("binary", [True, False])
    def test_the_highest_classes_as_triton_writes_them(self, binary: bool):
        result, _ = answered(InferRequestedOutput("probabilities", binary_data=binary, class_count=2))
        texts = result.as_numpy("probabilities")
        assert [[getattr(text, "decode", lambda text=text: text)() for text in row] for row in texts] == [
            ["0.700000:1:yield: now", "0.200000:0:stop"],
            ["0.500000:2:ünder", "0.250000:0:stop"],
        ]
        assert result.get_output("probabilities")["datatype"] == "BYTES"

    def test_no_more_classes_than_there_are(self):
        result, _ = answered(InferRequestedOutput("probabilities", class_count=1000))
        assert result.as_numpy("probabilities").shape == (2, 3)

    @given(hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(3)), elements=st.floats(0, 1, width=32)))
    def test_any_rows_arrive_bit_for_bit_as_binary_and_as_json(self, rows: np.ndarray):
        for binary in (True, False):
            result, _ = answered(InferRequestedOutput("probabilities", binary_data=binary), rows=rows)
            assert result.as_numpy("probabilities").tobytes() == rows.tobytes()

    def test_several_outputs_come_in_the_order_of_the_request(self):
        outputs = {"a": ROWS, "b": ROWS[:1] / 2, "c": ROWS[:, :1]}
        asked = [InferRequestedOutput("c"), InferRequestedOutput("b", binary_data=False), InferRequestedOutput("a")]
        body, headers = v2.answer(sent(written(ROWS), outputs=asked), model="m", version="1", outputs=outputs, labels=LABELS)  # fmt: skip
        result = InferResult.from_response_body(body, header_length=int(headers[v2.JSON_LENGTH]))
        assert [one["name"] for one in result.get_response()["outputs"]] == ["c", "b", "a"]
        for name, rows in outputs.items():
            np.testing.assert_array_equal(result.as_numpy(name), rows, strict=True)

    def test_rows_out_of_line_in_memory_are_written_in_line(self):
        result, _ = answered(rows=np.asfortranarray(ROWS))
        np.testing.assert_array_equal(result.as_numpy("probabilities"), ROWS)

    def test_an_unknown_output_is_refused(self):
        with pytest.raises(ProtocolError) as caught:
            answered(InferRequestedOutput("probabilities"), InferRequestedOutput("logits"))
        assert str(caught.value) == 'outputs[1].name="logits": this model gives probabilities'


class TestInflate:
    @given(st.binary(max_size=300))
    def test_undoes_what_the_client_does(self, body: bytes):
        assert v2.inflate(gzip.compress(body), "gzip", len(body)) == body
        assert v2.inflate(zlib.compress(body), "Deflate ", len(body)) == body
        assert v2.inflate(body, "identity", 0) is body

    @pytest.mark.parametrize(
        ("body", "encoding", "status", "problem"),
        [
            (gzip.compress(bytes(101), mtime=0), "gzip", 413, "the body is more than 100 bytes when gzip is undone"),
            (gzip.compress(b"a", mtime=0)[:-1], "gzip", 400, "the body does not end where its gzip does"),
            (gzip.compress(b"a", mtime=0) + b"b", "gzip", 400, "the body does not end where its gzip does"),
            (gzip.compress(b"a", mtime=0) * 2, "gzip", 400, "the body does not end where its gzip does"),
            (b"", "gzip", 400, "the body does not end where its gzip does"),
            (zlib.compress(b"a"), "gzip", 400, "the body is not what Content-Encoding=gzip says: Error -3"),
            (
                gzip.compress(b"a", mtime=0),
                "deflate",
                400,
                "the body is not what Content-Encoding=deflate says: Error -3",
            ),
            (b"a", "br", 415, 'Content-Encoding="br": must be gzip or deflate'),
            (b"a", "gzip, gzip", 415, 'Content-Encoding="gzip, gzip": must be gzip or deflate'),
        ],
    )
    def test_refuses(self, body: bytes, encoding: str, status: int, problem: str):
        with pytest.raises(ProtocolError) as caught:
            v2.inflate(body, encoding, 100)
        assert str(caught.value).startswith(problem)
        assert caught.value.status == status

    def test_a_bomb_takes_no_more_memory_than_allowed(self):
        bomb = zlib.compress(bytes(50_000_000))
        tracemalloc.start()
        try:
            with pytest.raises(ProtocolError):
                v2.inflate(bomb, "deflate", 100_000)
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()


class TestMetadata:
    def test_of_the_server(self):
        assert v2.server_metadata("0.1.0") == {
            "name": "mlops",
            "version": "0.1.0",
            "extensions": ["binary_tensor_data", "classification", "model_configuration"],
        }

    def test_of_a_model_of_images(self):
        assert IMAGES == {
            "name": "signs",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [
                {"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
                {"name": "encoded", "datatype": "BYTES", "shape": [-1]},
            ],
            "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}],
        }

    def test_of_a_model_of_one_size(self):
        found = v2.model_metadata("m", [], "images", {"height": 8, "width": 9, "resizes": False}, LABELS)
        assert found["inputs"][0]["shape"] == [-1, 8, 9, 3]

    def test_of_a_model_of_features(self):
        found = v2.model_metadata("m", [], "features", {"features": 4, "names": None}, LABELS)
        assert found["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 4]}]
        assert v2.model_config(found, most=64)["input"] == [
            {"name": "features", "data_type": "TYPE_FP32", "dims": [4], "optional": False}
        ]

    def test_config(self):
        assert v2.model_config(IMAGES, most=64) == {
            "name": "signs",
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "max_batch_size": 64,
            "input": [
                {"name": "images", "data_type": "TYPE_UINT8", "dims": [-1, -1, 3], "optional": True},
                {"name": "encoded", "data_type": "TYPE_STRING", "dims": [], "optional": True},
            ],
            "output": [{"name": "probabilities", "data_type": "TYPE_FP32", "dims": [3]}],
        }


def test_bytes_are_as_long_as_they_say():
    assert inference_of("BYTES", [2], struct.pack("<I3sI", 3, b"abc", 0)).tolist() == [b"abc", b""]
    assert inference_of("BOOL", [3], b"\0\1\1").tolist() == [False, True, True]
