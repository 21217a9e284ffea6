"""Start weights for transfer learning: `model.weights`, a published name, a file or one in a bucket.

Only training reads them. The checkpoint remembers their name and SHA-256 and holds the trained weights themselves, so
rebuilding asks for neither file nor network.
"""

import contextlib
import logging
import re
import socket
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from mlops import checkpoint, registry, targets
from mlops.errors import MlopsError, one_line
from mlops.files import sha256_of
from mlops.models.build import find_head
from mlops.targets import Target
from mlops.training.weights import differences, read_weights

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Start:
    """Weights to start from.

    Args:
        weights: what was asked for, `DEFAULT` and the `latest` of a published model resolved.
        sha256: of the file that holds them.
        state_dict: tensors by name.
        mean, std: of the pixels (0..1) they were trained on, one a channel; None where that is unknown.
        classes: what the head tells apart, where the file says so (a checkpoint of ours does).
    """

    weights: str
    sha256: str
    state_dict: dict[str, Tensor]
    mean: list[float] | None = None
    std: list[float] | None = None
    classes: list[str] | None = None

    def describe(self) -> dict[str, str]:
        """What a checkpoint says of them."""
        return {"weights": self.weights, "sha256": self.sha256}


@dataclass(frozen=True)
class _Published:
    """Weights that a library offers by name."""

    name: str
    url: str
    file_name: str
    fetch: Callable[[], Path]
    mean: list[float]
    std: list[float]


def check_weights(node: Target, allowed: Collection[str]) -> list[str]:
    """What is wrong with `node["weights"]`, before anything is downloaded."""
    name = node.get("weights")
    try:
        if name is not None and registry.is_address(name):
            with _setting():
                registry.find(name)
        elif name is not None and not Path(name).is_file():
            _choose(name, _published(node, allowed))
    except MlopsError as error:
        return error.problems
    except (RuntimeError, ValueError) as error:  # a library that does not know the network
        return [f"model.weights={name}: cannot be looked up: {one_line(error)}"]
    return []


def read_start(node: Target, allowed: Collection[str]) -> Start | None:
    """The start weights that `node` asks for; None when it asks for none. Downloads a name or an address once.

    Raises:
        MlopsError: there are no such weights, they cannot be downloaded or read, or are not what they should be.
    """
    name = node.get("weights")
    if name is None:
        return None
    published = _published(node, allowed)
    path, where = Path(name), str(Path(name))
    if registry.is_address(name):
        with _setting():
            found = registry.find(name)
            path, where = registry.fetch(found), found.address
    if path.is_file():
        if checkpoint.is_checkpoint(path):
            with registry.named(path, where):
                return _read_checkpoint(path, where)
        tensors, scaling = read_weights(path, f"model.weights={where}").tensors, _statistics(path, published)
        if published and scaling is None:
            log.warning(
                f"model.weights={where}: the published weights of this network were trained on pixels scaled in "
                "different ways and the file does not say which; your data's own mean and standard deviation are used"
            )
        return Start(where, sha256_of(path), tensors, *(scaling or (None, None)))
    known = _choose(name, published)
    try:
        path = known.fetch()
    except Exception as error:  # network libraries raise anything
        raise MlopsError(
            f"model.weights={name}: cannot be downloaded from {known.url}: {one_line(error)[:200]}; without a network, "
            f"bring the file {known.file_name} and set model.weights=PATH, or train from random weights with "
            "model.weights=null training.freeze_epochs=0"
        ) from error
    tensors = read_weights(path, f"model.weights={path}").tensors
    return Start(known.name, sha256_of(path), tensors, known.mean, known.std)


@contextlib.contextmanager
def _setting() -> Iterator[None]:
    """Let problems say which setting they are about."""
    try:
        yield
    except MlopsError as error:
        raise MlopsError([f"model.weights={problem}" for problem in error.problems]) from error


def _read_checkpoint(path: Path, where: str) -> Start:
    kept = checkpoint.read(path)
    try:
        given = kept.metadata["input"]
        return Start(where, sha256_of(path), kept.state_dict, list(given["mean"]), list(given["std"]), kept.classes)
    except (KeyError, TypeError) as error:
        raise MlopsError(f"model.weights={where}: is damaged: it does not say which input it expects") from error


def published_statistics(node: Target, allowed: Collection[str], path: Path) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of the pixels that a file of this network was trained on; None where that is unknown.

    It is known where all weights that the network's library publishes agree, or those with the name of this file.

    Raises:
        MlopsError: the network's name is not allowed, or its library does not know it.
    """
    try:
        return _statistics(path, _published(node, allowed))
    except (RuntimeError, ValueError) as error:
        raise MlopsError(f"model: {node['_target_']}: cannot be looked up: {one_line(error)}") from error


def _statistics(path: Path, published: Sequence[_Published]) -> tuple[list[float], list[float]] | None:
    named = [known for known in published if known.file_name == path.name]
    candidates = named or published
    if len({(*known.mean, *known.std) for known in candidates}) == 1:
        return list(candidates[0].mean), list(candidates[0].std)
    return None


def load_start(model: nn.Module, start: Start, classes: Sequence[str]) -> None:
    """Put start weights into `model`; its head stays as drawn, unless the file's was for the same classes.

    Raises:
        MlopsError: the backbone's tensors differ in name or shape.
    """
    head = find_head(model, len(classes))
    keep_head = start.classes == list(classes)
    wanted = dict(model.state_dict())
    given = {name: t for name, t in start.state_dict.items() if keep_head or not name.startswith(f"{head}.")}
    expected = {name: t for name, t in wanted.items() if keep_head or not name.startswith(f"{head}.")}
    problems = differences(given, expected)
    if problems:
        raise MlopsError(
            f"model.weights={start.weights}: do not fit {type(model).__name__}: {'; '.join(problems)}; give the "
            "weights of this very network, or its parameters and data.image_size as they were"
        )
    model.load_state_dict(given, strict=False)


def _published(node: Target, allowed: Collection[str]) -> list[_Published]:
    """What the library of this network offers, the default first."""
    name = str(node.get("_target_"))
    targets.find(node, "model", allowed)
    if name.startswith("torchvision.models."):
        return _torchvision(name.removeprefix("torchvision.models."))
    if name == "mlops.models.timm_model":
        return _timm(str(node.get("model_name")))
    return []


def _torchvision(builder: str) -> list[_Published]:
    import torchvision.models

    def offer(weights: Any) -> _Published:
        file_name = Path(urlparse(weights.url).path).name
        preset = weights.transforms()
        return _Published(
            str(weights), weights.url, file_name, lambda: _download(weights.url, file_name), preset.mean, preset.std
        )

    kinds = torchvision.models.get_model_weights(builder)
    default = kinds.DEFAULT
    return [offer(default), *(offer(weights) for weights in kinds if weights is not default)]


def _timm(model_name: str) -> list[_Published]:
    try:
        from timm.models import get_pretrained_cfg, list_pretrained
    except ImportError:
        return []  # building the network says so

    def offer(full_name: str) -> _Published:
        found: Any = get_pretrained_cfg(full_name)
        file_name = found.hf_hub_filename or "model.safetensors"
        url = f"https://huggingface.co/{found.hf_hub_id}"
        return _Published(
            full_name,
            url,
            file_name,
            lambda: _download_from_hub(found.hf_hub_id, file_name),
            list(found.mean),
            list(found.std),
        )

    names = list_pretrained(f"{model_name}.*")
    default = get_pretrained_cfg(model_name)
    first = f"{model_name}.{default.tag}" if default is not None and default.tag else None
    return [offer(name) for name in sorted(names, key=lambda name: (name != first, name))]


def _choose(name: str, published: Sequence[_Published]) -> _Published:
    if name == "DEFAULT" and published:
        return published[0]
    for known in published:
        if name in (known.name, known.name.rsplit(".", 1)[-1]):
            return known
    names = [known.name.rsplit(".", 1)[-1] for known in published]
    offers = f"DEFAULT, {', '.join(names)}" if names else "none for this network"
    raise MlopsError(f"model.weights={name}: is no file here, nor published weights of this network ({offers})")


def _download(url: str, file_name: str) -> Path:
    """torch's own cache, so that what other programs downloaded is found; the hash stands in the file's name."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path, match = folder / file_name, re.search(r"-([a-f0-9]{8,})\.", file_name)
    beginning = match[1] if match else ""
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        before = socket.getdefaulttimeout()
        # torch would wait for ever for a host that does not answer.
        socket.setdefaulttimeout(TIMEOUT_SECONDS)
        try:
            torch.hub.download_url_to_file(url, str(path), beginning or None, progress=sys.stderr.isatty())
        finally:
            socket.setdefaulttimeout(before)
    elif not sha256_of(path).startswith(beginning):
        raise ValueError(f"{path} is not what its name says; remove it")
    return path


def _download_from_hub(repository: str, file_name: str) -> Path:
    """Hugging Face's own cache. Its retries are not told one by one; what comes of them is."""
    import huggingface_hub

    utils: Any = huggingface_hub.utils
    utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    return Path(huggingface_hub.hf_hub_download(repository, file_name))
