"""`mlops export`: a checkpoint, and pictures to prove the result on, to one file that is written only if it holds."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from mlops import config as schema
from mlops import onnx_file, targets
from mlops.checkpoint import Checkpoint, read, rebuild
from mlops.data.batches import Batches
from mlops.errors import MlopsError
from mlops.evaluation.calibration import probabilities, temperature_of
from mlops.evaluation.evaluate import predict_split
from mlops.evaluation.predict import geometry, warn_of_crop
from mlops.export import graph as graphs
from mlops.export.parity import Answer, Files, Native, compare_files, compare_native, generated
from mlops.export.pictures import labelled, own_prepared, to_compare
from mlops.export.smaller import Smaller, check_loss, check_quantized, divide, scores
from mlops.files import atomic
from mlops.image import Pixels
from mlops.inference import OnnxModel

# As many validation images tell 99.9 % from less.
IMAGES = 1000


@dataclass(frozen=True)
class Exported:
    """A model that was written: its bytes, how it compares, and why the checkpoint's own images were not used."""

    path: Path
    bytes: int
    metadata: dict[str, Any]
    missing: str | None


def export_checkpoint(
    path: Path,
    output: Path,
    data: Path | None,
    processed: Path,
    allow: Collection[str],
    *,
    images: int = IMAGES,
    smaller: Smaller | None = None,
) -> Exported:
    """Write the checkpoint at `path` as ONNX to `output`, if it answers alike.

    Compared on at most `images` of `data`, of the checkpoint's own validation images, or, where those are not here, on
    generated pictures. A network that was made `smaller` is also scored on labelled images before and after.

    Raises:
        MlopsError: the checkpoint cannot be read, rebuilt or exported, or the answers differ; nothing is written then.
    """
    if output.suffix.lower() != ".onnx" or output.is_dir():
        raise MlopsError(f"-o {output}: must be a file that ends in .onnx, by which it is recognised")
    if images < 1:
        raise MlopsError(f"--images={images}: must be at least 1")
    smaller = smaller or Smaller()
    smaller.check()
    checkpoint = read(path)
    temperature = temperature_of(checkpoint.metadata)
    allowed = targets.read_allowed(schema.config_folder()).union(allow)
    model = rebuild(checkpoint, allowed)
    given = checkpoint.metadata["input"]
    warn_of_crop(given)
    pictures, missing = to_compare(checkpoint, data, processed, images)
    measured = labelled(checkpoint, data, processed, "--quantize=int8") if smaller.quantize else None

    told: dict[str, Any] = {}
    if smaller.prune is not None:
        from mlops.export.prune import prune

        own_data = own_prepared(checkpoint, processed, "--prune")
        pruned = prune(
            checkpoint, model, own_data, share=smaller.prune, epochs=smaller.finetune_epochs, allowed=allowed
        )
        model, temperature = pruned.model, pruned.temperature
        # The reference is of what the whole network answers.
        told |= {"pruned": pruned.told, "metrics": pruned.metrics, "reference": None}
        check_loss(f"--prune={smaller.prune:g}", pruned.told["accuracy"], smaller.allow_loss)
    metadata = describe(checkpoint, temperature) | told

    network = graphs.trace(model, given["height"], given["width"])
    own = own_answer(model, given, temperature)

    def assemble(of: ModelProto) -> ModelProto:
        return graphs.assemble(of, given, len(checkpoint.classes), temperature)

    def compare(graph: ModelProto, *, exact: bool) -> dict[str, Any]:
        answer = OnnxModel(graph.SerializeToString(), metadata, where=str(output)).predict
        return _parity(own, answer, pictures, metadata["input"], exact=exact)

    graph = assemble(network)
    metadata["parity"] = compare(graph, exact=True)
    if measured is not None:
        from mlops.export.quantize import quantize

        calibration, rest = divide(measured)
        graph = assemble(quantize(network, calibration.images, given))
        metadata["parity"] = compare(graph, exact=False)
        answer = OnnxModel(graph.SerializeToString(), metadata, where=str(output)).predict
        metadata["quantized"] = {
            "to": "int8",
            "calibrated_on": len(calibration.images),
            "calibration_rows": calibration.places,
            **scores(own, answer, rest),
        }
        check_quantized(metadata["quantized"], smaller.allow_loss)

    graphs.set_metadata(graph, metadata)
    content = graph.SerializeToString(deterministic=True)
    if len(content) > onnx_file.MOST_BYTES:
        raise MlopsError(f"export: {len(content):,} bytes are more than one ONNX file can hold")
    onnx_file.inspect(content, str(output))
    with atomic(output) as temporary:
        temporary.write_bytes(content)
    return Exported(output, len(content), metadata, missing)


def _parity(
    own: Answer, graph: Answer, pictures: Files | Native, given: Mapping[str, Any], *, exact: bool
) -> dict[str, Any]:
    size, resizes = geometry(given), given["resizes"]
    if isinstance(pictures, Native):
        parity = [compare_native(own, graph, pictures, exact=exact)]
        if resizes:
            parity += compare_files(own, graph, generated(size), size, resized=True, exact=exact)[1:]
    else:
        parity = compare_files(own, graph, pictures, size, resized=resizes, exact=exact)
    return {"native": parity[0], "resized": parity[1] if resizes else None}


def describe(checkpoint: Checkpoint, temperature: float) -> dict[str, Any]:
    """What the file says of itself, but for `parity`; docs/export.md lists it."""
    told = checkpoint.metadata
    return {
        "format": onnx_file.FORMAT,
        "classes": checkpoint.classes,
        "input": {**told["input"], "resizes": graphs.resizes(told["input"]["filter"])},
        "temperature": temperature,
        "checkpoint": told["digest"],
        "metrics": told["metrics"],
        "data": told["data"],
        "code": told["code"],
        "created": told["created"],
        "config": _without_places(told["config"]),
        "reference": told["reference"],
    }


def _without_places(value: Any) -> Any:
    """`value` with every absolute path cut down to its last name: elsewhere it says nothing but who made the file."""
    if isinstance(value, Mapping):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(inner) for inner in value]
    if isinstance(value, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute():
                return kind(value).name
    return value


def own_answer(model: torch.nn.Module, given: Mapping[str, Any], temperature: float) -> Answer:
    """What the checkpoint itself says, as `mlops predict` asks it."""

    def answer(images: Pixels) -> Any:
        batches = Batches(
            images,
            np.zeros(len(images), dtype=np.int64),
            mean=given["mean"],
            std=given["std"],
            device=torch.device("cpu"),
        )
        return probabilities(predict_split(model, batches.evaluation())[0], temperature).numpy()

    return answer
