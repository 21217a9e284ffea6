"""`python -m mlops.sweep`: a W&B sweep file, run by this machine alone. The sweep, from top to bottom.

Imports wait until they are needed: the workers import this module when they start.
"""

import logging
import os
import secrets
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops import config as schema
from mlops.config import Config, SweepConfig
from mlops.errors import MlopsError, one_line

if TYPE_CHECKING:
    from mlops.entrypoint import Run
    from mlops.sweeps.space import Space
    from mlops.sweeps.summary import Summary
    from mlops.sweeps.trials import Row, Trials
    from mlops.trial import TrialTrainer

log = logging.getLogger(__name__)


def sweep(config: Config, run: "Run") -> None:  # noqa: PLR0915 - the sweep is meant to stand on one page
    """Read the file, check what it composes to, run the trials, put the best into use, and write the page."""
    from mlops.checkpoint import BEST
    from mlops.sweeps.engine import Engine, workplace
    from mlops.sweeps.live import Live
    from mlops.sweeps.pool import Worker
    from mlops.sweeps.reader import read
    from mlops.sweeps.trials import open_trials
    from mlops.train import put_into_use
    from mlops.trial import TrialTrainer, check_all

    settings = schema.load_sweep(run.own)
    space = read(find_file(settings.file))
    flags, folders, shared = split_overrides(run.overrides)
    check_shared(space, shared)
    most = number_of_trials(space, settings)
    threads = (
        ()
        if config.training.threads or "training.threads" in space.parameters
        else (f"training.threads={processors() // settings.jobs or 1}",)
    )
    variants = [[*shared, *threads, *space.overrides(values)] for values in space.extremes()]
    trainer = TrialTrainer(
        tuple(folders), flags, run.allowed, space.metric, settings.name, tracked=config.tracking.mode != "off"
    )
    if settings.dry_run:
        dry_run(space, seed=settings.seed, most=most, shared=[*shared, *threads], trainer=trainer, variants=variants)
        return

    # Processes that are started are told them, and the database's password is nobody else's.
    sys.argv[1:] = []

    def start_worker(slot: int) -> Worker:
        return Worker(slot, trainer, run.folder / f"worker-{slot}.log")

    def run_all(trials: "Trials", most: int) -> None:
        with Live(trials, most, settings.jobs) as view:
            Engine(trials, place, most=most, view=view).run()

    # A worker warms up while the settings are checked here; what only the network's code knows, it checks.
    with workplace(settings.jobs, start_worker) as place:
        if problems := check_all(variants, folders, space.metric):
            raise MlopsError([f"{space.path}: {problem}" for problem in problems])
        trials = open_trials(
            space,
            name=settings.name,
            folder=run.folder,
            storage=settings.storage,
            shared=shared,
            each=threads,
            seed=settings.seed,
            lost_after=settings.lost_after,
            new_folder=partial(new_folder, Path(config.paths.outputs)),
        )
        if problems := place.check(variants, warm_up):
            raise MlopsError([f"{space.path}: {problem}" for problem in problems])
        log.info(
            f"sweep {settings.name}: {most:,} trials of {space.path} by {space.method}, {settings.jobs} at a time, in "
            f"{trials.label}"
        )
        run_all(trials, most)
        best = trials.best()
        if best is None:
            raise MlopsError(
                f"{trials.label}: no trial of the sweep {settings.name} is complete; what went wrong is in "
                f"{run.folder / 'sweep.log'} and in the trials' train.log"
            )
        checkpoint = best.folder / BEST
        if config.promote and checkpoint.is_file():
            put_into_use(checkpoint, Path(config.paths.models) / "latest" / BEST)
        again = None
        if settings.refit:
            again = open_refit(trials, best, settings, config, run.folder)
            try:
                run_all(again, settings.refit)
            except MlopsError as error:
                log.warning(f"with other seeds: {one_line(error)}")
        with place.reporting(checkpoint) if checkpoint.is_file() else nullcontext():
            summary = summarise(trials, best, again, flags)
            page = summary.write(run.folder)
    summary.show(page)
    if not checkpoint.is_file():
        log.warning(f"trial {best.number}, the best, is in {best.folder} on {best.host}: that machine puts it into use")


def warm_up() -> None:
    """Import what draws the page: there is time now."""
    import optuna.visualization.matplotlib  # noqa: F401
    import sklearn.ensemble  # noqa: F401

    import mlops.sweeps.summary  # noqa: F401


def split_overrides(words: Sequence[str]) -> tuple[tuple[str, ...], list[Path], list[str]]:
    """The flags before the overrides, the config folders these name beside ours, and what is for the trials."""
    flags = words[:2] if words and words[0] == "--config-dir" else ()
    folders = [schema.config_folder(), *map(Path, flags[1:])]
    own = ("sweep.", "engine=", "engine@", "hydra.", "hydra/")
    shared = [word for word in words[len(flags) :] if not word.lstrip("+~").startswith(own)]
    return tuple(flags), folders, shared


def check_shared(space: "Space", shared: Sequence[str]) -> None:
    """Whether the overrides of all trials leave the search to the file.

    Raises:
        MlopsError: one is of a parameter, or would let all trials go on with one run.
    """
    problems = []
    for text in shared:
        name = text.lstrip("+~").split("=", 1)[0]
        if name in space.parameters:
            problems.append(f"{text}: {space.path} searches {name}; leave it out here, or there")
        if name == "resume":
            problems.append(f"{text}: a sweep goes on by itself when it is started again; leave it out")
    if problems:
        raise MlopsError(problems)


def find_file(name: str) -> Path:
    """The sweep file of a name in `configshydra/sweep/`, or at a path.

    Raises:
        MlopsError: there is none.
    """
    folder = schema.config_folder() / "sweep"
    named = folder / f"{name}.yaml"
    if Path(name).suffix in (".yaml", ".yml") or os.sep in name:
        return Path(name)
    if named.is_file():
        return named.relative_to(Path.cwd()) if named.is_relative_to(Path.cwd()) else named
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise MlopsError(f"sweep.file={name}: no such sweep file; name one of {known}, or a path that ends in .yaml")


def number_of_trials(space: "Space", settings: SweepConfig) -> int:
    """How many trials there are at most.

    Raises:
        MlopsError: nothing says so.
    """
    asked = settings.trials or space.run_cap
    if space.method == "grid":
        return min(space.grid_size, asked or space.grid_size)
    if asked is None:
        raise MlopsError(
            f"{space.path}: run_cap is missing, and method={space.method} has no end; set -o sweep.trials=30"
        )
    return asked


def processors() -> int:
    """Cores that this process may use; as with torch, two threads of one core count once."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def new_folder(outputs: Path, number: int) -> Path:
    """The run folder of a trial: named as Hydra's --multirun does."""
    return outputs / datetime.now().strftime(f"%Y-%m-%d/%H-%M-%S-{secrets.token_hex(2)}-{number}")  # noqa: DTZ005


def dry_run(
    space: "Space",
    *,
    seed: int,
    most: int,
    shared: Sequence[str],
    trainer: "TrialTrainer",
    variants: Sequence[Sequence[str]],
) -> None:
    """Print the command of each trial that is known beforehand, and check its settings, and those of `variants`.

    Raises:
        MlopsError: with all that is wrong with them.
    """
    from mlops.sweeps.plan import plan
    from mlops.tables import to_copy

    planned = plan(space, seed, most)
    commands = [[*shared, *space.overrides(values)] for values in planned]
    for overrides in commands:
        print(to_copy("python", "-m", "mlops.train", *trainer.flags, *overrides))  # noqa: T201
    if problems := trainer.check([*commands, *variants]):
        raise MlopsError([f"{space.path}: {problem}" for problem in problems])
    if len(planned) < most:
        log.info(f"and {most - len(planned)} more, which depend on the results of these")
    log.info(f"{len(planned)} trials checked, none started")
    if space.agents:
        log.info(f"for W&B's agents: {to_copy('wandb', 'sweep', space.path)}")


def open_refit(trials: "Trials", best: "Row", settings: SweepConfig, config: Config, folder: Path) -> "Trials":
    """The best trial again with other seeds, as a sweep of its own."""
    from mlops.sweeps.refit import refit_space
    from mlops.sweeps.trials import open_trials

    own = int(best.values.get("seed", config.seed))
    log.info(f"training trial {best.number} again with {settings.refit} other seeds (sweep.refit)")
    return open_trials(
        refit_space(trials.space, max(config.seed, own) + 1),
        name=f"{settings.name}-refit-{best.number}",
        folder=folder,
        storage=settings.storage,
        shared=[text for text in best.overrides if not text.lstrip("+").startswith("seed=")],
        each=(),
        seed=0,
        lost_after=settings.lost_after,
        new_folder=partial(new_folder, Path(config.paths.outputs)),
    )


def summarise(trials: "Trials", best: "Row", again: "Trials | None", flags: Sequence[str]) -> "Summary":
    """All that there is to say about the sweep."""
    from mlops.sweeps.refit import refitted
    from mlops.sweeps.summary import Summary
    from mlops.tables import to_copy

    command = to_copy("python", "-m", "mlops.train", *flags, *best.overrides)
    seeds = refitted(again.rows(), trials.space.metric) if again else None
    return Summary(trials.study.study_name, trials.space, trials.rows(), best, seeds, command)


def check_sweep(raw: dict[str, Any], _allowed: frozenset[str]) -> list[str]:
    """What is wrong with the settings of the sweep itself."""
    return schema.check_sweep(raw["sweep"])


def main() -> None:
    """The entrypoint."""
    from mlops import entrypoint

    entrypoint.start(sweep, "sweep", check_sweep, presets=["hydra.help.app_name=mlops.sweep"], root="sweep_config")


if __name__ == "__main__":
    main()
