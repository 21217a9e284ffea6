"""The words of `mlops serve`: what is wrong with them is said in a line each, before anything is served."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import Command
from mlops.errors import MlopsError
from mlops.serving.settings import Settings
from mlops.serving.start import complete, is_local, start
from mlops.serving.worker_start import listening, reserved
from samples import ROOT, png
from serving.models import write_model
from serving.server import Server

BLUE = png(1, colour=(20, 30, 220))
LOCAL = ("127.0.0.1", 0, "127.0.0.1", None)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The models that would be served."""
    served: dict[str, str] = {}

    def serve(settings: Settings, *_: object, **__: object) -> int:
        served.update(settings.models)
        return 0

    monkeypatch.setattr("mlops.serving.start.serve", serve)
    return served


def named(*words: str, config: Path | None = None) -> None:
    start(words, config, None, LOCAL, 1, default="latest.onnx", reload=False)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["m.onnx"], {"m": "m.onnx"}),
        (["signs=a/m.onnx", "b/other.onnx"], {"signs": "a/m.onnx", "other": "b/other.onnx"}),
        (["gs://bucket/models/signs.onnx"], {"signs": "gs://bucket/models/signs.onnx"}),
        (["s=gs://bucket/a=b.onnx"], {"s": "gs://bucket/a=b.onnx"}),
        (["gs://bucket/a=b.onnx"], {"a-b": "gs://bucket/a=b.onnx"}),
        (["./a=b.onnx"], {"a-b": "./a=b.onnx"}),
        (["my model.v2.onnx"], {"my-model.v2": "my model.v2.onnx"}),
        ([], {"model": "latest.onnx"}),
    ],
)
def test_a_model_is_called_as_told_or_as_its_file(words: list[str], found: dict[str, str], models: dict[str, str]):
    named(*words)
    assert models == found


def test_models_of_the_config_come_first_and_the_first_is_the_default(tmp_path: Path, models: dict[str, str]):
    (tmp_path / "c.yaml").write_text("models: {a: a.onnx}")
    named("b.onnx", config=tmp_path / "c.yaml")
    assert list(models) == ["a", "b"]
    assert complete(Settings(), {"b": "b.onnx", "a": "a.onnx"}, None).default == "b"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["=m.onnx"],
            "=m.onnx: '': a model's name must be 1 to 64 letters of A-Z a-z 0-9 . _ -, and begin with none of . -",
        ),
        (["a b=m.onnx"], "a b=m.onnx: 'a b': a model's name must be"),
        (["..=m.onnx"], "..=m.onnx: '..': a model's name must be"),
        ([f"{'n' * 65}=m.onnx"], f"{'n' * 65}=m.onnx: '{'n' * 65}': a model's name must be"),
        (["a="], "a=: names no file; write a=model.onnx"),
        (["x/m.onnx", "y/m.onnx"], "y/m.onnx: there is a model m already; write another NAME=y/m.onnx"),
        (["c.onnx"], "c.onnx: there is a model c already; write another NAME=c.onnx"),
        (["e=m.onnx"], "e: is a model and an ensemble; rename one"),
    ],
)
def test_a_name_that_cannot_be_is_refused(words: list[str], problem: str, tmp_path: Path, models: dict[str, str]):
    (tmp_path / "c.yaml").write_text("{models: {c: c.onnx, d: d.onnx}, ensembles: {e: [c, d]}}")
    with pytest.raises(MlopsError) as caught:
        named(*words, config=tmp_path / "c.yaml")
    (line,) = caught.value.problems
    assert line.startswith(problem)
    assert models == {}


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(MlopsError) as caught:
        named("=a.onnx", "b=", "c.onnx", "c.onnx")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("listen", "workers", "problem"),
    [
        (("127.0.0.1", 70000, "127.0.0.1", None), 1, "--port=70000: must be 0 (any that is free) to 65535"),
        (("127.0.0.1", -1, "127.0.0.1", None), 1, "--port=-1: must be 0 (any that is free) to 65535"),
        (("127.0.0.1", 65535, "127.0.0.1", None), 1, "--admin-port=65536: must be 0"),
        (("127.0.0.1", 8000, "127.0.0.1", 8000), 1, "--admin-port=8000: must be another than --port"),
        (("", 8000, "127.0.0.1", None), 1, "--host='': must be a host name or an address"),
        (("127.0.0.1", 8000, "a b", None), 1, "--admin-host='a b': must be a host name or an address"),
        (LOCAL, 0, "--workers=0: must be 1 to 256"),
        (LOCAL, 257, "--workers=257: must be 1 to 256"),
    ],
)
def test_an_address_or_a_number_that_cannot_be_is_refused(
    listen: tuple[str, int, str, int | None], workers: int, problem: str
):
    with pytest.raises(MlopsError) as caught:
        start(["m.onnx"], None, None, listen, workers, default="latest.onnx", reload=False)
    (line,) = caught.value.problems
    assert line.startswith(problem)


def test_only_loopback_addresses_are_local():
    assert [is_local(host) for host in ("127.0.0.1", "127.5.5.5", "::1", "localhost")] == [True] * 4
    assert [is_local(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")] == [False] * 5


def refused(folder: Path, *words: str) -> list[str]:
    """What a server says that does not start. It leaves nothing in the folder for temporary files."""
    (folder / "tmp").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "mlops.cli", "serve", *words],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert list((folder / "tmp").iterdir()) == []
    lines = done.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


def test_files_that_are_no_models_are_named_and_nothing_is_started(tmp_path: Path):
    write_model(tmp_path / "good.onnx")
    (tmp_path / "best.pth").write_bytes(b"PK")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "text.onnx").write_text("text")
    words = ["good.onnx", "absent.onnx", "best.pth", "folder.onnx", "text.onnx"]
    assert refused(tmp_path, *words, "--port", "0", "--workers", "1") == [
        "absent.onnx: no such file; make one with: mlops export CHECKPOINT",
        "best.pth: is a checkpoint; export it first: mlops export best.pth -o model.onnx",
        "folder.onnx: is a folder; name the .onnx file in it",
        "text.onnx: is damaged or no ONNX file: a field of kind 4",
    ]


def test_a_config_that_is_wrong_is_one_line_a_problem(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("{limits: {queue: 0, files: many}, modles: {}}")
    found = refused(tmp_path, "--config", "c.yaml")
    assert len(found) == 3
    assert all(line.startswith("c.yaml: ") for line in found)
    assert any("limits.queue=0" in line for line in found)


def test_a_keys_file_that_is_missing_is_one_line(tmp_path: Path):
    write_model(tmp_path / "m.onnx")
    (line,) = refused(tmp_path, "m.onnx", "--keys", "keys.txt", "--port", "0")
    assert line.startswith("keys.txt: ")


def test_the_address_of_a_server_is_its_own(tmp_path: Path):
    """Although its workers share it, and whoever else comes could share it too."""
    write_model(tmp_path / "m.onnx")
    (tmp_path / "c.yaml").write_text("drain_seconds: 0")
    with Server(tmp_path, ("m.onnx", "--config", "c.yaml"), wait=False) as server:
        port, admin = server.url.rpartition(":")[2], server.admin.rpartition(":")[2]
        # Its workers do not listen yet.
        (line,) = refused(tmp_path, "m.onnx", "--port", port, "--admin-port", "0")
        assert line.startswith(f"--host=127.0.0.1 --port={port}: cannot listen there: ")
        assert line.endswith("; choose another")
        (line,) = refused(tmp_path, "m.onnx", "--port", "0", "--admin-port", admin)
        assert line.startswith(f"--admin-host=127.0.0.1 --admin-port={admin}: cannot listen there: ")


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="this system shares no ports")
class TestAddress:
    def test_one_that_is_kept_is_for_our_processes_alone(self):
        with reserved("127.0.0.1", 0) as port:
            with pytest.raises(OSError, match="in use"), reserved("127.0.0.1", port):
                pass
            ours = listening("127.0.0.1", port), listening("127.0.0.1", port)
            with ours[0], ours[1], pytest.raises(OSError, match="in use"), reserved("127.0.0.1", port):
                pass
        with reserved("127.0.0.1", port):
            pass

    @pytest.mark.parametrize("share", [True, False])
    def test_one_whose_last_connections_have_not_timed_out_can_be_had(self, share: bool):
        with socket.socket() as before:
            before.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            before.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, share)
            before.bind(("127.0.0.1", 0))
            before.listen()
            port = before.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port)) as client:
                before.accept()[0].close()
                assert client.recv(1) == b""
        with reserved("127.0.0.1", port) as found, listening("127.0.0.1", port):
            assert found == port

    def test_one_of_another_machine_is_refused(self):
        with pytest.raises(OSError, match="assign"), reserved("192.0.2.1", 0):
            pass


@pytest.mark.slow
def test_a_server_listens_at_ipv6_on_both_ports(tmp_path: Path):
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    write_model(tmp_path / "m.onnx")
    (tmp_path / "c.yaml").write_text("drain_seconds: 0")
    words = ("m.onnx", "--config", "c.yaml", "--host", "::1", "--admin-host", "::1")
    with Server(tmp_path, words) as server:
        assert server.url.startswith("http://[::1]:")
        assert server.send("/predict", ("a.png", BLUE)).status == 200
        assert server.admin.startswith("http://[::1]:")
        assert server.get(f"{server.admin}/health").status == 200


def test_a_port_for_the_system_only_is_refused(tmp_path: Path):
    write_model(tmp_path / "m.onnx")
    limit = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if os.name != "posix" or not os.geteuid() or (limit.is_file() and int(limit.read_text()) <= 80):
        pytest.skip("this user may listen there")
    (line,) = refused(tmp_path, "m.onnx", "--port", "80", "--admin-port", "0")
    assert "Permission denied; choose another" in line


def test_nothing_is_imported_from_the_folder_it_is_started_in(tmp_path: Path):
    write_model(tmp_path / "m.onnx")
    (tmp_path / "c.yaml").write_text("drain_seconds: 0")
    (tmp_path / "uvicorn.py").write_text("raise SystemExit('this is not the uvicorn that was installed')")
    with Server(tmp_path, ("m.onnx", "--config", "c.yaml")) as server:
        assert server.send("/predict", ("a.png", BLUE)).status == 200


@pytest.mark.skipif(os.name != "posix", reason="sends SIGTERM")
def test_the_task_of_invoke_starts_it(tmp_path: Path):
    model = write_model(tmp_path / "m.onnx")
    (tmp_path / "c.yaml").write_text("drain_seconds: 0")
    words = ["api", "--model", str(model), "--port", "0", "--workers", "1", "--config", str(tmp_path / "c.yaml")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "invoke", *words], cwd=ROOT, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while "ready: " not in (told := (tmp_path / "log").read_text()):
            assert process.poll() is None, told
            assert time.monotonic() < end, told
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    finally:
        process.kill()
        process.wait()


def test_help_tells_every_option(mlops_command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = mlops_command("serve", "--help")
    assert done.code == 0
    options = ("--config", "--host", "--port", "--workers", "--reload", "--keys", "--admin-host", "--admin-port")
    assert [option for option in options if option not in done.out] == []
    assert "[NAME=]FILE..." in done.out


@pytest.mark.slow
def test_a_fault_of_every_worker_ends_the_server_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_model(tmp_path / "m.onnx")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "uvicorn.py").write_text("raise RuntimeError('broken installation')")
    server = Server(tmp_path, ("m.onnx",), environment={"PYTHONPATH": str(broken)})
    with pytest.raises(AssertionError, match="broken installation") as caught, server:
        pass
    assert server.process.returncode == 1
    assert "workers end before they listen; what they say is above" in str(caught.value)


def test_a_rate_without_keys_limits_nothing_and_is_refused(mlops_command: Command, workplace: Path):
    write_model(workplace / "m.onnx")
    (workplace / "c.yaml").write_text("keys: {rate: 1}")
    done = mlops_command("serve", "m.onnx", "--config", "c.yaml")
    assert (done.code, done.errors) == (2, ["keys.rate=1: limits nothing without keys; name a file with --keys"])
