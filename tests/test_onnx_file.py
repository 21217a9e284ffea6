import contextlib
import io
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from conftest import Command
from mlops import onnx_file
from mlops.errors import MlopsError
from mlops.inference import OnnxModel
from samples import png

INPUT = {"height": 8, "width": 8, "resize": "squash", "filter": "bilinear", "resizes": True, "crop": None}
TOLD = {"format": 1, "classes": ["dark", "bright"], "input": INPUT}


def model(**told: Any) -> ModelProto:
    """Two classes by how bright an image is, with metadata as `mlops export` writes it."""
    made = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]>
        bright (uint8[N, H, W, 3] images) => (float[N, 2] probabilities) {
            numbers = Cast <to = 1> (images)
            levels = ReduceMean <keepdims = 0> (numbers, axes)
            share = Div (levels, highest)
            column = Unsqueeze (share, last)
            rest = Sub (one, column)
            probabilities = Concat <axis = 1> (rest, column)
        }"""
    )
    constants = {"axes": np.array([1, 2, 3]), "highest": np.float32(255), "last": np.array([1]), "one": np.float32(1)}
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    helper.set_model_props(made, {key: json.dumps(value) for key, value in (TOLD | told).items()})
    return made


def save(path: Path, made: ModelProto) -> Path:
    path.write_bytes(made.SerializeToString())
    return path


def test_a_good_model_is_read_and_answers(tmp_path: Path):
    read = OnnxModel.read(save(tmp_path / "m.onnx", model()), threads=1)
    assert read.classes == ["dark", "bright"]
    assert read.input == INPUT
    images = np.stack([np.zeros((4, 5, 3), np.uint8), np.full((4, 5, 3), 255, np.uint8)])
    assert read.predict(images).tolist() == [[1, 0], [0, 1]]


def test_what_is_no_image_is_refused_in_words(tmp_path: Path):
    read = OnnxModel.read(save(tmp_path / "m.onnx", model()))
    for wrong in (np.zeros((1, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"must be uint8 \[N, H, W, 3\]"):
            read.predict(wrong)
    fixed = model(input=INPUT | {"resizes": False})
    for axis in (1, 2):
        fixed.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 8
    read = OnnxModel.read(save(tmp_path / "fixed.onnx", fixed))
    with pytest.raises(ValueError, match="images of 9 x 8: this model takes 8 x 8"):
        read.predict(np.zeros((1, 9, 8, 3), np.uint8))


def of_features(**told: Any) -> ModelProto:
    """Two classes by the sign of a sum of three numbers, with metadata as `mlops adopt` writes it."""
    made = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]>
        sign (float[N, 3] features) => (float[N, 2] probabilities) { probabilities = MatMul (features, weights) }"""
    )
    made.graph.initializer.append(numpy_helper.from_array(np.full((3, 2), 0.5, np.float32), "weights"))
    told = TOLD | {"input": {"features": 3, "names": None}} | told
    helper.set_model_props(made, {key: json.dumps(value) for key, value in told.items()})
    return made


def test_a_model_may_take_rows_of_numbers(tmp_path: Path):
    images = OnnxModel.read(save(tmp_path / "m.onnx", model()), threads=1)
    rows = OnnxModel.read(save(tmp_path / "f.onnx", of_features()), threads=1)
    assert (images.kind, rows.kind) == ("images", "features")
    assert rows.predict(np.array([[1, 2, 3]], dtype=np.float32)).tolist() == [[3, 3]]
    for wrong in (
        np.zeros((1, 3)),
        np.zeros((1, 4), np.float32),
        np.zeros(3, np.float32),
        np.zeros((0, 3), np.float32),
    ):
        with pytest.raises(ValueError, match=r"must be float32 \[N, 3\]"):
            rows.predict(wrong)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"features": 0, "names": None}, "does not say how features go in"),
        ({"features": True, "names": None}, "does not say how features go in"),
        ({"features": 10**7, "names": None}, "does not say how features go in"),
        ({"features": 3}, "does not say how features go in"),
        ({"features": 3, "names": ["a", "b"]}, "does not say how features go in"),
        ({"features": 3, "names": ["a", "b", 3]}, "does not say how features go in"),
        ({"features": 3, "names": None, "height": 8}, "does not say how features go in"),
        ({"features": 4, "names": None}, "does not take features as its metadata says"),
        (INPUT, "does not take images as its metadata says"),
    ],
)
def test_metadata_of_features_that_does_not_fit_is_one_line(given: dict[str, Any], words: str, tmp_path: Path):
    with pytest.raises(MlopsError, match=words):
        OnnxModel.read(save(tmp_path / "f.onnx", of_features(input=given)))


def test_with_one_thread_nothing_spins_beside_the_caller(tmp_path: Path):
    model_ = OnnxModel.read(save(tmp_path / "m.onnx", model()), threads=1)
    options = model_._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def external(tensor: TensorProto, path: str = "../../secret") -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=path)


def in_initializer(made: ModelProto) -> None:
    external(made.graph.initializer[0])


def in_absolute_place(made: ModelProto) -> None:
    external(made.graph.initializer[0], "/etc/passwd")


def without_saying_external(made: ModelProto) -> None:
    made.graph.initializer[0].external_data.add(key="location", value="x")


def in_a_constant(made: ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "t")
    external(tensor)
    made.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))


def in_a_branch(made: ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "t")
    external(tensor)
    branch = helper.make_graph([helper.make_node("Identity", ["t"], ["o"])], "branch", [], [], [tensor])
    made.graph.node.append(helper.make_node("If", ["c"], ["unused"], then_branch=branch, else_branch=branch))


def in_a_sparse_one(made: ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "t")
    external(values)
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))


def in_a_function(made: ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "t")
    external(tensor)
    node = helper.make_node("Constant", [], ["o"], value=tensor)
    made.functions.append(helper.make_function("", "f", [], ["o"], [node], [helper.make_opsetid("", 20)]))


@pytest.mark.parametrize(
    "change",
    [
        in_initializer,
        in_absolute_place,
        without_saying_external,
        in_a_constant,
        in_a_branch,
        in_a_sparse_one,
        in_a_function,
    ],
)
def test_weights_in_other_files_are_refused_wherever_they_hide(
    change: Callable[[ModelProto], None], tmp_path: Path, mlops_command: Command
):
    made = model()
    change(made)
    file = save(tmp_path / "m.onnx", made)
    done = mlops_command("predict", file, tmp_path)
    assert done.code == 2
    assert done.errors == [f"{file}: keeps weights in other files, which is not read; export it as one file"]


def custom_operator(made: ModelProto) -> None:
    made.graph.node.append(helper.make_node("Run", ["images"], ["unused"], domain="evil.ops"))


def custom_opset(made: ModelProto) -> None:
    made.opset_import.append(helper.make_opsetid("evil.ops", 1))


@pytest.mark.parametrize("change", [custom_operator, custom_opset])
def test_operators_of_other_libraries_are_refused(change: Callable[[ModelProto], None], tmp_path: Path):
    made = model()
    change(made)
    with pytest.raises(MlopsError, match=r"uses operators of evil\.ops, which are none of ONNX"):
        onnx_file.read(save(tmp_path / "m.onnx", made))


@pytest.mark.parametrize("name", ["Loop", "Scan", "If", "SequenceMap"])
def test_what_could_run_without_an_end_is_refused(name: str, tmp_path: Path):
    made = model()
    made.graph.node.append(helper.make_node(name, ["images"], ["unused"]))
    with pytest.raises(MlopsError, match=f"uses {name}, whose time no size tells"):
        onnx_file.read(save(tmp_path / "m.onnx", made))


def test_a_good_model_that_onnxruntime_would_read_in_its_own_format_is_refused():
    # These first bytes are two fields of ONNX, the version and a producer named ORTM; onnxruntime takes them for its own.
    content = b"\x08\x09\x12\x04ORTM" + model().SerializeToString()
    assert ModelProto.FromString(content).producer_name == "ORTM"
    with pytest.raises(MlopsError, match=r"^m\.onnx: is of onnxruntime's own format"):
        onnx_file.inspect(content, "m.onnx")


def test_many_small_messages_take_no_memory_of_their_own():
    content = model().SerializeToString() + _field(7, _field(1, b"") * 100_000)
    tracemalloc.start()
    try:
        onnx_file.inspect(content, "here")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1_000_000


def test_a_field_without_a_number_is_damage():
    with pytest.raises(MlopsError, match="is damaged or no ONNX file: a field without a number"):
        onnx_file.inspect(model().SerializeToString() + b"\0\1", "here")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no named pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(MlopsError, match="is a device or a pipe, not a file; name a file"):
        onnx_file.read(tmp_path / "m.onnx")


def later_opset(made: ModelProto) -> None:
    made.opset_import[0].version = 99


def unknown_operator(made: ModelProto) -> None:
    made.graph.node[0].op_type = "Cost"


def other_input(made: ModelProto) -> None:
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.INT8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (later_opset, "cannot run it"),
        (unknown_operator, "cannot run it"),
        (other_input, "does not take images as its metadata says"),
        (lambda made: helper.set_model_props(made, {}), "does not say its classes and its input"),
        (lambda made: helper.set_model_props(made, {"format": "1"}), "does not say its classes and its input"),
    ],
)
def test_a_model_that_cannot_be_run_here_is_one_line(
    change: Callable[[ModelProto], Any], words: str, tmp_path: Path, mlops_command: Command
):
    made = model()
    change(made)
    file = save(tmp_path / "m.onnx", made)
    (tmp_path / "a.png").write_bytes(png())
    done = mlops_command("predict", file, tmp_path / "a.png")
    assert (done.code, done.out) == (2, "")
    (line,) = done.errors
    assert line.startswith(f"{file}: ")
    assert words in line
    assert done.err == f"error: {line}\n"


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"format": 2}, "format 2 is later than 1, the last known here"),
        ({"format": True}, "was not written by mlops export (format True)"),
        ({"format": "1"}, "was not written by mlops export (format '1')"),
        ({"classes": []}, "names no classes"),
        ({"classes": ["a", 1]}, "names no classes"),
        ({"classes": ["a", "b", "c"]}, "does not give one probability for each of a, b, c"),
        ({"input": None}, "does not say how images go in"),
        ({"input": INPUT | {"height": 10**9}}, "does not say how images go in"),
        ({"input": INPUT | {"height": 2049}}, "does not say how images go in"),
        ({"input": INPUT | {"crop": "all"}}, "does not say how images go in"),
        ({"input": {key: value for key, value in INPUT.items() if key != "crop"}}, "does not say how images go in"),
        ({"input": INPUT | {"more": 1}}, "does not say how images go in"),
        ({"input": INPUT | {"width": 8.5}}, "does not say how images go in"),
        ({"input": INPUT | {"filter": ["bilinear"]}}, "does not say how images go in"),
        ({"input": INPUT | {"resizes": 1}}, "does not say how images go in"),
        ({"input": INPUT | {"resizes": False}}, "does not take images as its metadata says"),
    ],
)
def test_metadata_that_does_not_fit_is_one_line(told: dict[str, Any], words: str, tmp_path: Path):
    with pytest.raises(MlopsError) as caught:
        OnnxModel.read(save(tmp_path / "m.onnx", model(**told)))
    (line,) = caught.value.problems
    assert words in line


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "NaNa"])
def test_metadata_that_is_no_json_is_one_line(text: str, tmp_path: Path):
    made = model()
    made.metadata_props[1].value = text
    with pytest.raises(MlopsError, match="its metadata is not readable"):
        onnx_file.read(save(tmp_path / "m.onnx", made))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"text, and no model", b"\x00" * 100, b"\xff" * 100])
def test_what_is_no_onnx_file_is_one_line(content: bytes, tmp_path: Path, mlops_command: Command):
    (tmp_path / "m.onnx").write_bytes(content)
    done = mlops_command("predict", tmp_path / "m.onnx", tmp_path)
    assert done.code == 2
    (line,) = done.errors
    assert "no ONNX file" in line


def test_a_missing_file_a_folder_and_one_without_permission_are_one_line(tmp_path: Path):
    with pytest.raises(MlopsError, match=r"no such file; make one with: mlops export CHECKPOINT -o .*m\.onnx"):
        onnx_file.read(tmp_path / "m.onnx")
    with pytest.raises(MlopsError, match="cannot be read: "):
        onnx_file.read(tmp_path)
    if os.name == "posix" and os.geteuid():
        file = save(tmp_path / "closed.onnx", model())
        file.chmod(0)
        with pytest.raises(MlopsError, match="cannot be read: Permission denied"):
            onnx_file.read(file)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_model_is_refused(share: float, tmp_path: Path):
    content = model().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(MlopsError):
        OnnxModel.read(tmp_path / "m.onnx")


def test_messages_in_messages_without_an_end_are_refused():
    inside = b""
    for _ in range(200):
        # A graph in an attribute of a node of a graph.
        for number in (6, 5, 1):
            inside = _field(number, inside)
    with pytest.raises(MlopsError, match="messages in messages without an end"):
        onnx_file.inspect(_field(7, inside), "here")


def _field(number: int, content: bytes) -> bytes:
    length, size = io.BytesIO(), len(content)
    while size >= 0x80:
        length.write(bytes([size & 0x7F | 0x80]))
        size >>= 7
    length.write(bytes([size]))
    return bytes([number << 3 | 2]) + length.getvalue() + content


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damage_is_more_than_one_line(data: st.DataObject):
    content = bytearray(model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    # Anything but a MlopsError would end the test.
    with contextlib.suppress(MlopsError):
        onnx_file.inspect(bytes(content), "here")


@pytest.mark.parametrize("told", [{"metrics": {"val_loss": float("nan")}}, {"classes": ["dark", "br\ud800ght"]}])
def test_metadata_that_no_answer_could_name_is_refused(told: dict[str, Any]):
    with pytest.raises(MlopsError, match="its metadata is not readable"):
        onnx_file.inspect(model(**told).SerializeToString(), "m.onnx")
