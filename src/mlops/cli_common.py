"""What the commands of `mlops` share: arguments that several take, and how they print."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mlops.errors import printable

LATEST = "models/latest/best_model.pth"
PROCESSED = Path("data/processed")

Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", help="Full name of a network of your own that the checkpoint may build.", metavar="NAME"),
]
# Text: as a Path, gs:// would become gs:/.
Checkpoint = Annotated[
    str,
    typer.Argument(
        help="best_model.pth of a run: a file, an address such as gs://bucket/best_model.pth, or that of a published "
        "model",
        metavar="CHECKPOINT",
    ),
]
Processed = Annotated[Path, typer.Option(help="Where prepared data lies.")]


def say(text: str) -> None:
    """Print what a program may read: into files and pipes as it is; names in it must not steer a terminal."""
    if sys.stdout.isatty():
        text = "\n".join(printable(line) for line in text.split("\n"))
    typer.echo(text, nl=False)
