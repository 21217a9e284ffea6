"""Checkpoints in a bucket of a real GCS emulator: read by every command, kept here by content, published by digest."""

import asyncio
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import Command
from integration.bucket import BUCKET, Emulator
from mlops import checkpoint, config, registry, targets
from mlops.entrypoint import Run
from mlops.errors import MlopsError
from mlops.publish import Published, publish
from mlops.storage import Bucket
from mlops.train import train
from samples import QUICK, position, story, write_pictures

ROOT = f"gs://{BUCKET}/models"
NAME = f"{ROOT}/signs"
URL = f"{ROOT}/run=1/best_model.pth"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with Emulator(tmp_path_factory.mktemp("bucket")) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pictures`, the prepared `processed`, and `run`, that of a training."""
    work = tmp_path_factory.mktemp("trained")
    values = config.defaults()
    values["data"] |= {"source": "folder", "root": str(write_pictures(work / "pictures")), "image_size": 8}
    values["model"] = {"_target_": "mlops.models.SignNet", "width": 4}
    values["training"]["optimizer"] = {"_target_": "torch.optim.AdamW", "lr": 0.01}
    values["training"] |= {"epochs": 1, "batch_size": 12, "device": "cpu", "threads": 1}
    values["tracking"]["mode"] = "off"
    values["paths"] = {**values["paths"], "processed": str(work / "processed")}
    values["promote"] = False
    (work / "run").mkdir()
    train(
        config.load(values), Run(work / "run", sweep=False, allowed=targets.MODELS | targets.OPTIMIZERS, overrides=())
    )
    return work


@pytest.fixture
def emulator(running: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """An empty bucket, an empty cache, and a gcsfs that tries again sooner than it does."""
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    import gcsfs.retry

    monkeypatch.setattr(gcsfs.retry, "asyncio", SimpleNamespace(sleep=lambda seconds: asyncio.sleep(seconds / 50)))
    monkeypatch.setenv("MLOPS_CACHE", str(tmp_path / "cache"))
    yield running
    if running._process is None:
        running.start()
    for name in Bucket(f"gs://{BUCKET}").files("models"):
        Bucket(ROOT)._fs.rm_file(f"{BUCKET}/models/{name}")


@pytest.fixture
def best(trained: Path) -> Path:
    return trained / "run" / "best_model.pth"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each download."""
    sizes, real = list[int](), Bucket.get

    def watched(self: Bucket, name: str, path: Path, received: Callable[[int], object]) -> None:
        real(self, name, path, received)
        sizes.append(path.stat().st_size)

    monkeypatch.setattr(Bucket, "get", watched)
    return sizes


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was sent, in order."""
    names, put, write = list[str](), Bucket.put, Bucket.write

    def watched_put(self: Bucket, path: Path, name: str, heard: Callable[[], object]) -> None:
        names.append(name)
        put(self, path, name, heard)

    def watched_write(self: Bucket, name: str, text: str) -> None:
        names.append(name)
        write(self, name, text)

    monkeypatch.setattr(Bucket, "put", watched_put)
    monkeypatch.setattr(Bucket, "write", watched_write)
    return names


def upload(content: bytes | str | Path, url: str = URL) -> str:
    """An object that somebody has put there."""
    raw = content.read_bytes() if isinstance(content, Path) else content
    Bucket(ROOT)._fs.pipe_file(url.removeprefix("gs://"), raw.encode() if isinstance(raw, str) else raw)
    return url


def save(path: Path, **changes: Any) -> Path:
    """A small finished checkpoint of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, {"weights": torch.arange(1000)}, story(**{"temperature": 1.5, **changes}))
    return path


def digest_of(path: Path) -> str:
    return str(checkpoint.read_metadata(path)["digest"])


def latest() -> Any:
    raw = Bucket(NAME).read("latest")
    return None if raw is None else json.loads(raw)


def cached() -> list[Path]:
    return [path for path in Path(os.environ["MLOPS_CACHE"]).rglob("*") if path.is_file()]


def problem(action: Callable[[], object]) -> str:
    with pytest.raises(MlopsError) as error:
        action()
    (line,) = error.value.problems
    return line


# Commands


def test_info_and_diff_read_an_address_and_show_it(emulator: Emulator, best: Path, mlops_command: Command):
    upload(best)
    page = mlops_command("info", URL)
    assert page.code == 0
    assert page.out.splitlines()[0] == URL
    assert json.loads(mlops_command("info", URL, "--json").out) == checkpoint.read_metadata(best)
    same = mlops_command("diff", URL, best)
    assert same.code == 0
    assert URL in same.out
    other = mlops_command("diff", URL, f"{ROOT}/none.pth")
    assert other.code == 2
    assert other.errors == [f"{ROOT}/none.pth: no such file, nor a model published under that name; check the address"]
    both = mlops_command("diff", f"{ROOT}/none.pth", "gs://nobody/none.pth")
    assert len(both.errors) == 2
    assert both.errors[1] == "gs://nobody: there is no such bucket or folder"


def test_evaluate_and_report_score_an_address_and_write_into_the_current_folder(
    emulator: Emulator, trained: Path, best: Path, mlops_command: Command, fetched: list[int]
):
    upload(best)
    own = ("--processed", trained / "processed")
    there, here = (mlops_command("evaluate", where, *own, "--json", "-") for where in (URL, best))
    assert there.code == 0
    assert json.loads(there.out) == json.loads(here.out)
    assert mlops_command("report", URL, *own).code == 0
    assert json.loads(Path("report/test.json").read_text()) == json.loads(here.out)
    assert fetched == [best.stat().st_size]


def test_predict_and_export_take_an_address_and_the_export_works_from_the_bucket_too(
    emulator: Emulator, trained: Path, best: Path, mlops_command: Command
):
    pictures = trained / "pictures" / "red"
    upload(best)
    expected = mlops_command("predict", best, pictures, "--csv", "-")
    assert mlops_command("predict", URL, pictures, "--csv", "-").out == expected.out
    done = mlops_command("export", URL, "--processed", trained / "processed")
    assert done.code == 0, done.err
    assert done.out.splitlines()[1].split() == ["file", "model.onnx"]
    upload(Path("model.onnx"), f"{ROOT}/model.onnx")
    of_onnx = mlops_command("predict", f"{ROOT}/model.onnx", pictures, "--csv", "-")
    assert of_onnx.out.count(",red,") == expected.out.count(",red,")
    assert of_onnx.code == 0
    upload(b"none", f"{ROOT}/bad.onnx")
    (line,) = mlops_command("predict", f"{ROOT}/bad.onnx", pictures).errors
    assert line.startswith(f"{ROOT}/bad.onnx: is damaged or no ONNX file")


def test_adopt_takes_weights_from_an_address_and_names_the_checkpoint_after_them(
    emulator: Emulator, best: Path, mlops_command: Command, workplace: Path
):
    torch.save(checkpoint.read(best).state_dict, workplace / "w.pth")
    upload(workplace / "w.pth", f"{ROOT}/signs_v2.pth")
    words = [
        "--model",
        "mlops.models.SignNet",
        "--set",
        "width=4",
        "--classes",
        "blue,green,red",
        "--size",
        "8",
        "--mean",
        "0",
        "--std",
        "1",
    ]
    done = mlops_command("adopt", f"{ROOT}/signs_v2.pth", *words)
    assert done.code == 0, done.err
    made = checkpoint.read(workplace / "models" / "signs_v2" / "best_model.pth")
    assert made.metadata["adopted"]["file"] == "signs_v2.pth"
    assert mlops_command("publish", "models/signs_v2/best_model.pth", NAME).code == 0
    assert mlops_command("info", NAME).code == 0


@pytest.mark.slow
def test_a_training_starts_from_an_address_and_is_proven_only_where_the_user_names_it(
    emulator: Emulator, best: Path, trained: Path, hydra_command: Command, mlops_command: Command, workplace: Path
):
    digest = publish(best, NAME).digest
    settings = [*QUICK, "training.epochs=1", "model.width=4", f"data.root={trained / 'pictures'}"]
    missing = hydra_command("train", *settings, f"model.weights={ROOT}/none")
    assert missing.errors == [
        f"model.weights={ROOT}/none: no such file, nor a model published under that name; check the address"
    ]
    assert hydra_command("train", *settings, f"model.weights={NAME}").code == 0
    made = Path("models/latest/best_model.pth")
    told = checkpoint.read_metadata(made)
    assert told["start"]["weights"] == f"{NAME}/{digest}"
    upload(made, f"{ROOT}/made.pth")
    refused = mlops_command("reproduce", f"{ROOT}/made.pth")
    assert refused.errors == [
        f"model.weights={NAME}: nothing is fetched because a checkpoint says so; if that address is yours, name it "
        f"with --weights {NAME}"
    ]
    # `latest` has moved on; what the run started from is still there.
    publish(save(workplace / "other.pth"), NAME)
    other = mlops_command("reproduce", f"{ROOT}/made.pth", "--weights", NAME)
    assert "but the run started from" in other.errors[0]
    proof = mlops_command("reproduce", f"{ROOT}/made.pth", "--weights", f"{NAME}/{digest}")
    assert proof.code == 0, proof.err
    assert f"{ROOT}/made.pth, trained again" in proof.out
    assert "identical, bit for bit" in proof.out


# The cache


def test_a_second_use_downloads_nothing_and_a_changed_object_is_fetched_anew(
    emulator: Emulator, tmp_path: Path, fetched: list[int]
):
    first, second = save(tmp_path / "1.pth"), save(tmp_path / "2.pth", classes=["a", "b"])
    upload(first)
    file = registry.local(URL)
    assert file.read_bytes() == first.read_bytes()
    assert registry.local(URL) == file
    assert file.name == "best_model.pth"
    assert fetched == [first.stat().st_size]
    upload(second)
    assert registry.local(URL).read_bytes() == second.read_bytes()
    upload(first)
    assert registry.local(URL) == file  # known by its content, wherever it lies
    assert len(fetched) == 2


def test_a_cached_file_that_was_changed_is_found_and_fetched_again(
    emulator: Emulator, tmp_path: Path, fetched: list[int]
):
    raw = save(tmp_path / "1.pth").read_bytes()
    upload(raw)
    file = registry.local(URL)
    for damage in (raw[:-1] + b"?", raw[:100], b""):
        file.write_bytes(damage)
        assert registry.local(URL).read_bytes() == raw
    assert fetched == [len(raw)] * 4


def test_several_at_once_find_the_whole_file(emulator: Emulator, tmp_path: Path):
    raw = save(tmp_path / "1.pth").read_bytes()
    upload(raw)
    with ThreadPoolExecutor(6) as pool:
        files = list(pool.map(lambda _: registry.local(URL).read_bytes(), range(6)))
    assert files == [raw] * 6
    assert len(cached()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="has another such folder")
def test_the_cache_is_where_the_environment_says_and_outside_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MLOPS_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert registry.cache_folder() == tmp_path / "home" / ".cache" / "mlops"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "common"))
    assert registry.cache_folder() == tmp_path / "common" / "mlops"
    monkeypatch.setenv("MLOPS_CACHE", str(tmp_path / "own"))
    assert registry.cache_folder() == tmp_path / "own"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLOPS_CACHE", str(tmp_path / "file"))
    line = f"{tmp_path / 'file'}: no place to keep downloads: File exists; name one in MLOPS_CACHE"
    assert problem(registry.cache_folder) == line


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_storage_that_keeps_no_md5_is_read_anew_each_time(kind: str, emulator: Emulator, tmp_path: Path):
    import fsspec

    fsspec.filesystem("memory").store.clear()
    root = "memory://models" if kind == "memory" else (tmp_path / "share").as_uri()
    (tmp_path / "share").mkdir()
    first, second = save(tmp_path / "1.pth"), save(tmp_path / "2.pth", classes=["a", "b"])
    assert publish(first, f"{root}/signs").sent
    assert not publish(first, f"{root}/signs").sent
    assert registry.local(f"{root}/signs").read_bytes() == first.read_bytes()
    publish(second, f"{root}/signs")
    assert registry.local(f"{root}/signs/latest").read_bytes() == second.read_bytes()
    name = f"{root}/signs/{digest_of(first)}"
    assert registry.local(name).read_bytes() == registry.local(f"{name}/best_model.pth").read_bytes()
    assert problem(lambda: registry.local(f"{root}/none.pth")) == (
        f"{root}/none.pth: no such file, nor a model published under that name; check the address"
    )


# What is refused


@pytest.mark.parametrize("how", ["truncated", "changed", "another file", "empty"])
def test_an_object_that_is_no_whole_checkpoint_is_refused_by_its_address(
    how: str, emulator: Emulator, best: Path, mlops_command: Command
):
    raw = best.read_bytes()
    # Of the weights, which fill the middle of the file.
    changed = raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :]
    upload({"truncated": raw[:-1000], "changed": changed, "another file": b"epoch,loss\n", "empty": b""}[how])
    done = mlops_command("predict", URL, best.parent)
    assert done.code == 2
    (line,) = done.errors
    assert line.startswith(f"{URL}: ")
    assert "digest" in line or "is not a checkpoint" in line or "damaged" in line


def test_what_arrives_damaged_is_not_kept(emulator: Emulator, tmp_path: Path, mlops_command: Command):
    raw = save(tmp_path / "1.pth").read_bytes()
    upload(raw)
    (file,) = emulator.folder.rglob("best_model.pth")
    file.write_bytes(raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
    assert mlops_command("info", URL).errors == [f"{URL}: it does not arrive as it is there; try again"]
    assert cached() == []


class _Refusing(BaseHTTPRequestHandler):
    """A bucket that refuses: the emulator has no accounts."""

    def do_GET(self) -> None:
        body = b'{"error": {"code": 403, "message": "somebody@example.com does not have access, s3cr3t"}}'
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing on the terminal."""


def test_a_bucket_that_one_may_not_read_is_one_line(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlops_command: Command
):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server, monkeypatch.context() as patch:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
        for command in (("info", URL), ("publish", save(tmp_path / "1.pth"), NAME)):
            (line,) = mlops_command(*command).errors
            assert line.startswith(f"{URL if command[0] == 'info' else ROOT}: not allowed; this account has to read")
        server.shutdown()


@pytest.mark.parametrize("how", ["refused", "hangs"])
def test_a_bucket_that_does_not_answer_is_one_line_in_seconds(
    how: str, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlops_command: Command
):
    if how == "hangs" and sys.platform == "win32":
        pytest.skip("stops a process")
    assert registry.ANSWER_TIMEOUT <= 30
    assert latest() is None  # with all that a client needs the first time
    monkeypatch.setattr(registry, "ANSWER_TIMEOUT", 0.3)
    monkeypatch.setattr("mlops.publish.ANSWER_TIMEOUT", 0.3)
    path = save(tmp_path / "1.pth")
    import gcsfs.retry

    monkeypatch.setattr(gcsfs.retry, "asyncio", asyncio)  # as slow as it is
    if how == "refused":
        emulator.stop()
    else:
        assert emulator._process
        os.kill(emulator._process.pid, signal.SIGSTOP)
    try:
        for words, url in ((("info", URL), URL), (("info", f"{NAME}/latest"), NAME), (("publish", path, NAME), ROOT)):
            started = time.monotonic()
            done = mlops_command(*words)
            assert time.monotonic() - started < 20
            assert done.errors == [f"{url}: no answer within 0 s; check the network and the credentials"]
    finally:
        if emulator._process:
            os.kill(emulator._process.pid, signal.SIGCONT)


@pytest.mark.skipif(sys.platform == "win32", reason="stops a process")
def test_a_download_that_stands_still_is_one_line(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlops_command: Command
):
    upload(save(tmp_path / "1.pth"))
    monkeypatch.setattr(registry, "STALL_TIMEOUT", 0.5)
    real = Bucket.get
    with pytest.MonkeyPatch.context() as patch:

        def stop_first(self: Bucket, *arguments: Any) -> None:
            assert emulator._process
            os.kill(emulator._process.pid, signal.SIGSTOP)
            real(self, *arguments)

        patch.setattr(Bucket, "get", stop_first)
        try:
            started = time.monotonic()
            assert mlops_command("info", URL).code == 2
            assert time.monotonic() - started < 20
        finally:
            assert emulator._process
            os.kill(emulator._process.pid, signal.SIGCONT)
    assert mlops_command("info", URL).code == 0


@pytest.mark.parametrize("where", ["gs://", "gs:///", "memory://name:s3cr3t@models/x.pth", "bucket://x", "a::gs://b/c"])
def test_an_address_of_nothing_is_one_line_without_a_password(where: str, mlops_command: Command):
    done = mlops_command("info", where)
    assert done.code == 2
    assert len(done.errors) == 1
    assert "s3cr3t" not in done.err


# Publishing


def test_a_published_checkpoint_is_found_by_its_name_and_by_its_digest(
    emulator: Emulator, best: Path, mlops_command: Command, sent: list[str]
):
    done = mlops_command("publish", best, NAME)
    assert done.code == 0, done.err
    digest = digest_of(best)
    file = f"{digest}/best_model.pth"
    assert f"{NAME}/{file}" in done.out
    assert f"mlops predict {NAME} PICTURE_OR_FOLDER" in done.out
    assert latest() | {"created": None} == {"digest": digest, "file": file, "created": None}
    assert sent == [f"signs/{file}", "signs/latest"]
    for address in (NAME, f"{NAME}/", f"{NAME}/latest", f"{NAME}/{digest}", f"{NAME}/{file}"):
        assert json.loads(mlops_command("info", address, "--json").out)["digest"] == digest


def test_publishing_again_sends_nothing_and_another_moves_latest_and_leaves_the_first(
    emulator: Emulator, tmp_path: Path, sent: list[str]
):
    one, other = save(tmp_path / "1.pth"), save(tmp_path / "2.pth", classes=["a", "b"])
    first = publish(one, NAME)
    told = latest()
    assert publish(one, NAME) == Published(NAME, first.digest, first.size, sent=False, before=first.digest)
    assert len(sent) == 2
    assert latest() == told
    second = publish(other, NAME)
    assert (second.sent, second.before) == (True, first.digest)
    assert registry.local(NAME).read_bytes() == other.read_bytes()
    assert registry.local(f"{NAME}/{first.digest}").read_bytes() == one.read_bytes()
    publish(one, NAME)  # back to the first: it is there
    assert registry.local(NAME).read_bytes() == one.read_bytes()
    assert sent[2:] == [f"signs/{second.digest}/best_model.pth", "signs/latest", "signs/latest"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("how", ["on the way", "in the bucket"])
def test_what_does_not_read_back_as_it_is_here_is_not_made_the_latest(
    how: str, first: bool, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = None if first else publish(save(tmp_path / "1.pth"), NAME).digest
    other, real = save(tmp_path / "2.pth", classes=["a", "b"]), Bucket.put
    name = f"signs/{digest_of(other)}/best_model.pth"

    def damaging(self: Bucket, path: Path, name: str, heard: Callable[[], object]) -> None:
        if how == "on the way":
            path = save(tmp_path / "3.pth", classes=["c", "d"])
        real(self, path, name, heard)
        if how == "in the bucket":
            (file,) = [file for file in emulator.folder.rglob("best_model.pth") if digest_of(other) in str(file)]
            file.write_bytes(file.read_bytes()[:-1])

    monkeypatch.setattr(Bucket, "put", damaging)
    leads = f"signs/latest still leads to {before}" if before else "there is no signs/latest yet"
    assert problem(lambda: publish(other, NAME)) == (
        f"{ROOT}/{name}: does not read back as it is here; publish it again; {leads}"
        if how == "on the way"
        else f"{ROOT}: {name} does not arrive as it is there; try again; {leads}"
    )
    assert (latest() or {}).get("digest") == before
    monkeypatch.setattr(Bucket, "put", real)
    assert publish(other, NAME).sent  # what is damaged there is replaced
    assert registry.local(NAME).read_bytes() == other.read_bytes()
    assert not [path for path in Path(os.environ["MLOPS_CACHE"]).iterdir() if path.name.startswith("back-")]


def test_two_who_publish_at_once_leave_a_latest_that_is_there(emulator: Emulator, tmp_path: Path):
    files = [save(tmp_path / f"{number}.pth", classes=["a", f"{number}"]) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda path: publish(path, NAME), files * 2))
    assert registry.local(NAME).read_bytes() in [path.read_bytes() for path in files]
    for path, published in zip(files, done, strict=False):
        assert registry.local(f"{NAME}/{published.digest}").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        *('{"digest": 5}', '{"digest": "../../secret"}', "[]", "null", "{", "", "[" * 100_000, '{"file": "a"}', "\xff"),
        *(
            json.dumps({"digest": "A" * 64}),
            json.dumps({"digest": "a" * 64 + "\n"}),
            json.dumps({"digest": ["a" * 64]}),
        ),
    ],
)
def test_a_latest_that_leads_nowhere_is_refused_and_can_be_published_over(
    text: str, emulator: Emulator, tmp_path: Path
):
    upload(text, f"{NAME}/latest")
    for address in (NAME, f"{NAME}/latest"):
        line = problem(lambda address=address: registry.local(address))
        assert line == f"{NAME}/latest: leads to no model; publish it again with mlops publish"
    path = save(tmp_path / "1.pth")
    publish(path, NAME)
    assert registry.local(NAME).read_bytes() == path.read_bytes()


def test_a_latest_leads_to_its_digest_only_whatever_it_says_of_the_file(emulator: Emulator, tmp_path: Path):
    one, other = save(tmp_path / "1.pth"), save(tmp_path / "2.pth", classes=["a", "b"])
    upload(other, f"{ROOT}/elsewhere.pth")
    digest = publish(one, NAME).digest
    upload(json.dumps({"digest": digest, "file": "../elsewhere.pth"}), f"{NAME}/latest")
    assert registry.local(NAME).read_bytes() == one.read_bytes()
    # Another checkpoint in its place, whole in itself.
    upload(other, f"{NAME}/{digest}/best_model.pth")
    for address in (NAME, f"{NAME}/{digest}"):
        assert problem(lambda address=address: registry.local(address)) == (
            f"{NAME}/{digest}/best_model.pth: is another checkpoint, {digest_of(other)}; publish the right one again "
            "with mlops publish"
        )
    gone = "a" * 64
    upload(json.dumps({"digest": gone}), f"{NAME}/latest")
    for address in (NAME, f"{NAME}/{gone}"):
        line = problem(lambda address=address: registry.local(address))
        assert line == f"{NAME}/{gone}: no such checkpoint; publish it (again) with mlops publish"


def test_only_a_whole_finished_checkpoint_is_published(
    emulator: Emulator, trained: Path, tmp_path: Path, sent: list[str], mlops_command: Command
):
    cut = save(tmp_path / "cut.pth", temperature=None)
    damaged = save(tmp_path / "damaged.pth")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    begun = tmp_path / "begun.pth"
    checkpoint.save(begun, {"weights": torch.ones(2)}, story(temperature=1.0, resume=position()), {"x": torch.ones(2)})
    shutil.copyfile(trained / "run" / "last.pth", tmp_path / "last.pth")
    reasons = {
        tmp_path / "last.pth": "holds a run between two steps; publish the best_model.pth beside it",
        begun: "holds a run between two steps; publish the best_model.pth beside it",
        cut: "is of a training that has not ended; let it go on to its end first (resume=latest)",
        tmp_path / "none.pth": "no such file; train first (`invoke train`) or name another checkpoint",
    }
    for path, reason in reasons.items():
        assert mlops_command("publish", path, NAME).errors == [f"{path}: {reason}"]
    assert mlops_command("publish", damaged, NAME).code == 2
    assert sent == []


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("models/signs", "names no model in a bucket; write gs://bucket/models/NAME"),
        (f"gs://{BUCKET}", "names no model in a bucket; write gs://bucket/models/NAME"),
        ("gs://", "names no model in a bucket; write gs://bucket/models/NAME"),
        (f"{NAME}/latest", "latest cannot be the name of a model; write gs://bucket/models/NAME"),
        (f"{NAME}/best.pth", "best.pth cannot be the name of a model; write gs://bucket/models/NAME"),
        (f"{ROOT}/taken", "is a file; name another model"),
    ],
)
def test_an_address_that_no_model_can_have_is_refused(address: str, reason: str, emulator: Emulator, tmp_path: Path):
    upload("x", f"{ROOT}/taken")
    assert problem(lambda: publish(save(tmp_path / "1.pth"), address)) == f"{address}: {reason}"


def test_a_bucket_that_is_not_there_is_named(emulator: Emulator, tmp_path: Path):
    line = problem(lambda: publish(save(tmp_path / "1.pth"), "gs://nobody/models/signs"))
    assert line == "gs://nobody/models: there is no such bucket or folder"
