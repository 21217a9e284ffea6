"""Checkpoints that must be refused, met as a user meets them: one line, exit code 2, and nothing that they ask for."""

import io
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Command, Outcome
from mlops import checkpoint
from mlops.models.build import build_model
from mlops.targets import MODELS
from samples import QUICK, png, rewrite, story

TOUCHED = "touched-by-the-file"


def weights(classes: int = 2) -> dict[str, torch.Tensor]:
    node = story()["config"]["model"]
    return build_model(node, MODELS, num_classes=classes, image_size=16, channels_last=True).state_dict()


def saved(path: Path, change: Callable[[dict[str, Any]], Any] = lambda told: None, **more: Any) -> Path:
    told = story(**more)
    change(told)
    checkpoint.save(path, weights(), told)
    return path


class Evil:
    """Runs code when it is unpickled by anything that allows it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (TOUCHED, "w"))


def pickle_that_runs(path: Path) -> Path:
    saved(path)
    with zipfile.ZipFile(path) as archive:
        planted = archive.read("archive/metadata.json")
    with path.open("wb") as file:
        torch.save({"state_dict": Evil()}, file)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/metadata.json", planted)
    return path


def bare_pickle_that_runs(path: Path) -> Path:
    path.write_bytes(pickle.dumps(Evil()))
    return path


def cut(share: float) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        whole = saved(path).read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        return path

    return make


def flipped(entry: str) -> Callable[[Path], Path]:
    """One byte of an entry changed in place; the checksums of the ZIP stay as they were."""

    def make(path: Path) -> Path:
        with zipfile.ZipFile(saved(path)) as archive:
            data = archive.read(entry)
        whole = bytearray(path.read_bytes())
        place = whole.index(data) + len(data) // 2
        whole[place] ^= 1
        path.write_bytes(whole)
        return path

    return make


def changed(entry: str, before: bytes, after: bytes) -> Callable[[Path], Path]:
    """Changed by somebody who wrote the checksums of the ZIP anew."""

    def change(name: str, data: bytes) -> bytes:
        assert name != entry or before in data
        return data.replace(before, after) if name == entry else data

    return lambda path: rewrite(saved(path), change)


def says_otherwise(path: Path) -> Path:
    """metadata.json, digest and all, of another file."""
    other = saved(path.with_suffix(".other"), classes=["ant", "bee"])
    with zipfile.ZipFile(other) as archive:
        planted = archive.read("archive/metadata.json")
    return rewrite(saved(path), lambda name, data: planted if name.endswith("metadata.json") else data)


def not_numbers(path: Path) -> Path:
    checkpoint.save(path, weights() | {"head.bias": torch.tensor([0.0, float("nan")])}, story())
    return path


def bomb(path: Path) -> Path:
    """100 MB of zeros, packed into 100 kB."""
    return rewrite(
        saved(path),
        lambda name, data: b"\0" * 100_000_000 if name == "archive/data/0" else data,
        compression=zipfile.ZIP_DEFLATED,
    )


def packed_plain_weights(path: Path) -> Path:
    torch.save(weights(), path)
    return rewrite(path, lambda name, data: data, compression=zipfile.ZIP_DEFLATED)


def declared(size: int) -> Callable[[Path], Path]:
    """The list at the end says that the weights are larger than they are."""

    def make(path: Path) -> Path:
        whole = bytearray(saved(path).read_bytes())
        entry = whole.rindex(b"archive/data/0") - 46
        whole[entry + 20 : entry + 28] = struct.pack("<LL", size, size)
        path.write_bytes(whole)
        return path

    return make


def overlapping(path: Path) -> Path:
    """Two entries of the list are the same bytes."""
    whole = bytearray(saved(path).read_bytes())
    first, second = (whole.rindex(name) - 46 for name in (b"archive/data/0", b"archive/data/1PK"))
    whole[second + 42 : second + 46] = whole[first + 42 : first + 46]
    path.write_bytes(whole)
    return path


def with_entry(name: str, data: bytes = b"x") -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        with zipfile.ZipFile(saved(path), "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an entry twice
            archive.writestr(name, data)
        return path

    return make


def brings(path: Path, *, extra: bytes = b"", comment: bytes = b"") -> Path:
    """An entry with a text in its own header, or in the list at the end."""
    with zipfile.ZipFile(saved(path), "a") as archive:
        (entry,) = [entry for entry in archive.infolist() if entry.filename == "archive/version"]
        entry.extra, entry.comment = extra, comment
        archive.comment = b"changed"
        archive.comment = b""  # so that the list is written anew
    return path


def filled_with_text(path: Path) -> Path:
    whole = saved(path).read_bytes()
    place = whole.index(b"ZZZZ")
    path.write_bytes(whole[:place] + b"text" + whole[place + 4 :])
    return path


def around(before: bytes = b"", after: bytes = b"") -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        path.write_bytes(before + saved(path).read_bytes() + after)
        return path

    return make


def larger_than_its_bytes(path: Path) -> Path:
    """The pickle asks for 2**31 - 1 values where the entry holds 216."""

    def ask(name: str, data: bytes) -> bytes:
        if name == "archive/data.pkl":
            assert b"K\xd8tq" in data
            data = data.replace(b"K\xd8tq", b"J\xff\xff\xff\x7ftq", 1)
        return data

    return rewrite(saved(path), ask)


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def told(**more: Any) -> Callable[[Path], Path]:
    return lambda path: saved(path, **more)


def of_format(number: Any) -> Callable[[Path], Path]:
    """`save` writes its own format, and this one is written as that one writes its."""

    def make(path: Path) -> Path:
        mine = checkpoint.FORMAT
        checkpoint.FORMAT = number
        try:
            return saved(path, code={"version": "7.0.0"})
        finally:
            checkpoint.FORMAT = mine

    return make


CHANGED = "does not match its digest; it was changed or damaged after it was written"
# What the file is, what is said of it, and whether its metadata alone shows it.
CASES = [
    pytest.param(pickle_that_runs, "its pickle names", False, id="a pickle that touches a file"),
    pytest.param(bare_pickle_that_runs, "is not a checkpoint of this project", True, id="a bare pickle"),
    pytest.param(cut(0.0), "is not a checkpoint of this project", True, id="cut at 0 %"),
    pytest.param(cut(0.5), "is not a checkpoint of this project", True, id="cut at 50 %"),
    pytest.param(cut(0.99), "is not a checkpoint of this project", True, id="cut at 99 %"),
    pytest.param(flipped("archive/data/3"), "damaged", False, id="a flipped byte of the weights"),
    pytest.param(flipped("archive/metadata.json"), "is damaged", True, id="a flipped byte of the metadata"),
    pytest.param(
        lambda path: rewrite(saved(path), lambda name, data: data[:-1] + b"\1" if name == "archive/data/3" else data),
        CHANGED,
        False,
        id="changed weights",
    ),
    pytest.param(changed("archive/metadata.json", b'"cat"', b'"cow"'), CHANGED, True, id="changed metadata"),
    pytest.param(says_otherwise, CHANGED, False, id="a planted metadata.json"),
    pytest.param(not_numbers, "its weights are not finite (NaN) in head.bias", False, id="NaN weights"),
    pytest.param(of_format(2), "format 2 is later than 1, the last known here; read it with mlops 7.0.0", True, id="2"),
    pytest.param(of_format(10**30), "is later than 1", True, id="format 10**30"),
    pytest.param(of_format(True), "(format true)", True, id="format true"),
    pytest.param(bomb, "is compressed", True, id="a bomb"),
    pytest.param(declared(2**31), "not a checkpoint as this", True, id="a huge declared size"),
    pytest.param(declared(2**32 - 2), "not a checkpoint as this", True, id="a still larger one"),
    pytest.param(overlapping, "its ZIP entries overlap", True, id="overlapping entries"),
    pytest.param(larger_than_its_bytes, "not a dense tensor with bytes of its own", False, id="more than its bytes"),
    pytest.param(with_entry("archive/metadata.json", b"{}"), "holds an entry twice", True, id="metadata twice"),
    pytest.param(with_entry("archive/data.pkl", b"."), "holds an entry twice", True, id="pickle twice"),
    pytest.param(with_entry("archive/constants.pkl"), "unknown entry 'archive/constants.pkl'", True, id="TorchScript"),
    pytest.param(with_entry("archive/code/x.py"), "unknown entry", True, id="unknown entry"),
    pytest.param(with_entry("../../etc/cron.d/x"), "unknown entry", True, id="an entry that leaves"),
    pytest.param(around(before=b"#!/bin/sh\n"), "overlap, or something lies between", True, id="a script before it"),
    pytest.param(around(after=b"PK"), "is not a checkpoint", True, id="something after it"),
    pytest.param(lambda path: brings(path, comment=b"text"), "brings more than its bytes", True, id="a comment"),
    pytest.param(
        lambda path: brings(path, extra=b"xx\4\0text"), "brings more than its bytes", True, id="an extra field"
    ),
    pytest.param(filled_with_text, "brings more than its bytes", True, id="text between entries"),
    pytest.param(folder, "is a folder, not a checkpoint; name the file in it", True, id="a folder"),
    pytest.param(told(classes=["cat"]), "classes=['cat']: must be two or more names, each once", True, id="one class"),
    pytest.param(told(classes=["a", "a"]), "each once", True, id="a class twice"),
    pytest.param(told(temperature=0), "temperature=0: must be from 0.001 to 1000", True, id="temperature 0"),
    pytest.param(told(surprise=1), "surprise=1: is not a field of a checkpoint", True, id="an unknown field"),
    pytest.param(told(config=[]), "config=[]: must be a mapping", True, id="no config"),
    pytest.param(told(config={}), "config.model: must be a mapping with the name", True, id="an empty config"),
]


@pytest.fixture
def here(workplace: Path) -> Path:
    for index, name in enumerate(("cat", "dög")):
        (workplace / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            (workplace / "pictures" / name / f"{number}.png").write_bytes(png(100 * index + number))
    return workplace


TRAIN = [setting for setting in QUICK if "epochs" not in setting]


def refuses(done: Outcome, path: Path, said: str) -> None:
    assert done.code == 2, done
    assert len(done.errors) == 1, done.errors
    assert said in done.errors[0]
    assert path.name in done.errors[0]
    assert "Traceback" not in done.err
    assert done.out == ""


def test_a_good_file_is_taken(here: Path, mlops_command: Command, hydra_command: Command):
    path = saved(here / "good.pth")
    for words in (["info", path], ["predict", path, "pictures"], ["evaluate", path, "pictures"], ["diff", path, path]):
        assert mlops_command(*words).code == 0, words
    settings = ["data.root=pictures", "data.image_size=16", "training.epochs=1", f"model.weights={path}"]
    done = hydra_command("train", *TRAIN, *settings)
    assert done.code == 0, done.err


@pytest.mark.parametrize(("make", "said", "seen"), CASES)
def test_a_bad_file_is_one_line_wherever_it_is_opened(
    make: Callable[[Path], Path], said: str, seen: bool, here: Path, mlops_command: Command, hydra_command: Command
):
    path = make(here / "bad.pth")
    before = set(here.rglob("*"))
    info = mlops_command("info", path)
    if seen:
        refuses(info, path, said)
        refuses(mlops_command("info", path, "--config"), path, said)
    else:
        assert info.code == 0, info
    refuses(mlops_command("predict", path, "pictures"), path, said)
    refuses(mlops_command("evaluate", path, "pictures"), path, said)
    refuses(mlops_command("report", path), path, said)
    # Files that do not even look like ours are taken for plain weights, which they are not either.
    done = hydra_command("train", *TRAIN, "data.root=pictures", "data.image_size=16", f"model.weights={path}")
    assert done.code == 2, done
    assert len(done.errors) == 1
    assert str(path) in done.errors[0]
    assert "Traceback" not in done.err
    assert not (here / TOUCHED).exists()
    assert set(here.rglob("*")) - before <= {here / "outputs", *(here / "outputs").rglob("*")}


def test_plain_weights_that_are_compressed_are_refused(here: Path, hydra_command: Command):
    path = packed_plain_weights(here / "plain.pth")
    done = hydra_command("train", *TRAIN, "data.root=pictures", "data.image_size=16", f"model.weights={path}")
    assert done.code == 2
    assert "is compressed, which torch.save never does" in done.errors[0]


def test_one_class_fewer_than_the_head_is_named(here: Path, mlops_command: Command):
    checkpoint.save(here / "x.pth", weights(3), story())
    for words in (["predict", "x.pth", "pictures"], ["report", "x.pth"], ["evaluate", "x.pth", "pictures"]):
        done = mlops_command(*words)
        assert done.code == 2
        assert done.errors[-1] == "checkpoint: it names 2 classes, but its head head.weight gives 3"
        assert "Traceback" not in done.err


def test_all_that_metadata_lacks_is_listed_at_once(here: Path, mlops_command: Command):
    def forget(told: dict[str, Any]) -> None:
        del told["metrics"], told["data"]["fingerprint"], told["created"]
        told["input"] |= {"height": 0, "std": [1, 1, 0]}

    saved(here / "x.pth", forget)
    done = mlops_command("info", "x.pth")
    assert (done.code, done.errors) == (2, ["x.pth: metrics: is missing", "x.pth: created: is missing"])
    saved(here / "y.pth", lambda told: told["input"].update(height=0, std=[1, 1, 0], mean=[0.1], channels=1))
    done = mlops_command("predict", "y.pth", "pictures")
    assert (done.code, len(done.errors)) == (2, 5)


OWN_MODULE = "plants_a_file"
BAD_TARGETS = ["torch.hub.load", "pathlib.Path.write_text", "builtins.open", "logging.FileHandler", f"{OWN_MODULE}.Net"]


def bad_places(name: str) -> dict[str, tuple[str, Any]]:
    """Where a config may say a bad name: the key that is changed, and what it is then."""
    node = {"_target_": name, "file": TOUCHED, "filename": TOUCHED, "mode": "w"}
    good = {"_target_": "mlops.models.SignNet", "width": 8}
    return {
        "model": ("model", node),
        "below the model": ("model", good | {"norm": node}),
        "in a list": ("model", good | {"blocks": [1, [node]]}),
        "positional": ("model", good | {"_args_": [node]}),
        "partial": ("model", good | {"_partial_": True, "norm": node | {"_partial_": True}}),
        "optimizer": ("optimizer", node),
        "below the optimizer": ("optimizer", {"_target_": "torch.optim.AdamW", "lr": 0.1, "defaults": node}),
    }


@pytest.fixture
def own_module(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / f"{OWN_MODULE}.py").write_text(f"open({TOUCHED!r}, 'w')\nclass Net: ...\n")
    monkeypatch.syspath_prepend(here)


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "place"),
    [
        # Each name somewhere and one name everywhere, before all of them.
        pytest.param(name, place, marks=[pytest.mark.slow] * (name != f"{OWN_MODULE}.Net" and place != "model"))
        for name in BAD_TARGETS
        for place in bad_places("")
    ],
)
def test_a_bad_target_is_refused_and_not_imported(
    name: str, place: str, here: Path, mlops_command: Command, hydra_command: Command
):
    where, node = bad_places(name)[place]

    def change(told: dict[str, Any]) -> None:
        config = told["config"] if where == "model" else told["config"]["training"]
        config[where] = node

    path = saved(here / "x.pth", change)
    assert mlops_command("info", path).code == 0
    for words in (["predict", path, "pictures"], ["evaluate", path, "pictures"], ["report", path]):
        done = mlops_command(*words)
        assert done.code == 2, done
        assert any(f"_target_={name}: is not an allowed name" in line for line in done.errors), done.errors
        assert all(line.startswith("checkpoint: config: ") for line in done.errors)
    # As the config of a training: the file that `info --config` writes.
    (here / "mine").mkdir()
    (here / "mine" / "again.yaml").write_text(mlops_command("info", path, "--config").out)
    done = hydra_command("train", "--config-dir", "mine", "--config-name", "again")
    assert done.code == 2, done
    assert "Traceback" not in done.err
    assert not (here / TOUCHED).exists()
    assert OWN_MODULE not in sys.modules


def test_a_target_out_of_the_environment_is_text(here: Path, mlops_command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TARGET", "mlops.models.SignNet")
    path = saved(here / "x.pth", lambda told: told["config"]["model"].update(_target_="${oc.env:TARGET}"))
    done = mlops_command("predict", path, "pictures")
    assert done.code == 2
    assert "model._target_=${oc.env:TARGET}: is not an allowed name" in done.errors[0]


def test_a_config_shows_no_secret(here: Path, mlops_command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET", "hunter2")
    path = saved(here / "x.pth", lambda told: told["config"]["tracking"].update(project="${oc.env:SECRET}"))
    assert "${oc.env:SECRET}" in mlops_command("info", path).out
    assert r"\\${oc.env:SECRET}" in mlops_command("info", path, "--config").out
    assert mlops_command("report", path, "--output", "report").code == 0
    assert "${oc.env:SECRET}" in (here / "report" / "index.html").read_text()
    assert mlops_command("predict", path, "pictures").code == 0
    for file in (here / "report").iterdir():
        assert b"hunter2" not in file.read_bytes()


@pytest.mark.parametrize("key", ["hydra", "defaults", "_target_"])
def test_what_hydra_would_obey_is_not_printed_as_a_config(key: str, here: Path, mlops_command: Command):
    orders = {"job_logging": {"handlers": {"x": {"class": "logging.FileHandler", "filename": TOUCHED}}}}
    path = saved(here / "x.pth", lambda told: told["config"].update({key: orders}))
    done = mlops_command("info", path, "--config")
    assert (done.code, done.out) == (2, "")
    assert f"checkpoint: config: {key}=" in done.errors[0]


def test_what_a_file_tells_does_not_steer_a_terminal(here: Path, mlops_command: Command):
    mark = "\x1b[2J\x9b31m\u202e"

    def steer(told: dict[str, Any]) -> None:
        told["classes"] = [mark, "b"]
        told["overrides"], told["created"] = [mark], mark
        told["data"] |= {"name": mark, "fingerprint": mark, "dvc_md5": mark}
        told["code"] |= {"version": mark, "commit": mark}
        told["environment"] |= {"platform": mark, "device": mark}
        told["config"]["model"] |= {mark: mark}

    path, other = saved(here / "x.pth", steer), saved(here / "y.pth")
    for words in (["info", path], ["diff", path, other], ["diff", other, path], ["predict", path, "pictures"]):
        done = mlops_command(*words)
        assert not any(letter in done.out + done.err for letter in "\x1b\x9b\u202e"), words


# Root may read everything, so where the tests are root's, the command becomes nobody's once its imports are done.
AS_NOBODY = """
import os, sys
from mlops.cli import main
def run(*words):
    try: main(list(words))
    except SystemExit as end: print("exit code", end.code, file=sys.stderr)
path = sys.argv[1]
run("info", "none.pth"); run("predict", "none.pth", ".")
if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)
run("info", path); run("diff", path, path); run("predict", path, os.path.dirname(path))
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
@pytest.mark.slow
def test_a_file_that_may_not_be_read_is_one_line():
    place = Path(tempfile.mkdtemp())
    try:
        place.chmod(0o755)
        path = saved(place / "x.pth")
        path.chmod(0)
        command = [sys.executable, "-c", AS_NOBODY, path]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        line = f"error: {path}: cannot be read: Permission denied"
        assert done.stderr.splitlines()[4:] == [line, "exit code 2", line, line, "exit code 2", line, "exit code 2"]
    finally:
        shutil.rmtree(place)


def test_nothing_of_the_environment_is_in_a_checkpoint(
    here: Path, hydra_command: Command, monkeypatch: pytest.MonkeyPatch
):
    canary = "canary7f3a"
    names = [
        "HOME",
        "USER",
        "LOGNAME",
        "HOSTNAME",
        "COMPUTERNAME",
        "USERNAME",
        "WANDB_API_KEY",
        "WANDB_NOTES",
        "SECRET",
    ]
    names += ["AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "EMAIL", "GIT_AUTHOR_NAME", "CONDA_PREFIX"]
    for name in names:
        monkeypatch.setenv(name, f"{canary}-{name}")
    done = hydra_command("train", *QUICK, "data.root=pictures")
    assert done.code == 0, done.err
    files = [*here.glob("outputs/*/*/*.pth")]
    assert files
    for content in (path.read_bytes() for path in files):
        assert canary.encode() not in content
        for value in (*os.environ.values(), socket.gethostname()):
            # Short ones (a level, a language) stand in any file by chance.
            assert len(value) < 12 or value.encode() not in content, value


def test_the_report_of_a_bad_file_leaves_the_old_report(here: Path, mlops_command: Command):
    path = saved(here / "x.pth")
    assert mlops_command("report", path, "--output", "report").code == 0
    before = {file.name: file.read_bytes() for file in (here / "report").iterdir()}
    path.write_bytes(io.BytesIO(path.read_bytes()).read(1000))
    assert mlops_command("report", path, "--output", "report").code == 2
    assert {file.name: file.read_bytes() for file in (here / "report").iterdir()} == before
