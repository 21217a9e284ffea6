"""Accuracy and training time of a recipe over several seeds, each a run of its own as a user starts it.

python benchmarks/accuracy.py digits
python benchmarks/accuracy.py gtsrb --root PATH --seeds 3
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from mlops.checkpoint import read_metadata
from mlops.config import DataConfig, SplitConfig
from mlops.data.prepare import build_index, prepare


def train(recipe: str, root: str | None, seed: int, folder: Path, more: list[str]) -> tuple[dict[str, float], float]:
    """The metrics of the kept epoch and the seconds the loop took."""
    overrides = [f"experiment={recipe}"] if recipe != "digits" else []
    overrides += [f"data.root={root}"] if root else []
    overrides += [f"seed={seed}", f"paths.outputs={folder}/{seed}", "promote=false", "tracking=off", *more]
    subprocess.run([sys.executable, "-m", "mlops.train", *overrides], check=True, capture_output=True)
    (run,) = (folder / str(seed)).glob("*/*")
    seconds = re.search(r"trained [\d,]+ images in ([\d.]+) s", (run / "train.log").read_text())
    assert seconds is not None
    return read_metadata(run / "best_model.pth")["metrics"], float(seconds[1])


def compare_with_scikit_learn() -> None:
    """Two classical methods on the same split of the digits, at the 8 x 8 pixels that they have."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    with tempfile.TemporaryDirectory() as folder:
        config = DataConfig(name="digits", image_size=8, split=SplitConfig(0.1, 0.2))
        data = prepare(build_index(config), Path(folder))
        pixels = {
            split: data.images(split)[..., 0].reshape(len(data.labels(split)), -1) / 16 for split in ("train", "test")
        }
        for name, method in (("3-NN", KNeighborsClassifier(3)), ("SVM", SVC(gamma=0.001))):
            method.fit(pixels["train"], data.labels("train"))
            print(f"{name:>6} {'':>13} {method.score(pixels['test'], data.labels('test')):>14.2%}")


def main() -> None:
    """Train with each seed and print a line for each and their mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=["digits", "gtsrb"])
    parser.add_argument("--root", help="data.root of the images")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="further Hydra overrides, after --")
    arguments = parser.parse_args()
    rows = []
    print(f"{'seed':>6} {'val_Accuracy':>13} {'test_Accuracy':>14} {'training':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            metrics, seconds = train(arguments.recipe, arguments.root, seed, Path(folder), arguments.overrides)
            rows.append((metrics["val_Accuracy"], metrics["test_Accuracy"], seconds))
            print(f"{seed:>6} {rows[-1][0]:>13.2%} {rows[-1][1]:>14.2%} {seconds:>8.1f} s", flush=True)
    val, test, seconds_of = zip(*rows, strict=True)
    spread = (statistics.stdev(values) if len(rows) > 1 else 0.0 for values in (val, test))
    print(
        f"{'mean':>6} {statistics.mean(val):>13.2%} {statistics.mean(test):>14.2%} "
        f"{statistics.mean(seconds_of):>8.1f} s"
    )
    print(f"{'stdev':>6} {next(spread):>13.2%} {next(spread):>14.2%}   (longest {max(seconds_of):.1f} s)")
    if arguments.recipe == "digits":
        compare_with_scikit_learn()


if __name__ == "__main__":
    main()
