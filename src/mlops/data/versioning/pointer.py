"""`data.dvc`: which version of `data/` belongs to this commit. Read here before DVC or anything else acts on it."""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops.errors import MlopsError, one_line
from mlops.files import check_regular, safe_relative, write_text

POINTER, DATA = "data.dvc", "data"
# The prepared folders that are versioned too: a folder of its own, for `data/` is another output of DVC's.
PREPARED_POINTER, PREPARED = "processed.dvc", "processed"
# A key in the pointer's `meta`, which DVC keeps and does not read: the SHA-256 of the manifest in `data/`.
SUMS_KEY = "sha256sums"
# The MD5 that it belongs to: `dvc add` alone changes the one and keeps the other.
SUMS_OF = "sha256sums_of"
_MOST_BYTES = 64 * 1024
MD5 = re.compile(r"[0-9a-f]{32}\.dir")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Pointer:
    """What a `.dvc` file says of its one output.

    `md5` ends in `.dir`, for it is a folder. `sums` is the SHA-256 of the folder's manifest, where the version was
    recorded by `mlops data add`; None where by DVC alone.
    """

    file: Path
    md5: str
    sums: str | None

    @property
    def root(self) -> Path:
        """The folder that holds the file, and `.dvc/`."""
        return self.file.parent


def find_root(start: Path | None = None) -> Path | None:
    """The nearest folder from `start` (here, when left out) upwards that DVC is set up in."""
    here = (start or Path.cwd()).absolute()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)


def need_root() -> Path:
    """As `find_root`.

    Raises:
        MlopsError: there is none.
    """
    root = find_root()
    if root is None:
        raise MlopsError(f"{Path.cwd()}: is in no project that DVC is set up in; go to its folder, or run `dvc init`")
    return root


def read_pointer(file: Path, output: str = DATA) -> Pointer | None:
    """What a `.dvc` file says; None where there is no such file.

    Raises:
        MlopsError: it is no `.dvc` file of the folder `output` beside it, or could lead elsewhere.
    """
    check_regular(file, str(file))
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise MlopsError(f"{file}: is larger than {_MOST_BYTES:,} bytes; it is no .dvc file")
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise MlopsError(f"{file}: cannot be read: {one_line(error)}") from error
    return parse_pointer(text, file, output)


def parse_pointer(text: str, file: Path, output: str = DATA) -> Pointer:
    """As `read_pointer`, from the text of a file, which need not be there."""
    told = _load(text, file)
    outs = told.get("outs")
    if not isinstance(outs, list) or len(outs) != 1 or not isinstance(outs[0], dict):
        raise MlopsError(f"{file}: outs: must be one output; `git checkout {file.name}` brings back the committed one")
    out, mend = outs[0], f"`git checkout {file.name}` brings back the committed one"
    md5, path, folder = out.get("md5"), out.get("path"), told.get("wdir", ".")
    if not isinstance(md5, str) or not MD5.fullmatch(md5):
        raise MlopsError(f"{file}: md5={str(md5)[:60]}: must be 32 hexadecimal digits and .dir, for a folder; {mend}")
    if not isinstance(path, str) or safe_relative(path, str(file)) != output:
        raise MlopsError(f"{file}: path={str(path)[:60]}: must be {output}; {mend}")
    if folder not in (".", "./"):
        raise MlopsError(
            f"{file}: wdir={str(folder)[:60]}: must be left out, for {output} lies beside the file; {mend}"
        )
    if told.get("deps") or told.get("cmd"):
        raise MlopsError(f"{file}: names a command or an import; only data that was added by `dvc add` is read")
    meta = told.get("meta") or {}
    sums = meta.get(SUMS_KEY) if isinstance(meta, dict) else None
    if sums is not None and not (isinstance(sums, str) and _SHA256.fullmatch(sums)):
        raise MlopsError(f"{file}: meta.{SUMS_KEY}={str(sums)[:60]}: must be 64 hexadecimal digits; {mend}")
    return Pointer(file, md5, sums if isinstance(meta, dict) and meta.get(SUMS_OF) == md5 else None)


def write_sums(file: Path, sums: str) -> None:
    """Note the SHA-256 of the folder's manifest in its `.dvc` file, beside all that DVC wrote."""
    import yaml

    told = dict(_load(file.read_text(encoding="utf-8"), file))
    told["meta"] = {**(told.get("meta") or {}), SUMS_KEY: sums, SUMS_OF: told["outs"][0]["md5"]}
    write_text(file, yaml.safe_dump(told, sort_keys=False, allow_unicode=True))


def _load(text: str, file: Path) -> Mapping[str, Any]:
    import yaml

    told = None
    # A merge conflict, an alias that holds itself, half a file.
    with contextlib.suppress(yaml.YAMLError, RecursionError, ValueError):
        told = yaml.safe_load(text)
    if not isinstance(told, dict):
        raise MlopsError(f"{file}: is not readable as YAML; `git checkout {file.name}` brings back the committed one")
    return told


@dataclass(frozen=True)
class Version:
    """Data that was found to be what `data.dvc` names: its MD5 there, and the commit of that; None if uncommitted."""

    md5: str
    revision: str | None

    @property
    def short(self) -> str:
        """As a person tells versions apart."""
        return f"{self.md5[:8]}{f', git {self.revision[:8]}' if self.revision else ''}"
