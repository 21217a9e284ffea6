"""Versions of `data/`: recorded, sent, fetched and compared, by DVC's own commands and with our manifest."""

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from mlops.data.versioning.dvc import SEND_TIMEOUT, Finished, dvc, forget_remote
from mlops.data.versioning.embed import DVC_MD5, embed
from mlops.data.versioning.objects import check_names, damaged, is_cached, listing, send_again
from mlops.data.versioning.pointer import (
    DATA,
    MD5,
    POINTER,
    Pointer,
    Version,
    parse_pointer,
    read_pointer,
    write_sums,
)
from mlops.data.versioning.remote import NAME, Remote, check_url, need_remote, reach, read_remote
from mlops.data.versioning.sums import SUMS, compare, describe, read_sums, write_sums_of
from mlops.errors import MlopsError, shorten
from mlops.files import sha256_of, write_text, writing_to
from mlops.git import git, revision_of
from mlops.storage import Bucket, shown

log = logging.getLogger(__name__)

# Not bare numbers: hashes and names of files hold them too.
_NOT_ALLOWED = re.compile(r"Forbidden|Unauthorized|invalid_grant|Anonymous caller|does not have storage\.")


@dataclass(frozen=True)
class Status:
    """What is here, and how it stands to `data.dvc` and to the bucket, in words; an empty text is nothing to say."""

    version: Version
    here: str
    remote: str
    sent: str
    fine: bool


def need_pointer(root: Path) -> Pointer:
    """`data.dvc` of the project at `root`.

    Raises:
        MlopsError: there is none, or it may not be read.
    """
    pointer = read_pointer(root / POINTER)
    if pointer is None:
        raise MlopsError(f"{root / POINTER}: is not there, so no data is versioned; `invoke data-push` makes it")
    return pointer


def set_remote(root: Path, url: str) -> Remote:
    """Make `url` the bucket of this project, for everybody: `.dvc/config` is committed.

    Raises:
        MlopsError: it is no bucket's address.
    """
    address = check_url(url)
    name = NAME if address.startswith("gs://") else "share"
    # `verify`: else an object that somebody changed is pulled without a word.
    for words in (("add", "--force", "--default", name, address), ("modify", name, "verify", "true")):
        done = dvc(root, "remote", *words, doing="setting the remote")
        if done.code:
            raise MlopsError(f"{address}: cannot be set as remote: {done.reason}")
    return need_remote(root)


def add(root: Path, *, replace: bool = False) -> Pointer:
    """Record what is in `data/` as a version: the manifest in it, and `data.dvc`. Nothing is sent.

    Raises:
        MlopsError: what is here was not made from the version that `data.dvc` names, and would take its place without
            what that holds, unless `replace`; a file cannot be versioned or read; the disk is full.
    """
    before = read_pointer(root / POINTER)  # a broken one is not overwritten
    data = root / DATA
    if not data.is_dir():
        raise MlopsError(f"{data}: is not there; put the images into it, as a folder or an archive")
    if data.is_symlink():
        raise MlopsError(f"{data}: is a link; move the folder itself here, for DVC versions no links")
    if before and before.sums and before.md5 != DVC_MD5 and not replace:
        here = sha256_of(data / SUMS) if (data / SUMS).is_file() else None
        if here != before.sums:
            raise MlopsError(
                f"{data}: is not made from version {before.md5[:8]}, which {POINTER} names: the next one would lack "
                "what that holds; `invoke data-pull` first, or `invoke data-push --replace` if this is meant"
            )
    old = (data / SUMS).read_bytes() if (data / SUMS).is_file() else None
    sums = write_sums_of(data, before.sums if before else None)
    try:
        succeeded(dvc(root, "add", DATA, doing=f"recording {DATA}"), f"{data}: cannot be recorded", root)
    except BaseException:
        # As it was: this manifest is of no version.
        (data / SUMS).unlink() if old is None else (data / SUMS).write_bytes(old)
        raise
    write_sums(root / POINTER, sums)
    pointer = need_pointer(root)
    kept = listing(root, pointer.md5)
    if kept is not None and (lost := sorted(read_sums(data).keys() - kept.keys())):
        raise MlopsError(
            f"{data}: DVC leaves out {shorten(lost)} by a .dvcignore of its own; write that into {root / '.dvcignore'}"
        )
    return pointer


def push(root: Path, *, replace: bool = False) -> Pointer:
    """Record what is in `data/`, as `add` does, and send it.

    Raises:
        MlopsError: nothing is recorded where the bucket cannot be reached; what was recorded stays where sending fails.
    """
    remote = need_remote(root)
    bucket = reach(remote)
    pointer = add(root, replace=replace)
    send(root, pointer, remote, bucket)
    return pointer


def send(root: Path, pointer: Pointer, remote: Remote, bucket: Bucket) -> None:
    """Push the output of a `.dvc` file, and see that all of it is there, as it is here."""
    forget_remote(root)
    done = dvc(
        root, "push", pointer.file.name, "--remote", remote.name, doing=f"sending to {remote.shown}", limit=SEND_TIMEOUT
    )
    succeeded(done, f"{remote.shown}: not all of {pointer.file.name} was sent; repeat it", root)
    if again := send_again(root, pointer, bucket):
        log.warning(
            f"{remote.shown}: {again:,} objects of this version were missing or changed there, and were sent again"
        )


def pull(root: Path) -> Pointer:
    """Bring `data/` to the version that `data.dvc` names. What is here and in no version is never overwritten.

    Raises:
        MlopsError: the bucket cannot be reached, lacks an object or holds another one in its place, the disk is full,
            or files that are in no version are in the way.
    """
    pointer = need_pointer(root)
    if _is_here(pointer):
        return pointer
    remote = read_remote(root)
    if pointer.md5 == DVC_MD5 and (remote is None or remote.is_placeholder):
        log.info(f"{POINTER} names the digits that ship with scikit-learn: no bucket is needed")
        embed(root)
        return pointer
    remote = need_remote(root)
    bucket = reach(remote)
    fetch(root, pointer, remote, bucket)
    if pointer.sums is not None:
        found = compare(root / DATA, read_sums(root / DATA))
        if sha256_of(root / DATA / SUMS) != pointer.sums or not found.same:
            raise MlopsError(
                f"{root / DATA}: is not what the manifest of {POINTER} names ({describe(found) or SUMS}); "
                "was data.dvc edited? `git checkout data.dvc` brings back the committed one"
            )
    return pointer


@contextlib.contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Wait until no other run of this project fetches: of several that start at once, one does it for all."""
    folder = root / ".dvc" / "tmp"
    with writing_to(folder):
        folder.mkdir(exist_ok=True)
        lock = filelock.FileLock(folder / "mlops.lock")
        try:
            lock.acquire(timeout=0.5)
        except filelock.Timeout:
            log.info("waiting for another run that fetches the data")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fetch(root: Path, pointer: Pointer, remote: Remote, bucket: Bucket) -> None:
    """Pull the output of a `.dvc` file. Nothing that is here is touched before all of it has come and was looked at.

    Raises:
        MlopsError: as `pull`; or a file of the version would be put outside of its folder.
    """
    where = f"{remote.shown}: cannot be fetched from"
    done = dvc(root, "fetch", pointer.file.name, "--remote", remote.name, doing=f"fetching from {remote.shown}")
    # DVC may end well without all of it; and it would then empty the folder.
    if done.code or not is_cached(root, pointer.md5):
        if not _is_full_or_busy(done, root) and (problems := damaged(root, pointer, remote, bucket)):
            raise MlopsError(problems)
        succeeded(done, where, root)
        raise MlopsError(f"{where}: not all of {pointer.file.name} has come; repeat it")
    check_names(root, pointer)
    placed = dvc(root, "checkout", pointer.file.name, doing="putting the files in place")
    if "unsaved files" in placed.reason:
        files = [line for line in placed.errors if not line.startswith("ERROR")]
        raise MlopsError(
            f"{shorten(files) or root / DATA}: in the way, and in no version: `invoke data-push --replace` keeps what "
            "is here as a new version, `dvc checkout --force` throws it away"
        )
    succeeded(placed, f"{pointer.file}: its files cannot be put in place", root)


def pull_version(root: Path, told: dict[str, Any]) -> Pointer:
    """Bring `data/` and `data.dvc` to the version that a checkpoint's field `data` names.

    Raises:
        MlopsError: it names none; `data.dvc` has changes that are in no commit; or as `pull`, and then `data.dvc` is as
            before.
    """
    wanted, revision = told.get("dvc_md5"), told.get("dvc_rev")
    if not isinstance(wanted, str) or not MD5.fullmatch(wanted):
        raise MlopsError("the checkpoint names no version of the data: it was trained on files that are in none")
    file = root / POINTER
    before = file.read_text(encoding="utf-8") if file.exists() else None
    if before is not None and need_pointer(root).md5 == wanted:
        return pull(root)
    if before is not None and revision_of(file) is None:
        raise MlopsError(f"{file}: has changes that are in no commit; commit it first, for it will be replaced")
    text = _pointer_at(root, revision, wanted) or f"outs:\n- md5: {wanted}\n  hash: md5\n  path: {DATA}\n"
    write_text(file, text)
    try:
        pull(root)
        if need_pointer(root).sums is None and (root / DATA / SUMS).is_file():
            # What was pulled is what the MD5 names, its manifest included.
            write_sums(file, sha256_of(root / DATA / SUMS))
        return need_pointer(root)
    except BaseException:
        if before is None:
            file.unlink()
        else:
            write_text(file, before)
        raise


def status(root: Path) -> Status:
    """How `data/`, `data.dvc` and the bucket stand to each other. Only what can be compared is."""
    pointer = need_pointer(root)
    here = compare_here(root, pointer)
    fine = not here
    try:
        remote = need_remote(root)
        reach(remote)
    except MlopsError as error:
        unknown = "not known: the bucket does not answer"
        return Status(Version(pointer.md5, revision_of(pointer.file)), here, error.problems[0], unknown, False)
    done = dvc(root, "status", POINTER, "--cloud", "--json", "--remote", remote.name, doing=f"asking {remote.shown}")
    succeeded(done, f"{remote.shown}: cannot be compared", root)
    # {"<path>": "new"}: here and not there; "deleted": there and not here; "missing": neither.
    states = list(json.loads(done.out or "{}").values())
    sent = ", ".join(
        f"{states.count(state):,} objects {words}"
        for state, words in (("new", "not sent"), ("deleted", "not fetched"), ("missing", "neither here nor there"))
        if state in states
    )
    fine = fine and "new" not in states and "missing" not in states
    return Status(Version(pointer.md5, revision_of(pointer.file)), here, remote.shown, sent, fine)


def compare_here(root: Path, pointer: Pointer) -> str:
    """How `data/` differs from its version, in words that name the command; empty where it does not."""
    data = root / DATA
    if pointer.sums is None:
        return "not known: data.dvc was written by DVC alone; `mlops data add` adds a manifest"
    if not (data / SUMS).is_file():
        return "not here: `invoke data-pull`"
    if sha256_of(data / SUMS) != pointer.sums:
        return "of another version: `invoke data-pull`"
    return describe(compare(data, read_sums(data)))


def _is_here(pointer: Pointer) -> bool:
    data = pointer.root / DATA
    if pointer.sums is None or not (data / SUMS).is_file() or sha256_of(data / SUMS) != pointer.sums:
        return False
    return compare(data, read_sums(data)).same


def _pointer_at(root: Path, revision: Any, wanted: str) -> str | None:
    """The text of `data.dvc` in a commit, if it names the version that is wanted there."""
    if not isinstance(revision, str) or not re.fullmatch(r"[0-9a-f]{40,64}", revision):
        return None
    text = git(root, "show", f"{revision}:./{POINTER}")
    if text is None:
        return None
    try:
        return text if parse_pointer(text, root / POINTER).md5 == wanted else None
    except MlopsError:
        return None


def succeeded(done: Finished, what: str, root: Path) -> None:
    """Raise, in our words, where DVC failed."""
    if not done.code:
        return
    if known := _is_full_or_busy(done, root):
        raise MlopsError(known)
    if _NOT_ALLOWED.search(done.reason):
        raise MlopsError(f"{what}: not allowed by these credentials; `mlops doctor` says which they are")
    raise MlopsError(f"{what}: {shown(done.reason)[:500]}")


def _is_full_or_busy(done: Finished, root: Path) -> str | None:
    told = done.reason
    if "No space left" in told or "Disk quota" in told:
        return f"{root}: the disk is full; free some space and repeat: what has arrived is kept"
    if "acquire lock" in told or "Another process" in told:
        return f"{root}: another DVC is at work here; wait for it, or end it, and repeat"
    return None
