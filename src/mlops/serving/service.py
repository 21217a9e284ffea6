"""What the routes do, without the web framework: a request's body to an answer."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import parse_qs

import numpy as np

from mlops.inference import Probabilities
from mlops.serving import v2
from mlops.serving.batching import Array
from mlops.serving.gate import Notes, Receive
from mlops.serving.metrics import Metrics
from mlops.serving.problem import Problem, not_ready
from mlops.serving.settings import Limits, Settings
from mlops.serving.shelf import Shelf, Shelved, ask_together
from mlops.serving.tensors import ProtocolError
from mlops.serving.upload import MOST_JSON, Body, Reader, Upload, features_of, images_of

T = TypeVar("T")

_MOST_TOP = 1000
# Made once: `json.dumps` with an option makes another encoder for every call.
_json = json.JSONEncoder(ensure_ascii=False).encode
# Bytes of a body of numbers that is parsed in the event loop.
_SMALL = 32 * 1024


class Service:
    """Answers of predict routes and of the Open Inference Protocol."""

    def __init__(self, settings: Settings, shelf: Shelf, metrics: Metrics) -> None:
        self.settings, self.shelf, self._metrics = settings, shelf, metrics
        self._reader = Reader(settings.limits)
        # One: what large bodies take while they are parsed, they take one after the other.
        self._parsing = ThreadPoolExecutor(1, "parse")

    async def predict(self, scope: Mapping[str, Any], receive: Receive, name: str | None, field: str) -> bytes:
        """The answer, as JSON, of a model or an ensemble, or of the default where `name` is None.

        Raises:
            Problem: there is none, and why.
        """
        notes: Notes = scope["notes"]
        body = await self._reader.read(scope["headers_by_name"], receive)
        try:
            members = self._members(name)
            name = name or str(self.settings.default)
            top = _top(scope["query_string"])
            uploads, array = await self._given(body, members[0][0], field)
            # Only a name that is known: callers could fill the metrics with others.
            notes.model, notes.images = name, len(uploads) if array is None else len(array)
            rows = await _ask(members, uploads, array)
        finally:
            self._reader.release(body)
        labels = members[0][0].model.classes
        best = _best(rows, min(top, len(labels)))
        self._metrics.predicted(name, [labels[row[0]] for row in best])
        told: dict[str, Any]
        if name in self.settings.ensembles:
            told = {"ensemble": name, "models": [{"model": m.name, "version": m.version} for m, _ in members]}
        else:
            told = {"model": name, "version": members[0][0].version}
        told["predictions"] = _predictions(labels, uploads, rows, best)
        told["milliseconds"] = round(1000 * (time.perf_counter() - notes.started), 2)
        return _json(told).encode()

    async def infer(self, scope: Mapping[str, Any], receive: Receive, name: str) -> tuple[bytes, dict[str, str]]:
        """The answer to an inference request of the Open Inference Protocol, and its headers.

        Raises:
            Problem: there is none, and why.
        """
        notes: Notes = scope["notes"]
        headers: Mapping[bytes, bytes] = scope["headers_by_name"]
        # Compressed bodies are that protocol's own, and unpacked within the limit of a body.
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
        body = await self._reader.read(headers, receive, compressed=True)
        try:
            shelved = self.shelf.model(name)
            notes.model = name
            try:
                if len(body.content) < _SMALL and encoding == "identity":
                    request = self._parse(body.content, encoding, headers)
                else:
                    request = await self._aside(lambda: self._parse(body.content, encoding, headers))
                uploads, array = _tensors(request, shelved, self.settings.limits)
                notes.images = len(uploads) if array is None else len(array)
                rows = await _ask([(shelved, 1.0)], uploads, array)
                labels = shelved.model.classes
                self._metrics.predicted(name, [labels[index] for index in rows.argmax(axis=1)])
                return v2.answer(
                    request, model=name, version=shelved.version, outputs={"probabilities": rows}, labels=labels
                )
            except ProtocolError as error:
                raise Problem(error.status, str(error)) from None
        finally:
            self._reader.release(body)

    def _parse(self, content: bytes, encoding: str, headers: Mapping[bytes, bytes]) -> v2.InferRequest:
        content = v2.inflate(content, encoding, self.settings.limits.body_bytes)
        told = headers.get(v2.JSON_LENGTH.lower().encode())
        length = v2.json_length(None if told is None else told.decode("latin-1"))
        if (len(content) if length is None else length) > MOST_JSON:
            raise ProtocolError(f"more than {MOST_JSON:,} bytes of JSON; send tensors as binary data", 413)
        return v2.parse(content, length)

    async def _aside(self, work: Callable[[], T]) -> T:
        """What takes long is done in a thread; a Problem (504) where that takes longer than a request may."""
        seconds = self.settings.limits.seconds
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(self._parsing, work)
        except TimeoutError:
            raise Problem(504, f"no answer within {seconds:g} s; send it again later") from None

    async def swallow(self, scope: Mapping[str, Any], receive: Receive) -> bytes:
        """Read and parse an upload as `predict` does, and answer without looking at it: benchmarks measure this."""
        body = await self._reader.read(scope["headers_by_name"], receive)
        self._reader.release(body)
        uploads = images_of(body, "file", self.settings.limits)
        predictions: list[dict[str, Any]] = [
            {"file": one.name, "class": "none", "probability": 1.0, "top": []} for one in uploads
        ]
        return json.dumps({"model": "noop", "version": "", "predictions": predictions, "milliseconds": 0.0}).encode()

    def _members(self, name: str | None) -> list[tuple[Shelved, float]]:
        name = name or self.settings.default
        if name is None:
            raise not_ready("; ".join(self.shelf.problems()) or "there is no default model; name one")
        if name in self.settings.ensembles:
            return self.shelf.members(name)
        return [(self.shelf.model(name), 1.0)]

    async def _given(self, body: Body, shelved: Shelved, field: str) -> tuple[list[Upload], Array | None]:
        limits = self.settings.limits
        if shelved.model.kind != "features":
            return images_of(body, field, limits), None
        width = shelved.model.input["features"]

        def rows() -> Array:
            return np.array(features_of(body, limits.queue, width), np.float32)

        return [], rows() if len(body.content) < _SMALL else await self._aside(rows)


async def _ask(
    members: Sequence[tuple[Shelved, float]], uploads: Sequence[Upload], array: Array | None
) -> Probabilities:
    if len(members) > 1:
        return await ask_together(members, uploads, array)
    batcher = members[0][0].batcher
    return await (batcher.classify(uploads) if array is None else batcher.compute(array))


def _top(query: bytes) -> int:
    if not query:
        return 1
    told = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("top", ["1"])[-1]
    if not (told.isascii() and told.isdigit() and len(told) < 9 and 1 <= int(told) <= _MOST_TOP):
        raise Problem(422, f"top={told[:40]}: must be a whole number from 1 to {_MOST_TOP:,}")
    return int(told)


def _best(rows: Probabilities, count: int) -> list[list[int]]:
    """The `count` likeliest classes of each row, the likeliest first; of equals, the earlier."""
    if count == 1:
        return [[index] for index in rows.argmax(axis=1).tolist()]
    order: list[list[int]] = np.argsort(-rows, axis=1, kind="stable")[:, :count].tolist()
    return order


def _predictions(
    labels: Sequence[str], uploads: Sequence[Upload], rows: Probabilities, best: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    found = []
    for position, (row, chosen) in enumerate(zip(rows.tolist(), best, strict=True)):
        top = [{"class": labels[index], "probability": round(row[index], 6)} for index in chosen]
        found.append({"file": uploads[position].name if uploads else None, **top[0], "top": top})
    return found


def v2_metadata(shelved: Shelved) -> dict[str, Any]:
    """A model as the Open Inference Protocol describes it."""
    model = shelved.model
    return v2.model_metadata(shelved.name, [shelved.version], model.kind, model.input, model.classes)


def _tensors(request: v2.InferRequest, shelved: Shelved, limits: Limits) -> tuple[list[Upload], Array | None]:
    """What an inference request asks to compute: encoded images, or an array as the model takes it."""
    name, array = v2.only_input(request, v2_metadata(shelved))
    if len(array) > limits.queue:
        raise Problem(413, f"{name}: {len(array):,} at once: at most {limits.queue:,}")
    if name == "images" and (pixels := array.size // 3) > limits.pixels:
        raise Problem(413, f"{name}: {pixels:,} pixels: at most {limits.pixels:,} at once")
    return ([Upload(None, content) for content in array], None) if name == "encoded" else ([], array)
