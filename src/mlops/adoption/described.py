"""What the owner of a file of weights says of it: the network, the classes, and how images were prepared for it."""

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlops import config as schema
from mlops import targets
from mlops.errors import MlopsError, one_line, printable, shorten
from mlops.targets import Target
from mlops.training.start import published_statistics


@dataclass(frozen=True)
class Described:
    """What the owner of a file of weights says of it; None is what was not said.

    Args:
        model: a choice of `configshydra/model/`, or the full name of a network.
        parameters: of the network, as `name=value`.
        classes: names in the order of the logits, between commas, or a file of them.
        size: height and width of the images, pixels.
        mean, std: of pixels in 0..1, one number or one a channel between commas.
        resize, filter: as `data.resize` and `data.filter`.
        entry: the key in the file under which the state dict is.
    """

    model: str | None
    parameters: Sequence[str]
    classes: str | None
    size: int | None
    mean: str | None = None
    std: str | None = None
    resize: str | None = None
    filter: str | None = None
    entry: str | None = None


# How a problem with a setting is named where the user set it by an option.
_OPTIONS = {"data.image_size": "--size", "data.resize": "--resize", "data.filter": "--filter"}


def read_node(described: Described, allowed: Collection[str]) -> Target:
    """The network's node of a config, complete and checked against the signature that it names."""
    name = described.model
    choices = {path.stem: path for path in sorted((schema.config_folder() / "model").glob("*.yaml"))}
    if not name:
        raise MlopsError(f"--model: is missing; name {', '.join(choices)}, or a network by its full name")
    if "." not in name and name not in choices:
        full = next((target for target in sorted(targets.MODELS) if target.endswith(f".{name}")), None)
        close = [full] if full else difflib.get_close_matches(name, choices, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise MlopsError(f"--model={name}: no such choice; {hint}Choices: {', '.join(choices)}, or a full name")
    if wrong := [text for text in described.parameters if not text.partition("=")[0] or "=" not in text]:
        raise MlopsError([f"--set={text}: must be name=value, a parameter of the network" for text in wrong])
    try:
        given = OmegaConf.load(choices[name]) if name in choices else {"_target_": name}
        # As in training: a model's file may refer to other settings, as to ${data.image_size}.
        values = schema.defaults() | {"model": {}}
        values["data"]["image_size"] = described.size or values["data"]["image_size"]
        whole = OmegaConf.create(values)
        whole.model = OmegaConf.merge(given, OmegaConf.from_dotlist(list(described.parameters)))
        resolved: Any = OmegaConf.to_container(whole, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise MlopsError(f"--model={name}: cannot be read: {one_line(error)}") from error
    node: Target = resolved["model"]
    if node.get("weights") is not None:
        raise MlopsError(f"--set weights={node['weights']}: the weights are those of the file; leave it out")
    own = {key: value for key, value in node.items() if key != "weights"}
    if problems := targets.check(own, "model", allowed, schema.PROVIDED["model"]):
        raise MlopsError(problems)
    return node


def read_classes(text: str | None) -> list[str]:
    if not text or not text.strip():
        raise MlopsError("--classes: is missing; name all classes in the order of the network's outputs: cats,dogs")
    where, names = f"--classes={schema.shown(text)}", text.split(",")
    if "," not in text and not Path(text).is_file():
        raise MlopsError(f"{where}: is no file here, and one name alone is no choice; name two or more: cats,dogs")
    if Path(text).is_file():
        try:
            content = Path(text).read_text(encoding="utf-8-sig")
            listed = content.lstrip().startswith("[")
            names = json.loads(content) if listed else content.rstrip().split("\n")
        except (OSError, ValueError, RecursionError) as error:
            raise MlopsError(f"{where}: is no text file with a name on each line, nor a JSON list") from error
    problems = []
    if strange := [str(name) for name in names if not isinstance(name, str)]:
        raise MlopsError(f"{where}: {shorten(strange)}: each class must be text, in quotes")
    names = [name.strip() for name in names]
    if blank := [str(position) for position, name in enumerate(names, 1) if not name]:
        problems.append(f"{where}: name {shorten(blank)} is blank; every output of the network needs a name")
    if strange := [printable(name) for name in names if not name.isprintable()]:
        problems.append(f"{where}: {shorten(strange)}: has characters that cannot be shown; rename it")
    if repeated := sorted({name for name in names if name and names.count(name) > 1}):
        problems.append(f"{where}: names {shorten(repeated)} more than once; give each class its own name")
    if len(names) < 2:
        problems.append(f"{where}: holds {len(names)} name; a classifier needs two or more")
    if problems:
        raise MlopsError(problems)
    return names


def read_settings(described: Described) -> dict[str, Any]:
    """The schema's defaults with what was said of the images, as plain values; the network is still missing."""
    missing = "--size: is missing; the height and width of the network's images in pixels, such as 224"
    problems = [missing] if described.size is None else []
    values = schema.defaults()
    given = {"image_size": described.size, "resize": described.resize, "filter": described.filter}
    values["data"] |= {name: value for name, value in given.items() if value is not None}
    for problem in schema.check(values):
        name, equals, rest = problem.partition("=")
        problems.append(f"{_OPTIONS.get(name, name)}{equals}{rest}")
    if problems:
        raise MlopsError(problems)
    return values


def read_scaling(
    described: Described, node: Target | None, allowed: Collection[str], path: Path
) -> tuple[list[float], list[float], list[str]]:
    """Mean and standard deviation a channel, and in words where they come from if nobody said."""
    problems, found = list[str](), list[list[float]]()
    for option, text, lowest in (("--mean", described.mean, 0), ("--std", described.std, 0.001)):
        if text is None:
            continue
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 3):
            problems.append(f"{option}={text}: must be one number, or three between commas: red, green, blue")
        elif not all(lowest <= number <= 1 for number in numbers):
            problems.append(
                f"{option}={text}: must be from {lowest} to 1, for pixels count from 0 to 1; divide by 255 what was "
                "meant for 0 to 255"
            )
        else:
            found.append(numbers * (3 // len(numbers)))
    both = described.mean is not None and described.std is not None
    if described.mean is None and described.std is None:
        if node is None:
            return [], [], []  # that problem comes first
        known = published_statistics(node, allowed, path)
        if known is not None:
            library = "timm" if node["_target_"] == "mlops.models.timm_model" else "torchvision"
            shown = " and ".join(", ".join(f"{number:g}" for number in numbers) for numbers in known)
            return *known, [f"mean and std {shown}, those of {library}'s own weights (--mean, --std)"]
    if not both:
        missing = [option for option, text in (("--mean", described.mean), ("--std", described.std)) if text is None]
        problems.append(
            f"{' and '.join(missing)}: missing; how pixels in 0..1 were scaled "
            "in the training, (pixel - mean) / std, stands in no file: --mean 0 --std 1 where they were not"
        )
    if problems:
        raise MlopsError(problems)
    return found[0], found[1], []


def assumed_fields(described: Described) -> list[str]:
    """The fields of `input` that nobody stated."""
    return [name for name in ("mean", "std", "resize", "filter") if getattr(described, name) is None]


def say_assumed(described: Described, data: Mapping[str, Any]) -> list[str]:
    said, side = [], data["image_size"]
    if described.resize is None:
        said.append(
            f"the whole picture, squashed to {side} x {side} (--resize); trained on its middle only "
            "(CenterCrop), the network finds things smaller here"
        )
    if described.filter is None:
        said.append(f"{data['filter']} resampling, antialiased (--filter)")
    return said
