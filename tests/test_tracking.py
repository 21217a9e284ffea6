import json
import logging
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mlops.config import TrackingConfig
from mlops.errors import MlopsError
from mlops.tracking import Tracker


def tracker(folder: Path, mode: str, history: Sequence[dict[str, float]] = ()) -> Tracker:
    folder.mkdir(parents=True, exist_ok=True)
    return Tracker(TrackingConfig(mode=mode), folder, {"seed": 0}, "val_loss", history=history)


EPOCHS = [{"epoch": 1, "val_loss": 0.5}, {"epoch": 2, "val_loss": 0.25}]
METADATA = {"metrics": {}, "digest": "d1", "classes": ["a", "b"], "data": {"name": "signs", "fingerprint": "f1n9e2"}}


pytestmark = pytest.mark.usefixtures("own_wandb")


def test_metrics_jsonl_holds_one_object_an_epoch(tmp_path: Path):
    with tracker(tmp_path, "off") as tracking:
        tracking.log_epoch(EPOCHS[0], EPOCHS[0])
        tracking.log_epoch(EPOCHS[1], EPOCHS[1])
        tracking.log_summary(EPOCHS[1])
        tracking.log_pictures({"curves": tmp_path / "curves.png"})
        tracking.log_checkpoint(tmp_path / "best_model.pth", METADATA)
    assert tracking.run_id is None
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == EPOCHS
    assert not (tmp_path / "wandb").exists()


@pytest.mark.parametrize(
    "left",
    [
        json.dumps(EPOCHS[0]) + "\n" + json.dumps(EPOCHS[1]) + "\n",
        json.dumps(EPOCHS[0]) + "\n" + json.dumps(EPOCHS[1])[:7],
        "",
    ],
    ids=["further on", "in the middle of a line", "nothing"],
)
def test_a_run_that_goes_on_cuts_metrics_jsonl_back_to_where_it_does(left: str, tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(left)
    with tracker(tmp_path, "off", EPOCHS[:1]) as tracking:
        assert (tmp_path / "metrics.jsonl").read_text() == json.dumps(EPOCHS[0]) + "\n"
        tracking.log_epoch(EPOCHS[1], EPOCHS[1])
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == EPOCHS
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["metrics.jsonl"]


def test_metrics_jsonl_that_is_right_already_is_not_written_again(tmp_path: Path):
    with tracker(tmp_path, "off") as tracking:
        tracking.log_epoch(EPOCHS[0], EPOCHS[0])
    before = (tmp_path / "metrics.jsonl").stat()
    with tracker(tmp_path, "off", EPOCHS[:1]):
        after = (tmp_path / "metrics.jsonl").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def read_offline_run(folder: Path) -> list[tuple[str, Any]]:
    """The records of a W&B offline run, by their kind: protobuf messages in LevelDB's log format."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # what the interpreter does at its end: W&B's process closes the file
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, position, parts, found = file.read_bytes(), 7, b"", []  # 7 bytes name the format
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # no header fits the rest of a block
            position += left
            continue
        length, part = struct.unpack("<HB", data[position + 4 : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if part in (1, 4):  # a whole record, or its last part
            record = wandb_internal_pb2.Record.FromString(parts)
            kind = record.WhichOneof("record_type")
            found.append((kind, getattr(record, kind)))
            parts = b""
    return found


def test_an_offline_run_holds_config_metrics_and_the_checkpoint(tmp_path: Path):
    folder = tmp_path / "2026-01-01" / "12-00-00-abcd"
    with tracker(folder, "offline") as tracking:
        (folder / "best_model.pth").write_bytes(b"weights")
        tracking.log_epoch(EPOCHS[0], EPOCHS[0])
        tracking.log_epoch(EPOCHS[1], EPOCHS[1])
        tracking.log_summary(EPOCHS[1] | {"test_Accuracy": 0.9})
        tracking.log_checkpoint(folder / "best_model.pth", METADATA)
    records = read_offline_run(folder)
    (run,) = [record for kind, record in records if kind == "run"]
    assert run.run_id == tracking.run_id
    assert run.display_name == "2026-01-01/12-00-00-abcd"
    assert "seed" in {update.key for update in run.config.update}
    rows = [
        {"/".join(i.nested_key) or i.key: i.value_json for i in record.item}
        for kind, record in records
        if kind == "history"
    ]
    assert [(row["epoch"], row["val_loss"]) for row in rows] == [("1", "0.5"), ("2", "0.25")]
    (artifact,) = [record for kind, record in records if kind == "artifact" and record.type == "model"]
    assert set(artifact.aliases) >= {"best", "f1n9e2"}
    assert [record.exit_code for kind, record in records if kind == "exit"] == [0]


def test_a_run_that_fails_is_marked_as_failed(tmp_path: Path):
    for position, (error, code) in enumerate(((ValueError(), 1), (MlopsError("x"), 2), (SystemExit(143), 143))):
        folder = tmp_path / str(position)
        with pytest.raises(type(error)), tracker(folder, "offline"):
            raise error
        assert [record.exit_code for kind, record in read_offline_run(folder) if kind == "exit"] == [code]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_without_room_for_the_metrics_is_the_users_to_mend(tmp_path: Path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with tracker(tmp_path, "off") as tracking, pytest.raises(MlopsError, match="No space left on device; free some"):
        tracking.log_epoch(EPOCHS[0], EPOCHS[0])


def test_files_that_w_and_b_cannot_write_cost_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "wandb").write_text("a file where W&B wants its folder")
    with tracker(tmp_path, "offline") as tracking:
        for metrics in EPOCHS:
            tracking.log_epoch(metrics, metrics)
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "mlops.tracking"]
    assert warning.startswith("W&B failed, the run goes on without it: ")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_once_w_and_b_is_lost_its_debug_log_is_closed(tmp_path: Path):
    with tracker(tmp_path, "offline") as tracking:
        handlers = logging.getLogger("wandb").handlers
        opened = [handler for handler in handlers if getattr(handler, "baseFilename", "").endswith("debug.log")]
        tracking._service._connection._proc._process.kill()
        tracking.log_epoch(EPOCHS[0], EPOCHS[0])
    assert len(opened) == 1
    assert not set(opened) & set(logging.getLogger("wandb").handlers)


def test_w_and_b_may_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    import wandb

    with tracker(tmp_path, "offline") as tracking:
        monkeypatch.setattr(wandb, "Image", lambda _: sys.exit(3))  # as its teardown does
        tracking.log_pictures({"curves": tmp_path / "curves.png"})
        tracking.log_epoch(EPOCHS[0], EPOCHS[0])
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning == "W&B did not take report/curves: SystemExit: 3; the run goes on being tracked"
    assert "history" in {kind for kind, _ in read_offline_run(tmp_path)}


def test_a_large_checkpoint_has_the_time_that_its_checksum_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    # A minute for these 100 MB, so that a slow machine has time too.
    monkeypatch.setattr("mlops.tracking.CHECKSUM_PACE", 1.7e6)
    path = tmp_path / "best_model.pth"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    with tracker(tmp_path, "offline") as tracked:
        with monkeypatch.context() as patch:
            patch.setattr("mlops.tracking.CALL_TIMEOUT", 0.01)
            tracked.log_checkpoint(path, METADATA)
        tracked.log_epoch(EPOCHS[0], EPOCHS[0])
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    kinds = {kind for kind, _ in read_offline_run(tmp_path)}
    assert {"artifact", "history"} <= kinds
