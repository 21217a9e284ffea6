"""What a checkpoint tells of itself, as a page, as a config to train by again, and beside another one. No torch."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlops import config as schema
from mlops import contract
from mlops.config import shown
from mlops.errors import MlopsError, shorten
from mlops.tables import pairs, to_copy

Story = Mapping[str, Any]
Rows = Iterator[tuple[str, Any]]

_AGAIN = """\
# The settings of a training, as its checkpoint remembers them. To train by them again, as mine/again.yaml:
#   mlops-train --config-dir mine --config-name again
# Overrides and choices of groups (training.epochs=3, augment=none) go on top, as always. Another model takes the
# place of this one when what only this one knows is left out: {another}
defaults:
  - schema
  - hydra_settings
  - _self_
"""
# After the values, so that a choice made on the command line lies above them.
_GROUPS = ("data", "model", "training", "augment", "tracking", "experiment", "debug")
# Words that every YAML reader takes for text where they stand bare.
_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# How many of the times that a run went on elsewhere are shown: the last.
_MOST_PLACES = 3
# What two files may differ in and still be the same: when they were written, in which words the config was asked for,
# and the digest that covers both.
_NOT_COMPARED = ("created", "overrides", "digest", "format")
MISSING = object()


def show_story(path: Path | str, story: Story) -> None:
    """A checkpoint on one page, for a person."""
    pairs(str(path), _results(story))
    pairs("Made from", _origin(path, story))
    if changed := [*_changed_settings(story["config"])]:
        pairs("Settings that differ from the defaults", changed)
    pairs("Made on", _machine(story))


def config_as_yaml(story: Story) -> str:
    """The config as a file that `mlops.train` takes by --config-name, every value as it was resolved.

    Raises:
        MlopsError: it holds what is no setting. Hydra would take some of that (`hydra`, `defaults`) for orders.
    """
    import yaml

    config = schema.complete(story["config"])
    problems = schema.check(config) + [
        f"{key}=???: is what Hydra calls missing, and cannot be written into a config"
        for key, value in _leaves(config)
        if value == "???"
    ]
    if problems:
        raise MlopsError([f"checkpoint: config: {problem}" for problem in problems])

    class Writer(yaml.SafeDumper):  # type: ignore[misc]
        pass

    def text(writer: Any, value: str) -> Any:
        # Hydra's reader knows numbers that YAML's own writer takes for text (1e-5), so all but words are quoted.
        style = None if _BARE.fullmatch(value) else '"'
        return writer.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Writer.add_representer(str, text)
    Writer.ignore_aliases = lambda *_: True
    values = _escaped(config)
    plain = all(isinstance(value, str) and value.isprintable() for value in _strings(values))
    dumped = yaml.dump(values, Dumper=Writer, sort_keys=False, allow_unicode=plain, width=10**6)
    groups = "".join(f"  - optional {group}: null\n" for group in _GROUPS)
    # Only names: any other text could end the comment that it stands in.
    own = [key for key in config["model"] if _NAME.fullmatch(key) and key not in ("_target_", "weights")]
    again = _AGAIN.format(another=" ".join(["model=resnet18", *(f"~model.{key}" for key in own)]))
    return f"{again}{groups}{dumped}"


def differences(first: Story, second: Story) -> dict[str, dict[str, tuple[Any, ...]]]:
    """What differs between two checkpoints: section -> key -> the two values, `MISSING` where one has none.

    Everything that they tell is compared but `created` and `overrides`: config, classes, input, data, code,
    environment, start weights, metrics, and by their digests the weights.
    """
    names = [*first, *(name for name in second if name not in first)]
    found: dict[str, dict[str, tuple[Any, ...]]] = {}
    for name in (name for name in names if name not in _NOT_COMPARED):
        one, other = first.get(name, MISSING), second.get(name, MISSING)
        if one is MISSING or other is MISSING or not contract.same(one, other):
            section, rows = _compare(name, one, other)
            found.setdefault(section, {}).update(rows)
    order = {section: place for place, section in enumerate(_SECTIONS)}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def plain(found: Mapping[str, Mapping[str, tuple[Any, ...]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Differences as JSON has them: `{"a": ..., "b": ...}` for each key, without the one that has none."""
    return {
        section: {
            key: {name: value for name, value in zip("ab", values, strict=True) if value is not MISSING}
            for key, values in rows.items()
        }
        for section, rows in found.items()
    }


def show_differences(first: Path | str, second: Path | str, found: Mapping[str, Mapping[str, tuple[Any, ...]]]) -> None:
    """Two checkpoints side by side, by what differs."""
    if not found:
        same = "weights, config, classes, input, data, code, environment, start, metrics"
        pairs(
            "The same",
            [("", first), ("", second), ("compared", f"{same}; not when and with which words they were made")],
        )
        return
    pairs("Different", [("-", first), ("+", second)])
    for section, rows in found.items():
        pairs(_SECTIONS[section], [(key, _arrow(key, *values)) for key, values in rows.items()])


_SECTIONS = {
    "weights": "Weights",
    "config": "Config",
    "classes": "Classes",
    "input": "Input",
    "data": "Data",
    "start": "Start weights",
    "code": "Code",
    "environment": "Environment",
    "metrics": "Metrics",
    "training": "Training",
}
# Fields that stand in a section of another name.
_IN = {"weights_digest": "weights", "resume_digest": "training", "resume": "training", "history": "metrics"}


def _compare(name: str, one: Any, other: Any) -> tuple[str, dict[str, tuple[Any, ...]]]:
    """The section that a field belongs to, and the keys in it that differ."""
    section = name if name in _SECTIONS else _IN.get(name, "training")
    if name in ("history", "epoch_digests") and isinstance(one, list) and isinstance(other, list):
        rows = zip(one, other, strict=False)
        first = next((i for i, pair in enumerate(rows, start=1) if not contract.same(*pair)), None)
        epochs = {name: (f"{len(one)} epochs", f"{len(other)} epochs")} if len(one) != len(other) else {}
        return section, epochs | ({f"{name}, first that differs": (first, first)} if first else {})
    if isinstance(one, dict) and isinstance(other, dict) and section == name:
        left, right = dict(_leaves(one)), dict(_leaves(other))
        keys = [*left, *(key for key in right if key not in left)]
        return section, {
            key: (left.get(key, MISSING), right.get(key, MISSING))
            for key in keys
            if key not in left or key not in right or not contract.same(left[key], right[key])
        }
    return section, {name: (one, other)}


def _arrow(key: str, one: Any, other: Any) -> str:
    if key.endswith("first that differs"):
        return f"epoch {one}"
    if "digest" in key or "sha256" in key or key == "commit":
        one, other = (value[:12] if isinstance(value, str) else value for value in (one, other))
    if isinstance(one, list) and isinstance(other, list) and len(one) > 3:
        gone, come = [shown(v) for v in one if v not in other], [shown(v) for v in other if v not in one]
        return f"{len(one)} -> {len(other)}{_named('without', gone)}{_named('with', come)}" if gone or come else "order"
    return f"{_brief(one)} -> {_brief(other)}"


def _named(word: str, names: list[str]) -> str:
    return f", {word} {shorten(names, 5)}" if names else ""


def _brief(value: Any) -> str:
    if value is MISSING:
        return "(none)"
    return f"{value:.6g}" if isinstance(value, float) else shown(value)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Rows:
    """Every value below a mapping by its full key, lists as one value."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _strings(values: Any) -> Iterator[str]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield key
            yield from _strings(value)
    elif isinstance(values, list):
        for value in values:
            yield from _strings(value)
    elif isinstance(values, str):
        yield values


def _escaped(values: Any) -> Any:
    """`${` as Hydra writes it where it is meant as text; the backslashes before it count double there."""
    if isinstance(values, dict):
        return {key: _escaped(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_escaped(value) for value in values]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", values) if isinstance(values, str) else values


def _results(story: Story) -> Rows:
    classes, given, metrics = story["classes"], story["input"], story["metrics"]
    config = schema.complete(story["config"])
    yield "recognises", f"{len(classes)} classes: {shorten([shown(name) for name in classes], 8)}"
    for side, title in (("test", "test"), ("val", "validation")):
        if f"{side}_Accuracy" in metrics:
            counts = story["data"].get("counts") or {}
            images = f" of {counts[side]:,} images" if isinstance(counts.get(side), int) else ""
            top5 = f", among the five likeliest {metrics['test_Top5']:.2%}" if f"{side}_Top5" in metrics else ""
            f1 = f", macro F1 {metrics[f'{side}_F1']:.4f}" if f"{side}_F1" in metrics else ""
            yield f"{title} accuracy", f"{metrics[f'{side}_Accuracy']:.2%}{images}{f1}{top5}"
    if story["temperature"] is not None:
        error = f", its probabilities are off by {metrics['test_ECE']:.2%} on average" if "test_ECE" in metrics else ""
        yield "calibration", f"temperature {story['temperature']:.3f}{error}"
    yield from _progress(story, config)
    yield (
        "input",
        f"{given['height']} x {given['width']} RGB, {given['resize']}, {given['filter']}"
        f"{', the box of each picture only' if given['crop'] == 'roi' else ''}",
    )


def _progress(story: Story, config: Story) -> Rows:
    epochs, monitor = config["training"].get("epochs"), config["training"].get("monitor")
    if "adopted" in story:
        yield "adopted", "weights that were trained elsewhere; what is told of their training is what somebody said"
    if "resume" in story:
        if story["resume"].get("finished") is True:
            yield "training", f"ended after {len(story['history'])} epochs; this is what it could have gone on from"
        else:
            done = f"{len(story['history'])} of {shown(epochs)} epochs done, at step {story['step']:,}"
            yield "training", f"{done}; it can go on from here (resume=FOLDER)"
    elif "adopted" not in story:
        ended = "" if story["temperature"] is not None else "; the training has not ended"
        yield "epoch", f"{story['epoch']} of {shown(epochs)}, best {shown(monitor)}{ended}"


def _origin(path: Path | str, story: Story) -> Rows:
    data, code, start, config = story["data"], story["code"], story["start"], story["config"]
    yield "model", shown(config["model"]["_target_"])
    if start:
        yield "started from", f"{start['weights']}, SHA-256 {start['sha256'][:12]}"
    if data["name"] is None:
        yield "data", "not known"
    else:
        images = data["counts"] or {}
        counts = ", ".join(f"{images[split]:,} {split}" for split in ("train", "val", "test") if images.get(split))
        seed = f", split seed {data['split_seed']}{f': {counts}' if counts else ''}"
        yield "data", f"{data['name']}-{data['fingerprint']}{seed}"
    if data["dvc_md5"]:
        revision = data.get("dvc_rev")
        yield "data.dvc", f"{data['dvc_md5']}{f', git {revision[:12]}' if revision else ', not committed'}"
        yield "get that data", to_copy("invoke", "data-pull", "--for", path)
    commit = f"git {code['commit'][:12]}{' with changes' if code['dirty'] else ''}" if code["commit"] else "no git"
    yield "code", f"mlops {code['version']}, {commit}"
    if story["overrides"]:
        yield "command", to_copy("mlops-train", *story["overrides"])


def _changed_settings(config: Story) -> Rows:
    usual = dict(_leaves(schema.defaults()))
    for key, value in _leaves(config):
        # The name of the network stands above.
        if key != "model._target_" and (key not in usual or not contract.same(value, usual[key])):
            yield key, shown(value)


def _machine(story: Story) -> Rows:
    machine = story["environment"]
    yield "machine", f"{machine['platform']}, {machine['device']} with {machine['threads']} threads"
    versions = ("python", "torch", "torchvision", "numpy", "pillow")
    yield "versions", ", ".join(f"{name} {machine[name]}" for name in versions)
    yield "arithmetic", f"{machine['precision']}, {machine['cpu_capability']}"
    places = story.get("resumed", [])
    if len(places) > _MOST_PLACES:
        yield "went on", f"{len(places)} times elsewhere, the last of them:"
    for place in places[-_MOST_PLACES:]:
        yield "went on", f"at step {shown(place.get('step'))} elsewhere; --json says where"
    yield "created", story["created"].replace("T", " ").replace("+00:00", " UTC")
    yield "format", story["format"]
    yield "digest", story["digest"]
