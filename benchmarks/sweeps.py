"""What a sweep costs beside its training, and what stopping early saves.

python benchmarks/sweeps.py overhead                    30 trials of about 2 s: warm workers, and processes one by one
python benchmarks/sweeps.py stopping [--root PATH]      5 seeds: all trials in full, and with early_terminate

Training is what the trials' own logs say ("trained ... in 2.0 s"): the loop, its evaluations and saves. `stopping`
draws at random, so that both sweeps of a seed try the same settings, and counts epochs beside seconds: these have no
noise. With --seeds 1 --first-seed N the seeds run in processes of their own, side by side.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import optuna
import yaml

SPACE = {
    "training.optimizer.lr": {"distribution": "log_uniform_values", "min": 0.0003, "max": 0.1},
    "training.optimizer.weight_decay": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.2},
    "training.label_smoothing": {"min": 0.0, "max": 0.1},
    "training.batch_size": {"values": [32, 64, 128]},
}


def write_file(folder: Path, parameters: dict[str, object], trials: int, stop: dict[str, object] | None = None) -> Path:
    """A sweep file that draws at random."""
    told: dict[str, object] = {
        "program": "mlops.train",
        "method": "random",
        "run_cap": trials,
        "parameters": parameters,
    }
    told["metric"] = {"name": "val_Accuracy", "goal": "maximize"}
    if stop:
        told["early_terminate"] = stop
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


def run(folder: Path, *command: str) -> float:
    """Seconds that a command took."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.perf_counter() - started


def trained(folder: Path) -> list[float]:
    """Seconds of training of each run that came to its end."""
    logs = (path.read_text() for path in folder.glob("outputs/*-*-*/*/train.log"))
    return [float(found[1]) for text in logs if (found := re.search(r"trained [\d,]+ images in ([\d.]+) s", text))]


def overhead(trials: int, epochs: int, alone: int) -> None:
    """Print what a trial costs beside its training."""
    shared = [f"training.epochs={epochs}", "training.optimizer.lr=0.01"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(folder, "mlops.preprocess")
        warm, cold = folder / "warm", folder / "cold"
        for place in (warm, cold):
            place.mkdir()
            (place / "data").symlink_to(folder / "data")
        file = write_file(warm, {"seed": {"min": 0, "max": 10_000}}, trials)
        took = run(warm, "mlops.sweep", f"sweep.file={file}", *shared)
        seconds = trained(warm)
        print(f"{len(seconds)} trials, training {statistics.median(seconds):.2f} s (median; {min(seconds):.2f} to "
              f"{max(seconds):.2f})")  # fmt: skip
        print(
            f"warm workers: {took:.1f} s for {sum(seconds):.1f} s of training: {took / sum(seconds):.2f} times",
            flush=True,
        )
        for trial in range(alone):
            took_one = run(cold, "mlops.train", f"seed={trial}", "training.threads=2", *shared)
            print(f"  a process of its own: {took_one:.1f} s", flush=True)
            (cold / "times").open("a").write(f"{took_one}\n")
        times = [float(line) for line in (cold / "times").read_text().split()]
        alone_seconds = trained(cold)
        print(f"{alone} processes one by one: {sum(times):.1f} s for {sum(alone_seconds):.1f} s of training: "
              f"{sum(times) / sum(alone_seconds):.2f} times")  # fmt: skip


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S,%f")  # noqa: DTZ007 - differences only


def sweep(
    folder: Path, seed: int, trials: int, stop: dict[str, object] | None, shared: Sequence[str]
) -> tuple[float, float, int]:
    """The best validation accuracy of a sweep, its seconds of training, and its epochs."""
    folder.mkdir(parents=True)
    file = write_file(folder, SPACE, trials, stop)
    run(folder, "mlops.sweep", f"sweep.file={file}", f"sweep.seed={seed}", "tracking=off", *shared)
    study = optuna.load_study(study_name="space", storage=f"sqlite:///{folder / 'outputs/sweeps/space/study.db'}")
    seconds, epochs = 0.0, 0
    for trial in study.trials:
        log = (folder / trial.user_attrs["folder"] / "train.log").read_text()
        started = re.search(r"^(\S+ \S+) INFO mlops.train: training ", log, re.MULTILINE)
        ends = re.findall(r"^(\S+ \S+) INFO mlops.train: epoch ", log, re.MULTILINE)
        if not started or not ends:
            continue  # diverged at once
        seconds += (_time(ends[-1]) - _time(started[1])).total_seconds()
        epochs += len(ends)
    return study.best_value, seconds, epochs


def stopping(root: str | None, seeds: range, trials: int, min_iter: int, more: Sequence[str]) -> None:
    """Print how much stopping early saves, and what it costs."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    shared, stop = ["training.epochs=9"], {"type": "hyperband", "min_iter": min_iter, "eta": 3}
    if root is not None:
        # Small enough that five seeds take an hour.
        shared += ["data=gtsrb", f"data.root={root}", "data.image_size=32", "model.width=16"]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        shared += [f"paths.processed={base / 'processed'}", *more]
        for seed in seeds:
            full = sweep(base / f"full-{seed}", seed, trials, None, shared)
            early = sweep(base / f"early-{seed}", seed, trials, stop, shared)
            rows.append((100 * (early[0] - full[0]), early[1] / full[1], early[2] / full[2]))
            print(f"seed {seed}: best {full[0]:.4f} in full, {early[0]:.4f} stopped early ({rows[-1][0]:+.2f} points); "
                  f"{full[1]:.0f} s and {early[1]:.0f} s ({rows[-1][1]:.0%}), {full[2]} and {early[2]} epochs "
                  f"({rows[-1][2]:.0%})", flush=True)  # fmt: skip
    points, seconds, epochs = zip(*rows, strict=True)
    print(f"{len(seeds)} seeds, {trials} trials each: {statistics.fmean(points):+.2f} points (worst "
          f"{min(points):+.2f}); time {statistics.median(seconds):.0%} ({min(seconds):.0%} to {max(seconds):.0%}), "
          f"epochs {statistics.median(epochs):.0%}")  # fmt: skip


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "stopping"))
    parser.add_argument("--root", help="GTSRB: a folder, .tar or .zip; the digits when left out")
    parser.add_argument("--trials", type=int, help="30 for overhead, 16 for stopping")
    parser.add_argument("--epochs", type=int, default=6, help="of a trial of overhead: about 2 s")
    parser.add_argument("--alone", type=int, default=6, help="processes started one by one")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--min-iter", type=int, default=1, help="epochs after which stopping may first stop a trial")
    parser.add_argument("--override", action="append", default=[], help="for all trials of stopping; repeatable")
    asked = parser.parse_args()
    if asked.what == "overhead":
        overhead(asked.trials or 30, asked.epochs, asked.alone)
    else:
        seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
        stopping(asked.root, seeds, asked.trials or 16, asked.min_iter, asked.override)


if __name__ == "__main__":
    main()
