"""`mlops export`: a checkpoint, and pictures to prove the result on, to one file that is written only if it holds."""

import dataclasses
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch

from mlops import config as schema
from mlops import onnx_file, targets
from mlops.checkpoint import Checkpoint, read, rebuild
from mlops.config import DataConfig
from mlops.data.batches import Batches
from mlops.data.downloads import is_fetched
from mlops.data.prepare import Prepared, open_prepared
from mlops.data.sources import open_source
from mlops.data.tree import open_tree
from mlops.errors import MlopsError, one_line
from mlops.evaluation.calibration import probabilities, temperature_of
from mlops.evaluation.evaluate import predict_split
from mlops.evaluation.predict import geometry, warn_of_crop
from mlops.evaluation.run import find_own_data
from mlops.export import graph as graphs
from mlops.export.parity import Answer, Files, Native, compare_files, compare_native, generated, spread
from mlops.files import atomic
from mlops.image import EXTENSIONS, Pixels
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
) -> Exported:
    """Write the checkpoint at `path` as ONNX to `output`, if it answers alike.

    Compared on at most `images` of `data`, of the checkpoint's own validation images, or, where those are not here, on
    generated pictures.

    Raises:
        MlopsError: the checkpoint cannot be read, rebuilt or exported, or the answers differ; nothing is written then.
    """
    if output.suffix.lower() != ".onnx" or output.is_dir():
        raise MlopsError(f"-o {output}: must be a file that ends in .onnx, by which it is recognised")
    if images < 1:
        raise MlopsError(f"--images={images}: must be at least 1")
    checkpoint = read(path)
    temperature = temperature_of(checkpoint.metadata)
    model = rebuild(checkpoint, targets.read_allowed(schema.config_folder()).union(allow))
    given = checkpoint.metadata["input"]
    warn_of_crop(given)
    pictures, missing = _pictures(checkpoint, data, processed, images)

    graph = graphs.build_graph(model, given, len(checkpoint.classes), temperature)
    metadata = describe(checkpoint, temperature)
    onnx = OnnxModel(graph.SerializeToString(), metadata, where=str(output))
    own, size, resizes = _own_answer(model, given, temperature), geometry(given), metadata["input"]["resizes"]
    if isinstance(pictures, Native):
        parity = [compare_native(own, onnx.predict, pictures)]
        if resizes:
            parity += compare_files(own, onnx.predict, generated(size), size, resized=True)[1:]
    else:
        parity = compare_files(own, onnx.predict, pictures, size, resized=resizes)
    metadata["parity"] = {"native": parity[0], "resized": parity[1] if resizes else None}

    graphs.set_metadata(graph, metadata)
    content = graph.SerializeToString(deterministic=True)
    if len(content) > onnx_file.MOST_BYTES:
        raise MlopsError(f"export: {len(content):,} bytes are more than one ONNX file can hold")
    onnx_file.inspect(content, str(output))
    with atomic(output) as temporary:
        temporary.write_bytes(content)
    return Exported(output, len(content), metadata, missing)


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


def _own_answer(model: torch.nn.Module, given: Mapping[str, Any], temperature: float) -> Answer:
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


def _pictures(
    checkpoint: Checkpoint, data: Path | None, processed: Path, most: int
) -> tuple[Files | Native, str | None]:
    """What to compare on, and why it is not the checkpoint's own validation images."""
    if data is not None:
        tree = open_tree(data, "--data")
        names = [name for name in tree.names if name.lower().endswith(EXTENSIONS)]
        if not names:
            raise MlopsError(f"--data={data}: holds no images")
        return Files("given images", tree, names).few(most), None
    try:
        own = find_own_data(checkpoint, processed)
    except MlopsError as error:
        return generated(geometry(checkpoint.metadata["input"])), one_line(error)
    kind = "validation images"
    if not isinstance(own, Path):
        items = [item.entry for item in own.items if item.split == "val" and item.sha256]
        files = Files(kind, own.listing.tree, [entry.path for entry in items], [entry.box for entry in items])
        return files.few(most), None
    prepared = open_prepared(own)
    found = _original_files(checkpoint, prepared, most)
    if found is not None:
        return found, None
    rows = spread(len(prepared.labels("val")), most)
    return Native(kind, prepared.images("val")[rows]), None


def _original_files(checkpoint: Checkpoint, prepared: Prepared, most: int) -> Files | None:
    """The files that validation images were made from, where they are still here, and the same."""
    settings = checkpoint.config.data
    if settings.source == "torchvision":
        settings = dataclasses.replace(settings, downloads=DataConfig().downloads)
        if not is_fetched(settings):
            return None
    try:
        listing = open_source(settings)
    except MlopsError:
        return None
    boxes = {entry.path: entry.box for entry in listing.entries}
    expected = dict(zip(prepared.paths("val"), prepared.hashes("val"), strict=True))
    names = list(expected)
    if not set(names) <= set(boxes):
        return None
    files = Files("validation images", listing.tree, names, [boxes[name] for name in names]).few(most)
    try:
        same = all(hashlib.sha256(files.tree.read(name)).hexdigest() == expected[name] for name in files.names)
    except OSError:
        return None
    return files if same else None
