"""`mlops serve` with models in a bucket: the real client against a GCS emulator."""

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.bucket import BUCKET, Emulator
from mlops.storage import Bucket
from samples import png
from serving.models import write_model
from serving.server import Server

BLUE = png(1, colour=(20, 30, 220))


@pytest.fixture
def emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    with Emulator(tmp_path / "bucket") as emulator:
        for name, value in emulator.environment.items():
            monkeypatch.setenv(name, value)
        yield emulator


def eventually(holds: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.05)


def versions(server: Server) -> set[str]:
    return {server.get("/models/m").json["sha256"] for _ in range(6)}


def put(content: Path, name: str = "models/m.onnx") -> str:
    Bucket(f"gs://{BUCKET}").put(content, name, lambda: None)
    return hashlib.sha256(content.read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_model_in_a_bucket_is_served_and_loaded_again_when_it_changes(emulator: Emulator, tmp_path: Path):
    first = put(write_model(tmp_path / "m.onnx"))
    (tmp_path / "c.yaml").write_text("{reload_seconds: 0.2, drain_seconds: 0}")
    words = (f"gs://{BUCKET}/models/m.onnx", "--config", "c.yaml", "--reload")
    with Server(tmp_path, words, workers=2) as server:
        assert server.send("/predict", ("a.png", BLUE)).json["version"] == first[:12]
        second = put(write_model(tmp_path / "m.onnx", scale=2.0))
        eventually(lambda: versions(server) == {second})

        # A bad one is refused, and so is none; the one before answers on.
        (tmp_path / "bad.onnx").write_text("no model")
        put(tmp_path / "bad.onnx")
        eventually(lambda: "no ONNX file" in (server.get("/models/m").json["refused"] or ""))
        assert server.ask("POST", f"{server.admin}/models/m/reload").status == 409
        assert versions(server) == {second}


@pytest.mark.slow
def test_a_bucket_that_is_away_for_a_while_is_no_end(emulator: Emulator, tmp_path: Path):
    first = put(write_model(tmp_path / "m.onnx"))
    (tmp_path / "c.yaml").write_text("{reload_seconds: 0.2, drain_seconds: 0}")
    words = (f"gs://{BUCKET}/models/m.onnx", "--config", "c.yaml", "--reload")
    with Server(tmp_path, words, workers=2) as server:
        emulator.stop()
        eventually(lambda: server.get("/models/m").json["refused"])
        assert server.send("/predict", ("a.png", BLUE)).json["version"] == first[:12]
        assert server.get("/health/ready").status == 200
        emulator.start()
        second = put(write_model(tmp_path / "m.onnx", scale=3.0))
        eventually(lambda: versions(server) == {second})
        eventually(lambda: server.get("/models/m").json["refused"] is None)


@pytest.mark.slow
def test_an_address_without_an_object_is_one_line_and_nothing_is_served(emulator: Emulator, tmp_path: Path):
    assert emulator.url
    server = Server(tmp_path, (f"gs://{BUCKET}/models/none.onnx",))
    with pytest.raises(AssertionError) as caught, server:
        pass
    assert server.process.returncode == 2
    assert str(caught.value) == f"error: gs://{BUCKET}/models/none.onnx: no such file; check the address\n"
