"""`mlops data ...`: versions of the data, and a look at it before training. Imports wait until they are needed."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from mlops.cli_common import PROCESSED
from mlops.errors import MlopsError
from mlops.files import writing_to

app = typer.Typer(help="Versions of data/ in a bucket, by DVC; and what a data set holds.", no_args_is_help=True)

Processed = Annotated[Path, typer.Option("--processed-in", help="Where prepared data lies.", metavar="FOLDER")]


@app.callback()
def _options() -> None:
    from mlops import stopping
    from mlops.progress import ConsoleHandler

    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[ConsoleHandler()])
    stopping.listen()


@app.command()
def remote(
    url: Annotated[str, typer.Argument(help="gs://bucket/path, or the folder of a network share", metavar="URL")],
) -> None:
    """Say which bucket versions of the data live in, for everybody who has this repository: .dvc/config."""
    from mlops.data.versioning.pointer import need_root
    from mlops.data.versioning.remote import reach
    from mlops.data.versioning.versions import set_remote
    from mlops.tables import pairs, to_copy

    root = need_root()
    set_to = set_remote(root, url)
    rows = [("remote", f"{set_to.name}, {set_to.shown}"), ("written to", root / ".dvc" / "config")]
    try:
        reach(set_to)
        rows.append(("reachable", "yes, with these credentials"))
    except MlopsError as error:
        rows.append(("reachable", f"no: {error.problems[0]}"))
    pairs("Remote", rows)
    pairs(
        "Next",
        [
            ("for everybody", _commit(".dvc/config", "Data lives in a bucket of ours")),
            ("send what is in data/", to_copy("invoke", "data-push")),
        ],
    )


Replace = Annotated[
    bool,
    typer.Option(
        "--replace", help="Also where data/ was not made from the version that data.dvc names, but replaces it."
    ),
]


@app.command()
def add(replace: Replace = False) -> None:
    """Record what is in data/ as a version, without sending it: data/SHA256SUMS and data.dvc."""
    from mlops.data.versioning.pointer import need_root
    from mlops.data.versioning.versions import add as record

    _show_version(record(need_root(), replace=replace).root, "Recorded", sent=False)


@app.command()
def push(
    processed: Annotated[
        bool, typer.Option("--processed", help="Send what was prepared from the current version, not data/ itself.")
    ] = False,
    replace: Replace = False,
    processed_in: Processed = PROCESSED,
) -> None:
    """Record what is in data/ as a version and send it to the bucket."""
    from mlops.data.versioning.pointer import PREPARED_POINTER, need_root
    from mlops.data.versioning.prepared import push_prepared
    from mlops.data.versioning.versions import push as record_and_send
    from mlops.tables import pairs, to_copy

    root = need_root()
    if not processed:
        record_and_send(root, replace=replace)
        _show_version(root, "Sent", sent=True)
        return
    names = push_prepared(root, processed_in)
    pairs("Sent", [("prepared", name) for name in names])
    pairs(
        "Next",
        [
            ("for everybody", _commit(PREPARED_POINTER, "Prepared data of this version")),
            ("elsewhere", to_copy("invoke", "data-pull", "--processed")),
        ],
    )


@app.command()
def pull(
    checkpoint: Annotated[
        str | None,
        typer.Option("--for", help="The version that this checkpoint was trained on.", metavar="CHECKPOINT"),
    ] = None,
    processed: Annotated[
        bool, typer.Option("--processed", help="Fetch what was prepared from the data, not the images.")
    ] = False,
    processed_in: Processed = PROCESSED,
) -> None:
    """Bring data/ to the version that data.dvc names: fetched, verified, nothing of yours overwritten."""
    from mlops.checkpoint import read_metadata
    from mlops.data.versioning.pointer import need_root
    from mlops.data.versioning.prepared import pull_prepared
    from mlops.data.versioning.versions import pull as fetch
    from mlops.data.versioning.versions import pull_version
    from mlops.tables import pairs

    root = need_root()
    if processed and checkpoint:
        raise MlopsError("--for, --processed: choose one")
    if processed:
        pairs("Here", [("prepared", processed_in / name) for name in pull_prepared(root, processed_in)])
        return
    with writing_to(root):
        if checkpoint:
            from mlops.registry import opened

            with opened(checkpoint) as path:
                told = read_metadata(path)["data"]
            pull_version(root, told)
        else:
            fetch(root)
    _show_version(root, "Here", sent=None)


@app.command()
def status() -> None:
    """Show how data/, data.dvc and the bucket stand to each other; exit code 1 where they differ."""
    from mlops.data.versioning.pointer import need_root
    from mlops.data.versioning.versions import status as compare
    from mlops.tables import pairs

    found = compare(need_root())
    revision = found.version.revision
    pairs(
        "Data",
        [
            ("version", f"{found.version.md5}, {f'git {revision[:12]}' if revision else 'not committed'}"),
            ("data/", found.here or "as recorded, every file"),
            ("bucket", found.remote),
            ("sent", found.sent or "all of it"),
        ],
    )
    raise typer.Exit(0 if found.fine else 1)


@app.command()
def embed() -> None:
    """Write the digits that ship with scikit-learn into data/ as one .tar: the version that this repository names."""
    from mlops.data.versioning.embed import embed as write
    from mlops.data.versioning.pointer import DATA, need_root

    root = need_root()
    write(root)
    _show_version(root, f"Written to {root / DATA}", sent=None)


@app.command()
def check(
    source: Annotated[
        str,
        typer.Argument(help="Folder, .tar or .zip of images, or `digits`", metavar="SOURCE"),
    ],
    layout: Annotated[
        str | None, typer.Option(help="folder, csv or gtsrb; found by looking when left out.", metavar="LAYOUT")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Regular expression on file names, as data.group.", metavar="REGEX")
    ] = None,
    csv: Annotated[str | None, typer.Option(help="The table of layout csv; labels.csv when left out.")] = None,
    near: Annotated[
        str,
        typer.Option(
            help="error or warn: near-copies in two splits of the source. Where a camera never moves, all its pictures "
            "are near-copies.",
            metavar="error|warn",
        ),
    ] = "error",
    output: Annotated[
        Path | None,
        typer.Option(help="Where the report goes; outputs/checks/<name of SOURCE> when left out.", metavar="FOLDER"),
    ] = None,
) -> None:
    """Report on images before training: counts, sizes, brightness, copies, near-copies; exit code 2 after a leak."""
    from mlops.data.checking.check import check_source, describe_source, show_checked

    if near not in ("error", "warn"):
        raise MlopsError(f"--near={near}: must be error or warn")
    config = describe_source(source, layout=layout, group=group, csv=csv)
    name = Path(source).name.split(".")[0] or "data"
    checked = check_source(config, output or Path("outputs") / "checks" / name, near_leaks=near == "error")
    show_checked(checked)
    if problems := [*checked.leaks, *checked.problems]:
        raise MlopsError(problems)


def _commit(file: str, message: str) -> str:
    """The commands that commit a file, which git may not know yet."""
    return f'git add {file} && git commit {file} -m "{message}"'


def _show_version(root: Path, title: str, *, sent: bool | None) -> None:
    """Which version is here, and, where it was just recorded, what to do with it."""
    from mlops.data.versioning.pointer import DATA, POINTER
    from mlops.data.versioning.sums import read_sums
    from mlops.data.versioning.versions import need_pointer
    from mlops.git import revision_of
    from mlops.tables import pairs, to_copy

    pointer = need_pointer(root)
    revision = revision_of(pointer.file)
    files = [] if pointer.sums is None else [("files", f"{len(read_sums(root / DATA)):,}, each as its SHA-256 says")]
    pairs(title, [("version", pointer.md5), ("git", revision or "not committed"), *files])
    commit = ("tell everybody", _commit(POINTER, "New version of the data"))
    rows = [commit] if sent is not None and revision is None else []
    pairs_next = rows + ([("send it", to_copy("invoke", "data-push"))] if sent is False else [])
    if pairs_next:
        pairs("Next", pairs_next)
