"""`mlops doctor`: what stands in the way of a training here, and for each the one command that mends it."""

import base64
import http.client
import json
import netrc
import os
import platform
import shutil
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from mlops import credentials
from mlops.deadline import begin, within
from mlops.errors import MlopsError, one_line, printable, shorten
from mlops.git import git
from mlops.storage import shown
from mlops.tables import out, pairs, to_copy

# Bytes below which a training may find the disk full.
LEAST_FREE = 2 * 10**9
# Seconds in which W&B has to answer; the bucket's is remote.ANSWER_TIMEOUT.
WANDB_TIMEOUT = 5.0
# And for all else, such as hashing the data.
CHECK_TIMEOUT = 120.0
# Python versions, as pyproject.toml has them.
PYTHONS = ((3, 11), (3, 14))

_STYLES = {"ok": "green", "FAIL": "bold red", "unset": "yellow"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        state: `ok`, `FAIL`, or `unset`: not set up, and not needed for what is set up.
        mend: the one command that mends or sets it up; empty when there is nothing to do.
    """

    what: str
    state: Literal["ok", "FAIL", "unset"]
    found: str
    mend: str = ""


def examine(processed: Path) -> list[Finding]:
    """Look at everything, at once where it takes long. Nothing is changed; nothing takes longer than its limit."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("Python", _python),
        ("torch", _torch),
        ("disk", _disk),
        ("git", _git),
        ("DVC remote", _remote),
        ("W&B account", _wandb),
        ("data", _data),
        ("prepared data", lambda: _prepared(processed)),
        ("key files", _keys),
    ]
    running = [(name, begin(check)) for name, check in checks]
    findings = []
    for name, future in running:
        try:
            findings.append(future.result(CHECK_TIMEOUT))
        except MlopsError as error:
            findings.append(Finding(name, "FAIL", error.problems[0], _command_in(error.problems[0])))
        except TimeoutError:
            findings.append(Finding(name, "FAIL", f"not known within {CHECK_TIMEOUT:.0f} s", "invoke data-status"))
        except Exception as error:  # one thing that cannot be looked at must not hide the others
            findings.append(
                Finding(name, "FAIL", f"{type(error).__name__}: {one_line(error)[:200]}", "mlops --version")
            )
    return findings


def show(findings: Iterable[Finding], *, as_json: bool = False) -> bool:
    """Print the table; returns whether nothing fails."""
    findings = list(findings)
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False) + "\n")
    else:
        table = Table(box=None, pad_edge=False, header_style="cyan", padding=(0, 2, 0, 0))
        for column in ("", "state", "found"):
            table.add_column(column, overflow="fold")
        for one in findings:
            table.add_row(printable(one.what), Text(one.state, _STYLES[one.state]), printable(one.found))
        out.print(table)
        # Apart from the table, whose lines are broken: commands are copied.
        for state, title in (("FAIL", "To mend"), ("unset", "To set up, where wanted")):
            if rows := [(one.what, one.mend) for one in findings if one.state == state]:
                pairs(title, rows)
    return all(finding.state != "FAIL" for finding in findings)


def _command_in(problem: str) -> str:
    """The command that an error names, between its first pair of backquotes."""
    parts = problem.split("`")
    return parts[1] if len(parts) > 2 else ""


def _python() -> Finding:
    low, high = PYTHONS
    fine = low <= sys.version_info[:2] < high
    found = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    return Finding("Python", "ok" if fine else "FAIL", found, "" if fine else "uv python install 3.12 && uv sync")


def _torch() -> Finding:
    try:
        import torch

        from mlops.training.device import pick_device
    except ImportError as error:
        return Finding("torch", "FAIL", one_line(error), "uv sync")
    device = pick_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return Finding("torch", "ok", f"{torch.__version__} on {name}, {torch.get_num_threads()} threads")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{free / 1e9:,.1f} GB free in {Path.cwd()}"
    if not os.access(Path.cwd(), os.W_OK):
        return Finding("disk", "FAIL", f"{Path.cwd()} cannot be written to", "chmod u+w .")
    if free < LEAST_FREE:
        return Finding("disk", "FAIL", found, "rm -r outputs/<old runs>")
    return Finding("disk", "ok", found)


def _git() -> Finding:
    commit = git(Path.cwd(), "rev-parse", "--short", "HEAD")
    if commit is None:
        if shutil.which("git") is None:
            return Finding("git", "FAIL", "git is not installed", "install git")
        return Finding("git", "FAIL", f"{Path.cwd()} is in no commit, so checkpoints name no code", "git init")
    changed = (git(Path.cwd(), "status", "--porcelain") or "").splitlines()
    return Finding("git", "ok", f"commit {commit.strip()}{f', {len(changed)} files changed since' if changed else ''}")


def _remote() -> Finding:
    from mlops.data.versioning.pointer import find_root
    from mlops.data.versioning.remote import ANSWER_TIMEOUT, reach, read_remote

    root = find_root()
    if root is None:
        return Finding("DVC remote", "FAIL", f"DVC is not set up in {Path.cwd()}", "dvc init")
    remote = read_remote(root)
    set_it = to_copy("invoke", "data-remote", "gs://bucket/path")
    if remote is None or remote.is_placeholder:
        return Finding("DVC remote", "unset", "none yet; the embedded data needs none", set_it)
    try:
        reach(remote, ANSWER_TIMEOUT)
    except MlopsError as error:
        return Finding("DVC remote", "FAIL", error.problems[0], _command_in(error.problems[0]) or set_it)
    return Finding("DVC remote", "ok", f"{remote.shown} answers with these credentials")


def _wandb() -> Finding:
    log_in = to_copy("wandb", "login")
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")
    if (key := _wandb_key(address)) is None:
        return Finding("W&B account", "unset", "none; runs are kept on disk (tracking=offline)", log_in)
    try:
        viewer = within(WANDB_TIMEOUT, lambda: _viewer(address, key))
    except TimeoutError:
        return Finding("W&B account", "FAIL", f"{shown(address)}: no answer within {WANDB_TIMEOUT:.0f} s", log_in)
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        return Finding("W&B account", "FAIL", f"{shown(address)}: {one_line(error)[:200]}", log_in)
    return Finding("W&B account", "ok", viewer)


def _wandb_key(address: str) -> str | None:
    """The key that W&B would use: from the environment, else from where `wandb login` puts it."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(urllib.parse.urlsplit(address).hostname or "")
    except (OSError, netrc.NetrcParseError):
        return None
    return found[2] if found else None


def _viewer(address: str, key: str) -> str:
    """Who a key belongs to. W&B's own client would start a process and try for longer."""
    if not address.startswith(("https://", "http://")):
        raise ValueError("WANDB_BASE_URL is no web address")
    secret = base64.b64encode(f"api:{key}".encode()).decode()
    request = urllib.request.Request(  # noqa: S310 - checked above
        f"{address}/graphql",
        data=json.dumps({"query": "query Viewer { viewer { username entity } }"}).encode(),
        headers={"Authorization": f"Basic {secret}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=WANDB_TIMEOUT) as answer:  # noqa: S310
        viewer = json.load(answer)["data"]["viewer"]
    if viewer is None:
        raise ValueError("does not know this key")
    return f"{viewer['username']}, {viewer['entity']}"


def _data() -> Finding:
    from mlops.data.versioning.embed import DVC_MD5
    from mlops.data.versioning.pointer import DATA, POINTER, find_root, read_pointer
    from mlops.data.versioning.sums import SUMS
    from mlops.data.versioning.versions import compare_here

    root = find_root()
    pointer = read_pointer(root / POINTER) if root else None
    pull, push = to_copy("invoke", "data-pull"), to_copy("invoke", "data-push")
    if root is None or pointer is None:
        return Finding("data", "unset", "no data is versioned here", push)
    if pointer.md5 == DVC_MD5 and not (root / DATA / SUMS).is_file():
        return Finding("data", "ok", f"{POINTER} names the digits that ship with scikit-learn: nothing to pull")
    wrong = compare_here(root, pointer)
    if not wrong:
        return Finding("data", "ok", f"version {pointer.md5[:8]} of {POINTER}, every file as recorded")
    mend = pull if "`invoke data-pull`" in wrong or "missing" in wrong else push
    return Finding("data", "FAIL", f"{root / DATA}: {wrong.split(': `')[0]}", mend)


def _prepared(processed: Path) -> Finding:
    from mlops.data.prepare import open_prepared
    from mlops.data.versioning.pointer import POINTER, find_root, read_pointer

    folders = sorted(path.parent for path in processed.glob("[!.]*/manifest.json"))
    prepare = to_copy("invoke", "preprocess-data")
    if not folders:
        return Finding("prepared data", "unset", "none yet; training prepares it", prepare)
    problems, opened = [], []
    for folder in folders:
        try:
            opened.append(open_prepared(folder))
        except MlopsError:
            problems.append(folder)
    if problems:
        return Finding(
            "prepared data", "FAIL", f"damaged: {shorten([str(f) for f in problems])}", to_copy("rm", "-r", *problems)
        )
    root = find_root()
    pointer = read_pointer(root / POINTER) if root else None
    named = [one for one in opened if one.manifest["source"].get("dvc_md5")]
    fresh = [one for one in named if pointer and one.manifest["source"]["dvc_md5"] == pointer.md5]
    if named and not fresh:
        return Finding("prepared data", "FAIL", f"all of earlier versions than {POINTER} names", prepare)
    of = f", {len(fresh)} of the version that {POINTER} names" if named else ""
    return Finding("prepared data", "ok", f"{len(opened)} folders in {processed}{of}")


def _keys() -> Finding:
    from mlops.data.versioning.pointer import find_root
    from mlops.data.versioning.remote import read_remote

    root = find_root() or Path.cwd()
    found = [f"{path} ({kind})" for path, kind in credentials.keys_below(root)]
    remote = read_remote(root) if (root / ".dvc").is_dir() else None
    key = Path(remote.options.get("token", "anon")) if remote else Path("anon")
    if key.is_absolute() and key.is_relative_to(root):
        found.append(f"{key.relative_to(root)} (named in .dvc/config.local)")
    if found:
        where = Path(found[0].split(" (")[0])
        return Finding("key files", "FAIL", f"in this folder: {shorten(found)}", to_copy("mv", where, Path.home()))
    return Finding("key files", "ok", "none in this folder")
