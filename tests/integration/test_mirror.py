"""Runs mirrored into a bucket of a real GCS emulator, which goes and comes back, and fetched on an empty machine."""

import asyncio
import contextlib
import logging
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from integration.bucket import BUCKET, Emulator
from mlops import checkpoint, gcs, mirror, mirrored, storage
from mlops.errors import MlopsError
from mlops.mirror import Mirror
from mlops.mirrored import fetch, find, latest
from mlops.storage import Bucket
from samples import ROOT, story

URL = f"gs://{BUCKET}/runs"
RUN = "2026-01-01/12-00-00-abcd"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with Emulator(tmp_path_factory.mktemp("bucket")) as emulator:
        yield emulator


@pytest.fixture
def emulator(running: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """An empty bucket, and a gcsfs that tries again sooner than it does."""
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    import gcsfs.retry

    monkeypatch.setattr(gcsfs.retry, "asyncio", SimpleNamespace(sleep=lambda seconds: asyncio.sleep(seconds / 50)))
    monkeypatch.setattr(mirror, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(mirror, "LONGEST_WAIT", 0.2)
    yield running
    if running._process is None:
        running.start()
    for name in Bucket(f"gs://{BUCKET}").files("runs"):
        Bucket(URL)._fs.rm_file(f"{BUCKET}/runs/{name}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "outputs" / RUN
    made.mkdir(parents=True)
    return made


def save(path: Path, step: int, megabytes: float = 0.01) -> bytes:
    """A checkpoint at a step, as real as `fetch` looks."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    weights = torch.randint(0, 255, (int(megabytes * 2**20),), dtype=torch.uint8)
    checkpoint.save(path, {"weights": weights}, story(step=step))
    return path.read_bytes()


def put(name: str, content: bytes | str) -> None:
    """An object that somebody else has put there."""
    raw = content.encode() if isinstance(content, str) else content
    Bucket(URL)._fs.pipe_file(f"{BUCKET}/runs/{name}", raw)


def stored(name: str) -> bytes | None:
    return Bucket(URL).read(f"{RUN}/{name}")


def wait_for(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    ours = [record for record in caplog.records if record.name.startswith("mlops.")]
    return [record.getMessage() for record in ours if record.levelno >= level]


def content(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(params=["gs", "folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A bucket, a folder such as a network share's, and something else that fsspec knows."""
    if request.param == "memory":
        import fsspec

        fsspec.filesystem("memory").store.clear()
        return "memory://runs"
    if request.param == "gs":
        request.getfixturevalue("emulator")
        return URL
    (tmp_path / "share").mkdir()
    return str(tmp_path / "share")


def test_a_mirrored_run_comes_back_whole_on_an_empty_machine(url: str, folder: Path, tmp_path: Path):
    save(folder / "last.pth", 5, megabytes=6)  # more than is sent in one piece
    save(folder / "best_model.pth", 3)
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    for name in (".hydra/config.yaml", "report/index.html", "report/nested/a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "train.log").write_text("not asked for")
    with Mirror(url, folder) as mirrored_run:
        mirrored_run.link("w4ndb")
        for name in ("last.pth", "best_model.pth", "metrics.jsonl", ".hydra", "report"):
            mirrored_run.copy(folder / name)

    found = find(url, "w4ndb")
    assert found == f"{url}/{RUN}"
    fetched = fetch(found, tmp_path / "elsewhere")
    assert fetched == tmp_path / "elsewhere" / RUN
    expected = content(folder)
    del expected["train.log"]
    assert content(fetched) == expected
    assert latest(url) == f"{url}/{RUN}"
    assert latest(f"{url}/{RUN}") is None


def test_without_a_url_nothing_is_done(folder: Path):
    with Mirror(None, folder) as nothing:
        nothing.copy(folder / "last.pth")
        nothing.link("w4ndb")


def test_a_bucket_that_goes_away_is_one_warning_and_the_newest_save_arrives_when_it_is_back(
    emulator: Emulator, folder: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    with Mirror(URL, folder) as copier:
        first = save(folder / "last.pth", 1)
        copier.copy(folder / "last.pth")
        wait_for(lambda: stored("last.pth") == first)
        emulator.stop()
        for step in (2, 3, 4):
            newest = save(folder / "last.pth", step)
            copier.copy(folder / "last.pth")
            wait_for(lambda: lines(caplog))
        emulator.start()
        wait_for(lambda: stored("last.pth") == newest)
        wait_for(lambda: f"{URL} is back; saves are copied again" in lines(caplog, logging.INFO))
    assert stored("last.pth") == newest
    assert lines(caplog) == [f"{URL}: cannot be reached; training goes on and the newest save is tried again"]


def test_of_many_saves_the_newest_is_there_at_the_end_and_no_two_were_under_way_at_once(
    emulator: Emulator, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    under_way, sent, real = list[str](), list[bytes](), Bucket.put

    def watched(self: Bucket, path: Path, name: str, heard: Callable[[], object]) -> None:
        assert name not in under_way
        under_way.append(name)
        real(self, path, name, heard)
        time.sleep(0.02)
        sent.append(stored("last.pth") or b"")
        under_way.remove(name)

    monkeypatch.setattr(Bucket, "put", watched)
    with Mirror(URL, folder) as copier:
        saves = []
        for step in range(30):
            saves.append(save(folder / "last.pth", step))
            copier.copy(folder / "last.pth")
            time.sleep(random.random() / 50)
    order = [saves.index(raw) for raw in sent]
    assert order == sorted(order)
    assert order[-1] == 29
    assert stored("last.pth") == saves[-1]


def test_a_file_that_is_replaced_while_it_is_sent_arrives_as_it_was(
    emulator: Emulator, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(storage, "CHUNK", 2**20)
    before, parts = save(folder / "last.pth", 1, megabytes=6), []

    def replace() -> None:
        if not parts:
            save(folder / "last.pth", 2, megabytes=7)
        parts.append(1)

    Bucket(URL).put(folder / "last.pth", f"{RUN}/last.pth", replace)
    assert len(parts) > 5
    got = folder / "got"
    Bucket(URL).get(f"{RUN}/last.pth", got, lambda _: None)
    assert got.read_bytes() == before != (folder / "last.pth").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="stops a process")
def test_a_bucket_that_hangs_never_holds_up_a_step_and_is_warned_of(
    emulator: Emulator, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(mirror, "SILENCE", 0.3)
    monkeypatch.setattr(mirror, "END_TIMEOUT", 0.5)
    with contextlib.ExitStack() as stopped, Mirror(URL, folder) as copier:
        stopped.enter_context(emulator.hanging())
        for step in range(5):
            save(folder / "last.pth", step)
            started = time.monotonic()
            copier.copy(folder / "last.pth")
            assert time.monotonic() - started < 5
            time.sleep(0.2)
        started = time.monotonic()
    assert time.monotonic() - started < 20
    assert lines(caplog) == [
        f"{URL}: does not answer; training goes on and the newest save is tried again",
        f"{URL}/{RUN}: not arrived: last.pth; the newest are in {folder}",
    ]


@pytest.mark.parametrize(
    ("error", "limit"), [(None, "END_TIMEOUT"), (ValueError(), "END_TIMEOUT"), (SystemExit(143), "STOP_TIMEOUT")]
)
def test_the_end_waits_for_a_lost_bucket_no_longer_than_it_says(
    error: BaseException | None,
    limit: str,
    emulator: Emulator,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    assert mirror.STOP_TIMEOUT + 10 < 30  # with the tracker's, less than a spot machine has left
    for name in ("END_TIMEOUT", "STOP_TIMEOUT"):
        monkeypatch.setattr(mirror, name, 0.5 if name == limit else 60.0)
    with contextlib.suppress(ValueError, SystemExit), Mirror(URL, folder) as copier:
        emulator.stop()
        for name in ("best_model.pth", "last.pth", "metrics.jsonl"):
            (folder / name).write_text(name)
            copier.copy(folder / name)
        copier.link("w4ndb")
        started = time.monotonic()
        if error:
            raise error
    assert 0.4 < time.monotonic() - started < 20
    (warning,) = [line for line in lines(caplog) if "not arrived" in line]
    names = warning.removeprefix(f"{URL}/{RUN}: not arrived: ").removesuffix(f"; the newest are in {folder}")
    emulator.start()  # and nothing goes on in the background: it would meet what a resumed run sends
    wait_for(lambda: "mirror" not in {thread.name for thread in threading.enumerate()})
    assert sorted(names.split(", ")) == ["best_model.pth", "by-wandb-id/w4ndb.json", "last.pth", "metrics.jsonl"]


def test_when_time_is_short_the_file_to_resume_from_is_sent_first(
    emulator: Emulator, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    order, real, go = list[str](), Bucket.put, threading.Event()

    def slow(self: Bucket, path: Path, name: str, heard: Callable[[], object]) -> None:
        go.wait(10)
        order.append(path.name)
        real(self, path, name, heard)

    monkeypatch.setattr(Bucket, "put", slow)
    with Mirror(URL, folder) as copier:
        for name in ("a", "b", "c", "last.pth"):
            (folder / name).write_text(name)
            copier.copy(folder / name)
        wait_for(lambda: copier._sending)
        threading.Timer(0.2, go.set).start()
    assert order == ["a", "last.pth", "b", "c"]


def test_a_file_that_the_run_takes_away_again_is_no_trouble(url: str, folder: Path, caplog: pytest.LogCaptureFixture):
    (folder / "kept").write_text("kept")
    with Mirror(url, folder) as copier:
        copier.copy(folder / "gone")
        copier.copy(folder / "kept")
    assert lines(caplog) == []
    assert Bucket(url).read(f"{RUN}/kept") == b"kept"


def test_what_arrives_other_than_it_was_sent_is_noticed(emulator: Emulator, folder: Path):
    (folder / "a").write_bytes(b"the emulator drops the last byte\r")
    with pytest.raises(MlopsError, match=f"^{URL}: what arrived is not what was sent$"):
        Bucket(URL).put(folder / "a", f"{RUN}/a", lambda: None)


def test_what_was_damaged_in_the_bucket_is_not_taken(emulator: Emulator, folder: Path, tmp_path: Path):
    save(folder / "last.pth", 1)
    with Mirror(URL, folder) as copier:
        copier.copy(folder / "last.pth")
    (damaged,) = emulator.folder.rglob("last.pth")
    raw = damaged.read_bytes()
    damaged.write_bytes(raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
    with pytest.raises(MlopsError, match=f"^{URL}: {RUN}/last.pth does not arrive as it is there; try again$"):
        fetch(f"{URL}/{RUN}", tmp_path / "elsewhere")
    assert content(tmp_path / "elsewhere") == {}


class _Refusing(BaseHTTPRequestHandler):
    """A bucket that refuses: the emulator has no accounts."""

    code, allowed = 401, 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        cls = type(self)
        code = 200 if cls.allowed > 0 else cls.code
        cls.allowed -= 1
        body = b'{"md5Hash": "mZFLkyvTelC5g8XnyQrpOw==", "size": "2"}'
        if code != 200:
            body = b'{"error": {"code": %d, "message": "Anonymous caller does not have access, s3cr3t"}}' % code
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing on the terminal."""


def refused(url: str, folder: Path) -> str:
    with pytest.raises(MlopsError) as error, Mirror(url, folder):
        raise AssertionError("the run started")
    (problem,) = error.value.problems
    return problem


FORBIDDEN = "not allowed; this account has to read, write and replace there (GCS: the role Storage Object User)"


@pytest.mark.parametrize(
    ("code", "allowed", "reason"),
    [
        (401, 0, f"no valid credentials; {gcs.LOG_IN}"),
        (403, 0, FORBIDDEN),
        (403, 1, FORBIDDEN),  # new objects only: it would be the second save that fails
    ],
)
def test_an_account_that_may_not_write_and_replace_is_refused_before_the_run(
    code: int, allowed: int, reason: str, emulator: Emulator, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    handler = type("Handler", (_Refusing,), {"code": code, "allowed": allowed})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, monkeypatch.context() as patch:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
        assert refused(URL, folder) == f"run.mirror={URL}: {reason}"
        server.shutdown()


def test_a_mirror_that_is_none_is_refused_before_the_run(emulator: Emulator, folder: Path, tmp_path: Path):
    assert refused("gs://nobody/runs", folder) == "run.mirror=gs://nobody/runs: there is no such bucket or folder"
    assert refused("gs://", folder) == "run.mirror=gs://: names no bucket; write gs://bucket/folder"
    assert refused("bucket://a", folder) == (
        "run.mirror=bucket://a: bucket:// is no kind of storage; gs://bucket/folder and folders are known"
    )
    missing = tmp_path / "missing"
    assert refused(str(missing), folder) == f"run.mirror={missing}: no such folder; mount it or make it first"
    assert not missing.exists()
    assert refused("simplecache::gs://bucket/a", folder).startswith("run.mirror=simplecache::gs://bucket/a: chained")


@pytest.mark.parametrize("how", ["refused", "hangs"])
def test_a_bucket_that_does_not_answer_is_refused_in_seconds(
    how: str, emulator: Emulator, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    assert mirror.CHECK_TIMEOUT <= 10
    monkeypatch.setattr(mirror, "CHECK_TIMEOUT", 1.0)
    started = time.monotonic()
    if how == "hangs":
        with emulator.hanging():
            problem = refused(URL, folder)
    else:
        import gcsfs.retry

        monkeypatch.setattr(gcsfs.retry, "asyncio", asyncio)  # as slow as it is
        emulator.stop()
        problem = refused(URL, folder)
    assert time.monotonic() - started < 20
    assert problem == f"run.mirror={URL}: no answer within 1 s; check the network and the credentials"


def test_a_password_in_a_url_is_never_shown(emulator: Emulator, folder: Path):
    problem = refused("s3://name:s3cr3t@host/runs", folder)
    assert "s3cr3t" not in problem
    assert problem.startswith("run.mirror=s3://host/runs: ")


def test_a_share_that_is_unmounted_is_a_warning_and_nothing_is_written_in_its_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(mirror, "END_TIMEOUT", 0.3)
    share = tmp_path / "share"
    share.mkdir()
    with Mirror(str(share), folder) as copier:
        share.rename(tmp_path / "away")
        save(folder / "last.pth", 1)
        copier.copy(folder / "last.pth")
    assert lines(caplog) == [
        f"{share}: no such folder; mount it or make it first; training goes on and the newest save is tried again",
        f"{share}/{RUN}: not arrived: last.pth; the newest are in {folder}",
    ]
    assert not share.exists()


def test_a_w_and_b_run_without_a_save_is_not_found(emulator: Emulator, folder: Path):
    assert find(URL, "nobody") is None
    with Mirror(URL, folder) as copier:
        copier.link("an id/with ../odd # things?")
    assert find(URL, "an id/with ../odd # things?") is None
    assert latest(URL) is None
    put(f"{RUN}/last.pth", b"x")
    assert find(URL, "an id/with ../odd # things?") == f"{URL}/{RUN}"


@pytest.mark.parametrize("text", ["", "[]", '{"run": 7}', '{"run": "../../elsewhere"}', '{"run": "/etc"}', "\x00\xff"])
def test_a_link_that_leads_nowhere_is_one_line(text: str, emulator: Emulator):
    put("by-wandb-id/w4ndb.json", text)
    with pytest.raises(MlopsError) as error:
        find(URL, "w4ndb")
    (problem,) = error.value.problems
    assert "by-wandb-id/w4ndb.json" in problem


def test_a_run_that_is_not_there_is_said_with_what_is(emulator: Emulator, tmp_path: Path):
    with pytest.raises(MlopsError, match=f"^{URL}/{RUN}: no mirrored run with a last.pth; there are no runs$"):
        fetch(f"{URL}/{RUN}", tmp_path)
    for name in ("2026-01-01/10-00-00-aaaa", "2026-01-02/09-00-00-bbbb"):
        put(f"{name}/last.pth", b"x")
    put("2026-01-03/10-00-00-cccc/best_model.pth", b"x")
    put("by-wandb-id/w4ndb.json", '{"run": "a"}')
    with pytest.raises(MlopsError) as error:
        fetch(f"{URL}/{RUN}/", tmp_path)
    assert str(error.value) == (
        f"{URL}/{RUN}: no mirrored run with a last.pth; the newest there: "
        "2026-01-03/10-00-00-cccc, 2026-01-02/09-00-00-bbbb, 2026-01-01/10-00-00-aaaa"
    )
    assert latest(URL) == f"{URL}/2026-01-02/09-00-00-bbbb"
    for short in ("gs://bucket", "gs://bucket/run", "run"):
        with pytest.raises(MlopsError, match="names no run; write gs://bucket/folder/<date>/<time>-<id>"):
            fetch(short, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["/etc/x", "C:x"])
def test_a_name_that_leaves_the_folder_is_refused_before_anything_is_written(
    name: str, emulator: Emulator, tmp_path: Path, folder: Path
):
    put(f"{RUN}/last.pth", save(folder / "last.pth", 1))
    put(f"{RUN}/{name}", b"x")
    with pytest.raises(MlopsError, match="leaves its root"):
        fetch(f"{URL}/{RUN}", tmp_path / "elsewhere")
    assert content(tmp_path / "elsewhere") == {}


def test_the_last_pth_that_is_further_is_kept(url: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    save(folder / "last.pth", 5)
    (folder / "metrics.jsonl").write_text("mirrored")
    with Mirror(url, folder) as copier:
        for name in ("last.pth", "metrics.jsonl"):
            copier.copy(folder / name)
    here = tmp_path / "elsewhere" / RUN

    ours = save(here / "last.pth", 7)
    (here / "metrics.jsonl").write_text("here")
    assert fetch(f"{url}/{RUN}", tmp_path / "elsewhere") == here
    assert content(here) == {"last.pth": ours, "metrics.jsonl": b"here"}
    assert f"{here / 'last.pth'} is further than the mirrored one: what is here is kept" in lines(caplog, 0)

    save(here / "last.pth", 4)
    fetch(f"{url}/{RUN}", tmp_path / "elsewhere")
    assert content(here) == content(folder)

    # The same last.pth: what is beside it may be newer here, and what is missing is fetched.
    (here / "metrics.jsonl").write_text("newer")
    fetch(f"{url}/{RUN}", tmp_path / "elsewhere")
    assert (here / "metrics.jsonl").read_text() == "newer"
    (here / "metrics.jsonl").unlink()
    fetch(f"{url}/{RUN}", tmp_path / "elsewhere")
    assert content(here) == content(folder)

    # One that cannot be read is none.
    (here / "last.pth").write_bytes(b"half")
    fetch(f"{url}/{RUN}", tmp_path / "elsewhere")
    assert content(here) == content(folder)


def test_a_mirrored_last_pth_that_is_no_checkpoint_replaces_nothing(emulator: Emulator, tmp_path: Path):
    put(f"{RUN}/last.pth", b"nonsense")
    ours = save(tmp_path / RUN / "last.pth", 1)
    with pytest.raises(MlopsError, match=f"^{URL}/{RUN}/last.pth: is not a last.pth of this project$"):
        fetch(f"{URL}/{RUN}", tmp_path)
    assert content(tmp_path / RUN) == {"last.pth": ours}


def test_a_download_that_breaks_off_leaves_the_old_last_pth_and_is_begun_again(
    emulator: Emulator, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(folder / "last.pth", 5)
    save(folder / "best_model.pth", 5)
    with Mirror(URL, folder) as copier:
        copier.copy(folder / "last.pth")
        copier.copy(folder / "best_model.pth")
    old, real = save(tmp_path / "new" / RUN / "last.pth", 2), Bucket.get

    def broken(self: Bucket, name: str, path: Path, received: Callable[[int], object]) -> None:
        if name.endswith("best_model.pth"):
            emulator.stop()
        real(self, name, path, received)

    with monkeypatch.context() as patch, pytest.raises(MlopsError, match=f"^{URL}: cannot be reached$"):
        patch.setattr(Bucket, "get", broken)
        fetch(f"{URL}/{RUN}", tmp_path / "new")
    assert content(tmp_path / "new" / RUN) == {"last.pth": old}
    emulator.start()
    fetch(f"{URL}/{RUN}", tmp_path / "new")
    assert content(tmp_path / "new" / RUN) == content(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_disk_that_is_full_leaves_no_part_of_a_download(url: str, folder: Path, tmp_path: Path):
    import resource

    save(folder / "last.pth", 5, megabytes=3)
    with Mirror(url, folder) as copier:
        copier.copy(folder / "last.pth")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(MlopsError) as error:
            fetch(f"{url}/{RUN}", tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (problem,) = error.value.problems
    assert problem.startswith(
        f"{tmp_path / 'new' / RUN / 'last.pth'}: cannot be written: File too large; free some space"
    )
    assert content(tmp_path / "new") == {}


@pytest.mark.skipif(sys.platform == "win32", reason="stops a process")
def test_a_download_that_stands_still_is_given_up(
    emulator: Emulator, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(folder / "last.pth", 5)
    with Mirror(URL, folder) as copier:
        copier.copy(folder / "last.pth")
    real = Bucket.get
    monkeypatch.setattr(mirrored, "STALL_TIMEOUT", 1.0)

    with contextlib.ExitStack() as stopped:

        def hanging(self: Bucket, name: str, path: Path, received: Callable[[int], object]) -> None:
            stopped.enter_context(emulator.hanging())
            real(self, name, path, received)

        monkeypatch.setattr(Bucket, "get", hanging)
        with pytest.raises(MlopsError, match=f"^{URL}: no answer within 1 s; check the network"):
            fetch(f"{URL}/{RUN}", tmp_path / "new")
    assert content(tmp_path / "new") == {}


def test_every_byte_of_a_download_is_heard_of(url: str, folder: Path):
    raw = save(folder / "last.pth", 5, megabytes=2)
    with Mirror(url, folder) as copier:
        copier.copy(folder / "last.pth")
    heard = list[int]()
    Bucket(url).get(f"{RUN}/last.pth", folder / "got", heard.append)
    assert sum(heard) == len(raw)


SCRIPT = """
import logging, sys, time
from pathlib import Path
from mlops import mirror
from mlops.errors import MlopsError, fail
assert not {"fsspec", "gcsfs", "aiohttp", "torch"} & set(sys.modules)
logging.basicConfig(level=logging.INFO, format="%(message)s")
mirror.CHECK_TIMEOUT, mirror.END_TIMEOUT = map(float, sys.argv[2:])
try:
    with mirror.Mirror("gs://bucket/runs", Path(sys.argv[1])) as copier:
        print("started", flush=True)
        sys.stdin.readline()
        copier.copy(Path(sys.argv[1]) / "last.pth")
except MlopsError as error:
    fail(error)
print("ended", flush=True)
"""


# A resolver whose servers are gone: names are waited for.
DEAF = """
import socket, time
socket.getaddrinfo = lambda *arguments, **named: time.sleep(60)
"""


def start(folder: Path, check: int, end: int, before: str = "") -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", before + SCRIPT, str(folder), str(check), str(end)],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=environment,
    )


@pytest.mark.parametrize("when", ["never", "middle", "start"])
def test_a_process_ends_at_once_and_quietly_whether_or_not_its_bucket_is_there(
    when: str, emulator: Emulator, folder: Path
):
    save(folder / "last.pth", 1)
    if when == "start":
        emulator.stop()
    # Short only where it is waited for: else a busy machine would need longer.
    with start(folder, 2 if when == "start" else 60, 1 if when == "middle" else 60) as run:
        assert run.stdout
        assert run.stderr
        if when != "start":
            assert run.stdout.readline() == "started\n"
        if when == "middle":
            emulator.stop()
        out, err = run.communicate("\n", timeout=30)
    expected = {
        "never": [f"every save is copied to {URL}/{RUN}"],
        "middle": [
            f"every save is copied to {URL}/{RUN}",
            f"{URL}/{RUN}: not arrived: last.pth; the newest are in {folder}",
        ],
        "start": [f"error: run.mirror={URL}: no answer within 2 s; check the network and the credentials"],
    }
    assert err.splitlines() == expected[when]
    assert out == ("" if when == "start" else "ended\n")
    assert run.returncode == (2 if when == "start" else 0)


def test_names_that_do_not_resolve_hold_up_no_process(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://somewhere.example")
    with start(folder, 2, 60, DEAF) as run:
        _, err = run.communicate("\n", timeout=50)
    assert err.splitlines() == [f"error: run.mirror={URL}: no answer within 2 s; check the network and the credentials"]
