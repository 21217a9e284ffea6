"""Train again from what a checkpoint says, and compare: is the file what it claims to be?"""

import dataclasses
import logging
import math
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops import tables
from mlops.config import Config, DataConfig, PathsConfig, RunConfig
from mlops.errors import MlopsError
from mlops.registry import is_address
from mlops.storage import shown

if TYPE_CHECKING:
    from mlops.checkpoint import Checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """A value of the file and the one that training again gave."""

    name: str
    file: float
    again: float


@dataclass
class Proof:
    """What training again showed.

    Args:
        epochs: how many epochs were trained and compared.
        places: how this code, these versions and this machine differ from those of the file, a line each.
        first_different: the first epoch, from 1, whose weights or metrics differ, or that only one of the two has; None
            where none does.
        claims: what the file says of itself and training again does not, a line each: classes, input, kept epoch, ...
        differences: the metrics of that epoch that differ, and those of the whole run where all of it was trained.
        same_weights: whether the kept weights are the same, bit for bit; None where they were not trained so far.
        largest_weight: their largest absolute difference, for a reader.
        folder: the run that was trained for this.
    """

    folder: Path

    epochs: int = 0
    places: list[str] = field(default_factory=list)
    first_different: int | None = None
    claims: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    same_weights: bool | None = None
    largest_weight: float | None = None

    @property
    def identical(self) -> bool:
        return self.first_different is None and not (self.differences or self.claims) and self.same_weights is not False

    def as_json(self) -> dict[str, Any]:
        """All of it in plain values; what is not finite is null."""
        plain = dataclasses.asdict(self) | {"folder": str(self.folder), "identical": self.identical}
        for found in (plain, *plain["differences"]):
            for name, value in found.items():
                found[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        return plain


def reproduce(
    path: Path,
    *,
    epochs: int | None,
    data: Path | None,
    processed: Path,
    outputs: Path,
    allow: Collection[str],
    weights: str | None = None,
) -> Proof:
    """Train the model of a checkpoint again, all of it or its first `epochs`, and compare weights and metrics.

    Args:
        data: where its images are now; where the checkpoint says when left out.
        weights: where its start weights are now, likewise.

    Raises:
        MlopsError: the file cannot be read, was not trained here, or its data or its start weights are not at hand.
    """
    from mlops import checkpoint, targets
    from mlops.checkpoint import BEST
    from mlops.config import config_folder
    from mlops.entrypoint import Run
    from mlops.provenance import describe_differences
    from mlops.train import train

    file = checkpoint.read(path)
    if "resume" in file.metadata:
        raise MlopsError(f"{path}: holds a run between two steps; name the {BEST} beside it")
    known = file.metadata["epoch_digests"]
    if not known:
        raise MlopsError(
            f"{path}: was not trained by this pipeline (it lists no epochs), so it cannot be trained again"
        )
    if epochs is not None and epochs > len(known):
        raise MlopsError(f"--epochs={epochs}: the checkpoint was trained for {len(known)}")
    # The file of a run that was stopped knows of no more epochs than these.
    ended = file.metadata["temperature"] is not None
    until = None if ended and epochs in (None, len(known)) else epochs or len(known)
    config = _config(file, data, weights, processed, outputs)
    allowed = targets.read_allowed(config_folder()).union(allow)
    folder = outputs / datetime.now().strftime(f"%Y-%m-%d/%H-%M-%S-{secrets.token_hex(2)}")  # noqa: DTZ005 - as Hydra
    proof = Proof(folder, places=_check(file, config, allowed))
    for line in proof.places:
        log.warning(f"{line}: the result may differ in the last bits")

    def compare(metrics: Mapping[str, float], digest: str) -> bool:
        proof.epochs = int(metrics["epoch"])
        position = proof.epochs - 1
        then = file.metadata["history"][position] if position < len(known) else {}
        differences = compare_metrics(then, metrics)
        same = position < len(known) and digest == known[position] and not differences
        if not same and proof.first_different is None:
            proof.first_different, proof.differences = proof.epochs, differences
        log.info(f"epoch {proof.epochs}: {'identical' if same else 'DIFFERENT'}")
        return proof.epochs == until

    folder.mkdir(parents=True)
    overrides = tuple(file.metadata["overrides"])
    train(config, Run(folder, sweep=False, allowed=allowed, overrides=overrides, after_epoch=compare))
    if proof.first_different is None and proof.epochs != (until or len(known)):
        proof.first_different = proof.epochs + 1
    again = checkpoint.read(folder / BEST)
    told = ("classes", "input", "data") if until else ("classes", "input", "data", "epoch", "step", "temperature")
    proof.claims = [
        line
        for name in told
        for line in describe_differences({name: file.metadata[name]}, {name: again.metadata[name]})
        if name != "data" or file.metadata[name]["counts"] != again.metadata[name]["counts"]
    ]
    if until is None or again.metadata["epoch"] == file.metadata["epoch"]:
        # Not by how far they are apart: -0.0 is as large as 0.0, and NaN compares as nothing.
        proof.same_weights = file.metadata["weights_digest"] == again.metadata["weights_digest"]
        proof.largest_weight = _largest_difference(file, again)
    if until is None:
        found = {difference.name for difference in proof.differences}
        proof.differences += [
            difference
            for difference in compare_metrics(file.metadata["metrics"], again.metadata["metrics"])
            if difference.name not in found
        ]
    return proof


def compare_metrics(then: Mapping[str, float], now: Mapping[str, float]) -> list[Difference]:
    """The metrics that are not exactly the same."""
    names = dict.fromkeys([*then, *now])
    pairs = [Difference(name, then.get(name, math.nan), now.get(name, math.nan)) for name in names]
    return [pair for pair in pairs if pair.file != pair.again]


def _config(file: "Checkpoint", data: Path | None, weights: str | None, processed: Path, outputs: Path) -> Config:
    """The config of the file, with what concerns this machine alone as it is here.

    Raises:
        MlopsError: its start weights are in a bucket, which only the file names.
    """
    config, environment = file.config, file.metadata["environment"]
    start = config.model.get("weights")
    if weights is None and start is not None and is_address(start):
        raise MlopsError(
            f"model.weights={shown(start)}: nothing is fetched because a checkpoint says so; if that address is yours, "
            f"name it with --weights {shown(start)}"
        )
    where = dataclasses.replace(
        config.data,
        root=str(data) if data else config.data.root,
        # Whether and where to gigabytes are fetched is the user's to say, not the checkpoint's.
        downloads=DataConfig().downloads,
        pull="never",
    )
    # What `auto` meant then.
    training = dataclasses.replace(
        config.training, precision=environment["precision"], threads=environment["threads"], require_clean=False
    )
    return dataclasses.replace(
        config,
        data=where,
        model=config.model if weights is None else {**config.model, "weights": weights},
        training=training,
        promote=False,
        tracking=dataclasses.replace(config.tracking, mode="off"),
        paths=dataclasses.replace(PathsConfig(), processed=str(processed), outputs=str(outputs)),
        run=RunConfig(),
    )


def _check(file: "Checkpoint", config: Config, allowed: frozenset[str]) -> list[str]:
    """How this place differs from the file's; refuses what makes the comparison pointless."""
    from mlops.data.prepare import build_index
    from mlops.provenance import describe_code, describe_differences, describe_environment
    from mlops.training.device import pick_device
    from mlops.training.start import read_start

    told = file.metadata
    index = build_index(config.data)
    if index.fingerprint != told["data"]["fingerprint"]:
        raise MlopsError(
            f"{index.listing.tree.label}: is not the data this checkpoint was trained on "
            f"({told['data']['fingerprint']}, found {index.fingerprint}); bring that data back, or say where it is "
            "with --data"
        )
    start = read_start(config.model, allowed)
    found, wanted = start.sha256 if start else None, (told["start"] or {}).get("sha256")
    if found != wanted:
        raise MlopsError(
            f"model.weights={config.model.get('weights')}: has SHA-256 {found}, but the run started from {wanted}; "
            "bring that file back"
        )
    environment = describe_environment(
        str(pick_device(config.training.device)), config.training.threads, config.training.precision
    )
    return [
        *(f"code {line}" for line in describe_differences(told["code"], describe_code())),
        *describe_differences(told["environment"], environment),
        *(
            f"resumed at step {place['step']} on another machine or with other code"
            for place in told.get("resumed", [])
        ),
    ]


def _largest_difference(one: "Checkpoint", other: "Checkpoint") -> float:
    """Of all weights; infinite where they differ in names or shapes."""
    if one.state_dict.keys() != other.state_dict.keys():
        return math.inf
    largest = 0.0
    for name, tensor in one.state_dict.items():
        if tensor.shape != other.state_dict[name].shape:
            return math.inf
        if tensor.numel():
            largest = max(largest, float((tensor.double() - other.state_dict[name].double()).abs().max()))
    return largest


def _weights(proof: Proof) -> str:
    if proof.same_weights is None:
        return "not trained so far"
    return "identical" if proof.same_weights else f"differ by up to {proof.largest_weight:.3g}"


def show_proof(path: Path | str, proof: Proof) -> None:
    """What training again showed, for a person."""
    verdict = "identical, bit for bit" if proof.identical else f"DIFFERENT from epoch {proof.first_different} on"
    if proof.first_different is None and not proof.identical:
        verdict = "DIFFERENT, although every epoch was identical"
    tables.pairs(
        f"{path}, trained again",
        [
            ("verdict", verdict),
            ("epochs compared", proof.epochs),
            ("kept weights", _weights(proof)),
            *[("the file says", line) for line in proof.claims],
            *[("elsewhere", line) for line in proof.places],
            ("trained in", proof.folder),
        ],
    )
    if proof.differences:
        rows = [(found.name, f"{found.file:.6g}", f"{found.again:.6g}") for found in proof.differences]
        tables.grid("Metrics that differ", ["metric", "in the file", "again"], rows)
