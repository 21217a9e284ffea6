"""How a server ends, and what becomes of it when one of its processes does."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from mlops.serving.worker import _rest
from samples import png
from serving.clients import HEADERS, Clients
from serving.models import write_model
from serving.server import Server

BLUE = png(1, colour=(20, 30, 220))
# Of a model that takes some 30 ms an image, a second.
MANY = [(f"{number}.png", BLUE) for number in range(32)]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no signals for this")


def eventually(holds: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.05)


def pids(server: Server) -> list[int]:
    return [worker["pid"] for worker in server.get(f"{server.admin}/health").json["workers"].values()]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ended(server: Server, seconds: float = 40) -> int:
    return server.process.wait(seconds)


@pytest.fixture
def own_tmp(tmp_path: Path) -> Iterator[Path]:
    """A folder for temporary files, in which nothing may be left."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "m.onnx")
    (tmp_path / "c.yaml").write_text("drain_seconds: 0.5")
    return tmp_path


WORDS = ("m.onnx", "--config", "c.yaml")


def test_sigterm_under_load_drops_no_request_and_leaves_nothing_behind(folder: Path, own_tmp: Path):
    with Server(folder, WORDS, workers=2, environment={"TMPDIR": str(own_tmp)}) as server:
        workers = pids(server)
        with Clients(server.url, BLUE, 20) as clients:
            eventually(lambda: len(clients.answers) > 100)
            before = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            code = ended(server)
            took = time.monotonic() - before
            clients.join()
        assert (code, clients.statuses, clients.dropped) == (143, {200}, [])
        assert clients.refused == 20
        assert took < 8
        assert not any(map(runs, workers))
        assert "error" not in {line["level"] for line in server.lines()}


def test_connections_are_closed_with_a_word_and_readiness_fails_while_it_drains(folder: Path):
    (folder / "c.yaml").write_text("drain_seconds: 30")
    with Server(folder, WORDS) as server:
        assert "connection" not in server.get("/health").headers
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: server.get("/health/ready").status == 503)
        answer = server.send("/predict", ("a.png", BLUE))
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert server.get("/health/ready").json["detail"] == "the server is about to end"
        server.process.send_signal(signal.SIGTERM)
        assert ended(server) == 143


@pytest.mark.slow
def test_a_request_in_flight_on_a_slow_model_is_answered(folder: Path):
    write_model(folder / "m.onnx", size=400, work=20)
    answers = []
    with Server(folder, WORDS) as server:
        asking = threading.Thread(target=lambda: answers.append(server.send("/predict", *MANY)))
        asking.start()
        eventually(lambda: "mlops_requests_in_progress 1.0" in server.get(f"{server.admin}/metrics").body.decode())
        server.process.send_signal(signal.SIGTERM)
        assert ended(server) == 143
        asking.join()
    assert [answer.status for answer in answers] == [200]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow)]
)
def test_ctrl_c_and_a_terminal_that_closes_end_it_too(number: int, code: int, folder: Path, own_tmp: Path):
    with Server(folder, WORDS, environment={"TMPDIR": str(own_tmp)}) as server:
        # A terminal sends it to a whole group: workers are not in it, and still answer what they have.
        assert os.getpgid(pids(server)[0]) != os.getpgid(server.process.pid)
        server.process.send_signal(number)
        assert ended(server) == code
        assert "Traceback" not in server.log.read_text()


def test_a_connection_that_the_system_has_taken_but_no_worker_has_seen_is_answered(folder: Path):
    (folder / "c.yaml").write_text("drain_seconds: 0")
    with Server(folder, WORDS) as server:
        (worker,) = pids(server)
        where = urlsplit(server.url)
        os.kill(worker, signal.SIGSTOP)
        connections = [http.client.HTTPConnection(where.hostname or "", where.port, timeout=30) for _ in range(30)]
        for connection in connections:
            connection.request("POST", "/predict", BLUE, HEADERS)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "ending: " in server.log.read_text())
        os.kill(worker, signal.SIGCONT)
        answers = [connection.getresponse() for connection in connections]
        assert [(answer.status, answer.headers["connection"]) for answer in answers] == [(200, "close")] * 30
        for connection in connections:
            connection.close()
        assert ended(server) == 143


def test_a_listening_socket_gives_up_its_connections_and_takes_no_more():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        where = listener.getsockname()
        clients = [socket.create_connection(where) for _ in range(3)]
        found = _rest(listener)
        assert {one.getpeername() for one in found} == {client.getsockname() for client in clients}
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(where, timeout=5)
        for one in [*found, *clients]:
            one.close()


def test_a_request_whose_body_is_still_coming_is_answered(folder: Path):
    (folder / "c.yaml").write_text("drain_seconds: 0")
    with Server(folder, WORDS) as server:
        where = urlsplit(server.url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
        connection.putrequest("POST", "/predict")
        for name, value in {**HEADERS, "Content-Length": str(len(BLUE))}.items():
            connection.putheader(name, value)
        connection.endheaders(BLUE[:20])
        eventually(lambda: "mlops_requests_in_progress 1.0" in server.get(f"{server.admin}/metrics").body.decode())
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1.5)
        connection.send(BLUE[20:])
        assert connection.getresponse().status == 200
        connection.close()
        assert ended(server) == 143


@pytest.mark.slow
def test_a_signal_before_it_is_ready_ends_it_without_a_trace(folder: Path, own_tmp: Path):
    with Server(folder, WORDS, workers=2, environment={"TMPDIR": str(own_tmp)}, wait=False) as server:
        server.process.send_signal(signal.SIGTERM)
        assert ended(server) == 143
        assert "Traceback" not in server.log.read_text()


def test_a_second_signal_ends_it_at_once(folder: Path, own_tmp: Path):
    (folder / "c.yaml").write_text("drain_seconds: 60")
    with Server(folder, WORDS, workers=2, environment={"TMPDIR": str(own_tmp)}) as server:
        workers = pids(server)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "ending: " in server.log.read_text())
        server.process.send_signal(signal.SIGTERM)
        assert ended(server, 20) == 143
        eventually(lambda: not any(map(runs, workers)))


@pytest.mark.slow
def test_a_worker_that_hangs_does_not_keep_the_server_from_ending(folder: Path, own_tmp: Path):
    (folder / "c.yaml").write_text("{drain_seconds: 0.1, limits: {seconds: 0.5}}")
    with Server(folder, WORDS, workers=2, environment={"TMPDIR": str(own_tmp)}) as server:
        stopped, _ = pids(server)
        os.kill(stopped, signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        assert ended(server, 20) == 143
        assert not runs(stopped)


def test_the_others_go_on_when_a_worker_is_killed_and_it_comes_back_with_its_counts(folder: Path):
    with Server(folder, WORDS, workers=2) as server:
        for _ in range(10):
            assert server.send("/predict", ("a.png", BLUE)).status == 200
        before = pids(server)
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: server.get(f"{server.admin}/health").status == 503)
        with Clients(server.url, BLUE, 4) as clients:
            eventually(lambda: server.get(f"{server.admin}/health").status == 200)
        assert clients.dropped == []
        assert clients.statuses == {200}
        after = pids(server)
        assert after[1] == before[1]
        assert after[0] != before[0]
        metrics = server.get(f"{server.admin}/metrics").body.decode()
        (line,) = [line for line in metrics.splitlines() if line.startswith("mlops_predictions_total{")]
        assert float(line.split()[-1]) == 10 + len(clients.answers)
        assert "mlops_requests_in_progress 0.0" in metrics
        (told,) = [line["message"] for line in server.lines() if "ended" in line.get("message", "")]
        assert told == f"worker 0 (pid {before[0]}) ended: killed by SIGKILL"


@pytest.mark.slow
def test_what_a_killed_worker_was_at_is_not_in_progress_for_ever(folder: Path):
    write_model(folder / "m.onnx", size=400, work=20)
    with Server(folder, WORDS) as server:

        def ask() -> None:
            with contextlib.suppress(Exception):
                server.send("/predict", *MANY)

        asking = threading.Thread(target=ask)
        asking.start()
        eventually(lambda: "mlops_requests_in_progress 1.0" in server.get(f"{server.admin}/metrics").body.decode())
        os.kill(pids(server)[0], signal.SIGKILL)
        asking.join()
        eventually(lambda: server.get(f"{server.admin}/health").status == 200)
        assert "mlops_requests_in_progress 1.0" not in server.get(f"{server.admin}/metrics").body.decode()


def test_workers_end_by_themselves_when_the_supervisor_is_killed(folder: Path):
    with Server(folder, WORDS, workers=2) as server:
        workers = pids(server)
        server.process.kill()
        ended(server)
        eventually(lambda: not any(map(runs, workers)))


@pytest.mark.slow
def test_the_folder_of_a_server_that_was_killed_goes_with_the_next_start(folder: Path, own_tmp: Path):
    environment = {"TMPDIR": str(own_tmp)}
    (folder / "c.yaml").write_text("drain_seconds: 3")
    with Server(folder, WORDS, environment=environment) as server:
        (worker,) = pids(server)
        server.process.kill()
        ended(server)
        (left,) = own_tmp.iterdir()
        words = ["serve", "absent.onnx", "--port", "0"]
        command = [sys.executable, "-m", "mlops.cli", *words]
        for there in (True, False):
            assert left.is_dir()
            subprocess.run(command, check=False, capture_output=True, cwd=folder, env={**os.environ, **environment})
            assert left.is_dir() == there, "its worker uses it until it has ended"
            eventually(lambda: not runs(worker))


@pytest.mark.slow
def test_a_worker_that_cannot_be_started_is_tried_again(folder: Path):
    with Server(folder, WORDS, workers=2) as server:
        supervisor = psutil.Process(server.process.pid)
        before = supervisor.rlimit(psutil.RLIMIT_NOFILE)
        supervisor.rlimit(psutil.RLIMIT_NOFILE, (3, before[1]))
        os.kill(supervisor.children()[0].pid, signal.SIGKILL)
        eventually(lambda: "cannot be started: " in server.log.read_text())
        assert server.send("/predict", ("a.png", BLUE)).status == 200
        supervisor.rlimit(psutil.RLIMIT_NOFILE, before)
        eventually(lambda: server.get(f"{server.admin}/health").status == 200)
