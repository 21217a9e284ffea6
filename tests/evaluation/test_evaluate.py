from pathlib import Path

import numpy as np
import pytest
import torch

from mlops.config import DataConfig, SplitConfig
from mlops.data.batches import Batches
from mlops.data.prepare import Prepared, build_index, prepare
from mlops.errors import MlopsError
from mlops.evaluation.evaluate import evaluate_prepared
from samples import COLOURS

CPU = torch.device("cpu")


class Brightest(torch.nn.Module):
    """Says the class whose colour it is: blue, green, red stand in the order of channels 2, 1, 0."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)).flip(1)


@pytest.fixture
def data(pictures: Path, tmp_path: Path) -> Prepared:
    # 00.png and 10.png are one group, in all classes, and so on.
    config = DataConfig(
        "folder", root=str(pictures), image_size=8, group=r"(\d)\.png$", split=SplitConfig(val=0.4, test=0.2, seed=1)
    )
    return prepare(build_index(config), tmp_path / "processed")


def test_paths_and_groups_stand_in_the_order_of_the_arrays(data: Prepared):
    for split in ("train", "val", "test"):
        found = evaluate_prepared(Brightest(), data, split, Batches.of(data, split, CPU))
        assert len(found.paths) == len(found.groups) == len(found.labels) == len(found.images) > 0
        assert [path.split("/")[0] for path in found.paths] == [list(COLOURS)[label] for label in found.labels]
        assert found.groups == [path.split("/")[1][1] for path in found.paths]
        assert torch.equal(found.logits.argmax(dim=1), found.labels)
        assert np.array_equal(found.images, data.images(split))
        assert found.source == f"{data.folder} ({split})"


def test_of_limited_batches_the_same_images_are_named(data: Prepared):
    whole = evaluate_prepared(Brightest(), data, "val", Batches.of(data, "val", CPU))
    some = evaluate_prepared(Brightest(), data, "val", Batches.of(data, "val", CPU, limit=7))
    assert len(some.paths) == len(set(some.paths)) == 7
    for position, path in enumerate(some.paths):
        there = whole.paths.index(path)
        assert torch.allclose(some.logits[position], whole.logits[there], atol=1e-6)
        assert np.array_equal(some.images[position], whole.images[there])
        assert (some.groups[position], some.labels[position]) == (whole.groups[there], whole.labels[there])


def test_an_index_that_lost_lines_is_refused(data: Prepared):
    index = data.folder / "index.csv"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(MlopsError, match=r"index\.csv does not list the \d+ images of test; none of it is used"):
        evaluate_prepared(Brightest(), data, "test", Batches.of(data, "test", CPU))
