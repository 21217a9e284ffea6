"""Inference requests that are small on the wire and large in memory, sent to a real server."""

import gzip
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.models import write_features, write_model
from serving.server import Server

MIB = 2**20


def packed(told: object, tail: bytes = b"") -> tuple[bytes, dict[str, str]]:
    """An inference request, compressed, and its headers."""
    head = json.dumps(told).encode()
    headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": str(len(head))}
    return gzip.compress(head + tail), headers


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose patience a busy machine does not try."""
    folder: Path = tmp_path_factory.mktemp("patient")
    write_model(folder / "colours.onnx")
    write_features(folder / "numbers.onnx")
    (folder / "serve.yaml").write_text("limits: {seconds: 60}\ndrain_seconds: 0")
    with Server(folder, ("colours.onnx", "numbers.onnx", "--config", "serve.yaml")) as server:
        yield server


def test_compressed_tensors_cost_the_memory_that_they_unpack_to(patient: Server):
    sides = [1, 1, 3_400_000, 3]
    tensor = {"name": "images", "datatype": "UINT8", "shape": sides, "parameters": {"binary_data_size": 10_200_000}}
    body, headers = packed({"inputs": [tensor]}, bytes(10_200_000))
    assert len(body) < 20_000
    before = patient.memory()
    with ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(patient.ask, "POST", "/v2/models/colours/infer", body, headers) for _ in range(40)]
        statuses = {one.result().status for one in asked}
    assert statuses <= {200, 429}
    assert 429 in statuses
    assert patient.memory() - before < 500 * MIB


def test_json_that_takes_long_to_parse_is_refused_before_it_is_parsed(patient: Server):
    told = {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1], "data": [[]] * 2_500_000}]}
    body, headers = packed(told)
    before = patient.memory()
    assert patient.ask("POST", "/v2/models/colours/infer", body, headers).status == 413
    features = b'{"features": [' + b"[]," * 2_500_000 + b"[]]}"
    answer = patient.ask("POST", "/models/numbers/predict", features, {"Content-Type": "application/json"})
    assert answer.status == 413
    assert patient.memory() - before < 50 * MIB


def test_tensors_have_no_more_pixels_than_files_may(tmp_path: Path):
    write_model(tmp_path / "m.onnx")
    (tmp_path / "c.yaml").write_text("limits: {pixels: 1000}\ndrain_seconds: 0")
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 40, 40, 3], "data": [0] * 4800}
    with Server(tmp_path, ("m.onnx", "--config", "c.yaml")) as server:
        answer = server.ask("POST", "/v2/models/m/infer", json.dumps({"inputs": [tensor]}).encode())
        assert answer.status == 413
        assert "1,600 pixels" in answer.json["error"]
        # Without a proxy that the server was told of, nobody says who he is.
        server.get("/health", **{"X-Forwarded-For": "6.6.6.6 forged"})
        assert server.ask("HEAD", "/health/ready").status == 200
        end = time.monotonic() + 20
        while not (told := {line["client"] for line in server.lines() if line["event"] == "request"}):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert told == {"127.0.0.1"}
