"""What preprocessing computes, pinned by numbers worked out by hand from its definition (value/255 - mean) / std."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spt_deploy.errors import InputError, UsageError
from spt_deploy.preprocess import Placement, Preprocessing

# BGR 0, 128, 255 in RGB order: (255/255 - 0.485)/0.229, (128/255 - 0.456)/0.224, (0 - 0.406)/0.225
ORANGE = (2.2489083, 0.2051821, -1.8044444)
# BGR 64, 32, 16 likewise
DARK = (-1.8439079, -1.4754902, -0.6889760)

PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # value / 255 and nothing else

sides = st.integers(32, 400)
source_sides = st.integers(1, 2000)


def two_halves(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Left half orange, right half dark, BGR."""
    image = np.empty((height, width, 3), np.uint8)
    image[:, : width // 2] = (0, 128, 255)
    image[:, width // 2 :] = (64, 32, 16)
    return image


@pytest.mark.parametrize("height", [32, 64, 96], ids=["as it is", "shrunk by 2", "shrunk by 3"])
def test_resize_gives_the_golden_numbers(height: int) -> None:
    tensor = Preprocessing((32, 64)).apply(two_halves(height, 2 * height))
    assert tensor.shape == (3, 32, 64)
    assert tensor.dtype == np.float32
    for channel in range(3):
        np.testing.assert_allclose(tensor[channel, :, :32], ORANGE[channel], atol=1e-6)
        np.testing.assert_allclose(tensor[channel, :, 32:], DARK[channel], atol=1e-6)


def test_letterbox_gives_the_golden_numbers_and_the_mean_colour_around() -> None:
    tensor = Preprocessing((32, 32), "letterbox").apply(two_halves(16, 64))  # to 8 x 32, 12 rows above and below
    expected = np.zeros((3, 32, 32), np.float32)
    for channel in range(3):
        expected[channel, 12:20, :16] = ORANGE[channel]
        expected[channel, 12:20, 16:] = DARK[channel]
    np.testing.assert_allclose(tensor, expected, atol=1e-6)


def test_shrinking_averages_all_pixels() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[1::2, ::2] = image[::2, 1::2] = 100
    image[1::2, 1::2] = 200  # 0, 100, 100, 200 in each square of four: 100
    np.testing.assert_allclose(Preprocessing((32, 32), **PLAIN).apply(image), 100 / 255, atol=1e-6)


def test_enlarging_interpolates_between_pixel_centres() -> None:
    image = np.broadcast_to(np.arange(0, 128, 8, dtype=np.uint8)[None, :, None], (16, 16, 3)).copy()
    row = Preprocessing((32, 32), **PLAIN).apply(image)[0, 5] * 255
    # Output x lies at source (x + 0.5)/2 - 0.5, the ends are held: 0, 0.25, 0.75, 1.25 ... times 8
    np.testing.assert_allclose(row, np.clip(8 * ((np.arange(32) + 0.5) / 2 - 0.5), 0, 120), atol=1e-4)


def test_a_given_array_is_written_to_and_returned_padding_included() -> None:
    out = np.full((3, 32, 32), np.nan, np.float32)
    preprocessing = Preprocessing((32, 32), "letterbox")
    image = two_halves(16, 64)
    assert preprocessing.apply(image, out=out) is out
    np.testing.assert_array_equal(out, preprocessing.apply(image))


# Awkward places in the input: everything, rows above and below, columns left and right, one pixel.
PLACES: list[tuple[Any, tuple[int, int]]] = [
    ("resize", (50, 70)),
    ("letterbox", (50, 1000)),
    ("letterbox", (1000, 50)),
    ("letterbox", (1, 5000)),
    ("letterbox", (33, 47)),
]


@pytest.mark.parametrize(("mode", "source"), PLACES)
def test_normalised_bytes_are_what_the_numbers_are_to_the_last_bit_but_for_the_padding(
    mode: Any, source: tuple[int, int]
) -> None:
    preprocessing = Preprocessing((33, 47), mode, mean=(0.1, 0.5, 0.7), std=(0.3, 0.2, 1.1))
    image = np.random.default_rng(0).integers(0, 256, (*source, 3), np.uint8)
    found = preprocessing.apply_bytes(image)
    assert (found.shape, found.dtype) == ((33, 47, 3), np.uint8)
    (normalised,), expected = preprocessing.normalise(found[None]), preprocessing.apply(image)
    place = preprocessing.placement(source)
    inside = np.zeros((33, 47), bool)
    inside[place.top : place.top + place.height, place.left : place.left + place.width] = True
    np.testing.assert_array_equal(normalised[:, inside], expected[:, inside])
    half_a_level = np.array([0.5 / 255 / std for std in preprocessing.std])[:, None]
    assert (np.abs(normalised - expected)[:, ~inside] <= half_a_level + 1e-6).all()


@pytest.mark.parametrize(("mode", "source"), PLACES)
def test_bytes_are_written_into_a_given_array_padding_included(mode: Any, source: tuple[int, int]) -> None:
    preprocessing = Preprocessing((33, 47), mode)
    image = np.random.default_rng(0).integers(0, 256, (*source, 3), np.uint8)
    batch = np.full((2, 33, 47, 3), 77, np.uint8)
    row = batch[1]
    assert preprocessing.apply_bytes(image, out=row) is row
    np.testing.assert_array_equal(batch[1], preprocessing.apply_bytes(image))
    assert (batch[0] == 77).all()


def test_every_byte_survives_normalisation_and_what_lies_beyond_is_cut_off() -> None:
    preprocessing = Preprocessing((32, 32))
    every = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, 3)).reshape(1, 16, 16, 3)
    np.testing.assert_array_equal(preprocessing.nearest_bytes(preprocessing.normalise(every)), every)
    beyond = np.array([-100.0, 0.0, 100.0], np.float32).reshape(1, 1, 1, 3).repeat(3, 1)
    np.testing.assert_array_equal(
        preprocessing.nearest_bytes(beyond)[0, 0], [(0, 0, 0), preprocessing.padding, (255, 255, 255)]
    )


def test_the_padding_is_the_byte_nearest_to_the_mean() -> None:
    assert Preprocessing((32, 32)).padding == (124, 116, 104)
    assert Preprocessing((32, 32), mean=(-0.1, 0.0, 1.3)).padding == (0, 0, 255)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((40, 40), np.uint8),
        np.zeros((40, 40, 4), np.uint8),
        np.zeros((40, 40, 3), np.float32),
        np.zeros((0, 40, 3), np.uint8),
    ],
    ids=["grey", "alpha", "float", "empty"],
)
def test_what_is_no_image_is_an_input_error(image: npt.NDArray[Any]) -> None:
    for prepare in (Preprocessing((32, 32)).apply, Preprocessing((32, 32)).apply_bytes):
        with pytest.raises(InputError, match="expected H x W x 3 uint8, BGR"):
            prepare(image)


@pytest.mark.parametrize(
    ("mode", "size", "source", "place"),
    [
        ("resize", (32, 64), (1000, 10), (0, 0, 32, 64)),
        ("letterbox", (224, 224), (480, 640), (28, 0, 168, 224)),
        ("letterbox", (224, 224), (640, 480), (0, 28, 224, 168)),
        ("letterbox", (800, 1280), (576, 768), (0, 106, 800, 1067)),
        ("letterbox", (32, 32), (1, 5000), (15, 0, 1, 32)),  # never less than one pixel
    ],
)
def test_the_placement_is_centred_and_keeps_the_aspect_ratio(
    mode: Any, size: tuple[int, int], source: tuple[int, int], place: tuple[int, int, int, int]
) -> None:
    assert Preprocessing(size, mode).placement(source) == Placement(*place)


@given(size=st.tuples(sides, sides), source=st.tuples(source_sides, source_sides))
def test_a_letterbox_lies_inside_touches_two_sides_and_is_at_most_half_a_pixel_off(
    size: tuple[int, int], source: tuple[int, int]
) -> None:
    place = Preprocessing(size, "letterbox").placement(source)
    scale = min(size[0] / source[0], size[1] / source[1])
    assert min(place.top, place.left) >= 0
    assert place.top + place.height <= size[0]
    assert place.left + place.width <= size[1]
    assert place.height == size[0] or place.width == size[1]
    assert abs(place.height - max(1, source[0] * scale)) <= 0.5 + 1e-9
    assert abs(place.width - max(1, source[1] * scale)) <= 0.5 + 1e-9


@given(
    mode=st.sampled_from(["letterbox", "resize"]),
    size=st.tuples(sides, sides),
    source=st.tuples(source_sides, source_sides),
    share=st.tuples(*[st.floats(0, 1, width=32)] * 4),
)
def test_boxes_come_back_from_the_input_to_where_they_were(
    mode: Any, size: tuple[int, int], source: tuple[int, int], share: tuple[float, float, float, float]
) -> None:
    preprocessing = Preprocessing(size, mode)
    boxes = np.array([share], np.float32) * np.array([source[1], source[0]] * 2, np.float32)
    inside = preprocessing.boxes_to_input(boxes, source)
    place = preprocessing.placement(source)
    assert inside[:, 0].min() >= place.left - 1e-3
    assert inside[:, 3].max() <= place.top + place.height + 1e-3
    # float32 holds about 7 digits, and a source may be a hundred times larger than the input
    np.testing.assert_allclose(preprocessing.boxes_to_source(inside, source), boxes, atol=1e-5 * max(*source, 100))


def test_boxes_of_the_padding_are_clipped_to_the_source() -> None:
    preprocessing = Preprocessing((32, 32), "letterbox")
    boxes = preprocessing.boxes_to_source([[-5, 0, 40, 32]], (16, 64))
    np.testing.assert_array_equal(boxes, [[0, 0, 64, 16]])


def test_no_boxes_are_no_boxes() -> None:
    preprocessing = Preprocessing((32, 32))
    assert preprocessing.boxes_to_input([], (10, 10)).shape == (0, 4)
    assert preprocessing.boxes_to_source(np.empty((0, 4)), (10, 10)).shape == (0, 4)


def test_a_box_marks_the_pixels_it_marked_before() -> None:
    image = np.zeros((60, 90, 3), np.uint8)
    image[20:40, 30:60] = 255
    preprocessing = Preprocessing((64, 64), "letterbox", **PLAIN)
    x0, y0, x1, y1 = np.rint(preprocessing.boxes_to_input([[30, 20, 60, 40]], (60, 90))[0]).astype(int)
    tensor = preprocessing.apply(image)[0]
    assert tensor[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].min() == 1.0
    tensor[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1] = 0
    assert tensor.max() == 0.0


def test_a_map_of_the_input_lands_on_the_source_without_its_padding() -> None:
    values = np.zeros((4, 4), np.float32)
    values[:, 2:] = 1.0  # right half of the input
    shown = Preprocessing((64, 64), "letterbox").map_to_source(values, (30, 100))
    assert shown.shape == (30, 100)
    assert shown[:, :30].max() == 0.0
    assert shown[:, 70:].min() == 1.0


def test_preprocessing_survives_a_dictionary() -> None:
    preprocessing = Preprocessing((48, 96), "letterbox", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (31, 64)}, "31x64 is too small"),
        ({"mode": "crop"}, "known are letterbox, resize"),
        ({"std": (1.0, 0.0, 1.0)}, "std positive"),
        ({"mean": (0.5, 0.5)}, "three numbers each"),
    ],
)
def test_a_value_out_of_range_is_named(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"size": (64, 64)} | changes
    with pytest.raises(UsageError, match=message):
        Preprocessing(**values)


@pytest.mark.parametrize("values", [{}, {"size": 3}, {"size": [64]}, {"size": [64, 64], "crop": 1}])
def test_a_dictionary_that_describes_no_preprocessing_is_a_usage_error(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="not a preprocessing description"):
        Preprocessing.from_dict(values)
