"""What several tests share: small real images, and entrypoints run as a user runs them."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from mlops import stopping
from samples import ON_CPU, write_pictures

# The same examples every time, each with the time that it takes: else a run may fail by chance, or on a busy machine.
settings.load_profile("ci")

# Tests that run side by side share the cores; threads of torch would only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what runs in the background with Ctrl-C ignored, nohup with the end of the terminal, and we would hand
# that on to the runs we start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def the_same_random_weights_in_any_order_of_tests() -> None:
    """A network that a test builds is the same, whatever was drawn before it."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """`pictures/<class>/<n>.png`: 3 classes of 20 images that differ by colour."""
    return write_pictures(tmp_path / "pictures")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder: everything a run writes goes below it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def own_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B without an account or a server, with folders of its own; its process ends with the test, however that goes."""
    import wandb

    wandb.teardown()  # what a test without this fixture has started, with its environment
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("CACHE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home" / name))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    wandb.teardown()


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The problems it named, one a line."""
        return [line.removeprefix("error: ") for line in self.err.splitlines() if line.startswith("error: ")]


Command = Callable[..., Outcome]


@pytest.fixture
def hydra_command(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Run an entrypoint in this process: `hydra_command("train", "seed=1")`."""
    import importlib

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else None

    def run(module: str, *overrides: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [module, *(ON_CPU if module == "train" else ()), *overrides])
        code = 0
        try:
            importlib.import_module(f"mlops.{module}").main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    yield run
    stopping.listen()  # forgets what was heard
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for added in set(root.handlers) - set(before[1]):
        root.removeHandler(added)
        added.close()
    root.setLevel(before[0])
    if torch:
        torch.set_num_threads(threads)  # a run has set its own


@pytest.fixture
def mlops_command(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `mlops` in this process: `mlops_command("info", "x.pth")`."""
    from mlops.cli import main

    def run(*arguments: str | Path) -> Outcome:
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run
