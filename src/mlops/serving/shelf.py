"""The models of one worker: loaded, warmed up, swapped for newer ones while requests run, and asked by name."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlops import onnx_file
from mlops.errors import MlopsError
from mlops.inference import OnnxModel, Probabilities
from mlops.serving.batching import Array, Batcher, fitting
from mlops.serving.metrics import Metrics
from mlops.serving.problem import Problem, not_ready
from mlops.serving.settings import Settings
from mlops.serving.upload import Upload

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shelved:
    """A model that answers, and the queue in front of it."""

    name: str
    model: OnnxModel
    sha256: str
    batcher: Batcher

    @property
    def version(self) -> str:
        """Enough of the file's SHA-256 to tell versions apart."""
        return self.sha256[:12]


@dataclass
class _State:
    shelved: Shelved | None = None
    refused: str | None = None


class Shelf:
    """All models by name. Everything but `_open` happens in the event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._states = {name: _State() for name in settings.models}
        # One: at most one large image is in memory at its full size.
        self._decoders = ThreadPoolExecutor(1, "decode")

    def model(self, name: str) -> Shelved:
        """A model that answers.

        Raises:
            Problem: 404, there is none of that name; 503, it is not loaded.
        """
        if name not in self._states:
            raise Problem(404, f"no model {name[:64]!r}; GET /models lists them")
        if (shelved := self._states[name].shelved) is None:
            raise not_ready(f"model {name}: {self._states[name].refused or 'is being loaded'}")
        return shelved

    def members(self, name: str) -> list[tuple[Shelved, float]]:
        """The models of an ensemble, and their shares, which sum to 1.

        Raises:
            Problem: 404 and 503, as above.
        """
        if (ensemble := self._settings.ensembles.get(name)) is None:
            raise Problem(404, f"no ensemble {name[:64]!r}; GET /models lists them")
        total = sum(ensemble.members.values())
        return [(self.model(member), weight / total) for member, weight in ensemble.members.items()]

    def problems(self) -> list[str]:
        """Why not every model answers; none where all do."""
        if not self._states:
            return ["there is no model; start the server with one: mlops serve model.onnx"]
        return [
            f"model {name}: {state.refused or 'is being loaded'}"
            for name, state in self._states.items()
            if state.shelved is None
        ]

    def report(self) -> dict[str, Any]:
        """What `GET /models` says."""
        default = self._settings.default
        return {
            "default": default,
            "models": [self.describe(name) for name in self._states],
            "ensembles": [
                {"name": name, "members": _shares(ensemble.members)}
                for name, ensemble in self._settings.ensembles.items()
            ],
        }

    def describe(self, name: str) -> dict[str, Any]:
        """One model of `report`.

        Raises:
            Problem: 404.
        """
        if (state := self._states.get(name)) is None:
            raise Problem(404, f"no model {name[:64]!r}; GET /models lists them")
        told: dict[str, Any] = {"name": name, "ready": state.shelved is not None, "refused": state.refused}
        if (shelved := state.shelved) is not None:
            metadata = shelved.model.metadata
            told |= {
                "version": shelved.version,
                "sha256": shelved.sha256,
                "kind": shelved.model.kind,
                "classes": shelved.model.classes,
                "input": shelved.model.input,
                "waiting": shelved.batcher.waiting,
            }
            told |= {key: metadata.get(key) for key in ("checkpoint", "metrics", "data", "created")}
        return told

    async def load(self, name: str, path: Path, sha256: str) -> str | None:
        """Put the model in a file in place of the one before, once it has answered; returns why it was refused."""
        state = self._states[name]
        try:
            model = await asyncio.to_thread(_open, path, self._settings.batch)
            self._check_company(name, model)
        except MlopsError as error:
            reason = "; ".join(error.problems).replace(str(path), self._settings.models[name])
            state.refused = reason
            self._metrics.refused(name)
            return reason
        before, state.refused = state.shelved, None

        def observe(images: int, seconds: float) -> None:
            self._metrics.computed(name, images, seconds, batcher.waiting)

        limits, largest = self._settings.limits, self._settings.batch
        batcher = Batcher(model, limits, self._decoders, largest=largest, observe=observe)
        state.shelved = Shelved(name, model, sha256, batcher)
        self._metrics.loaded(name, state.shelved.version, before.version if before else None)
        log.info(f"model {name}: {sha256[:12]} answers")
        if before is not None:
            before.batcher.close()  # what it was asked, it still answers
        return None

    def refuse(self, name: str, reason: str | None) -> None:
        """Say why the file that is there is not in use; None: it is again."""
        if reason and reason != self._states[name].refused:  # which a refusal of our own has counted
            self._metrics.refused(name)
        self._states[name].refused = reason

    def close(self) -> None:
        """Answer what waits, then end."""
        batchers = [state.shelved.batcher for state in self._states.values() if state.shelved]
        for batcher in batchers:
            batcher.close()

    def _check_company(self, name: str, model: OnnxModel) -> None:
        """Members of an ensemble must know the same classes, and take the same."""
        for ensemble, told in self._settings.ensembles.items():
            if name not in told.members:
                continue
            for other in told.members:
                shelved = self._states[other].shelved
                if other == name or shelved is None:
                    continue
                if sorted(shelved.model.classes) != sorted(model.classes):
                    raise MlopsError(f"ensemble {ensemble}: {name} and {other} do not know the same classes")
                if shelved.model.kind != model.kind:
                    raise MlopsError(f"ensemble {ensemble}: {name} takes {model.kind}, {other} takes others")


async def ask_together(
    members: Sequence[tuple[Shelved, float]], uploads: Sequence[Upload], array: Array | None
) -> Probabilities:
    """The weighted mean of the members' probabilities, with the classes in the order of the first.

    Raises:
        Problem: a member refuses.
    """
    asked = [m.batcher.classify(uploads) if array is None else m.batcher.compute(array) for m, _ in members]
    answers = await asyncio.gather(*asked)
    classes = members[0][0].model.classes
    total = np.zeros_like(answers[0])
    for (member, share), answer in zip(members, answers, strict=True):
        own = member.model.classes
        columns = slice(None) if own == classes else [own.index(label) for label in classes]
        total += np.float32(share) * answer[:, columns]
    return total


def _shares(members: Mapping[str, float]) -> dict[str, float]:
    total = sum(members.values())
    return {name: round(weight / total, 6) for name, weight in members.items()}


def _open(path: Path, largest: int | None) -> OnnxModel:
    """A model that has answered: batches of one and of the largest size, so that no request waits for its first run.

    Raises:
        MlopsError: it cannot be read or run, or its answers are no probabilities.
    """
    found = onnx_file.read(path)
    # Every worker has one processor: more threads would only take turns on it.
    model = OnnxModel(found.content, found.metadata, where=str(path), threads=1)
    for count in (1, largest or fitting(model)):
        given = _example(model, count)
        try:
            rows = model.predict(given)
        except MlopsError:
            raise
        except Exception as error:  # no memory
            raise MlopsError(f"{path}: does not answer: {type(error).__name__}") from error
        if rows.shape != (count, len(model.classes)) or not np.isfinite(rows).all():
            raise MlopsError(f"{path}: does not answer with probabilities; export it again")
    return model


def _example(model: OnnxModel, count: int) -> Array:
    if model.kind == "images":
        return np.full((count, model.input["height"], model.input["width"], 3), 127, np.uint8)
    return np.zeros((count, model.input["features"]), np.float32)
