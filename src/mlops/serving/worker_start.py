"""How a worker begins: what its supervisor tells it, and the address that they share."""

import json
import socket
import sys
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


def listening(host: str, port: int, *, reserve: bool = False, share: bool = True) -> socket.socket:
    """A socket at that address, which others of our processes may have too: the system deals out connections to them.

    With `reserve` it takes none itself; without `share`, the address must be nobody's yet.

    Raises:
        OSError: the address is taken, or none of this machine's.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share and hasattr(socket, "SO_REUSEPORT"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        if share and not reserve:
            sock.listen(BACKLOG)
            sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
