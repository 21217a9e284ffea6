"""How much memory do preparing and training need, and does it grow with the data?

    python benchmarks/memory.py                 # 1x and 10x of 2,000 images of 64 x 64 pixels

Each command runs as its own process on an archive of noise that is made for it. While it runs, the anonymous memory
(`RssAnon` in /proc/<pid>/status) of the process and of all the processes that it starts is summed up every 10 ms, and
the highest sum is printed. Anonymous memory is what a program cannot do without; pages of mapped files (`RssFile`: the
prepared arrays, the libraries) are the page cache's, which the kernel takes back whenever something else wants them.
Linux only. The figures do not suffer from other work on the machine.

What does grow is the list of the images (path, hash, group, split): one to two kilobytes each, whatever their size.
"""

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

CLASSES = 10


def main() -> None:
    """Prepare and train on a little data and on ten times as much; print the peaks side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="images of 1x")
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--times", type=int, default=10)
    arguments = parser.parse_args()
    peaks: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, arguments.times):
            count = arguments.images * times
            archive = Path(folder) / f"noise{times}.tar"
            write_archive(archive, count, arguments.side)
            data = ["data=folder", f"data.root={archive}", f"data.image_size={arguments.side}", "data.workers=2"]
            # Whole batches everywhere, also of the little data.
            data += ["data.split.val=0.2", "data.split.test=0.2"]
            training = ["training.epochs=1", "model.width=8", "tracking=off", "training.threads=1"]
            for name, command in {
                "preparing, 2 processes": ["mlops.preprocess", *data],
                "an epoch, validation, test": ["mlops.train", *data, *training],
            }.items():
                peaks.setdefault(name, []).append(peak_of([sys.executable, "-m", *command], Path(folder)))
            archive.unlink()
    pixels = arguments.images * arguments.side**2 * 3 / 1e6
    print(f"peak of anonymous memory, MB; 1x is {arguments.images:,} images, {pixels:,.0f} MB of pixels")
    print(f"{'':<28} {'1x':>8} {f'{arguments.times}x':>8} {'ratio':>6}")
    for name, (one, many) in peaks.items():
        print(f"{name:<28} {one:>8,.0f} {many:>8,.0f} {many / one:>6.2f}")


def write_archive(path: Path, count: int, side: int) -> None:
    """`count` images of noise as `<class>/<n>.ppm`."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            data = f"P6 {side} {side} 255\n".encode() + rng.bytes(3 * side * side)
            member = tarfile.TarInfo(f"{number % CLASSES}/{number}.ppm")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def peak_of(command: list[str], folder: Path) -> float:
    """The highest sum of anonymous memory, in MB, of a command and all that it started."""
    run = subprocess.Popen(
        command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    highest = 0
    while run.poll() is None:
        highest = max(highest, sum(anonymous(pid) for pid in session(run.pid)))
        time.sleep(0.01)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}: {run.stderr.read() if run.stderr else ''}")
    return highest / 1000


def session(leader: int) -> list[int]:
    """All processes of the session that `leader` began."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # After the command's name in brackets: state, parent, group, session.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            if int(fields[3]) == leader:
                found.append(int(entry.name))
    return found


def anonymous(pid: int) -> int:
    """RssAnon in kB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    main()
