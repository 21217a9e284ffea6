"""Images a second of `preprocess-data`, from a cold start of the pool to the renamed folder.

python benchmarks/preprocessing.py --root PATH
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from mlops.config import DataConfig
from mlops.data.prepare import build_index, prepare


def main() -> None:
    """Prepare the same images several times, with one process and with two in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="GTSRB as a folder, .tar or .zip")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    config = DataConfig(source="gtsrb", root=arguments.root, image_size=32)
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(arguments.repeats):
        for workers, found in rates.items():
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                index = build_index(replace(config, workers=workers))
                prepare(index, Path(folder))
                found.append(len(index.items) / (time.perf_counter() - started))
    print(
        f"{len(index.items):,} images to 32 x 32 pixels: list, split, hash, decode, resize, write; "
        f"{os.cpu_count()} cores"
    )
    print(f"{'processes':>10} {'images/s (median)':>18} {'lowest':>8} {'highest':>8} {'ratio':>6}")
    base = statistics.median(rates[1])
    for workers, found in rates.items():
        middle = statistics.median(found)
        print(f"{workers:>10} {middle:>18,.0f} {min(found):>8,.0f} {max(found):>8,.0f} {middle / base:>6.2f}")


if __name__ == "__main__":
    main()
