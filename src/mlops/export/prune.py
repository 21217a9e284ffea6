"""Structured pruning: whole channels of a network go, and a short training mends what that cost.

Channels that depend on each other go together (Fang et al., "DepGraph: Towards Any Structural Pruning", 2023, by the
library torch-pruning); of each such group, those with the smallest weights.
"""

import copy
import logging
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from mlops import targets
from mlops.checkpoint import Checkpoint
from mlops.config import Config
from mlops.data.augment import build_augment
from mlops.data.batches import Batches
from mlops.data.keyed import key
from mlops.data.prepare import Prepared
from mlops.errors import MlopsError, one_line
from mlops.evaluation.calibration import fit_temperature
from mlops.evaluation.evaluate import evaluate_split, predict_split
from mlops.models.build import find_head
from mlops.progress import bar
from mlops.training.average import follow
from mlops.training.device import pick_autocast, pick_device
from mlops.training.freeze import build_mode
from mlops.training.loop import Metrics, Position, fit, make_step
from mlops.training.loss import build_loss
from mlops.training.record import best_epoch
from mlops.training.schedule import build_schedule

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

log = logging.getLogger(__name__)

# Kernels compute so many channels at a time: a SignNet of 24, 48 and 88 channels was slower than the whole one of 32,
# 64 and 128, and one of 16, 48 and 96 was 1.7 times as fast.
_STEP = 16
# What is left of a trained network is near where it should be, so it goes on in smaller steps: GTSRB without 30 % of
# its channels came after three epochs to 98.57 % with a fifth of the learning rate, and to 98.10 % with all of it.
_SHARE_OF_RATE = 0.2


@dataclass(frozen=True)
class Pruned:
    """A smaller network, its temperature, and what was done: `told` is what the file says as `pruned`."""

    model: nn.Module
    temperature: float
    metrics: Metrics
    told: dict[str, Any]


def prune(
    checkpoint: Checkpoint, model: nn.Module, data: Prepared, *, share: float, epochs: int, allowed: Collection[str]
) -> Pruned:
    """`model` without `share` (0 to 1) of the channels of every layer, fine-tuned on `data` for `epochs` epochs.

    Trained with the settings of the checkpoint's own training, but a fifth of its learning rate, its schedule over
    these epochs; the best epoch is kept.
    The same weights come out every time where that training gives the same ones. `model` itself is left as it is.

    Raises:
        MlopsError: the network cannot be pruned, or does not train.
    """
    config, given, count = checkpoint.config, checkpoint.metadata["input"], len(checkpoint.classes)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.training.threads or threads)
    try:
        device = _device(config)
        batches = {
            split: Batches.of(data, split, device, mean=given["mean"], std=given["std"]) for split in ("train", "val")
        }
        before = evaluate_split(copy.deepcopy(model).to(device), batches["val"].evaluation(), "val", count)
        pruned, sizes = remove_channels(model, share, given["height"], given["width"], count, seed=config.seed)
        # Cut weights lie in memory as they were cut.
        layout = torch.channels_last if config.training.channels_last else torch.contiguous_format
        pruned.to(memory_format=layout).to(device)
        kept, metrics = _finetune(
            pruned, config, batches=batches, data=data, epochs=epochs, allowed=allowed, device=device
        )
        temperature = fit_temperature(*predict_split(kept, batches["val"].evaluation()))
    finally:
        torch.set_num_threads(threads)
    told = {
        "share": share,
        **sizes,
        "epochs": epochs,
        "seed": config.seed,
        "accuracy": {
            "before": before["val_Accuracy"],
            "after": metrics["val_Accuracy"],
            "images": len(batches["val"]),
            "of": "validation images",
        },
    }
    return Pruned(kept.to("cpu").eval(), temperature, metrics, told)


def remove_channels(
    model: nn.Module, share: float, height: int, width: int, num_classes: int, *, seed: int
) -> tuple[nn.Module, dict[str, dict[str, int]]]:
    """A copy of `model` without `share` of its channels, rounded to whole sixteens; the head keeps its outputs.

    Returns it with its `weights` and its `operations` (multiplications an image), before and after.

    Raises:
        MlopsError: torch-pruning is not installed, or does not know what depends on what in this network.
    """
    try:
        import torch_pruning  # type: ignore[import-untyped]
    except ImportError as error:
        raise MlopsError("--prune: needs torch-pruning; uv sync, or pip install torch-pruning") from error
    pruned = copy.deepcopy(model).cpu().eval()
    try:
        head = find_head(pruned, num_classes)
    except MlopsError as error:
        raise MlopsError(
            f"--prune: the last layer of {type(model).__name__} is not as wide as there are classes ({num_classes}), "
            "so which one gives the answers, and must stay, is not known; export it without"
        ) from error
    layers = {
        name: module
        for name, module in pruned.named_modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and name != head
    }
    ratios = {layer: 1 - _left(_width(layer), share) / _width(layer) for layer in layers.values()}
    example = torch.zeros(1, 3, height, width)
    torch.manual_seed(key(seed, "prune"))
    try:
        with warnings.catch_warnings():
            # Of parameters that stand in no layer, such as a scale for each channel: they are pruned along the last of
            # their axes that has a length, which is the channels in all networks of torchvision and timm.
            warnings.simplefilter("ignore", UserWarning)
            operations, _ = torch_pruning.utils.count_ops_and_params(pruned, example)
            torch_pruning.pruner.MagnitudePruner(
                pruned,
                example,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=share,
                pruning_ratio_dict=ratios,
                ignored_layers=[pruned.get_submodule(head)],
            ).step()
            left, _ = torch_pruning.utils.count_ops_and_params(pruned, example)
        with torch.inference_mode():
            shape = tuple(pruned(example.expand(2, -1, -1, -1)).shape)
    except Exception as error:  # of a network of somebody's, torch-pruning may raise anything
        raise MlopsError(f"--prune: {type(model).__name__} cannot be pruned: {one_line(error)}") from error
    if shape != (2, num_classes):
        raise MlopsError(
            f"--prune: {type(model).__name__} gives {shape} for 2 images after pruning; it cannot be pruned"
        )
    weights, fewer = (sum(p.numel() for p in network.parameters()) for network in (model, pruned))
    if fewer == weights:
        raise MlopsError(
            f"--prune={share:g}: takes no channel of {type(model).__name__}, whose layers keep whole sixteens of them; "
            "ask for more"
        )
    sizes = {
        "weights": {"before": weights, "after": fewer},
        "operations": {"before": int(operations), "after": int(left)},
    }
    return pruned, sizes


def _width(layer: nn.Module) -> int:
    return int(getattr(layer, "out_features", getattr(layer, "out_channels", 1)))


def _left(width: int, share: float) -> int:
    """How many of `width` channels stay: whole sixteens where there is one."""
    step = _STEP if width >= _STEP else 1
    return max(step, round(width * (1 - share) / step) * step)


def _device(config: Config) -> torch.device:
    try:
        return pick_device(config.training.device)
    except MlopsError:
        return pick_device("auto")  # trained where there was another one


def _finetune(
    model: nn.Module,
    config: Config,
    *,
    batches: dict[str, Batches],
    data: Prepared,
    epochs: int,
    allowed: Collection[str],
    device: torch.device,
) -> tuple[nn.Module, Metrics]:
    """Train as `train.py` does, but for what a short run has no use for. Returns the best epoch and its metrics."""
    settings, seed, count = config.training, config.seed, len(data.classes)
    steps = batches["train"].steps(settings.batch_size)
    in_batch = min(settings.batch_size, len(batches["train"]))
    _, autocast, scaler = pick_autocast(settings.precision, device)
    kept, after_update = follow(model, settings.ema)
    parameters = list(model.parameters())
    optimizer = cast("Optimizer", targets.build(settings.optimizer, "training.optimizer", allowed, parameters))
    for group in optimizer.param_groups:
        group["lr"] *= _SHARE_OF_RATE
    highest = optimizer.param_groups[0]["lr"]
    schedule = build_schedule(settings.schedule, epochs * steps)
    augment = build_augment(config.augment, count)
    step = make_step(
        forward=model,
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
        set_mode=build_mode(model, count, 0),
        after_update=after_update,
        accumulate=min(settings.accumulate, max(in_batch // 2, 1)),
        clip_norm=settings.clip_norm,
        seed=seed,
    )
    history, best = list[Metrics](), dict[str, "Tensor"]()
    position = Position()

    def after_epoch(metrics: Metrics) -> None:
        history.append(metrics)
        log.info(f"fine-tuning: epoch {len(history)}/{epochs}, val_Accuracy {metrics['val_Accuracy']:.2%}")
        if best_epoch(history, settings.monitor) is metrics:
            best.update({name: tensor.clone() for name, tensor in kept.state_dict().items()})

    with bar("fine-tuning", epochs * steps * in_batch) as progress:
        fit(
            position,
            epochs=epochs,
            batches=lambda epoch, first: batches["train"].training(epoch, settings.batch_size, seed, augment, first),
            step=step,
            learning_rate=lambda epoch, place: float(highest * schedule(epoch * steps + place)),
            evaluate=lambda: evaluate_split(kept, batches["val"].evaluation(), "val", count),
            after_step=lambda images, loss: progress.advance(
                images, lambda: f"loss {float(loss):.3f}", f"fine-tuning, epoch {position.epoch + 1}/{epochs}"
            ),
            after_epoch=after_epoch,
            stop=lambda: False,
            num_classes=count,
        )
    kept.load_state_dict(best)
    return kept, best_epoch(history, settings.monitor)
