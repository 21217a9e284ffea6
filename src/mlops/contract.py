"""What a checkpoint's metadata must be, field by field: `docs/checkpoint.md` as code. No torch.

A file that anybody may have made is held against it when it is opened, so that whoever reads a field afterwards finds
it, with its type and in its range.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from mlops import geometry, targets
from mlops.config import shown

Fields = Mapping[str, Any]
_Mapping = dict[str, Any]

_TOP: Fields = {
    "format": int,
    "config": _Mapping,
    "classes": list[str],
    "input": _Mapping,
    "metrics": _Mapping,
    "history": list[_Mapping],
    "epoch": int,
    "step": int,
    "epoch_digests": list[str],
    "start": _Mapping | None,
    "data": _Mapping,
    "code": _Mapping,
    "environment": _Mapping,
    "created": str,
    "overrides": list[str] | None,
    "temperature": float | None,
    "reference": _Mapping | None,
    "weights_digest": str,
    "digest": str,
}
# Of a last.pth, of a run that went on elsewhere, of adopted weights.
_OPTIONAL: Fields = {"resume": _Mapping, "resume_digest": str, "resumed": list[_Mapping], "adopted": _Mapping}
_INPUT: Fields = {
    "height": int,
    "width": int,
    "channels": int,
    "mean": list[float],
    "std": list[float],
    "resize": geometry.Resize,
    "filter": geometry.Filter,
    "crop": Literal["roi"] | None,
}
_START: Fields = {"weights": str, "sha256": str}
_COUNTS: Fields = {"train": int, "val": int, "test": int}
_DATA: Fields = {"name": str, "fingerprint": str, "dvc_md5": str | None, "split_seed": int, "counts": _Mapping}
# Since versions by DVC are verified.
_DATA_OPTIONAL: Fields = {"dvc_rev": str | None}
_CODE: Fields = {"version": str, "commit": str | None, "dirty": bool | None, "diff_sha256": str | None}
_ENVIRONMENT: Fields = {
    **dict.fromkeys(("python", "torch", "torchvision", "numpy", "pillow", "platform", "cpu_capability"), str),
    **{"device": str, "threads": int, "precision": str},
}
_ADOPTED: Fields = {"file": str, "sha256": str, "entry": str | None, "by": str, "assumed": list[str]}
_RESUME: Fields = {
    "epoch": int,
    "step": int,
    "optimizer": _Mapping,
    "scaler": _Mapping,
    "tracker": str | None,
    "finished": bool,
    "sweep": bool,
}
_OPTIMIZER: Fields = {"state": _Mapping, "groups": list[_Mapping]}
# It becomes part of an address.
_TRACKER = re.compile(r"[A-Za-z0-9_-]{1,128}")
_PRECISIONS = ("fp32", "bf16", "fp16")
# What `data.image_size` may be at most.
_LARGEST_SIDE = 2048
_MOST_CLASSES = _MOST_EPOCHS = 100_000
# A loss may be this large for an epoch, while batch norm has seen little, and come down.
_LARGEST_METRIC = 1e39
_STD, _TEMPERATURE = (1e-6, 1e6), (1e-3, 1e3)
# Deeper is no config; a reader that descends by calling itself would find no ground.
_DEEPEST = 32
_MORE_PROBLEMS = 20


def check(metadata: Mapping[str, Any]) -> list[str]:
    """All that is wrong with the metadata of a checkpoint of this format, one line each, `input.height=0: ...`."""
    if problem := _plain_problem(metadata):
        return [problem]
    problems = [*_fields(metadata, "", _TOP, optional=_OPTIONAL, strict=True)]
    if not problems:
        problems = [*_values(metadata)]
    if len(problems) > _MORE_PROBLEMS:
        problems[_MORE_PROBLEMS:] = [f"and {len(problems) - _MORE_PROBLEMS} more of that kind"]
    return problems


def same(found: Any, wanted: Any) -> bool:
    """Whether two plain values are equal in value and type: 1 is neither true nor 1.0. `wanted` comes out of JSON."""
    if type(found) is not type(wanted):
        return False
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[key], value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    # 0.0 == -0.0
    return bool(repr(found) == repr(wanted) if isinstance(wanted, float) else found == wanted)


def _plain_problem(values: Any) -> str | None:
    """Where the values are nested too deep, or hold a number that is none. They come out of JSON."""
    level, depth = [values], 0
    while level:
        if depth > _DEEPEST:
            return "its metadata is nested too deep"
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, float) and not math.isfinite(value):
                return f"its metadata holds {value}, which is no number"
            elif isinstance(value, int) and abs(value) >= 2**63:
                return "its metadata holds a number of more than 64 bits"
        level, depth = below, depth + 1
    return None


def _fields(
    section: Any, where: str, fields: Fields, *, optional: Fields | None = None, strict: bool = False
) -> Iterator[str]:
    """What is missing, unknown (where `strict`) or of another type in one section of the metadata."""
    optional = optional or {}
    yield from (f"{where}{name}: is missing" for name in fields if name not in section)
    for name, value in section.items():
        kind = fields.get(name, optional.get(name))
        if name not in fields and name not in optional:
            if strict:
                yield f"{where}{name}={shown(value)}: is not a field of a checkpoint"
        elif expected := targets.mismatch(value, kind):
            yield f"{where}{name}={shown(value)}: must be {expected}"


def _values(metadata: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong inside of fields that are all there and of their kind."""
    yield from _input(metadata["input"])
    classes = metadata["classes"]
    if len(classes) > _MOST_CLASSES:
        yield f"classes: are {len(classes):,}; must be at most {_MOST_CLASSES:,}"
    elif len(classes) < 2 or len(set(classes)) < len(classes) or not all(classes):
        yield f"classes={shown(classes)}: must be two or more names, each once"
    yield from _config(metadata["config"], metadata["input"])
    adopted = "adopted" in metadata
    # Of weights that were trained elsewhere, nobody knows the data.
    told = {n: k | None for n, k in _DATA.items()} if adopted else _DATA
    yield from _fields(metadata["data"], "data.", told, optional=_DATA_OPTIONAL)
    if isinstance(counts := metadata["data"].get("counts"), dict):
        yield from _fields(counts, "data.counts.", _COUNTS)
        yield from _at_least(0, counts, "data.counts.", _COUNTS)
    yield from _fields(metadata["code"], "code.", _CODE)
    yield from _environment(metadata["environment"])
    if metadata["start"] is not None:
        yield from _fields(metadata["start"], "start.", _START)
    yield from _epochs(metadata, adopted)
    low, high = _TEMPERATURE
    if metadata["temperature"] is not None and not low <= metadata["temperature"] <= high:
        yield f"temperature={metadata['temperature']}: must be from {low:g} to {high:g}"
    yield from _at_least(0, metadata, "", ("format", "step"))
    if adopted:
        yield from _fields(metadata["adopted"], "adopted.", _ADOPTED, strict=True)
    elif metadata["overrides"] is None:
        yield "overrides=null: must be a list, each item text"
    if ("resume" in metadata) != ("resume_digest" in metadata):
        yield "resume: must come with the digest of the tensors to go on from"
    if "resume" in metadata:
        yield from _resume(metadata["resume"])


def _at_least(least: int, section: Any, where: str, names: Iterable[str]) -> Iterator[str]:
    """The whole numbers of a section that are below `least`; what is of another type was named before."""
    for name in names:
        if isinstance(value := section.get(name), int) and value < least:
            yield f"{where}{name}={value}: must be at least {least}"


def _environment(told: Mapping[str, Any]) -> Iterator[str]:
    yield from _fields(told, "environment.", _ENVIRONMENT)
    yield from _at_least(1, told, "environment.", ("threads",))
    if isinstance(precision := told.get("precision"), str) and precision not in _PRECISIONS:
        yield f"environment.precision={shown(precision)}: must be one of {', '.join(_PRECISIONS)}"


def _resume(told: Mapping[str, Any]) -> Iterator[str]:
    problems = [*_fields(told, "resume.", _RESUME, strict=True)]
    yield from problems
    if problems:
        return
    yield from _at_least(0, told, "resume.", ("epoch", "step"))
    yield from _fields(told["optimizer"], "resume.optimizer.", _OPTIMIZER, strict=True)
    state = told["optimizer"].get("state")
    if isinstance(state, dict) and not all(key.isdecimal() and isinstance(of, dict) for key, of in state.items()):
        yield "resume.optimizer.state: must be mappings by the number of a parameter"
    if told["tracker"] is not None and not _TRACKER.fullmatch(told["tracker"]):
        yield f"resume.tracker={shown(told['tracker'])}: must be letters, digits, - and _, at most 128"


def _input(given: Mapping[str, Any]) -> Iterator[str]:
    problems = [*_fields(given, "input.", _INPUT, strict=True)]
    yield from problems
    if problems:
        return
    for side in ("height", "width"):
        if not 1 <= given[side] <= _LARGEST_SIDE:
            yield f"input.{side}={given[side]}: must be from 1 to {_LARGEST_SIDE}"
    if given["channels"] != 3:
        yield f"input.channels={given['channels']}: must be 3"
    for name in ("mean", "std"):
        if len(given[name]) != 3 or not all(abs(value) < 1e6 for value in given[name]):
            yield f"input.{name}={shown(given[name])}: must be three numbers"
    low, high = _STD
    if not all(low <= value <= high for value in given["std"]):
        yield f"input.std={shown(given['std'])}: must be from {low:g} to {high:g}"


def _config(config: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    """What every reader of the config relies on; `config.check` knows all of it."""
    model = config.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("_target_"), str):
        yield "config.model: must be a mapping with the name of a network as _target_"
    elif targets.mismatch(config.get("training", {}), _Mapping) is None and "epochs" not in config.get("training", {}):
        yield "config.training.epochs: is missing"
    yield from (
        f"config.{name}: must be a mapping"
        for name in ("data", "training")
        if not isinstance(config.get(name, {}), dict)
    )
    data = config.get("data")
    size = data.get("image_size") if isinstance(data, dict) else None
    sides = [given[side] for side in ("height", "width") if type(given.get(side)) is int]
    if size is not None and any(side != size for side in sides):
        across = " x ".join(map(str, sides))
        yield f"input: is {across}, and config.data.image_size={shown(size)}; both sides must be that"


def _epochs(metadata: Mapping[str, Any], adopted: bool) -> Iterator[str]:
    history, kept, digests = metadata["history"], metadata["metrics"], metadata["epoch_digests"]
    count, epoch = len(history), metadata["epoch"]
    if count > _MOST_EPOCHS:
        yield f"history: has {count:,} epochs; must be at most {_MOST_EPOCHS:,}"
        return
    if len(digests) != count or (adopted and count):
        wanted = "none, of adopted weights" if adopted else "one for each epoch of history"
        yield f"epoch_digests: are {len(digests)} and history has {count} epochs; must be {wanted}"
    if not 0 <= epoch <= count:
        yield f"epoch={epoch}: must be from 0 to {count}, the epochs of history"
    if kept and (epoch < 1 or not same(kept.get("epoch"), epoch)):
        yield f"metrics.epoch={shown(kept.get('epoch'))}: must be the kept epoch, epoch={epoch}, from 1"
    yield from (
        f"history[{i}].epoch={shown(told['epoch'])}: must be {i + 1}"
        for i, told in enumerate(history)
        if "epoch" in told and not same(told["epoch"], i + 1)
    )
    yield from _metrics(metadata, adopted)


def _metrics(metadata: Mapping[str, Any], adopted: bool) -> Iterator[str]:
    """Numbers only, and, what a page about a training relies on, both sides' metrics in every epoch."""
    wanted = ["epoch", *(f"{side}_{name}" for side in ("train", "val") for name in ("loss", "Accuracy", "F1"))]
    # Before the first epoch has ended there are none.
    kept = [("metrics", metadata["metrics"])] if metadata["metrics"] else []
    for where, epoch in (*kept, *((f"history[{i}]", epoch) for i, epoch in enumerate(metadata["history"]))):
        yield from (
            f"{where}.{name}={shown(value)}: must be a number"
            for name, value in epoch.items()
            if targets.mismatch(value, float)
        )
        yield from (
            f"{where}.{name}={shown(value)}: must be at most {_LARGEST_METRIC:g} in size"
            for name, value in epoch.items()
            if not targets.mismatch(value, float) and abs(value) > _LARGEST_METRIC
        )
        tested = ["test_F1"] if "test_Accuracy" in epoch else []
        if not adopted and (missing := [name for name in (*wanted, *tested) if name not in epoch]):
            yield f"{where}: lacks {', '.join(missing)}"
