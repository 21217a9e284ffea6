"""`python -m mlops.train`: images -> `best_model.pth`. The run, from top to bottom.

Imports wait until they are needed: a typo is answered before torch is there, and the processes that decode images,
which import this module when they start, stay light.
"""

import dataclasses
import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops import config as schema
from mlops import targets
from mlops.config import Config
from mlops.errors import MlopsError
from mlops.files import atomic, writing_to

if TYPE_CHECKING:
    from torch import Tensor

    from mlops.entrypoint import Run

log = logging.getLogger(__name__)

# What floating point and dropout leave of zero after `training.overfit_batches`.
OVERFITTED_LOSS = 0.05


def train(config: Config, run: "Run") -> None:  # noqa: PLR0915 - the run is meant to stand on one page
    """Prepare the data, train, keep the best epoch, score it on the test split, and write its whole story."""
    import torch

    from mlops import checkpoint, tables
    from mlops.data.augment import build_augment
    from mlops.data.batches import EVALUATION_BATCH, Batches
    from mlops.data.prepare import build_index, prepare
    from mlops.evaluation.evaluate import evaluate_split, predict_split
    from mlops.evaluation.report import write_report
    from mlops.evaluation.scores import overall_metrics, score
    from mlops.models.build import build_model, check_model
    from mlops.progress import bar
    from mlops.tracking import Tracker
    from mlops.training.device import pick_autocast, pick_device
    from mlops.training.loop import Metrics, fit, make_step
    from mlops.training.record import describe_epoch, describe_run
    from mlops.training.schedule import build_schedule

    settings, seed, size = config.training, config.seed, config.data.image_size
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    device = pick_device(settings.device)
    precision, autocast = pick_autocast(settings.precision, device)
    allowed = targets.read_allowed(schema.config_folder())

    index = build_index(config.data)
    classes = index.classes
    if problems := check_model(config.model, allowed, num_classes=len(classes), image_size=size):
        raise MlopsError(problems)
    data = prepare(index, Path(config.paths.processed))

    overfit, limit = settings.overfit_batches, settings.overfit_batches or settings.limit_batches
    train_limit, evaluation_limit = (limit * settings.batch_size, limit * EVALUATION_BATCH) if limit else (None, None)
    batches = {
        "train": Batches.of(data, "train", device, train_limit),
        "val": Batches.of(data, *(("train", device, train_limit) if overfit else ("val", device, evaluation_limit))),
        "test": Batches.of(data, "test", device, evaluation_limit),
    }
    steps = batches["train"].steps(settings.batch_size)
    images = settings.epochs * steps * min(settings.batch_size, len(batches["train"]))

    model = build_model(
        config.model,
        allowed,
        num_classes=len(classes),
        image_size=size,
        channels_last=settings.channels_last,
        seed=seed,
    ).to(device)
    step = make_step(
        model=model,
        optimizer=targets.build(settings.optimizer, "training.optimizer", allowed, model.parameters()),
        schedule=build_schedule(settings.schedule, settings.epochs * steps),
        loss_function=torch.nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing),
        autocast=autocast,
        seed=seed,
    )
    augment = build_augment(config.augment)
    story = describe_run(config, data, device=str(device), threads=torch.get_num_threads(), precision=precision)
    latest = Path(config.paths.models) / "latest" / "best_model.pth"
    promoted = config.promote and not run.sweep
    if promoted:
        # A folder that cannot be written is said now, not after the training.
        with writing_to(latest.parent):
            latest.parent.mkdir(parents=True, exist_ok=True)
    path, history = run.folder / "best_model.pth", list[Metrics]()

    def best() -> Metrics:
        # A small validation split is soon without a mistake; of epochs that tie, the surer one is the better.
        sign = -1 if schema.goal(settings.monitor) == "min" else 1
        return max(history, key=lambda metrics: (sign * metrics[settings.monitor], -metrics["val_loss"]))

    with (
        Tracker(config.tracking, run.folder, dataclasses.asdict(config), settings.monitor) as tracker,
        bar("training", images) as progress,
    ):

        def after_step(epoch: int, count: int, loss: "Tensor") -> None:
            progress.advance(count, lambda: f"loss {float(loss):.3f}", f"epoch {epoch + 1}/{settings.epochs}")

        def after_epoch(metrics: Metrics) -> None:
            history.append(metrics)
            tracker.log_epoch(metrics, best())
            if best() is metrics:
                checkpoint.save(path, model.state_dict(), story | describe_epoch(metrics, history, steps))
            log.info(tables.epoch_line(metrics, settings.epochs) + ("  best so far" if best() is metrics else ""))

        log.info(
            f"training {config.model['_target_']} on {len(batches['train']):,} images of {len(classes)} classes, "
            f"{device} with {torch.get_num_threads()} threads, {precision}, in {run.folder}"
        )
        started = time.monotonic()
        fit(
            epochs=settings.epochs,
            batches=lambda epoch: batches["train"].training(epoch, settings.batch_size, seed, augment),
            step=step,
            evaluate=lambda: evaluate_split(model, batches["val"].evaluation(), "val", len(classes)),
            after_step=after_step,
            after_epoch=after_epoch,
            num_classes=len(classes),
        )
        seconds = time.monotonic() - started
        if settings.overfit_batches and (loss := history[-1]["val_loss"]) > OVERFITTED_LOSS:
            raise MlopsError(
                f"training.overfit_batches={settings.overfit_batches}: the loss is still {loss:.3f} after "
                f"{settings.epochs} epochs; the network, its learning rate or the labels have a fault"
            )

        # Read back, so that what is scored is what was kept.
        model.load_state_dict(checkpoint.read(path).state_dict)
        scores = score(*predict_split(model, batches["test"].evaluation()), classes)
        final = best() | overall_metrics(scores)
        checkpoint.save(path, model.state_dict(), story | describe_epoch(final, history, steps))
        report = run.folder / "report"
        write_report(report, scores, history, int(final["epoch"]))
        tracker.log_summary(final)
        tracker.log_pictures({file.stem: file for file in (*report.glob("*.png"), *report.glob("index.html"))})
        tracker.log_checkpoint(path, checkpoint.read_metadata(path))

    if promoted:
        with atomic(latest) as temporary:
            shutil.copyfile(path, temporary)
    log.info(f"trained {images:,} images in {seconds:.1f} s, {images / seconds:,.0f} images/s")
    tables.show_result(run.folder, latest if promoted else path, final, scores["n"], settings)


def check_targets(raw: dict[str, Any]) -> list[str]:
    """What is wrong with the model and the optimizer, before any data is looked at."""
    allowed = targets.read_allowed(schema.config_folder())
    problems = schema.check_targets(raw, allowed)
    if problems or schema.check(raw):
        return problems
    import torch

    from mlops.models.build import check_model

    config = schema.load(raw)
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
