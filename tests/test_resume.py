"""A run that is stopped and goes on ends as one that was never stopped: compared whole, at zero tolerance."""

import importlib
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
from mlops import checkpoint, resume, stopping
from mlops.files import only_one
from mlops.progress import bar
from mlops.tracking import Tracker
from samples import QUICK, ROOT, png, write_pictures

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


def same(expected_run: dict[str, Any], folder: Path) -> None:
    left, right = expected_run, whole(folder)
    for name, expected in left.items():
        if isinstance(expected, dict):
            different = [
                key for key in expected.keys() | right[name].keys() if expected.get(key) != right[name].get(key)
            ]
            assert different == [], (name, different)
        else:
            assert right[name] == expected, name


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As everywhere, but in one place for all tests here: where the data is stands in the config of a run."""
    return write_pictures(tmp_path_factory.mktemp("resume") / "pictures")


Whole = dict[str, Any]
_never_stopped: dict[tuple[str, ...], Whole] = {}


@pytest.fixture
def never_stopped(hydra_command: Command, workplace: Path) -> Callable[..., Whole]:
    """What a run leaves that was never stopped; trained once for all tests that compare with it."""

    def find(*overrides: str) -> Whole:
        if overrides not in _never_stopped:
            assert hydra_command("train", *overrides).code == 0
            _never_stopped[overrides] = whole(*runs(workplace))
            for folder in ("outputs", "models"):
                shutil.rmtree(workplace / folder)
        return _never_stopped[overrides]

    return find


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


@pytest.mark.parametrize(
    ("step", "settings"),
    [
        (5, ()),
        # Some of them are in the test of a run that is stopped again and again as well.
        *(pytest.param(step, EVERYTHING, marks=pytest.mark.slow) for step in STEPS),
    ],
)
def test_stopped_by_sigterm_and_resumed_is_as_never_stopped(
    step: int,
    settings: tuple[str, ...],
    pictures: Path,
    workplace: Path,
    hydra_command: Command,
    at_step: Any,
    never_stopped: Any,
):
    command = [*RUN, f"data.root={pictures}", *settings]
    expected = never_stopped(*command)
    at_step(step, terminate)
    stopped = hydra_command("train", *command)
    assert stopped.code == 143, stopped.err
    (cut_run,) = runs(workplace)
    saved = checkpoint.read_metadata(cut_run / "last.pth")
    # The step that was under way is done and saved; nothing of it is lost.
    assert saved["step"] == step + 1
    at_step(-1, terminate)
    resumed = hydra_command("train", f"resume={cut_run}")
    assert resumed.code == 0, resumed.err
    same(expected, cut_run)


@pytest.mark.parametrize(("step", "save_every"), [(0, 0), (5, 0), (15, 0), (5, 3), (7, 3), (14, 3), (6, 1)])
@pytest.mark.slow
def test_killed_and_resumed_is_as_never_stopped_and_costs_at_most_what_save_every_says(
    step: int,
    save_every: int,
    pictures: Path,
    workplace: Path,
    hydra_command: Command,
    at_step: Any,
    never_stopped: Any,
):
    command = [*RUN, f"data.root={pictures}", *EVERYTHING, f"training.save_every={save_every}"]
    expected = never_stopped(*command)
    at_step(step, die)
    with pytest.raises(Killed):
        hydra_command("train", *command)
    (cut_run,) = runs(workplace)
    saved = checkpoint.read_metadata(cut_run / "last.pth")["step"]
    assert saved == max(step - step % 4, step - step % save_every if save_every else 0)
    at_step(-1, die)
    assert hydra_command("train", f"resume={cut_run}").code == 0
    same(expected, cut_run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "where",
    [
        "mlops.evaluation.evaluate.evaluate_split",
        "mlops.tracking.Tracker.log_epoch",
        "mlops.evaluation.calibration.fit_temperature",
        "mlops.evaluation.evaluate.evaluate_prepared",
        "mlops.evaluation.report.write_report",
        "mlops.tracking.Tracker.log_checkpoint",
    ],
)
def test_killed_outside_of_the_steps_and_resumed_is_as_never_stopped(
    where: str,
    pictures: Path,
    workplace: Path,
    hydra_command: Command,
    monkeypatch: pytest.MonkeyPatch,
    never_stopped: Any,
):
    command = [*RUN, f"data.root={pictures}", *EVERYTHING]
    expected = never_stopped(*command)
    with monkeypatch.context() as patch:
        # Of what happens after each epoch, the third time.
        left = [3 if "epoch" in where or "evaluate_split" in where else 1]
        module, name = where.rsplit(".", 1)
        owner = Tracker if module.endswith("Tracker") else importlib.import_module(module)
        real = getattr(owner, name)

        def counted(*values: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return real(*values, **named)

        patch.setattr(owner, name, counted)
        with pytest.raises(Killed):
            hydra_command("train", *command)
    (cut_run,) = runs(workplace)
    assert hydra_command("train", f"resume={cut_run}").code == 0
    same(expected, cut_run)
    assert (workplace / "models/latest/best_model.pth").read_bytes() == (cut_run / "best_model.pth").read_bytes()


@pytest.mark.parametrize("moment", range(4))
@pytest.mark.slow
def test_killed_inside_a_save_and_resumed_is_as_never_stopped(
    moment: int,
    pictures: Path,
    workplace: Path,
    hydra_command: Command,
    monkeypatch: pytest.MonkeyPatch,
    never_stopped: Any,
):
    command = [*RUN, f"data.root={pictures}", "training.save_every=1"]
    expected = never_stopped(*command)
    with monkeypatch.context() as patch:
        # Before a rename and after it; of a best_model.pth and of a last.pth.
        name, after = [("best_model.pth", False), ("best_model.pth", True), ("last.pth", False), ("last.pth", True)][
            moment
        ]
        replace, left = Path.replace, [3]

        def dying(self: Path, target: Path) -> Path:
            left[0] -= Path(target).name == name
            if left[0] == 0:
                if after:
                    replace(self, target)
                else:
                    shutil.copyfile(self, self.with_name(".last.pth.of-a-killed-one.tmp"))
                raise Killed
            return replace(self, target)

        patch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            hydra_command("train", *command)
    (cut_run,) = runs(workplace)
    assert hydra_command("train", f"resume={cut_run}").code == 0
    same(expected, cut_run)
    assert not list(cut_run.glob(".*.tmp"))


def test_a_run_stopped_again_and_again_is_as_never_stopped(
    pictures: Path, workplace: Path, hydra_command: Command, at_step: Any, never_stopped: Any
):
    command = [*RUN, f"data.root={pictures}", *EVERYTHING]
    expected = never_stopped(*command)
    at_step(1, terminate)
    assert hydra_command("train", *command).code == 143
    (cut_run,) = runs(workplace)
    for step, how, code in ((2, interrupt, 130), (3, terminate, 143), (9, interrupt, 130)):
        at_step(step, how)
        assert hydra_command("train", "resume=latest").code == code
        assert checkpoint.read_metadata(cut_run / "last.pth")["step"] == step + 1
    at_step(-1, die)
    assert hydra_command("train", "resume=latest").code == 0
    same(expected, cut_run)
    assert [path.name for path in sorted(cut_run.glob("resume-*"))] == [f"resume-{number}" for number in (1, 2, 3, 4)]
    # What Hydra wrote at the start of the run stands as it was.
    assert "model=tinycnn" in (cut_run / ".hydra" / "overrides.yaml").read_text()


def test_ctrl_c_twice_stops_at_once(pictures: Path, workplace: Path, hydra_command: Command, at_step: Any):
    def twice() -> None:
        interrupt()
        interrupt()

    at_step(5, twice)
    assert hydra_command("train", *RUN, f"data.root={pictures}").code == 130
    (run,) = runs(workplace)
    assert checkpoint.read_metadata(run / "last.pth")["step"] == 4


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `stopped` keeps what it has trained."""
    return tmp_path_factory.mktemp("stopped") / "work"


@pytest.fixture
def stopped(pictures: Path, workplace: Path, hydra_command: Command, at_step: Any, kept: Path) -> Path:
    """A run that was stopped inside its second epoch; trained once for all tests that begin with one."""
    if not kept.exists():
        at_step(5, terminate)
        assert hydra_command("train", *RUN, f"data.root={pictures}", "training.optimizer.lr=0.004").code == 143
        at_step(-1, die)
        stopping.listen()  # this process has heard what a process hears once
        shutil.copytree(workplace, kept)
    shutil.copytree(kept, workplace, dirs_exist_ok=True)
    (run,) = runs(workplace)
    return run


def test_what_does_not_change_the_run_may_be_asked_for_anew_and_the_rest_said_again(
    stopped: Path, workplace: Path, pictures: Path, hydra_command: Command
):
    moved = shutil.copytree(pictures, workplace / "moved")
    free = [f"data.root={moved}", "promote=false", "training.save_every=2", "data.workers=1", "tracking=off"]
    said_again = ["training.optimizer.lr=0.004", "training.epochs=4", "data=folder", "data.image_size=8"]
    done = hydra_command("train", f"resume={stopped}", *free, *said_again)
    assert done.code == 0, done.err
    assert not (workplace / "models/latest/best_model.pth").exists()
    told = checkpoint.read_metadata(stopped / "best_model.pth")
    assert told["config"]["training"]["save_every"] == 0, "the run is the one that was started"
    assert "training.optimizer.lr=0.004" in told["overrides"]


@pytest.mark.parametrize(
    ("overrides", "problems"),
    [
        (["training.epochs=9"], ["training.epochs=9: the run in {run} has 4"]),
        (
            ["training.optimizer.lr=0.1", "seed=3"],
            ["training.optimizer.lr=0.1: the run in {run} has 0.004", "seed=3: the run in {run} has 0"],
        ),
        (["+model.depth=3"], ["model.depth=3: "]),
        (["~augment.flip"], ["augment.flip: is missing"]),
        (["hydra.mode=MULTIRUN"], ["hydra.mode=MULTIRUN: a run that goes on has its folder already; leave it out"]),
        (["hydra.run.dir=elsewhere"], ["hydra.run.dir=elsewhere: a run that goes on has its folder already"]),
        (["data=digits"], ["data.source=digits: the run in {run} has folder"]),
        (["model=tinycnn", "~model.width"], ["model._target_=mlops.models.TinyCNN: the run in {run} has mlops.models"]),
        (["experiment=gtsrb"], ["training.epochs=30: the run in {run} has 4"]),
        (["training.threads=7"], ["training.threads=7: the run in {run} has "]),
        (["training.precision=fp16"], ["training.precision=fp16: the run in {run} has auto"]),
        (["training.epocs=4"], ["training.epocs=4: no such key"]),
    ],
)
def test_an_override_that_would_change_the_run_is_refused_with_the_difference(
    overrides: list[str], problems: list[str], stopped: Path, hydra_command: Command
):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    done = hydra_command("train", f"resume={stopped}", *overrides)
    assert done.code == 2
    assert done.errors
    for problem in problems:
        assert any(line.startswith(problem.format(run=stopped)) for line in done.errors), done.errors
    assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}


def test_data_that_has_changed_is_refused_with_the_difference(stopped: Path, pictures: Path, hydra_command: Command):
    changed = shutil.copytree(pictures, stopped.parent / "changed")
    (changed / "red" / "00.png").write_bytes(png(12345, colour=(200, 30, 40)))
    done = hydra_command("train", f"resume={stopped}", f"data.root={changed}")
    assert done.code == 2
    (line,) = done.errors
    old = checkpoint.read_metadata(stopped / "last.pth")["data"]["fingerprint"]
    assert line.startswith(f"data: fingerprint {old} -> ")


def test_a_run_that_never_saved_starts_with_its_saved_config(
    pictures: Path, workplace: Path, hydra_command: Command, monkeypatch: pytest.MonkeyPatch, never_stopped: Any
):
    command = [*RUN, f"data.root={pictures}"]
    expected = never_stopped(*command)
    with monkeypatch.context() as patch:
        patch.setattr("mlops.data.prepare.prepare", lambda *_: die())
        with pytest.raises(Killed):
            hydra_command("train", *command)
    (cut_run,) = runs(workplace)
    assert not (cut_run / "last.pth").exists()
    assert hydra_command("train", f"resume={cut_run}").code == 0
    same(expected, cut_run)


def test_start_weights_may_be_gone(pictures: Path, workplace: Path, hydra_command: Command, at_step: Any):
    # Two runs that begin within one second would have no order.
    assert hydra_command("train", *RUN, f"data.root={pictures}", "training.epochs=1", "paths.outputs=first").code == 0
    start = Path("models/latest/best_model.pth").rename("start.pth")
    more = [f"model.weights={start}", "training.freeze_epochs=2", "seed=1"]
    at_step(6, terminate)
    assert hydra_command("train", *RUN, f"data.root={pictures}", *more).code == 143
    at_step(-1, die)
    (run,) = runs(workplace)
    told = checkpoint.read_metadata(run / "last.pth")["start"]
    start.unlink()
    done = hydra_command("train", "resume=latest")
    assert done.code == 0, done.err
    assert checkpoint.read_metadata(Path("models/latest/best_model.pth"))["start"] == told


def test_a_finished_run_is_left_as_it_is(pictures: Path, workplace: Path, hydra_command: Command):
    assert hydra_command("train", *RUN, f"data.root={pictures}").code == 0
    (run,) = runs(workplace)
    before = (run / "best_model.pth").read_bytes()
    done = hydra_command("train", "resume=latest")
    assert done.code == 0
    assert "this run has finished; there is nothing to go on with" in done.err
    assert (run / "best_model.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ("latest", "resume=latest: outputs holds no run; start one, or name its folder"),
        (
            "outputs/nowhere",
            "resume=outputs/nowhere: no such folder; name a run's: outputs/<date>/<time>-<id>, or latest",
        ),
        (".", "resume=.: is not the folder of a run: neither last.pth nor .hydra/composed.json is there"),
    ],
)
def test_a_run_that_is_not_there_is_one_line(wanted: str, problem: str, workplace: Path, hydra_command: Command):
    done = hydra_command("train", f"resume={wanted}")
    assert done.code == 2
    (line,) = done.errors
    assert line.startswith(problem)
    assert list(workplace.iterdir()) == []


def test_another_root_config_is_another_run(stopped: Path, workplace: Path, hydra_command: Command):
    (workplace / "own").mkdir()
    (workplace / "own" / "mine.yaml").write_text("defaults:\n  - config\n  - _self_\nseed: 7\n")
    done = hydra_command("train", "--config-dir", "own", "--config-name", "mine", f"resume={stopped}")
    assert done.code == 2
    assert done.errors == [f"--config-name=mine: the run in {stopped} was started without it; leave it out"]


def test_latest_is_the_newest_that_was_saved(stopped: Path, pictures: Path, workplace: Path, hydra_command: Command):
    refused = hydra_command("train", *RUN, f"data.root={pictures}", "run.mirror=/no/such/folder")
    assert refused.code == 2
    assert len(runs(workplace)) == 2
    assert hydra_command("train", "resume=latest").code == 0
    assert (stopped / "best_model.pth").exists()


def test_a_trial_that_goes_on_is_still_one_of_many(
    pictures: Path, workplace: Path, hydra_command: Command, at_step: Any
):
    at_step(5, terminate)
    assert hydra_command("train", "--multirun", *RUN, f"data.root={pictures}", "seed=1,2").code == 143
    at_step(-1, die)
    assert hydra_command("train", "resume=latest").code == 0
    assert not (workplace / "models/latest/best_model.pth").exists()


def tracked_as(folder: Path, run_id: str, kind: str = "run") -> None:
    """What W&B leaves in a run's folder."""
    (folder / "wandb" / f"{kind}-20260101_120000-{run_id}").mkdir(parents=True)


@pytest.fixture
def started_by_an_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the trial `trial-5` of a sweep."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "trial-5")


AGAIN = (*RUN, "training.optimizer.lr=0.004")


@pytest.mark.parametrize("kind", ["run", "offline-run"])
def test_a_trial_that_an_agent_starts_again_goes_on_where_it_was_and_once_finished_stays_so(
    kind: str, stopped: Path, workplace: Path, pictures: Path, hydra_command: Command, started_by_an_agent: None
):
    tracked_as(stopped, "trial-5", kind)
    done = hydra_command("train", *AGAIN, f"data.root={pictures}")
    assert done.code == 0, done.err
    assert f"going on in {stopped.relative_to(workplace)} after epoch 1, step 2 of 4" in done.err
    assert runs(workplace) == [stopped]
    assert checkpoint.read_metadata(stopped / "last.pth")["resume"]["finished"]

    again = hydra_command("train", *AGAIN, f"data.root={pictures}")
    assert again.code == 0
    assert "this run has finished; there is nothing to go on with" in again.err
    assert runs(workplace) == [stopped]


def test_a_trial_that_is_started_again_with_other_settings_is_refused(
    stopped: Path, pictures: Path, hydra_command: Command, started_by_an_agent: None
):
    tracked_as(stopped, "trial-5")
    done = hydra_command("train", *AGAIN, f"data.root={pictures}", "training.optimizer.lr=0.1")
    assert done.code == 2
    (line,) = done.errors
    assert line.startswith(f"training.optimizer.lr=0.1: the run in {stopped.relative_to(Path.cwd())} has 0.004")


def test_a_trial_goes_on_with_the_newest_run_of_its_id_that_was_saved(
    workplace: Path, started_by_an_agent: None, monkeypatch: pytest.MonkeyPatch
):
    composed: dict[str, Any] = {"resume": None, "run": {"mirror": None}, "paths": {"outputs": "outputs"}}
    assert resume.wanted_run(composed) is None
    folders = [Path("outputs", "2026-01-01", f"12-00-0{number}-abcd") for number in range(5)]
    for folder in folders:
        tracked_as(folder, "another" if folder == folders[-1] else "trial-5")
    (folders[-1] / "last.pth").touch()
    # In neither of its own is there anything to go on from.
    assert resume.wanted_run(composed) is None
    for folder in folders[:4]:
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "composed.json").touch()
    assert resume.wanted_run(composed) == str(folders[3])
    for folder in folders[:2]:
        (folder / "last.pth").touch()
    assert resume.wanted_run(composed) == str(folders[1])

    assert resume.wanted_run(composed | {"resume": "latest"}) == "latest"
    (workplace / "mirror").mkdir()
    assert resume.wanted_run(composed | {"run": {"mirror": str(workplace / "mirror")}}) == str(folders[1])
    monkeypatch.delenv("WANDB_SWEEP_ID")
    assert resume.wanted_run(composed) is None


@pytest.mark.parametrize(
    "run_id", ["5", "trial", "trial-*", "trial-?", "[t]rial-5", "*", "../trial-5", "20260101_120000-trial-5"]
)
def test_an_id_finds_the_run_of_just_that_id(run_id: str, tmp_path: Path):
    folder = tmp_path / "2026-01-01" / "12-00-00-abcd"
    tracked_as(folder, "trial-5")
    (folder / "last.pth").touch()
    assert resume.find_tracked("trial-5", tmp_path) == folder
    assert resume.find_tracked(run_id, tmp_path) is None


def _forge(
    path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any], dict[str, torch.Tensor]], None]
) -> None:
    """Change a last.pth and make its digests anew, as anybody can."""
    read = checkpoint.read(path)
    story = json.loads(json.dumps(read.metadata))
    weights, tensors = dict(read.state_dict), dict(read.resume_tensors)
    change(weights, story, tensors)
    for made in ("format", "digest", "weights_digest", "resume_digest"):
        story.pop(made, None)
    checkpoint.save(path, weights, story, tensors)


def _first(tensors: dict[str, torch.Tensor], prefix: str) -> str:
    return next(name for name in tensors if name.startswith(prefix))


FORGERIES: dict[str, Callable[[dict[str, torch.Tensor], dict[str, Any], dict[str, torch.Tensor]], Any]] = {
    "an epoch that was not": lambda w, s, t: s["resume"].update(epoch=3),
    "a negative epoch": lambda w, s, t: s["resume"].update(epoch=-1),
    "a step beyond the epoch": lambda w, s, t: s["resume"].update(step=77),
    "no step, but losses": lambda w, s, t: s["resume"].update(step=0),
    "losses of more steps": lambda w, s, t: t.update({"epoch.losses": torch.zeros(60)}),
    "no labels": lambda w, s, t: t.pop("epoch.labels"),
    "a class that is none": lambda w, s, t: t.update({"epoch.labels": t["epoch.labels"] + 9}),
    "a moment of another shape": lambda w, s, t: t.update({_first(t, "optimizer.0.exp_avg"): torch.zeros(3)}),
    "a moment that is missing": lambda w, s, t: t.pop(_first(t, "optimizer.0.exp_avg")),
    "a parameter that is none": lambda w, s, t: t.update({"optimizer.zz.exp_avg": torch.zeros(3)}),
    "no settings of the optimizer": lambda w, s, t: s["resume"]["optimizer"].update(groups=[]),
    "a setting that is text": lambda w, s, t: s["resume"]["optimizer"]["groups"][0].update(lr="0.1"),
    "betas that are one": lambda w, s, t: s["resume"]["optimizer"]["groups"][0].update(betas=[0.9]),
    "a scaler": lambda w, s, t: s["resume"].update(scaler={"scale": 1.0}),
    "weights that are missing": lambda w, s, t: w.pop(next(iter(w))),
    "best weights that are missing": lambda w, s, t: t.pop(_first(t, "best.")),
    "weights of another network": lambda w, s, t: w.update({next(iter(w)): torch.zeros(7)}),
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_state_is_one_line_and_trains_nothing(kind: str, stopped: Path, hydra_command: Command):
    _forge(stopped / "last.pth", FORGERIES[kind])
    before = (stopped / "last.pth").read_bytes()
    done = hydra_command("train", f"resume={stopped}")
    assert done.code == 2, done.err
    assert 1 <= len(done.errors) <= 2
    assert "Traceback" not in done.err
    assert (stopped / "last.pth").read_bytes() == before


def test_resume_and_multirun_exclude_each_other(workplace: Path, hydra_command: Command):
    done = hydra_command("train", "--multirun", "resume=latest", "seed=1,2")
    assert done.code == 2
    assert done.errors == ["resume: --multirun starts many runs; go on with one of them at a time"]


def test_a_damaged_last_pth_is_one_line_and_stays_for_whoever_wants_to_look(stopped: Path, hydra_command: Command):
    last = stopped / "last.pth"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    done = hydra_command("train", f"resume={stopped}")
    assert done.code == 2
    (line,) = done.errors
    assert "does not match its digest; it was changed or damaged" in line
    assert last.read_bytes() == content


def test_another_place_is_named_beforehand_and_told_in_the_file(
    stopped: Path, hydra_command: Command, monkeypatch: pytest.MonkeyPatch
):
    from mlops import provenance

    real = provenance.describe_environment
    monkeypatch.setattr(provenance, "describe_environment", lambda *values: real(*values) | {"cpu_capability": "NEON"})
    done = hydra_command("train", f"resume={stopped}")
    assert done.code == 0
    (line,) = [line for line in done.err.splitlines() if "goes on elsewhere" in line]
    assert "-> NEON" in line
    told = checkpoint.read_metadata(stopped / "best_model.pth")
    assert told["environment"]["cpu_capability"] != "NEON"
    (place,) = told["resumed"]
    assert place["step"] == 6
    assert place["environment"]["cpu_capability"] == "NEON"


def test_two_processes_do_not_go_on_with_one_run(stopped: Path, hydra_command: Command):
    with only_one(stopped):
        done = hydra_command("train", f"resume={stopped}")
    assert done.code == 2
    assert done.errors == [f"{stopped.relative_to(Path.cwd())}: another process is at work in it; stop that one first"]
    assert hydra_command("train", f"resume={stopped}").code == 0


def test_weights_that_are_not_finite_never_reach_last_pth(pictures: Path, workplace: Path, hydra_command: Command):
    more = ["training.optimizer._target_=torch.optim.SGD", "training.optimizer.lr=1e38", "training.save_every=1"]
    done = hydra_command("train", *RUN, f"data.root={pictures}", *more, "training.schedule.name=constant")
    assert done.code == 2
    (line,) = done.errors
    assert "learning rate of 1e+38; try a smaller training.optimizer.lr" in line
    (run,) = runs(workplace)
    saved = checkpoint.read(run / "last.pth")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved.state_dict.values())
    again = hydra_command("train", f"resume={run}")
    assert (again.code, again.errors) == (2, done.errors), "the same run meets the same end"


def start(*words: str, cwd: Path, cores: set[int] | None = None) -> subprocess.Popen[str]:
    # The child inherits it.
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or before)
    try:
        command = [sys.executable, "-m", "mlops.train", *words]
        return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux pins a process to a core")
def test_killed_for_real_and_resumed_in_another_folder_on_one_core_is_as_never_stopped(
    pictures: Path, workplace: Path, never_stopped: Any
):
    command = [*RUN, f"data.root={pictures}", "training.threads=2", "training.epochs=12", "training.save_every=3"]
    expected = never_stopped(*command)
    other = workplace / "other"
    other.mkdir()
    cut = start(*command, cwd=other)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(other.glob("outputs/*/*/best_model.pth")):
            time.sleep(0.001)
        time.sleep(random.Random(workplace.name).random() / 10)
    finally:
        cut.kill()
        cut.communicate()
    assert cut.returncode == -signal.SIGKILL, "it was too quick for this test"
    moved = shutil.move(runs(other)[0], workplace / "moved")
    core = next(iter(os.sched_getaffinity(0)))
    resumed = start(f"resume={moved}", cwd=other, cores={core})
    out, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, out
    same(expected, Path(moved))


def test_a_kill_at_any_moment_leaves_both_files_whole(tmp_path: Path):
    """Fifty processes that do nothing but save are killed at moments drawn at random."""
    found = subprocess.run(
        [sys.executable, ROOT / "tests" / "kill_loop.py", tmp_path, "50"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["kills"] == 50
    assert told["unreadable"] == 0
    # Else the moments would not be those of saving.
    assert told["killed_in_a_save"] >= 1


def test_a_signal_that_is_swallowed_where_it_arrives_stops_the_run_at_the_next_place(monkeypatch: pytest.MonkeyPatch):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        stopping.listen()

        class Swallows:
            def __del__(self) -> None:
                terminate()

        monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
        thing = Swallows()
        del thing  # an exception in __del__ goes nowhere
        assert stopping.heard() == signal.SIGTERM
        with pytest.raises(SystemExit, match="143"), bar("anything", 2) as progress:
            progress.advance(1)
    finally:
        stopping.listen()
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
