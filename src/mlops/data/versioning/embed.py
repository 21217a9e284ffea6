"""The data set that ships with scikit-learn as one `.tar`: what the committed `data.dvc` describes.

The same bytes on every platform and with every version of Python: names in order, no owner, no date, and images as
plain PGM, which nothing compresses.
"""

import hashlib
import io
import tarfile
from pathlib import Path

from mlops.data.sources import digits
from mlops.data.versioning.pointer import DATA, POINTER, read_pointer
from mlops.data.versioning.sums import SUMS, list_files
from mlops.errors import MlopsError, shorten
from mlops.files import atomic, sha256_of, write_text

ARCHIVE = "digits.tar"
# Of the archive below; a test makes it again and compares, so that the committed data.dvc stays true.
SHA256 = "8dbcd94ef63308aab493a0e1d7b2633654911246511f0417d384ee446c69c5a0"
# Of a `data/` that holds that and its manifest and nothing else, as DVC counts it.
DVC_MD5 = "5a43a87f02b9ad5acb3394ebe97042ae.dir"


def make_archive() -> bytes:
    """`<class>/<number>.pgm` of all 1,797 digits in an uncompressed .tar."""
    tree = digits().tree
    buffer = io.BytesIO()
    # USTAR has no extensions that a later Python would write otherwise.
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in tree.names:
            content = tree.read(name)
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def embed(root: Path) -> Path:
    """Write the archive and its manifest into `data/` of a project: then it is what the committed `data.dvc` names.

    Raises:
        MlopsError: `data/` holds, or `data.dvc` names, other data, which this would hide; scikit-learn ships other
            digits than those that `data.dvc` describes; the disk is full.
    """
    folder, pointer = root / DATA, read_pointer(root / POINTER)
    if pointer is None or pointer.md5 != DVC_MD5:
        raise MlopsError(f"{root / POINTER}: does not name the digits; `invoke data-pull` brings its data")
    sums = f"{SHA256}  {ARCHIVE}\n"
    ours = {ARCHIVE: SHA256, SUMS: hashlib.sha256(sums.encode()).hexdigest()}
    names = [*list_files(folder), *([SUMS] if (folder / SUMS).exists() else [])] if folder.exists() else []
    others = [name for name in names if ours.get(name) != sha256_of(folder / name)]
    if others:
        raise MlopsError(
            f"{folder}: holds {shorten(others)}; the digits belong into an empty folder: move that away, or make it "
            "the version of this project with `invoke data-push`"
        )
    content = make_archive()
    if (made := hashlib.sha256(content).hexdigest()) != SHA256:
        raise MlopsError(
            f"{folder / ARCHIVE}: is not what data.dvc describes (SHA-256 {made}, not {SHA256}): this scikit-learn "
            "ships other digits; install the pinned one with `uv sync`"
        )
    with atomic(folder / ARCHIVE) as temporary:
        temporary.write_bytes(content)
    write_text(folder / SUMS, sums)
    return folder / ARCHIVE
