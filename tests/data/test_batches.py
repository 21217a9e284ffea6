from pathlib import Path

import numpy as np
import pytest
import torch

from mlops.config import AugmentConfig, DataConfig, SplitConfig
from mlops.data.augment import build_augment
from mlops.data.batches import Batches, evaluation_batch
from mlops.data.prepare import build_index, prepare

NONE = build_augment(AugmentConfig(), num_classes=10)


def batches(count: int = 10) -> Batches:
    """Images of one grey level each, so that a pixel tells which image it is."""
    images = np.repeat(np.arange(count, dtype=np.uint8), 4 * 4 * 3).reshape(count, 4, 4, 3)
    return Batches(images, np.arange(count), mean=[0.0] * 3, std=[1 / 255] * 3, device=torch.device("cpu"))


def order(source: Batches, epoch: int, seed: int = 0, batch_size: int = 3) -> list[int]:
    return [int(label) for batch in source.training(epoch, batch_size, seed, NONE) for label in batch.labels]


def test_a_batch_holds_normalised_images_in_channels_last_memory():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    source = Batches(images, np.arange(5), mean=mean, std=std, device=torch.device("cpu"))
    batch = next(source.evaluation())
    expected = (images / 255 - mean) / std
    np.testing.assert_allclose(batch.images.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.tolist() == list(range(5))


def test_image_and_label_stay_together():
    for batch in batches().training(0, 3, 0, NONE):
        torch.testing.assert_close(batch.images[:, 0, 0, 0], batch.labels.float())


def test_an_epoch_shows_each_image_once_in_whole_batches_and_every_epoch_another_order():
    source = batches(10)
    first, second = order(source, 0), order(source, 1)
    assert len(first) == len(set(first)) == 9
    assert first != second
    assert first == order(source, 0)
    assert first != order(source, 0, seed=1)


def test_fewer_images_than_a_batch_are_one_batch():
    assert sorted(order(batches(2), 0, batch_size=64)) == [0, 1]
    assert batches(2).steps(64) == 1


def test_steps_count_on_over_epochs():
    assert [batch.step for epoch in (0, 1) for batch in batches(6).training(epoch, 3, 0, NONE)] == [0, 1, 2, 3]


def test_evaluation_shows_all_images_in_their_order():
    labels = [int(label) for batch in batches(250).evaluation() for label in batch.labels]
    assert labels == list(range(250))


def test_augmentation_depends_on_epoch_and_position_only():
    augment = build_augment(AugmentConfig(brightness=0.5), num_classes=10)
    run = [list(batches(6).training(epoch, 3, 0, augment)) for epoch in (0, 0, 1)]
    for one, other in zip(run[0], run[1], strict=True):
        assert torch.equal(one.images, other.images)
    levels = {float(batch.images.sum() / (batch.labels.float().sum() + 1)) for epoch in (0, 2) for batch in run[epoch]}
    assert len(levels) == 4


def test_large_data_is_cut_where_it_lies_and_only_batches_go_to_the_device(monkeypatch: pytest.MonkeyPatch):
    def on_meta() -> torch.device:
        images = np.zeros((9, 4, 4, 3), dtype=np.uint8)
        source = Batches(
            images, np.zeros(9, dtype=np.int64), mean=[0.0] * 3, std=[1.0] * 3, device=torch.device("meta")
        )
        return source._images.device

    assert on_meta() == torch.device("meta")
    monkeypatch.setattr("mlops.data.batches.FITS_DEVICE_BYTES", 1)
    assert on_meta() == torch.device("cpu")


def test_a_limit_draws_from_all_classes(pictures: Path, tmp_path: Path):
    settings = DataConfig(source="folder", root=str(pictures), image_size=8, split=SplitConfig(0.2, 0.2))
    data = prepare(build_index(settings), tmp_path)
    limited = Batches.of(data, "train", torch.device("cpu"), limit=9)
    labels = next(limited.evaluation()).labels
    assert len(limited) == 9
    assert set(labels.tolist()) == {0, 1, 2}
    assert len(Batches.of(data, "train", torch.device("cpu"), limit=1000)) == 36


def test_large_images_are_evaluated_fewer_at_a_time():
    sizes = [evaluation_batch(side, side) for side in (32, 256, 512, 2048, 5000)]
    assert sizes == [256, 256, 64, 4, 1]
    images = np.zeros((70, 512, 512, 3), dtype=np.uint8)
    source = Batches(images, np.zeros(70, dtype=np.int64), mean=[0.0] * 3, std=[1.0] * 3, device=torch.device("meta"))
    assert [len(batch.labels) for batch in source.evaluation()] == [64, 6]


def test_mixed_targets_stand_beside_the_labels():
    augment = build_augment(AugmentConfig(mixup=1.0), num_classes=10)
    for batch in batches().training(0, 5, 0, augment):
        assert batch.labels.dtype == torch.int64
        assert batch.targets.shape == (5, 10)
        # What is left of the own label is the label's place in the shares.
        assert (batch.targets.gather(1, batch.labels[:, None]) > 0).all()
