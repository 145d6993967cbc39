"""Augmented views are a pure function of image and view; near duplicates are tied, others are not."""

import hashlib
import io
from itertools import combinations
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bcd_ray.archives.images import Decoded, Limits, Pixels, decode
from bcd_ray.learning import augmentation
from bcd_ray.learning.augmentation import BRIGHTNESS, NOISY, RECOMPRESSED, SHIFT, ZOOM, Augmenter
from bcd_ray.learning.near_duplicates import NEAR_DUPLICATE_BITS, near_duplicate_groups, perceptual_hashes
from bcd_ray.learning.shortcuts import SHORTCUT_VIEWS, Reducer
from bcd_ray.learning.synthetic import draw_smear

KEY = hashlib.sha256(b"image").hexdigest()
SMEAR = draw_smear(2, seed=1)


def augment(pixels: Pixels, key: str, view: int) -> Pixels:
    return Augmenter(pixels, key).view(view)


def unharmed(pixels: Pixels, key: str, view: int) -> Pixels:
    """The view before it is compressed or gets noise."""
    with patch.multiple(augmentation, RECOMPRESSED=0, NOISY=0):
        return augment(pixels, key, view)


def test_the_same_image_and_view_give_the_same_pixels_in_any_order() -> None:
    tasks = [(key, view) for key in (KEY, "other") for view in (0, 1, 2, 3)]
    forwards = {task: augment(SMEAR, *task) for task in tasks}
    np.random.seed(7)  # the global state must not matter
    backwards = {task: augment(SMEAR, *task) for task in reversed(tasks)}
    together = {key: Augmenter(SMEAR, key) for key in (KEY, "other")}
    for key, view in reversed(tasks):
        np.testing.assert_array_equal(forwards[key, view], backwards[key, view])
        np.testing.assert_array_equal(forwards[key, view], together[key].view(view))


def test_every_view_and_image_has_pixels_of_its_own() -> None:
    tasks = [(key, view) for key in (KEY, "other") for view in range(1, 6)]
    views = {augment(SMEAR, *task).tobytes() for task in tasks}
    assert len(views | {SMEAR.tobytes()}) == len(tasks) + 1


def test_views_are_the_same_on_every_machine() -> None:
    """Else caches would mix views of several kinds. Where another OpenCV changes them, raise `AUGMENTATION_VERSION`."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    views = [augment(noise, KEY, view) for view in range(1, 9)] + [
        view(Reducer(noise)) for view in SHORTCUT_VIEWS.values()
    ]
    assert hashlib.sha256(b"".join(map(bytes, views))).hexdigest().startswith("f078fc35d0c14225")


def test_view_0_is_the_image_itself() -> None:
    np.testing.assert_array_equal(augment(SMEAR, KEY, 0), SMEAR)


@given(height=st.integers(1, 70), width=st.integers(1, 70), view=st.integers(0, 1000))
def test_shape_and_type_are_kept_and_the_input_is_not_touched(height: int, width: int, view: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    before = pixels.copy()
    pixels.setflags(write=False)  # as decoded pixels are
    augmented = augment(pixels, KEY, view)
    assert augmented.shape == pixels.shape
    assert augmented.dtype == np.uint8
    np.testing.assert_array_equal(pixels, before)


@given(level=st.integers(0, 255), view=st.integers(1, 10_000))
def test_brightness_stays_in_its_range(level: int, view: int) -> None:
    """On a flat image the brightness is all that can change, and no edge may turn dark."""
    augmented = unharmed(np.full((32, 32, 3), level, np.uint8), KEY, view)
    assert np.unique(augmented).size == 1
    least, most = (min(255, round(level * factor)) for factor in BRIGHTNESS)
    assert least <= augmented[0, 0, 0] <= most


def test_brightness_uses_its_range() -> None:
    flat = np.full((8, 8, 3), 200, np.uint8)
    levels = [int(unharmed(flat, KEY, view)[0, 0, 0]) for view in range(1, 400)]
    assert min(levels) <= 200 * BRIGHTNESS[0] + 2
    assert max(levels) >= 200 * BRIGHTNESS[1] - 2
    assert np.mean(levels) == pytest.approx(200, abs=3)


def test_views_are_zoomed_shifted_and_flipped_within_their_ranges() -> None:
    """A ramp from left to right: its slope tells the zoom and the flip, its value in the middle the shift."""
    size = 200
    ramp = np.broadcast_to(np.arange(20, 20 + size, dtype=np.uint8)[None, :, None], (size, size, 3)).copy()
    slopes, middles = [], []
    for view in range(1, 200):
        row = unharmed(ramp, KEY, view)[size // 2, :, 0].astype(float)
        inner = slice(size // 5, -size // 5)  # edge pixels fill what comes into view
        slope = np.polyfit(np.arange(size)[inner], row[inner], 1)[0]
        slopes.append(slope)
        middles.append(row[size // 2])
    zooms = np.abs(slopes)
    assert zooms.min() >= ZOOM[0] * BRIGHTNESS[0] - 0.02
    assert zooms.max() <= ZOOM[1] * BRIGHTNESS[1] + 0.02
    assert 0.35 < np.mean(np.array(slopes) < 0) < 0.65  # about half are flipped
    farthest = size * (SHIFT + (1 - ZOOM[0]) / 2)  # a zoom into a corner moves the middle too
    assert np.max(np.abs(np.array(middles) / 120 - 1)) <= (1 + farthest / 120) * BRIGHTNESS[1] - 1 + 0.02
    assert np.std(middles) > 2


def test_some_views_are_compressed_and_some_get_noise() -> None:
    whole = [augment(SMEAR, KEY, view) for view in range(1, 201)]
    moved = [unharmed(SMEAR, KEY, view) for view in range(1, 201)]
    off = [np.abs(one.astype(int) - other).mean() for one, other in zip(whole, moved, strict=True)]
    assert np.mean(np.array(off) > 0) == pytest.approx(RECOMPRESSED + NOISY, abs=0.1)
    assert max(off) < 22


def hashed(images: list[Pixels]) -> npt.NDArray[np.uint64]:
    return np.stack([perceptual_hashes(pixels) for pixels in images])


def encoded(pixels: Pixels, kind: str = "JPEG", **options: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **options)
    return sink.getvalue()


def decoded(data: bytes) -> Pixels:
    result = decode(data, Limits())
    assert isinstance(result, Decoded)
    return result.pixels


def near_duplicates(pixels: Pixels) -> dict[str, Pixels]:
    larger = np.asarray(Image.fromarray(pixels).resize((448, 448), Image.Resampling.BICUBIC))
    return {
        "encoded again": decoded(encoded(pixels, quality=60)),
        "brighter": np.clip(pixels * 1.04, 0, 255).astype(np.uint8),
        "darker": (pixels * 0.96).astype(np.uint8),
        "larger": decoded(encoded(larger, quality=80)),
    }


@pytest.mark.parametrize("class_index", range(4))
def test_near_duplicates_are_tied(class_index: int) -> None:
    for seed in range(5):
        original = draw_smear(class_index, seed)
        copies = near_duplicates(original)
        distances = np.bitwise_count(hashed(list(copies.values()))[:, 0] ^ hashed([original])[0, 0])
        assert dict(zip(copies, distances <= NEAR_DUPLICATE_BITS, strict=True)) == dict.fromkeys(copies, True)


def test_images_of_their_own_are_not_tied() -> None:
    smears = [draw_smear(class_index, seed) for class_index in range(4) for seed in range(15)]
    groups = near_duplicate_groups([str(number) for number in range(len(smears))], hashed(smears))
    assert groups.tolist() == list(range(len(smears)))


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_copy_that_is_mirrored_or_turned_is_tied(turns: int, mirrored: bool) -> None:
    for class_index in range(4):
        original, other = draw_smear(class_index, 7), draw_smear(class_index, 8)
        turned = np.ascontiguousarray(np.rot90(original[:, ::-1] if mirrored else original, turns))
        copy = decoded(encoded(turned, quality=80))
        assert near_duplicate_groups(list("abc"), hashed([original, other, copy])).tolist() == [0, 1, 0]


def test_only_the_copies_in_a_set_are_tied() -> None:
    first, second, third = (draw_smear(1, seed) for seed in (1, 2, 3))
    images = [first, second, *near_duplicates(first).values(), third, *near_duplicates(third).values()]
    groups = near_duplicate_groups([str(number) for number in range(len(images))], hashed(images))
    assert groups.tolist() == [0, 1, 0, 0, 0, 0, 6, 6, 6, 6, 6]


def test_equal_bytes_are_tied_whatever_their_hashes() -> None:
    hashes = np.array([[0], [2**64 - 1], [0xFFFFFFFF]], np.uint64)
    assert near_duplicate_groups(["a", "b", "a"], hashes).tolist() == [0, 1, 0]


def test_ties_pass_through_chains() -> None:
    """Neighbours differ in 6 bits, the ends in 24."""
    chain = [(1 << 6 * links) - 1 for links in range(5)]
    order = [4, 0, 2, 1, 3]
    hashes = np.array([[chain[place]] for place in order], np.uint64)
    assert near_duplicate_groups(list("abcde"), hashes).tolist() == [0] * 5
    without_the_middle = hashes[[0, 1, 3, 4]]  # 24, 0, 6 and 18 bits
    assert near_duplicate_groups(list("abcd"), without_the_middle).tolist() == [0, 1, 1, 0]


def test_the_bound_on_bits_is_met_exactly() -> None:
    within, beyond = (1 << NEAR_DUPLICATE_BITS) - 1, (1 << NEAR_DUPLICATE_BITS + 1) - 1
    hashes = np.array([[0], [within], [beyond << 40]], np.uint64)
    assert near_duplicate_groups(list("abc"), hashes).tolist() == [0, 0, 2]


low_bits, any_bits = st.integers(0, 2**12), st.integers(0, 2**64 - 1)
close_hashes = st.builds(lambda base, bits: base ^ bits, st.sampled_from([0, 2**64 - 1]), low_bits)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefghij"), close_hashes | any_bits), max_size=25))
def test_groups_are_the_components_of_the_ties(images: list[tuple[str, int]]) -> None:
    digests, hashes = [digest for digest, _ in images], np.array([value for _, value in images], np.uint64)[:, None]
    group = near_duplicate_groups(digests, hashes)
    assert group.dtype == np.int64
    assert (group[group] == group).all()
    assert (group <= np.arange(len(images))).all()

    def are_tied(one: int, two: int) -> bool:
        bits = (images[one][1] ^ images[two][1]).bit_count()
        return digests[one] == digests[two] or bits <= NEAR_DUPLICATE_BITS

    component = list(range(len(images)))
    tied = [pair for pair in combinations(component, 2) if are_tied(*pair)]
    for _ in images:  # the plainest means: the least index spreads along every tie
        for one, two in tied:
            component[one] = component[two] = min(component[one], component[two])
    assert group.tolist() == component
