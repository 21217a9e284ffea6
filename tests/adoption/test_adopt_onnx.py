"""ONNX classifiers of other programs become models of ours: the same answers, by one input and one output."""

import contextlib
import csv
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier
from torch import nn

from conftest import Command, Outcome
from mlops import image, onnx_file
from mlops.adoption.described import Described
from mlops.adoption.onnx_model import adopt_onnx
from mlops.errors import MlopsError
from mlops.files import sha256_of
from mlops.inference import OnnxModel
from samples import COLOURS, png

RNG = np.random.default_rng(0)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SCALING = ("--mean", "0.4,0.5,0.6", "--std", "0.2,0.25,0.3")
PLAIN = ("--input", "images:0-1", "--mean", "0", "--std", "1")


@pytest.fixture(autouse=True)
def the_same_numbers_in_any_order_of_tests() -> None:
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def network(
    *,
    shape: str = "N, 3, 8, 8",
    type_: str = "float",
    scores: str = "logits",
    opset: int = 20,
    classes: int = 3,
    batch: str = "N",
) -> ModelProto:
    """A linear classifier of the mean of each channel, as anybody may have exported one."""
    axes, reshape = ("1, 2" if shape.endswith("3") else "2, 3"), batch != "N"
    made = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        other ({type_}[{shape}] x) => (float[{batch}, {classes}] y) {{
            f = Cast <to = 1> (x)
            s = Mul (f, scale)
            m = ReduceMean <axes = [{axes}], keepdims = 0> (s)
            flat = {"Reshape (m, fixed)" if reshape else "Identity (m)"}
            l = MatMul (flat, w)
            y = {"Softmax <axis = 1> (l)" if scores == "softmax" else "Sigmoid (l)" if scores == "sigmoid" else "Identity (l)"}
        }}"""
        if opset < 18
        else f"""<ir_version: 9, opset_import: ["" : {opset}]>
        other ({type_}[{shape}] x) => (float[{batch}, {classes}] y) {{
            f = Cast <to = 1> (x)
            s = Mul (f, scale)
            m = ReduceMean <keepdims = 0> (s, axes)
            flat = {"Reshape (m, fixed)" if reshape else "Identity (m)"}
            l = MatMul (flat, w)
            y = {"Softmax <axis = 1> (l)" if scores == "softmax" else "Sigmoid (l)" if scores == "sigmoid" else "Identity (l)"}
        }}"""
    )
    weights = np.array([[9, -3, -4, 1], [-2, 8, -3, 2], [-3, -4, 7, 3]], dtype=np.float32)[:, :classes]
    constants: dict[str, Any] = {"w": weights, "scale": np.float32(1)}
    if opset >= 18:
        constants["axes"] = np.array([int(axis) for axis in axes.split(",")])
    if reshape:
        constants["fixed"] = np.array([1, 3])
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    return made


def save(made: ModelProto, name: str = "other.onnx") -> Path:
    Path(name).write_bytes(made.SerializeToString())
    return Path(name)


@pytest.fixture
def adopt(mlops_command: Command) -> Callable[..., Outcome]:
    """`mlops adopt FILE ... -o adopted.onnx`, with three colours as classes."""

    def run(file: str | Path, *options: str, classes: str | None = "red,green,blue") -> Outcome:
        named = () if classes is None else ("--classes", classes)
        return mlops_command("adopt", file, "-o", "adopted.onnx", *named, *options)

    return run


def refused(done: Outcome) -> str:
    assert done.code == 2, done.out
    assert not Path("adopted.onnx").exists()
    (problem,) = done.errors
    return problem


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def expected(pixels: np.ndarray, made: ModelProto) -> np.ndarray:
    (found,) = onnxruntime.InferenceSession(made.SerializeToString()).run(None, {"x": pixels})
    return found


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("scale", ["0-1", "0-255"])
def test_pixels_reach_the_network_as_its_owner_says(layout: str, order: str, scale: str, adopt: Callable[..., Outcome]):
    shape = "N, 3, 8, 6" if layout == "nchw" else "N, 8, 6, 3"
    made = network(shape=shape)
    done = adopt(save(made), "--input", f"images:{scale},{order}", *SCALING)
    assert done.code == 0, done.err
    images = noise(5, 8, 6, 3)
    pixels = (images / np.float32(255) - np.float32(MEAN)) / np.float32(STD) * (255 if scale == "0-255" else 1)
    pixels = pixels[..., ::-1] if order == "bgr" else pixels
    pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) if layout == "nchw" else pixels, dtype=np.float32)
    model = OnnxModel.read(Path("adopted.onnx"))
    assert (model.input["height"], model.input["width"]) == (8, 6)
    assert np.allclose(model.predict(images), softmax(expected(pixels, made)), atol=1e-5)


def test_whole_pixels_go_in_as_they_are(adopt: Callable[..., Outcome]):
    made = network(shape="N, 8, 8, 3", type_="uint8", scores="softmax")
    done = adopt(save(made))
    assert done.code == 0, done.err
    images = noise(4, 8, 8, 3)
    assert np.allclose(OnnxModel.read(Path("adopted.onnx")).predict(images), expected(images, made), atol=1e-6)


def test_the_file_says_what_it_is_what_was_assumed_and_where_it_comes_from(adopt: Callable[..., Outcome]):
    file = save(network())
    done = adopt(file, "--input", "images:0-1", *SCALING)
    told = onnx_file.read(Path("adopted.onnx")).metadata
    assert told["classes"] == ["red", "green", "blue"]
    assert told["input"] == {
        **{"height": 8, "width": 8, "channels": 3, "mean": list(MEAN), "std": list(STD), "resize": "squash"},
        **{"filter": "bilinear", "crop": None, "resizes": True},
    }
    assert (told["format"], told["temperature"], told["checkpoint"], told["metrics"]) == (1, 1.0, None, {})
    assert told["adopted"]["sha256"] == sha256_of(file)
    assert told["adopted"]["file"] == "other.onnx"
    assert told["adopted"]["assumed"] == [
        "channels red, green, blue (--input images:bgr)",
        "the whole picture, squashed (--resize)",
        "bilinear resampling, antialiased (--filter)",
        "logits, by what it gives (--scores)",
    ]
    for assumption in told["adopted"]["assumed"]:
        assert assumption in done.out


def test_predict_names_colours_with_it(adopt: Callable[..., Outcome], mlops_command: Command):
    for name, colour in COLOURS.items():
        Path(f"{name}.png").write_bytes(png(1, size=(20, 14), colour=colour))
    assert adopt(save(network()), *PLAIN).code == 0
    done = mlops_command("predict", "adopted.onnx", "red.png", "green.png", "blue.png", "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [row["label"] for row in rows] == ["red", "green", "blue"]


def test_a_later_graph_resizes_itself_and_an_older_one_leaves_it_to_the_client(adopt: Callable[..., Outcome]):
    assert adopt(save(network(opset=18)), *PLAIN).code == 0
    images = noise(2, 19, 11, 3)
    small = np.stack([image.decode(image.png(one), (8, 8)).pixels for one in images])
    model = OnnxModel.read(Path("adopted.onnx"))
    assert np.abs(model.predict(images) - model.predict(small)).max() < 0.02
    assert adopt(save(network(opset=13)), *PLAIN, "--force").code == 0
    model = OnnxModel.read(Path("adopted.onnx"))
    assert model.input["resizes"] is False
    with pytest.raises(ValueError, match="this model takes 8 x 8"):
        model.predict(images)
    assert np.allclose(model.predict(small).sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("scores", ["logits", "sigmoid"])
def test_one_score_of_two_classes_is_that_of_the_second(scores: str, adopt: Callable[..., Outcome]):
    made = network(classes=1, scores=scores)
    assert adopt(save(made), *PLAIN, classes="other,red").code == 0
    images = noise(4, 8, 8, 3)
    raw = expected(np.ascontiguousarray((images / np.float32(255)).transpose(0, 3, 1, 2), dtype=np.float32), made)
    second = raw if scores == "sigmoid" else 1 / (1 + np.exp(-raw))
    assert np.allclose(OnnxModel.read(Path("adopted.onnx")).predict(images), np.hstack([1 - second, second]), atol=1e-5)


def test_a_batch_that_was_fixed_to_one_becomes_any(adopt: Callable[..., Outcome]):
    fixed = network(shape="1, 3, 8, 8", batch="1")
    assert adopt(save(fixed), *PLAIN).code == 0
    images = noise(5, 8, 8, 3)
    pixels = np.ascontiguousarray((images / np.float32(255)).transpose(0, 3, 1, 2), dtype=np.float32)
    one_by_one = np.concatenate([softmax(expected(pixels[row : row + 1], fixed)) for row in range(5)])
    assert np.allclose(OnnxModel.read(Path("adopted.onnx")).predict(images), one_by_one, atol=1e-5)


def test_a_batch_that_stays_fixed_is_refused(adopt: Callable[..., Outcome]):
    fixed = network(shape="1, 3, 8, 8", batch="1")
    fixed.graph.node.insert(0, helper.make_node("Expand", ["x", "whole"], ["expanded"]))
    fixed.graph.node.insert(1, helper.make_node("Slice", ["expanded", "from", "to"], ["first"]))
    fixed.graph.node[2].input[0] = "first"
    constants = {"whole": [1, 3, 8, 8], "from": [0], "to": [1]}
    fixed.graph.initializer.extend(numpy_helper.from_array(np.array(v), name) for name, v in constants.items())
    assert "its batch is fixed to 1; export it with a batch of any size" in refused(adopt(save(fixed), *PLAIN))


class Net(nn.Module):
    """A small convolutional network as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head = nn.Linear(8 * 5 * 5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images).flatten(1))


@pytest.mark.parametrize("dynamic", [True, False])
def test_what_torch_exports_is_adopted(dynamic: bool, adopt: Callable[..., Outcome]):
    torch.manual_seed(0)
    net = Net().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.zeros(2 if dynamic else 1, 3, 16, 16),),
            "other.onnx",
            dynamo=True,
            external_data=False,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("N")},) if dynamic else None,
        )
    done = adopt("other.onnx", "--input", "images:0-1", *SCALING)
    assert done.code == 0, done.err
    images = noise(4, 16, 16, 3)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(
        STD
    ).view(1, 3, 1, 1)
    with torch.inference_mode():
        ours = net(pixels).softmax(dim=1).numpy()
    assert np.allclose(OnnxModel.read(Path("adopted.onnx")).predict(images), ours, atol=1e-5)


def tree(
    *, zipmap: bool = True, names: bool = False, numbers: tuple[int, ...] = (0, 1), keys: tuple[str, ...] = ()
) -> tuple[ModelProto, GradientBoostingClassifier, np.ndarray]:
    """scikit-learn's gradient boosting as skl2onnx writes it: a tree ensemble of ai.onnx.ml, labels and a ZipMap.

    `numbers` are the labels of its two scores, `keys` what the ZipMap calls them instead.
    """
    features, labels = load_breast_cancer(return_X_y=True)
    features = features.astype(np.float32)
    trained = GradientBoostingClassifier(n_estimators=5, max_depth=2, random_state=0).fit(features, labels)
    nodes: dict[str, list[Any]] = {name: [] for name in ("tree", "node", "feature", "value", "mode", "yes", "no")}
    leaves: dict[str, list[Any]] = {name: [] for name in ("tree", "node", "weight")}
    for number, (one,) in enumerate(trained.estimators_):
        inner = one.tree_
        for node in range(inner.node_count):
            leaf = inner.children_left[node] == -1
            row = (number, node, max(int(inner.feature[node]), 0), float(np.float32(inner.threshold[node])))
            edges = (max(int(inner.children_left[node]), 0), max(int(inner.children_right[node]), 0))
            for name, value in zip(nodes, (*row, "LEAF" if leaf else "BRANCH_LEQ", *edges), strict=True):
                nodes[name].append(value)
            if leaf:
                weight = float(inner.value[node, 0, 0]) * trained.learning_rate
                for name, value in zip(leaves, (number, node, weight), strict=True):
                    leaves[name].append(value)
    share = labels.mean()
    classes = {"classlabels_strings": ["malignant", "benign"]} if names else {"classlabels_int64s": list(numbers)}
    ensemble = helper.make_node(
        "TreeEnsembleClassifier",
        ["X"],
        ["label", "scores"],
        domain="ai.onnx.ml",
        nodes_treeids=nodes["tree"],
        nodes_nodeids=nodes["node"],
        nodes_featureids=nodes["feature"],
        nodes_values=nodes["value"],
        nodes_modes=nodes["mode"],
        nodes_truenodeids=nodes["yes"],
        nodes_falsenodeids=nodes["no"],
        class_treeids=leaves["tree"],
        class_nodeids=leaves["node"],
        class_ids=[0] * len(leaves["tree"]),
        class_weights=leaves["weight"],
        base_values=[float(np.log(share / (1 - share)))],
        post_transform="LOGISTIC",
        **classes,
    )
    label_type = TensorProto.STRING if names else TensorProto.INT64
    outputs = [helper.make_tensor_value_info("label", label_type, ["N"])]
    made = [ensemble]
    if zipmap:
        called = {"classlabels_strings": list(keys)} if keys else classes
        made.append(helper.make_node("ZipMap", ["scores"], ["dictionaries"], domain="ai.onnx.ml", **called))
        key = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        kind = helper.make_sequence_type_proto(
            helper.make_map_type_proto(TensorProto.STRING if keys else label_type, key)
        )
        outputs.append(helper.make_value_info("dictionaries", kind))
    else:
        outputs.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 2]))
    graph = helper.make_graph(
        made, "trees", [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", 30])], outputs
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8), trained, features


@pytest.mark.parametrize("zipmap", [True, False])
def test_gradient_boosted_trees_answer_as_scikit_learn_does(
    zipmap: bool, adopt: Callable[..., Outcome], mlops_command: Command
):
    made, trained, features = tree(zipmap=zipmap)
    done = adopt(save(made), classes="malignant,benign")
    assert done.code == 0, done.err
    assert "features float32 [N, 30]" in done.out
    model = OnnxModel.read(Path("adopted.onnx"), threads=1)
    assert (model.kind, model.input) == ("features", {"features": 30, "names": None})
    assert np.allclose(model.predict(features), trained.predict_proba(features), atol=1e-5)
    assert {node.op_type for node in onnx.load("adopted.onnx").graph.node}.isdisjoint({"ZipMap"})
    Path("a.png").write_bytes(png())
    told = mlops_command("predict", "adopted.onnx", "a.png")
    assert (told.code, told.out) == (2, "")
    (line,) = told.errors
    assert line.startswith("adopted.onnx: takes 30 features in a row, not images")


def test_classes_that_the_graph_names_itself_need_not_be_named(adopt: Callable[..., Outcome]):
    file = save(tree(names=True)[0])
    assert adopt(file, classes=None).code == 0
    assert OnnxModel.read(Path("adopted.onnx")).classes == ["malignant", "benign"]
    Path("adopted.onnx").unlink()
    assert "are in another order than in other.onnx: malignant, benign" in refused(
        adopt(file, classes="benign,malignant")
    )


def dictionaries(made: ModelProto, features: np.ndarray) -> list[dict[Any, float]]:
    """What the graph itself says of each row, by its own names or numbers."""
    return onnxruntime.InferenceSession(made.SerializeToString()).run(["dictionaries"], {"X": features})[0]


@pytest.mark.parametrize("names", [True, False])
def test_names_that_only_the_zipmap_has_are_those_of_the_scores(names: bool, adopt: Callable[..., Outcome]):
    made, _, features = tree(names=names, keys=("healthy", "cataract"))
    file = save(made)
    assert adopt(file, classes=None).code == 0
    model = OnnxModel.read(Path("adopted.onnx"))
    assert model.classes == ["healthy", "cataract"]
    theirs = [[row[name] for name in model.classes] for row in dictionaries(made, features[:9])]
    assert np.allclose(model.predict(features[:9]), theirs, atol=1e-6)
    Path("adopted.onnx").unlink()
    for swapped in ("cataract,healthy", "Cataract,Healthy", "cataract,well"):
        assert refused(adopt(file, classes=swapped)) == (
            "--classes: are in another order than in other.onnx: healthy, cataract; leave --classes out"
        )
    assert adopt(file, classes="well,ill").code == 0
    assert OnnxModel.read(Path("adopted.onnx")).classes == ["well", "ill"]


@pytest.mark.parametrize("numbers", [(1, 0), (0, 1), (7, 3)])
def test_classes_are_named_by_the_numbers_that_the_graph_has_for_them(
    numbers: tuple[int, int], adopt: Callable[..., Outcome]
):
    made, _, features = tree(numbers=numbers)
    file = save(made)
    done = adopt(file, classes="healthy,cataract")
    assert done.code == 0, done.err
    model = OnnxModel.read(Path("adopted.onnx"))
    called = dict(zip(sorted(numbers), ("healthy", "cataract"), strict=True))
    assert model.classes == [called[number] for number in numbers]
    theirs = [[row[number] for number in numbers] for row in dictionaries(made, features[:9])]
    assert np.allclose(model.predict(features[:9]), theirs, atol=1e-6)
    low, high = sorted(numbers)
    told = f"--classes are those of the numbers {low}, {high}, whose scores come as {high}, {low}"
    assert (told in done.out) == (numbers != (low, high))
    Path("adopted.onnx").unlink()
    assert refused(adopt(file, classes=f"{high},{low}")) == (
        f"--classes: other.onnx numbers its classes; name them in this order: {low}, {high}"
    )


def test_features_may_have_names(adopt: Callable[..., Outcome]):
    made = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]> head (double[N, 2] x) => (double[N, 3] y) { y = MatMul (x, w) }"""
    )
    made.graph.initializer.append(numpy_helper.from_array(np.array([[1.0, 2, 3], [-1, 0, 1]]), "w"))
    assert adopt(save(made), "--input", "features:height,weight").code == 0
    model = OnnxModel.read(Path("adopted.onnx"))
    assert model.input == {"features": 2, "names": ["height", "weight"]}
    rows = np.array([[0.5, -1], [2, 3]], dtype=np.float32)
    assert np.allclose(
        model.predict(rows), softmax(rows @ np.array([[1, 2, 3], [-1, 0, 1]], dtype=np.float32)), atol=1e-6
    )
    for wrong in (rows.astype(np.float64), rows[:, :1], rows[0], rows[:0]):
        with pytest.raises(ValueError, match=r"must be float32 \[N, 2\]"):
            model.predict(wrong)
    Path("adopted.onnx").unlink()
    assert "3 were named, and other.onnx takes 2 in a row" in refused(adopt("other.onnx", "--input", "features:a,b,c"))
    assert "are of images" in refused(adopt("other.onnx", "--size", "8"))


def nan(made: ModelProto) -> None:
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((3, 3), np.nan, np.float32), "w"))


def external(made: ModelProto) -> None:
    made.graph.initializer[0].external_data.add(key="location", value="../../secret")


def foreign(made: ModelProto) -> None:
    made.graph.node.append(helper.make_node("Run", ["x"], ["unused"], domain="evil.ops"))


def loop(made: ModelProto) -> None:
    made.graph.node.append(helper.make_node("Loop", ["x"], ["unused"]))


def two_inputs(made: ModelProto) -> None:
    made.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))


def old(made: ModelProto) -> None:
    made.opset_import[0].version = 8


def grey(made: ModelProto) -> None:
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1


def text(made: ModelProto) -> None:
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


def unknown(made: ModelProto) -> None:
    made.graph.node[0].op_type = "Nothing"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (nan, "gives NaN or infinity for noise"),
        (external, "keeps weights in other files"),
        (foreign, "uses operators of evil.ops"),
        (loop, "uses Loop, whose time no size tells"),
        (two_inputs, "takes 2 inputs (x, z)"),
        (old, "is of operator set 8; 9 or later is needed"),
        (grey, "takes 1 or 8 channels; images have 3"),
        (text, "takes string [?, 3, 8, 8]; images are float or uint8"),
        (unknown, "is no valid ONNX model"),
    ],
)
def test_what_cannot_be_adopted_is_one_line_and_nothing_is_written(
    change: Callable[[ModelProto], Any], words: str, adopt: Callable[..., Outcome]
):
    made = network()
    change(made)
    problem = refused(adopt(save(made), *PLAIN))
    assert problem.startswith("other.onnx: ")
    assert words in problem


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--mean", "0", "--std", "1"), "does not tell whether it takes pixels from 0 to 1 or from 0 to 255"),
        (("--input", "images:0-1"), "--mean and --std: missing"),
        (("--input", "images:0-2", *SCALING), "'0-2' is none of nchw or nhwc, 0-1 or 0-255, rgb or bgr"),
        (("--input", "images:rgb,bgr", *SCALING), "says rgb and bgr; only one"),
        (("--input", "images:nhwc,0-1", *SCALING), "has its 3 channels elsewhere: nchw"),
        (("--input", "pictures", *SCALING), "must begin with images or features"),
        (("--input", "features:4"), "takes float [?, 3, 8, 8], which are images"),
        ((*PLAIN, "--size", "9"), "--size=9: other.onnx takes 8 x 8; leave --size out"),
        ((*PLAIN, "--scores", "chances"), "--scores=chances: must be logits or probabilities"),
        ((*PLAIN, "--scores", "logits:z"), "has no such output; it gives y float32 [3]"),
        ((*PLAIN, "--scores", "probabilities"), "does not give probabilities, which add up to one"),
        ((*PLAIN, "--model", "resnet18"), "--model: goes with weights"),
        ((*PLAIN, "--resize", "crop"), "--resize=crop: must be"),
    ],
)
def test_what_is_missing_or_contradicts_the_graph_is_one_line(
    options: tuple[str, ...], words: str, adopt: Callable[..., Outcome]
):
    assert words in refused(adopt(save(network()), *options))


def test_the_number_of_classes_must_be_that_of_the_scores(adopt: Callable[..., Outcome]):
    problem = refused(adopt(save(network()), *PLAIN, classes="red,green"))
    assert "gives no score for each of 2 classes: y float32 [3]" in problem


def test_a_model_of_several_labels_at_once_is_no_classifier(adopt: Callable[..., Outcome]):
    assert "is no classifier" in refused(adopt(save(network(scores="sigmoid")), *PLAIN))


def test_an_open_size_is_asked_for(adopt: Callable[..., Outcome]):
    file = save(network(shape="N, 3, H, W"))
    assert "--size: is missing" in refused(adopt(file, *PLAIN))
    assert adopt(file, *PLAIN, "--size", "24").code == 0
    assert OnnxModel.read(Path("adopted.onnx")).input["height"] == 24


def test_minus_one_is_an_open_side(adopt: Callable[..., Outcome]):
    made = network()
    for axis, side in enumerate((-1, 3, -1, -1)):
        made.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = side
    file = save(made)
    assert "--size: is missing" in refused(adopt(file, *PLAIN))
    assert adopt(file, *PLAIN, "--size", "24").code == 0
    assert OnnxModel.read(Path("adopted.onnx")).predict(noise(2, 24, 24, 3)).shape == (2, 3)


def test_a_model_of_ours_is_not_adopted_twice_and_no_file_replaced_unasked(adopt: Callable[..., Outcome]):
    assert adopt(save(network()), *PLAIN).code == 0
    before = Path("adopted.onnx").read_bytes()
    (problem,) = adopt("other.onnx", *PLAIN).errors
    assert problem == "--output=adopted.onnx: is there already; name another file, or replace it with --force"
    Path("ours.onnx").write_bytes(before)
    assert adopt("ours.onnx", *PLAIN).errors == ["ours.onnx: is a model of this project already; use it as it is"]
    assert Path("adopted.onnx").read_bytes() == before


def test_options_of_onnx_do_not_go_with_weights(adopt: Callable[..., Outcome]):
    done = adopt("weights.pth", "--input", "images:0-1", "--scores", "logits")
    assert done.code == 2
    assert done.errors == [
        f"{name}: goes with a model that ends in .onnx, not with weights" for name in ("--input", "--scores")
    ]


def test_what_is_no_onnx_file_is_one_line(adopt: Callable[..., Outcome]):
    for content in (b"", b"PK\3\4", b"\xff" * 50):
        Path("other.onnx").write_bytes(content)
        assert "no ONNX file" in refused(adopt("other.onnx", *PLAIN))
    assert "no such file" in refused(adopt("missing.onnx", *PLAIN))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_is_more_than_a_refusal(data: st.DataObject, tmp_path: Path):
    content = bytearray(network(shape="1, 3, 8, 8", batch="1").SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "other.onnx").write_bytes(bytes(content))
    told = Described(None, (), "red,green,blue", None, "0", "1")
    # Anything but a MlopsError would end the test.
    with contextlib.suppress(MlopsError):
        adopt_onnx(tmp_path / "other.onnx", tmp_path / "out.onnx", told, said="images:0-1", scores=None, force=True)
