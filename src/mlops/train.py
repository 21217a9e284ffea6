"""`python -m mlops.train`: images -> `best_model.pth`. The run, from top to bottom.

Imports wait until they are needed: a typo is answered before torch is there, and the processes that decode images,
which import this module when they start, stay light.
"""

import copy
import dataclasses
import logging
import math
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlops import config as schema
from mlops import stopping, targets
from mlops.config import Config
from mlops.errors import MlopsError
from mlops.files import atomic, writing_to

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from mlops.data.batches import Batch, Batches
    from mlops.data.prepare import Prepared
    from mlops.entrypoint import Run
    from mlops.mirror import Mirror
    from mlops.tracking import Tracker
    from mlops.training.loop import Metrics
    from mlops.training.saves import Saves

log = logging.getLogger(__name__)

# What floating point and dropout leave of zero after `training.overfit_batches`.
OVERFITTED_LOSS = 0.05


def train(config: Config, run: "Run") -> None:  # noqa: PLR0915 - the run is meant to stand on one page
    """Prepare the data, train, keep the best epoch, score it on the test split, and write its whole story."""
    import torch

    from mlops import checkpoint, tables
    from mlops.checkpoint import BEST, LAST
    from mlops.data.augment import build_augment
    from mlops.data.batches import Batches, evaluation_batch
    from mlops.data.locate import locate
    from mlops.data.prepare import Index, prepare
    from mlops.evaluation.evaluate import evaluate_split
    from mlops.mirror import Mirror
    from mlops.models.build import build_model, check_model
    from mlops.progress import bar
    from mlops.provenance import check_clean, describe_code, describe_environment
    from mlops.tracking import Tracker
    from mlops.training.average import follow
    from mlops.training.device import compile_model, pick_autocast, pick_device
    from mlops.training.freeze import build_mode
    from mlops.training.loop import Metrics, check_finite, fit, make_step
    from mlops.training.loss import build_loss
    from mlops.training.profile import profiling
    from mlops.training.record import continue_story, describe_run
    from mlops.training.saves import Saves
    from mlops.training.schedule import build_schedule
    from mlops.training.start import load_start, read_start
    from mlops.training.state import Bounds

    settings, seed, size = config.training, config.seed, config.data.image_size
    last = run.folder / LAST
    saved = checkpoint.read(last) if run.resumed and last.exists() else None
    if saved and saved.metadata["resume"]["finished"]:
        log.info(f"{run.folder}: this run has finished; there is nothing to go on with")
        return
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    device = pick_device(settings.device)
    wanted = saved.metadata["environment"]["precision"] if saved else settings.precision
    precision, autocast, scaler = pick_autocast(wanted, device)
    code = describe_code()
    check_clean(code, settings.require_clean)
    environment = describe_environment(str(device), torch.get_num_threads(), precision)

    found = (run.locate or locate)(config.data, Path(config.paths.processed))
    classes = found.classes
    if problems := check_model(config.model, run.allowed, num_classes=len(classes), image_size=size):
        raise MlopsError(problems)
    # Before any image is decoded: start weights may not be there, or not fit. A run that goes on has its own.
    start = read_start(config.model, run.allowed) if saved is None else None
    model = build_model(
        config.model,
        run.allowed,
        num_classes=len(classes),
        image_size=size,
        channels_last=settings.channels_last,
        seed=seed,
    )
    if start:
        load_start(model, start, classes)
    model.to(device)
    data = prepare(found, Path(config.paths.processed)) if isinstance(found, Index) else found

    story = describe_run(config, data, overrides=run.overrides, code=code, environment=environment, start=start)
    if saved:
        story = continue_story(story, saved.metadata)
    mean, std = story["input"]["mean"], story["input"]["std"]
    overfit, limit = settings.overfit_batches, settings.overfit_batches or settings.limit_batches
    train_limit, evaluation_limit = (
        (limit * settings.batch_size, limit * evaluation_batch(size, size)) if limit else (None, None)
    )

    def load(split: str, most: int | None) -> Batches:
        return Batches.of(data, split, device, mean=mean, std=std, limit=most)

    batches = {
        "train": load("train", train_limit),
        "val": load("train", train_limit) if overfit else load("val", evaluation_limit),
        "test": load("test", evaluation_limit),
    }
    steps, in_batch = batches["train"].steps(settings.batch_size), min(settings.batch_size, len(batches["train"]))
    images = settings.epochs * steps * in_batch

    # What is evaluated and kept: the network, or the moving average of its weights.
    kept, after_update = follow(model, settings.ema)

    def build_optimizer(parameters: "list[nn.Parameter]") -> "Optimizer":
        return cast("Optimizer", targets.build(settings.optimizer, "training.optimizer", run.allowed, parameters))

    optimizer = build_optimizer(list(model.parameters()))
    schedule = build_schedule(settings.schedule, settings.epochs * steps)
    highest = optimizer.param_groups[0]["lr"]
    step = make_step(
        forward=compile_model(model, autocast) if settings.compile else model,
        optimizer=optimizer,
        schedule=schedule,
        loss_function=build_loss(
            data.manifest["counts"]["train"],
            class_weights=settings.class_weights,
            label_smoothing=settings.label_smoothing,
            device=device,
        ),
        autocast=autocast,
        scaler=scaler,
        set_mode=build_mode(model, len(classes), settings.freeze_epochs * steps),
        after_update=after_update,
        # Batch norm needs two images in each part.
        accumulate=min(settings.accumulate, max(in_batch // 2, 1)),
        clip_norm=settings.clip_norm,
        seed=seed,
    )
    augment = build_augment(config.augment, len(classes))
    latest = Path(config.paths.models) / "latest" / "best_model.pth"
    promoted = config.promote and not run.sweep
    if promoted:
        # A folder that cannot be written is said now, not after the training.
        with writing_to(latest.parent):
            latest.parent.mkdir(parents=True, exist_ok=True)

    def learning_rate(epoch: int, position: int) -> float:
        return float(highest * schedule(epoch * steps + position))

    mirror = Mirror(config.run.mirror, run.folder)
    saves = Saves(
        run.folder,
        story,
        monitor=settings.monitor,
        steps_per_epoch=steps,
        model=model,
        kept=kept,
        optimizer=optimizer,
        scaler=scaler,
        learning_rate=learning_rate,
        sweep=run.sweep,
        after_save=mirror.copy,
    )
    if saved:
        saves.restore(saved, Bounds(settings.epochs, steps, in_batch, len(classes)), build_optimizer)
        log.info(f"going on in {run.folder} after epoch {saves.position.epoch}, step {saves.position.step} of {steps}")
    ended = False  # by whoever listens
    position, before = saves.position, (saves.position.epoch * steps + saves.position.step) * in_batch

    def out_of_patience() -> bool:
        if settings.patience is None or not saves.history:
            return False
        # A frozen backbone has not had its turn yet.
        waited = saves.history[-1]["epoch"] - max(saves.best["epoch"], settings.freeze_epochs)
        if waited >= settings.patience:
            log.info(f"{settings.monitor} is no better for {settings.patience} epochs (training.patience): stopping")
        return waited >= settings.patience

    with (
        mirror,
        Tracker(
            config.tracking,
            run.folder,
            dataclasses.asdict(config) | {"data_version": story["data"]},
            settings.monitor,
            run_id=saves.tracker_id,
            history=saves.history,
        ) as tracker,
        bar("training", images, done=before) as progress,
        profiling(settings.profile, run.folder / "profile", device) as profiler,
    ):
        saves.tracker_id = tracker.run_id
        if tracker.run_id:
            mirror.link(tracker.run_id)
        mirror.copy(run.folder / ".hydra")
        if saves.history:
            tracker.log_summary(saves.best)

        def save_if_asked_to_stop() -> None:
            if stopping.heard():
                if stopping.heard() == signal.SIGTERM:
                    tracker.mark_preempting()
                saves.save_last()
                stopping.check()

        def after_step(count: int, loss: "Tensor") -> None:
            if settings.save_every and (position.epoch * steps + position.step) % settings.save_every == 0:
                saves.save_last()
            save_if_asked_to_stop()
            progress.advance(count, lambda: loss_shown(loss), f"epoch {position.epoch + 1}/{settings.epochs}")

        def loss_shown(loss: "Tensor") -> str:
            # Fetched from the device anyway, a few times a second: a run that has failed need not end its epoch.
            if not math.isfinite(value := float(loss)):
                check_finite(position, learning_rate)
            return f"loss {value:.3f}"

        def evaluate() -> Metrics:
            def watched() -> "Iterator[Batch]":
                for batch in batches["val"].evaluation():
                    save_if_asked_to_stop()
                    yield batch

            return evaluate_split(kept, watched(), "val", len(classes))

        def after_epoch(metrics: Metrics) -> None:
            best = saves.end_epoch(metrics)
            tracker.log_epoch(metrics, saves.best)
            mirror.copy(run.folder / "metrics.jsonl")
            saves.save_last()
            log.info(tables.epoch_line(metrics, settings.epochs) + ("  best so far" if best else ""))
            nonlocal ended
            ended = run.after_epoch is not None and run.after_epoch(metrics, saves.digests[-1])
            save_if_asked_to_stop()

        log.info(
            f"training {config.model['_target_']} on {len(batches['train']):,} images of {len(classes)} classes, "
            f"{device} with {torch.get_num_threads()} threads, {precision}, in {run.folder}"
        )
        started = time.monotonic()
        with stopping.deferred():
            if saved is None:
                # From here on there is something to go on from.
                saves.save_last()
            fit(
                position,
                epochs=settings.epochs,
                batches=lambda epoch, first: profiler.batches(
                    batches["train"].training(epoch, settings.batch_size, seed, augment, first)
                ),
                step=profiler.step(step),
                learning_rate=learning_rate,
                evaluate=evaluate,
                after_step=after_step,
                after_epoch=after_epoch,
                stop=lambda: ended or out_of_patience(),
                num_classes=len(classes),
            )
        seconds = time.monotonic() - started
        if ended:
            return
        if settings.overfit_batches and (loss := saves.history[-1]["val_loss"]) > OVERFITTED_LOSS:
            raise MlopsError(
                f"training.overfit_batches={settings.overfit_batches}: the loss is still {loss:.3f} after "
                f"{len(saves.history)} epochs; the network, its learning rate or the labels have a fault"
            )

        final, images_scored = finish(
            saves,
            kept=kept,
            data=data,
            batches=batches,
            tracker=tracker,
            mirror=mirror,
            latest=latest if promoted else None,
            report=run.report,
        )

    trained = len(saves.history) * steps * in_batch - before
    log.info(f"trained {trained:,} images in {seconds:.1f} s, {trained / seconds:,.0f} images/s")
    if run.after_epoch is None:  # else whoever listens has a result of their own to show
        kept_as = latest if promoted else run.folder / BEST
        tables.show_result(run.folder, kept_as, final, images_scored, settings)


def finish(
    saves: "Saves",
    *,
    kept: "nn.Module",
    data: "Prepared",
    batches: "Mapping[str, Batches]",
    tracker: "Tracker",
    mirror: "Mirror",
    latest: Path | None,
    report: bool,
) -> tuple["Metrics", int]:
    """What comes after the last epoch: score the best one, complete its file, put it into use, write the report.

    `latest` is where the model in use stands; None where this one is not to be it. Returns the metrics of the best
    epoch and on the test split, and how many images that has. A run that is killed in here does all of it again.
    """
    from mlops import checkpoint
    from mlops.checkpoint import BEST
    from mlops.evaluation.calibration import fit_temperature
    from mlops.evaluation.evaluate import evaluate_prepared, predict_split
    from mlops.evaluation.report import worst_mistakes, write_report
    from mlops.evaluation.scores import overall_metrics

    path, classes = saves.folder / BEST, data.classes
    # A copy, for the run's own weights go into last.pth once more; read back, so that what is scored is what was kept.
    best = copy.deepcopy(kept)
    best.load_state_dict(checkpoint.read(path).state_dict)
    temperature = fit_temperature(*predict_split(best, batches["val"].evaluation()))
    tested = evaluate_prepared(best, data, "test", batches["test"])
    scores = tested.scores(classes, temperature)
    final = saves.best | overall_metrics(scores)
    story = saves.finish(final, temperature)
    if latest is not None:
        # Before the report: a figure that fails, or a disk that is full by now, must not cost the model.
        put_into_use(path, latest)
    tracker.log_summary(final)
    if report:
        folder, mistakes = saves.folder / "report", worst_mistakes(tested, classes, temperature)
        pictures = write_report(folder, story, "test", scores, mistakes=mistakes)
        mirror.copy(folder)
        tracker.log_pictures(pictures | {"index": folder / "index.html"})
    tracker.log_checkpoint(path, checkpoint.read_metadata(path))
    saves.save_last(finished=True)
    return final, int(scores["n"])


def put_into_use(best: Path, latest: Path) -> None:
    """Let `latest` be a copy of the checkpoint `best`: what commands without a file's name open."""
    with writing_to(latest.parent):
        latest.parent.mkdir(parents=True, exist_ok=True)
    with atomic(latest) as temporary:
        shutil.copyfile(best, temporary)
    # What `mlops report` and `mlops export` wrote there was about the model before.
    (latest.parent / "model.onnx").unlink(missing_ok=True)
    for stale in latest.parent.glob("report*/"):
        shutil.rmtree(stale, ignore_errors=True)


def check_targets(raw: dict[str, Any], allowed: frozenset[str]) -> list[str]:
    """What is wrong with the model and the optimizer, before any data is looked at."""
    problems = schema.check_targets(raw, allowed)
    if problems or schema.check(raw):
        return problems
    import torch

    from mlops.models.build import check_model
    from mlops.training.start import check_weights

    config = schema.load(raw)
    problems += check_weights(config.model, allowed)
    try:
        targets.build(config.training.optimizer, "training.optimizer", allowed, [torch.zeros(1, requires_grad=True)])
    except MlopsError as error:
        problems += error.problems
    # The classes are counted later; ten stand in for them where the model does not name a number itself.
    classes = config.model.get("num_classes", 10)
    return problems + check_model(config.model, allowed, num_classes=classes, image_size=config.data.image_size)


def main() -> None:
    """The entrypoint."""
    from mlops import entrypoint

    entrypoint.start(train, "train", check_targets)


if __name__ == "__main__":
    main()
