"""best_model.pth: weights and, in the same file, everything that is needed to rebuild, judge and reproduce them.

One `torch.save` of plain types and tensors. Everything but the weights stands a second time as JSON in the file's
`archive/metadata.json`, so that it can be read without torch. A digest covers both and is verified at every load.
"""

import hashlib
import json
import pickle
import struct
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops import config as schema
from mlops.config import Config
from mlops.errors import MlopsError, one_line
from mlops.files import atomic

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = 1
# torch reads only files whose entries all lie in one folder; it names it "archive" when it writes to an open file.
_METADATA = "archive/metadata.json"
_MAX_METADATA_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: the weights by name, and everything else as plain values.

    `resume_tensors` is what a last.pth holds beside them, so that the run can go on; empty in a best_model.pth.
    """

    state_dict: "dict[str, Tensor]"
    metadata: dict[str, Any]
    resume_tensors: "dict[str, Tensor]" = field(default_factory=dict)

    @property
    def config(self) -> Config:
        """The config of the run, as it was resolved then. Never resolved again.

        Settings that came later have their defaults, which are what the code did before.
        """
        return schema.load(schema.complete(self.metadata["config"]))

    @property
    def classes(self) -> list[str]:
        return list(self.metadata["classes"])


def save(
    path: Path,
    state_dict: "Mapping[str, Tensor]",
    metadata: Mapping[str, Any],
    resume_tensors: "Mapping[str, Tensor] | None" = None,
) -> None:
    """Write a checkpoint atomically. `metadata` is complete but for `format` and `digest`, which are made here."""
    import torch

    weights = {name: tensor.detach().cpu() for name, tensor in state_dict.items()}
    more = {name: tensor.detach().cpu() for name, tensor in (resume_tensors or {}).items()}
    plain = {"format": FORMAT, **metadata}
    plain["digest"] = digest(weights, plain, more)
    held = {"state_dict": weights, **({"resume_tensors": more} if more else {}), **plain}
    with atomic(path) as temporary:
        with temporary.open("wb") as file:
            torch.save(held, file)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(_METADATA, _canonical(plain))


def is_checkpoint(path: Path) -> bool:
    """Whether a file looks like one of ours; `read` says whether it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _METADATA in archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, EOFError, struct.error):
        return False


def read(path: Path) -> Checkpoint:
    """Read and verify a checkpoint, on the CPU.

    Raises:
        MlopsError: it is missing, no checkpoint of ours, of a later format, or changed since it was written.
    """
    import torch

    metadata = read_metadata(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        weights, more = loaded.pop("state_dict"), loaded.pop("resume_tensors", {})
        changed = loaded != metadata or digest(weights, metadata, more) != metadata["digest"]
    except (RuntimeError, OSError, pickle.UnpicklingError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise MlopsError(f"{path}: is damaged or no checkpoint of this project: {type(error).__name__}") from error
    if changed:
        raise MlopsError(f"{path}: does not match its digest; it was changed or damaged after it was written")
    return Checkpoint(weights, metadata, more)


def read_metadata(path: Path) -> dict[str, Any]:
    """Everything in a checkpoint but its weights. Needs no torch; the digest is not verified here.

    Raises:
        MlopsError: it is missing, no checkpoint of ours, or of a later format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(_METADATA)
            if entry.file_size > _MAX_METADATA_BYTES:
                raise MlopsError(f"{path}: holds {entry.file_size:,} bytes of metadata; that is no checkpoint of ours")
            metadata = json.loads(archive.read(entry))
    except FileNotFoundError as error:
        raise MlopsError(f"{path}: no such file; train first (`invoke train`) or name another checkpoint") from error
    except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError, EOFError) as error:
        raise MlopsError(f"{path}: is not a checkpoint of this project (no metadata.json in it)") from error
    except OSError as error:
        raise MlopsError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from error
    found = metadata.get("format") if isinstance(metadata, dict) else None
    if not isinstance(found, int) or found < 1:
        raise MlopsError(f"{path}: is not a checkpoint of this project (format {found})")
    if found > FORMAT:
        writer = metadata.get("code", {}).get("version", "a later version")
        raise MlopsError(
            f"{path}: format {found} is later than {FORMAT}, the last known here; read it with mlops {writer}"
        )
    return dict(metadata)


def rebuild(checkpoint: Checkpoint, allowed: Collection[str]) -> "nn.Module":
    """The network of a checkpoint, in evaluation mode.

    Raises:
        MlopsError: its `_target_` is not allowed here, or the weights do not fit it.
    """
    from mlops.models.build import build_model

    config = checkpoint.config
    model = build_model(
        config.model,
        allowed,
        num_classes=len(checkpoint.classes),
        image_size=checkpoint.metadata["input"]["height"],
        channels_last=config.training.channels_last,
    )
    try:
        model.load_state_dict(checkpoint.state_dict)
    except RuntimeError as error:
        raise MlopsError(
            f"checkpoint: its weights do not fit its model {config.model['_target_']}: {one_line(error)}"
        ) from error
    return model.eval()


def digest(
    weights: "Mapping[str, Tensor]", metadata: Mapping[str, Any], resume_tensors: "Mapping[str, Tensor] | None" = None
) -> str:
    """SHA-256 over the metadata without its digest, and over every tensor's name, dtype, shape and bytes."""
    total = hashlib.sha256(_canonical({key: value for key, value in metadata.items() if key != "digest"}))
    for kind, tensors in (("", weights), ("resume ", resume_tensors or {})):
        add_tensors(total, tensors, kind)
    return total.hexdigest()


def add_tensors(total: "hashlib._Hash", tensors: "Mapping[str, Tensor]", prefix: str = "") -> None:
    """Feed tensors to a hash: for each, in the order of the names, a line that describes it, and its bytes."""
    import torch

    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"\n{prefix}{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # Flattened and seen as bytes: NumPy has no bfloat16.
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _canonical(metadata: Mapping[str, Any]) -> bytes:
    return json.dumps(metadata, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
