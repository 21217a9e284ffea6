"""API keys, kept as hashes, and the rate at which each may ask, counted over all workers."""

import hashlib
import logging
import math
import mmap
import os
import re
import secrets
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from mlops.errors import MlopsError, one_line
from mlops.files import check_regular
from mlops.serving.problem import Problem, busy

log = logging.getLogger(__name__)

# Lines as in a keys file, for where there are no files.
VARIABLE = "MLOPS_API_KEYS"
MOST_KEYS = 4096
_LINE = re.compile(r"([A-Za-z0-9._@-]{1,64}):([0-9a-f]{64})")
# Tokens that are left, and when they were counted: two doubles a key.
_SLOT = struct.Struct("dd")
# Seconds between two looks at the file.
_LOOK = 2.0


def new_key(name: str) -> tuple[str, str]:
    """A new key, and the line that lets it in: with 256 random bits, plain SHA-256 cannot be turned back.

    Raises:
        MlopsError: `name` cannot stand in a keys file.
    """
    key = secrets.token_urlsafe(32)
    line = f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"
    if not _LINE.fullmatch(line):
        raise MlopsError(f"{name!r}: must be 1 to 64 letters of A-Z a-z 0-9 . _ @ -")
    return key, line


def parse(text: str, where: str) -> dict[bytes, str]:
    """SHA-256 of each key -> its name, of lines NAME:SHA256; blank ones and those that begin with # are passed over.

    Raises:
        MlopsError: a line is something else, or there are none.
    """
    found, problems = dict[bytes, str](), list[str]()
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if match := _LINE.fullmatch(line):
            found[bytes.fromhex(match[2])] = match[1]
        else:
            # The line itself is not shown: it may hold a key as it is.
            problems.append(f"{where}: line {number}: must be NAME:SHA256, as `mlops new-key NAME` prints it")
    if not found and not problems:
        problems.append(f"{where}: holds no key; add a line of `mlops new-key NAME`")
    if problems:
        raise MlopsError(problems)
    return found


def read(file: Path | None, environment: Mapping[str, str] = os.environ) -> dict[bytes, str] | None:
    """All keys that are let in, of the file and of the environment; None where neither is named: anybody is let in.

    Raises:
        MlopsError: as `parse`, there are too many, or the file cannot be read.
    """
    found: dict[bytes, str] | None = None
    # An empty one is a mistake, such as a secret that was not there: it must not open the server to everybody.
    if (told := environment.get(VARIABLE)) is not None:
        found = parse(told.replace(",", "\n"), VARIABLE)
    if file is not None:
        check_regular(file, str(file))
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise MlopsError(f"{file}: cannot be read: {one_line(error)}") from error
        found = (found or {}) | parse(text, str(file))
    if found is not None and len(found) > MOST_KEYS:
        raise MlopsError(f"{len(found):,} keys: at most {MOST_KEYS:,}")
    return found


class Rates:
    """A token bucket for each key, in a file that all workers map: who asks two of them is counted once.

    Two workers may count at the same moment and miss one request; no lock is held that a killed worker could keep.
    """

    def __init__(self, path: Path, rate: float, burst: float | None) -> None:
        """`rate` requests a second, of which `burst` may come at once."""
        self._rate, self._burst = rate, burst or max(1.0, rate)
        size = _SLOT.size * MOST_KEYS
        with path.open("ab+") as file:
            if file.tell() < size:
                file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)

    def take(self, slot: int) -> None:
        """Take one of a key's requests.

        Raises:
            Problem: 429, there is none.
        """
        tokens, counted = _SLOT.unpack_from(self._map, slot * _SLOT.size)
        now = time.monotonic()
        tokens = self._burst if counted == 0.0 else min(self._burst, tokens + (now - counted) * self._rate)
        if tokens < 1:
            raise busy("more requests than this key may send", math.ceil((1 - tokens) / self._rate))
        _SLOT.pack_into(self._map, slot * _SLOT.size, tokens - 1, now)


class Doorkeeper:
    """Lets requests in by their key; a keys file that changed is read again, a bad one is not."""

    def __init__(self, file: Path | None, rates: Rates | None) -> None:
        """Raises `MlopsError` as `read` does."""
        self._file, self._rates = file, rates
        self._looked, self._stamp = time.monotonic(), _stamp(file)
        self._use(read(file))

    def admit(self, headers: Mapping[bytes, bytes]) -> str | None:
        """The name of the key that a request brings; None where none are asked for.

        Raises:
            Problem: 401, it brings none or a wrong one; 429, that key has asked too often.
        """
        self._look()
        if self._names is None:
            return None
        authorization = headers.get(b"authorization", b"")
        key = authorization[7:].strip() if authorization[:7].lower() == b"bearer " else headers.get(b"x-api-key", b"")
        found = self._names.get(hashlib.sha256(key).digest()) if key else None
        if found is None:
            detail = "this key is not known" if key else "send a key: Authorization: Bearer KEY"
            raise Problem(401, detail, {"WWW-Authenticate": "Bearer"})
        name, slot = found
        if self._rates is not None:
            self._rates.take(slot)
        return name

    def _look(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._looked < _LOOK:
            return
        self._looked, stamp = now, _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._use(read(self._file))
            log.info("keys: read again")
        except MlopsError as error:
            log.error(f"keys: those before stay: {'; '.join(error.problems)}")

    def _use(self, keys: dict[bytes, str] | None) -> None:
        # Slots by name: another file keeps the counts of those who stay, as long as none comes before them.
        slots = {name: slot for slot, name in enumerate(sorted(set((keys or {}).values())))}
        self._names = None if keys is None else {digest: (name, slots[name]) for digest, name in keys.items()}


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    try:
        told = file.stat() if file else None
    except OSError:
        return None
    return told and (told.st_mtime_ns, told.st_size, told.st_ino)
