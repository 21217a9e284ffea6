"""One connection: uvicorn's, within limits on what comes before a body, which uvicorn does not have with httptools."""

import secrets
from http import HTTPStatus
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlops.serving.problem import Problem

# Bytes of a request's line and head, and its lines; what came in one read with the rest is not counted.
_MOST_HEAD, _MOST_LINES = 64 * 1024, 500


class Connection(HttpToolsProtocol):
    """Refuses heads that do not end, knows how long it has waited for one, and stays with HTTP/1.1."""

    _head = 0
    # When the sweep first saw this connection wait behind that request, or before any.
    _since: float | None = None
    _behind: Any = None

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        self._unset_keepalive_if_required()
        try:
            self._feed(memoryview(data))
        except HttpParserError:
            self._refuse(Problem(400, "this is no HTTP request"))
        cycle = self.cycle
        if self.scope is not None and (cycle is None or cycle.scope is not self.scope):
            self._head += len(data)
        else:
            self._head = 0
        # Lines behind a body in chunks are kept too.
        if (self._head > _MOST_HEAD or len(self.headers or ()) > _MOST_LINES) and not self.transport.is_closing():
            self._refuse(Problem(431, f"a head of more than {_MOST_HEAD:,} bytes or {_MOST_LINES} lines"))

    def sweep(self, now: float, seconds: float, idle: float) -> None:
        """Close it where a head, or the rest of a refused body, has come for `seconds`; `idle` where nothing came."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.timeout_keep_alive_task is not None:
            self._since = None
        elif self._since is None or self._behind is not self.cycle:
            self._since, self._behind = now, self.cycle
        elif now - self._since > (idle if self.scope is None else seconds):
            self.transport.abort()

    def _feed(self, data: memoryview) -> None:
        while True:
            try:
                return self.parser.feed_data(data)
            except HttpParserUpgrade as upgrade:
                method = self.parser.get_method()
                if method == b"CONNECT":
                    return self._refuse(Problem(400, "CONNECT: this is no proxy"))
                # RFC 9110, 7.8: an upgrade may be ignored; Java's client offers one with every request. The parser
                # takes no body then, so it gets the head again without the offer, and goes on behind it.
                lines = b"".join(b"%s: %s\r\n" % line for line in self.headers if line[0] != b"upgrade")
                version = self.parser.get_http_version().encode()
                self.parser.feed_data(b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, lines))
                data = data[upgrade.args[0] :]

    def _should_upgrade(self) -> bool:
        """Whether the parser's calls for a request that offers an upgrade are passed over."""
        return True

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
