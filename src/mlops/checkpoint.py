"""best_model.pth: weights and, in the same file, everything that is needed to rebuild, judge and reproduce them.

One `torch.save` of plain types and tensors. Everything but the weights stands a second time as JSON in the file's
`archive/metadata.json`, so that it can be read without torch. Digests cover both and are verified at every load.
"""

import hashlib
import json
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops import config as schema
from mlops import contract, envelope, stopping, targets
from mlops.config import Config
from mlops.envelope import Envelope
from mlops.errors import MlopsError, one_line, shorten
from mlops.files import atomic

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = 1
# In a run's folder: the best epoch, for the user; the present state, to go on from.
BEST, LAST = "best_model.pth", "last.pth"


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

        Raises:
            MlopsError: with all that is wrong in it.
        """
        try:
            return schema.load(schema.complete(self.metadata["config"]))
        except MlopsError as error:
            raise MlopsError([f"checkpoint: config: {problem}" for problem in error.problems]) from error

    @property
    def classes(self) -> list[str]:
        return list(self.metadata["classes"])


def save(
    path: Path,
    state_dict: "Mapping[str, Tensor]",
    metadata: Mapping[str, Any],
    resume_tensors: "Mapping[str, Tensor] | None" = None,
) -> None:
    """Write a checkpoint atomically. `metadata` is complete but for `format` and the digests, which are made here.

    Raises:
        MlopsError: a tensor cannot be kept (it is sparse, quantized or of a rare type), or the file not be written.
    """
    import torch

    taken = set[int]()
    weights = {name: _own(name, tensor, taken) for name, tensor in state_dict.items()}
    more = {name: _own(name, tensor, taken) for name, tensor in (resume_tensors or {}).items()}
    # What was read from another file may bring that one's.
    plain = {key: value for key, value in metadata.items() if key not in ("digest", "resume_digest")}
    plain |= {"format": FORMAT, "weights_digest": tensors_digest(weights)}
    if more or "resume" in metadata:
        plain["resume_digest"] = tensors_digest(more)
    plain["digest"] = digest(plain)
    text = _canonical(plain)
    # As JSON gives it back: lists for tuples, and nothing that stands in two places at once.
    held = {"state_dict": weights, **({"resume_tensors": more} if "resume_digest" in plain else {}), **json.loads(text)}
    # A signal inside torch's writer would come out of it as another error.
    with stopping.deferred(), atomic(path) as temporary:
        with temporary.open("wb") as file:
            try:
                torch.save(held, file)
            except RuntimeError as error:
                # torch's writer ends its file even so, and what comes of that hides what was wrong: a full disk, a
                # second Ctrl-C.
                hidden = isinstance(error.__context__, OSError | KeyboardInterrupt | SystemExit)
                raise error.__context__ if error.__context__ and hidden else error from None
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(envelope.METADATA, text)


def is_checkpoint(path: Path) -> bool:
    """Whether a file looks like one of ours; `read` says whether it is."""
    return envelope.is_ours(path)


def read(path: Path) -> Checkpoint:
    """Read and verify a checkpoint, on the CPU.

    Raises:
        MlopsError: it is missing, no checkpoint of ours, of a later format, or changed since it was written; or with
            all that its metadata lacks or its weights are not.
    """
    with envelope.opened(path) as found:
        metadata = _metadata(found, path)
        weights, more = _load(found, metadata, path)
    told = (metadata["weights_digest"], metadata.get("resume_digest", tensors_digest({})))
    if (tensors_digest(weights), tensors_digest(more)) != told:
        raise _changed(path)
    if problems := [f"{path}: {problem}" for problem in (*_not_numbers(weights), *_lacks(metadata, more))]:
        raise MlopsError(problems)
    return Checkpoint(weights, metadata, more)


def read_metadata(path: Path) -> dict[str, Any]:
    """Everything in a checkpoint but its weights, verified against its digest. Needs no torch; reads no weights.

    Raises:
        MlopsError: it is missing, no checkpoint of ours, of a later format, or changed since it was written; or with
            all that it lacks.
    """
    with envelope.opened(path) as found:
        return _metadata(found, path)


def rebuild(checkpoint: Checkpoint, allowed: Collection[str]) -> "nn.Module":
    """The network of a checkpoint, in evaluation mode.

    Raises:
        MlopsError: a `_target_` in its config is not allowed here (nothing is imported then); or with all in which
            the weights and the classes do not fit the network.
    """
    from mlops.models.build import build_model, check_model, on_meta

    config, size, classes = checkpoint.config, checkpoint.metadata["input"]["height"], checkpoint.classes
    problems = targets.refused(checkpoint.metadata["config"], allowed, schema.PROVIDED)
    if not problems:
        # On the meta device, before any memory is taken: a config can ask for more than there is.
        problems = check_model(config.model, allowed, num_classes=len(classes), image_size=size)
    if problems:
        raise MlopsError([f"checkpoint: config: {problem}" for problem in problems])
    planned = on_meta(config.model, allowed, len(classes), size)
    if problems := _misfits(planned, checkpoint.state_dict, len(classes)):
        raise MlopsError([f"checkpoint: {problem}" for problem in problems])
    model = build_model(
        config.model,
        allowed,
        num_classes=len(classes),
        image_size=size,
        channels_last=config.training.channels_last,
    )
    model.load_state_dict(checkpoint.state_dict)
    if wrong := [name for name, values in model.named_parameters() if not values.isfinite().all()]:
        raise MlopsError(f"checkpoint: its weights are not finite in {shorten(wrong)}; train again")
    return model.eval()


def digest(metadata: Mapping[str, Any]) -> str:
    """SHA-256 over the metadata without its digest. The digests of the tensors are in it, so it covers them as well."""
    return hashlib.sha256(_canonical({key: value for key, value in metadata.items() if key != "digest"})).hexdigest()


def tensors_digest(tensors: "Mapping[str, Tensor]") -> str:
    """SHA-256 over every tensor's name, dtype, shape and bytes, in the order of the names."""
    total = hashlib.sha256()
    add_tensors(total, tensors)
    return total.hexdigest()


def add_tensors(total: "hashlib._Hash", tensors: "Mapping[str, Tensor]", prefix: str = "") -> None:
    """Feed tensors to a hash: for each, in the order of the names, a line that describes it, and its bytes."""
    import torch

    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"\n{prefix}{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # Flattened and seen as bytes: NumPy has no bfloat16.
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _own(name: str, tensor: "Tensor", taken: set[int]) -> "Tensor":
    """A tensor on the CPU that is dense and shares its bytes with no other, as `envelope` demands of every file."""
    import torch

    kinds = {f"torch.{kind}" for kind, _ in envelope.STORAGES.values()}
    if tensor.layout != torch.strided or tensor.is_quantized or str(tensor.dtype) not in kinds:
        raise MlopsError(
            f"checkpoint: cannot keep the tensor {name}: it is {tensor.dtype}, {tensor.layout}; only dense ones of "
            f"{', '.join(kind for kind, _ in envelope.STORAGES.values())} are kept"
        )
    own = tensor.detach().cpu().as_subclass(torch.Tensor)
    whole = own.untyped_storage().nbytes() == own.numel() * own.element_size()
    dense = envelope.is_dense(tuple(own.shape), own.stride())
    if not whole or not dense or own.is_conj() or own.is_neg() or (own.numel() and own.data_ptr() in taken):
        own = own.resolve_conj().resolve_neg().clone()
    taken.add(own.data_ptr())
    return own


def _metadata(found: Envelope, path: Path) -> dict[str, Any]:
    """The metadata of an open file, verified but for the digests of the tensors."""
    try:
        metadata = json.loads(found.metadata)
    except (ValueError, RecursionError) as error:
        raise MlopsError(f"{path}: is not a checkpoint of this project: its metadata is no JSON") from error
    number = metadata.get("format") if isinstance(metadata, dict) else None
    if type(number) is not int or number < 1:
        raise MlopsError(f"{path}: is not a checkpoint of this project (format {schema.shown(number)})")
    if number > FORMAT:
        code = metadata.get("code")
        writer = schema.shown(code.get("version")) if isinstance(code, dict) else "of a later version"
        raise MlopsError(
            f"{path}: format {schema.shown(number)} is later than {FORMAT}, the last known here; "
            f"read it with mlops {writer}"
        )
    try:
        # The same text again, so that nothing stands in it twice and no other reader understands it otherwise.
        intact = _canonical(metadata) == found.metadata and digest(metadata) == metadata.get("digest")
    except (ValueError, RecursionError):  # half of a letter, no number, too deep
        intact = False
    if not intact:
        raise _changed(path)
    if problems := contract.check(metadata):
        raise MlopsError([f"{path}: {problem}" for problem in problems])
    return dict(metadata)


def _load(found: Envelope, metadata: Mapping[str, Any], path: Path) -> "tuple[dict[str, Tensor], dict[str, Tensor]]":
    """The tensors of an open file. What surrounds them in the pickle is held against the metadata first."""
    import torch

    names = ["state_dict", *(["resume_tensors"] if "resume_digest" in metadata else [])]
    try:
        described = envelope.unpickle(found)
        envelope.check_tensors([described.pop(name) for name in names], found.sizes)
        if not contract.same(described, metadata):
            raise _changed(path)
        found.file.seek(0)
        loaded = torch.load(found.file, map_location="cpu", weights_only=True)
        weights, more = loaded["state_dict"], loaded.get("resume_tensors", {})
    except MlopsError:
        raise
    except ValueError as error:
        raise MlopsError(f"{path}: is damaged or no checkpoint of this project: {one_line(error)}") from error
    except Exception as error:  # on bytes that somebody made up, unpicklers raise nearly anything
        raise MlopsError(f"{path}: is damaged or no checkpoint of this project: {type(error).__name__}") from error
    return weights, more


def _changed(path: Path) -> MlopsError:
    return MlopsError(f"{path}: does not match its digest; it was changed or damaged after it was written")


def _not_numbers(weights: "Mapping[str, Tensor]") -> list[str]:
    # Infinity is refused in parameters only, by `rebuild`: a mask that a network keeps as a buffer may hold it.
    wrong = [name for name, values in weights.items() if values.isnan().any()]
    return [f"its weights are not finite (NaN) in {shorten(wrong)}; train again"] if wrong else []


def _lacks(metadata: Mapping[str, Any], more: "Mapping[str, Tensor]") -> list[str]:
    # Of an epoch that has begun, what was found so far; see `training/state.py`.
    begun = "resume" in metadata and metadata["resume"]["step"] > 0
    names = [f"epoch.{name}" for name in ("losses", "predictions", "labels")] if begun else []
    missing = [name for name in names if name not in more]
    return [f"its state to go on from lacks {shorten(missing)}"] if missing else []


def _misfits(model: "nn.Module", weights: "Mapping[str, Tensor]", classes: int) -> list[str]:
    """All in which weights do not fit a network, which may be on the meta device."""
    from mlops.models.build import find_head

    wanted: Mapping[str, Tensor] = model.state_dict()
    missing = [name for name in wanted if name not in weights]
    unknown = [name for name in weights if name not in wanted]
    problems = [f"its weights lack {shorten(missing)}"] if missing else []
    problems += [f"its weights hold {shorten(unknown)}, which its model does not have"] if unknown else []
    others = []
    for name, tensor in wanted.items():
        if name in weights and (found := weights[name]).shape != tensor.shape:
            others.append(f"{name} is {list(found.shape)}, not {list(tensor.shape)}")
        elif name in weights and found.dtype != tensor.dtype:
            others.append(f"{name} is {found.dtype}, not {tensor.dtype}")
    problems += [f"its weights do not fit its model: {shorten(others)}"] if others else []
    head = f"{find_head(model, classes)}.weight"
    if head in weights and weights[head].dim() and len(weights[head]) != classes:
        problems.append(f"it names {classes} classes, but its head {head} gives {len(weights[head])}")
    return problems


def _canonical(metadata: Mapping[str, Any]) -> bytes:
    return json.dumps(metadata, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
