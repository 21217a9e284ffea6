"""`mlops doctor`: what stands in the way, and the one command that mends it."""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conftest import Command
from mlops import doctor
from mlops.data.versioning.pointer import write_sums
from mlops.data.versioning.sums import write_sums_of
from samples import ROOT, write_pictures
from test_credentials import write_key


@pytest.fixture
def clone(workplace: Path, own_wandb: None) -> Path:
    """A fresh clone's files, in a commit."""
    shutil.copytree(ROOT / ".dvc", workplace / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local"))
    shutil.copy(ROOT / ".dvcignore", workplace)
    shutil.copy(ROOT / "tests" / "fixtures" / "digits.dvc", workplace / "data.dvc")
    (workplace / ".gitignore").write_text("/data\n")
    for words in (("init", "-q"), ("add", "-A"), ("-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "x")):
        subprocess.run(["git", *words], cwd=workplace, check=True)
    return workplace


def found(mlops_command: Command) -> tuple[int, dict[str, dict[str, str]]]:
    done = mlops_command("doctor", "--json")
    return done.code, {one["what"]: one for one in json.loads(done.out)}


def test_on_a_fresh_clone_nothing_fails_and_what_may_be_set_up_is_named(clone: Path, mlops_command: Command):
    done = mlops_command("doctor")
    assert done.code == 0, done.out
    code, told = found(mlops_command)
    assert code == 0
    states = {what: one["state"] for what, one in told.items()}
    unset = {"DVC remote", "W&B account", "prepared data"}
    assert states == {what: "unset" if what in unset else "ok" for what in states}
    assert len(states) == 9
    assert told["DVC remote"]["mend"].endswith("invoke data-remote gs://bucket/path")
    assert told["W&B account"]["mend"].endswith("wandb login")
    for line in ("DVC remote", "To set up, where wanted", "wandb login", "nothing to pull"):
        assert line in done.out
    assert "FAIL" not in done.out


def test_each_thing_that_is_wrong_fails_with_its_one_command(
    clone: Path, mlops_command: Command, monkeypatch: pytest.MonkeyPatch
):
    write_key(clone / "key.json")
    write_pictures(clone / "data" / "pictures")
    (clone / "data.dvc").write_text(f"outs:\n- md5: {'1' * 32}.dir\n  path: data\n")
    write_sums(clone / "data.dvc", write_sums_of(clone / "data"))
    (clone / "data" / "pictures" / "red" / "00.png").write_bytes(b"changed")
    (clone / "data" / "processed" / "x-1").mkdir(parents=True)
    (clone / "data" / "processed" / "x-1" / "manifest.json").write_text("{}")
    config = clone / ".dvc" / "config"
    config.write_text(config.read_text().replace("YOUR-BUCKET/YOUR-PROJECT", "a-bucket/x"))
    (clone / ".dvc" / "config.local").write_text("['remote \"gcs\"']\n    credentialpath = nowhere.json\n")
    monkeypatch.setattr(doctor, "LEAST_FREE", 10**18)
    monkeypatch.setattr(doctor, "PYTHONS", ((3, 1), (3, 2)))
    shutil.rmtree(clone / ".git")
    code, told = found(mlops_command)
    assert code == 1
    failing = {what: one["mend"] for what, one in told.items() if one["state"] == "FAIL"}
    assert failing.keys() == {"Python", "disk", "git", "DVC remote", "data", "prepared data", "key files"}
    assert all(failing.values())
    assert failing["data"].endswith("invoke data-push")
    assert failing["DVC remote"] == "dvc remote modify --local gcs credentialpath FILE"
    assert "mv key.json" in failing["key files"]
    assert "changed: pictures/red/00.png" in told["data"]["found"]
    (clone / "data" / "pictures" / "red" / "00.png").unlink()
    _, told = found(mlops_command)
    assert told["data"]["mend"].endswith("invoke data-pull")


def test_a_broken_pointer_is_a_finding_not_a_crash(clone: Path, mlops_command: Command):
    (clone / "data.dvc").write_text("<<<<<<< HEAD\n")
    code, told = found(mlops_command)
    assert code == 1
    assert told["data"]["state"] == "FAIL"
    assert told["data"]["mend"] == "git checkout data.dvc"


def test_a_check_that_fails_in_an_unforeseen_way_does_not_hide_the_others(
    clone: Path, mlops_command: Command, monkeypatch: pytest.MonkeyPatch
):
    def broken() -> doctor.Finding:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(doctor, "_disk", broken)
    code, told = found(mlops_command)
    assert code == 1
    assert told["disk"]["found"] == "RuntimeError: unforeseen"
    assert len(told) == 9


class Server(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        key = self.headers["Authorization"]
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.answers.wait(60)  # type: ignore[attr-defined]
        viewer = {"username": "anna", "entity": "team"} if key == "Basic YXBpOmtleQ==" else None  # api:key
        body = json.dumps({"data": {"viewer": viewer}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def wandb_api(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.answers = threading.Event()  # type: ignore[attr-defined]
        server.answers.set()  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.answers.set()  # type: ignore[attr-defined]
        server.shutdown()


def test_a_wandb_account_is_asked_for_its_name_and_has_five_seconds(
    clone: Path, wandb_api: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def account() -> tuple[str, str]:
        one = doctor._wandb()
        return one.state, one.found

    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert account() == ("ok", "anna, team")
    monkeypatch.setenv("WANDB_API_KEY", "other")
    assert account()[0] == "FAIL"
    assert account()[1].endswith("does not know this key")
    # As `wandb login` leaves it.
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "netrc").write_text("machine 127.0.0.1\n  login user\n  password key\n")
    assert account() == ("ok", "anna, team")
    for address in ("http://user:s3cret@127.0.0.1:9", "http://localhost:abc"):
        monkeypatch.setenv("WANDB_API_KEY", "key")
        monkeypatch.setenv("WANDB_BASE_URL", address)
        state, said = account()
        assert state == "FAIL"
        assert "s3cret" not in said
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{wandb_api.server_port}")
    monkeypatch.setattr(doctor, "WANDB_TIMEOUT", 0.3)
    wandb_api.answers.clear()  # type: ignore[attr-defined]
    started = time.monotonic()
    state, said = account()
    assert (state, time.monotonic() - started < 30) == ("FAIL", True)
    assert "no answer" in said or "timed out" in said
