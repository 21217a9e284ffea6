"""The public data sets that `data.dataset` may name: how torchvision is asked for each, and how its answer is read.

Without torchvision: this is what is known of it beforehand. tests/data/test_downloads.py tries every row.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops.data.listing import read_csv
from mlops.data.tree import FolderTree

# One split of a data set as torchvision opened it, and its folder -> (path, label) of every image
Reader = Callable[[Any, Path], Iterable[tuple[Path, int]]]


def _loaded(dataset: Any, _folder: Path) -> Iterator[tuple[Path, int]]:
    # Opened with `loader=str`, a data set hands out paths in place of images.
    for position in range(len(dataset)):
        path, label = dataset[position]
        yield Path(path), int(label)


def _pets(dataset: Any, _folder: Path) -> Iterable[tuple[Path, int]]:
    return zip(dataset._images, dataset._labels, strict=True)


def gtsrb_training(_dataset: Any, folder: Path) -> Iterator[tuple[Path, int]]:
    """Images named `<track>_<frame>` in folders named by their class."""
    for path in sorted((folder / "gtsrb/GTSRB/Training").glob("*/*.ppm")):
        yield path, int(path.parent.name)


def _gtsrb_test(_dataset: Any, folder: Path) -> Iterator[tuple[Path, int]]:
    table = "gtsrb/GT-final_test.csv"
    for _, row in read_csv(FolderTree(folder, [table]), table, ("Filename", "ClassId")):
        yield folder / "gtsrb/GTSRB/Final_Test/Images" / row["Filename"], int(row["ClassId"])


@dataclass(frozen=True)
class Part:
    """One split (None: the set has none): what torchvision's class is asked for, and how the answer is read."""

    split: str | None
    options: dict[str, Any]
    read: Reader | None = None  # None: an array


@dataclass(frozen=True)
class Set:
    """The splits of a data set, and the archives that torchvision fetches, as paths below the set's folder."""

    parts: tuple[Part, ...]
    archives: tuple[str, ...]


def _flags() -> tuple[Part, ...]:
    return (Part("train", {"train": True}), Part("test", {"train": False}))


def _splits(*names: str) -> tuple[Part, ...]:
    return tuple(Part(name, {"split": name}) for name in names)


def _files(*names: str) -> tuple[Part, ...]:
    return tuple(Part(name, {"split": name, "loader": str}, _loaded) for name in names)


def _idx(name: str) -> tuple[str, ...]:
    return tuple(
        f"{name}/raw/{part}-ubyte.gz"
        for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    )


SETS = {
    "CIFAR10": Set(_flags(), ("cifar-10-python.tar.gz",)),
    "CIFAR100": Set(_flags(), ("cifar-100-python.tar.gz",)),
    "DTD": Set(_files("train", "val", "test"), ("dtd/dtd-r1.0.1.tar.gz",)),
    "EuroSAT": Set((Part(None, {"loader": str}, _loaded),), ("eurosat/EuroSAT.zip",)),
    "FashionMNIST": Set(_flags(), _idx("FashionMNIST")),
    "Flowers102": Set(
        _files("train", "val", "test"),
        ("flowers-102/102flowers.tgz", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
    ),
    "Food101": Set(_files("train", "test"), ("food-101.tar.gz",)),
    "GTSRB": Set(
        (Part("train", {"split": "train"}, gtsrb_training), Part("test", {"split": "test"}, _gtsrb_test)),
        (
            "gtsrb/GTSRB-Training_fixed.zip",
            "gtsrb/GTSRB_Final_Test_Images.zip",
            "gtsrb/GTSRB_Final_Test_GT.zip",
        ),
    ),
    "KMNIST": Set(_flags(), _idx("KMNIST")),
    "MNIST": Set(_flags(), _idx("MNIST")),
    "OxfordIIITPet": Set(
        (Part("train", {"split": "trainval"}, _pets), Part("test", {"split": "test"}, _pets)),
        ("oxford-iiit-pet/images.tar.gz", "oxford-iiit-pet/annotations.tar.gz"),
    ),
    "STL10": Set(_splits("train", "test"), ("stl10_binary.tar.gz",)),
    "SVHN": Set(_splits("train", "test"), ("train_32x32.mat", "test_32x32.mat")),
}
