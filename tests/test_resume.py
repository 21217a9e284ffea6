"""A run that is stopped and goes on ends as one that was never stopped: compared whole, at zero tolerance."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Command
from mlops import checkpoint, stopping
from samples import QUICK, ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM: it ends a process unasked")

# What has a state that a restart could lose, or draws random numbers, all at once.
EVERYTHING = (
    "model=tinycnn",
    "~model.width",
    "training.ema=0.9",
    "training.clip_norm=1",
    "training.accumulate=3",
    "training.class_weights=balanced",
    "training.label_smoothing=0.1",
    "augment=photos",
    "augment.mixup=0.2",
    "augment.cutmix=0.2",
    "augment.noise=0.05",
    "augment.erase=0.1",
)
# 36 images to train on: 4 epochs of 4 steps.
RUN = (*(setting for setting in QUICK if "epochs" not in setting), "training.batch_size=9", "training.epochs=4")
# Of the steps of such a run: the first, one inside an epoch, the last of an epoch, the very last.
STEPS = (0, 5, 7, 15)


class Killed(BaseException):
    """Ends a run as SIGKILL does, as far as one process can play that: nothing is saved on the way."""


def runs(workplace: Path) -> list[Path]:
    return sorted(path.parent for path in workplace.glob("outputs/*/*/.hydra"))


def whole(folder: Path) -> dict[str, Any]:
    """Everything a run leaves behind, but for when it was and what hangs on that."""
    found: dict[str, Any] = {}
    for name in ("best_model.pth", "last.pth"):
        read = checkpoint.read(folder / name)
        found[name] = {key: value for key, value in read.metadata.items() if key not in ("created", "digest")}
        found[name] |= {f"weights of {key}": _bits(tensor) for key, tensor in read.state_dict.items()}
        found[name] |= {f"state of {key}": _bits(tensor) for key, tensor in read.resume_tensors.items()}
    for name in ("metrics.jsonl", "report/test.json"):
        found[name] = (folder / name).read_text()
    created = [checkpoint.read_metadata(folder / name)["created"] for name in ("best_model.pth", "last.pth")]
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    for moment in created:
        page = page.replace(moment, "").replace(moment.replace("T", " ").removesuffix("+00:00"), "")
    found["report/index.html"] = page
    return found


def _bits(tensor: torch.Tensor) -> tuple[str, list[int], bytes]:
    return str(tensor.dtype), list(tensor.stride()), tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def same(one: Path, other: Path) -> None:
    left, right = whole(one), whole(other)
    for name, expected in left.items():
        if isinstance(expected, dict):
            different = [key for key in expected.keys() | right[name].keys() if expected.get(key) != right[name].get(key)]
            assert different == [], (name, different)
        else:
            assert right[name] == expected, name


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Have something happen inside a step of training, counted from the start of the run."""
    from mlops.training import loop

    make_step = loop.make_step

    def plan(number: int, event: Callable[[], None]) -> None:
        def make(**values: Any) -> Any:
            step = make_step(**values)

            def stepped(batch: Any) -> Any:
                if batch.step == number:
                    event()
                return step(batch)

            return stepped

        monkeypatch.setattr(loop, "make_step", make)

    return plan


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def die() -> None:
    raise Killed


@pytest.mark.parametrize("settings", [(), EVERYTHING], ids=["plain", "everything on"])
@pytest.mark.parametrize("step", STEPS)
def test_stopped_by_sigterm_and_resumed_is_as_never_stopped(
    step: int, settings: tuple[str, ...], pictures: Path, workplace: Path, hydra_command: Command, at_step: Any
):
    command = ["train", *RUN, f"data.root={pictures}", *settings]
    assert hydra_command(*command).code == 0
    (whole_run,) = runs(workplace)
    at_step(step, terminate)
    stopped = hydra_command(*command)
    assert stopped.code == 143, stopped.err
    (cut_run,) = set(runs(workplace)) - {whole_run}
    saved = checkpoint.read_metadata(cut_run / "last.pth")
    # The step that was under way is done and saved; nothing of it is lost.
    assert saved["step"] == step + 1
    at_step(-1, terminate)
    resumed = hydra_command("train", f"resume={cut_run}")
    assert resumed.code == 0, resumed.err
    same(whole_run, cut_run)


@pytest.mark.parametrize("save_every", [0, 1, 3])
@pytest.mark.parametrize("step", STEPS)
def test_killed_and_resumed_is_as_never_stopped_and_costs_at_most_what_save_every_says(
    step: int, save_every: int, pictures: Path, workplace: Path, hydra_command: Command, at_step: Any
):
    command = ["train", *RUN, f"data.root={pictures}", *EVERYTHING, f"training.save_every={save_every}"]
    assert hydra_command(*command).code == 0
    (whole_run,) = runs(workplace)
    at_step(step, die)
    with pytest.raises(Killed):
        hydra_command(*command)
    (cut_run,) = set(runs(workplace)) - {whole_run}
    saved = checkpoint.read_metadata(cut_run / "last.pth")["step"]
    assert saved == max(step - step % 4, step - step % save_every if save_every else 0)
    at_step(-1, die)
    assert hydra_command("train", f"resume={cut_run}").code == 0
    same(whole_run, cut_run)
