"""Random changes to a batch of training images, on the device, drawn from a generator that the caller keys.

All geometry of a batch is one matrix an image and one resampling, however many changes are asked for. Everything is
drawn on the CPU, so that every device gets the same.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor

from mlops.config import AugmentConfig

# float images [N, 3, H, W] in 0..1, labels int64 [N] and a CPU generator -> images of the same shape and range, and
# targets: the labels, or the shares of the classes [N, classes] in each image where images are mixed
Augment = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
# images and a generator -> images
Change = Callable[[Tensor, torch.Generator], Tensor]


def build_augment(config: AugmentConfig, num_classes: int) -> Augment:
    """The changes that `config` asks for, in the order geometry, light, blur, noise, erasing, mixing.

    Nothing is done, or drawn, for those that are zero.
    """
    changes: list[Change] = []
    if any((config.rotate, config.translate, config.scale, config.shear, config.crop, config.flip)):
        changes.append(lambda images, generator: warp(images, _matrices(len(images), config, generator)))
    if config.brightness or config.contrast:
        changes.append(lambda images, generator: _light(images, config, generator))
    if config.blur:
        changes.append(lambda images, generator: blur(images, config.blur * _uniform(len(images), generator)))
    if config.noise:
        changes.append(lambda images, generator: _add_noise(images, config.noise, generator))
    if config.erase:
        changes.append(lambda images, generator: _erase(images, config.erase, generator))

    def augment(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        for change in changes:
            images = change(images, generator)
        if config.mixup or config.cutmix:
            return _mix(images, labels, num_classes, config, generator)
        return images, labels

    return augment


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Resample `images` `[N, C, H, W]` by `matrices` `[N, 2, 3]`, from output to input in -1..1; edges repeat."""
    shape = list(images.shape)
    grid = F.affine_grid(matrices.to(images.device, images.dtype), shape, align_corners=False)
    # Held at the centres of the edge pixels, which is padding by the border; Apple's GPUs had no such mode before 2.13.
    edge = 1 - 1 / torch.tensor([shape[3], shape[2]], device=grid.device, dtype=grid.dtype)
    return F.grid_sample(images, torch.clamp(grid, -edge, edge), mode="bilinear", align_corners=False)


def blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Gaussian blur of `images` `[N, C, H, W]`, each by its own sigma (`[N]`, pixels); edges repeat."""
    count, channels, height, width = images.shape
    radius = max(1, math.ceil(3 * float(sigmas.max())))
    offsets = torch.arange(-radius, radius + 1)
    # A sigma of zero is a single one in the middle.
    kernels = torch.exp(-(offsets**2) / (2 * sigmas.clamp_min(1e-3)[:, None] ** 2))
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).to(images.device, images.dtype)
    kernels = kernels.repeat_interleave(channels, dim=0)[:, None]  # [N * C, 1, 2 * radius + 1]
    # Every channel of every image is a group with a kernel of its own; rows first, then columns.
    flat = images.reshape(1, count * channels, height, width)
    flat = F.conv2d(_pad(flat, radius, 0), kernels[:, :, None, :], groups=count * channels)
    flat = F.conv2d(_pad(flat, 0, radius), kernels[:, :, :, None], groups=count * channels)
    return flat.reshape(images.shape).contiguous(memory_format=torch.channels_last)


def _pad(images: Tensor, x: int, y: int) -> Tensor:
    return F.pad(images, (x, x, y, y), mode="replicate")


def _matrices(count: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """`[N, 2, 3]`: turn, shear, zoom, mirror and shift of each image, multiplied."""

    def between(limit: float) -> Tensor:
        return (2 * _uniform(count, generator) - 1) * limit

    angle = between(math.radians(config.rotate))
    shear = torch.tan(between(math.radians(config.shear)))
    # A random crop is a zoom into a part of the image, and the rest is where that part lies.
    side = torch.sqrt(1 - config.crop * _uniform(count, generator))
    zoom = side / (1 + between(config.scale))
    mirror = torch.where(_uniform(count, generator) < config.flip, -1.0, 1.0)
    x = 2 * between(config.translate) + (2 * _uniform(count, generator) - 1) * (1 - side)
    y = 2 * between(config.translate) + (2 * _uniform(count, generator) - 1) * (1 - side)
    cos, sin = torch.cos(angle), torch.sin(angle)
    row_x = torch.stack([zoom * cos * mirror, zoom * (shear * cos - sin), x], dim=1)
    row_y = torch.stack([zoom * sin * mirror, zoom * (shear * sin + cos), y], dim=1)
    return torch.stack([row_x, row_y], dim=1)


def _light(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Brightness multiplies; contrast stretches around the image's mean."""
    bright = 1 + (2 * _uniform(len(images), generator) - 1) * config.brightness
    stretch = 1 + (2 * _uniform(len(images), generator) - 1) * config.contrast
    images = images * _each(bright, images)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * _each(stretch, images) + mean).clamp_(0, 1)


def _add_noise(images: Tensor, limit: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise, each image with its own standard deviation up to `limit`."""
    deviation = limit * _uniform(len(images), generator)
    noise = torch.randn(images.shape, generator=generator).to(images.device, images.dtype)
    return (images + noise * _each(deviation, images)).clamp_(0, 1)


def _erase(images: Tensor, limit: float, generator: torch.Generator) -> Tensor:
    """A rectangle of one random colour over each image, up to `limit` of its area (Zhong et al., 2017)."""
    count, channels, height, width = images.shape
    boxes = _boxes(limit * _uniform(count, generator), height, width, generator, aspect=3.0)
    colours = torch.rand(count, channels, 1, 1, generator=generator).to(images.device, images.dtype)
    return torch.where(boxes.to(images.device), colours, images)


def _mix(
    images: Tensor, labels: Tensor, num_classes: int, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Each image with its opposite in the batch: mixup (Zhang et al., 2017) or cutmix (Yun et al., 2019).

    Where both are asked for, each batch gets one of them, drawn evenly. The order is shuffled, so that the opposite
    image is a random one.
    """
    count, _, height, width = images.shape
    cut = bool(config.cutmix) and (not config.mixup or bool(torch.rand(1, generator=generator) < 0.5))
    alpha = config.cutmix if cut else config.mixup
    # torch's beta distribution takes no generator.
    seed = int(torch.randint(2**62, (1,), generator=generator))
    share = torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count)).float()
    if cut:
        boxes = _boxes(1 - share, height, width, generator)
        share = 1 - boxes.float().mean(dim=(1, 2, 3))  # what is left after the box was cut at the edges
        mixed = torch.where(boxes.to(images.device), images.flip(0), images)
    else:
        mixed = torch.lerp(images.flip(0), images, _each(share, images))
    own = F.one_hot(labels, num_classes).to(images.dtype)
    return mixed, torch.lerp(own.flip(0), own, share.to(images.device, images.dtype)[:, None])


def _boxes(areas: Tensor, height: int, width: int, generator: torch.Generator, aspect: float = 1.0) -> Tensor:
    """Bool `[N, 1, H, W]`: a rectangle in each image, of about `areas` `[N]` (shares), cut where it leaves the image.

    Height to width is drawn from 1 / aspect to aspect, evenly on a logarithmic scale.
    """
    count = len(areas)
    stretch = torch.exp((2 * _uniform(count, generator) - 1) * math.log(aspect) / 2)
    half_y, half_x = (torch.sqrt(areas) * stretch / 2, torch.sqrt(areas) / stretch / 2)
    middle_y, middle_x = _uniform(count, generator), _uniform(count, generator)
    # Pixels stand for their centres.
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    inside_y = (rows - middle_y[:, None]).abs() < half_y[:, None]
    inside_x = (columns - middle_x[:, None]).abs() < half_x[:, None]
    return (inside_y[:, :, None] & inside_x[:, None, :])[:, None]


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator)


def _each(values: Tensor, images: Tensor) -> Tensor:
    """`[N]` as `[N, 1, 1, 1]` beside the images."""
    return values.to(images.device, images.dtype)[:, None, None, None]
