"""What a request is refused with: RFC 9457, one shape for every status."""

import json
from collections.abc import Mapping
from http import HTTPStatus

from mlops.errors import printable

_MOST_LETTERS = 500


class Problem(Exception):  # noqa: N818 - the word of RFC 9457
    """A request that is refused: `status` and what the caller should do, with headers that belong to it."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = printable(detail[:_MOST_LETTERS])
        self.headers = dict(headers or {})

    def answer(self, request_id: str, *, protocol: bool = False) -> tuple[bytes, dict[str, str]]:
        """The body and the headers; with `protocol`, as the Open Inference Protocol has them."""
        if protocol:
            body, kind = json.dumps({"error": self.detail}, ensure_ascii=False).encode(), "application/json"
        else:
            body, kind = self._body(request_id), "application/problem+json"
        return body, {**self.headers, "Content-Type": kind, "Content-Length": str(len(body))}

    def _body(self, request_id: str) -> bytes:
        told = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
        }
        return json.dumps(told, ensure_ascii=False).encode()


def busy(detail: str, seconds: float = 1) -> Problem:
    """429: the same request may be sent again after so many seconds."""
    return Problem(429, detail, {"Retry-After": str(max(1, round(seconds)))})


def not_ready(detail: str) -> Problem:
    """503: there is no model that could answer, yet."""
    return Problem(503, detail, {"Retry-After": "1"})
