"""One request and its answer: connections, time, retries, and what went wrong in one line."""

import logging
import math
import random
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlsplit

import urllib3
from urllib3 import exceptions as failures

import mlops
from mlops.client.answers import ClientError, ServerError, UnreachableError, parse
from mlops.errors import MlopsError, one_line

# Too many requests, no model yet; and what a proxy says while the server behind it starts anew.
LATER: Final = (429, 502, 503)
# Of an answer, and of one that tells of an error, bytes: whoever sends more is no `mlops serve`.
MOST_ANSWER, MOST_PROBLEM = 16_000_000, 64_000
# Seconds. The longest wait before the first retry doubles with each further one.
CONNECT, FIRST_WAIT, LONGEST_WAIT = 5.0, 0.25, 8.0

log = logging.getLogger(__name__)


class Transport:
    """A server, by its URL; at most `connections` are open, and kept. Threads may share one."""

    def __init__(self, url: str, key: str | None, timeout: float, retries: int, connections: int) -> None:
        self.url, self._prefix = checked_url(url)
        if not 0 < timeout < math.inf:
            raise MlopsError(f"timeout={timeout}: must be a number of seconds above 0")
        if retries < 0:
            raise MlopsError(f"retries={retries}: must be at least 0")
        if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
            raise MlopsError("the API key is empty, or holds spaces, line ends or letters that no header can carry")
        self._key, self._timeout, self._retries = key, timeout, retries
        self._headers = {"User-Agent": f"mlops/{mlops.__version__}", "Accept": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        try:
            self._pool = urllib3.connection_from_url(self.url, maxsize=connections, block=True)
        except failures.HTTPError:
            raise MlopsError(f"url={url}: is no address of a server") from None

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def ask(
        self,
        method: str,
        route: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        retries: int | None = None,
    ) -> Any:
        """The JSON that the server answers.

        Raises:
            ServerError: it answers something else than 200, or no JSON.
            UnreachableError: it does not answer.
        """
        end = time.monotonic() + self._timeout
        most = self._retries if retries is None else retries
        for tried in range(most + 1):
            least = 0.0
            try:
                status, given, content = self._once(method, route, body, headers or {}, end)
                if status == 200:
                    try:
                        return parse(content)
                    except ValueError:
                        raise self.not_ours(route) from None
                problem: ClientError = self._problem(route, status, given, content)
                again, least = status in LATER, _retry_after(given.get("Retry-After"))
            except failures.HTTPError as error:
                problem = UnreachableError(f"{self._shown(route)}: {self._hidden(_why(error, self._timeout))}")
                again = _may_pass(error)
            # Drawn from the whole range, so that clients which failed together do not come back together.
            wait = least + random.uniform(0, min(FIRST_WAIT * 2**tried, LONGEST_WAIT))  # noqa: S311
            if not again or tried == most or time.monotonic() + wait >= end:
                break
            log.debug("%s; again in %.2f s", problem, wait)
            time.sleep(wait)
        raise problem from None

    def not_ours(self, route: str) -> ServerError:
        """For an answer that no `mlops serve` gives."""
        return ServerError(self._shown(route), 200, "OK", "but not the answer of an mlops serve; is the URL its own?")

    def _once(
        self, method: str, route: str, body: bytes | None, headers: Mapping[str, str], end: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and content of one answer; the content is empty where it is an error's and too long."""
        left = max(end - time.monotonic(), 0.001)
        response = self._pool.urlopen(
            method,
            self._prefix + route,
            body,
            {**self._headers, **headers},
            # Redirects are not followed: the key is for this server.
            retries=False,
            redirect=False,
            timeout=urllib3.Timeout(connect=min(CONNECT, left), read=left),
            pool_timeout=math.ceil(left),
            preload_content=False,
            decode_content=False,
        )
        most = MOST_ANSWER if response.status == 200 else MOST_PROBLEM
        content = bytearray()
        try:
            while piece := response.read1(65_536):
                content += piece
                if len(content) > most and response.status == 200:
                    raise self.not_ours(route)
                if len(content) > most:
                    return response.status, response.headers, b""
                # A server may send a byte now and then for ever.
                if time.monotonic() >= end:
                    raise failures.TimeoutError
            return response.status, response.headers, bytes(content)
        finally:
            # Read to its end, an answer has given its connection back already.
            if response.connection is not None:
                response.close()
                response.release_conn()

    def _problem(self, route: str, status: int, headers: Mapping[str, str], content: bytes) -> ServerError:
        try:
            told = parse(content)
        except ValueError:
            told = None
        said = {name: text for name, text in told.items() if isinstance(text, str)} if isinstance(told, dict) else {}
        detail = said.get("detail", "")
        if 300 <= status < 400 and (target := headers.get("Location")):
            detail = f"it has moved to {target}; give that URL, if you trust it"
        request = said.get("request_id") or headers.get("X-Request-ID")
        return ServerError(
            self._shown(route),
            status,
            self._hidden(said.get("title") or _phrase(status)),
            self._hidden(detail),
            request and self._hidden(request),
        )

    def _shown(self, route: str) -> str:
        return self.url + route.partition("?")[0]

    def _hidden(self, text: str) -> str:
        """`text` of somebody else's, who may repeat the key."""
        return text.replace(self._key, "***") if self._key else text


def checked_url(url: str) -> tuple[str, str]:
    """The URL of a server without a slash at its end, and its path.

    Raises:
        MlopsError: it is none.
    """
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise MlopsError(f"url={url}: is no address of a server: {one_line(error)}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise MlopsError(f"url={url}: must be http://HOST:PORT or https://HOST, and the path of a proxy, if any")
    if parts.username is not None or parts.password is not None:
        raise MlopsError(f"url of {host}: holds a name or a password; the server takes an API key instead")
    if parts.query or parts.fragment:
        raise MlopsError(f"url={url}: must end before ? and #")
    path = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
    return f"{parts.scheme}://{parts.netloc}{path}", path


def _retry_after(value: str | None) -> float:
    """Seconds, from a number or a date; 0 where it is neither."""
    try:
        return urllib3.Retry().parse_retry_after(value) if value else 0.0
    except (failures.HTTPError, ValueError, OverflowError):
        return 0.0


def _may_pass(error: failures.HTTPError) -> bool:
    """Whether the same request may get through later: to a server that is not up yet, or went away."""
    lasting = (
        failures.NameResolutionError,
        failures.SSLError,
        failures.LocationValueError,
        failures.ClosedPoolError,
    )
    return not isinstance(error, lasting)


def _why(error: failures.HTTPError, timeout: float) -> str:
    # Subclasses come before what they are subclasses of.
    reasons: tuple[tuple[type[failures.HTTPError], str], ...] = (
        (failures.NameResolutionError, "no such host"),
        (failures.NewConnectionError, f"no connection: {_system(error)}; is mlops serve running there?"),
        (failures.ConnectTimeoutError, "no connection: nobody answers; is that the right host?"),
        (failures.TimeoutError, f"no whole answer within {timeout:g} s"),
        (failures.EmptyPoolError, f"all connections are busy for {timeout:g} s; raise concurrency"),
        (failures.ClosedPoolError, "this client is closed"),
        (failures.LocationValueError, "is no address of a server"),
        (failures.SSLError, f"no secure connection: {one_line(error)}"),
    )
    return next((reason for kind, reason in reasons if isinstance(error, kind)), f"it broke off: {one_line(error)}")


def _system(error: failures.HTTPError) -> str:
    """What the operating system says."""
    return getattr(error.__cause__, "strerror", None) or one_line(error)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "is no known status"
