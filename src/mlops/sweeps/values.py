"""Values of a sweep file as words of a command line, and back: Hydra's grammar here, Python's `str` for W&B's agent."""

import math
from collections.abc import Iterator
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlops.errors import MlopsError


def to_override(name: str, value: Any) -> str:
    """`name=value` in Hydra's grammar, which composes to exactly `value`: null, booleans, numbers, text, lists, maps.

    Raises:
        MlopsError: there are no such words, for instance because the value is NaN or a map has a key with blanks.
    """
    for text in _spellings(value):
        if _reads_as(text, value):
            return f"{name}={text}"
    raise MlopsError(f"{name}={value!r}: no override can say that; use null, a number, text, or a list or map of these")


def to_agent(name: str, value: Any) -> str:
    """`name=value` as W&B's agent writes it.

    Raises:
        MlopsError: Hydra would read something else.
    """
    text = str(value)
    if _reads_as(text, value):
        return f"{name}={text}"
    reason = "null as the text None" if value is None else f"{text} with nothing in quotes"
    raise MlopsError(
        f"{name}={value!r}: W&B's agent writes {reason}, so the trial would get another value; leave it out, or leave "
        "out `command`: a file without it is for this machine alone"
    )


def _spellings(value: Any) -> Iterator[str]:
    """Ways to say a value, the plainest first. Which of them is right, only the grammar knows."""
    if value is None or isinstance(value, bool):
        yield {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, int | float):
        yield repr(value)
    elif isinstance(value, str):
        yield value
        yield quoted(value)
        # An interpolation in the config would be resolved; escaped, it is text.
        yield quoted(value.replace("${", "\\${"))
    elif isinstance(value, list):
        yield f"[{','.join(_first(item) for item in value)}]"
    elif isinstance(value, dict):
        yield f"{{{','.join(f'{key}:{_first(item)}' for key, item in value.items())}}}"


def _first(value: Any) -> str:
    """The first spelling that reads as `value` inside a list: there a comma and a bracket mean something."""
    return next((text for text in _spellings(value) if _reads_as(f"[{text}]", [value])), "")


def quoted(text: str) -> str:
    """`text` in quotes, as Hydra's grammar reads it back: whatever letters it has."""
    # A backslash counts for itself, but for those right before a quote.
    escaped, backslashes = "", 0
    for letter in f"{text}'":
        if letter == "'":
            escaped += "\\" * backslashes + "\\'"
        else:
            escaped += letter
        backslashes = backslashes + 1 if letter == "\\" else 0
    return f"'{escaped[:-2]}'"


def _reads_as(text: str, value: Any) -> bool:
    """Whether `key=text` composes to `value`, types included."""
    try:
        # Half a surrogate pair, which YAML can write and no file can hold.
        text.encode()
        override = OverridesParser.create().parse_override(f"key={text}")
        if override.type != OverrideType.CHANGE or override.is_sweep_override():
            return False
        config = OmegaConf.create({})
        # What a trial does with it: interpolations are resolved, and ??? is a missing value.
        OmegaConf.update(config, "key", override.value(), merge=True, force_add=True)
        found = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException, ValueError):
        return False
    return isinstance(found, dict) and same(found["key"], value)


def same(one: Any, other: Any) -> bool:
    """Equal, and of one type: to Python 1, 1.0 and true are all equal."""
    if isinstance(one, QuotedString):
        one = one.text
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)
