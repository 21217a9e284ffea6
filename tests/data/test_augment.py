import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mlops.config import AugmentConfig
from mlops.data.augment import Augment, blur, build_augment, warp


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 64, side: int = 16) -> Tensor:
    """Bright upper left quarters, so that every change of geometry shows."""
    images = torch.zeros(count, 3, side, side)
    images[:, :, : side // 2, : side // 2] = 0.5
    return images


def changer(config: AugmentConfig) -> Callable[[Tensor, torch.Generator], Tensor]:
    """The images that an augmentation gives, for changes that leave the labels alone."""
    augment = build_augment(config, num_classes=10)

    def change(images: Tensor, generator: torch.Generator) -> Tensor:
        labels = torch.zeros(len(images), dtype=torch.int64)
        changed, targets = augment(images, labels, generator)
        assert targets is labels
        return changed

    return change


def test_nothing_asked_for_changes_nothing():
    images = pictures()
    assert changer(AugmentConfig())(images, generator()) is images


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
        AugmentConfig(blur=2),
        AugmentConfig(noise=0.2),
        AugmentConfig(erase=0.4),
    ],
)
def test_each_change_differs_from_image_to_image_and_comes_again_from_the_same_key(config: AugmentConfig):
    augment = changer(config)
    changed = augment(pictures(), generator())
    assert changed.shape == (64, 3, 16, 16)
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert len({image.numpy().tobytes() for image in changed}) >= 2
    assert torch.equal(changed, augment(pictures(), generator()))
    assert not torch.equal(changed, augment(pictures(), generator(1)))


def test_a_flip_mirrors_left_and_right():
    flipped = changer(AugmentConfig(flip=1.0))(pictures(1), generator())
    torch.testing.assert_close(flipped, pictures(1).flip(-1), atol=1e-5, rtol=0)


def test_half_of_the_images_are_flipped_at_one_half():
    flipped = changer(AugmentConfig(flip=0.5))(pictures(400), generator())
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
    turned = changer(AugmentConfig(rotate=10))(images, generator())[:, 0]
    flat = turned.reshape(200, -1).argmax(dim=1)
    angles = [math.degrees(math.atan2(int(p) // side - 32, int(p) % side - 32)) for p in flat]
    assert max(map(abs, angles)) <= 12
    assert max(angles) > 7
    assert min(angles) < -7


def test_a_translation_shifts_by_no_more_than_asked_for():
    images = torch.zeros(200, 3, 40, 40)
    images[:, :, 20, 20] = 1.0
    moved = changer(AugmentConfig(translate=0.1))(images, generator())[:, 0].reshape(200, -1).argmax(dim=1)
    shifts = [abs(int(p) % 40 - 20) for p in moved]
    assert max(shifts) in (3, 4, 5)


def test_a_crop_stays_inside_the_image():
    # A frame of white around black: a crop may lose the frame but never shows what lies beyond it twice.
    images = torch.zeros(100, 3, 32, 32)
    images[:, :, 8:24, 8:24] = 1.0
    cropped = changer(AugmentConfig(crop=0.5))(images, generator())
    share = cropped.mean(dim=(1, 2, 3))
    assert share.min() >= 0.2
    assert share.max() <= 0.55


def test_brightness_scales_and_contrast_keeps_the_mean():
    images = torch.full((100, 3, 4, 4), 0.4)
    bright = changer(AugmentConfig(brightness=0.5))(images, generator()).mean(dim=(1, 2, 3))
    assert 0.2 <= float(bright.min()) < 0.25
    assert 0.55 < float(bright.max()) <= 0.6 + 1e-6
    uneven = torch.rand(100, 3, 8, 8, generator=generator()) * 0.4 + 0.3
    stretched = changer(AugmentConfig(contrast=0.5))(uneven, generator())
    torch.testing.assert_close(stretched.mean(dim=(1, 2, 3)), uneven.mean(dim=(1, 2, 3)), atol=1e-3, rtol=0)
    assert stretched.std(dim=(1, 2, 3)).std() > 0.01


def test_a_blur_is_the_gaussian_of_a_reference_and_each_image_has_its_own():
    images = torch.rand(3, 3, 16, 16, generator=generator())
    blurred = blur(images, torch.tensor([0.0, 0.8, 2.0]))
    torch.testing.assert_close(blurred[0], images[0], atol=1e-6, rtol=0)
    for position, sigma in ((1, 0.8), (2, 2.0)):
        expected = gaussian_filter(images[position].numpy(), (0, sigma, sigma), mode="nearest", radius=6)
        np.testing.assert_allclose(blurred[position].numpy(), expected, atol=1e-4)
    assert blurred.is_contiguous(memory_format=torch.channels_last)


def test_noise_is_no_stronger_than_asked_for_and_differs_from_pixel_to_pixel():
    grey = torch.full((200, 3, 16, 16), 0.5)
    noisy = changer(AugmentConfig(noise=0.1))(grey, generator())
    deviations = noisy.std(dim=(1, 2, 3))
    assert float(deviations.max()) < 0.11
    assert float(deviations.max()) > 0.08
    assert float(deviations.min()) < 0.02


def test_erasing_covers_at_most_the_share_asked_for_with_one_colour():
    images = torch.rand(200, 3, 32, 32, generator=generator())
    erased = changer(AugmentConfig(erase=0.25))(images, generator(1))
    covered = (erased != images).any(dim=1).float().mean(dim=(1, 2))
    assert float(covered.max()) < 0.3
    assert float(covered.max()) > 0.15
    one = int(covered.argmax())
    assert len(erased[one, 0][erased[one, 0] != images[one, 0]].unique()) == 1


def solid(count: int) -> tuple[Tensor, Tensor]:
    """Images of one grey level each, and labels 0, 1, 2, ..."""
    levels = torch.linspace(0, 1, count)
    return levels[:, None, None, None].expand(count, 3, 16, 16).clone(), torch.arange(count)


def mix(config: AugmentConfig, count: int = 8) -> tuple[Tensor, Tensor, Augment]:
    augment = build_augment(config, num_classes=count)
    return *augment(*solid(count), generator()), augment


@pytest.mark.parametrize("config", [AugmentConfig(mixup=0.8), AugmentConfig(cutmix=1.0)], ids=["mixup", "cutmix"])
def test_mixed_images_have_mixed_labels_in_the_same_shares(config: AugmentConfig):
    images, targets, augment = mix(config)
    assert targets.shape == (8, 8)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
    # Each image is one grey level and so is its opposite: the mean of what was mixed tells the shares.
    levels = torch.linspace(0, 1, 8)
    torch.testing.assert_close(images.mean(dim=(1, 2, 3)), targets @ levels, atol=1e-5, rtol=0)
    assert len({float(share) for share in targets.diagonal()}) > 4
    again, same = augment(*solid(8), generator())
    assert torch.equal(images, again)
    assert torch.equal(targets, same)


def test_mixup_blends_and_cutmix_pastes_a_rectangle():
    blended, _, _ = mix(AugmentConfig(mixup=1.0))
    assert all(len(image.unique()) == 1 for image in blended)
    pasted, _, _ = mix(AugmentConfig(cutmix=1.0))
    levels = torch.linspace(0, 1, 8)
    for position, image in enumerate(pasted):
        other = image[0] == levels[7 - position]
        assert set(image.unique().tolist()) <= {float(levels[position]), float(levels[7 - position])}
        rows, columns = other.any(dim=1), other.any(dim=0)
        assert int(other.sum()) == int(rows.sum()) * int(columns.sum())


def test_where_both_are_asked_for_each_batch_gets_one():
    augment = build_augment(AugmentConfig(mixup=1.0, cutmix=1.0), num_classes=8)
    kinds = {max(len(image.unique()) for image in augment(*solid(8), generator(seed))[0]) for seed in range(20)}
    assert kinds == {1, 2}


def test_two_classes_can_be_mixed():
    augment = build_augment(AugmentConfig(mixup=1.0), num_classes=2)
    images, labels = solid(5)
    _, targets = augment(images, labels % 2, generator())
    assert targets.shape == (5, 2)
    torch.testing.assert_close(targets[2], torch.tensor([1.0, 0.0]))  # the middle one is its own opposite
