"""What is drawn, where, and what is left alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from spt_deploy.config import BackboneConfig
from spt_deploy.errors import UsageError
from spt_deploy.facts import ModelFacts
from spt_deploy.postprocess import Classification, Detection, Prediction
from spt_deploy.streaming.overlay import DrawnOnce, Overlay, _Pen, colour_of
from tests.spt_deploy.streaming.support import facts_of

GREY = np.full((240, 320, 3), 128, dtype=np.uint8)
DETECT = facts_of("detect", size=(240, 320))
MIDDLE = np.full((10, 10), 0.5, np.float32)


def drawn(
    overlay: Overlay,
    prediction: Prediction,
    facts: ModelFacts = DETECT,
    image: npt.NDArray[np.uint8] = GREY,
) -> npt.NDArray[np.uint8]:
    before = image.copy()
    picture = overlay.draw(image, prediction, facts)
    np.testing.assert_array_equal(image, before, err_msg="the frame itself must stay as it is")
    assert picture.shape == image.shape
    assert picture.dtype == np.uint8
    return picture


def changed(picture: npt.NDArray[np.uint8], image: npt.NDArray[np.uint8] = GREY) -> npt.NDArray[np.bool_]:
    return np.asarray((picture != image).any(axis=2))


def test_nothing_asked_or_nothing_found_leaves_the_picture_as_it_is() -> None:
    box = Detection((50, 60, 150, 160), 0, "red", 0.9)
    everything = Prediction(detections=(box,), selection=np.ones((15, 20), np.float32))
    assert not changed(drawn(Overlay(boxes=False, selection=False), everything)).any()
    assert not changed(drawn(Overlay(), Prediction(detections=()))).any()


def test_a_box_has_its_four_sides_in_the_colour_of_its_class_and_its_inside_free() -> None:
    picture = drawn(Overlay(), Prediction(detections=(Detection((50.4, 60.0, 149.8, 160.0), 1, "green", 0.9),)))
    for point in ((100, 60), (100, 160), (50, 110), (150, 110)):  # x, y
        assert tuple(picture[point[1], point[0]]) == colour_of(1)
    assert not changed(picture)[70:150, 60:140].any()


@pytest.mark.parametrize("top", [100, 5, 0, -9, 200])
def test_an_object_that_is_answered_as_three_classes_has_three_legible_labels(top: int) -> None:
    names = "cat", "dog", "fox"
    found = [Detection((50 + i, top + i, 90, top + 90), i, name, 0.9 - i / 10) for i, name in enumerate(names)]
    picture = drawn(Overlay(), Prediction(detections=tuple(found)))
    pen = _Pen(GREY.copy())
    width, height = pen._plate_size("cat 90%")
    for detection in found:
        of_its_colour = (picture == colour_of(detection.label)).all(2)
        rows = of_its_colour[:, 50 : 50 + width].sum(1) > width // 4  # those of a plate; a frame has two lines
        assert rows.sum() >= height - 2 * pen._gap, detection.name


@pytest.mark.parametrize("box", [(0, 0, 320, 240), (-40, -40, 20, 20), (300, 220, 400, 300), (319, 239, 320, 240)])
def test_a_box_and_its_label_at_an_edge_stay_in_the_picture(box: tuple[float, float, float, float]) -> None:
    picture = drawn(Overlay(), Prediction(detections=(Detection(box, 0, "a rather long name of a class", 0.5),)))
    assert changed(picture).any()


def test_the_selection_is_warm_where_tokens_were_kept_and_cold_where_they_were_dropped() -> None:
    selection = np.zeros((15, 20), np.float32)
    selection[:, 10:] = 1
    picture = drawn(Overlay(), Prediction(detections=(), selection=selection)).astype(int)
    cold, warm = picture[100, 40], picture[100, 280]
    assert cold[0] > cold[2] + 40  # blue above red
    assert warm[2] > warm[0] + 40
    assert np.abs(picture[:200] - 128).max() < 128  # the picture still shows through


def test_the_selection_lies_where_the_letterbox_puts_it() -> None:
    # A source of 100 x 320 fills the middle of a 240 x 320 input: the border's tokens must not show.
    selection = np.zeros((15, 20), np.float32)
    selection[:4], selection[-4:] = 1, 1
    wide = np.full((100, 320, 3), 128, dtype=np.uint8)
    picture = drawn(Overlay(), Prediction(detections=(), selection=selection), image=wide).astype(int)
    middle = picture[30:70, 20:300]
    assert (middle[..., 0] > middle[..., 2] + 20).all()


def test_a_selection_that_is_no_number_is_drawn_as_dropped() -> None:
    shown = drawn(Overlay(), Prediction(detections=(), selection=np.full((15, 20), np.nan, np.float32)))
    dropped = drawn(Overlay(), Prediction(detections=(), selection=np.zeros((15, 20), np.float32)))
    np.testing.assert_array_equal(shown, dropped)


def test_a_classifier_shows_its_best_class_and_a_multilabel_model_all() -> None:
    classes = tuple(Classification(label, name, 0.9) for label, name in enumerate(("red", "green", "blue")))
    one = drawn(Overlay(), Prediction(classes=classes), facts_of("classify"))
    three = drawn(Overlay(), Prediction(classes=classes), facts_of("multilabel"))
    assert (one == colour_of(0)).all(axis=2).any()
    assert not (one == colour_of(1)).all(axis=2).any()
    for label in range(3):
        assert (three == colour_of(label)).all(axis=2).any()


@pytest.mark.parametrize("size", [(1, 1), (7, 500), (32, 32), (1080, 1920)])
def test_any_size_can_be_drawn_on(size: tuple[int, int]) -> None:
    prediction = Prediction(
        detections=(Detection((0.0, 0.0, float(size[1]), float(size[0])), 7, "coral", 0.3),),
        select_ratio=(0.5,),
        selection=np.ones((4, 4), np.float32),
    )
    drawn(Overlay(), prediction, image=np.zeros((*size, 3), dtype=np.uint8))


def test_labels_grow_with_the_picture() -> None:
    heights = []
    for side in (480, 1440):
        image = np.full((side, side, 3), 128, dtype=np.uint8)
        picture = drawn(Overlay(), Prediction(classes=(Classification(0, "red", 0.9),)), facts_of(), image)
        heights.append(changed(picture, image).any(axis=1).sum())
    assert heights[1] == pytest.approx(3 * heights[0], rel=0.15)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["boxes", "selection"], Overlay(True, True)),
        (["selection"], Overlay(False, True)),
        (["boxes"], Overlay(True, False)),
        (["boxes", "selection:3.5"], Overlay(True, True, "3.5")),
        (["selection:3.5"], Overlay(False, True, "3.5")),
        (["none"], Overlay(False, False)),
        ([], Overlay(False, False)),
        ([""], Overlay(False, False)),
    ],
)
def test_parts_are_named_singly_or_together(parts: list[str], expected: Overlay) -> None:
    assert Overlay.of(parts) == expected


@pytest.mark.parametrize("parts", [["heat"], ["boxes", "masks"], ["none", "boxes"], ["boxes:3.1"]])
def test_an_unknown_part_is_refused_with_the_known_ones(parts: list[str]) -> None:
    with pytest.raises(UsageError, match="expected boxes, selection, both with a comma, or none"):
        Overlay.of(parts)


def test_the_selection_of_one_block_has_the_edges_of_its_tokens() -> None:
    mask = np.zeros((15, 20), np.bool_)
    mask[:, 10:] = True
    answer = Prediction(detections=(), select_ratio=(0.1, 0.5), masks={"3.2": mask})
    picture = drawn(Overlay(block="3.2"), answer).astype(int)
    dropped, kept = picture[:200, :158], picture[:200, 162:]
    assert (dropped[..., 0] > dropped[..., 2] + 40).all()  # blue above red up to the edge
    assert (kept[..., 2] > kept[..., 0] + 40).all()


def test_the_legend_says_which_block_and_what_it_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    write = _Pen._write
    monkeypatch.setattr(_Pen, "_write", lambda pen, text, *where: (said.append(text), write(pen, text, *where)))
    mask = np.zeros((10, 10), np.bool_)
    mask[:3] = True
    answer = Prediction(detections=(), select_ratio=(0.9,), masks={"3.2": mask}, selection=MIDDLE)
    drawn(Overlay(block="3.2"), answer)
    drawn(Overlay(), answer)
    assert said == ["block 3.2 kept 30%", "kept 90%"]


def test_a_block_is_checked_against_those_of_the_model() -> None:
    micro = BackboneConfig.from_name("spt_micro")
    for block in (None, "3.1", "4.2"):
        Overlay(block=block).check(micro)
    with pytest.raises(UsageError, match=r"SPA block '3.3'; the model's are 3.1, 3.2, 4.1, 4.2"):
        Overlay.of(["selection:3.3"]).check(micro)
    with pytest.raises(UsageError, match=r"SPA block '3.1', and this swin_micro has none"):
        Overlay.of(["selection:3.1"]).check(BackboneConfig.from_name("swin_micro"))
    with pytest.raises(UsageError, match=r"overlay is selection, and this swin_micro selects nothing"):
        Overlay.of(["selection"]).check(BackboneConfig.from_name("swin_micro"))
    Overlay().check(BackboneConfig.from_name("swin_micro"))  # there are boxes


def test_two_selections_are_refused() -> None:
    with pytest.raises(UsageError, match="expected one selection"):
        Overlay.of(["selection", "selection:3.1"])


def test_a_picture_that_several_ask_for_is_drawn_once() -> None:
    once = DrawnOnce(Overlay())
    answers = [Prediction(detections=(Detection((50, 60, 150, 160), label, "red", 0.9),)) for label in range(2)]
    first = once.draw(GREY, answers[0], DETECT)
    assert once.draw(GREY, answers[0], DETECT) is first
    np.testing.assert_array_equal(once.draw(GREY, answers[1], DETECT), Overlay().draw(GREY, answers[1], DETECT))


def test_each_thread_gets_the_drawing_of_its_own_frame() -> None:
    once = DrawnOnce(Overlay())
    answers = [Prediction(detections=(Detection((50, 60, 150, 160), label, "red", 0.9),)) for label in range(8)]
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda answer: once.draw(GREY, answer, DETECT), answers * 4))
    for answer, picture in zip(answers * 4, drawn, strict=True):
        np.testing.assert_array_equal(picture, Overlay().draw(GREY, answer, DETECT))
