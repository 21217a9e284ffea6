"""Time to 95 % validation accuracy on unseen tracks: three other ways and ours, side by side in one run.

    python benchmarks/time_to_accuracy.py --root PATH

The clock runs from the archive to the validation that reaches 95 %, for all alike: unpacking or preparing, training,
and every validation. Imports are done before. The other ways:

- torchvision, plain: our network, size, augmentation, batch, optimizer and schedule, but images decoded, resized and
  augmented one at a time by torchvision's v2 transforms in a DataLoader with two persistent workers, and a loop as in
  torchvision's own references without their options: fp32, in the memory layout that comes by itself.
- torchvision, tuned: the same with our precision (bf16 where the processor has it) and channels-last.
- course project: what most start from. Pillow in a Dataset, a DataLoader with no workers, 64 pixels, tinycnn, Adam with
  1e-4, batch 16. Its clock alone stops for unpacking and validation, because it is judged four times an epoch.
"""

import argparse
import csv
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from mlops import targets
from mlops.config import AugmentConfig, DataConfig, ScheduleConfig
from mlops.data.augment import build_augment
from mlops.data.batches import Batch, Batches
from mlops.data.prepare import Prepared, build_index, prepare
from mlops.data.tree import open_tree
from mlops.evaluation.evaluate import evaluate_split
from mlops.models import TinyCNN
from mlops.models.build import build_model
from mlops.training.device import pick_autocast
from mlops.training.loop import Metrics, Position, Step, fit, make_step
from mlops.training.schedule import build_schedule

CPU = torch.device("cpu")
GOAL = 0.95
SIGNS = AugmentConfig(rotate=10, translate=0.1, scale=0.15, shear=5, brightness=0.4, contrast=0.4)
# The same in torchvision's words, a single image at a time.
SIGNS_V2 = v2.Compose(
    [
        v2.ToImage(),
        v2.Resize((32, 32), antialias=True),
        v2.RandomAffine(
            degrees=10, translate=(0.1, 0.1), scale=(0.85, 1.15), shear=5, interpolation=v2.InterpolationMode.BILINEAR
        ),
        v2.ColorJitter(brightness=0.4, contrast=0.4),
        v2.ToDtype(torch.float32, scale=True),
    ]
)
PLAIN_V2 = v2.Compose([v2.ToImage(), v2.Resize((32, 32), antialias=True), v2.ToDtype(torch.float32, scale=True)])


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
                print(f"  course project: epoch {steps / len(loader):.2f}, {clock:6.1f} s, {accuracy:.2%}", flush=True)
                if accuracy >= GOAL or clock > longest:
                    return clock
                started = time.perf_counter()
        clock += time.perf_counter() - started


def torchvision_way(root: str, data: Prepared, folder: Path, epochs: int, *, tuned: bool) -> float:
    """Seconds until 95 %; infinite when `epochs` did not reach it. `data` only says what is in which split."""
    started = time.perf_counter()
    rows = unpack(root, data, folder)
    loaders = {}
    for split, transform in (("train", SIGNS_V2), ("val", PLAIN_V2)):
        images = Files(folder, [row for row in rows if row["split"] == split], transform)
        training = split == "train"
        loaders[split] = DataLoader(
            images,
            batch_size=64 if training else 256,
            shuffle=training,
            drop_last=training,
            num_workers=2,
            persistent_workers=True,
        )
    steps = len(loaders["train"])
    model, step = network_and_step(data, epochs * steps, precision="auto" if tuned else "fp32", channels_last=tuned)
    mean, std = (torch.tensor(data.manifest[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    layout = torch.channels_last if tuned else torch.contiguous_format

    def batches(split: str, first: int) -> Iterator[Batch]:
        for position, (images, labels) in enumerate(loaders[split]):
            scaled = ((images - mean) / std).contiguous(memory_format=layout)
            yield Batch(scaled, labels, labels, first + position)

    for epoch in range(epochs):
        for batch in batches("train", epoch * steps):
            step(batch)
        accuracy = evaluate_split(model, batches("val", 0), "val", len(data.classes))["val_Accuracy"]
        seconds = time.perf_counter() - started
        way = "tuned" if tuned else "plain"
        print(f"  torchvision, {way}: epoch {epoch + 1}, {seconds:6.1f} s, {accuracy:.2%}", flush=True)
        if accuracy >= GOAL:
            return seconds
    return float("inf")


def ours(root: str, processed: Path, epochs: int) -> float:
    """Seconds until 95 %, from the archive on; infinite when `epochs` did not reach it."""
    started = time.perf_counter()
    data = preprocess(root, processed)
    train, val = Batches.of(data, "train", CPU), Batches.of(data, "val", CPU)
    model, step = network_and_step(data, epochs * train.steps(64), precision="auto", channels_last=True)
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
            Position(),
            epochs=epochs,
            batches=lambda epoch, first: train.training(epoch, 64, 0, augment, first),
            step=step,
            learning_rate=lambda *_: 0.01,
            evaluate=lambda: evaluate_split(model, val.evaluation(), "val", len(data.classes)),
            after_step=lambda *_: None,
            after_epoch=after_epoch,
            stop=lambda: False,
            num_classes=len(data.classes),
        )
    except Reached as reached:
        return float(reached.args[0])
    return float("inf")


def network_and_step(
    data: Prepared, steps: int, *, precision: Literal["auto", "fp32"], channels_last: bool
) -> tuple[nn.Module, Step]:
    """The network of the recipe and its step, for a run of `steps`."""
    node = {"_target_": "mlops.models.SignNet"}
    model = build_model(node, targets.MODELS, num_classes=len(data.classes), image_size=32, channels_last=channels_last)
    _, autocast, scaler = pick_autocast(precision, CPU)
    step = make_step(
        forward=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.05),
        schedule=build_schedule(ScheduleConfig(), steps),
        loss_function=nn.CrossEntropyLoss(label_smoothing=0.05, reduction="none"),
        autocast=autocast,
        scaler=scaler,
        set_mode=lambda _: model.train(),
        after_update=lambda _: None,
        accumulate=1,
        clip_norm=None,
        seed=0,
    )
    return model, step


def preprocess(root: str, processed: Path) -> Prepared:
    """The images of the archive, prepared as `invoke train` does it."""
    # One process: decoding workers would import this script, and with it torch and torchvision, once more each.
    return prepare(build_index(DataConfig(source="gtsrb", root=root, image_size=32, workers=1)), processed)


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
    parser.add_argument("--without-course-project", action="store_true", help="leave out the one that takes minutes")
    arguments = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for epochs in arguments.epochs:
            found[f"ours, training.epochs={epochs}"] = ours(arguments.root, folder / f"ours{epochs}", epochs)
        data, epochs = preprocess(arguments.root, folder / "splits"), arguments.epochs[0]
        rivals = {
            f"torchvision, {'tuned' if tuned else 'plain'}, {epochs} epochs": torchvision_way(
                arguments.root, data, folder / f"torchvision{tuned}", epochs, tuned=tuned
            )
            for tuned in (False, True)
        }
        if not arguments.without_course_project:
            rows = unpack(arguments.root, data, folder / "files")
            rivals["course project"] = course_recipe(folder / "files", rows, len(data.classes), arguments.longest)
    print(f"\nSeconds to {GOAL:.0%} validation accuracy on unseen tracks, {torch.get_num_threads()} threads")
    for label, seconds in rivals.items():
        print(f"  {label:<36} {seconds:8.1f} s")
    for label, seconds in found.items():
        ratios = ", ".join(f"{other / seconds:.1f}x: {name}" for name, other in rivals.items())
        print(f"  {label:<36} {seconds:8.1f} s   {ratios}")


if __name__ == "__main__":
    main()
