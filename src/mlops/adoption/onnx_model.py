"""From an ONNX classifier that another program wrote to a model.onnx of ours: checked, complete, and marked as adopted.

The network stays as it is. In front of it comes what turns our input into its own, behind it what makes probabilities
of its scores. What the graph tells is not asked; what only its owner knows is, or is named as an assumption.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, TensorProto

import mlops
from mlops import onnx_file
from mlops.adoption import onnx_graph
from mlops.adoption.collecting import collecting
from mlops.adoption.described import Described, read_classes, read_scaling, read_settings
from mlops.adoption.onnx_input import Said, Taken, look_at_input, read_said, read_scores
from mlops.adoption.onnx_trial import prove, rewrap
from mlops.errors import MlopsError, one_line, printable, shorten
from mlops.export import graph as graphs
from mlops.files import atomic
from mlops.inference import OnnxModel
from mlops.provenance import describe_code

# For what we add to a graph that asks for none: known to onnxruntime 1.12, which is older than any that we run on.
_WITHOUT_OPSET = 17


@dataclass(frozen=True)
class AdoptedOnnx:
    """Where the model is, what it says of itself, and what was assumed."""

    path: Path
    metadata: dict[str, Any]
    assumed: list[str]


def adopt_onnx(
    path: Path, output: Path | None, described: Described, *, said: str | None, scores: str | None, force: bool
) -> AdoptedOnnx:
    """Write `output` (`models/<name of the file>/model.onnx` when None) with the graph in `path` and our contract.

    `said` and `scores` are --input and --scores, as `onnx_input` reads them.

    Raises:
        MlopsError: with what is missing, wrong, unsafe, or does not answer with probabilities; nothing is written then.
    """
    where = str(path)
    content = onnx_file.read_bytes(path)
    if onnx_file.is_ours(onnx_file.check_safe(content, where)):
        raise MlopsError(f"{where}: is a model of this project already; use it as it is")
    problems: list[str] = []
    attempt = collecting(problems)

    problems += _of_weights_only(described)
    output = attempt(_choose_output, path, output, force)
    model = attempt(_load, content, where)
    wanted = attempt(read_scores, scores)
    spoken = attempt(read_said, said)
    named = attempt(_classes, described, model, where)
    taken = attempt(look_at_input, model, spoken, where) if model is not None and spoken is not None else None
    told = attempt(_describe_input, described, taken, spoken, model, where) if taken and spoken and model else None
    if problems or not (output and model and wanted and named and taken and told):
        raise MlopsError(problems)

    (classes, ordered), (given, assumed) = named, told
    made, found = rewrap(model, taken, given, classes=classes, wanted=wanted, where=where)
    assumed += ordered
    assumed += [f"{found}, by what it gives (--scores)"] if scores is None else []
    metadata = _metadata(path, content, classes, given, assumed)
    graphs.set_metadata(made, metadata)
    result = made.SerializeToString(deterministic=True)
    if len(result) > onnx_file.MOST_BYTES:
        raise MlopsError(f"{where}: with our metadata it is larger than one ONNX file can be")
    onnx_file.inspect(result, where)
    prove(OnnxModel(result, metadata, where=where), given, where)
    with atomic(output) as temporary:
        temporary.write_bytes(result)
    return AdoptedOnnx(output, metadata, assumed)


def _of_weights_only(described: Described) -> list[str]:
    given = {"--model": described.model, "--set": described.parameters, "--entry": described.entry}
    return [f"{name}: goes with weights; an ONNX file holds its network" for name, value in given.items() if value]


def _choose_output(path: Path, output: Path | None, force: bool) -> Path:
    output = output or Path("models", path.stem, "model.onnx")
    if output.suffix.lower() != ".onnx" or output.is_dir():
        raise MlopsError(f"--output={output}: must be a file that ends in .onnx, by which it is recognised")
    if output.exists() and output.samefile(path):
        raise MlopsError(f"--output={output}: is the model itself; name another")
    if output.exists() and not force:
        raise MlopsError(f"--output={output}: is there already; name another file, or replace it with --force")
    return output


def _load(content: bytes, where: str) -> ModelProto:
    try:
        model = onnx.load_from_string(content)
        version = onnx_graph.opsets(model).get("", 0)
        if 0 < version < onnx_graph.OLDEST_OPSET:
            raise MlopsError(
                f"{where}: is of operator set {version}; {onnx_graph.OLDEST_OPSET} or later is needed; export it again"
            )
        onnx.checker.check_model(model)
    except (MlopsError, MemoryError):
        raise
    except Exception as error:  # protobuf, the checker and its C++ raise of their own
        raise MlopsError(f"{where}: is no valid ONNX model: {one_line(error)[:300]}") from error
    if not version:  # trees alone ask for ai.onnx.ml only
        model.opset_import.append(onnx.helper.make_opsetid("", _WITHOUT_OPSET))
    return model


def _classes(described: Described, model: ModelProto | None, where: str) -> tuple[list[str], list[str]]:
    """Names in the order of the scores, and what was assumed."""
    own = onnx_graph.class_names(model) if model is not None else []
    numbers = onnx_graph.class_numbers(model) if model is not None else []
    if described.classes is None and own:
        if len(own) < 2 or len(set(own)) < len(own) or not all(name.strip() and name.isprintable() for name in own):
            raise MlopsError(f"{where}: its own class names cannot be used ({shorten(own)}); name them with --classes")
        return own, []
    classes, ordered = read_classes(described.classes), sorted(set(numbers))
    if own:
        if _moved(classes, own):
            raise MlopsError(f"--classes: are in another order than in {where}: {shorten(own, 8)}; leave --classes out")
        return classes, []
    if not len(numbers) == len(ordered) == len(classes):
        return classes, []
    rising, scored = ([str(number) for number in some] for some in (ordered, numbers))
    if set(classes) == set(rising) and classes != rising:
        raise MlopsError(f"--classes: {where} numbers its classes; name them in this order: {shorten(rising, 8)}")
    if numbers == ordered:
        return classes, []
    said = f"--classes are those of the numbers {shorten(rising, 8)}, whose scores come as {shorten(scored, 8)}"
    return [classes[ordered.index(number)] for number in numbers], [said]


def _moved(classes: list[str], own: list[str]) -> bool:
    """Whether a name of the graph's own, in letters of either case, stands in another place."""
    lower = [name.casefold() for name in own]
    return any(
        name != there and (name in own or (name.casefold() in lower and name.casefold() != there.casefold()))
        for name, there in zip(classes, own, strict=False)
    )


def _describe_input(
    described: Described, taken: Taken, said: Said, model: ModelProto, where: str
) -> tuple[dict[str, Any], list[str]]:
    """`input` of the metadata, and what was assumed."""
    if taken.kind == "features":
        options = ("size", "mean", "std", "resize", "filter")
        if wrong := [f"--{name}" for name in options if getattr(described, name) is not None]:
            raise MlopsError(f"{', '.join(wrong)}: are of images, and {where} takes features")
        return {"features": taken.features, "names": taken.names}, []
    problems, assumed = list[str](), list[str]()
    for side in (taken.height, taken.width):
        if side and described.size not in (None, side):
            problems.append(f"--size={described.size}: {where} takes {taken.height} x {taken.width}; leave --size out")
            break
    sides = [side or described.size for side in (taken.height, taken.width)]
    settings: dict[str, Any] = {}
    try:
        # As the schema judges them; the larger side stands for both.
        known = [side for side in sides if side]
        settings = read_settings(replace(described, size=max(known, default=None)))["data"]
    except MlopsError as error:
        problems += error.problems
    mean, std = [0.0] * 3, [1.0] * 3
    try:
        mean, std = _scaling(described, taken, assumed)
    except MlopsError as error:
        problems += error.problems
    if problems:
        raise MlopsError(problems)
    if said.order is None:
        assumed.append("channels red, green, blue (--input images:bgr)")
    if described.resize is None:
        assumed.append("the whole picture, squashed (--resize)")
    if described.filter is None:
        assumed.append(f"{settings['filter']} resampling, antialiased (--filter)")
    opset = onnx_graph.opsets(model)[""]
    given = {
        "height": sides[0],
        "width": sides[1],
        "channels": 3,
        "mean": mean,
        "std": std,
        "resize": settings["resize"],
        "filter": settings["filter"],
        "crop": None,
        "resizes": opset >= onnx_graph.RESIZING_OPSET and graphs.resizes(settings["filter"]),
    }
    return given, assumed


def _scaling(described: Described, taken: Taken, assumed: list[str]) -> tuple[list[float], list[float]]:
    if described.mean is None and described.std is None:
        if taken.scale == "0-255":
            assumed.append("pixels as they are, 0 to 255 (--mean, --std)")
            return [0.0] * 3, [1.0] * 3
        raise MlopsError(
            "--mean and --std: missing; how pixels in 0..1 were scaled in the training, (pixel - mean) / std, stands "
            "in no file: --mean 0 --std 1 where they were not"
        )
    if taken.type == TensorProto.UINT8:
        raise MlopsError("--mean, --std: go with numbers, and the model takes uint8; leave them out")
    mean, std, _ = read_scaling(described, None, (), Path())
    return mean, std


def _metadata(
    path: Path, content: bytes, classes: list[str], given: Mapping[str, Any], assumed: list[str]
) -> dict[str, Any]:
    """As docs/export.md lists it; what only a training knows is null or empty."""
    return {
        "format": onnx_file.FORMAT,
        "classes": classes,
        "input": dict(given),
        "temperature": 1.0,
        "checkpoint": None,
        "metrics": {},
        "data": None,
        "code": describe_code(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": None,
        "reference": None,
        "parity": None,
        # Its name only: where it lay on somebody's disk is nobody else's business.
        "adopted": {
            "file": printable(path.name),
            "sha256": hashlib.sha256(content).hexdigest(),
            "by": mlops.__version__,
            "assumed": assumed,
        },
    }
