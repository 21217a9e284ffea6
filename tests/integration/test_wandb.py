"""Tracked runs against a W&B server, with W&B's own processes and its own `wandb sync`."""

import _thread
import contextlib
import json
import logging
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import Command
from integration.wandb_server import KEY, Artifact, Run, Server
from mlops import checkpoint, tracking
from mlops.config import TrackingConfig
from mlops.errors import MlopsError
from mlops.tables import to_copy
from mlops.tracking import Tracker
from samples import QUICK, png

METADATA = {
    "metrics": {"val_Accuracy": 0.75},
    "digest": "d1g3st",
    "classes": ["a", "b", "c"],
    "data": {"name": "signs", "fingerprint": "f1n9e2"},
}
EPOCHS = [
    {"epoch": 1, "val_Accuracy": 0.5, "val_loss": 0.9},
    {"epoch": 2, "val_Accuracy": 0.75, "val_loss": 0.4},
    {"epoch": 3, "val_Accuracy": 0.25, "val_loss": 0.6},
]
BEST = EPOCHS[1]
LONGER = [*EPOCHS, *({"epoch": n, "val_Accuracy": 0.1 * n, "val_loss": 0.5} for n in (4, 5, 6))]

# Seconds by which a machine that does other things too may be late. What is bounded here would else take 90 and more.
LATE = 15


@pytest.fixture(scope="module")
def running_server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def server(own_wandb: None, running_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A W&B server, and a machine that knows of nothing else."""
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", running_server.url)
    yield running_server
    # Before W&B's process ends: one that still has something to send would wait for a server that is away.
    running_server.resume()


@pytest.fixture
def short_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "START_TIMEOUT", 1.0)


@pytest.fixture
def short_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "CALL_TIMEOUT", 2.0)
    monkeypatch.setattr(tracking, "END_TIMEOUT", 3.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "2026-01-01" / "12-00-00-abcd"
    made.mkdir(parents=True)
    (made / "best_model.pth").write_bytes(b"weights")
    (made / "curves.png").write_bytes(png())
    return made


def tracker(
    folder: Path,
    mode: str = "wandb",
    monitor: str = "val_Accuracy",
    run_id: str | None = None,
    history: Sequence[dict[str, float]] = (),
) -> Tracker:
    return Tracker(TrackingConfig(mode=mode), folder, {"seed": 7}, monitor, run_id=run_id, history=history)


def nothing() -> None:
    """No accident."""


def track(
    folder: Path, mode: str = "wandb", middle: Callable[[], object] = nothing, end: Callable[[], object] = nothing
) -> tuple[float, float]:
    """A whole tracked run of three epochs, with something that happens on the way.

    Returns:
        The seconds that its start and its end took.
    """
    started = time.monotonic()
    with tracker(folder, mode) as tracked:
        entered = time.monotonic()
        for metrics in EPOCHS:
            if metrics["epoch"] == 2:
                middle()
            tracked.log_epoch(
                metrics, min(metrics, BEST, key=lambda row: row["val_loss"]) if metrics["epoch"] > 1 else metrics
            )
        tracked.log_summary(BEST | {"test_Accuracy": 0.625})
        tracked.log_pictures({"curves": folder / "curves.png"})
        tracked.log_checkpoint(folder / "best_model.pth", METADATA)
        end()
        ending = time.monotonic()
    return entered - started, time.monotonic() - ending


def sync(command: str, folder: Path) -> None:
    """Give a shell in `folder` a command, or that at the end of a message, as a user does in this environment."""
    command = command.rpartition("with: ")[2]
    if shutil.which("uv") is None:
        command = command.removeprefix("uv run ")
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": os.pathsep.join([scripts, os.environ["PATH"]]), "VIRTUAL_ENV": sys.prefix}
    with started(command, shell=True, cwd=folder, env=environment) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err + out


@contextlib.contextmanager
def started(command: str | list[str], **how: Any) -> Iterator["subprocess.Popen[str]"]:
    """A process with pipes, which is gone afterwards; W&B's own one ends with it."""
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, start_new_session=os.name == "posix", **pipes | how) as process:
        try:
            yield process
        finally:
            if os.name == "posix":
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()


def kept(folder: Path) -> Path:
    """The one W&B run of a run's folder; Windows keeps a folder of a failed start, with nothing to send."""
    (found,) = [path.parent for path in (folder / "wandb").glob("*run-*/*.wandb") if not path.parent.is_symlink()]
    return found


def arrived(server: Server, folder: Path) -> tuple[Run, Artifact]:
    """What the server has of the run of a folder."""
    run = server.runs[kept(folder).name.split("-")[-1]]
    (artifact,) = [item for item in server.artifacts.values() if item.run == run.name and item.committed]
    return run, artifact


def assert_whole(server: Server, folder: Path) -> None:
    run, artifact = arrived(server, folder)
    assert [{key: row[key] for key in EPOCHS[0]} for row in run.rows] == EPOCHS
    assert run.summary["best_epoch"] == run.summary["epoch"] == 2
    assert (run.summary["val_Accuracy"], run.summary["val_loss"], run.summary["test_Accuracy"]) == (0.75, 0.4, 0.625)
    assert run.files[run.summary["report/curves"]["path"]] == png()
    assert set(artifact.aliases) == {"best", "f1n9e2", "latest"}
    assert artifact.files == {"best_model.pth": b"weights"}
    assert run.exit_codes == [0]


def wait_for(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [record for record in caplog.records if record.name.startswith("mlops.")]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


def test_a_training_arrives_with_config_metrics_pictures_and_checkpoint(
    server: Server, pictures: Path, workplace: Path, hydra_command: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLOPS_SECRET", "s3cr3t-value")
    before = len(server.received)
    done = hydra_command("train", *QUICK, f"data.root={pictures}", "tracking=wandb")
    assert done.code == 0, done.err
    (folder,) = (workplace / "outputs").glob("*/*")
    run, artifact = arrived(server, folder)
    story = checkpoint.read_metadata(folder / "best_model.pth")

    assert f"W&B run: {server.url}/team/mlops/runs/{run.name}" in (folder / "train.log").read_text()
    assert run.display_name == f"{folder.parent.name}/{folder.name}"
    assert run.config["model"] == story["config"]["model"]
    assert run.config["training"]["optimizer"] == story["config"]["training"]["optimizer"]
    assert [{key: row[key] for key in story["history"][0]} for row in run.rows] == story["history"]
    assert run.summary.items() >= (story["metrics"] | {"best_epoch": story["epoch"]}).items()
    for picture in (folder / "report").glob("*.png"):
        assert run.files[run.summary[f"report/{picture.stem}"]["path"]] == picture.read_bytes()
    assert run.exit_codes == [0]

    assert artifact.type == "model"
    assert set(artifact.aliases) == {"best", story["data"]["fingerprint"], "latest"}
    assert artifact.files == {"best_model.pth": (folder / "best_model.pth").read_bytes()}
    assert artifact.metadata == {
        "metrics": story["metrics"],
        "digest": story["digest"],
        "classes": 3,
        "data": "pictures",
        "fingerprint": story["data"]["fingerprint"],
        "dvc_md5": None,
        "dvc_rev": None,
    }

    sent = b"\n".join(server.received[before:])
    assert set(run.files) <= {"wandb-summary.json", "config.yaml"} | {name for name in run.files if "media/" in name}
    for private in ("s3cr3t-value", "train.py", "diff --git", "hydra-core=="):
        assert private.encode() not in sent
    assert all(not upsert.get("host") and not upsert.get("program") for upsert in run.upserts)


@pytest.mark.parametrize(("monitor", "code"), [("val_Accuracy", 2), ("val_loss", 1)])
def test_the_monitor_is_the_one_metric_with_a_goal(monitor: str, code: int, server: Server, folder: Path):
    with tracker(folder, monitor=monitor) as tracked:
        tracked.log_epoch(EPOCHS[0], EPOCHS[0])
    metrics = {item.get("1", item.get("2")): item for item in server.runs[str(tracked.run_id)].config["_wandb"]["m"]}
    assert metrics[monitor]["7"] == [code]  # 1: min, 2: max
    assert (
        metrics[monitor]["5"]
        == [item.get("1") for item in server.runs[str(tracked.run_id)].config["_wandb"]["m"]].index("epoch") + 1
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError(), 1), (MlopsError("x"), 2), (SystemExit(143), 143), (KeyboardInterrupt(), 130), (SystemExit(), 0)],
)
def test_a_run_that_fails_shows_as_failed(error: BaseException, code: int, server: Server, folder: Path):
    with pytest.raises(type(error)), tracker(folder) as tracked:
        tracked.log_epoch(EPOCHS[0], EPOCHS[0])
        raise error
    assert server.runs[str(tracked.run_id)].exit_codes == [code]


def swallowing_host() -> socket.socket:
    """A host that takes connections and never answers."""
    host = socket.socket()
    host.bind(("127.0.0.1", 0))
    host.listen()
    return host


@pytest.mark.parametrize("how", ["refused", "swallowed", "wrong key", "short key", "no key"])
def test_without_w_and_b_at_the_start_the_run_is_kept_on_disk_and_can_be_sent_later(
    how: str,
    server: Server,
    folder: Path,
    short_start: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    with swallowing_host() as host, monkeypatch.context() as patch:
        keys = {"wrong key": "w" * 40, "short key": "w", "no key": ""}
        patch.setenv("WANDB_API_KEY", keys.get(how, KEY))
        if how == "swallowed":
            patch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{host.getsockname()[1]}")
        if how == "refused":
            server.stop()
        start, end = track(folder)
    assert start < tracking.START_TIMEOUT + LATE
    assert end < LATE
    (warning,) = warnings(caplog)
    assert warning.startswith("W&B cannot be reached (")
    command = to_copy("wandb", "sync", kept(folder))
    assert warning.endswith(f"so this run is kept on disk; send it with: {command}")
    assert kept(folder).name.startswith("offline-run-")
    server.resume()
    sync(warning, folder)
    assert_whole(server, folder)


@pytest.mark.parametrize("when", ["middle", "end"])
@pytest.mark.parametrize("how", ["stop", "hang"])
def test_when_the_server_goes_the_run_goes_on_and_can_be_sent_later(
    how: str,
    when: str,
    server: Server,
    folder: Path,
    short_end: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    known = set(server.runs)
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")  # seconds, for 15; less than 1 is not taken
    # Started by uv, in a folder whose name no shell takes as it is.
    monkeypatch.setenv("UV", "uv")
    folder = folder.rename(folder.with_name("12-00-00 it's"))

    def accident() -> None:
        if (how, when) == ("stop", "middle"):
            # What has arrived is sent again later, and must not be there twice.
            wait_for(lambda: any(run.rows for name, run in server.runs.items() if name not in known))
        getattr(server, how)()

    assert track(folder, **{when: accident})[1] < tracking.END_TIMEOUT + LATE
    (warning,) = warnings(caplog)
    command = to_copy("wandb", "sync", "--include-online", kept(folder))
    assert warning == (
        f"W&B failed, the run goes on without it: it does not answer; send what it has kept with: {command}"
    )
    server.resume()
    sync(warning, folder)
    assert_whole(server, folder)


def core() -> int:
    """The process id of W&B's own process, a child of ours."""
    found = subprocess.run(
        ["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=True
    )
    (pid,) = [line.split()[0] for line in found.stdout.splitlines() if "wandb-core" in line]
    return int(pid)


@pytest.mark.skipif(platform.system() != "Linux", reason="signals and ps as on Linux")
@pytest.mark.parametrize(("signal_", "mode"), [("KILL", "wandb"), ("STOP", "wandb"), ("KILL", "offline")])
def test_losing_w_and_bs_own_process_costs_one_warning(
    signal_: str,
    mode: str,
    server: Server,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "CALL_TIMEOUT", 2.0)
        patch.setattr(tracking, "END_TIMEOUT", 3.0)
        _, end = track(folder, mode, middle=lambda: subprocess.run(["kill", f"-{signal_}", str(core())], check=True))
    assert end < 3 + LATE
    (warning,) = warnings(caplog)
    assert warning.startswith("W&B failed, the run goes on without it: ")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == EPOCHS
    # A later run of the same process, such as a sweep's next trial, is tracked as ever.
    later = folder.parent / "later"
    later.mkdir()
    for name in ("best_model.pth", "curves.png"):
        (later / name).write_bytes((folder / name).read_bytes())
    track(later)
    assert_whole(server, later)


def test_a_picture_that_cannot_be_sent_costs_the_picture(
    server: Server, folder: Path, caplog: pytest.LogCaptureFixture
):
    broken = {"broken": folder / "best_model.pth", "missing": folder / "nothing.png"}
    with tracker(folder) as tracked:
        tracked.log_pictures(broken | {"curves": folder / "curves.png"})
        tracked.log_epoch(BEST, BEST)
        tracked.log_checkpoint(folder / "best_model.pth", METADATA)
    (warning,) = warnings(caplog)
    assert warning.startswith("W&B did not take report/broken: ")
    assert warning.endswith("; the run goes on being tracked")
    run, artifact = arrived(server, folder)
    assert run.files[run.summary["report/curves"]["path"]] == png()
    assert len(run.rows) == 1
    assert "best" in artifact.aliases
    assert run.exit_codes == [0]


def test_a_loss_after_a_picture_that_could_not_be_sent_is_said_too(
    server: Server, folder: Path, short_end: None, caplog: pytest.LogCaptureFixture
):
    with tracker(folder) as tracked:
        tracked.log_pictures({"broken": folder / "best_model.pth"})
        server.hang()
        tracked.log_checkpoint(folder / "best_model.pth", METADATA)
    missed, lost = warnings(caplog)
    assert missed.startswith("W&B did not take report/broken: ")
    assert lost.startswith("W&B failed, the run goes on without it: ")
    assert " --include-online " in lost


def test_after_sigterm_a_dead_server_holds_the_end_for_less_than_a_cluster_waits(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    assert tracking.STOP_TIMEOUT <= 10
    monkeypatch.setattr(tracking, "STOP_TIMEOUT", 2.0)
    with pytest.raises(SystemExit), tracker(folder) as tracked:
        tracked.log_epoch(BEST, BEST)
        server.hang()
        started = time.monotonic()
        raise SystemExit(143)
    assert time.monotonic() - started < tracking.STOP_TIMEOUT + LATE
    (warning,) = warnings(caplog)
    assert warning.startswith("W&B failed, the run goes on without it: it does not answer; send ")


def test_a_page_of_the_report_is_shown_too(server: Server, folder: Path):
    (folder / "index.html").write_text("<p>how well it did</p>")
    with tracker(folder) as tracked:
        tracked.log_pictures({"index": folder / "index.html"})
    run = server.runs[str(tracked.run_id)]
    assert b"how well it did" in run.files[run.summary["report/index"]["path"]]
    assert run.rows == []


def test_a_trial_of_a_sweep_keeps_the_names_that_the_agent_gave(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    for name, value in {"SWEEP_ID": "sw1", "RUN_ID": "trial5", "PROJECT": "swept", "ENTITY": "team"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    with tracker(folder) as tracked:
        tracked.log_epoch(BEST, BEST)
    assert tracked.run_id == "trial5"
    assert server.runs["trial5"].upserts[0]["project"] == "swept"
    assert server.runs["trial5"].upserts[0]["sweep"] == "sw1"
    assert capfd.readouterr() == ("", "")


def test_a_trial_that_is_preempted_shows_so_and_goes_on_when_its_agent_starts_it_again(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in {"SWEEP_ID": "sw1", "RUN_ID": "trial6", "PROJECT": "swept", "ENTITY": "team"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    with pytest.raises(SystemExit), tracker(folder) as tracked:
        for metrics in LONGER[:4]:
            tracked.log_epoch(metrics, BEST)
        began = time.monotonic()
        tracked.mark_preempting()
        assert time.monotonic() - began < tracking.PREEMPT_TIMEOUT + LATE
        raise SystemExit(143)
    run = server.runs["trial6"]
    assert (run.state, run.exit_codes) == ("preempted", [143])
    # On an empty machine, it begins again at epoch 1: the same seed gives the same epochs.
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    with tracker(elsewhere) as tracked:
        for metrics in LONGER:
            tracked.log_epoch(metrics, BEST)
        assert not run.ended
    assert_every_epoch_once(run)
    assert (run.state, run.exit_codes) == ("finished", [143, 0])


@pytest.mark.parametrize("mode", ["wandb", "offline"])
def test_only_a_trial_whose_sweep_can_be_told_is_marked_as_preempting(
    mode: str, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    if mode == "offline":
        for name, value in {"SWEEP_ID": "sw1", "RUN_ID": "trial7", "PROJECT": "swept", "ENTITY": "team"}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
    with pytest.raises(SystemExit), tracker(folder, mode) as tracked:
        tracked.log_epoch(BEST, BEST)
        tracked.mark_preempting()
        raise SystemExit(143)
    if mode == "offline":
        sync(to_copy("wandb", "sync", kept(folder)), folder)
    assert not server.runs[str(tracked.run_id)].preempting


def assert_every_epoch_once(run: Run) -> None:
    """Of `LONGER`, and what was sent stands there as it was sent: nothing twice."""
    assert [row["_step"] for row in run.history] == [0, 1, 2, 3, 4, 5]
    assert [{key: row[key] for key in LONGER[0]} for row in run.history] == LONGER


KILLED = """
import json, logging, sys, time
from pathlib import Path
from mlops.config import TrackingConfig
from mlops.tracking import Tracker
logging.basicConfig(level=logging.WARNING, format="%(message)s")
mode, folder, epochs = sys.argv[1:]
with Tracker(TrackingConfig(mode=mode), Path(folder), {"seed": 7}, "val_Accuracy") as tracked:
    for metrics in json.loads(epochs):
        tracked.log_epoch(metrics, metrics)
    print(tracked.run_id, tracked._service._connection._proc._process.pid, flush=True)
    time.sleep(600)
"""


def track_and_kill(
    folder: Path, mode: str, epochs: Sequence[dict[str, float]], ready: Callable[[str], bool], all_of_it: bool = False
) -> str:
    """Track `epochs` in a process that is killed once it is `ready`, with W&B's own one if `all_of_it` goes.

    Returns:
        W&B's id of the run.
    """
    with started([sys.executable, "-c", KILLED, mode, str(folder), json.dumps(epochs)]) as process:
        assert process.stdout is not None
        run_id, core = process.stdout.readline().split()
        wait_for(lambda: ready(run_id))
        if all_of_it:
            os.kill(int(core), signal.SIGKILL)
        process.kill()
    # Alone it ends too, a moment after its parent.
    wait_for(lambda: not Path(f"/proc/{core}").exists())
    return run_id


linux_only = pytest.mark.skipif(platform.system() != "Linux", reason="processes as Linux shows them")


@linux_only
@pytest.mark.parametrize("last_saved", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_killed_run_that_goes_on_online_has_every_epoch_once(
    last_saved: int, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Epochs 1 to 3 arrived; last.pth is from before them, and they are computed again, or from after them."""
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")
    run_id = track_and_kill(folder, "wandb", LONGER[:3], lambda run_id: len(server.runs[run_id].history) == 3, True)
    assert server.runs[run_id].state == "running"
    with tracker(folder, run_id=run_id, history=LONGER[:last_saved]) as tracked:
        for metrics in LONGER[last_saved:]:
            tracked.log_epoch(metrics, BEST)
    assert tracked.run_id == run_id
    assert_every_epoch_once(server.runs[run_id])
    assert server.runs[run_id].state == "finished"
    assert server.runs[run_id].summary.items() >= (BEST | {"best_epoch": 2}).items()
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == LONGER


def on_disk(folder: Path) -> Callable[[str], bool]:
    """Whether W&B's process has written what it was told, as it does every second."""
    return lambda run_id: any(
        b"val_loss" in path.read_bytes() for path in folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb")
    )


@linux_only
@pytest.mark.parametrize("order", ["all at once", pytest.param("the older one last", marks=pytest.mark.slow)])
def test_a_killed_run_that_goes_on_offline_is_sent_as_one_with_every_epoch_once(
    order: str, server: Server, folder: Path
):
    run_id = track_and_kill(folder, "offline", LONGER[:3], on_disk(folder))
    with tracker(folder, "offline", run_id=run_id, history=LONGER[:2]) as tracked:
        for metrics in LONGER[2:]:
            tracked.log_epoch(metrics, BEST)
    older, newer = sorted(folder.glob("wandb/offline-run-*"))
    commands = {
        "all at once": ["wandb sync wandb/offline-run-*"],
        "the older one last": [f"wandb sync {newer}", f"wandb sync {older}", "wandb sync wandb/offline-run-*"],
    }
    for command in commands[order]:
        sync(command, folder)
        assert_every_epoch_once(server.runs[run_id])
    assert (server.runs[run_id].state, server.runs[run_id].exit_codes) == ("finished", [0])
    assert server.runs[run_id].summary.items() >= (BEST | {"best_epoch": 2}).items()
    assert b"val_loss" in (older / f"run-{run_id}.wandb").read_bytes()  # nothing of it is lost


@linux_only
def test_the_folder_of_before_is_passed_over_only_once_the_new_one_is_on_disk(server: Server, folder: Path):
    run_id = track_and_kill(folder, "offline", LONGER[:3], on_disk(folder))
    (before,) = folder.glob("wandb/offline-run-*")
    with tracker(folder, "offline", run_id=run_id, history=LONGER[:2]) as tracked:
        tracked.log_epoch(LONGER[2], BEST)
        assert not list(before.glob("*.synced"))
        time.sleep(2 * tracking.FLUSH_INTERVAL)
        (newest,) = set(folder.glob("wandb/offline-run-*")) - {before}
        wait_for(lambda: b"val_loss" in (newest / f"run-{run_id}.wandb").read_bytes())
        tracked.log_epoch(LONGER[3], BEST)
        assert list(before.glob("*.synced"))


@linux_only
def test_a_run_that_was_offline_and_goes_on_online_is_sent_whole(server: Server, folder: Path):
    run_id = track_and_kill(folder, "offline", LONGER[:3], on_disk(folder))
    with tracker(folder, run_id=run_id, history=LONGER[:2]) as tracked:
        for metrics in LONGER[2:]:
            tracked.log_epoch(metrics, BEST)
    assert_every_epoch_once(server.runs[run_id])
    sync("wandb sync wandb/offline-run-*", folder)  # as one who remembers having been told to
    assert_every_epoch_once(server.runs[run_id])
    assert server.runs[run_id].state == "finished"


@linux_only
@pytest.mark.parametrize("why", [pytest.param("asked for", marks=pytest.mark.slow), "the server is away"])
def test_a_run_that_was_online_and_goes_on_offline_is_sent_whole(
    why: str, server: Server, folder: Path, short_start: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")
    run_id = track_and_kill(folder, "wandb", LONGER[:3], lambda run_id: len(server.runs[run_id].history) == 3)
    (before,) = folder.glob("wandb/run-*")
    monkeypatch.setenv("WANDB_RESUME", "allow")
    if why == "the server is away":
        server.stop()
    with tracker(
        folder, "wandb" if why == "the server is away" else "offline", run_id=run_id, history=LONGER[:2]
    ) as tracked:
        for metrics in LONGER[2:]:
            tracked.log_epoch(metrics, BEST)
    assert (before / f"run-{run_id}.wandb").exists()
    monkeypatch.delenv("WANDB_RESUME")  # another shell
    server.resume()
    sync("wandb sync --include-online wandb/*run-*", folder)
    run = server.runs[run_id]
    assert [{key: row[key] for key in LONGER[0]} for row in run.rows] == LONGER
    assert [row["_step"] for row in run.rows] == [0, 1, 2, 3, 4, 5]
    assert run.summary.items() >= (BEST | {"best_epoch": 2}).items()


def test_when_the_server_goes_a_run_that_went_on_can_be_sent_later(
    server: Server,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")
    with tracker(folder) as tracked:
        for metrics in LONGER[:2]:
            tracked.log_epoch(metrics, BEST)
    run = server.runs[str(tracked.run_id)]
    monkeypatch.setattr(tracking, "END_TIMEOUT", 3.0)
    with tracker(folder, run_id=tracked.run_id, history=LONGER[:2]) as tracked:
        tracked.log_epoch(LONGER[2], BEST)
        wait_for(lambda: len(run.history) == 3)
        server.stop()
        for metrics in LONGER[3:]:
            tracked.log_epoch(metrics, BEST)
    server.resume()
    sync(warnings(caplog)[0], folder)
    assert [{key: row[key] for key in LONGER[0]} for row in run.rows] == LONGER
    assert [row["_step"] for row in run.rows] == [0, 1, 2, 3, 4, 5]


SCRIPT = """
import logging, os, subprocess, sys
from pathlib import Path
from mlops.config import TrackingConfig
from mlops.tracking import Tracker
logging.basicConfig(level=logging.WARNING, format="%(message)s")
with Tracker(TrackingConfig(mode="wandb"), Path(sys.argv[1]), {}, "val_loss") as tracked:
    if "kill" in sys.argv:
        tracked._service._connection._proc._process.kill()
    tracked.log_epoch({"epoch": 1, "val_loss": 1.0}, {"epoch": 1, "val_loss": 1.0})
"""


@pytest.mark.skipif(os.name != "posix", reason="terminals and signals as on POSIX")
@pytest.mark.parametrize("accident", ["no key", "kill"])
def test_on_a_terminal_nobody_is_asked_and_the_end_is_one_warning(
    accident: str, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    import pty

    if accident == "no key":
        monkeypatch.setenv("WANDB_API_KEY", "")
    ours, theirs = pty.openpty()
    with started(
        [sys.executable, "-c", SCRIPT, str(folder), accident], stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        assert process.wait(60) == 0
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    (line,) = shown.splitlines()
    assert line.startswith("W&B cannot be reached (No API key" if accident == "no key" else "W&B failed, ")


def test_ctrl_c_cuts_the_wait_at_the_end_short(server: Server, folder: Path):
    with pytest.raises(KeyboardInterrupt), tracker(folder) as tracked:
        tracked.log_checkpoint(folder / "best_model.pth", METADATA)
        server.hang()
        # Unlike a real signal, this one ends no wait by itself: as Ctrl-C on Windows.
        threading.Timer(0.5, _thread.interrupt_main).start()
        began = time.monotonic()
    assert time.monotonic() - began < LATE < tracking.END_TIMEOUT


def test_ctrl_c_while_w_and_b_starts_ends_its_process(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch):
    with swallowing_host() as host:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{host.getsockname()[1]}")

        def press_when_it_asks_the_host() -> None:
            host.accept()[0].close()
            _thread.interrupt_main()

        threading.Thread(target=press_when_it_asks_the_host, daemon=True).start()
        tracked = tracker(folder)
        with pytest.raises(KeyboardInterrupt), tracked:
            pass
    assert tracked._service._connection._proc._process.poll() is not None


def test_ctrl_c_before_w_and_bs_process_is_there_leaves_none(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    from wandb.sdk.lib.service import service_process

    begun, started, known = threading.Event(), [], set(server.runs)
    start = service_process.start

    def start_slowly(settings: Any) -> Any:
        begun.set()
        time.sleep(0.5)
        started.append(start(settings))
        return started[0]

    monkeypatch.setattr(service_process, "start", start_slowly)

    def press() -> None:
        begun.wait()
        _thread.interrupt_main()

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt), tracker(folder):
        pass
    for thread in threading.enumerate():
        if thread.name == "deadline":
            thread.join(10)
    assert [process._process.poll() is not None for process in started] == [True]
    assert set(server.runs) == known


def test_a_start_is_bounded_also_when_w_and_bs_own_process_does_not_answer(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(tracking, "START_TIMEOUT", 0.5)
    monkeypatch.setattr(tracking, "CALL_TIMEOUT", 0.25)
    with swallowing_host() as host:
        monkeypatch.setenv("WANDB_SERVICE", f"3-1-tcp-localhost-{host.getsockname()[1]}")
        assert sum(track(folder)) < 2 * (0.5 + 0.25 + 2) + LATE
    (warning,) = warnings(caplog)
    assert warning == "W&B failed, the run goes on without it: it does not answer"


@pytest.mark.slow
def test_the_weights_are_the_same_with_and_without_w_and_b(
    server: Server,
    pictures: Path,
    workplace: Path,
    hydra_command: Command,
    short_end: None,
    monkeypatch: pytest.MonkeyPatch,
):
    def weights(*more: str) -> dict[str, Any]:
        done = hydra_command("train", *QUICK, f"data.root={pictures}", *more)
        assert done.code == 0, done.err
        newest = max((workplace / "outputs").glob("*/*/best_model.pth"), key=lambda path: path.stat().st_mtime_ns)
        return checkpoint.read(newest).state_dict

    alone = weights("tracking=off")
    tracked = [weights("tracking=offline"), weights("tracking=wandb")]
    known = len(server.runs)

    def stop_in_the_middle() -> None:
        wait_for(lambda: len(server.runs) > known)
        server.stop()

    accident = threading.Thread(target=stop_in_the_middle)
    accident.start()
    tracked.append(weights("tracking=wandb"))
    accident.join()
    monkeypatch.setattr(tracking, "START_TIMEOUT", 1.0)
    tracked.append(weights("tracking=wandb"))  # the server is still away
    for other in tracked:
        assert set(other) == set(alone)
        assert all((other[name] == value).all() for name, value in alone.items())
