"""`wandb sweep` and `wandb agent` as they are installed, against a W&B server: trials start, arrive, and go on."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from conftest import Command
from integration.wandb_server import KEY, Run, Server
from mlops import checkpoint
from samples import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes and sessions as on Linux")

SHIPPED = ROOT / "configshydra" / "sweep" / "default.yaml"

# Seconds. A trial takes 10 to 20, most of it for imports; an agent looks after its trial every 5.
PATIENCE = 240


@pytest.fixture
def server(own_wandb: None, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A W&B server, and a shell that knows of it and of our environment, as after `wandb login`."""
    with Server() as running:
        settings = {"API_KEY": KEY, "BASE_URL": running.url, "ENTITY": "team", "PROJECT": "swept"}
        # What has not been sent yet waits at most so many seconds; else 15.
        settings["X_FILE_STREAM_TRANSMIT_INTERVAL"] = "1"
        for name, value in settings.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        # The agent starts whatever is called python.
        monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        yield running


class Started:
    """A command that runs in a session of its own, with what it prints in a file."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

    @property
    def printed(self) -> str:
        return self._log.read_text()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until it holds, which has to be while the command runs."""
        give_up = time.monotonic() + PATIENCE
        while not condition():
            assert self._process.poll() is None, self.printed
            assert time.monotonic() < give_up, self.printed
            time.sleep(0.01)

    def finish(self) -> None:
        """Until it has ended well."""
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(self.printed)
        assert code == 0, self.printed

    def training(self) -> psutil.Process:
        """The trial that an agent runs."""
        (found,) = [child for child in psutil.Process(self._process.pid).children() if "mlops.train" in child.cmdline()]
        return found

    def end(self) -> None:
        """Kill it, and all that it has started: an agent's trials have process groups of their own."""
        self._process.kill()
        self._process.wait(PATIENCE)
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == self._process.pid:
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Start a command; what is still there at the end of the test is killed."""
    running: list[Started] = []

    def begin(*command: str) -> Started:
        running.append(Started(list(command), tmp_path / f"printed-{len(running)}"))
        return running[-1]

    yield begin
    for one in running:
        one.end()


def upload(file: Path, start: Callable[..., Started]) -> str:
    """`wandb sweep`; returns what it says to give to `wandb agent`."""
    uploading = start("wandb", "sweep", str(file))
    uploading.finish()
    found = re.search(r"Run sweep agent with: wandb agent (\S+)$", uploading.printed, re.MULTILINE)
    assert found, uploading.printed
    return found[1]


def write_sweep(file: Path, parameters: dict[str, list[Any]], *words: str) -> Path:
    """The shipped file as a grid over other `parameters`, its trials started with more `words`: for a short run."""
    told = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    del told["early_terminate"], told["run_cap"]
    *command, arguments = told["command"]
    told |= {"method": "grid", "command": [*command, *words, arguments]}
    told["parameters"] = {key: {"values": values} for key, values in parameters.items()}
    file.write_text(yaml.safe_dump(told), encoding="utf-8")
    return file


def at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def the_run(server: Server) -> Run:
    """The one run that has arrived."""
    (run,) = server.runs.values()
    return run


@pytest.mark.slow
def test_the_shipped_search_space_is_taken_by_wandb_sweep_and_its_agent_starts_a_trial_of_it(
    server: Server, start: Callable[..., Started]
):
    path = upload(SHIPPED, start)
    sweep = server.sweeps[path.removeprefix("team/swept/")]
    sent, shipped = yaml.safe_load(sweep.text), yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    for key, space in sent["parameters"].items():
        # `wandb sweep` fills in what a range does not say.
        shipped["parameters"][key].setdefault("distribution", space.get("distribution"))
        space.setdefault("distribution", None)
    assert sent == shipped

    agent = start("wandb", "agent", "--count", "1", path)
    agent.wait_for(lambda: any(run.history for run in server.runs.values()))
    run = the_run(server)
    chosen = sweep.trials[run.name]
    assert {key: at(run.config, key) for key in chosen} == chosen
    assert run.history[0].keys() >= {shipped["metric"]["name"], "epoch"}
    assert (run.upserts[0]["project"], run.upserts[0]["sweep"]) == ("swept", sweep.name)


@pytest.mark.slow
def test_each_trial_of_an_agent_has_its_settings_and_arrives_under_its_id_and_none_is_put_into_use(
    server: Server, workplace: Path, start: Callable[..., Started]
):
    in_use = workplace / "models" / "latest" / "best_model.pth"
    in_use.parent.mkdir(parents=True)
    in_use.write_bytes(b"the model in use")
    short = ("data=digits", "data.image_size=8", "model.width=8", "training.epochs=2", "training.limit_batches=2")
    file = write_sweep(workplace / "grid.yaml", {"training.optimizer.lr": [0.01, 1e-5], "model.dropout": [0]}, *short)
    path = upload(file, start)
    sweep = server.sweeps[path.removeprefix("team/swept/")]
    start("wandb", "agent", path).finish()

    assert [server.runs[name].state for name in sweep.trials] == ["finished", "finished"]
    assert set(server.runs) == set(sweep.trials)
    folders = {folder.parents[1] for folder in workplace.glob("outputs/*/*/wandb/run-*")}
    assert len(folders) == 2
    for name, chosen in sweep.trials.items():
        run = server.runs[name]
        (folder,) = [one for one in folders if run.display_name == f"{one.parent.name}/{one.name}"]
        story = checkpoint.read_metadata(folder / "best_model.pth")
        assert {key: at(story["config"], key) for key in chosen} == chosen
        said = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
        words = ["tracking=wandb", *short, *(f"{key}={value}" for key, value in chosen.items())]
        assert sorted(text.removeprefix("++") for text in said) == sorted(words)
        assert checkpoint.read_metadata(folder / "last.pth")["resume"]["tracker"] == name
        # W&B's `early_terminate` counts these.
        assert [(row["epoch"], row["val_Accuracy"]) for row in run.history] == [
            (row["epoch"], row["val_Accuracy"]) for row in story["history"]
        ]
        assert len(run.history) == 2
    assert [path.read_bytes() for path in in_use.parent.iterdir()] == [b"the model in use"]


@pytest.mark.slow
def test_a_trial_that_is_preempted_and_started_again_on_its_machine_goes_on_where_it_was(
    server: Server, workplace: Path, start: Callable[..., Started], hydra_command: Command
):
    words = ("data=digits", "data.image_size=8", "model.width=8", "training.epochs=4", "training.save_every=40")
    # Threads of several processes would wait for each other.
    words += ("training.threads=1",)
    space = {"training.optimizer.lr": [0.01], "training.batch_size": [8]}
    path = upload(write_sweep(workplace / "one.yaml", space, *words), start)
    agent = start("wandb", "agent", path)

    def in_a_later_epoch() -> bool:
        found = [checkpoint.read_metadata(last)["resume"] for last in workplace.glob("outputs/*/*/last.pth")]
        return any(position["epoch"] > 0 and position["step"] > 0 for position in found)

    agent.wait_for(in_a_later_epoch)
    agent.training().terminate()
    agent.finish()

    run = the_run(server)
    assert [run.name] == list(server.sweeps[path.removeprefix("team/swept/")].trials)
    assert (run.state, run.exit_codes) == ("finished", [143, 0])
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4]
    (folder,) = (path.parent for path in workplace.glob("outputs/*/*/.hydra"))
    went_on = re.search(rf"going on in {folder.relative_to(workplace)} after epoch (\d), step (\d+) of ", agent.printed)
    assert went_on, agent.printed
    assert [int(number) > 0 for number in went_on.groups()] == [True, True]

    settings = [f"{key}={value}" for key, (value,) in space.items()]
    never_stopped = hydra_command("train", "tracking=off", "paths.outputs=uncut", *words, *settings)
    assert never_stopped.code == 0, never_stopped.err
    (uncut,) = workplace.glob("uncut/*/*/last.pth")
    left, right = checkpoint.read_metadata(folder / "last.pth"), checkpoint.read_metadata(uncut)
    assert len(left["epoch_digests"]) == 4
    assert left["epoch_digests"] == right["epoch_digests"]
    assert left["weights_digest"] == right["weights_digest"]


@pytest.mark.slow
def test_a_trial_that_its_sweep_has_stopped_early_is_over_and_not_started_again(
    server: Server, workplace: Path, start: Callable[..., Started]
):
    words = ("data=digits", "data.image_size=8", "model.width=8", "training.epochs=1000", "training.threads=1")
    path = upload(write_sweep(workplace / "one.yaml", {"training.batch_size": [8]}, *words), start)
    agent = start("wandb", "agent", path)
    agent.wait_for(lambda: any(run.history for run in server.runs.values()))
    run = the_run(server)
    server.stopped.add(run.name)
    agent.finish()
    assert run.state == "failed"
    assert server.sweeps[path.removeprefix("team/swept/")].queue == []
    assert len(run.exit_codes) == 1
    (last,) = workplace.glob("outputs/*/*/last.pth")
    assert checkpoint.read_metadata(last)["epoch"] >= 1
