"""Prepared arrays -> batches on the device. What an epoch holds is a pure function of (seed, epoch)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlops.data.augment import Augment
from mlops.data.keyed import key
from mlops.data.prepare import Prepared
from mlops.image import Pixels

# Larger data stays mapped from disk and moves a batch at a time.
FITS_DEVICE_BYTES = 2 * 1024**3
# Evaluation needs no gradients and may take more at a time.
EVALUATION_BATCH = 256
_EVALUATION_PIXELS = EVALUATION_BATCH * 256 * 256


@dataclass(frozen=True)
class Batch:
    """Images as the network takes them.

    Args:
        images: normalised float `[N, 3, H, W]`.
        labels: int64 `[N]`.
        targets: what the loss compares with: the labels, or where images are mixed the shares of the classes in each,
            float `[N, classes]`.
        step: how many batches the run saw before this one.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    step: int


def evaluation_batch(height: int, width: int) -> int:
    """Images evaluated at a time: a function of their size alone, so that logits are the same in every run."""
    return max(1, min(EVALUATION_BATCH, _EVALUATION_PIXELS // (height * width)))


class Batches:
    """One split, cut into batches that are ready for the network.

    Args:
        images: uint8 `[N, H, W, 3]`. At most `FITS_DEVICE_BYTES` are kept on the device.
        labels: int64 `[N]`.
        mean, std: one for each channel, of pixels in 0..1.
        rows: which rows of the prepared arrays these are, int64 `[N]`; all of them when left out.
    """

    def __init__(
        self,
        images: Pixels,
        labels: npt.NDArray[np.int64],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        rows: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.rows = np.arange(len(labels)) if rows is None else rows
        self._images, self._labels = torch.from_numpy(images), torch.from_numpy(labels)
        if images.nbytes <= FITS_DEVICE_BYTES:
            self._images, self._labels = self._images.to(device), self._labels.to(device)
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)
        self._device = device

    @classmethod
    def of(
        cls,
        data: Prepared,
        split: str,
        device: torch.device,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        limit: int | None = None,
    ) -> Self:
        """A split of prepared data, or `limit` images of it, drawn from all: on disk they lie class by class.

        `mean` and `std` are those of the training images when left out.
        """
        images, labels, rows = data.images(split), data.labels(split), None
        if limit is not None and limit < len(labels):
            rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(key(0, "limit")))[:limit].numpy()
            images, labels = images[rows], labels[rows]
        mean, std = mean or data.manifest["mean"], std or data.manifest["std"]
        return cls(images, labels, mean=mean, std=std, device=device, rows=rows)

    def __len__(self) -> int:
        return len(self._labels)

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch of training: whole ones, or the only one."""
        return max(1, len(self) // batch_size)

    def training(self, epoch: int, batch_size: int, seed: int, augment: Augment, first: int = 0) -> Iterator[Batch]:
        """The batches of epoch 0, 1, ... from position `first` on: shuffled, augmented.

        The last images of an epoch that do not fill a batch wait for the next epoch's order: batch norm would be
        upset by a handful.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(key(seed, "order", epoch)))
        steps = self.steps(batch_size)
        for position in range(first, steps):
            step = epoch * steps + position
            images, labels = self._cut(order[position * batch_size : (position + 1) * batch_size])
            generator = torch.Generator().manual_seed(key(seed, "augment", epoch, position))
            images, targets = augment(images, labels, generator)
            yield Batch(self._normalise(images), labels, targets, step)

    def evaluation(self) -> Iterator[Batch]:
        """All images in their order, as they are."""
        size = evaluation_batch(*self._images.shape[1:3])
        for step, start in enumerate(range(0, len(self), size)):
            images, labels = self._cut(torch.arange(start, min(start + size, len(self))))
            yield Batch(self._normalise(images), labels, labels, step)

    def _cut(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Float images in 0..1, `[N, 3, H, W]`. The layout on disk, channels last, stays that in memory."""
        positions = positions.to(self._labels.device)
        images, labels = self._images[positions].to(self._device), self._labels[positions].to(self._device)
        return images.permute(0, 3, 1, 2).float().div_(255), labels

    def _normalise(self, images: Tensor) -> Tensor:
        return (images - self._mean) / self._std
