"""A disk that is full, for real: a tmpfs of two megabytes. Skips where it may not be mounted."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from conftest import Command
from mlops import checkpoint
from samples import QUICK

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no tmpfs")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_preparing_on_a_full_disk_is_one_line_and_leaves_nothing(
    small_disk: Path, pictures: Path, hydra_command: Command
):
    done = hydra_command(
        "preprocess", "data=folder", f"data.root={pictures}", "data.image_size=256", f"paths.processed={small_disk}"
    )
    assert done.code == 2, done.err
    (line,) = done.errors
    assert "No space left on device; free some space" in line
    assert not [path for path in small_disk.iterdir() if path.name.endswith(".tmp") or path.name.startswith("pictures")]


def test_a_card_that_does_not_fit_leaves_nothing_half_done(small_disk: Path, pictures: Path, hydra_command: Command):
    settings = ["preprocess", "data=folder", f"data.root={pictures}", "data.image_size=8"]
    assert hydra_command(*settings, f"paths.processed={small_disk.parent}/roomy").code == 0
    (whole,) = (small_disk.parent / "roomy").glob("pictures-*")
    pages = [-(-path.stat().st_size // 4096) for path in whole.iterdir()]
    # Room for all of it but the last page of the card, which is written last.
    (small_disk / "filler").write_bytes(b"\0" * ((512 - sum(pages) + 1) * 4096))
    done = hydra_command(*settings, f"paths.processed={small_disk}")
    assert done.code == 2, done.err
    (line,) = done.errors
    assert "card.html: cannot be written: No space left on device; free some space" in line
    assert not [path for path in small_disk.iterdir() if path.name.endswith(".tmp") or path.name.startswith("pictures")]
    (small_disk / "filler").unlink()
    assert hydra_command(*settings, f"paths.processed={small_disk}").code == 0


def test_a_checkpoint_that_does_not_fit_keeps_the_old_one(
    small_disk: Path, pictures: Path, workplace: Path, hydra_command: Command
):
    settings = [*QUICK, f"data.root={pictures}", f"paths.models={small_disk}"]
    assert hydra_command("train", *settings).code == 0
    kept = (small_disk / "latest" / "best_model.pth").read_bytes()
    (small_disk / "filler").write_bytes(b"\0" * (2 * 1024**2 - len(kept) - 65536))
    done = hydra_command("train", *settings, "seed=1", "model.width=64")
    assert done.code == 2, done.err
    assert "No space left on device; free some space" in done.errors[0]
    assert (small_disk / "latest" / "best_model.pth").read_bytes() == kept
    assert [path.name for path in (small_disk / "latest").iterdir()] == ["best_model.pth"]


@pytest.mark.slow
def test_a_report_that_does_not_fit_keeps_the_old_one_whole(
    small_disk: Path, pictures: Path, workplace: Path, hydra_command: Command, mlops_command: Command
):
    assert hydra_command("train", *QUICK, f"data.root={pictures}").code == 0
    latest, folder = Path("models/latest/best_model.pth"), small_disk / "report"
    assert mlops_command("report", latest, "--output", folder).code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    # Room for some of the files, so that the disk fills half-way.
    size = sum(len(content) for content in before.values())
    filler = small_disk / "filler"
    filler.write_bytes(b"\0" * (2 * 1024**2 - size - size // 2 - 32768))
    # Another split: every file would change.
    done = mlops_command("report", latest, "--split", "train", "--output", folder)
    assert done.code == 2, done.err
    (line,) = done.errors
    assert "No space left on device; free some space" in line
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    filler.unlink()
    assert mlops_command("report", latest, "--split", "train", "--output", folder).code == 0


def test_a_disk_without_room_for_w_and_bs_files_costs_a_warning_and_no_run(
    small_disk: Path, own_wandb: None, pictures: Path, workplace: Path, hydra_command: Command
):
    # Room for the start; the epochs and the artifact's records find none.
    (small_disk / "filler").write_bytes(b"\0" * (2 * 1024**2 - 32768))
    folder = workplace / "run"
    folder.mkdir()
    (folder / "wandb").symlink_to(small_disk)
    more = [f"data.root={pictures}", "tracking=offline", f"hydra.run.dir={folder}"]
    done = hydra_command("train", *QUICK, *more)
    assert done.code == 0, done.err
    assert "--- Logging error ---" not in done.err
    assert (folder / "train.log").read_text().count("W&B failed, the run goes on without it: ") == 1
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_a_run_that_fills_its_disk_goes_on_once_there_is_room(
    small_disk: Path, pictures: Path, workplace: Path, hydra_command: Command, monkeypatch: pytest.MonkeyPatch
):
    settings = [*QUICK, f"data.root={pictures}", f"paths.outputs={small_disk}", "training.save_every=1"]
    filler, replace, saves = small_disk / "filler", Path.replace, [0]

    def filling(self: Path, target: Path) -> Path:
        saves[0] += Path(target).name == "last.pth"
        if saves[0] == 4:  # of 1 at the start and 3 steps an epoch
            free = os.statvfs(small_disk)
            filler.write_bytes(b"\0" * (free.f_bavail * free.f_frsize))
            saves[0] += 1
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", filling)
        done = hydra_command("train", *settings)
    assert done.code == 2, done.err
    (line,) = done.errors
    assert "last.pth: cannot be written: No space left on device; free some space" in line
    (run,) = small_disk.glob("*/*")
    assert not list(run.glob(".*.tmp"))
    assert checkpoint.read_metadata(run / "last.pth")["step"] == 3
    checkpoint.read(run / "last.pth")
    filler.unlink()
    assert hydra_command("train", f"resume={run}").code == 0
    resumed = checkpoint.read(run / "best_model.pth")
    assert hydra_command("train", *settings[:-2]).code == 0
    uncut = checkpoint.read(Path("models/latest/best_model.pth"))
    assert all(torch.equal(tensor, resumed.state_dict[name]) for name, tensor in uncut.state_dict.items())
    assert uncut.metadata["metrics"] == resumed.metadata["metrics"]
