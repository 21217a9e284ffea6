"""Kill processes while they save, again and again, and read what each leaves. `python tests/kill_loop.py FOLDER COUNT`.

A process is forked from one that has imported torch: fifty imports would take minutes.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from mlops import checkpoint
from mlops.errors import MlopsError
from samples import story

NAMES = ("best_model.pth", "last.pth")


def save_for_ever(folder: Path) -> None:
    """Save both files, each time with other weights."""
    told = story()
    told["history"] = [told["metrics"] | {"epoch": epoch} for epoch in range(1, 51)]
    told["epoch_digests"] *= 50
    number = 0
    while True:
        number += 1
        weights = {f"layer{index}": torch.full((64, 1024), float(number)) for index in range(4)}
        for name in NAMES:
            checkpoint.save(folder / name, weights, told | {"step": number})


def main(folder: Path, count: int) -> None:
    torch.set_num_threads(1)
    draw, unreadable, in_a_save = random.Random(0), 0, 0
    for _ in range(count):
        child = os.fork()
        if child == 0:
            save_for_ever(folder)
        while not all((folder / name).exists() for name in NAMES):
            time.sleep(0.001)
        time.sleep(draw.random() * 0.1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = list(folder.glob(".*.tmp"))
        in_a_save += bool(left)
        for name in NAMES:
            try:
                found = checkpoint.read(folder / name)
                number = float(found.metadata["step"])
                assert all(bool((tensor == number).all()) for tensor in found.state_dict.values())
            except (MlopsError, AssertionError) as error:
                print(error, file=sys.stderr)
                unreadable += 1
        for path in left:
            path.unlink()
    print(json.dumps({"kills": count, "unreadable": unreadable, "killed_in_a_save": in_a_save}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
