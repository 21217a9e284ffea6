"""`invoke` as a user types it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samples import QUICK, ROOT


def invoke(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "invoke", "--search-root", str(ROOT), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_list_reads_as_a_menu():
    listed = invoke("--list").stdout
    tasks = (
        "preprocess-data",
        "train",
        "evaluate",
        "report",
        "info",
        "diff",
        "reproduce",
        "export",
        "bench",
        "publish",
        "data-remote",
        "data-pull",
        "data-push",
        "data-status",
        "data-check",
        "docker-build",
        "docker-api",
        "docker-train",
        "doctor",
        "test",
        "lint",
    )
    for task in (*tasks, "docs", "lock"):
        (line,) = [line for line in listed.splitlines() if line.split()[:1] == [task]]
        assert len(line.split()) > 4, f"{task} has no line of help"


@pytest.mark.parametrize("task", ["train", "preprocess-data"])
def test_bare_overrides_are_answered_with_the_form_that_works(task: str):
    done = invoke(task, "training.optimizer.lr=0.1", "data=gtsrb")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: training.optimizer.lr=0.1: overrides follow -o: invoke {task} -o training.optimizer.lr=0.1 -o data=gtsrb\n"
    )


def test_overrides_pass_as_they_are_typed_and_the_exit_code_comes_back(tmp_path: Path):
    strange = ["training.monitor='a b'", 'tracking.project="$(id) ~x"', "training.batch_size=-1"]
    done = invoke("train", *[word for override in strange for word in ("-o", override)], cwd=tmp_path)
    assert done.returncode == 2
    assert "error: training.monitor=a b: must be one of" in done.stderr
    assert "error: training.batch_size=-1: must be at least 1" in done.stderr
    assert "tracking.project" not in done.stderr.split("\n", 1)[1]
    assert done.stderr.startswith("+ python -m mlops.train 'training.monitor='")


def test_evaluate_names_a_missing_checkpoint(tmp_path: Path):
    done = invoke("evaluate", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: {Path('models/latest/best_model.pth')}: no such file; "
        "train first (`invoke train`) or name another checkpoint"
    )


def test_addresses_pass_as_they_are_typed(tmp_path: Path):
    address = "memory://models/lr=0.1/x.pth"
    done = invoke("diff", address, address, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"+ python -m mlops.cli diff {address} {address}",
        *[f"error: {address}: no such file, nor a model published under that name; check the address"] * 2,
    ]
    done = invoke("publish", "none.pth", "gs://bucket/models/signs", cwd=tmp_path)
    assert done.stderr.splitlines() == [
        "+ python -m mlops.cli publish none.pth gs://bucket/models/signs",
        "error: none.pth: no such file; train first (`invoke train`) or name another checkpoint",
    ]


def test_the_data_tasks_become_the_commands_that_they_wrap(tmp_path: Path):
    for words, command in (
        (("data-pull", "--for", "none.pth"), "data pull --for none.pth"),
        (("data-pull", "--processed"), "data pull --processed"),
        (("data-push", "--processed"), "data push --processed"),
        (("data-status",), "data status"),
        (("data-remote", "gs://bucket/x"), "data remote gs://bucket/x"),
        (("data-check", "nowhere"), "data check nowhere"),
    ):
        done = invoke(*words, cwd=tmp_path)
        assert done.returncode == 2
        first, *errors = done.stderr.splitlines()
        assert first == f"+ python -m mlops.cli {command}"
        assert errors
        assert all(line.startswith("error: ") for line in errors)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for docker is a shell script")
def test_the_docker_tasks_become_one_command_that_gives_the_container_no_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "docker").write_text('#!/bin/sh\nprintf "%s\\n" "$*"\nexit 3\n')
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    hardened = "--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges"
    done = invoke("docker-api", "--model", "m.onnx", "--port", "8080", cwd=tmp_path)
    assert done.returncode == 3
    mount = f"type=bind,source={tmp_path}/m.onnx,target=/srv/models/latest/model.onnx,readonly"
    assert done.stdout == (f"run --rm {hardened} --memory 1g --publish 127.0.0.1:8080:8000 --mount {mount} mlops-api\n")
    done = invoke("docker-train", "-o", "data=gtsrb", "-o", "training.epochs=3", "--gpus", "all", cwd=tmp_path)
    assert done.returncode == 3
    assert f"run --rm {hardened} --user {os.getuid()}:{os.getgid()} " in done.stdout
    assert "--env MLOPS_PUBLISH --env WANDB_API_KEY" in done.stdout
    assert done.stdout.endswith(
        f" --gpus all --mount type=bind,source={tmp_path},target=/work mlops-train data=gtsrb training.epochs=3\n"
    )
    done = invoke("docker-build", cwd=tmp_path)
    assert done.returncode == 1
    for name, built in zip(("api", "train"), done.stdout.splitlines(), strict=False):
        # Of a tree with changes, no commit.
        commit = r"--build-arg COMMIT=([0-9a-f]{40})?"
        assert re.fullmatch(rf"build --file dockerfiles/{name}\.dockerfile {commit} --tag mlops-{name} \.", built)
    assert "FAILED train" in done.stdout
    assert invoke("docker-build", "--only", "predict").stderr == "error: --only=predict: must be api or train\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM: it ends a process unasked")
def test_sigterm_reaches_the_run_and_143_comes_back(pictures: Path, workplace: Path):
    overrides = [
        *(setting for setting in QUICK if "epochs" not in setting),
        "training.epochs=100000",
        f"data.root={pictures}",
    ]
    words = [word for override in overrides for word in ("-o", override)]
    command = [sys.executable, "-m", "invoke", "--search-root", str(ROOT), "train", *words]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not list(workplace.glob("outputs/*/*/best_model.pth")) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(run.pid, signal.SIGTERM)
        _, err = run.communicate(timeout=60)
    finally:
        run.kill()
        run.communicate()
    assert run.returncode == 143, err
    assert "SIGTERM: stopping" in err
    deadline = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(run.pid, 0)
            time.sleep(0.1)
