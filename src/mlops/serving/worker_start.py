"""How a worker begins: what its supervisor tells it, and the address that they share."""

import contextlib
import json
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlops.serving.settings import Settings

BACKLOG = 2048


@dataclass(frozen=True)
class Start:
    """How a worker begins."""

    settings: Settings
    host: str
    port: int
    folder: Path

    def line(self) -> str:
        """For the worker's standard input."""
        told = {"settings": self.settings.model_dump(mode="json"), "host": self.host, "port": self.port}
        return json.dumps({**told, "folder": str(self.folder)}) + "\n"

    @classmethod
    def read(cls, line: str) -> "Start":
        """What `line` wrote."""
        told = json.loads(line)
        settings = Settings.model_validate_json(json.dumps(told["settings"]))
        return cls(settings, told["host"], told["port"], Path(told["folder"]))


def listening(host: str, port: int) -> socket.socket:
    """A socket at that address, which our other workers have too: the system deals out connections to them.

    Raises:
        OSError: the address is taken, or none of this machine's.
    """
    sock = _bound(host, port, again=True, share=True)
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


@contextlib.contextmanager
def reserved(host: str, port: int) -> Iterator[int]:
    """The port, kept for `listening` of our own processes: another server, also one of ours, cannot have it meanwhile.

    Raises:
        OSError: the address is taken, or none of this machine's.
    """
    # Ours may share an address; this says whether somebody else has it.
    with _bound(host, port, again=True, share=False) as probe:
        port = probe.getsockname()[1]
    if not hasattr(socket, "SO_REUSEPORT"):  # Windows: the one worker must find it free
        yield port
        return
    try:
        # Who binds with SO_REUSEADDR, as the probe of another server does, may not beside one who has it not.
        holder = _bound(host, port, again=False, share=True)
    except OSError:  # connections of whoever was here before have not timed out yet
        holder = _bound(host, port, again=True, share=True)
    with holder:
        yield port


def _bound(host: str, port: int, *, again: bool, share: bool) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        if again and sys.platform != "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share and hasattr(socket, "SO_REUSEPORT"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock
