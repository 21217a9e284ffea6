"""The client: what may be asked of a server."""

import itertools
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar
from urllib.parse import quote

from urllib3 import encode_multipart_formdata

from mlops.client import answers
from mlops.client.answers import Prediction, Refused, Served, ServerError, UnreachableError
from mlops.client.images import Chunk, Images, Upload, chunks
from mlops.client.transport import LATER, Transport
from mlops.errors import MlopsError, one_line

# What is wrong with one image, not with the request.
_REFUSALS = (400, 413, 415, 422)
# Rows of features in one request.
_ROWS = 256

_T = TypeVar("_T")


class Client:
    """A server, over connections that are kept. Threads may share one; `close` it, or use it in `with`.

    Repeated after growing, random waits: what found nobody, broke off, or was answered by 429, 502 or 503, at most
    `retries` times, never sooner than Retry-After says, and only within `timeout`. Everything that is asked may be
    asked twice. Nothing else is repeated, and no redirect is followed: the key stays with the server it is for.

    Args:
        url: of the server, with the path under which a proxy has it: https://example.org/signs.
        key: of its API, sent with every request; it is in no message.
        timeout: seconds for one request with all its retries.
        retries: of one request.
        concurrency: requests at once, and connections.
        files: images in one request, at most.
        size: bytes of images in one request, at most; a larger image goes alone.

    Raises:
        MlopsError: an argument cannot be.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 4,
        concurrency: int = 4,
        files: int = 16,
        size: int = 4_000_000,
    ) -> None:
        for name, value in (("concurrency", concurrency), ("files", files), ("size", size)):
            if value < 1:
                raise MlopsError(f"{name}={value}: must be at least 1")
        self._transport = Transport(url, key, timeout, retries, connections=concurrency)
        self._concurrency, self._files, self._size = concurrency, files, size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._transport.url!r})"

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def predict(
        self, images: Images, model: str | None = None, ensemble: str | None = None, top: int = 1
    ) -> list[Prediction]:
        """The class of one image or several: paths, bytes, or files opened for reading bytes. In their order.

        Args:
            images: sent as they are; the server prepares them as for training.
            model: of the server's; its default when neither this nor `ensemble` is given.
            ensemble: of the server's.
            top: how many classes each answer names, 1 to 1000.

        Raises:
            ServerError: an image or the request was refused.
            UnreachableError: the server was not reached.
            MlopsError: an image cannot be read here, or an argument cannot be.
        """
        found = []
        for answer in self._each(images, _route(model, ensemble, top), apart=False):
            if isinstance(answer, Refused):
                raise answer.error
            found.append(answer)
        return found

    def each(
        self, images: Images, model: str | None = None, ensemble: str | None = None, top: int = 1
    ) -> Iterator[Prediction | Refused]:
        """As `predict`, one answer after the other, for any number of images: a bad one does not end the rest.

        What the server refuses together is sent again in halves, until the bad image stands alone.

        Raises:
            ServerError: the server refused for another reason than an image.
            UnreachableError: the server was not reached.
            MlopsError: an argument cannot be.
        """
        return self._each(images, _route(model, ensemble, top), apart=True)

    def features(
        self,
        rows: Iterable[Iterable[float]],
        model: str | None = None,
        ensemble: str | None = None,
        top: int = 1,
    ) -> list[Prediction]:
        """The class of each row of numbers, by a model of the kind `features`. Raises as `predict` does."""
        route = _route(model, ensemble, top)
        try:
            given = [[float(number) for number in row] for row in rows]
        except (TypeError, ValueError, OverflowError) as error:
            raise MlopsError(f"features: must be rows of numbers: {one_line(error)}") from None
        if not all(math.isfinite(number) for row in given for number in row):
            raise MlopsError("features: every one must be a finite number")
        parts = (given[start : start + _ROWS] for start in range(0, len(given), _ROWS))
        return [found for part in parts for found in self._send_rows(part, route)]

    def models(self) -> Served:
        """What the server has. Raises as `predict` does."""
        told = self._transport.ask("GET", "/models")
        return self._understood("/models", answers.served, told)

    def version(self) -> dict[str, str]:
        """Of the server, as `version`, and of what it runs on. Raises as `predict` does."""
        told = self._transport.ask("GET", "/version")
        return self._understood("/version", answers.versions, told)

    def health(self) -> bool:
        """Whether the server lives. Asked once. Raises ServerError where something else answers."""
        return self._well("/health")

    def ready(self) -> bool:
        """Whether the server has models to answer with. Asked once. Raises ServerError where something else answers."""
        return self._well("/health/ready")

    def _well(self, route: str) -> bool:
        try:
            self._transport.ask("GET", route, retries=0)
        except UnreachableError:
            return False
        except ServerError as error:
            if error.status in LATER:
                return False
            raise
        return True

    def _each(self, images: Images, route: str, apart: bool) -> Iterator[Prediction | Refused]:
        def answered(chunk: Chunk) -> list[Prediction | Refused]:
            sent = iter(self._send([part for part in chunk if isinstance(part, Upload)], route, apart))
            return [part if isinstance(part, Refused) else next(sent) for part in chunk]

        parts = chunks(images, self._files, self._size)
        first = list(itertools.islice(parts, 2))
        if len(first) < 2:
            # One request needs no threads.
            yield from itertools.chain.from_iterable(map(answered, first))
            return
        waiting: deque[Future[list[Prediction | Refused]]] = deque()
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="mlops-client") as threads:
            try:
                for chunk in itertools.chain(first, parts):
                    waiting.append(threads.submit(answered, chunk))
                    # One more than is under way is kept ready; further images stay on the disk.
                    if len(waiting) > self._concurrency:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _send(self, parts: Sequence[Upload], route: str, apart: bool) -> list[Prediction | Refused]:
        if not parts:
            return []
        # urllib3 escapes names as browsers do.
        fields = [("file", (part.sent_as, part.data, "application/octet-stream")) for part in parts]
        body, kind = encode_multipart_formdata(fields)
        try:
            told = self._transport.ask("POST", route, body, {"Content-Type": kind})
        except ServerError as error:
            # What is too large together may be taken in parts.
            if len(parts) > 1 and (error.status == 413 or (apart and error.status in _REFUSALS)):
                half = len(parts) // 2
                return self._send(parts[:half], route, apart) + self._send(parts[half:], route, apart)
            if error.status not in _REFUSALS or not apart:
                raise
            reason = error.detail.removeprefix(f"{parts[0].sent_as}: ") or error.title
            return [Refused(parts[0].file, reason, error)]
        return [*self._understood(route, answers.predictions, told, [part.file for part in parts])]

    def _send_rows(self, rows: Sequence[Sequence[float]], route: str) -> list[Prediction]:
        body = json.dumps({"features": rows}).encode()
        try:
            told = self._transport.ask("POST", route, body, {"Content-Type": "application/json"})
        except ServerError as error:
            if error.status != 413 or len(rows) == 1:
                raise
            half = len(rows) // 2
            return self._send_rows(rows[:half], route) + self._send_rows(rows[half:], route)
        return self._understood(route, answers.predictions, told, [None] * len(rows))

    def _understood(self, route: str, read: Callable[..., _T], *given: Any) -> _T:
        try:
            return read(*given)
        except answers.MALFORMED:
            raise self._transport.not_ours(route) from None


def _route(model: str | None, ensemble: str | None, top: int) -> str:
    if model is not None and ensemble is not None:
        raise MlopsError(f"model={model}, ensemble={ensemble}: name one of them")
    if not 1 <= top <= 1000:
        raise MlopsError(f"top={top}: must be from 1 to 1000")
    route = "/predict"
    for kind, name in (("model", model), ("ensemble", ensemble)):
        if name is not None:
            # These would lead to another route.
            if name in ("", ".", ".."):
                raise MlopsError(f"{kind}={name!r}: is no name")
            route = f"/{kind}s/{quote(name, safe='', errors='replace')}/predict"
    return route if top == 1 else f"{route}?top={top}"
