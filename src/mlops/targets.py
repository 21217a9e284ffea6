"""Which `_target_` may be built, by exact name, compared before anything is imported.

A config may come from a checkpoint of somebody else's, so a name in it is untrusted. This module takes the place of
Hydra's `instantiate`: that one has a block-list where an allow-list is needed, and resolves interpolations.
"""

import difflib
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mlops.errors import MlopsError, one_line

Target = dict[str, Any]

# torchvision's classifiers, but googlenet and inception_v3, which give tuples while they train.
_TORCHVISION = (
    "alexnet",
    *(f"convnext_{size}" for size in ("tiny", "small", "base", "large")),
    *(f"densenet{depth}" for depth in (121, 161, 169, 201)),
    *(f"efficientnet_{size}" for size in ("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "v2_s", "v2_m", "v2_l")),
    "maxvit_t",
    *(f"mnasnet{width}" for width in ("0_5", "0_75", "1_0", "1_3")),
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    *(f"regnet_x_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")),
    *(f"regnet_y_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf", "128gf")),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
    *(f"shufflenet_v2_{width}" for width in ("x0_5", "x1_0", "x1_5", "x2_0")),
    *("squeezenet1_0", "squeezenet1_1"),
    *(f"swin_{size}" for size in ("t", "s", "b", "v2_t", "v2_s", "v2_b")),
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    *(f"vit_{size}" for size in ("b_16", "b_32", "l_16", "l_32", "h_14")),
)
MODELS = frozenset(
    {
        *(f"mlops.models.{name}" for name in ("TinyCNN", "SignNet", "timm_model")),
        *(f"torchvision.models.{name}" for name in _TORCHVISION),
    }
)
OPTIMIZERS = frozenset(
    f"torch.optim.{name}"
    for name in ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD")
)

_HYDRA = ("_args_", "_partial_", "_recursive_", "_convert_")


def read_allowed(*folders: Path) -> frozenset[str]:
    """The built-in names and those a user added in `<folder>/allowed_targets.yaml`, a list of exact names."""
    return (MODELS | OPTIMIZERS).union(*map(_read_names, folders))


def _read_names(folder: Path) -> Iterable[str]:
    path = folder / "allowed_targets.yaml"
    if not path.is_file():
        return ()
    import yaml

    try:
        names = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MlopsError(f"{path}: is not readable YAML: {one_line(error)}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and "." in name.strip(".") for name in names):
        raise MlopsError(f"{path}: must be a list of full names such as `- my_package.models.MyNet`")
    return names


def find(node: Mapping[str, Any], where: str, allowed: Iterable[str]) -> Callable[..., Any]:
    """Import the callable that `node` names.

    Raises:
        MlopsError: the name is missing, not allowed (nothing is imported then), or cannot be imported.
    """
    names = sorted(allowed)
    name = node.get("_target_")
    if not isinstance(name, str) or not name:
        raise MlopsError(f"{where}._target_={name}: must be the full name of a class or function")
    if name not in names:
        raise MlopsError(_not_allowed(where, name, names))
    module, _, attribute = name.rpartition(".")
    if name not in MODELS | OPTIMIZERS and str(Path.cwd()) not in sys.path:
        # A network beside the user's own configs need not be an installed package. Only for names that the user
        # allowed, and last, so that it shadows nothing: a folder with somebody's checkpoint may hold modules, too.
        sys.path.append(str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise MlopsError(f"{where}._target_={name}: cannot be imported: {one_line(error)}") from error
    if not callable(found):
        raise MlopsError(f"{where}._target_={name}: is not callable; name a class or a function")
    return typing.cast("Callable[..., Any]", found)


def build(node: Mapping[str, Any], where: str, allowed: Iterable[str], *args: Any, **provided: Any) -> Any:
    """Call what `node` names with its parameters; `provided` fills what the target takes and the node leaves open.

    A target that takes any keyword (torchvision's networks do) gets `num_classes`, the one that all networks know.

    Raises:
        MlopsError: the name is not allowed, or the call fails.
    """
    found = find(node, where, allowed)
    given = {key: value for key, value in node.items() if key != "_target_"}
    accepted = parameters(found)
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    taken = {
        name: value for name, value in provided.items() if name in accepted or (open_ended and name == "num_classes")
    }
    try:
        return found(*args, **{**taken, **given})
    except Exception as error:
        raise MlopsError(f"{where}: {node['_target_']} cannot be built: {one_line(error)}") from error


def check(node: Mapping[str, Any], where: str, allowed: Iterable[str], provided: Iterable[str]) -> list[str]:
    """All that is wrong with a node: its name, unknown parameters, wrong types, missing ones. Builds nothing.

    `provided` are the parameters that the caller fills in.
    """
    try:
        found = find(node, where, allowed)
    except MlopsError as error:
        return error.problems
    problems = [
        f"{where}.{key}: a nested _target_ is not supported; write a function that builds it and allow its name"
        for key, value in node.items()
        if _holds_target(value)
    ]
    accepted = parameters(found)
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    names = [name for name, p in accepted.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    hints = _hints(found)
    for key, value in node.items():
        if key == "_target_":
            continue
        if key not in names:
            if not open_ended:
                close = difflib.get_close_matches(str(key), names, n=1)
                hint = f"did you mean {where}.{close[0]}?" if close else f"it takes {', '.join(names)}"
                problems.append(f"{where}.{key}={value}: {node['_target_']} takes no such parameter; {hint}")
        elif key in hints and (expected := mismatch(value, hints[key])):
            problems.append(f"{where}.{key}={value}: must be {expected}")
    missing = [name for name in names if accepted[name].default is inspect.Parameter.empty]
    missing = [name for name in missing if name not in node and name not in provided]
    return problems + [f"{where}.{name}: is missing; {node['_target_']} needs it" for name in missing]


def refused(raw: Any, allowed: Collection[str], places: Collection[str], where: str = "") -> list[str]:
    """What a config that somebody else made may not say, at any depth. Imports nothing.

    Args:
        places: the full keys that may hold a `_target_`, whose name must be one of `allowed`.
    """
    if isinstance(raw, (list, tuple)):
        return [found for i, item in enumerate(raw) for found in refused(item, allowed, places, f"{where}[{i}]")]
    if not isinstance(raw, Mapping):
        return []
    problems, name = [], raw.get("_target_")
    if "_target_" in raw and not (isinstance(name, str) and name in allowed):
        problems.append(_not_allowed(where, name, allowed))
    elif "_target_" in raw and where not in places:
        problems.append(f"{where}._target_={name}: only {' and '.join(places)} may name what is built")
    problems += [
        f"{where}.{key}: is Hydra's way to call things, which is not used here" for key in _HYDRA if key in raw
    ]
    for key, value in raw.items():
        problems += refused(value, allowed, places, f"{where}.{key}" if where else str(key))
    return problems


def _not_allowed(where: str, name: Any, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), sorted(allowed), n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return (
        f"{where}._target_={name}: is not an allowed name; {hint}Names of your own go into allowed_targets.yaml of "
        "the config folder, or follow --allow"
    )


def parameters(found: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a callable by name, `self` excluded."""
    return dict(inspect.signature(found).parameters)


def mismatch(value: Any, annotation: Any) -> str | None:  # noqa: PLR0911 - one return for each kind of annotation
    """What `annotation` asks for, in words, if `value` is something else; None when it fits.

    An annotation that YAML has no value for (a tensor, a callable) fits anything when it stands alone, and is left
    out of a union.
    """
    if annotation is Any or annotation is inspect.Parameter.empty:
        return None
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return mismatch(value, arguments[0])
    if origin in (typing.Union, types.UnionType):
        misses = [mismatch(value, argument) for argument in arguments if _plain(argument)]
        if not misses or None in misses:
            return None
        return " or ".join(dict.fromkeys(miss for miss in misses if miss))
    if origin is typing.Literal:
        return (
            None
            if any(value == a and type(value) is type(a) for a in arguments)
            else f"one of {', '.join(map(str, arguments))}"
        )
    if origin in (list, tuple):
        return _sequence_mismatch(value, origin, arguments)
    if origin is dict or annotation is dict:
        return None if isinstance(value, dict) else "a mapping"
    if annotation in _WORDS:
        fits = isinstance(value, _ACCEPTED[annotation]) and (annotation is bool or not isinstance(value, bool))
        return None if fits else _WORDS[annotation]
    return None


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    list: "a list",
    tuple: "a list",
}
_ACCEPTED: dict[Any, Any] = {
    bool: bool,
    int: int,
    float: (int, float),
    str: str,
    type(None): type(None),
    list: (list, tuple),
    tuple: (list, tuple),
}


def _sequence_mismatch(value: Any, origin: Any, arguments: tuple[Any, ...]) -> str | None:
    fixed = origin is tuple and Ellipsis not in arguments
    # An item of a kind unknown to us (a tensor) says nothing; the words name only what a config can hold.
    item = mismatch(object(), arguments[0]) or "any"
    words = f"a list of {len(arguments)} values, each {item}" if fixed else f"a list, each item {item}"
    if not isinstance(value, (list, tuple)) or (fixed and len(value) != len(arguments)):
        return words
    kinds = arguments if fixed else (arguments[0],) * len(value)
    return words if any(mismatch(v, kind) for v, kind in zip(value, kinds, strict=True)) else None


def _plain(annotation: Any) -> bool:
    """Whether a config can hold a value of this annotation."""
    return annotation in _WORDS or typing.get_origin(annotation) in (
        list,
        tuple,
        dict,
        typing.Literal,
        typing.Union,
        types.UnionType,
    )


def _hints(found: Callable[..., Any]) -> dict[str, Any]:
    function = found.__init__ if inspect.isclass(found) else found
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # annotations that only a type checker can see
        return {}


def _holds_target(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(_holds_target(item) for item in value.values())
    return isinstance(value, (list, tuple)) and any(_holds_target(item) for item in value)
