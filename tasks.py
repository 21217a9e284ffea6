"""`uv run invoke --list` is the menu. Each task is the one command it echoes; none holds logic of its own."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from invoke import Exit, Task, task

PYTHON = sys.executable
ROOT = Path(__file__).parent
LATEST = "models/latest/best_model.pth"
OVERRIDE = {"override": "a Hydra override key=value; repeatable"}
# All without network: zizmor's online audits compare commits with tags, which a pinned commit's reviewer does too.
CHECKS = {
    "lint": "ruff check .",
    "format": "ruff format --check .",
    "types": "mypy",
    "workflows": "check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml",
    "dependabot": "check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml",
    "actionlint": "actionlint -shellcheck= -pyflakes= .github/workflows/*.yml",
    "containers": "hadolint dockerfiles/*.dockerfile",
    "zizmor": "zizmor --offline --persona=pedantic --no-progress .github",
    "docs": "properdocs build --strict",  # --quiet would silence the warnings that --strict counts
}


IMAGES = ("api", "train")
_HARDENED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
_TERMINAL = ("--interactive", "--tty") if sys.stdin.isatty() else ()
# Into a training, where they are set here.
_PASSED_ON = (
    *("MLOPS_DATA_PULL", "MLOPS_DATA_REMOTE", "MLOPS_EXPORT", "MLOPS_PUBLISH"),
    *("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID"),
)


def _become(*command: str) -> NoReturn:
    """Replace this process by Python with `command`: terminal, signals and exit code are then the command's own."""
    _replace(PYTHON, *command, shown="python")


def _replace(program: str, *words: str, shown: str | None = None) -> NoReturn:
    """Replace this process by any program."""
    print(f"+ {shlex.join([shown or program, *words])}", file=sys.stderr, flush=True)
    if os.name == "posix":
        os.execvp(program, [program, *words])
    raise SystemExit(subprocess.run([program, *words], check=False).returncode)


def _engine() -> str:
    """What builds and runs images here."""
    for name in ("docker", "podman"):
        if shutil.which(name):
            return name
    raise Exit("error: neither docker nor podman is installed; install one of them", code=2)


@task(iterable=["override"], help=OVERRIDE)
def preprocess_data(c, override):
    """Prepare the images for training: read, check, split, resize once. `train` does it too when needed."""
    _become("-m", "mlops.preprocess", *override)


@task(iterable=["override"], help=OVERRIDE)
def train(c, override):
    """Train a model and write best_model.pth: -o data=gtsrb -o training.epochs=40 -o debug=smoke ..."""
    _become("-m", "mlops.train", *override)


@task(
    iterable=["override"],
    help={
        "file": "a W&B sweep file: the name of one in configshydra/sweep/, or a path",
        "jobs": "trials at the same time",
        "dry-run": "print the commands of the trials, check their settings, and train nothing",
        "override": "what all trials share, or sweep.KEY=VALUE; repeatable",
    },
)
def sweep(c, override, file="default", jobs=1, dry_run=False):
    """Search for better settings, here and without an account: -o data=gtsrb -o sweep.trials=20 ..."""
    _become("-m", "mlops.sweep", f"sweep.file={file}", f"sweep.jobs={jobs}", f"sweep.dry_run={dry_run}", *override)


@task(
    help={
        "checkpoint": "the file to score",
        "data": "a folder, .tar or .zip of images (its splits, groups: mlops evaluate --help); else the own test split",
        "json": "also write the scores here",
    }
)
def evaluate(c, checkpoint=LATEST, data=None, json=None):
    """Score a checkpoint: accuracy and its interval, calibration, every class, and the confusion matrix."""
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


@task(help={"checkpoint": "the file to prove", "epochs": "only the first so many; all when left out"})
def reproduce(c, checkpoint=LATEST, epochs=None):
    """Train again from what a checkpoint says and compare: is it what it claims to be?"""
    _become("-m", "mlops.cli", "reproduce", checkpoint, *(["--epochs", str(epochs)] if epochs else []))


@task(positional=["first", "second"], help={"first": "a checkpoint", "second": "another one"})
def diff(c, first, second):
    """Show what differs between two checkpoints: config, data, code, machine, metrics, weights."""
    _become("-m", "mlops.cli", "diff", first, second)


@task(
    help={
        "checkpoint": "the file to export",
        "output": "the file to write; model.onnx beside the checkpoint when left out",
        "data": "a folder, .tar or .zip of images to compare the answers on; else the own validation images",
        "quantize": "int8: compute in eight bits",
        "prune": "take out this share of the channels, such as 0.3, and train again for a few epochs",
    }
)
def export(c, checkpoint=LATEST, output=None, data=None, quantize=None, prune=None):  # noqa: PLR0917 - its options
    """Write a checkpoint as ONNX: one file that runs without torch and was seen to answer alike."""
    given = {"--output": output, "--data": data, "--quantize": quantize, "--prune": prune}
    options = [word for name, value in given.items() if value for word in (name, str(value))]
    _become("-m", "mlops.cli", "export", checkpoint, *options)


@task(
    iterable=["file"],
    help={
        "file": "model.onnx or best_model.pth; repeatable, and the first is the measure",
        "data": "a folder, .tar or .zip of images in folders named as classes; else the own validation images",
        "threads": "of each model; 0 is one for each core",
    },
)
def bench(c, file, data=None, threads=1):
    """Measure models side by side: -f models/latest/best_model.pth -f models/latest/model.onnx."""
    options = ["--threads", str(threads), *(["--data", data] if data else [])]
    _become("-m", "mlops.cli", "bench", *file, *options)


@task(
    iterable=["model"],
    help={
        "model": "[NAME=]FILE: what mlops export wrote; repeatable; models/latest/model.onnx when left out",
        "port": "port to listen at",
        "workers": "processes that answer; one for each processor when left out",
        "config": "a YAML file with ensembles, aliases, limits and keys",
        "reload": "load a model again when its file changes",
    },
)
def api(c, model, port=8000, workers=None, config=None, *, reload=False):
    """Answer over HTTP which class is on a picture (all options: mlops serve --help)."""
    options = [*(["--workers", str(workers)] if workers else []), *(["--config", config] if config else [])]
    _become("-m", "mlops.cli", "serve", *model, "--port", str(port), *options, *(["--reload"] if reload else []))


@task(
    positional=["checkpoint", "address"],
    help={"checkpoint": "the file to publish", "address": "gs://bucket/models/NAME"},
)
def publish(c, checkpoint, address):
    """Put a finished checkpoint into a bucket under a name, by which every command finds the latest of that name."""
    _become("-m", "mlops.cli", "publish", checkpoint, address)


@task(positional=["url"], help={"url": "gs://bucket/path, or the folder of a network share"})
def data_remote(c, url):
    """Say which bucket versions of data/ live in, for everybody who has this repository."""
    _become("-m", "mlops.cli", "data", "remote", url)


@task(
    help={
        "for": "a checkpoint: fetch the version that it was trained on",
        "processed": "fetch what was prepared from the data, not the images",
    }
)
def data_pull(c, for_=None, processed=False):
    """Bring data/ to the version that data.dvc names: fetched, verified, nothing of yours overwritten."""
    options = [*(["--for", for_] if for_ else []), *(["--processed"] if processed else [])]
    _become("-m", "mlops.cli", "data", "pull", *options)


@task(
    help={
        "processed": "send what was prepared from the current version, not data/ itself",
        "replace": "also where data/ was not made from the version that data.dvc names, but replaces it",
    }
)
def data_push(c, processed=False, replace=False):
    """Record what is in data/ as a version and send it to the bucket."""
    options = [*(["--processed"] if processed else []), *(["--replace"] if replace else [])]
    _become("-m", "mlops.cli", "data", "push", *options)


@task
def data_status(c):
    """Show how data/, data.dvc and the bucket stand to each other."""
    _become("-m", "mlops.cli", "data", "status")


@task(positional=["source"], help={"source": "a folder, .tar or .zip of images, or digits"})
def data_check(c, source):
    """Report on images before training: counts, sizes, brightness, copies, near-copies, leaks."""
    _become("-m", "mlops.cli", "data", "check", source)


@task
def doctor(c):
    """Look for what stands in the way of a training here, and name the command that mends it."""
    _become("-m", "mlops.cli", "doctor")


@task(help={"only": "api or train; both when left out"})
def docker_build(c, only=None):
    """Build the images mlops-api and mlops-train from what lies here, by Docker or Podman."""
    if only not in (None, *IMAGES):
        raise Exit(f"error: --only={only}: must be {' or '.join(IMAGES)}", code=2)
    from mlops.provenance import describe_code

    engine, code = _engine(), describe_code()
    # Of a changed tree no commit tells what is built.
    commit = f"--build-arg COMMIT={code['commit'] if code['dirty'] is False else ''}"
    _all_of(
        **{
            name: f"{engine} build --file dockerfiles/{name}.dockerfile {commit} --tag mlops-{name} ."
            for name in ([only] if only else IMAGES)
        }
    )


@task(
    help={
        "model": "the file to serve",
        "port": "port to listen at, on this machine only",
        "memory": "all that it may use",
    }
)
def docker_api(c, model="models/latest/model.onnx", port=8000, memory="1g"):
    """Serve a model from the image mlops-api: as nobody, on a read-only root, without any rights."""
    mount = f"type=bind,source={Path(model).absolute()},target=/srv/models/latest/model.onnx,readonly"
    _replace(
        *(_engine(), "run", "--rm", *_TERMINAL, *_HARDENED, "--memory", memory),
        *("--publish", f"127.0.0.1:{port}:8000", "--mount", mount, "mlops-api"),
    )


@task(
    iterable=["override"],
    help={**OVERRIDE, "gpus": "which GPUs it gets, such as all; none when left out"},
)
def docker_train(c, override, gpus=None):
    """Train in the image mlops-train, in this folder: -o data=gtsrb ...; MLOPS_PUBLISH and the like are passed on."""
    # By you, so that what it writes here is yours.
    user = ("--user", f"{os.getuid()}:{os.getgid()}") if os.name == "posix" else ()
    variables = [word for name in _PASSED_ON for word in ("--env", name)]
    _replace(
        *(_engine(), "run", "--rm", *_TERMINAL, *_HARDENED, *user, *variables, *(("--gpus", gpus) if gpus else ())),
        *("--mount", f"type=bind,source={Path.cwd()},target=/work", "mlops-train", *override),
    )


@task(help={"slow": "the tests that take long, instead of all else", "containers": "those that build and run images"})
def test(c, slow=False, containers=False):
    """Run everything that must be green: lint, format, types, workflows, docs, tests with coverage."""
    if slow:
        _become("-m", "pytest", "-n", "auto", "-m", "slow")
    if containers:
        # One after another, and with what they measure shown.
        _become("-m", "pytest", "-m", "containers", "--capture=tee-sys", "tests/containers")
    if sys.version_info >= (3, 12):
        os.environ.setdefault("COVERAGE_CORE", "sysmon")
    reports = "--cov --cov-report=term:skip-covered --cov-report=xml"
    _all_of(**CHECKS, tests=f"pytest -n auto --dist worksteal -m 'not slow' {reports}")


@task(help={"check": "change no file"})
def lint(c, check=False):
    """Mend what can be mended without a person, then check everything but the tests."""
    mend = {} if check else {"mend": "ruff check --fix-only .", "reformat": "ruff format ."}
    _all_of(**mend, **CHECKS)


@task(help={"port": "where to listen, on this machine only"})
def docs(c, port=8000):
    """Show the documentation in a browser while you write it: http://127.0.0.1:8000."""
    _become("-m", "properdocs", "serve", "--strict", "--dev-addr", f"127.0.0.1:{port}")


@task(help={"keep": "keep all pins and resolve only what is new in pyproject.toml"})
def lock(c, keep=False):
    """Resolve all versions anew and pin them in pyproject.toml and requirements/*.txt."""
    _become("requirements/lock.py", *(["--keep"] if keep else []))


def _all_of(**commands: str) -> None:
    """Run each with this environment's programs, also after one failed; one summary, one exit code."""
    # Not `python -m`: some of them are no Python modules. Those of the environment, whether it is activated or not.
    scripts = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]
    results = {}
    for name, command in commands.items():
        print(f"+ {command}", file=sys.stderr, flush=True)
        program, *words = shlex.split(command)
        words = [found for word in words for found in _expand(word)]
        if found := shutil.which(program, path=scripts):
            results[name] = subprocess.run([found, *words], cwd=ROOT, check=False).returncode == 0
        else:
            print(f"error: {program}: not installed; run `uv sync`", file=sys.stderr, flush=True)
            results[name] = False
    print("\n".join(f"{'ok    ' if ok else 'FAILED'} {name}" for name, ok in results.items()), flush=True)
    if not all(results.values()):
        raise Exit(code=1)


def _expand(word: str) -> list[str]:
    """The files of the repository that a pattern names, for there is no shell in between; any other word as it is."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(word)) if "*" in word else [word]


def _refuse_bare_overrides(words: list[str], tasks: list[str]) -> None:
    """`invoke train lr=1` would end in "No idea what 'lr=1' is!"; say what works instead."""
    # In an address a = is part of a name.
    overrides = [
        word for word in words[1:] if "=" in word and not word.startswith("-") and "://" not in word.split("=")[0]
    ]
    bare = [word for before, word in pairwise(words) if word in overrides and not before.startswith("-")]
    if bare:
        name = next((word for word in words if word in tasks), "train")
        right = " ".join(f"-o {shlex.quote(word)}" for word in overrides)
        raise Exit(f"error: {bare[0]}: overrides follow -o: invoke {name} {right}", code=2)


# invoke offers no place for this between reading this file and reading the command line.
_refuse_bare_overrides(
    sys.argv, [name.replace("_", "-") for name, value in globals().items() if isinstance(value, Task)]
)
