"""What saving costs: the share of a training's time that goes into last.pth, within the same run, and how soon
`mlops info` has opened a file, beside what importing torch alone takes.

python benchmarks/saving.py --root PATH
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlops.training import saves

EPOCHS = 4


def train(root: str, folder: Path, save_every: int) -> tuple[float, float, int]:
    """Seconds of the training loop, seconds of these in `Saves.save_last`, and how many saves that were."""
    from mlops import train as entry
    from mlops.training import loop

    spent: list[float] = []
    total: list[float] = []
    save_last, fit = saves.Saves.save_last, loop.fit

    def timed_save(self: saves.Saves, *, finished: bool = False) -> None:
        started = time.perf_counter()
        save_last(self, finished=finished)
        if not finished:
            spent.append(time.perf_counter() - started)

    def timed_fit(*values: object, **named: object) -> None:
        started = time.perf_counter()
        fit(*values, **named)
        total.append(time.perf_counter() - started)

    saves.Saves.save_last, loop.fit = timed_save, timed_fit
    sys.argv = ["train", "experiment=gtsrb", f"data.root={root}", f"training.epochs={EPOCHS}", "tracking=off"]
    sys.argv += [f"training.save_every={save_every}", "promote=false"]
    sys.argv += [f"paths.{name}={folder / name}" for name in ("outputs", "processed", "models")]
    try:
        entry.main()
    finally:
        saves.Saves.save_last, loop.fit = save_last, fit
    # The first is written before the loop.
    return total[0], sum(spent[1:]), len(spent) - 1


def seconds_of(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Print a line for each run and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="data.root of GTSRB's images")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, shares = Path(name), list[float]()
        print(f"{'save_every':>10} {'loop':>8} {'saves':>6} {'in saves':>9} {'a save':>8} {'share':>7}")
        for _ in range(arguments.runs):
            for save_every in (0, 100):
                total, spent, count = train(arguments.root, folder, save_every)
                share = spent / (total - spent)
                shares += [share] if save_every else []
                print(
                    f"{save_every:>10} {total:>6.1f} s {count:>6} {spent:>7.2f} s {1000 * spent / count:>5.0f} ms "
                    f"{share:>7.2%}",
                    flush=True,
                )
        low, high = min(shares), max(shares)
        print(f"save_every=100: {statistics.median(shares):.2%} of the training's time ({low:.2%} to {high:.2%})")

        run = max((folder / "outputs").glob("*/*/best_model.pth"))
        info, torch = [], []
        for _ in range(4 * arguments.runs):
            info.append(seconds_of(sys.executable, "-m", "mlops.cli", "info", str(run)))
            torch.append(seconds_of(sys.executable, "-c", "import torch"))
        for title, times in (("mlops info", info), ("import torch alone", torch)):
            print(f"{title}: {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})")


if __name__ == "__main__":
    main()
