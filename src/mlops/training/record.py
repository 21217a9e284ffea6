"""What a checkpoint says of the run that made it, in plain values. `docs/checkpoint.md` lists every field."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mlops.config import Config, goal
from mlops.data.prepare import Prepared
from mlops.errors import MlopsError
from mlops.provenance import describe_differences
from mlops.training.loop import Metrics
from mlops.training.start import Start

log = logging.getLogger(__name__)


def describe_run(
    config: Config,
    data: Prepared,
    *,
    overrides: Sequence[str],
    code: dict[str, Any],
    environment: dict[str, Any],
    start: Start | None,
) -> dict[str, Any]:
    """All that is known before the first epoch: config, classes, input, start weights, data, code and machine."""
    manifest = data.manifest
    # Resolved, so that the run can be repeated with the same number on a machine with more cores.
    training = dataclasses.replace(config.training, threads=environment["threads"])
    # What concerns one start of a run and not the run.
    config = dataclasses.replace(config, training=training, resume=None)
    return {
        "config": dataclasses.asdict(config),
        "classes": data.classes,
        "input": {
            "height": manifest["image_size"],
            "width": manifest["image_size"],
            "channels": 3,
            # Start weights expect pixels scaled as those that they were trained on.
            "mean": list((start and start.mean) or manifest["mean"]),
            "std": list((start and start.std) or manifest["std"]),
            "resize": manifest["resize"],
            "filter": manifest["filter"],
            "crop": manifest.get("crop"),
        },
        "overrides": list(overrides),
        "start": start.describe() if start else None,
        "data": {
            "name": manifest["name"],
            "fingerprint": data.fingerprint,
            "dvc_md5": data.version.md5 if data.version else None,
            "dvc_rev": data.version.revision if data.version else None,
            "split_seed": config.data.split.seed,
            "counts": {split: sum(counts.values()) for split, counts in manifest["counts"].items()},
        },
        "code": code,
        "environment": environment,
        "temperature": None,
        "reference": None,
    }


def continue_story(now: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """The story of a run that goes on: what `saved` (a last.pth) says, and, where this is other code or another
    machine, that too; `now` is what `describe_run` finds. Both are named before the first step.

    Raises:
        MlopsError: the data is not the one that the run was started with.
    """
    changed = describe_differences(saved["data"], now["data"])
    changed = [line for line in changed if not line.startswith(("name ", "dvc_md5 ", "dvc_rev "))]
    if changed:
        raise MlopsError(
            [
                f"data: {line}: it has changed since the run was started; bring it back, or start a new run"
                for line in changed
            ]
        )
    story = {key: saved[key] for key in now}
    places = [*saved.get("resumed", [])]
    before = places[-1] if places else saved
    differences = [
        *describe_differences(before["environment"], now["environment"]),
        *(f"code {line}" for line in describe_differences(before["code"], now["code"])),
    ]
    if differences:
        log.warning(
            f"the run goes on elsewhere than it was: {', '.join(differences)}; its weights may differ in their last "
            "bits from those of a run that was never stopped"
        )
        places.append({"step": saved["step"], "code": now["code"], "environment": now["environment"]})
    return story | ({"resumed": places} if places else {})


def describe_epoch(metrics: Metrics, history: Sequence[Metrics], steps_per_epoch: int) -> dict[str, Any]:
    """What is known of the epoch whose weights are kept; before the first, `metrics` are empty."""
    epoch = int(metrics["epoch"]) if metrics else 0
    return {
        "metrics": dict(metrics),
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
