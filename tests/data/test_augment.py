import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mlops.config import AugmentConfig
from mlops.data.augment import build_augment, warp


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 64, side: int = 16) -> Tensor:
    """Bright upper left quarters, so that every change of geometry shows."""
    images = torch.zeros(count, 3, side, side)
    images[:, :, : side // 2, : side // 2] = 0.5
    return images


def test_nothing_asked_for_changes_nothing():
    images = pictures()
    assert build_augment(AugmentConfig())(images, generator()) is images


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(rotate=20),
        AugmentConfig(translate=0.2),
        AugmentConfig(scale=0.3),
        AugmentConfig(shear=20),
        AugmentConfig(crop=0.5),
        AugmentConfig(brightness=0.5),
        AugmentConfig(contrast=0.5),
        AugmentConfig(flip=0.5),
    ],
)
def test_each_change_differs_from_image_to_image_and_comes_again_from_the_same_key(config: AugmentConfig):
    augment = build_augment(config)
    changed = augment(pictures(), generator())
    assert changed.shape == (64, 3, 16, 16)
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert len({image.numpy().tobytes() for image in changed}) >= 2
    assert torch.equal(changed, augment(pictures(), generator()))
    assert not torch.equal(changed, augment(pictures(), generator(1)))


def test_a_flip_mirrors_left_and_right():
    flipped = build_augment(AugmentConfig(flip=1.0))(pictures(1), generator())
    torch.testing.assert_close(flipped, pictures(1).flip(-1), atol=1e-5, rtol=0)


def test_half_of_the_images_are_flipped_at_one_half():
    flipped = build_augment(AugmentConfig(flip=0.5))(pictures(400), generator())
    assert 150 < int((flipped[:, 0, 0, -1] > 0.25).sum()) < 250


def test_a_quarter_turn_is_numpys_quarter_turn():
    image = torch.rand(1, 3, 8, 8, generator=generator())
    turn = torch.tensor([[[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]])
    np.testing.assert_allclose(warp(image, turn).numpy(), np.rot90(image.numpy(), -1, axes=(2, 3)), atol=1e-5)


def test_beyond_the_edge_the_edge_repeats():
    image = torch.rand(1, 3, 6, 9, generator=generator())
    shift = torch.tensor([[[1.0, 0.0, 2 / 3], [0.0, 1.0, 0.0]]])  # three of nine columns
    moved = warp(image, shift)
    torch.testing.assert_close(moved[..., :6], image[..., 3:], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[..., 6:], image[..., -1:].expand(-1, -1, -1, 3), atol=1e-5, rtol=0)


def test_a_rotation_turns_by_no_more_than_asked_for():
    side, images = 65, torch.zeros(200, 3, 65, 65)
    images[:, :, 32, 60] = 1.0  # a point to the right of the centre
    turned = build_augment(AugmentConfig(rotate=10))(images, generator())[:, 0]
    flat = turned.reshape(200, -1).argmax(dim=1)
    angles = [math.degrees(math.atan2(int(p) // side - 32, int(p) % side - 32)) for p in flat]
    assert max(map(abs, angles)) <= 12
    assert max(angles) > 7
    assert min(angles) < -7


def test_a_translation_shifts_by_no_more_than_asked_for():
    images = torch.zeros(200, 3, 40, 40)
    images[:, :, 20, 20] = 1.0
    moved = build_augment(AugmentConfig(translate=0.1))(images, generator())[:, 0].reshape(200, -1).argmax(dim=1)
    shifts = [abs(int(p) % 40 - 20) for p in moved]
    assert max(shifts) in (3, 4, 5)


def test_a_crop_stays_inside_the_image():
    # A frame of white around black: a crop may lose the frame but never shows what lies beyond it twice.
    images = torch.zeros(100, 3, 32, 32)
    images[:, :, 8:24, 8:24] = 1.0
    cropped = build_augment(AugmentConfig(crop=0.5))(images, generator())
    share = cropped.mean(dim=(1, 2, 3))
    assert share.min() >= 0.2
    assert share.max() <= 0.55


def test_brightness_scales_and_contrast_keeps_the_mean():
    images = torch.full((100, 3, 4, 4), 0.4)
    bright = build_augment(AugmentConfig(brightness=0.5))(images, generator()).mean(dim=(1, 2, 3))
    assert 0.2 <= float(bright.min()) < 0.25
    assert 0.55 < float(bright.max()) <= 0.6 + 1e-6
    uneven = torch.rand(100, 3, 8, 8, generator=generator()) * 0.4 + 0.3
    stretched = build_augment(AugmentConfig(contrast=0.5))(uneven, generator())
    torch.testing.assert_close(stretched.mean(dim=(1, 2, 3)), uneven.mean(dim=(1, 2, 3)), atol=1e-3, rtol=0)
    assert stretched.std(dim=(1, 2, 3)).std() > 0.01
