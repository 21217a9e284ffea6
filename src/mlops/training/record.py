"""What a checkpoint says of the run that made it, in plain values. `docs/checkpoint.md` lists every field."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from mlops.config import Config, goal
from mlops.data.prepare import Prepared
from mlops.provenance import describe_code, describe_environment
from mlops.training.loop import Metrics


def describe_run(
    config: Config,
    data: Prepared,
    *,
    overrides: Sequence[str],
    start: dict[str, str] | None,
    mean: Sequence[float],
    std: Sequence[float],
    device: str,
    threads: int,
    precision: str,
) -> dict[str, Any]:
    """All that is known before the first epoch: config, classes, input, start weights, data, code and machine."""
    manifest = data.manifest
    # Resolved, so that the run can be repeated with the same number on a machine with more cores.
    training = dataclasses.replace(config.training, threads=threads)
    return {
        "config": dataclasses.asdict(dataclasses.replace(config, training=training)),
        "classes": data.classes,
        "input": {
            "height": manifest["image_size"],
            "width": manifest["image_size"],
            "channels": 3,
            "mean": list(mean),
            "std": list(std),
            "resize": manifest["resize"],
            "filter": manifest["filter"],
            "crop": manifest.get("crop"),
        },
        "epoch_digests": [],
        "overrides": list(overrides),
        "start": start,
        "data": {
            "name": manifest["name"],
            "fingerprint": data.fingerprint,
            "dvc_md5": manifest["source"]["dvc_md5"],
            "split_seed": config.data.split.seed,
            "counts": {split: sum(counts.values()) for split, counts in manifest["counts"].items()},
        },
        "code": describe_code(),
        "environment": describe_environment(device, threads, precision),
        "temperature": None,
        "reference": None,
    }


def describe_epoch(metrics: Metrics, history: Sequence[Metrics], steps_per_epoch: int) -> dict[str, Any]:
    """What is known of the epoch whose weights are kept."""
    epoch = int(metrics["epoch"])
    return {
        "metrics": metrics,
        "history": list(history),
        "epoch": epoch,
        "step": epoch * steps_per_epoch,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def best_epoch(history: Sequence[Metrics], monitor: str) -> Metrics:
    """The best epoch of a history by one metric.

    Of epochs that tie, the one with the lower `val_loss`: a small validation split is soon without a mistake, and then
    the surer network is the better.
    """
    sign = -1 if goal(monitor) == "min" else 1
    return max(history, key=lambda metrics: (sign * metrics[monitor], -metrics["val_loss"]))
