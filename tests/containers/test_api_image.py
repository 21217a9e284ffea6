"""The image of the service, run as a cluster would run it."""

import http.client
import json
import shutil
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from containers import engine
from containers.engine import Container
from integration.bucket import Emulator
from samples import png
from serving.clients import HEADERS
from serving.models import write_model

pytestmark = pytest.mark.containers

BLUE = png(1, colour=(20, 30, 220))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, HEADERS if body else {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def eventually(holds: Callable[[], object], server: Container, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except OSError:
            pass
        assert server.process.poll() is None, server.err.read_text()
        assert time.monotonic() < end, server.err.read_text()
        time.sleep(0.1)


def serving(image: str, port: int, *words: str, **others: Any) -> Container:
    return Container(image, [*words, f"--port={port}", f"--admin-port={free_port()}"], **others)


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, str, bool]:
    """A folder with a model, as a read-only mount at the place where the image looks when nothing is said."""
    folder = tmp_path / "models"
    folder.mkdir()
    write_model(folder / "model.onnx")
    return (folder, "/srv/models/latest", False)


def test_the_image_is_small_and_has_no_torch(api_image: str):
    assert engine.size_of(api_image) < 350e6
    with Container(api_image, ["-c", "import torch"], entrypoint=["python"]) as container:
        assert container.wait() == 1
        assert "No module named 'torch'" in container.err.read_text()


def test_it_answers_as_nobody_without_rights_on_a_root_that_nobody_can_write(
    api_image: str, model: tuple[Path, str, bool]
):
    port = free_port()
    with serving(api_image, port, mounts=[model]) as server:
        started = time.monotonic()
        eventually(lambda: ask(port, "GET", "/health/ready")[0] == 200, server)
        print(f"ready after {time.monotonic() - started:.1f} s")
        with ThreadPoolExecutor(16) as clients:
            answers = list(clients.map(lambda _: ask(port, "POST", "/predict", BLUE), range(400)))
        assert {status for status, _ in answers} == {200}
        assert answers[0][1]["predictions"][0]["class"] == "blue"
        told = dict(line.split(":\t") for line in Path(f"/proc/{server.pid}/status").read_text().splitlines())
        assert set(told["Uid"].split()) == set(told["Gid"].split()) == {"65534"}
        assert {int(told[kind], 16) for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert told["NoNewPrivs"] == "1"
        for where in ("/", "/srv", "/opt/code", "/opt/mlops", "/usr/local/bin"):
            tried = server.execute("python", "-c", f"open('{where}/x', 'w')")
            assert "Read-only file system" in tried.stderr, where
        used = server.used
        print(", ".join(f"{name} {count / 1e6:.0f} MB" for name, count in used.items()))
        assert used["peak"] < server.memory
        server.kill("TERM")
        assert server.wait(30) == 143


def test_a_request_in_flight_is_answered_when_it_is_told_to_end(api_image: str, model: tuple[Path, str, bool]):
    port = free_port()
    with serving(api_image, port, mounts=[model]) as server:
        eventually(lambda: ask(port, "GET", "/health/ready")[0] == 200, server)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.putrequest("POST", "/predict")
        for name, value in {**HEADERS, "Content-Length": str(len(BLUE))}.items():
            connection.putheader(name, value)
        connection.endheaders(BLUE[:20])
        time.sleep(0.5)
        server.kill("TERM")
        eventually(lambda: "ending: " in server.err.read_text(), server)
        time.sleep(1.5)
        connection.send(BLUE[20:])
        answer = connection.getresponse()
        assert answer.status == 200
        assert json.loads(answer.read())["predictions"][0]["class"] == "blue"
        connection.close()
        assert server.wait(30) == 143


def health(server: Container) -> int:
    """How Docker's own question ends. In its own network, where the port is that of the dockerfile."""
    words = engine.config_of(server.image)["Healthcheck"]["Test"]
    assert words[0] == "CMD"
    return server.execute(*words[1:]).returncode


def test_without_a_model_it_lives_is_not_ready_and_says_why(api_image: str):
    with Container(api_image, alone=True) as server:
        eventually(lambda: "starting" in server.err.read_text(), server)
        ask_it = "import http.client as h; c = h.HTTPConnection('127.0.0.1', %d); c.request('GET', '%s'); a = c.getresponse(); print(a.status, a.read().decode())"
        eventually(lambda: server.execute("python", "-c", ask_it % (8000, "/health/live")).stdout[:3] == "200", server)
        status, _, told = server.execute("python", "-c", ask_it % (8000, "/health/ready")).stdout.partition(" ")
        assert status == "503"
        assert "model" in json.loads(told)["detail"]
        assert server.execute("python", "-c", ask_it % (8001, "/models")).stdout[:3] == "200"
        assert health(server) == 1


def test_with_a_model_where_it_looks_for_one_it_is_healthy(api_image: str, model: tuple[Path, str, bool]):
    with Container(api_image, alone=True, mounts=[model]) as server:
        eventually(lambda: health(server) == 0, server)


def test_a_model_can_be_baked_in_which_predicts_without_a_server_too(context: Path, api_image: str, tmp_path: Path):
    copy = shutil.copytree(context, tmp_path / "context", symlinks=True)
    write_model(copy / "model.onnx")
    image = engine.build(copy, "api", "--build-arg", "MODEL=model.onnx", tag="localhost/mlops-api-baked")
    with Container(image, alone=True) as server:
        eventually(lambda: health(server) == 0, server)
    (tmp_path / "blue.png").write_bytes(BLUE)
    words, mounts = ["/srv/models/latest/model.onnx", "/blue.png"], [(tmp_path / "blue.png", "/blue.png", False)]
    with Container(image, words, entrypoint=["mlops", "predict"], alone=True, mounts=mounts) as predicting:
        assert predicting.wait() == 0, predicting.err.read_text()
        assert "blue" in predicting.out.read_text().replace("blue.png", "")
    engine.buildah("rmi", image)


def test_a_wrong_option_is_one_line_and_exit_code_2(api_image: str):
    with Container(api_image, ["--workers=0"]) as server:
        assert server.wait(30) == 2
        assert server.err.read_text().splitlines() == ["error: --workers=0: must be 1 to 256"]


def test_an_unknown_bucket_is_one_line_and_exit_code_2(api_image: str, tmp_path: Path):
    with (
        Emulator(tmp_path / "bucket") as bucket,
        Container(api_image, ["gs://no-such-bucket/model.onnx"], environment=bucket.environment) as server,
    ):
        assert server.wait(60) == 2
        (line,) = server.err.read_text().splitlines()
        assert line.startswith("error: gs://no-such-bucket/model.onnx: ")
