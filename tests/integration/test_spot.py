"""A machine that vanishes: the run goes on elsewhere from its mirror, bit for bit. Against a real GCS emulator."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.bucket import BUCKET, Emulator
from mlops import checkpoint
from mlops.storage import Bucket
from samples import QUICK
from test_resume import runs, same, whole

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")

RUN = (*(setting for setting in QUICK if "epochs" not in setting), "training.batch_size=9", "training.epochs=40")


@pytest.fixture
def emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    with Emulator(tmp_path / "bucket") as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


def train(cwd: Path, *overrides: str) -> subprocess.Popen[str]:
    cwd.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlops.train", *overrides]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_in_its_middle(run: subprocess.Popen[str], cwd: Path) -> None:
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not any(
            len(path.read_text().splitlines()) >= 2 for path in cwd.glob("outputs/*/*/metrics.jsonl")
        ):
            time.sleep(0.005)
        # What is on its way to the bucket goes on arriving only as long as the machine is there.
        time.sleep(0.2)
    finally:
        run.kill()
        run.communicate()
    assert run.returncode == -signal.SIGKILL, "it was too quick for this test"


def finish(run: subprocess.Popen[str]) -> str:
    try:
        out, _ = run.communicate(timeout=300)
    finally:
        run.kill()
    assert run.returncode == 0, out
    return out


@pytest.mark.slow
@pytest.mark.parametrize("found_by", ["resume=", "the W&B run id"])
def test_a_run_goes_on_from_its_mirror_on_an_empty_machine_bit_for_bit(
    found_by: str, emulator: Emulator, pictures: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
):
    mirror = f"gs://{BUCKET}/runs"
    command = [*RUN, f"data.root={pictures}", f"run.mirror={mirror}", "training.save_every=1"]
    again = [f"resume={mirror}"]
    if found_by == "the W&B run id":
        # As an agent starts a trial, and starts it again after it was preempted.
        monkeypatch.setenv("WANDB_RUN_ID", "abcd1234")
        monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
        command.remove("tracking=off")
        again = command
    first, second, uncut = (workplace / name for name in ("first", "second", "uncut"))
    kill_in_its_middle(train(first, *command), first)
    shutil.rmtree(first)  # the machine is gone, with all that was on it
    out = finish(train(second, *again))
    assert "going on in" in out
    (folder,) = runs(second)
    bucket = Bucket(mirror)
    bucket.get(f"{folder.parent.name}/{folder.name}/best_model.pth", workplace / "mirrored.pth", lambda _: None)
    assert (workplace / "mirrored.pth").read_bytes() == (folder / "best_model.pth").read_bytes()
    assert checkpoint.read_metadata(folder / "last.pth")["resume"]["finished"]

    # The same command in another world, in which nothing was ever saved.
    emulator.stop()
    shutil.rmtree(emulator.folder)
    emulator.start()
    finish(train(uncut, *command))
    same(whole(*runs(uncut)), folder)
