"""Time to 95 % validation accuracy on unseen tracks: two other ways and ours, side by side in one run.

    python benchmarks/time_to_accuracy.py --root PATH

The course recipe is what most course projects start from: Pillow in a Dataset, a DataLoader with no workers, 64 pixels,
tinycnn, Adam with 1e-4, batch 16. The torchvision way is a careful one: our network, size, optimizer, schedule,
precision, batch and augmentation, but with torchvision's v2 transforms on single images in a DataLoader with two
persistent workers. The clock of both runs only while they train: their images are unpacked, and their validation images
decoded, before; they are judged with the clock stopped. Our clock runs from the archive: `preprocess-data` as a command
of its own, training and every validation.
"""

import argparse
import csv
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from mlops import targets
from mlops.config import AugmentConfig, ScheduleConfig
from mlops.data.augment import build_augment
from mlops.data.batches import Batch, Batches
from mlops.data.prepare import Prepared, open_prepared
from mlops.data.tree import open_tree
from mlops.evaluation.evaluate import evaluate_split
from mlops.models import TinyCNN
from mlops.models.build import build_model
from mlops.training.device import pick_autocast
from mlops.training.loop import Metrics, Step, fit, make_step
from mlops.training.schedule import build_schedule

CPU = torch.device("cpu")
GOAL = 0.95
SIGNS = AugmentConfig(rotate=10, translate=0.1, scale=0.15, shear=5, brightness=0.4, contrast=0.4)
# The same in torchvision's words, a single image at a time.
SIGNS_V2 = v2.Compose(
    [
        v2.ToImage(),
        v2.Resize((32, 32), antialias=True),
        v2.RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.85, 1.15), shear=5),
        v2.ColorJitter(brightness=0.4, contrast=0.4),
        v2.ToDtype(torch.float32, scale=True),
    ]
)


class Reached(Exception):  # noqa: N818 - no error
    """The goal, and when."""


class Files(Dataset[tuple[torch.Tensor, int]]):
    """What most projects write: open, convert, transform, at every access."""

    def __init__(self, folder: Path, rows: list[dict[str, str]], transform: Callable[[Image.Image], Any]) -> None:
        self.rows, self.folder, self.transform = rows, folder, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        row = self.rows[position]
        image = Image.open(self.folder / row["path"]).convert("RGB")
        return self.transform(image), int(row["label"])


def course_recipe(folder: Path, rows: list[dict[str, str]], classes: int, longest: float) -> float:
    """Seconds until 95 %, or `longest` when it was not reached by then."""
    torch.manual_seed(0)
    transform = transforms.Compose([transforms.Resize((64, 64)), transforms.ToTensor()])
    training = Files(folder, [row for row in rows if row["split"] == "train"], transform)
    held_out = Files(folder, [row for row in rows if row["split"] == "val"], transform)
    val = [
        (torch.stack([held_out[i][0] for i in part]), torch.tensor([held_out[i][1] for i in part]))
        for part in np.array_split(range(len(held_out)), 12)
    ]
    model = TinyCNN(classes, image_size=64)
    optimizer, loss_function = torch.optim.Adam(model.parameters(), lr=1e-4), nn.CrossEntropyLoss()
    loader = DataLoader(training, batch_size=16, shuffle=True, num_workers=0)
    clock, steps, quarter = 0.0, 0, len(loader) // 4
    while True:
        started = time.perf_counter()
        for images, labels in loader:
            model.train()
            optimizer.zero_grad()
            loss_function(model(images), labels).backward()
            optimizer.step()
            steps += 1
            if steps % quarter == 0:
                clock += time.perf_counter() - started
                model.eval()
                with torch.inference_mode():
                    accuracy = sum(int((model(x).argmax(1) == y).sum()) for x, y in val) / len(held_out)
                print(f"  course recipe: epoch {steps / len(loader):.2f}, {clock:6.1f} s, {accuracy:.2%}", flush=True)
                if accuracy >= GOAL or clock > longest:
                    return clock
                started = time.perf_counter()
        clock += time.perf_counter() - started


def torchvision_way(folder: Path, rows: list[dict[str, str]], data: Prepared, epochs: int) -> float:
    """Seconds until 95 %; infinite when `epochs` did not reach it."""
    training = Files(folder, [row for row in rows if row["split"] == "train"], SIGNS_V2)
    loader = DataLoader(training, batch_size=64, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
    model, step = network_and_step(data, epochs * len(loader))
    mean, std = (torch.tensor(data.manifest[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    val = Batches.of(data, "val", CPU)
    clock = 0.0
    for epoch in range(epochs):
        started = time.perf_counter()
        for position, (images, labels) in enumerate(loader):
            batch = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
            step(Batch(batch, labels, labels, epoch * len(loader) + position))
        clock += time.perf_counter() - started
        accuracy = evaluate_split(model, val.evaluation(), "val", len(data.classes))["val_Accuracy"]
        print(f"  torchvision v2, 2 workers: epoch {epoch + 1}, {clock:6.1f} s, {accuracy:.2%}", flush=True)
        if accuracy >= GOAL:
            return clock
    return float("inf")


def ours(root: str, processed: Path, epochs: int) -> float:
    """Seconds until 95 %, from the archive on; infinite when `epochs` did not reach it."""
    started = time.perf_counter()
    data = preprocess(root, processed)
    train, val = Batches.of(data, "train", CPU), Batches.of(data, "val", CPU)
    model, step = network_and_step(data, epochs * train.steps(64))
    augment = build_augment(SIGNS, len(data.classes))

    def after_epoch(metrics: Metrics) -> None:
        seconds = time.perf_counter() - started
        print(
            f"  ours ({epochs} epochs): epoch {metrics['epoch']}, {seconds:6.1f} s, {metrics['val_Accuracy']:.2%}",
            flush=True,
        )
        if metrics["val_Accuracy"] >= GOAL:
            raise Reached(seconds)

    try:
        fit(
            epochs=epochs,
            batches=lambda epoch: train.training(epoch, 64, 0, augment),
            step=step,
            evaluate=lambda: evaluate_split(model, val.evaluation(), "val", len(data.classes)),
            after_step=lambda *_: None,
            after_epoch=after_epoch,
            stop=lambda: False,
            num_classes=len(data.classes),
        )
    except Reached as reached:
        return float(reached.args[0])
    return float("inf")


def network_and_step(data: Prepared, steps: int) -> tuple[nn.Module, Step]:
    """The network of the recipe and its step, for a run of `steps`."""
    node = {"_target_": "mlops.models.SignNet"}
    model = build_model(node, targets.MODELS, num_classes=len(data.classes), image_size=32, channels_last=True)
    _, autocast, scaler = pick_autocast("auto", CPU)
    step = make_step(
        forward=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.05),
        schedule=build_schedule(ScheduleConfig(), steps),
        loss_function=nn.CrossEntropyLoss(label_smoothing=0.05, reduction="none"),
        autocast=autocast,
        scaler=scaler,
        set_mode=lambda _: model.train(),
        after_update=lambda: None,
        parts=1,
        clip_norm=None,
        seed=0,
    )
    return model, step


def preprocess(root: str, processed: Path) -> Prepared:
    """The images of the archive, prepared by the command that a user types."""
    overrides = ["data=gtsrb", f"data.root={root}", f"paths.processed={processed}"]
    subprocess.run([sys.executable, "-m", "mlops.preprocess", *overrides], check=True, capture_output=True)
    (folder,) = processed.glob("gtsrb-*")
    return open_prepared(folder)


def unpack(root: str, data: Prepared, folder: Path) -> list[dict[str, str]]:
    """The images of the index as files, as the recipe wants them."""
    tree = open_tree(Path(root))
    rows = list(csv.DictReader(io.StringIO((data.folder / "index.csv").read_text())))
    for row in rows:
        (folder / row["path"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / row["path"]).write_bytes(tree.read(row["path"]))
    return rows


def main() -> None:
    """Run both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="GTSRB as a folder, .tar or .zip")
    parser.add_argument(
        "--epochs",
        type=int,
        nargs="+",
        default=[6, 30],
        help="lengths of our run to try; the torchvision way gets the first",
    )
    parser.add_argument("--longest", type=float, default=3600, help="give the recipe up after this many seconds")
    parser.add_argument("--without-course-recipe", action="store_true", help="leave out the one that takes minutes")
    arguments = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for epochs in arguments.epochs:
            found[f"ours, training.epochs={epochs}"] = ours(arguments.root, folder / f"ours{epochs}", epochs)
        data = preprocess(arguments.root, folder / "for-the-recipe")
        rows = unpack(arguments.root, data, folder / "files")
        epochs = arguments.epochs[0]
        rivals = {f"torchvision v2, 2 workers, {epochs} epochs": torchvision_way(folder / "files", rows, data, epochs)}
        if not arguments.without_course_recipe:
            rivals["course-project recipe"] = course_recipe(
                folder / "files", rows, len(data.classes), arguments.longest
            )
    print(f"\nSeconds to {GOAL:.0%} validation accuracy on unseen tracks, {torch.get_num_threads()} threads")
    for label, seconds in rivals.items():
        print(f"  {label:<36} {seconds:8.1f} s")
    for label, seconds in found.items():
        ratios = ", ".join(f"{other / seconds:.1f}x as fast as {name}" for name, other in rivals.items())
        print(f"  {label:<36} {seconds:8.1f} s   {ratios}")


if __name__ == "__main__":
    main()
