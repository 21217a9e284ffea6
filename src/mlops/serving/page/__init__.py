"""The page at /: static files beside this module, held in memory, that ask the same routes as everybody else.

Nothing is built and nothing is fetched from elsewhere. The page is public also where keys are configured: it holds
nothing, and asks for a key itself.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Only files of this server run, look and are asked. Pictures are shown from the memory of the browser (blob:). Without
# a policy of trusted types, text cannot become markup in browsers that know them.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    # Asked for each time and answered with 304 mostly: a newer server brings its page with it at once.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    kind: str
    tag: str


def _read(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, _KINDS[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


_FILES = {
    "/" if path.name == "index.html" else f"/page/{path.name}": _read(path)
    for path in sorted(Path(__file__).parent.iterdir())
    if path.suffix in _KINDS
}
# Whoever asks for these needs no key.
PATHS = frozenset(_FILES)


def routes() -> list[Route]:
    """`GET /` and the files that it names."""
    return [Route(path, _answer) for path in _FILES]


async def _answer(request: Request) -> Response:
    path = request.scope["path"]
    request.scope["notes"].route = "/" if path == "/" else "/page"
    file = _FILES[path]
    headers = {**_HEADERS, "ETag": file.tag}
    held = [tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")]
    if file.tag in held:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.kind)
