"""From a checkpoint and images to scores or predictions, with nothing else at hand."""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mlops import config as schema
from mlops import targets
from mlops.checkpoint import Checkpoint, read, rebuild
from mlops.config import DataConfig
from mlops.data.batches import EVALUATION_BATCH, Batches
from mlops.data.decode import Unreadable, decode_all
from mlops.data.downloads import is_fetched
from mlops.data.listing import SPLITS, Listing
from mlops.data.prepare import Index, Prepared, build_index, open_prepared, prepare
from mlops.errors import MlopsError, one_line, shorten
from mlops.evaluation.calibration import probabilities, temperature_of
from mlops.evaluation.evaluate import Evaluated, evaluate_prepared, predict_split
from mlops.evaluation.given import check_group, list_given
from mlops.evaluation.predict import Prediction, geometry, predict_paths, warn_of_crop
from mlops.evaluation.report import worst_mistakes, write_report
from mlops.evaluation.scores import score
from mlops.image import Pixels
from mlops.progress import bar


def evaluate_checkpoint(
    path: Path,
    data: Path | None,
    split: str | None,
    processed: Path,
    allow: Collection[str],
    *,
    group: str | None = None,
) -> dict[str, Any]:
    """Scores of the checkpoint on a split of its own data, test when left out, or on images of `data`.

    Of `data`, all images are scored, or those that it puts into `split` itself. `group` is a regular expression on
    their file names, as `data.group` is in training. `allow` are names of networks that may be built beside those of
    the config folder.

    Raises:
        MlopsError: the checkpoint or the data cannot be read, or do not fit each other.
    """
    _check_split(split or "test")
    if group is not None:
        check_group(group, data)
    checkpoint = read(path)
    temperature, model = temperature_of(checkpoint.metadata), _model(checkpoint, allow)
    if data is None:
        own = _open(find_own_data(checkpoint, processed), processed)
        found = _evaluate_own(model, checkpoint, own, split or "test")
        return found.scores(checkpoint.classes, temperature)
    listing = list_given(data, checkpoint, split, group)
    logits, labels = _predict_listing(model, checkpoint, listing)
    groups = [entry.group for entry in listing.entries]
    source = str(data) if split is None else f"{data} ({split})"
    return {"data": source, **score(logits, labels, checkpoint.classes, groups=groups, temperature=temperature)}


def report_checkpoint(path: Path, output: Path, split: str, processed: Path, allow: Collection[str]) -> str | None:
    """Write the report of a checkpoint on a split of its own data into `output`.

    Returns why that data could not be had, where the report had to be made from the file alone.

    Raises:
        MlopsError: the checkpoint cannot be read or rebuilt, its data is here but cannot be used, the report cannot be
            written, or would replace one with scores by one without.
    """
    _check_split(split)
    checkpoint = read(path)
    temperature, model = temperature_of(checkpoint.metadata), _model(checkpoint, allow)
    try:
        own = find_own_data(checkpoint, processed)
    except MlopsError as error:
        if any((output / f"{name}.json").exists() for name in SPLITS):
            raise MlopsError(
                f"{output}: holds a report with scores, and one without would replace it: {one_line(error)}; "
                "name another folder with --output for a page without scores"
            ) from error
        # What the file itself tells (curves, metrics, config) is worth more than an error.
        write_report(output, checkpoint.metadata, split, missing=one_line(error))
        return one_line(error)
    found = _evaluate_own(model, checkpoint, _open(own, processed), split)
    scores = found.scores(checkpoint.classes, temperature)
    write_report(
        output, checkpoint.metadata, split, scores, mistakes=worst_mistakes(found, checkpoint.classes, temperature)
    )
    return None


def predict_images(
    path: Path, images: Sequence[Path], allow: Collection[str]
) -> tuple[list[Prediction], list[tuple[str, str]]]:
    """The predictions for image files and for those in folders, and (path, reason) of what could not be read."""
    checkpoint = read(path)
    temperature, model = temperature_of(checkpoint.metadata), _model(checkpoint, allow)
    given = checkpoint.metadata["input"]

    def classify(pixels: Pixels) -> npt.NDArray[np.floating[Any]]:
        chances: npt.NDArray[np.floating[Any]] = probabilities(_predict(model, checkpoint, pixels), temperature).numpy()
        return chances

    warn_of_crop(given)
    return predict_paths(images, geometry(given), checkpoint.classes, classify)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise MlopsError(f"--split={split}: must be one of {', '.join(SPLITS)}")


def _evaluate_own(model: nn.Module, checkpoint: Checkpoint, data: Prepared, split: str) -> Evaluated:
    images, labels, device = data.images(split), data.labels(split), torch.device("cpu")
    return evaluate_prepared(model, data, split, Batches(images, labels, **_statistics(checkpoint), device=device))


def _predict_listing(model: nn.Module, checkpoint: Checkpoint, listing: Listing) -> tuple[Tensor, Tensor]:
    unknown = sorted(set(listing.classes) - set(checkpoint.classes))
    if unknown:
        raise MlopsError(
            f"{listing.tree.label}: the checkpoint knows no class {shorten(unknown)}; "
            f"it knows {shorten(checkpoint.classes, 10)}"
        )
    names = [entry.path for entry in listing.entries]
    labels = [checkpoint.classes.index(listing.classes[entry.label]) for entry in listing.entries]
    boxes = [entry.box for entry in listing.entries]
    decoded = decode_all(listing.tree, names, geometry(checkpoint.metadata["input"]), workers=0, boxes=boxes)
    pixels, logits, bad = list[Pixels](), list[Tensor](), list[str]()
    with bar("scoring", len(names)) as progress:
        for name, result in zip(names, decoded, strict=True):
            progress.advance(1)
            if isinstance(result, Unreadable):
                bad.append(f"{listing.tree.label}/{name}: {result.reason}; mend or remove it")
            else:
                pixels.append(result.pixels)
            # A batch at a time, so that memory stays flat; after a bad one there will be no score.
            if len(pixels) == EVALUATION_BATCH and not bad:
                logits.append(_predict(model, checkpoint, np.stack(pixels)))
                pixels.clear()
            elif bad:
                pixels.clear()
    if bad:
        # A score over fewer images than were asked for would look like the score that was asked for.
        raise MlopsError(bad)
    if pixels:
        logits.append(_predict(model, checkpoint, np.stack(pixels)))
    return torch.cat(logits), torch.tensor(labels)


def _predict(model: nn.Module, checkpoint: Checkpoint, pixels: Pixels) -> Tensor:
    batches = Batches(
        pixels,
        np.zeros(len(pixels), dtype=np.int64),
        **_statistics(checkpoint),
        device=torch.device("cpu"),
    )
    return predict_split(model, batches.evaluation())[0]


def find_own_data(checkpoint: Checkpoint, processed: Path) -> Path | Index:
    """The folder of the prepared data that the checkpoint names, or what it can be made again from.

    Raises:
        MlopsError: neither is here.
    """
    wanted = checkpoint.metadata["data"]
    if adopted := checkpoint.metadata.get("adopted"):
        raise MlopsError(
            f"checkpoint: was adopted from {adopted['file']}, so it has no data of its own; name labelled pictures: "
            "mlops evaluate CHECKPOINT DATA"
        )
    name = f"{wanted['name']}-{wanted['fingerprint']}"
    # The name comes out of a file that anybody may have made; it must not lead elsewhere.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise MlopsError(f"checkpoint: names its data {name!r}, which is no name of a prepared folder")
    if (processed / name).exists():
        return processed / name
    # Where to, and whether, gigabytes are fetched is the user's to say, not the checkpoint's.
    settings = dataclasses.replace(checkpoint.config.data, downloads=DataConfig().downloads, pull="never")
    if settings.source == "torchvision" and not is_fetched(settings):
        raise MlopsError(
            f"{settings.downloads}: does not hold torchvision's {settings.dataset}, the data of this checkpoint; "
            f"fetch it with: invoke preprocess-data -o data=torchvision -o data.dataset={settings.dataset}"
        )
    index = build_index(settings)
    if index.fingerprint != wanted["fingerprint"]:
        raise MlopsError(
            f"{index.listing.tree.label}: is not the data this checkpoint was trained on ({wanted['fingerprint']}, "
            f"found {index.fingerprint}); {_bring_back(wanted)}, or name a folder to evaluate"
        )
    return index


def _bring_back(wanted: Mapping[str, Any]) -> str:
    return "`invoke data-pull --for CHECKPOINT` brings it" if wanted["dvc_md5"] else "bring that data back"


def _open(found: Path | Index, processed: Path) -> Prepared:
    return open_prepared(found) if isinstance(found, Path) else prepare(found, processed)


def _model(checkpoint: Checkpoint, allow: Collection[str]) -> nn.Module:
    return rebuild(checkpoint, targets.read_allowed(schema.config_folder()).union(allow))


def _statistics(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"mean": checkpoint.metadata["input"]["mean"], "std": checkpoint.metadata["input"]["std"]}
