"""`uv run invoke --list` is the menu. Each task is the one command it echoes; none holds logic of its own."""

import os
import shlex
import subprocess
import sys
from itertools import pairwise
from typing import NoReturn

from invoke import Exit, Task, task

PYTHON = sys.executable
LATEST = "models/latest/best_model.pth"
OVERRIDE = {"override": "a Hydra override key=value; repeatable"}


def _become(*command: str) -> NoReturn:
    """Replace this process by `command`: the terminal, signals and the exit code are then the command's own."""
    print(f"+ {shlex.join(['python', *command])}", file=sys.stderr, flush=True)
    if os.name == "posix":
        os.execv(PYTHON, [PYTHON, *command])
    raise SystemExit(subprocess.run([PYTHON, *command], check=False).returncode)


@task(iterable=["override"], help=OVERRIDE)
def preprocess_data(c, override):
    """Prepare the images for training: read, check, split, resize once. `train` does it too when needed."""
    _become("-m", "mlops.preprocess", *override)


@task(iterable=["override"], help=OVERRIDE)
def train(c, override):
    """Train a model and write best_model.pth: -o data=gtsrb -o training.epochs=40 -o debug=smoke ..."""
    _become("-m", "mlops.train", *override)


@task(
    help={
        "checkpoint": "the file to score",
        "data": "a folder, .tar or .zip of images; the checkpoint's own test split when left out",
        "json": "also write the scores here",
    }
)
def evaluate(c, checkpoint=LATEST, data=None, json=None):
    """Score a checkpoint: accuracy, precision, recall and F1 of every class, and the confusion matrix."""
    _become("-m", "mlops.cli", "evaluate", checkpoint, *([data] if data else []), *(["--json", json] if json else []))


@task(
    aliases=["visualize"],
    help={
        "checkpoint": "the file to report on",
        "output": "folder for the report; one beside the checkpoint when left out",
        "split": "train, val or test",
    },
)
def report(c, checkpoint=LATEST, output=None, split="test"):
    """Write a page about a checkpoint: curves, confusions, worst mistakes, calibration. Also: visualize."""
    _become(*("-m", "mlops.cli", "report", checkpoint, "--split", split), *(["--output", output] if output else []))


@task
def info(c, checkpoint=LATEST):
    """Show what a checkpoint recognises, how well, and what it was made from."""
    _become("-m", "mlops.cli", "info", checkpoint)


@task
def test(c):
    """Run everything that must be green: lint, format, types, tests with coverage."""
    _all_of(
        lint="ruff check .",
        format="ruff format --check .",
        types="mypy",
        tests="pytest --cov --cov-report=term:skip-covered",
    )


@task
def lint(c):
    """Check style and types, and mend what can be mended without a person."""
    _all_of(lint="ruff check --fix .", format="ruff format .", types="mypy")


@task
def lock(c):
    """Resolve all versions anew and pin them in pyproject.toml and requirements/*.txt."""
    _become("requirements/lock.py")


def _all_of(**commands: str) -> None:
    """Run each with this environment's programs, also after one failed; one summary, one exit code."""
    results = {}
    for name, command in commands.items():
        print(f"+ {command}", file=sys.stderr, flush=True)
        results[name] = subprocess.run([PYTHON, "-m", *command.split()], check=False).returncode == 0
    print("\n".join(f"{'ok    ' if ok else 'FAILED'} {name}" for name, ok in results.items()), flush=True)
    if not all(results.values()):
        raise Exit(code=1)


def _refuse_bare_overrides(words: list[str], tasks: list[str]) -> None:
    """`invoke train lr=1` would end in "No idea what 'lr=1' is!"; say what works instead."""
    overrides = [word for word in words[1:] if "=" in word and not word.startswith("-")]
    bare = [word for before, word in pairwise(words) if word in overrides and not before.startswith("-")]
    if bare:
        name = next((word for word in words if word in tasks), "train")
        right = " ".join(f"-o {shlex.quote(word)}" for word in overrides)
        raise Exit(f"error: {bare[0]}: overrides follow -o: invoke {name} {right}", code=2)


# invoke offers no place for this between reading this file and reading the command line.
_refuse_bare_overrides(
    sys.argv, [name.replace("_", "-") for name, value in globals().items() if isinstance(value, Task)]
)
