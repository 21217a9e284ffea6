"""What every Hydra entrypoint shares: checks before anything starts, one line for a mistake, the exit code.

Hydra stops at the first bad override, prints several lines and exits with 1. Here the overrides are composed and
checked first, all mistakes are listed at once, and Hydra runs only what is right; no run folder is made before.
"""

import argparse
import copy
import dataclasses
import difflib
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import yaml
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlops import config as schema
from mlops import resume, stopping, targets
from mlops.config import Config, DataConfig
from mlops.errors import MlopsError, fail, one_line
from mlops.files import only_one, users_to_mend
from mlops.sweeps.values import quoted

if TYPE_CHECKING:
    from mlops.data.prepare import Index, Prepared

log = logging.getLogger(__name__)

# The menu.
ROOT = "config"
# composed plain values and the allowed names of targets -> what is wrong
Check = Callable[[dict[str, Any], frozenset[str]], list[str]]


@dataclass(frozen=True)
class Run:
    """Where this run's files go, whether it is one of a sweep's many, which names its config may build, how it was
    started, and whether it goes on with what is in its folder.

    `after_epoch` is told the metrics of each epoch and the SHA-256 of all weights at its end; it answers whether the
    run ends there, with nothing scored. `locate` finds the images in its own way, `report` is whether one is written.
    `own` are the settings that only this entrypoint has.
    """

    folder: Path
    sweep: bool
    allowed: frozenset[str]
    overrides: tuple[str, ...]
    resumed: bool = False
    after_epoch: Callable[[Mapping[str, float], str], bool] | None = None
    locate: Callable[[DataConfig, Path], "Index | Prepared"] | None = None
    report: bool = True
    own: Mapping[str, Any] = field(default_factory=dict)


def start(
    task: Callable[[Config, Run], None],
    name: str,
    check_more: Check | None = None,
    presets: Sequence[str] = (),
    root: str = ROOT,
) -> None:
    """Run `task` as a Hydra application called `name`, with the arguments of this process.

    `check_more` finds more that is wrong with a composed config; `presets` are overrides that come before the user's.
    `root` is the config that all is composed from; a section of it that is called `name` is the task's own.
    Exits with 2 after a mistake of the user's, 143 after SIGTERM, 130 after SIGINT.
    """
    register()
    OmegaConf.register_new_resolver("keys_help", lambda: _keys_help(name), replace=True)
    arguments = get_args_parser().parse_intermixed_args()
    folders = [schema.config_folder(), *(Path(p) for p in (arguments.config_dir, arguments.config_path) if p)]

    section = None if root == ROOT else name

    def check(raw: dict[str, Any]) -> list[str]:
        shared = {key: value for key, value in raw.items() if key != section}
        return schema.check(shared) + (check_more(raw, allowed) if check_more else [])

    runs = not (arguments.help or arguments.hydra_help or arguments.cfg or arguments.info or arguments.shell_completion)
    named = {"--config-dir": arguments.config_dir, "--config-name": arguments.config_name}
    try:
        if root != ROOT:
            _refuse(name, multirun=arguments.multirun, config_name=arguments.config_name)
            arguments.config_name = root
        allowed = targets.read_allowed(*folders)
        overrides = [normalise(text, folders) for text in arguments.overrides]
        # A config folder in the place of ours, or a rerun, is Hydra's to judge.
        if runs and not (arguments.experimental_rerun or arguments.config_path):
            problems = _check_all(arguments, overrides, folders, check)
            if problems:
                raise MlopsError(problems)
        resumed = None
        if runs and name == "train" and (resumed := _find_resumed(arguments, overrides, folders, check)):
            # Hydra writes what it composed this time beside what it wrote when the run was started.
            overrides.append(f"hydra.run.dir={quoted(str(resume.next_folder(resumed.folder)))}")
        configs = [word for flag, value in named.items() if value for word in (flag, value)]
        # Hydra itself wants its flags and the overrides apart: `a=1 --multirun b=2,3` it would refuse.
        flags = [text for text in sys.argv[1:] if text not in arguments.overrides]
        sys.argv[1:] = [*flags, *presets, *overrides]
        # Hydra then lets exceptions pass instead of printing its own summary of them.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        stopping.listen()
        hydra.main(config_path=str(schema.config_folder()), config_name=root, version_base="1.3")(
            _job(task, name, allowed, configs, resumed, section=section)
        )()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        fail(MlopsError(one_line(error)))
    except MlopsError as error:
        fail(error)
    except OSError as error:
        if (problem := users_to_mend(error)) is None:
            raise
        fail(problem)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None


def _job(
    task: Callable[[Config, Run], None],
    name: str,
    allowed: frozenset[str],
    flags: Sequence[str],
    resumed: resume.Saved | None,
    *,
    section: str | None,
) -> Callable[[DictConfig], None]:
    def job(composed: DictConfig) -> None:
        settings = HydraConfig.get()
        sweep = settings.mode == RunMode.MULTIRUN or "WANDB_SWEEP_ID" in os.environ
        try:
            said = (*flags, *(text.removeprefix("++") for text in settings.overrides.task))
            overrides = resumed.overrides if resumed else said
            folder = _shorten(resumed.folder if resumed else Path(settings.runtime.output_dir))
            config = resumed.config if resumed else _plain(composed)
            own = config.pop(section, {}) if section else {}
            sweep = resumed.sweep if resumed else sweep
            if name == "train" and resumed is None:
                resume.write_composed(folder, config, overrides, sweep)
            with only_one(folder) if name in ("train", "sweep") else nullcontext():
                task(schema.load(config), Run(folder, sweep, allowed, overrides, resumed is not None, own=own))
        except MlopsError as error:
            for problem in error.problems:
                log.error(problem)
            raise SystemExit(2) from None
        except Exception as error:
            if name != "sweep" or (isinstance(error, OSError) and users_to_mend(error) is not None):
                raise
            # Hydra would print all overrides, and with them the database's password.
            log.exception(one_line(error))
            raise SystemExit(1) from None

    # Hydra names the log file and the job after the module of the function it is given.
    job.__module__ = f"mlops.{name}"
    return job


def _find_resumed(
    arguments: argparse.Namespace,
    overrides: Sequence[str],
    folders: Sequence[Path],
    check: Callable[[dict[str, Any]], list[str]],
) -> resume.Saved | None:
    """The run that this command line goes on with, and the config to go on with; None for a new run.

    Raises:
        MlopsError: it asks for another config than that run's, or there is no such run.
    """
    if arguments.multirun:
        if any(text.lstrip("+").startswith("resume=") for text in overrides):
            raise MlopsError("resume: --multirun starts many runs; go on with one of them at a time")
        return None
    compose = composer(arguments.config_name or ROOT, folders)
    composed = compose(list(overrides))
    if isinstance(composed, str) or (wanted := resume.wanted_run(composed)) is None:
        return None
    if steering := [text for text in overrides if re.match(r"[+~]*hydra\.(mode|run|sweep|output_subdir)\b", text)]:
        raise MlopsError([f"{text}: a run that goes on has its folder already; leave it out" for text in steering])

    def explicit_keys(text: str) -> list[str]:
        override = OverridesParser.create().parse_override(text)
        key = override.key_or_group
        if not _is_group(override, folders):
            return [] if key.split(".")[0] == "hydra" else resume.settings_of(_at(composed, key), key)
        if text in saved.overrides:
            return []  # said again, word for word
        without = compose([other for other in overrides if other != text])
        own = resume.settings_of(composed[key], key) if key in composed else []
        if isinstance(without, str):
            return own
        both = dict.fromkeys([*resume.settings_of(composed), *resume.settings_of(without)])
        return [*own, *(name for name in both if name not in own and _at(composed, name) != _at(without, name))]

    folder = resume.find_run(wanted, Path(composed["paths"]["outputs"]))
    saved = resume.read_saved(folder)
    if arguments.config_name and arguments.config_name not in saved.overrides:
        raise MlopsError(
            f"--config-name={arguments.config_name}: the run in {folder} was started without it; leave it out"
        )
    if "://" in wanted:
        saved.config["run"]["mirror"] = resume.mirror_of(wanted, folder)
    merged = resume.merge(saved, overrides, composed, explicit_keys)
    # Start weights have done their part; their file may be gone.
    checked = merged | {
        "model": {**merged["model"], "weights": None},
        "training": {**merged["training"], "freeze_epochs": 0},
    }
    if problems := check(checked if saved.started else merged):
        raise MlopsError([f"{folder}: {problem}" for problem in problems])
    return dataclasses.replace(saved, config=merged)


def _at(node: Any, key: str) -> Any:
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _shorten(folder: Path) -> Path:
    """Relative to here where that is shorter: people copy it from the screen."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def register() -> None:
    """Tell Hydra of the schema and of what our config files call."""
    ConfigStore.instance().store(name="schema", node=OmegaConf.create(schema.defaults()))
    OmegaConf.register_new_resolver("run_id", lambda: secrets.token_hex(2), use_cache=True, replace=True)
    OmegaConf.register_new_resolver("stem", lambda path: Path(str(path)).stem, replace=True)


def _keys_help(name: str) -> str:
    rows = []
    own = schema.settings(schema.SweepConfig, "sweep.") if name == "sweep" else ()
    for key in (*own, *schema.settings()):
        limits = ", ".join(f"{name} {limit:g}" for name, limit in key.limits.items())
        rows.append((key.name, schema.words(key.annotation), f"{key.help}{f' ({limits})' if limits else ''}"))
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"  {name:<{width}}  {text}\n  {'':<{width}}  [{kind}]" for name, kind, text in rows)


def _refuse(name: str, *, multirun: bool, config_name: str | None) -> None:
    """Flags of Hydra's that an entrypoint with a root config of its own has no meaning for."""
    if multirun:
        raise MlopsError(
            f"--multirun: mlops.{name} runs many trials as it is; with mlops.train it is a grid of overrides"
        )
    if config_name:
        raise MlopsError(
            f"--config-name={config_name}: mlops.{name} has a root of its own; name groups, or --config-dir"
        )


def normalise(text: str, folders: Sequence[Path]) -> str:
    """An override of the user's as Hydra takes it, so that it is our check that meets a mistake."""
    return _accept_new_keys(_take_literally(text), folders)


def _accept_new_keys(text: str, folders: Iterable[Path]) -> str:
    """`key=value` as `++key=value`, so that it is our check that meets it and not Hydra's.

    Ours knows the parameters of a `_target_` that no YAML file names, and reports all mistakes at once.
    """
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        return text  # reported with the other mistakes
    name = override.key_or_group
    if override.type != OverrideType.CHANGE or name.split(".")[0] == "hydra" or _is_group(override, folders):
        return text
    return f"++{text}"


def _is_group(override: Override, folders: Iterable[Path]) -> bool:
    name = override.key_or_group
    return "/" in name or override.package is not None or any((folder / name).is_dir() for folder in folders)


def _check_all(
    arguments: argparse.Namespace,
    overrides: list[str],
    folders: Sequence[Path],
    check: Callable[[dict[str, Any]], list[str]],
) -> list[str]:
    """Every problem of this command line and of the files it composes."""
    problems: list[str] = []
    base: list[str] = []
    variants: list[tuple[int, str]] = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            reason = one_line(error).split("See https")[0]
            problems.append(f"{text}: is not `key=value`: {reason}")
            continue
        if arguments.multirun and override.is_sweep_override() and not _is_list_of_values(override):
            continue  # a glob or an interval: Hydra and its sweeper know what it means
        values = _sweep_values(text, override) if arguments.multirun else []
        base.append(values[0] if values else text)
        variants += [(len(base) - 1, value) for value in values[1:]]

    compose = composer(arguments.config_name or ROOT, folders)
    first = compose(base)
    if isinstance(first, str):
        # Hydra names only the first of several, so each is tried alone.
        alone = {text: compose([text]) for text in base}
        problems += [_name(text, result, folders) for text, result in alone.items() if isinstance(result, str)]
        good = [text for text, result in alone.items() if not isinstance(result, str)]
        if len(good) == len(base):  # each is right alone; only together they are not
            return [*problems, first]
        first = compose(good)
        if isinstance(first, str):
            return [*problems, first]
    problems += check(first)
    for position, value in variants:
        result = compose([*base[:position], value, *base[position + 1 :]])
        found = [_name(value, result, folders)] if isinstance(result, str) else check(result)
        problems += [problem for problem in found if problem not in problems]
    return problems


def composer(name: str, folders: Sequence[Path]) -> Callable[[list[str]], dict[str, Any] | str]:
    """A function from overrides to plain values, or to the one line that says why they do not compose.

    Args:
        name: of the root config.
        folders: the config folder, and those that the user has added.
    """
    register()
    # Reading the files anew would be most of the time of a sweep's short trials: what keys are set to comes afterwards.
    composed: dict[tuple[str, ...], DictConfig] = {}

    def read(overrides: tuple[str, ...]) -> DictConfig:
        with hydra.initialize_config_dir(str(schema.config_folder()), version_base="1.3"):
            # Where `hydra.main` puts --config-dir; `hydra.searchpath` would be too late for a --config-name in it.
            search = create_config_search_path(str(schema.config_folder()))
            for folder in folders[1:]:
                search.prepend("command-line", f"file://{folder.absolute()}", anchor="schema")
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2("app", search)
            return hydra.compose(name, overrides=list(overrides))

    def compose(overrides: list[str]) -> dict[str, Any] | str:
        outer = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            choices, keys = _apart(overrides, folders)
            if choices not in composed:
                composed[choices] = read(choices)
            config = copy.deepcopy(composed[choices])
            for key in keys:
                # Just what Hydra does with `++key=value`, once all files are merged.
                OmegaConf.update(config, key.key_or_group, key.value(), merge=True, force_add=True)
            return _plain(config)
        except MlopsError as error:
            return one_line(error)
        # Hydra's own ValueError: a group that is set to something else than a name.
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            return one_line(error.__cause__ or error)
        finally:
            # Of a job that Hydra runs meanwhile, such as a sweep.
            GlobalHydra.instance().hydra = outer

    return compose


def _apart(overrides: Sequence[str], folders: Sequence[Path]) -> tuple[tuple[str, ...], list[Override]]:
    """What chooses files, and what sets keys in what they compose to; all in the first where the order may matter."""
    choices = tuple(text for text in overrides if not text.startswith("++"))
    if any(text.startswith(("+", "~")) for text in choices):
        return tuple(overrides), []
    if any(isinstance(OverridesParser.create().parse_override(text).value(), dict) for text in choices):
        return tuple(overrides), []  # no choice: `training={epochs: 5}` sets keys
    keys = [OverridesParser.create().parse_override(text) for text in overrides if text.startswith("++")]
    if any(
        key.key_or_group.split(".")[0] == "hydra" or key.is_sweep_override() or _is_group(key, folders) for key in keys
    ):
        return tuple(overrides), []
    return choices, keys


def _plain(composed: DictConfig) -> dict[str, Any]:
    try:
        raw = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise MlopsError(f"{error.full_key or 'config'}: {one_line(error)}") from error
    if not isinstance(raw, dict):
        raise MlopsError("config.yaml: must be a mapping of keys")
    return {str(key): value for key, value in raw.items()}


def _sweep_values(text: str, override: Override) -> list[str]:
    if not override.is_sweep_override():
        return []
    start = text.split("=", 1)[0]
    return [f"{start}={value}" for value in override.sweep_string_iterator()]


def _is_list_of_values(override: Override) -> bool:
    return override.is_discrete_sweep() and not isinstance(override.value(), Glob)


def _take_literally(text: str) -> str:
    """`data.group=^[^_]+` with its value quoted: where a key holds text, no shell user should need Hydra's grammar."""
    name, equals, value = text.partition("=")
    if not equals or name.lstrip("+") not in _TEXT_KEYS:
        return text
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        return f"{name}={quoted(value)}"
    # A password with a comma or brackets is no list, and no message shows it as one.
    if name.lstrip("+") == "sweep.storage" and not isinstance(override.value(), str | QuotedString | None):
        return f"{name}={quoted(value)}"
    return text


_TEXT_KEYS = {
    key.name
    for key in (*schema.settings(), *schema.settings(schema.SweepConfig, "sweep."))
    if key.annotation in (str, str | None)
}


def _name(text: str, reason: str, folders: Iterable[Path]) -> str:
    """A bad override in one line; for a choice that does not exist, the choices."""
    group, _, choice = text.lstrip("+~").partition("=")
    group = group.split("@")[0]
    choices = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
    if choices and choice not in choices:
        close = difflib.get_close_matches(choice, choices, n=1)
        hint = f"did you mean {group}={close[0]}? Choices:" if close else "choose one of"
        return f"{text}: no such choice; {hint} {', '.join(choices)}"
    return f"{text.lstrip('+')}: {reason}"
