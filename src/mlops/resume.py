"""Going on with a run: which folder, with which config, and what may differ from how it was started."""

import copy
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops import config as schema
from mlops import mirrored
from mlops.checkpoint import LAST, read_metadata
from mlops.errors import MlopsError, one_line
from mlops.files import write_text

# In a run's folder, beside what Hydra writes there.
COMPOSED = ".hydra/composed.json"

# Settings that do not change the weights of a run: where things are, what is told to whom, how often it is saved.
# The data's place is among them because its fingerprint is compared.
_FREE = (
    *("resume", "promote", "run.", "tracking.", "paths.", "data.root", "data.downloads", "data.workers", "data.pull"),
    *("training.save_every", "training.require_clean", "training.profile"),
)
_MISSING = object()


@dataclass(frozen=True)
class Saved:
    """A run that can go on: its folder, its config as plain values, the overrides it was started with, whether it is
    one of a sweep's many, and whether it came so far as to write a last.pth.
    """

    folder: Path
    config: dict[str, Any]
    overrides: tuple[str, ...]
    sweep: bool
    started: bool


def wanted_run(composed: Mapping[str, Any]) -> str | None:
    """The run that a config asks to go on with; None for a new one.

    That is `resume`, or the run that was tracked as the W&B run which an agent has started this process as, a preempted
    one: mirrored, or in a sweep here.

    Raises:
        MlopsError: the mirror cannot be read.
    """
    wanted, mirror, tracked = composed["resume"], composed["run"]["mirror"], os.environ.get("WANDB_RUN_ID")
    if wanted is not None:
        return str(wanted)
    if not tracked:
        return None
    if mirror and (mirrored_run := mirrored.find(mirror, tracked)):
        return mirrored_run
    # Outside a sweep the id may be whatever a shell has exported: one for many runs.
    local = find_tracked(tracked, Path(composed["paths"]["outputs"])) if "WANDB_SWEEP_ID" in os.environ else None
    return None if local is None else str(local)


def find_tracked(wandb_run_id: str, outputs: Path) -> Path | None:
    """The newest run folder below `outputs` that can go on and was tracked under a W&B run id; None without one."""

    def is_of_it(folder: Path) -> bool:
        # W&B's `run-<date>_<time>-<id>`. Compared, and no part of a pattern or path: the id may be any text.
        return folder.name.removeprefix("offline-").removeprefix("run-").partition("-")[2] == wandb_run_id

    return _newest({folder.parents[1] for folder in outputs.glob("*/*/wandb/*run-*") if is_of_it(folder)})


def _newest(folders: Collection[Path]) -> Path | None:
    """The newest run that was saved, else the newest that was started.

    One that was refused at its start, or killed before its first save, does not hide the one before.
    """
    for name in (LAST, COMPOSED):
        if runs := [folder for folder in folders if (folder / name).exists()]:
            return max(runs)
    return None


def find_run(wanted: str, outputs: Path) -> Path:
    """The run folder that `resume=` names: a path, a URL, which is fetched, or `latest`, the newest below `outputs`.

    Raises:
        MlopsError: there is no such run.
    """
    if "://" in wanted:
        return mirrored.fetch(mirrored.latest(wanted) or wanted, outputs)
    if wanted == "latest":
        if (newest := _newest(list(outputs.glob("*/*")))) is None:
            raise MlopsError(f"resume=latest: {outputs} holds no run; start one, or name its folder")
        return newest
    folder = Path(wanted)
    if folder.name == LAST:
        folder = folder.parent
    if not folder.is_dir():
        raise MlopsError(f"resume={wanted}: no such folder; name a run's: outputs/<date>/<time>-<id>, or latest")
    if not (folder / LAST).exists() and not (folder / COMPOSED).exists():
        raise MlopsError(f"resume={wanted}: is not the folder of a run: neither {LAST} nor {COMPOSED} is there")
    return folder


def mirror_of(url: str, folder: Path) -> str:
    """Where the run in `folder`, fetched from `url`, is mirrored: below `url`, or two levels above it."""
    name = "/".join(folder.parts[-2:])
    return url.rstrip("/").removesuffix(name).rstrip("/")


def write_composed(folder: Path, config: Mapping[str, Any], overrides: Sequence[str], sweep: bool) -> None:
    """Keep what a run was started with, resolved, for one that is killed before its first save.

    Hydra's own files are not: going on would resolve `${oc.env:...}` in them once more.
    """
    text = json.dumps({"config": config, "overrides": list(overrides), "sweep": sweep}, indent=1, ensure_ascii=False)
    write_text(folder / COMPOSED, text + "\n")


def read_saved(folder: Path) -> Saved:
    """The run in `folder` and its config: that of last.pth, or what was composed before the first one was saved.

    Raises:
        MlopsError: last.pth is damaged, or no config can be read.
    """
    last = folder / LAST
    if last.exists():
        metadata = read_metadata(last)
        if "resume" not in metadata:
            raise MlopsError(f"{last}: holds no state to go on from; it is a finished model, not a {LAST}")
        told, sweep = metadata, metadata["resume"]["sweep"]
    else:
        try:
            told = json.loads((folder / COMPOSED).read_text(encoding="utf-8"))
            sweep = told["sweep"]
            if not isinstance(told["config"], dict) or not isinstance(told["overrides"], list):
                raise TypeError("it holds no config")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MlopsError(f"{folder / COMPOSED}: cannot be read: {one_line(error)}; start a new run") from error
    overrides = tuple(str(text) for text in told["overrides"] or ())
    return Saved(folder, schema.complete(told["config"]), overrides, bool(sweep), last.exists())


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
