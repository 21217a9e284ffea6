"""Going on with a run: which folder, with which config, and what may differ from how it was started."""

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlops import config as schema
from mlops import mirrored
from mlops.checkpoint import read_metadata
from mlops.errors import MlopsError, one_line

LAST = "last.pth"

# What provably does not change the weights of a run: where things are, what is told to whom, how often it is saved.
# The data's place is among them because its fingerprint is compared.
_FREE = (
    *("resume", "promote", "run.", "tracking.", "paths.", "data.root", "data.downloads", "data.workers"),
    *("training.save_every", "training.require_clean", "training.profile"),
)
_MISSING = object()


@dataclass(frozen=True)
class Saved:
    """A run that can go on: its folder, its config as plain values, the overrides it was started with, and whether it
    came so far as to write a last.pth.
    """

    folder: Path
    config: dict[str, Any]
    overrides: tuple[str, ...]
    started: bool


def wanted_run(composed: Mapping[str, Any]) -> str | None:
    """The run that a config asks to go on with; None for a new one.

    That is `resume`, or the mirrored run of the W&B run that an agent has started this process as: a preempted one.

    Raises:
        MlopsError: the mirror cannot be read.
    """
    wanted, mirror, tracked = composed["resume"], composed["run"]["mirror"], os.environ.get("WANDB_RUN_ID")
    if wanted is None and mirror and tracked:
        return mirrored.find(mirror, tracked)
    return None if wanted is None else str(wanted)


def find_run(wanted: str, outputs: Path) -> Path:
    """The run folder that `resume=` names: a path, a URL, which is fetched, or `latest`, the newest below `outputs`.

    Raises:
        MlopsError: there is no such run.
    """
    if "://" in wanted:
        return mirrored.fetch(mirrored.latest(wanted) or wanted, outputs)
    if wanted == "latest":
        runs = sorted(path.parent for path in outputs.glob("*/*/.hydra"))
        if not runs:
            raise MlopsError(f"resume=latest: {outputs} holds no run; start one, or name its folder")
        return runs[-1]
    folder = Path(wanted)
    if folder.name == LAST:
        folder = folder.parent
    if not folder.is_dir():
        raise MlopsError(f"resume={wanted}: no such folder; name a run's: outputs/<date>/<time>-<id>, or latest")
    if not (folder / LAST).exists() and not (folder / ".hydra" / "config.yaml").exists():
        raise MlopsError(f"resume={wanted}: is not the folder of a run: neither {LAST} nor .hydra/config.yaml is there")
    return folder


def mirror_of(url: str, folder: Path) -> str:
    """Where the run in `folder`, fetched from `url`, is mirrored: below `url`, or two levels above it."""
    name = "/".join(folder.parts[-2:])
    return url.rstrip("/").removesuffix(name).rstrip("/")


def read_saved(folder: Path) -> Saved:
    """The run in `folder` and its config: that of last.pth, or what Hydra wrote before the first one was saved.

    Raises:
        MlopsError: last.pth is damaged, or no config can be read.
    """
    last = folder / LAST
    if last.exists():
        metadata = read_metadata(last)
        if not isinstance(metadata.get("resume"), Mapping):
            raise MlopsError(f"{last}: holds no state to go on from; it is a finished model, not a last.pth")
        return Saved(folder, schema.complete(metadata["config"]), tuple(metadata["overrides"]), True)
    written = folder / ".hydra" / "config.yaml"
    try:
        raw = OmegaConf.to_container(OmegaConf.load(written), resolve=True)
        overrides = OmegaConf.to_container(OmegaConf.load(written.with_name("overrides.yaml")))
    except (OSError, OmegaConfBaseException, yaml.YAMLError) as error:
        raise MlopsError(f"{written.parent}: cannot be read: {one_line(error)}") from error
    if not isinstance(raw, dict) or not isinstance(overrides, list):
        raise MlopsError(f"{written}: is not a config")
    config = schema.complete({str(key): value for key, value in raw.items()})
    return Saved(folder, config, tuple(str(text).removeprefix("++") for text in overrides), False)


def merge(
    saved: Saved,
    overrides: Sequence[str],
    composed: Mapping[str, Any],
    explicit_keys: Callable[[str], Iterable[str]],
) -> dict[str, Any]:
    """The config to go on with: the saved one, with what may change as it is asked for now.

    Args:
        composed: the config that `overrides` compose.
        explicit_keys: the full names of the settings that one override sets.

    Raises:
        MlopsError: an override asks for something else than the run was started with; all of them are listed.
    """
    merged, problems = copy.deepcopy(saved.config), []
    for text in overrides:
        if text.removeprefix("++") in saved.overrides:
            continue  # said again, word for word
        for key in explicit_keys(text):
            new, old = _look_up(composed, key), _look_up(saved.config, key)
            if _is_free(key):
                _set(merged, key, new)
            elif new != old and not (key == "training.threads" and new == 0):
                problem = f"{key}={_show(new)}: the run in {saved.folder} has {_show(old)}"
                problems += [problem] if problem not in problems else []
    if problems:
        last = "; leave it out, or start a new run without resume="
        raise MlopsError([problem + last for problem in problems])
    merged["resume"] = None
    return merged


def next_folder(run: Path) -> Path:
    """Where Hydra's own files of this start go: `resume-1/`, `resume-2/`, ... in the run's folder."""
    number = 1
    while (run / f"resume-{number}").exists():
        number += 1
    return run / f"resume-{number}"


def settings_of(node: Any, prefix: str = "") -> list[str]:
    """The full names of all settings below a plain config node."""
    if isinstance(node, Mapping) and node:
        return [name for key, value in node.items() for name in settings_of(value, f"{prefix}.{key}".lstrip("."))]
    return [prefix]


def _is_free(key: str) -> bool:
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in _FREE)


def _look_up(node: Any, key: str) -> Any:
    for part in key.split("."):
        node = node.get(part, _MISSING) if isinstance(node, Mapping) else _MISSING
    return node


def _set(node: dict[str, Any], key: str, value: Any) -> None:
    *parents, name = key.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    if value is not _MISSING:
        node[name] = value


def _show(value: Any) -> str:
    return "no such setting" if value is _MISSING else schema.shown(value)
