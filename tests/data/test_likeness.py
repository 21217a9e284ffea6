"""Near-identical pictures: which are, which are not, and how many have to be compared to know."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from mlops.data.checking.likeness import differences, most_different
from mlops.data.checking.neighbours import MOST_BITS, near
from mlops.data.checking.pairs import search
from mlops.data.checking.phash import hashes, luminance
from mlops.image import decode


def photograph(seed: int, size: tuple[int, int] = (90, 80)) -> Image.Image:
    """Soft blobs of colour with a few hard edges: no two seeds have anything in common."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 256, (7, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(4):
        x, y = rng.integers(0, size[0] - 20), rng.integers(0, size[1] - 20)
        draw.rectangle((x, y, x + rng.integers(6, 20), y + rng.integers(6, 20)), fill=tuple(rng.integers(0, 256, 3)))
    return picture


def sign(number: str, seed: int = 0, ring: str = "red", size: int = 64) -> Image.Image:
    """A traffic sign before a sky that is nearly the same every time."""
    rng = np.random.default_rng(seed)
    sky = np.clip(np.array([150, 180, 220]) + rng.normal(0, 2, (size, size, 3)), 0, 255)
    picture = Image.fromarray(sky.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((6, 6, size - 6, size - 6), fill=ring)
    draw.ellipse((13, 13, size - 13, size - 13), fill="white")
    draw.text((size // 2, size // 2), number, fill="black", anchor="mm", font_size=24)
    return picture


def small(*pictures: Image.Image) -> np.ndarray:
    """As they are decoded to be compared: uint8 `[N, 32, 32, 3]`."""
    return np.stack([decode(encoded(picture), (32, 32)).pixels for picture in pictures])


def encoded(picture: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    return Image.open(io.BytesIO(encoded(picture, "JPEG", quality=quality)))


def is_copy(one: Image.Image, other: Image.Image) -> bool:
    first, second = small(one), small(other)
    bits = np.bitwise_count(hashes(luminance(first)) ^ hashes(luminance(second)))
    side = np.array([max(min(one.size), min(other.size))])
    return bool((bits <= MOST_BITS) & (differences(first, second) <= most_different(side)))


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: jpeg(picture, 50),
        lambda picture: picture.resize((45, 40)),
        lambda picture: picture.resize((200, 160), Image.Resampling.BICUBIC),
        lambda picture: ImageEnhance.Brightness(picture).enhance(1.1),
        lambda picture: ImageEnhance.Contrast(picture).enhance(0.9),
        lambda picture: picture.crop((1, 0, *picture.size)),
        lambda picture: picture.crop((1, 1, picture.width - 1, picture.height - 1)),
        lambda picture: jpeg(picture.crop((0, 1, picture.width, picture.height)), 75),
        lambda picture: picture,
    ],
    ids=["encoded as JPEG", "halved", "doubled", "brighter", "paler", "cropped", "cropped all round", "both", "same"],
)
def test_a_copy_is_found(change: Callable[[Image.Image], Image.Image]):
    found = [is_copy(photograph(seed), change(photograph(seed))) for seed in range(20)]
    assert sum(found) >= 19


def test_different_photographs_are_no_copies():
    pictures = small(*(photograph(seed) for seed in range(60)))
    one, other = np.triu_indices(60, 1)
    assert differences(pictures[one], pictures[other]).min() > 3 * most_different(np.array([80]))[0]


@pytest.mark.parametrize(
    "other",
    [sign("60"), sign("30", ring="blue"), ImageEnhance.Brightness(sign("50")).enhance(0.4)],
    ids=["another number", "another ring", "another colour of the ring, and darker"],
)
def test_two_signs_of_a_kind_are_no_copies(other: Image.Image):
    assert is_copy(sign("30"), jpeg(sign("30"), 75))
    assert not is_copy(sign("30"), other)


def test_dark_signs_before_a_bright_sky_are_no_copies():
    dark = [sign(number).point(lambda v: v // 8 if v != 255 else 60) for number in ("60", "120")]
    for picture in dark:
        ImageDraw.Draw(picture).rectangle((0, 0, 64, 5), fill="white")
    assert not is_copy(*dark)
    assert is_copy(dark[0], jpeg(dark[0], 85))


def test_the_same_drawing_in_another_colour_is_no_copy():
    def card(colour: tuple[int, int, int]) -> Image.Image:
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).polygon([(10, 50), (30, 8), (56, 44)], fill=colour)
        return picture

    red, green = (200, 50, 50), (50, 126, 50)
    grey = luminance(np.array([[red, green]], dtype=np.uint8))
    assert abs(grey[0, 0] - grey[0, 1]) < 1
    assert not is_copy(card(red), card(green))
    assert is_copy(card(red), card((205, 54, 54)))


def test_tiny_pictures_must_be_nearer_to_be_copies():
    assert most_different(np.array([8, 32, 400])).tolist() == pytest.approx([0.02, 0.08, 0.08])


def flipped(values: np.ndarray, bits: int, rng: np.random.Generator) -> np.ndarray:
    """Each value with so many of its 63 bits turned."""
    places = np.argsort(rng.random((len(values), 63)), axis=1)[:, :bits].astype(np.uint64)
    return values ^ np.bitwise_or.reduce(np.uint64(1) << places, axis=1)


def some_hashes(count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 2**63, count, dtype=np.uint64)


@pytest.mark.parametrize(("bits", "share"), [(0, 1.0), (2, 0.99), (4, 0.97), (6, 0.85)])
def test_near_hashes_are_found_among_many(bits: int, share: float):
    rng = np.random.default_rng(0)
    originals = some_hashes(20_000, rng)
    values = np.concatenate([originals, flipped(originals[:1000], bits, rng)])
    found = near(values, [np.arange(len(values))])
    wanted = {(position, 20_000 + position) for position in range(1000)}
    met = wanted & set(map(tuple, found.pairs.tolist()))
    assert len(met) >= share * 1000
    # Hardly anything but these: 63 bits of chance do not agree.
    assert len(found.pairs) < len(met) + 20


@pytest.mark.parametrize("kind", ["different", "clusters", "all alike"])
def test_twice_the_pictures_are_twice_the_comparisons(kind: str):
    rng = np.random.default_rng(0)

    def search_of(count: int) -> tuple[int, int]:
        values = {
            "different": lambda: some_hashes(count, rng),
            "clusters": lambda: flipped(np.repeat(some_hashes(count // 100, rng), 100), 2, rng),
            "all alike": lambda: np.zeros(count, dtype=np.uint64),
        }[kind]()
        found = near(values, [rng.integers(0, 3, count), np.arange(count)])
        return found.compared, len(found.pairs)

    (once, few), (tenfold, many) = search_of(2000), search_of(20_000)
    assert tenfold <= 10.5 * once
    assert many <= 10.5 * max(few, 100)
    # Of the pairs there are, which grow a hundredfold, ever less.
    assert tenfold < 0.05 * 20_000 * 19_999 / 2


def test_one_picture_of_another_split_is_found_in_a_crowd_of_the_same_hash():
    split = np.zeros(5000, dtype=np.int64)
    split[2500] = 1
    found = near(np.zeros(5000, dtype=np.uint64), [split])
    assert len(found.pairs) > 0
    assert (found.pairs == 2500).any(axis=1).all()


def test_pairs_of_one_split_class_and_group_are_no_finding():
    assert len(near(np.zeros(100, dtype=np.uint64), [np.zeros(100, dtype=np.int64)] * 3).pairs) == 0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_handful_of_hashes_is_enough(count: int):
    found = near(np.zeros(count, dtype=np.uint64), [np.arange(count)])
    assert found.pairs.tolist() == ([[0, 1]] if count == 2 else [])


def test_the_search_confirms_by_the_pixels_and_puts_the_likest_first(monkeypatch: pytest.MonkeyPatch):
    original = photograph(1)
    pixels = small(original, photograph(2), jpeg(original, 60), original, sign("30"), sign("60"))
    grey = hashes(luminance(pixels))
    grey[5] = grey[4]
    sides, content = [np.arange(6)], np.array([0, 1, 2, 3, 4, 5])

    def found(content: np.ndarray) -> list[list[int]]:
        return search(lambda places: pixels[places], grey, np.full(6, 64), sides, content).pairs.tolist()

    assert found(content) == [[0, 3], [0, 2], [2, 3]]
    # Byte for byte the same is told of elsewhere.
    assert found(np.array([0, 1, 2, 0, 4, 5])) == [[0, 2], [2, 3]]
    monkeypatch.setattr("mlops.data.checking.pairs._MOST_LOOKS", 1)
    alike = search(lambda places: pixels[places], grey, np.full(6, 64), sides, content)
    assert (alike.candidates, alike.looked) == (4, 1)
