"""Versions of the data over a GCS emulator: loose images, one archive of them, and what was prepared from it.

python benchmarks/versioning.py [--images 5000]
"""

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from mlops.data.versioning import versions
from mlops.data.versioning.pointer import need_root
from mlops.data.versioning.prepared import pull_prepared, push_prepared

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from integration.bucket import BUCKET, Emulator

PROCESSED = Path("data/processed")


def main() -> None:
    """Send and fetch the same images in each form, on machines that have nothing but the repository."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3, help="of the fast forms; loose images are sent once")
    arguments = parser.parse_args()
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, Emulator(Path(folder) / "bucket") as emulator:
        os.environ.update(emulator.environment)
        pictures = make_pictures(arguments.images)
        size = sum(map(len, pictures.values())) / 1e6
        rows = {name: [] for name in ("loose images", "one .tar", "prepared")}
        for name, found in rows.items():
            for number in range(1 if name == "loose images" else arguments.repeats):
                root = Path(folder) / f"{name.replace(' ', '')}-{number}"
                set_up(root, emulator, f"gs://{BUCKET}/{root.name}")
                os.chdir(root)
                try:
                    found.append(measure(name, pictures))
                finally:
                    os.chdir(home)
                    shutil.rmtree(root)
    print(f"{arguments.images:,} images, {size:.1f} MB; record and send, then fetch on an empty machine, seconds")
    print(f"{'':<14}{'send':>9}{'fetch':>9}   {'lowest and highest':<28}{'send':>7}{'fetch':>7}")
    base = rows["loose images"][0]
    for name, found in rows.items():
        send, fetch = (statistics.median(pair[i] for pair in found) for i in (0, 1))
        spread = ", ".join(f"{min(p[i] for p in found):.1f} to {max(p[i] for p in found):.1f}" for i in (0, 1))
        print(f"{name:<14}{send:>9.1f}{fetch:>9.1f}   {spread:<28}{base[0] / send:>6.1f}x{base[1] / fetch:>6.1f}x")


def make_pictures(count: int) -> dict[str, bytes]:
    """PNG files of noise, some 48 x 48 pixels, in ten classes."""
    rng = np.random.default_rng(0)
    pictures = {}
    for number in range(count):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8).repeat(4, axis=0).repeat(4, axis=1)
        Image.fromarray(pixels).save(buffer, format="PNG")
        pictures[f"{number % 10}/{number:05}.png"] = buffer.getvalue()
    return pictures


def set_up(root: Path, emulator: Emulator, url: str) -> None:
    """A project with a bucket."""
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").write_text(
        f"[core]\n    remote = gcs\n['remote \"gcs\"']\n    url = {url}\n    verify = true\n"
    )
    (root / ".dvc" / "config.local").write_text(
        f"['remote \"gcs\"']\n    endpointurl = {emulator.url}\n    allow_anonymous_login = true\n"
    )
    (root / ".dvcignore").write_text("/data/processed\n")
    (root / ".gitignore").write_text("/data\n/processed\n")
    for words in (("init", "--quiet"), ("add", "--all")):
        subprocess.run(["git", *words], cwd=root, check=True)


def measure(name: str, pictures: dict[str, bytes]) -> tuple[float, float]:
    """Seconds to record and send, and seconds to fetch."""
    root, data = need_root(), Path("data")
    if name == "loose images":
        for path, content in pictures.items():
            (data / "pictures" / path).parent.mkdir(parents=True, exist_ok=True)
            (data / "pictures" / path).write_bytes(content)
    else:
        data.mkdir()
        with tarfile.open(data / "pictures.tar", "w") as archive:
            for path, content in pictures.items():
                member = tarfile.TarInfo(path)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    if name != "prepared":
        sent = seconds(lambda: versions.push(root))
        forget("data", ".dvc/cache", ".dvc/tmp")
        return sent, seconds(lambda: versions.pull(root))
    versions.push(root)
    settings = ["data=folder", "data.root=data/pictures.tar", "data.image_size=32"]
    subprocess.run([sys.executable, "-m", "mlops.preprocess", *settings], check=True, capture_output=True)
    sent = seconds(lambda: push_prepared(root, PROCESSED))
    forget("data", "processed", ".dvc/cache", ".dvc/tmp")
    return sent, seconds(lambda: pull_prepared(root, PROCESSED))


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def forget(*folders: str) -> None:
    """A machine that has nothing but the repository."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
