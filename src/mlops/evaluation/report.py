"""What a run leaves for people to look at: one page, the same figures as pictures, and the scores as JSON."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from mlops import page
from mlops.data.listing import SPLITS
from mlops.evaluation import figures
from mlops.evaluation.calibration import probabilities
from mlops.evaluation.evaluate import Evaluated
from mlops.evaluation.pictures import Picture, pictures_of
from mlops.files import atomic
from mlops.image import Pixels, shrink
from mlops.tables import commonest_confusions, interval

_MISTAKES, _CONFUSIONS = 24, 15
# Larger ones would make a page of many megabytes.
_LARGEST_PICTURE = 256


@dataclass(frozen=True)
class Mistake:
    """An image, what it is, what the network took it for, and with which probability."""

    pixels: Pixels
    path: str
    true: str
    said: str
    probability: float


def worst_mistakes(found: Evaluated, classes: Sequence[str], temperature: float) -> list[Mistake]:
    """The images that the network is most sure of and wrong about, the surest first; of each group only that one."""
    confidence, said = probabilities(found.logits, temperature).max(dim=1)
    wrong = torch.nonzero(said != found.labels)[:, 0]
    order = wrong[torch.argsort(confidence[wrong], descending=True, stable=True)].tolist()
    surest: dict[str, int] = {}
    for i in order:
        surest.setdefault(found.groups[i], i)
    return [
        Mistake(
            pixels=shrink(found.images[i], _LARGEST_PICTURE),
            path=found.paths[i],
            true=classes[int(found.labels[i])],
            said=classes[int(said[i])],
            probability=float(confidence[i]),
        )
        for i in list(surest.values())[:_MISTAKES]
    ]


def write_report(
    folder: Path,
    story: Mapping[str, Any],
    split: str,
    scores: Mapping[str, Any] | None = None,
    *,
    mistakes: Sequence[Mistake] = (),
    missing: str | None = None,
) -> dict[str, Path]:
    """Write `index.html`, `<split>.json` and the page's figures as .png into `folder`: all of them, or none.

    `story` is everything in a checkpoint but its weights. Without `scores`, the page holds what the story alone tells,
    and `missing` says why. Returns the pictures by name.

    Raises:
        MlopsError: the folder cannot be written to; what was there before is intact.
    """
    pictures = pictures_of(story, scores)
    contents = {f"{name}.png": picture.as_png() for name, picture in pictures.items()}
    contents["index.html"] = _page(
        story, split, scores=scores, mistakes=mistakes, missing=missing, pictures=pictures
    ).encode()
    if scores is not None:
        contents[f"{split}.json"] = json.dumps(scores, indent=1, ensure_ascii=False).encode()
    with ExitStack() as together:
        # The first is renamed into its place only when the last is written.
        for name, content in contents.items():
            together.enter_context(atomic(folder / name)).write_bytes(content)
    return {name: folder / f"{name}.png" for name in pictures}


def _page(
    story: Mapping[str, Any],
    split: str,
    *,
    scores: Mapping[str, Any] | None,
    mistakes: Sequence[Mistake],
    missing: str | None,
    pictures: Mapping[str, Picture],
) -> str:
    config, drawn = story["config"], {name: picture.as_html() for name, picture in pictures.items()}
    created = story["created"].replace("T", " ").replace("+00:00", " UTC")
    adopted = story.get("adopted")
    epoch = "adopted" if adopted else f"epoch {story['epoch']} of {config['training']['epochs']}, made"
    lead = f"{config['model']['_target_']}, {epoch} {created}"
    warning = f'<p class="bad">No pictures and no scores class by class: {page.text(missing)}</p>' if missing else ""
    sections = [("", warning + page.tiles(_tiles(story, scores, split))), ("Training", drawn.get("curves", ""))]
    if scores is not None:
        confusions = commonest_confusions(scores["classes"], scores["confusion_matrix"])
        common = [(f"{true} taken for {said}", f"{count:,}") for count, true, said in confusions[:_CONFUSIONS]]
        table = page.table(("Commonest mistakes", "Images"), common) if common else ""
        drawings = (drawn["confusion_matrix"], drawn["per_class"])
        # Where both are small, one look takes them in.
        classes = page.beside(drawings) if len(scores["classes"]) <= figures.NAMED else "".join(drawings)
        sections += [
            ("Worst mistakes", _show_mistakes(mistakes, scores)),
            ("Class by class", classes + table + page.folded("Precision and recall", _each_class(scores))),
            (
                "Calibration",
                "<p>Of images that the network is 90 % sure of, is it right on 90 %? The nearer the bars end to the "
                "dotted line, the more its probabilities can be relied on. "
                f"Pale bars stand for fewer than {figures.FEW} images.</p>{drawn['reliability']}",
            ),
        ]
    sections += [
        ("Where it comes from", page.table(("", ""), _origin(story))),
        ("Make it again", _reproduce(story)),
        # Of an adopted file's other settings, nobody knows any.
        ("Settings", page.block(yaml.safe_dump({"model": config["model"]})))
        if adopted
        else ("Settings", page.folded("Every setting of the run", page.block(yaml.safe_dump(config)))),
    ]
    what = "an adopted model" if adopted else "report of a training"
    right = f"{scores['accuracy']:.2%} of {scores['n']:,} {split} images right" if scores else what
    return page.page(f"{adopted['file'] if adopted else story['data']['name']}: {right}", lead, sections)


def _tiles(story: Mapping[str, Any], scores: Mapping[str, Any] | None, split: str) -> Iterator[tuple[str, str]]:
    if story.get("adopted"):
        # Instead of scores, which nobody has measured: what it tells apart.
        yield "classes", f"{len(story['classes']):,}"
        yield "height and width of its images, pixels", f"{story['input']['height']} x {story['input']['width']}"
    if scores is None:
        for side, name in (("test", "test"), ("val", "validation")):
            if f"{side}_Accuracy" in story["metrics"]:
                yield f"{name} accuracy", f"{story['metrics'][f'{side}_Accuracy']:.2%}"
                yield f"{name} macro F1", f"{story['metrics'][f'{side}_F1']:.4f}"
        return
    yield f"accuracy; {interval(scores)}", f"{scores['accuracy']:.2%}"
    yield "macro F1, the mean over the classes", f"{scores['macro_f1']:.4f}"
    if scores["top5_accuracy"] is not None:
        yield "right among the five likeliest", f"{scores['top5_accuracy']:.2%}"
    yield f"calibration error, {scores['ece_before']:.2%} before temperature scaling", f"{scores['ece']:.2%}"
    yield f"images of {split}, {len(scores['classes']):,} classes", f"{scores['n']:,}"


def _show_mistakes(mistakes: Sequence[Mistake], scores: Mapping[str, Any]) -> str:
    wrong = scores["n"] - sum(row[i] for i, row in enumerate(scores["confusion_matrix"]))
    if not mistakes:
        return f"<p>None in {scores['n']:,} images.</p>"
    shown = f"{wrong:,} in {scores['n']:,} images"
    if wrong > len(mistakes):
        one = ", one of each group" if scores["n_groups"] < scores["n"] else ""
        shown += f"; the {len(mistakes)} surest{one}"
    lines = [(m.pixels, (f"{m.true}", f"taken for {m.said}", f"{m.probability:.1%} sure", m.path)) for m in mistakes]
    return f"<p>{shown}. Where the network is sure, the label may be what is wrong.</p>{page.pictures(lines)}"


def _each_class(scores: Mapping[str, Any]) -> str:
    rows = [
        (name, *(f"{row[metric]:.4f}" for metric in ("precision", "recall", "f1")), f"{row['n']:,}")
        for name, row in scores["per_class"].items()
    ]
    return page.table(("Class", "Precision", "Recall", "F1", "Images"), rows)


def _origin(story: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    data, code, machine, given = story["data"], story["code"], story["environment"], story["input"]
    if adopted := story.get("adopted"):
        yield "adopted from", f"{adopted['file']}, SHA-256 {adopted['sha256']}, by mlops {adopted['by']}"
        yield "trained on", "unknown; another program made the weights"
        yield "classes", ", ".join(story["classes"])
    else:
        counts = ", ".join(f"{data['counts'][split]:,} {split}" for split in SPLITS)
        yield "data", f"{data['name']}-{data['fingerprint']}, split seed {data['split_seed']}: {counts}"
    yield "input", f"{given['height']} x {given['width']} RGB, {given['resize']}, {given['filter']}"
    commit = f"git {code['commit']}{' with changes' if code['dirty'] else ''}" if code["commit"] else "no git"
    yield "code", f"mlops {code['version']}, {commit}"
    yield (
        "machine",
        f"{machine['platform']}, {machine['device']} with {machine['threads']} threads, {machine['precision']}",
    )
    yield "versions", f"Python {machine['python']}, torch {machine['torch']}, NumPy {machine['numpy']}"


def _reproduce(story: Mapping[str, Any]) -> str:
    code = story["code"]
    if adopted := story.get("adopted"):
        return (
            "<p>Another program trained these weights, so nothing here trains them again. mlops adopt makes this "
            f"checkpoint from {page.text(adopted['file'])}.</p>"
        )
    if (overrides := story.get("overrides")) is None:
        return "<p>The file does not say with which command it was made; its settings are below.</p>"
    lines = [f"git checkout {shlex.quote(code['commit'])}"] if code["commit"] else []
    if not any(text.startswith("training.threads=") for text in overrides):
        # Another number of threads would give other last bits.
        overrides = [*overrides, f"training.threads={story['environment']['threads']}"]
    lines += [" \\\n    ".join(["python -m mlops.train", *map(shlex.quote, overrides)])]
    changed = "<p>Its code had changes that are in no commit.</p>" if code["dirty"] else ""
    return changed + page.block("\n".join(lines))
