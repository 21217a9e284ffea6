"""Plain YAML from somebody else: as W&B reads it, but for exponents; no key twice, no aliases, nothing built."""

import re
from pathlib import Path
from typing import Any

import yaml

from mlops.errors import MlopsError, one_line

MOST_LETTERS = 1_000_000
DEEPEST = 50


class Exponent(float):
    """A number such as 1e-5: text in YAML 1.1, which W&B reads, a number in YAML 1.2 and to Hydra."""

    text: str

    def as_yaml_1_1(self) -> str:
        """The number in words that both take for one."""
        number, letter, power = repr(float(self)).partition("e")
        return f"{number}{letter}{power}" if "." in number else f"{number}.0{letter}{power}"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML 1.1 as W&B reads it, but for exponents, and with no key twice."""


def _exponent(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Exponent:
    number = Exponent(loader.construct_scalar(node))
    number.text = node.value
    return number


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, list | dict) or key in found:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key} stands twice, or is no key", key_node.start_mark
            )
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_implicit_resolver(
    "!exponent", re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)
_Loader.add_constructor("!exponent", _exponent)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def plain(value: Any) -> Any:
    """`value` with exponents as ordinary numbers."""
    if isinstance(value, Exponent):
        return float(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def _check_events(path: Path, text: str) -> None:
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.events.AliasEvent):
            raise MlopsError(f"{path}: has YAML aliases (*name); write values out")
        depth += isinstance(event, yaml.events.CollectionStartEvent)
        depth -= isinstance(event, yaml.events.CollectionEndEvent)
        # Each level costs PyYAML more than the one before.
        if depth > DEEPEST:
            raise MlopsError(f"{path}: is nested more than {DEEPEST} levels deep; that is no sweep file")


def load(path: Path) -> dict[str, Any]:
    """The map in a YAML file.

    Raises:
        MlopsError: it cannot be read, or is none.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_LETTERS + 1)
        if len(text) > MOST_LETTERS:
            raise MlopsError(f"{path}: has more than {MOST_LETTERS:,} letters; that is no sweep file")
        _check_events(path, text)
        raw = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise MlopsError(f"{path}: cannot be read: {error.strerror}; name a sweep file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise MlopsError(f"{path}: is not YAML: {one_line(error)}") from error
    if not isinstance(raw, dict):
        raise MlopsError(f"{path}: must be a map with program, method, metric and parameters")
    return {str(key): value for key, value in raw.items()}
