"""One connection: uvicorn's, within limits on what comes before a body, which uvicorn does not have with httptools."""

import secrets
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlops.serving.problem import Problem

# Bytes of a request's line and head, and its lines; what came in one read with the rest is not counted.
_MOST_HEAD, _MOST_LINES = 64 * 1024, 500


class Connection(HttpToolsProtocol):
    """Refuses heads that do not end, and knows how long it has waited for one."""

    _head = 0
    # When the sweep first saw this connection wait behind that request, or before any.
    _since: float | None = None
    _behind: Any = None

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        super().data_received(data)
        cycle = self.cycle
        if self.scope is not None and (cycle is None or cycle.scope is not self.scope):
            self._head += len(data)
        else:
            self._head = 0
        # Lines behind a body in chunks are kept too.
        if (self._head > _MOST_HEAD or len(self.headers or ()) > _MOST_LINES) and not self.transport.is_closing():
            self._refuse(Problem(431, f"a head of more than {_MOST_HEAD:,} bytes or {_MOST_LINES} lines"))

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed is refused like everything else."""
        self._refuse(Problem(400, msg))

    def sweep(self, now: float, seconds: float, idle: float) -> None:
        """Close it where a head, or the rest of a refused body, has come for `seconds`; `idle` where nothing came."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.timeout_keep_alive_task is not None:
            self._since = None
        elif self._since is None or self._behind is not self.cycle:
            self._since, self._behind = now, self.cycle
        elif now - self._since > (idle if self.scope is None else seconds):
            self.transport.abort()

    def _refuse(self, problem: Problem) -> None:
        cycle = self.cycle
        begun = cycle is not None and cycle.response_started and not cycle.response_complete
        if not (begun or self.pipeline):  # else it would come in the middle of another answer, or before it
            request_id = secrets.token_hex(16)
            body, headers = problem.answer(request_id)
            lines = {**headers, "X-Request-ID": request_id, "Connection": "close"}
            first = f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
            told = first + "".join(f"{name.lower()}: {value}\r\n" for name, value in lines.items()) + "\r\n"
            self.transport.write(told.encode("latin-1") + body)
        self.transport.close()
