"""`mlops serve`, from its words to a server that runs, every mistake in them told at once."""

import ipaddress
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mlops.errors import MlopsError
from mlops.serving import logs
from mlops.serving.folder import own_folder
from mlops.serving.keys import read as read_keys
from mlops.serving.settings import Settings, is_name, read_settings
from mlops.serving.supervisor import Addresses, Supervisor, on_signals

log = logging.getLogger("mlops.serving.server")

_MOST_WORKERS = 256


def start(
    models: Sequence[str],
    config: Path | None,
    keys: Path | None,
    listen: tuple[str, int, str, int | None],
    workers: int | None,
    *,
    default: str,
    reload: bool,
) -> int:
    """Serve until a signal; returns the exit code.

    `listen` is host, port, and those of the administration. Where no model is named, the file `default` is served, or
    waited for.

    Raises:
        MlopsError: something is not as it must be; nothing was served then.
    """
    settings = read_settings(config)
    host, port, admin_host, admin_port = listen
    if admin_port is None:
        admin_port = port + 1 if port else 0
    _check_address("port", host, port)
    _check_address("admin-port", admin_host, admin_port)
    if port and port == admin_port and host == admin_host:
        raise MlopsError(f"--admin-port={port}: must be another than --port")
    if workers is not None and not 1 <= workers <= _MOST_WORKERS:
        raise MlopsError(f"--workers={workers}: must be 1 to {_MOST_WORKERS}")
    named = settings.models | _named(models, settings.models)
    settings = complete(settings, named or {"model": default}, keys)
    addresses = Addresses(host, port, admin_host, admin_port)
    return serve(settings, addresses, workers or _default_workers(), reload=reload, named=bool(named))


def serve(settings: Settings, addresses: Addresses, workers: int, *, reload: bool, named: bool) -> int:
    """Serve until SIGTERM (143) or Ctrl-C (130); returns the exit code.

    Raises:
        MlopsError: a model, an address or a keys file is not as it must be; nothing was served then.
    """
    if read_keys(Path(settings.keys.file) if settings.keys.file else None) is None and settings.keys.rate:
        raise MlopsError(f"keys.rate={settings.keys.rate:g}: limits nothing without keys; name a file with --keys")
    if workers > 1 and sys.platform == "win32":
        raise MlopsError(f"--workers={workers}: on Windows, one process serves; use --workers 1")
    logs.start()
    with on_signals(_end), own_folder() as folder:
        supervisor = Supervisor(settings, folder, named=named)
        if not is_local(addresses.admin_host):
            log.warning(
                f"--admin-host={addresses.admin_host}: administration asks for no key; keep others out of there"
            )
        return supervisor.run(addresses, workers, reload=reload)


def _end(number: int) -> None:
    """Before there are workers, nothing is accepted."""
    raise SystemExit(128 + number)


def complete(settings: Settings, models: dict[str, str], keys: Path | None) -> Settings:
    """Settings with all models in them, a default among these, and the keys file.

    Raises:
        MlopsError: what they lead to is no model, or a name is used twice.
    """
    told = settings.model_copy(
        update={
            "models": models,
            "default": settings.default or next(iter(models)),
            "keys": settings.keys.model_copy(update={"file": str(keys)}) if keys else settings.keys,
        }
    )
    if twice := sorted({*models} & {*settings.ensembles}):
        raise MlopsError(f"{twice[0]}: is a model and an ensemble; rename one")
    told.check_links()
    return told


def _named(models: Sequence[str], others: dict[str, str]) -> dict[str, str]:
    """Name -> file of `[NAME=]FILE` words; a file without one is called as it is, without its ending."""
    found, problems = dict[str, str](), list[str]()
    for word in models:
        name, equals, where = word.partition("=")
        if not equals or "/" in name:
            name, where = (
                re.sub(r"[^A-Za-z0-9._-]", "-", word.rstrip("/").rpartition("/")[2].removesuffix(".onnx")),
                word,
            )
        if not is_name(name):
            problems.append(
                f"{word}: {name!r}: a model's name must be 1 to 64 letters of A-Z a-z 0-9 . _ -, and begin with none "
                "of . -"
            )
        elif not where:
            problems.append(f"{word}: names no file; write {name}=model.onnx")
        elif name in found or name in others:
            problems.append(f"{word}: there is a model {name} already; write another NAME={where}")
        else:
            found[name] = where
    if problems:
        raise MlopsError(problems)
    return found


def _check_address(option: str, host: str, port: int) -> None:
    if not 0 <= port <= 65535:
        raise MlopsError(f"--{option}={port}: must be 0 (any that is free) to 65535")
    if not host or any(letter.isspace() for letter in host):
        raise MlopsError(f"--{option.replace('port', 'host')}={host!r}: must be a host name or an address")


def is_local(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _default_workers() -> int:
    """One for each processor that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
