"""From weights that another program trained to a checkpoint of ours, checked and marked as adopted.

Such a file holds tensors and their names. What else a checkpoint needs, the network and how images were prepared for
it, only its owner knows: it is asked for, or taken from the network's library and named as an assumption.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mlops
from mlops import checkpoint, targets
from mlops import config as schema
from mlops.adoption.collecting import collecting
from mlops.adoption.described import (
    Described,
    assumed_fields,
    read_classes,
    read_node,
    read_scaling,
    read_settings,
    say_assumed,
)
from mlops.checkpoint import Checkpoint
from mlops.data.batches import Batches
from mlops.errors import MlopsError, one_line, printable, shorten
from mlops.evaluation.evaluate import predict_split
from mlops.files import sha256_of
from mlops.models.build import build_model, check_model, find_head
from mlops.provenance import describe_code, describe_environment
from mlops.targets import Target
from mlops.training.weights import Weights, casts, differences, faults, read_weights, take_off_prefix


@dataclass(frozen=True)
class Adopted:
    """Where the checkpoint is, what it says of itself, and what a reader should know: what was assumed, and found."""

    path: Path
    metadata: dict[str, Any]
    assumed: list[str]
    notes: list[str]


def adopt(path: Path, output: Path | None, described: Described, *, force: bool, allow: Collection[str]) -> Adopted:
    """Write the checkpoint `output` (`models/<name of the file>/best_model.pth` when None) with the weights in `path`.

    `allow` are names of networks that may be built beside those of the config folder.

    Raises:
        MlopsError: with everything that is missing, wrong, or does not fit; nothing is written then.
    """
    problems: list[str] = []
    attempt = collecting(problems)

    allowed = targets.read_allowed(schema.config_folder()).union(allow)
    output = attempt(_choose_output, path, output, force)
    weights = attempt(_read, path, described.entry)
    node = attempt(read_node, described, allowed)
    classes = attempt(read_classes, described.classes)
    values = attempt(read_settings, described)
    scaling = attempt(read_scaling, described, node, allowed, path)
    network = None
    if node is not None and classes is not None and values is not None:
        network = attempt(_build, node, allowed, classes, values["data"]["image_size"])
    tensors, notes = dict[str, Tensor](), list[str]()
    if weights is not None and network is not None and classes is not None:
        tensors, notes = take_off_prefix(weights.tensors, network.state_dict())
        if weights.others:
            notes.append(f"the file also holds {shorten(weights.others)}, which --entry takes instead")
        problems += [f"{path}: {problem}" for problem in _misfits(tensors, network, classes)]
    if problems or not (output and weights and node and classes and values and scaling and network is not None):
        raise MlopsError(problems)

    try:
        network.load_state_dict(tensors, strict=False)  # `_misfits` has judged more strictly than that
    except Exception as error:  # a network may load in a way of its own
        raise MlopsError(f"{path}: {type(network).__name__} cannot take it: {one_line(error)}") from error
    values["model"] = node
    mean, std, why = scaling
    metadata = _describe(path, values, classes, mean, std, entry=weights.entry, assumed=assumed_fields(described))
    state = dict(network.state_dict())
    _prove(Checkpoint(state, metadata), allowed)
    checkpoint.save(output, state, metadata)
    notes += casts(tensors, state)
    return Adopted(output, checkpoint.read_metadata(output), [*why, *say_assumed(described, values["data"])], notes)


def _choose_output(path: Path, output: Path | None, force: bool) -> Path:
    if output is None:
        if path.stem == "latest":
            raise MlopsError("--output: is missing; models/latest is where training puts its last model")
        output = Path("models", path.stem, "best_model.pth")
    if output.is_dir():
        raise MlopsError(f"--output={output}: is a folder; name a file, such as {output / 'best_model.pth'}")
    if output.exists() and path.exists() and output.samefile(path):
        raise MlopsError(f"--output={output}: is the file of weights itself; name another")
    if output.exists() and not force:
        raise MlopsError(f"--output={output}: is there already; name another file, or replace it with --force")
    return output


def _read(path: Path, entry: str | None) -> Weights:
    if path.is_dir():
        raise MlopsError(f"{path}: is a folder; name the file of weights in it")
    if checkpoint.is_checkpoint(path):
        raise MlopsError(f"{path}: is a checkpoint of this project already; use it as it is")
    return read_weights(path, str(path), entry, choose="; --entry=KEY takes one of them")


def _build(node: Target, allowed: Collection[str], classes: Sequence[str], size: int) -> nn.Module:
    if problems := check_model(node, allowed, num_classes=len(classes), image_size=size):
        raise MlopsError(problems)
    return build_model(node, allowed, num_classes=len(classes), image_size=size, channels_last=False)


def _misfits(tensors: Mapping[str, Tensor], network: nn.Module, classes: Sequence[str]) -> list[str]:
    """Everything about the tensors that keeps them from being this network's weights."""
    wanted = network.state_dict()
    problems, fitting = [], dict(tensors)
    try:
        head = find_head(network, len(classes))
    except MlopsError:
        head = ""  # a network that ends otherwise; its shapes are compared all the same
    # The usual mistake, and then the only one: a list of classes that is not that of the head.
    weight = tensors.get(f"{head}.weight")
    if weight is not None and weight.dim() > 0 and len(weight) != len(classes):
        problems.append(
            f"its head ({head}) tells {len(weight)} classes apart, and --classes names {len(classes)}; name all of "
            "them in the order of the outputs"
        )
        wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith(f"{head}.")}
        fitting = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{head}.")}
    problems += differences(fitting, wanted)
    reasons: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        # Only what has the network's own shape: a few bytes can be seen as a tensor of any size.
        if name in wanted and tensor.shape == wanted[name].shape:
            for reason in faults(tensor, wanted[name].dtype):
                reasons.setdefault(reason, []).append(name)
    return problems + [f"{reason} in {shorten(names)}" for reason, names in reasons.items()]


def _describe(
    path: Path,
    values: dict[str, Any],
    classes: list[str],
    mean: list[float],
    std: list[float],
    *,
    entry: str | None,
    assumed: list[str],
) -> dict[str, Any]:
    """All that a checkpoint says of itself; what only a training knows is null or empty. See docs/checkpoint.md."""
    data = values["data"]
    return {
        "config": values,
        "classes": classes,
        "input": {
            "height": data["image_size"],
            "width": data["image_size"],
            "channels": 3,
            "mean": mean,
            "std": std,
            "resize": data["resize"],
            "filter": data["filter"],
            "crop": None,
        },
        "metrics": {},
        "history": [],
        "epoch": 0,
        "step": 0,
        "epoch_digests": [],
        "overrides": None,
        "start": None,
        "data": {
            "name": None,
            "fingerprint": None,
            "dvc_md5": None,
            "dvc_rev": None,
            "split_seed": None,
            "counts": None,
        },
        "code": describe_code(),
        "environment": describe_environment("cpu", torch.get_num_threads(), "fp32"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "temperature": None,
        "reference": None,
        # Its name only: where it lay on somebody's disk is nobody else's business.
        "adopted": {
            "file": printable(path.name),
            "sha256": sha256_of(path),
            "entry": entry,
            "by": mlops.__version__,
            "assumed": assumed,
        },
    }


def _prove(made: Checkpoint, allowed: Collection[str]) -> None:
    """Rebuild the network as every later reader does, and let it see one picture."""
    network = checkpoint.rebuild(made, allowed)
    given = made.metadata["input"]
    shape = (1, given["height"], given["width"], 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    batches = Batches(
        noise, np.zeros(1, dtype=np.int64), mean=given["mean"], std=given["std"], device=torch.device("cpu")
    )
    try:
        logits, _ = predict_split(network, batches.evaluation())
    except Exception as error:  # somebody's network may raise anything
        raise MlopsError(f"model: {type(network).__name__} fails on a picture: {one_line(error)}") from error
    if logits.shape != (1, len(made.classes)) or not logits.isfinite().all():
        raise MlopsError(
            f"model: {type(network).__name__} with these weights gives {logits.tolist()} for a picture of noise, not "
            f"{len(made.classes)} finite numbers; the weights are damaged, or of another network"
        )
