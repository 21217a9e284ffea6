"""How long `mlops data check` takes, and how the search for near-identical pictures grows with their number.

python benchmarks/data_check.py --root PATH
"""

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mlops.data.checking.check import check_source, describe_source
from mlops.data.checking.neighbours import near
from mlops.data.checking.phash import Hashes

# Each thing is pictured so many times, in copies that differ from the first in so many bits, and from each other in
# twice as many.
CLUSTER, BITS = 5, 3


def main() -> None:
    """Check the images of `--root`, then search among ever more made hashes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="images as a folder, .tar or .zip")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--largest", type=int, default=1_000_000)
    arguments = parser.parse_args()
    check(arguments.root, arguments.repeats)
    grow(arguments.largest)


def check(root: str, repeats: int) -> None:
    """Seconds from the name of the source to the written page."""
    seconds = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            checked = check_source(describe_source(root, layout=None, group=None, csv=None), Path(folder))
            seconds.append(time.perf_counter() - started)
            megabytes = checked.page.stat().st_size / 1e6
    values = checked.values
    alike = ", ".join(f"{found['count']} {kind}" for kind, found in values["alike"].items())
    print(f"{values['images']:,} images, {os.cpu_count()} cores: list, hash, decode, compare, write a page")
    print(
        f"{'seconds (median)':>18} {'lowest':>8} {'highest':>8} {'images/s':>9} {'page, MB':>9} {'peak memory, MB':>16}"
    )
    middle = statistics.median(seconds)
    unit = 1e6 if sys.platform == "darwin" else 1e3
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(
        f"{middle:>18.1f} {min(seconds):>8.1f} {max(seconds):>8.1f} {values['images'] / middle:>9,.0f} "
        f"{megabytes:>9.2f} {peak:>16,.0f}"
    )
    print(f"near-identical pairs: {alike}; {values['compared']['looked at']:,} looked at")


def grow(largest: int) -> None:
    """Comparisons and seconds of the search, and how many of the pairs that are there it finds."""
    print(f"\nthings pictured {CLUSTER} times, copies {BITS} bits from the first, each a group of its own")
    print(f"{'pictures':>10} {'compared':>14} {'of all pairs':>13} {'a picture':>10} {'seconds':>8} {'found':>7}")
    rng = np.random.default_rng(0)
    for count in (10_000, 30_000, 100_000, 300_000, 1_000_000):
        if count > largest:
            break
        values = clusters(count, rng)
        started = time.perf_counter()
        found = near(values, [np.arange(count)])
        seconds = time.perf_counter() - started
        things = found.pairs // CLUSTER
        share = np.count_nonzero(things[:, 0] == things[:, 1]) / (count * (CLUSTER - 1) / 2)
        print(
            f"{count:>10,} {found.compared:>14,} {found.compared / (count * (count - 1) / 2):>13.3%} "
            f"{found.compared / count:>10.0f} {seconds:>8.1f} {share:>7.1%}"
        )


def clusters(count: int, rng: np.random.Generator) -> Hashes:
    """uint64 `[count]`: each of count / CLUSTER hashes, and copies of it with a few bits turned."""
    values = np.repeat(rng.integers(0, 2**63, count // CLUSTER, dtype=np.uint64), CLUSTER)
    for _ in range(BITS):
        turned = np.uint64(1) << rng.integers(0, 63, count, dtype=np.uint64)
        values = np.where(np.arange(count) % CLUSTER == 0, values, values ^ turned)
    return values


if __name__ == "__main__":
    main()
