"""Random changes to a batch of training images, on the device, drawn from a generator that the caller keys.

All geometry of a batch is one matrix an image and one resampling, however many changes are asked for.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor

from mlops.config import AugmentConfig

# float images [N, 3, H, W] in 0..1 and a CPU generator -> images of the same shape and range
Augment = Callable[[Tensor, torch.Generator], Tensor]


def build_augment(config: AugmentConfig) -> Augment:
    """The changes that `config` asks for, in the order geometry, light; nothing is done for those that are zero."""
    changes: list[Augment] = []
    if any((config.rotate, config.translate, config.scale, config.shear, config.crop, config.flip)):
        changes.append(lambda images, generator: warp(images, _matrices(len(images), config, generator)))
    if config.brightness or config.contrast:
        changes.append(lambda images, generator: _light(images, config, generator))

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        for change in changes:
            images = change(images, generator)
        return images

    return augment


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Resample `images` `[N, C, H, W]` by `matrices` `[N, 2, 3]`, from output to input in -1..1; edges repeat."""
    shape = list(images.shape)
    grid = F.affine_grid(matrices.to(images.device, images.dtype), shape, align_corners=False)
    # Held at the centres of the edge pixels, which is padding by the border; Apple's GPUs had no such mode before 2.13.
    edge = 1 - 1 / torch.tensor([shape[3], shape[2]], device=grid.device, dtype=grid.dtype)
    return F.grid_sample(images, torch.clamp(grid, -edge, edge), mode="bilinear", align_corners=False)


def _matrices(count: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """`[N, 2, 3]`, drawn on the CPU so that every device gets the same."""

    def between(limit: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator) - 1) * limit

    angle = between(math.radians(config.rotate))
    shear = torch.tan(between(math.radians(config.shear)))
    # A random crop is a zoom into a part of the image, and the rest is where that part lies.
    side = torch.sqrt(1 - config.crop * torch.rand(count, generator=generator))
    zoom = side / (1 + between(config.scale))
    mirror = torch.where(torch.rand(count, generator=generator) < config.flip, -1.0, 1.0)
    x = 2 * between(config.translate) + (2 * torch.rand(count, generator=generator) - 1) * (1 - side)
    y = 2 * between(config.translate) + (2 * torch.rand(count, generator=generator) - 1) * (1 - side)
    cos, sin = torch.cos(angle), torch.sin(angle)
    row_x = torch.stack([zoom * cos * mirror, zoom * (shear * cos - sin), x], dim=1)
    row_y = torch.stack([zoom * sin * mirror, zoom * (shear * sin + cos), y], dim=1)
    return torch.stack([row_x, row_y], dim=1)


def _light(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Brightness multiplies; contrast stretches around the image's mean."""
    shape = (len(images), 1, 1, 1)
    bright = 1 + (2 * torch.rand(shape, generator=generator) - 1) * config.brightness
    stretch = 1 + (2 * torch.rand(shape, generator=generator) - 1) * config.contrast
    bright, stretch = bright.to(images.device, images.dtype), stretch.to(images.device, images.dtype)
    images = images * bright
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * stretch + mean).clamp_(0, 1)
