import numpy as np
import pytest

from mlops import image
from mlops.data.decode import Geometry
from mlops.data.tree import MemoryTree
from mlops.errors import MlopsError
from mlops.export.parity import Files, Native, compare_files, compare_native, generated, spread
from samples import png

SIZE = Geometry(8, 8, "squash", "bilinear")


def bright(images: np.ndarray) -> np.ndarray:
    """Two classes: the brighter, the likelier the second one."""
    share = images.mean(axis=(1, 2, 3)) / 255
    return np.stack([1 - share, share], axis=1)


def shifted(by: float):
    return lambda images: bright(images) + by


def files(count: int = 40) -> Files:
    made = {
        f"{n:02}.png": png(n, size=(20, 14), colour=(200, 210, 220) if n % 2 else (20, 30, 40)) for n in range(count)
    }
    return Files("test pictures", MemoryTree("here", made), sorted(made))


def test_the_largest_difference_of_all_batches_is_found_and_judged():
    images = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)
    pictures = Native("test pictures", images)

    def last_is_off(by: float):
        return lambda part: bright(part) + (by if (part[-1] == images[-1]).all() else 0)

    told = compare_native(bright, last_is_off(9e-6), pictures)
    assert told == {"images": 70, "of": "test pictures", "largest_difference": pytest.approx(9e-6)}
    with pytest.raises(MlopsError, match=r"differs by 1\.1e-05 from the checkpoint's on 70 test pictures"):
        compare_native(bright, last_is_off(1.1e-5), pictures)
    with pytest.raises(MlopsError, match="differs by nan"):
        compare_native(bright, last_is_off(float("nan")), pictures)


def test_files_are_compared_at_the_native_size_and_as_they_are_stored():
    seen = set()

    def graph(images: np.ndarray) -> np.ndarray:
        seen.add(images.shape[1:])
        return bright(images)

    native, resized = compare_files(bright, graph, files(), SIZE, resized=True)
    assert seen == {(8, 8, 3), (14, 20, 3)}
    assert native["largest_difference"] == 0
    assert (resized["images"], resized["agreement"]) == (40, 1.0)
    # The mean of a resized picture is not quite that of the picture.
    assert 0 < resized["largest_difference"] < 0.01
    (native,) = compare_files(bright, shifted(1e-6), files(), SIZE, resized=False)
    assert native["largest_difference"] == pytest.approx(1e-6)


def test_a_resizer_that_changes_one_class_in_forty_fails():
    first = []

    def graph(images: np.ndarray) -> np.ndarray:
        if images.shape[1] == 14 and not first:
            first.append(images)
            return 1 - bright(images)
        return bright(images)

    with pytest.raises(MlopsError, match="1 of 40 test pictures get another class"):
        compare_files(bright, graph, files(), SIZE, resized=True)


def test_files_that_cannot_be_read_are_named_all_at_once():
    tree = MemoryTree("here", {"a.png": b"no", "b.png": png(), "c.png": b""})
    with pytest.raises(MlopsError) as caught:
        compare_files(bright, bright, Files("test pictures", tree, tree.names), SIZE, resized=True)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["here/a.png", "here/c.png"]


def test_only_the_box_of_a_picture_is_compared():
    half = np.zeros((10, 20, 3), dtype=np.uint8)
    half[:, 10:] = 255
    tree, seen = MemoryTree("here", {"a.png": image.png(half)}), []

    def graph(images: np.ndarray) -> np.ndarray:
        seen.append((images.shape[1:3], images.min()))
        return bright(images)

    compare_files(bright, graph, Files("boxes", tree, ["a.png"], [(10, 0, 20, 10)]), SIZE, resized=True)
    assert seen == [((8, 8), 255), ((10, 10), 255)]


def test_generated_pictures_are_the_same_every_time_and_of_many_sizes():
    one, other = generated(SIZE), generated(SIZE)
    assert [one.tree.read(name) for name in one.names] == [other.tree.read(name) for name in other.names]
    shapes = set()

    def graph(images: np.ndarray) -> np.ndarray:
        shapes.add(images.shape[1:3])
        return bright(images)

    compare_files(bright, graph, one, SIZE, resized=True)
    assert {(8, 8), (16, 16), (5, 5), (8, 26), (7, 5)} <= shapes


def test_rows_are_taken_from_all_over():
    assert spread(5, 10) == [0, 1, 2, 3, 4]
    assert spread(100, 3) == [0, 50, 99]
    few = Files("k", MemoryTree("t", {}), list("abcde"), [None, (0, 0, 1, 1), None, None, (0, 0, 2, 2)]).few(2)
    assert (list(few.names), list(few.boxes)) == (["a", "e"], [None, (0, 0, 2, 2)])
