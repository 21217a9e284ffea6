"""Files of weights that other programs wrote: tensors by name, read without running code from them."""

import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mlops import envelope
from mlops.errors import MlopsError, shorten
from mlops.files import check_regular

# How most trainers wrap a state dict.
_WRAPPINGS = ("state_dict", "model_state_dict", "model")
# In one another; a pickle can hold a mapping that holds itself.
_MOST_WRAPPINGS = 4
# What torch's unpickler of weights calls with the numbers of the file, and what takes as much memory as they say.
_TAKES_ANY_MEMORY = re.compile(
    r"(?:builtins|__builtin__) bytearray|torch(?:\.\w+)* (?:\w+Tensor|UntypedStorage|TypedStorage)"
)
# A file from before PyTorch 1.6: a magic number, a version, the machine, the values, the names of the tensors.
_LEGACY_PICKLES = 5
# What DistributedDataParallel, AveragedModel and torch.compile put before every name.
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)+")


@dataclass(frozen=True)
class Weights:
    """What a file holds.

    Args:
        tensors: by name, without what wrappers put before the names.
        entry: the key in the file under which they were; None where the file is a state dict itself.
        others: entries of the file that hold tensors as well and were not taken, such as a moving average.
    """

    tensors: dict[str, Tensor]
    entry: str | None = None
    others: tuple[str, ...] = ()


def read_weights(path: Path, where: str, entry: str | None = None, *, choose: str = "") -> Weights:
    """The weights in a file by `torch.save` or a .safetensors, on the CPU.

    `where` begins the problems. `entry` is the key in the file under which the state dict is; a known one when None.
    `choose` says how the user names another entry, where the file has others.

    Raises:
        MlopsError: it cannot be read, or not without running code, or holds no weights there.
    """
    loaded = _load(path, where)
    held = loaded if isinstance(loaded, Mapping) else {}
    known = [entry] if entry is not None else [name for name in _WRAPPINGS if isinstance(held.get(name), Mapping)]
    if entry is not None and not isinstance(held.get(entry), Mapping):
        raise MlopsError(f"{where}: has no state dict in an entry {entry}; it holds {_entries(held)}{choose}")
    taken = known[0] if known else None
    found: Any = held[taken] if taken is not None else loaded
    for _ in range(_MOST_WRAPPINGS):
        if isinstance(found, Mapping) and (inner := [n for n in _WRAPPINGS if isinstance(found.get(n), Mapping)]):
            found = found[inner[0]]
    if not _is_state_dict(found):
        if isinstance(found, Mapping) and found:
            names = ", ".join(_WRAPPINGS)
            raise MlopsError(f"{where}: is no state dict, nor holds one as {names}; it holds {_entries(found)}{choose}")
        raise MlopsError(_no_weights(where))
    tensors: dict[str, Tensor] = {}
    averaged = "n_averaged" in found and all(str(name).startswith("module.") for name in found if name != "n_averaged")
    for name, tensor in found.items():
        if averaged and name == "n_averaged":
            continue  # AveragedModel's own count of its updates
        # The published densenets still have the names of torchvision 0.2: `norm.1` for `norm1`.
        plain = re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", _WRAPPERS.sub("", str(name)))
        if plain in tensors:
            raise MlopsError(f"{where}: holds {plain} twice, once as {name}; save the state dict of one network")
        tensors[plain] = tensor
    others = tuple(str(name) for name, value in held.items() if name != taken and _is_state_dict(value))
    return Weights(tensors, taken, others)


def differences(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """In which names and shapes the tensors of a file and of a network differ, one line each; none when they fit."""
    # Files from before PyTorch 0.4.1 hold no such counters.
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    # A larger network of the same family holds all that a smaller one needs, and half of it is not what was trained.
    unknown = [name for name in given if name not in wanted]
    shapes = [
        f"{name} is {list(given[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    problems = [f"no {shorten(missing)} in the file"] if missing else []
    problems += [f"no {shorten(unknown)} in the network"] if unknown else []
    return problems + ([shorten(shapes)] if shapes else [])


def take_off_prefix(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """`given` without a prefix that stands before all the network's names, and that said.

    Trainers that hold the network in an attribute of their own write `model.conv1.weight`, or `net.` or `backbone.`
    """
    first = next(iter(wanted), "")
    prefixes = {name.removesuffix(first) for name in given if name.endswith(f".{first}")}

    def hits(prefix: str) -> int:
        return sum(prefix + name in given for name in wanted)

    best = max(["", *sorted(prefixes)], key=hits)
    if not best:
        return dict(given), []
    bare = {name.removeprefix(best) if name.removeprefix(best) in wanted else name: t for name, t in given.items()}
    return bare, [f"names in the file begin with {best}, which was taken off"]


def faults(tensor: Tensor, wanted: torch.dtype) -> list[str]:
    """Why the values of a tensor cannot be kept as `wanted`; nothing when they can."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex():
        return [f"values that are quantised, sparse, complex or missing ({tensor.dtype})"]
    if not wanted.is_floating_point:
        limits = torch.iinfo(wanted) if wanted != torch.bool else None
        low, high = (limits.min, limits.max) if limits else (0, 1)
        whole = all(low <= value <= high and value == int(value) for value in tensor.reshape(-1).tolist())
        return [] if whole else [f"values that are no whole numbers of {wanted}"]
    if not tensor.is_floating_point():
        # Eight-bit weights would be taken for numbers up to 127; their scale stands elsewhere.
        return [f"values of {tensor.dtype}, not {wanted},"]
    wide = tensor.double()
    if not wide.isfinite().all():
        return ["NaN or infinite values"]
    return [] if wide.to(wanted).isfinite().all() else [f"values too large for {wanted}"]


def casts(given: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> list[str]:
    """In words, which types of numbers in a file are kept as others."""
    changed = sorted({f"{t.dtype} as {kept[name].dtype}" for name, t in given.items() if t.dtype != kept[name].dtype})
    return [f"values of {', '.join(changed)}".replace("torch.", "")] if changed else []


def _load(path: Path, where: str) -> Any:
    check_regular(path, where)
    try:
        _refuse_program(path, where)
        envelope.check_stored(path, where)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        _refuse_memory(path, where)
        return torch.load(path, map_location="cpu", weights_only=True)
    except MlopsError:
        raise
    except ImportError as error:
        raise MlopsError(f"{where}: needs safetensors; pip install safetensors") from error
    except OSError as error:
        raise MlopsError(f"{where}: cannot be read: {error.strerror or 'no such file'}") from error
    except Exception as error:  # on bytes that are no weights, the readers raise nearly anything
        if objects := _objects(path):
            raise MlopsError(
                f"{where}: holds more than tensors ({shorten(objects)}), which cannot be read without running code "
                "from it; where it was made, save the weights alone: torch.save(model.state_dict(), PATH)"
            ) from error
        raise MlopsError(_no_weights(where)) from error


def _refuse_program(path: Path, where: str) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise MlopsError(
                    f"{where}: is a TorchScript program, not weights; where it was made, save the weights alone: "
                    "torch.save(model.state_dict(), PATH)"
                )


def _refuse_memory(path: Path, where: str) -> None:
    """Refuse a pickle that asks for memory in numbers, which is none of a state dict. Nothing in it is called."""
    with path.open("rb") as file:
        # As torch tells the two apart.
        if file.read(4) == b"PK\3\4":
            with zipfile.ZipFile(file) as archive:
                inside = [entry for entry in archive.infolist() if entry.filename.endswith("data.pkl")]
                named = [argument for entry in inside for argument in _named(archive.read(entry))]
        else:
            file.seek(0)
            named = [argument for _ in range(_LEGACY_PICKLES) for argument in _named(file)]
    if wrong := sorted({name.replace(" ", ".") for name in named if _TAKES_ANY_MEMORY.fullmatch(name)}):
        raise MlopsError(f"{where}: its pickle calls {shorten(wrong)}, which no weights need; save the weights alone")


def _named(pickled: bytes | BinaryIO) -> Iterator[str]:
    """The globals that one pickle names, as `module name`."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL":
            yield str(argument)


def _objects(path: Path) -> list[str]:
    """Classes and functions that the file's pickle names beside those of plain tensors; found without calling any."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a file of another kind, or damaged
        return []


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(tensor, Tensor) for tensor in value.values())


def _entries(held: Mapping[Any, Any]) -> str:
    others = [str(name) for name, value in held.items() if not isinstance(value, Tensor)]
    return shorten(others, 8) if others else "tensors only"


def _no_weights(where: str) -> str:
    return (
        f"{where}: is no file of weights that can be read without running code (a state dict by "
        "torch.save(model.state_dict(), PATH), a .safetensors, or a best_model.pth of this project)"
    )
