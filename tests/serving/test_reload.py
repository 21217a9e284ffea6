"""Models that change while the server runs: the one before answers until the new one has, and a bad one never does."""

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from onnx import ModelProto, helper
from urllib3.exceptions import HTTPError

from samples import png
from serving.clients import Clients
from serving.models import COLOURS, fails_when_it_runs, write_features, write_model
from serving.server import Server

BLUE = png(1, colour=(20, 30, 220))
CONFIG = """
models: {m: m.onnx, m-1: m-1.onnx, lone: lone.onnx}
ensembles: {both: [m, m-1]}
reload_seconds: 0.1
drain_seconds: 0.1
"""


def version(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def eventually(holds: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers that watch three models, of which two are an ensemble."""
    folder: Path = tmp_path_factory.mktemp("reload")
    for name in ("m", "m-1", "lone"):
        write_model(folder / f"{name}.onnx")
    (folder / "serve.yaml").write_text(CONFIG)
    with Server(folder, ("--config", "serve.yaml", "--reload"), workers=2) as server:
        yield server


def state(server: Server, name: str = "m") -> dict[str, Any]:
    (found,) = [one for one in server.get(f"{server.admin}/models").json["models"] if one["name"] == name]
    return found


def in_use(server: Server, name: str = "m") -> set[str | None]:
    """The versions that the workers have."""
    return {told["sha256"] and told["sha256"][:12] for told in state(server, name)["workers"].values()}


def replace(path: Path, content: bytes) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(content)
    other.replace(path)


def another(folder: Path, scale: float, *classes: str, **more: Any) -> bytes:
    return write_model(folder / "another.onnx", classes or COLOURS, scale=scale, **more).read_bytes()


def refusals(server: Server, name: str = "m") -> list[str]:
    return [line["message"] for line in server.lines() if f"model {name}: refused: " in line.get("message", "")]


def test_no_request_fails_while_a_model_is_replaced_and_then_all_are_answered_by_the_new_one(server: Server):
    file = server.folder / "m.onnx"
    versions = [version(file)]
    with Clients(server.url, BLUE, 8, path="/models/m/predict") as clients:
        for scale in (2.0, 3.0, 4.0):
            replace(file, another(server.folder, scale))
            versions.append(version(file))
            eventually(lambda: in_use(server) == {versions[-1]})
            time.sleep(0.2)
        asked = len(clients.answers)
        eventually(lambda: len(clients.answers) > asked + 60)
    assert (clients.statuses, clients.dropped, clients.refused) == ({200}, [], 0)
    told = [answer["version"] for _, answer in clients.answers]
    assert set(told) <= set(versions)
    # A request of each client may have been under way when the last one was there.
    assert set(told[asked + 8 :]) == {versions[-1]}


def test_an_ensemble_is_answered_while_its_members_are_replaced(server: Server):
    with Clients(server.url, BLUE, 8, path="/ensembles/both/predict") as clients:
        for scale in (5.0, 6.0, 7.0):
            for name in ("m", "m-1"):
                replace(server.folder / f"{name}.onnx", another(server.folder, scale))
            eventually(lambda: in_use(server) == in_use(server, "m-1") == {version(server.folder / "m.onnx")})
    assert (clients.statuses, clients.dropped, clients.refused) == ({200}, [], 0)


def changed(content: bytes, change: Callable[[ModelProto], object]) -> bytes:
    model = ModelProto.FromString(content)
    change(model)
    return model.SerializeToString()


def no_number(model: ModelProto) -> None:
    (head,) = [tensor for tensor in model.graph.initializer if tensor.name == "head"]
    head.raw_data = b"\xff" * len(head.raw_data)


def external(model: ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def custom(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Run", ["images"], ["unused"], domain="evil.ops"))


BAD: dict[str, tuple[Callable[[bytes, Path], bytes], str]] = {
    "truncated": (lambda good, _: good[: len(good) // 2], "is damaged or no ONNX file"),
    "text": (lambda _, __: b"hello, I am no model", "no ONNX file"),
    "empty": (lambda _, __: b"", "no ONNX file"),
    "weights elsewhere": (lambda good, _: changed(good, external), "keeps weights in other files"),
    "foreign operators": (lambda good, _: changed(good, custom), "uses operators of evil.ops"),
    "no numbers": (lambda good, _: changed(good, no_number), "does not answer with probabilities"),
    "no answers": (lambda good, _: changed(good, fails_when_it_runs), "cannot answer: "),
    "other classes": (
        lambda _, folder: another(folder, 8.0, "a", "b"), "ensemble both: m and m-1 do not know the same classes"
    ),
    "no images": (
        lambda _, folder: write_features(folder / "f.onnx", COLOURS).read_bytes(), "ensemble both: m takes features"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_and_said_so_once_and_the_one_before_answers_on(kind: str, server: Server):
    file = server.folder / "m.onnx"
    good = file.read_bytes()
    make, words = BAD[kind]
    before = len(refusals(server))
    replace(file, make(good, server.folder))
    try:
        # All workers have seen it: each shows why.
        eventually(lambda: words in (state(server)["refused"] or ""))
        for _ in range(10):  # several, so that both workers are asked
            shown = eventually(lambda: server.get("/models/m").json["refused"])
            assert words in shown
            assert "mlops-serve-" not in shown
        answer = server.send("/models/m/predict", ("a.png", BLUE))
        assert (answer.status, answer.json["version"]) == (200, hashlib.sha256(good).hexdigest()[:12])
        assert server.get("/health/ready").status == 200
        time.sleep(0.3)  # three more looks
        assert len(refusals(server)) == before + 1
        asked = server.ask("POST", f"{server.admin}/models/m/reload")
        assert (asked.status, asked.headers["content-type"]) == (409, "application/problem+json")
        assert words in asked.json["detail"]
    finally:
        replace(file, good)
    eventually(lambda: state(server)["refused"] is None)
    eventually(lambda: {server.get("/models/m").json["refused"] for _ in range(6)} == {None})


def test_a_worker_that_starts_while_a_bad_file_is_there_answers_with_the_one_before(server: Server):
    file = server.folder / "m.onnx"
    good = file.read_bytes()
    replace(file, changed(good, no_number))
    try:
        eventually(lambda: state(server)["refused"])
        pid = server.get(f"{server.admin}/health").json["workers"]["0"]["pid"]
        os.kill(pid, 9)
        eventually(lambda: server.get(f"{server.admin}/health").status == 503)
        eventually(lambda: server.get(f"{server.admin}/health").status == 200)
        assert in_use(server) == {hashlib.sha256(good).hexdigest()[:12]}
        assert {server.send("/models/m/predict", ("a.png", BLUE)).status for _ in range(10)} == {200}
    finally:
        replace(file, good)
    eventually(lambda: state(server)["refused"] is None)


def test_a_file_that_is_written_slowly_is_taken_when_it_is_whole(server: Server):
    content = another(server.folder, 9.0)
    before = in_use(server)
    seen = set()
    with (server.folder / "m.onnx").open("wb") as file:
        for at in range(0, len(content), len(content) // 5):
            file.write(content[at : at + len(content) // 5])
            file.flush()
            time.sleep(0.25)
            seen |= in_use(server)
    wanted = {hashlib.sha256(content).hexdigest()[:12]}
    assert seen <= before | wanted
    eventually(lambda: in_use(server) == wanted)
    eventually(lambda: state(server)["refused"] is None)


def test_a_file_that_is_only_touched_is_not_loaded_again(server: Server):
    (server.folder / "m.onnx").touch()
    time.sleep(0.5)
    loads = [line for line in server.lines() if "model lone: " in line.get("message", "")]
    os.utime(server.folder / "lone.onnx")
    time.sleep(0.5)
    assert [line for line in server.lines() if "model lone: " in line.get("message", "")] == loads


def test_a_file_that_goes_and_comes_back_is_no_change(server: Server):
    file = server.folder / "lone.onnx"
    aside = file.with_suffix(".aside")
    before = in_use(server, "lone")
    file.rename(aside)
    eventually(lambda: "no such file" in (state(server, "lone")["refused"] or ""))
    assert "no such file" in eventually(lambda: server.get("/models/lone").json["refused"])
    assert server.send("/models/lone/predict", ("a.png", BLUE)).status == 200
    aside.rename(file)
    eventually(lambda: state(server, "lone")["refused"] is None)
    eventually(lambda: {server.get("/models/lone").json["refused"] for _ in range(6)} == {None})
    assert in_use(server, "lone") == before


def test_a_reload_that_is_asked_for_answers_when_all_workers_have_it(tmp_path: Path):
    write_model(tmp_path / "m.onnx")
    write_model(tmp_path / "b.onnx")
    (tmp_path / "c.yaml").write_text("drain_seconds: 0")
    with Server(tmp_path, ("m.onnx", "b.onnx", "--config", "c.yaml"), workers=2) as server:  # without --reload
        shutil.copy(write_model(tmp_path / "new.onnx", scale=2.0), tmp_path / "m.onnx")
        told = server.ask("POST", f"{server.admin}/models/m/reload")
        wanted = hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()
        assert told.status == 200
        assert told.json["sha256"] == wanted
        assert told.json["workers"] == {str(n): {"sha256": wanted, "refused": None} for n in range(2)}
        assert {server.get("/models/m").json["sha256"] for _ in range(10)} == {wanted}
        # Once more changes nothing.
        assert server.ask("POST", f"{server.admin}/models/m/reload").json == told.json
        missing = server.ask("POST", f"{server.admin}/models/absent/reload")
        assert (missing.status, json.loads(missing.body)["detail"]) == (404, "no model 'absent'")
        # Of each model, one file is kept.
        pids = [worker["pid"] for worker in server.get(f"{server.admin}/health").json["workers"].values()]
        (kept,) = {
            line.partition("=")[2].rpartition("/metrics")[0]
            for pid in pids
            for line in Path(f"/proc/{pid}/environ").read_text().split("\0")
            if line.startswith("PROMETHEUS_MULTIPROC_DIR=")
        }
        assert len([path for path in Path(kept, "models").rglob("*") if path.is_file()]) == 2


def kill_while_it_loads(server: Server, loads: Callable[[], object]) -> None:
    eventually(loads)
    time.sleep(0.5)
    assert loads(), "it has loaded it already"
    ((_, worker),) = server.get(f"{server.admin}/health").json["workers"].items()
    os.kill(worker["pid"], signal.SIGKILL)
    eventually(lambda: not server.get(f"{server.admin}/health").json["workers"])


def kills(server: Server) -> int:
    return sum("ended: killed by SIGKILL" in line.get("message", "") for line in server.lines())


# Its warm-up takes some ten seconds.
SLOW: dict[str, Any] = {"work": 40}
SLOWLY = "{batch: 1024, reload_seconds: 0.1, drain_seconds: 0}"
KILLS = "ends the workers that load it; give the server more memory, or export a smaller model"


@pytest.mark.skipif(os.name != "posix", reason="Windows has no signals for this")
@pytest.mark.slow
def test_a_new_file_that_ends_the_workers_that_load_it_is_refused_and_the_one_before_answers_on(tmp_path: Path):
    good = version(write_model(tmp_path / "m.onnx"))
    (tmp_path / "c.yaml").write_text(SLOWLY)
    with Server(tmp_path, ("m.onnx", "--config", "c.yaml", "--reload")) as server:
        replace(tmp_path / "m.onnx", another(tmp_path, 2.0, **SLOW))
        slow = version(tmp_path / "m.onnx")
        for _ in range(2):
            # One that starts loads the last good one first.
            kill_while_it_loads(server, lambda: state(server)["sha256"][:12] == slow and in_use(server) == {good})
        eventually(lambda: state(server)["refused"] == KILLS)
        eventually(lambda: server.get(f"{server.admin}/health").status == 200)
        answer = server.send("/predict", ("a.png", BLUE))
        assert (answer.status, answer.json["version"]) == (200, good)
        assert server.get("/models/m").json["refused"] == KILLS
        assert refusals(server) == [f"model m: refused: {KILLS}"]
        # Whoever asks for it has it tried again; it is still known when that fails.
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(server.ask, "POST", f"{server.admin}/models/m/reload")
            kill_while_it_loads(server, lambda: state(server)["refused"] is None and in_use(server) == {good})
            assert (asked.result().status, asked.result().json["detail"]) == (409, KILLS)
        os.utime(tmp_path / "m.onnx")
        time.sleep(0.5)
        assert (state(server)["refused"], kills(server)) == (KILLS, 3)
        replace(tmp_path / "m.onnx", another(tmp_path, 3.0))
        eventually(lambda: in_use(server) == {version(tmp_path / "m.onnx")})
        assert state(server)["refused"] is None


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no signals for this")
def test_a_first_file_that_ends_the_workers_that_load_it_is_503_until_there_is_another(tmp_path: Path):
    write_model(tmp_path / "m.onnx", **SLOW)
    (tmp_path / "c.yaml").write_text(SLOWLY)
    with Server(tmp_path, ("m.onnx", "--config", "c.yaml", "--reload"), wait=False) as server:
        for _ in range(2):
            kill_while_it_loads(server, lambda: reachable(server) and in_use(server) == {None})
        eventually(lambda: reachable(server) and server.get("/health/ready").json["detail"] == f"model m: {KILLS}")
        assert server.send("/predict", ("a.png", BLUE)).status == 503
        assert server.get(f"{server.admin}/health").json["detail"] == f"model m: {KILLS}"
        write_model(tmp_path / "m.onnx")
        eventually(lambda: server.get(f"{server.admin}/health").status == 200)
        assert server.send("/predict", ("a.png", BLUE)).status == 200


def reachable(server: Server) -> bool:
    try:
        return server.get("/health").status == 200
    except HTTPError:  # it does not listen yet
        return False


def test_without_any_model_nothing_is_predicted_until_the_file_appears(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("{reload_seconds: 0.1, drain_seconds: 0}")
    with Server(tmp_path, ("--config", "c.yaml", "--reload"), wait=False) as server:
        eventually(lambda: server.get(f"{server.admin}/health").json["workers"])
        eventually(lambda: reachable(server))
        answer = server.send("/predict", ("a.png", BLUE))
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert "models/latest/model.onnx: no such file; make one with: mlops export" in answer.json["detail"]
        ready = server.get("/health/ready")
        assert (ready.status, ready.json["detail"]) == (503, answer.json["detail"])
        assert "no such file" in server.get(f"{server.admin}/health").json["detail"]
        assert any("no such file" in line["message"] for line in server.lines() if line["level"] == "warning")
        (tmp_path / "models/latest").mkdir(parents=True)
        write_model(tmp_path / "models/latest/model.onnx")
        eventually(lambda: server.get("/health/ready").status == 200)
        assert server.send("/predict", ("a.png", BLUE)).status == 200
