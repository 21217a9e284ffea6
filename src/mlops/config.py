"""The schema of every setting, and every check that needs no data.

The dataclasses below are the one place where a key, its type, its range and its help are written. Hydra composes
plain values; `load` turns them into these classes and reports all that is wrong at once.
"""

import dataclasses
import difflib
import operator
import re
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlops import geometry, targets
from mlops.errors import MlopsError
from mlops.targets import Target

# The parameters of a `_target_` that the pipeline fills in.
PROVIDED = {"model": ("num_classes", "image_size"), "training.optimizer": ("params",)}

# Data sets of torchvision that `data.dataset` may name; `mlops.data.downloads` knows the layout of each.
DATASETS = (
    "CIFAR10",
    "CIFAR100",
    "DTD",
    "EuroSAT",
    "FashionMNIST",
    "Flowers102",
    "Food101",
    "GTSRB",
    "KMNIST",
    "MNIST",
    "OxfordIIITPet",
    "STL10",
    "SVHN",
)

Monitor = Literal[
    "val_Accuracy",
    "val_Precision",
    "val_Recall",
    "val_F1",
    "val_loss",
    "train_Accuracy",
    "train_Precision",
    "train_Recall",
    "train_F1",
    "train_loss",
]


def goal(metric: str) -> Literal["min", "max"]:
    """Which way a metric is better."""
    return "min" if metric.endswith("_loss") else "max"


def setting(
    default: Any,
    help_: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
) -> Any:
    """A field with its line of help and its range."""
    limits = {"minimum": minimum, "above": above, "maximum": maximum, "below": below}
    metadata = {"help": help_, "limits": {name: limit for name, limit in limits.items() if limit is not None}}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type, help_: str) -> Any:
    """A field that is a dataclass of its own."""
    return field(default_factory=kind, metadata={"help": help_, "limits": {}})


@dataclass(frozen=True)
class SplitConfig:
    val: float = setting(0.1, "share of the images for validation, where the source does not say", above=0, below=1)
    test: float = setting(
        0.1, "share of the images for the final test, where the source does not say", above=0, below=1
    )
    seed: int = setting(0, "draws which groups go where", minimum=0)


@dataclass(frozen=True)
class DataConfig:
    source: Literal["digits", "folder", "csv", "gtsrb", "torchvision"] = setting(
        "digits", "how the images are laid out"
    )
    name: str | None = setting(None, "name of the prepared data; the file name of data.root when null")
    root: str | None = setting(None, "folder, .tar or .zip that holds the images")
    csv: str = setting("labels.csv", "source csv: the table in data.root, with columns path, label, split, group")
    classes: list[str] | None = setting(None, "source csv: the classes in their order; any other label is refused")
    dataset: str | None = setting(None, f"source torchvision: {', '.join(DATASETS)}")
    downloads: str = setting("data/downloads", "source torchvision: where the data sets are kept")
    pull: Literal["never", "auto"] = setting(
        "never", "auto: what data.dvc names and is not in data/ is fetched from its bucket"
    )
    image_size: int = setting(32, "height and width of the prepared images, pixels", minimum=4, maximum=2048)
    resize: geometry.Resize = setting("squash", "squash ignores the aspect ratio, pad keeps it with black borders")
    filter: geometry.Filter = setting("bilinear", "resampling filter, antialiased")
    group: str | None = setting(None, "regular expression on the file name; images that match alike stay in one split")
    roi: bool = setting(False, "use the box Roi.X1 ... Roi.Y2 of each picture only; sources gtsrb and csv")
    duplicates: Literal["refuse", "drop"] = setting(
        "refuse", "pictures that stand in two splits of the source or in two classes, byte for byte"
    )
    limit: int | None = setting(None, "take about this many images: a class-balanced subset of groups", minimum=1)
    max_bad: float = setting(0.001, "share of unreadable images that may be skipped", minimum=0, maximum=1)
    workers: int = setting(0, "processes that decode; 0 is one for each core", minimum=0, maximum=256)
    split: SplitConfig = section(SplitConfig, "how images are parted")


@dataclass(frozen=True)
class ScheduleConfig:
    name: Literal["one_cycle", "cosine", "constant"] = setting("one_cycle", "shape of the learning rate over the run")
    warmup: float | None = setting(
        None, "share of the steps that rise to optimizer.lr; null is 0.3, 0.05 and 0 for the three", minimum=0, below=1
    )


@dataclass(frozen=True)
class TrainingConfig:
    epochs: int = setting(20, "passes over the training images", minimum=1)
    batch_size: int = setting(128, "images a step", minimum=1)
    optimizer: Target = setting({}, "_target_ and its parameters; lr is the highest learning rate of the schedule")
    schedule: ScheduleConfig = section(ScheduleConfig, "the learning rate over the run")
    label_smoothing: float = setting(0.0, "share of the target spread over all classes", minimum=0, below=1)
    monitor: Monitor = setting(
        "val_Accuracy", "metric key that picks the best epoch (of those that tie, the lowest val_loss)"
    )
    class_weights: Literal["balanced"] | None = setting(
        None, "balanced: every class counts alike in the loss, however few its images"
    )
    patience: int | None = setting(None, "stop after this many epochs without a better monitor", minimum=1)
    ema: float = setting(
        0.0,
        "decay of the moving average of the weights, which is then evaluated and kept; 0 is off",
        minimum=0,
        below=1,
    )
    clip_norm: float | None = setting(None, "largest norm of all gradients together", above=0)
    accumulate: int = setting(
        1, "parts that a batch is computed in, for networks that need more memory than there is", minimum=1
    )
    freeze_epochs: int = setting(0, "epochs in which only the head learns, with model.weights", minimum=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "autocast; auto is bf16 where the hardware has it, else fp16 on CUDA and fp32 elsewhere"
    )
    compile: bool = setting(False, "torch.compile the network: minutes at the start, faster steps on a GPU")
    channels_last: bool = setting(True, "keep images and weights in channels-last memory")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    threads: int = setting(0, "CPU threads of torch; 0 is torch's own choice", minimum=0, maximum=1024)
    limit_batches: int | None = setting(None, "stop every epoch and evaluation after this many batches", minimum=1)
    overfit_batches: int = setting(0, "train and validate on the same first batches only; 0 is off", minimum=0)
    save_every: int = setting(
        0, "write last.pth every so many steps, beside the end of each epoch; 0 is off", minimum=0
    )
    require_clean: bool = setting(False, "refuse to train from a git tree with uncommitted changes")
    profile: int = setting(0, "profile this many steps after the first five; 0 is off", minimum=0)


@dataclass(frozen=True)
class AugmentConfig:
    rotate: float = setting(0.0, "largest turn either way, degrees", minimum=0, maximum=180)
    translate: float = setting(0.0, "largest shift either way, share of the side", minimum=0, maximum=1)
    scale: float = setting(0.0, "largest zoom either way, share", minimum=0, below=1)
    shear: float = setting(0.0, "largest shear either way, degrees", minimum=0, below=90)
    crop: float = setting(0.0, "largest share of the area cut away by a random crop", minimum=0, below=1)
    brightness: float = setting(0.0, "largest change of brightness, share", minimum=0, maximum=1)
    contrast: float = setting(0.0, "largest change of contrast, share", minimum=0, maximum=1)
    flip: float = setting(
        0.0, "probability of a left-right flip; off where left and right differ, as on signs", minimum=0, maximum=1
    )
    blur: float = setting(0.0, "largest sigma of a Gaussian blur, pixels", minimum=0, maximum=16)
    noise: float = setting(
        0.0, "largest standard deviation of Gaussian noise, share of the range", minimum=0, maximum=1
    )
    erase: float = setting(0.0, "largest share of the area under a rectangle of one colour", minimum=0, below=1)
    mixup: float = setting(0.0, "alpha of mixup: two images in one, and their labels; 0 is off", minimum=0, maximum=64)
    cutmix: float = setting(
        0.0, "alpha of cutmix: a part of another image, and of its label; 0 is off", minimum=0, maximum=64
    )


@dataclass(frozen=True)
class TrackingConfig:
    mode: Literal["offline", "wandb", "off"] = setting(
        "offline", "W&B: kept on disk, sent as it happens, or not at all"
    )
    project: str = setting("mlops", "W&B project")
    entity: str | None = setting(None, "W&B user or team; your default one when null")


@dataclass(frozen=True)
class PathsConfig:
    processed: str = setting("data/processed", "prepared data")
    outputs: str = setting("outputs", "one folder for every run")
    models: str = setting("models", "models/latest/best_model.pth is the last run that succeeded")


@dataclass(frozen=True)
class RunConfig:
    mirror: str | None = setting(None, "gs://bucket/folder that every save is copied to, for machines that may vanish")


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    seed: int = setting(0, "weights, order and augmentation are drawn from it", minimum=0)
    resume: str | None = setting(None, "go on with a run: its folder in outputs, latest, or gs://bucket/folder/<run>")
    promote: bool = setting(True, "a run that succeeds replaces models/latest/best_model.pth")
    data: DataConfig = section(DataConfig, "which images, and how they are prepared")
    model: Target = setting({}, "_target_ and its parameters")
    training: TrainingConfig = section(TrainingConfig, "the loop")
    augment: AugmentConfig = section(AugmentConfig, "random changes to training images, drawn anew every epoch")
    tracking: TrackingConfig = section(TrackingConfig, "where metrics go beside metrics.jsonl")
    run: RunConfig = section(RunConfig, "what happens beside the training")
    paths: PathsConfig = section(PathsConfig, "folders, relative to where the command runs")


@dataclass(frozen=True)
class SweepConfig:
    """What a sweep on this machine needs beside its file; no trial sees it."""

    file: str = setting("default", "a W&B sweep file: the name of one in configshydra/sweep/, or a path")
    name: str = setting("default", "its folder below outputs/sweeps, and its name in the database")
    storage: str | None = setting(
        None, "a database that several machines share: postgresql://USER:PASSWORD@HOST/NAME; the sweep's own when null"
    )
    jobs: int = setting(1, "trials at the same time, each with its share of the processors", minimum=1, maximum=1024)
    trials: int | None = setting(None, "how many trials in all; run_cap of the file when null", minimum=1)
    seed: int = setting(0, "what is tried is drawn from it; the seed of the training is another", minimum=0)
    refit: int = setting(0, "train the best trial again with so many other seeds; 0 is off", minimum=0, maximum=1000)
    lost_after: float = setting(
        900.0, "seconds without a sign of life after which another machine's trial is taken over", minimum=60
    )
    dry_run: bool = setting(False, "print the commands of the trials, check their settings, and train nothing")


@dataclass(frozen=True)
class Key:
    """One setting: its full name, type, default, help and range."""

    name: str
    annotation: Any
    default: Any
    help: str
    limits: Mapping[str, float]


def settings(kind: type = Config, prefix: str = "") -> Iterator[Key]:
    """Every setting below `kind`, in the order of the schema."""
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        annotation = hints[item.name]
        if dataclasses.is_dataclass(annotation):
            yield from settings(typing.cast(type, annotation), f"{prefix}{item.name}.")
        else:
            default = item.default if item.default is not dataclasses.MISSING else None
            yield Key(prefix + item.name, annotation, default, item.metadata["help"], item.metadata["limits"])


def defaults() -> dict[str, Any]:
    """The schema's default values as a plain nested dict: the first entry of the defaults list."""
    return dataclasses.asdict(Config())


def complete(raw: Mapping[str, Any], kind: type = Config) -> dict[str, Any]:
    """`raw` with the defaults of the settings it does not know: a config of an earlier version."""
    hints = typing.get_type_hints(kind)
    known = dataclasses.asdict(kind()) | dict(raw)
    return {
        name: complete(value, hints[name])
        if dataclasses.is_dataclass(hints.get(name)) and isinstance(value, Mapping)
        else value
        for name, value in known.items()
    }


def load(raw: Mapping[str, Any]) -> Config:
    """Turn composed plain values into a `Config`.

    Raises:
        MlopsError: with every unknown key, wrong type and value out of range.
    """
    problems = check(raw)
    if problems:
        raise MlopsError(problems)
    return typing.cast(Config, _construct(Config, raw))


def check(raw: Mapping[str, Any]) -> list[str]:
    """Unknown keys, wrong types, values out of range, and what only two keys together show. Imports no torch."""
    problems = [*_check_section(Config, raw, "")]
    if not problems:
        problems += _check_together(typing.cast(Config, _construct(Config, raw)))
    return problems


def check_sweep(raw: Mapping[str, Any]) -> list[str]:
    """What is wrong with the settings of a sweep."""
    problems = [*_check_section(SweepConfig, raw, "sweep.")]
    if not problems and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", raw["name"]):
        problems.append(f"sweep.name={shown(raw['name'])}: must be letters, digits, dots, underscores and hyphens")
    return problems


def load_sweep(raw: Mapping[str, Any]) -> SweepConfig:
    """Turn composed plain values into a `SweepConfig`.

    Raises:
        MlopsError: with all that is wrong.
    """
    if problems := check_sweep(raw):
        raise MlopsError(problems)
    return typing.cast(SweepConfig, _construct(SweepConfig, raw))


def check_targets(raw: Mapping[str, Any], allowed: Collection[str]) -> list[str]:
    """All that is wrong with the `_target_` nodes against the signatures they name. Imports what they name."""
    problems = []
    for where, provided in PROVIDED.items():
        node: Any = raw
        for part in where.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(node, Mapping):
            own = {key: value for key, value in node.items() if (where, key) != ("model", "weights")}
            problems += targets.check(own, where, allowed, provided)
    return problems


def inside_target(key: str) -> bool:
    """Whether `key` is a parameter of a `_target_` node, which accepts what its target accepts."""
    return any(key.startswith(f"{node}.") for node in PROVIDED)


def suggest(key: str) -> str:
    """`did you mean ...?` for a key that does not exist; nothing when none is near."""
    known = [*(item.name for item in settings()), "training.optimizer.lr", "training.optimizer.weight_decay"]
    same_leaf = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    by_leaf = {name.rsplit(".", 1)[-1]: name for name in known}
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    close_leaf = [by_leaf[leaf] for leaf in difflib.get_close_matches(key.rsplit(".", 1)[-1], by_leaf, n=1, cutoff=0.7)]
    found = [*same_leaf, *close, *close_leaf]
    return f"did you mean {found[0]}?" if found else "`--help` lists the keys"


def _check_section(kind: type, raw: Any, prefix: str) -> Iterator[str]:
    if not isinstance(raw, Mapping):
        yield f"{prefix.rstrip('.')}={raw}: must be a group of keys"
        return
    hints = typing.get_type_hints(kind)
    metadata = {item.name: item.metadata for item in dataclasses.fields(kind)}
    for name, value in raw.items():
        full = f"{prefix}{name}"
        if name not in hints:
            yield f"{full}={shown(value)}: no such key; {suggest(full)}"
        elif dataclasses.is_dataclass(hints[name]):
            yield from _check_section(typing.cast(type, hints[name]), value, f"{full}.")
        elif expected := targets.mismatch(value, hints[name]):
            yield f"{full}={shown(value)}: must be {expected}"
        elif isinstance(value, (int, float)):
            yield from (f"{full}={value}: must be {words}" for words in _out_of_range(value, metadata[name]["limits"]))
    yield from (f"{prefix}{name}: is missing" for name in hints if name not in raw)


def shown(value: Any) -> str:
    """A value as the user would write it in an override, cut short."""
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _out_of_range(value: float, limits: Mapping[str, float]) -> Iterator[str]:
    # Written as what is inside, so that NaN, which compares as nothing, is outside of all.
    inside: dict[str, tuple[Callable[[float, float], bool], str]] = {
        "minimum": (operator.ge, "at least"),
        "above": (operator.gt, "above"),
        "maximum": (operator.le, "at most"),
        "below": (operator.lt, "below"),
    }
    for name, limit in limits.items():
        holds, wording = inside[name]
        if not holds(value, limit):
            yield f"{wording} {limit:g}"


def _check_together(config: Config) -> Iterator[str]:
    data, split = config.data, config.data.split
    if split.val + split.test >= 1:
        yield f"data.split.val={split.val:g} and data.split.test={split.test:g}: together must leave images to train on"
    if data.source in ("folder", "csv", "gtsrb") and not data.root:
        yield f"data.root=null: data.source={data.source} needs a folder, .tar or .zip of images; set data.root=PATH"
    yield from _check_source(data)
    if data.group is not None:
        try:
            re.compile(data.group)
        except re.error as error:
            yield f"data.group={data.group}: is not a regular expression: {error}"
    if data.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", data.name):
        yield f"data.name={data.name}: must be letters, digits, dots, underscores and hyphens"
    training, weights = config.training, config.model.get("weights")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", training.device):
        yield f"training.device={training.device}: must be auto, cpu, cuda, cuda:<number> or mps"
    if not isinstance(weights, str | None):
        yield f"model.weights={shown(weights)}: must be the name of published weights, a file or null"
    if training.accumulate > 1 and training.batch_size < 2 * training.accumulate:
        yield (
            f"training.accumulate={training.accumulate}: leaves fewer than 2 of training.batch_size="
            f"{training.batch_size} images a part, too few for batch norm; lower the one or raise the other"
        )
    if training.freeze_epochs > training.epochs:
        yield (
            f"training.freeze_epochs={training.freeze_epochs}: is more than training.epochs={training.epochs}; "
            "lower the one or raise the other"
        )
    if training.freeze_epochs and weights is None:
        yield (
            f"training.freeze_epochs={training.freeze_epochs}: model.weights=null leaves nothing worth keeping; set "
            "model.weights, or training.freeze_epochs=0"
        )


def _check_source(data: DataConfig) -> Iterator[str]:
    if data.source == "torchvision" and data.dataset is None:
        yield f"data.dataset=null: data.source=torchvision needs one of {', '.join(DATASETS)}"
    if data.dataset is not None and data.dataset not in DATASETS:
        by_lower = {name.lower(): name for name in DATASETS}
        close = difflib.get_close_matches(data.dataset.lower(), by_lower, n=1)
        hint = f"did you mean {by_lower[close[0]]}? " if close else ""
        yield f"data.dataset={shown(data.dataset)}: no such data set; {hint}Choices: {', '.join(DATASETS)}"
    if data.roi and data.source not in ("gtsrb", "csv"):
        yield f"data.roi=true: data.source={data.source} has no boxes; only gtsrb and csv have"
    if data.classes is not None:
        if data.source != "csv":
            yield f"data.classes={shown(data.classes)}: data.source={data.source} takes its classes from its files"
        repeated = sorted({name for name in data.classes if data.classes.count(name) > 1})
        if repeated or len(data.classes) < 2 or not all(name == name.strip() != "" for name in data.classes):
            yield f"data.classes={shown(data.classes)}: must be two or more names, each once"


def _construct(kind: type, raw: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in raw.items():
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _construct(typing.cast(type, hints[name]), value)
        else:
            values[name] = float(value) if hints[name] is float else value
    return kind(**values)


def config_folder() -> Path:
    """`configshydra/`: inside the installed package, or that of the repository in a checkout."""
    installed = Path(__file__).parent / "configshydra"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configshydra"


def words(annotation: Any) -> str:
    """A type as a reader of `--help` knows it."""
    if typing.get_origin(annotation) is Literal:
        return "|".join(map(str, typing.get_args(annotation)))
    if annotation == Target:
        return "mapping"
    if typing.get_origin(annotation) is list:
        return f"list of {words(typing.get_args(annotation)[0])}"
    if typing.get_args(annotation):
        return " or ".join(words(argument) for argument in typing.get_args(annotation))
    return {type(None): "null"}.get(annotation, getattr(annotation, "__name__", str(annotation)))
