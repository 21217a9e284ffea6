"""The bucket that DVC keeps versions in: which one, whether it answers, and pointing the project at another."""

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops.errors import MlopsError, one_line
from mlops.storage import Bucket, ask, open_bucket, shown

# What `.dvc/config` names as long as nobody has a bucket.
PLACEHOLDER = "gs://YOUR-BUCKET/YOUR-PROJECT"
NAME = "gcs"
# Seconds in which a bucket has to answer before anything is asked of DVC, which would try for a minute.
ANSWER_TIMEOUT = 5.0
SET = "set it with: invoke data-remote gs://bucket/path"


@dataclass(frozen=True)
class Remote:
    """DVC's default remote, as all its config files together say."""

    name: str
    url: str
    # For fsspec's `gs`, from DVC's own settings.
    options: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def shown(self) -> str:
        return shown(self.url)

    @property
    def is_placeholder(self) -> bool:
        return self.url == PLACEHOLDER


def read_remote(root: Path) -> Remote | None:
    """The default remote of the project at `root`; None where none is set.

    Raises:
        MlopsError: a config file cannot be read, or `.dvc/config`, which everybody gets, holds credentials.
    """
    # DVC's own reader, which knows four files, and which of them counts.
    from dvc.config import Config, ConfigError

    try:
        config = Config(str(root / ".dvc"))
        shared = config.load_one("repo")
    except ConfigError as error:
        raise MlopsError(f"{root / '.dvc' / 'config'}: is not readable: {one_line(error)}") from error
    for name, settings in shared.get("remote", {}).items():
        if "credentialpath" in settings:
            raise MlopsError(
                f"{root / '.dvc' / 'config'}: remote {name}: names a key file for everybody; remove it, and run "
                f"`dvc remote modify --local {name} credentialpath FILE`, which git never sees"
            )
    name = config["core"].get("remote")
    if name is None or name not in config["remote"]:
        return None
    settings = config["remote"][name]
    options: dict[str, Any] = {}
    if settings["url"].startswith(("gs://", "gcs://")):
        token = "anon" if settings.get("allow_anonymous_login") else settings.get("credentialpath")
        given = {"token": token, "endpoint_url": settings.get("endpointurl"), "project": settings.get("projectname")}
        options = {key: str(value) for key, value in given.items() if value}
    return Remote(name, str(settings["url"]), options)


def need_remote(root: Path) -> Remote:
    """As `read_remote`.

    Raises:
        MlopsError: as there; none is set, or only the placeholder.
    """
    remote = read_remote(root)
    if remote is None:
        raise MlopsError(f"{root / '.dvc' / 'config'}: names no default remote; {SET}")
    if remote.is_placeholder:
        raise MlopsError(f"{remote.url}: is a placeholder, not a bucket; {SET}")
    return remote


def reach(remote: Remote, seconds: float = ANSWER_TIMEOUT) -> Bucket:
    """Open the bucket and ask it for something, in a limited time.

    Raises:
        MlopsError: it cannot be reached or read, and why.
    """
    key = remote.options.get("token", "anon")
    if key != "anon":
        _check_key(Path(key), remote)
    end = time.monotonic() + seconds
    bucket = open_bucket(remote.url, seconds, remote.options)
    ask(bucket, bucket.look, max(0.5, end - time.monotonic()))
    return bucket


def _check_key(path: Path, remote: Remote) -> None:
    """Raise where a file is no key of Google's: its library would say so in twenty lines."""
    another = f"`dvc remote modify --local {remote.name} credentialpath FILE` names another"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MlopsError(f"{path}: named in .dvc/config.local, cannot be read: {error.strerror}; {another}") from error
    except ValueError:
        told = None
    needed = {"service_account": ("client_email", "private_key", "token_uri"), "authorized_user": ("refresh_token",)}
    kind = told.get("type") if isinstance(told, dict) else None
    if kind is None or any(field not in told for field in needed.get(str(kind), ())):
        raise MlopsError(f"{path}: named in .dvc/config.local, is no key file of Google's; {another}")


def check_url(url: str) -> str:
    """`url` as the address of a remote.

    Raises:
        MlopsError: it is none.
    """
    if re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]{1,221}[a-z0-9](/[\w.=-]+)*/?", url):
        return url.rstrip("/")
    if "://" not in url and Path(url).is_dir():
        return str(Path(url).absolute())
    raise MlopsError(f"{shown(url)}: is no bucket; write gs://bucket/path (or the folder of a network share)")
