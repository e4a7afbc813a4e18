"""A model from Python says what the command says, of a picture, of many, and of a stream."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import spt_deploy
from spt_deploy import Predictor
from spt_deploy.errors import InputError, SourceError, UsageError
from spt_deploy.image_input import Images
from spt_deploy.runtimes.base import Arrays
from spt_deploy.workflows.infer import infer
from tests.exported import Exported, make_exported
from tests.spt_deploy.streaming.support import ColourRunner, ExpectingRunner, facts_of, picture, write_video


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_exported(tmp_path / "made", (64, 96)).onnx


def test_a_stream_says_what_the_command_writes(model: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", range(0, 400, 40))
    report = infer([video], model, device="cpu", out=tmp_path / "out", batch=4, video=False)
    lines = [json.loads(line) for line in (report.folder / "predictions.jsonl").read_text().splitlines()]
    with Predictor(model, device="cpu", batch=3) as predictor:
        streamed = list(predictor.stream(video))
    assert [frame.index for frame, _ in streamed] == [line["frame"] for line in lines]
    for (_, prediction), line in zip(streamed, lines, strict=True):
        found = json.loads(json.dumps(prediction.to_dict()))
        assert [c["label"] for c in found["classes"]] == [c["label"] for c in line["classes"]]
        assert found["select_ratio"] == line["select_ratio"]


def test_one_picture_many_and_a_file_have_the_same_answer(tmp_path: Path) -> None:
    pictures = [picture(n, 40 + n, 60) for n in range(5)]
    path = tmp_path / "2.png"
    assert cv2.imwrite(str(path), pictures[2])
    with Predictor(ColourRunner(), batch=2) as predictor:
        together = predictor.predict_batch(pictures)
        assert [p.to_dict() for p in together] == [predictor.predict(p).to_dict() for p in pictures]
        assert predictor.predict(path).to_dict() == predictor.predict(str(path)).to_dict() == together[2].to_dict()
        assert predictor.predict_batch([]) == []


class Dawdling(ColourRunner):
    """Lets other threads go first."""

    def _run(self, images: Images, threshold: float | None) -> Arrays:
        time.sleep(0.01)
        return super()._run(images, threshold)


def test_threads_that_share_one_get_each_their_own_answer() -> None:
    pictures = [picture(n) for n in range(8)]
    with Predictor(Dawdling()) as predictor, ThreadPoolExecutor(4) as pool:
        alone = [predictor.predict(each).to_dict() for each in pictures]
        assert [answer.to_dict() for answer in pool.map(predictor.predict, pictures)] == alone
    assert len({json.dumps(answer) for answer in alone}) > 1


def test_a_full_batch_is_expected_and_no_other() -> None:
    runner = ExpectingRunner()
    with Predictor(runner, batch=2) as predictor:
        predictor.predict(picture(0))
        assert runner.expected == []
        predictor.predict_batch([picture(n) for n in range(3)])
        assert runner.expected == [2]


def test_a_stream_that_is_left_leaves_no_thread(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", range(0, 8000, 40))
    before = set(threading.enumerate())
    with Predictor(ColourRunner()) as predictor:
        for frame, _ in predictor.stream(video):
            if frame.index == 5:
                break
    import gc

    gc.collect()
    assert set(threading.enumerate()) <= before


def test_what_cannot_be_read_is_told_after_what_could(tmp_path: Path) -> None:
    for name in "ac":
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), picture(1))
    (tmp_path / "b.png").write_bytes(b"no image")
    seen = []
    with Predictor(ColourRunner()) as predictor:
        stream = predictor.stream(tmp_path)
        with pytest.raises(SourceError, match="is no image"):  # noqa: PT012 - that is when it is raised
            for frame, _ in stream:
                seen.append(Path(frame.source).name)
        assert seen == ["a.png", "c.png"]
        with pytest.raises(SourceError, match="there is no file"):
            predictor.stream(tmp_path / "nowhere.mp4")  # at once, before anybody asks for a frame


def test_arguments_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch is 0"):
        Predictor(ColourRunner(), batch=0)
    with pytest.raises(UsageError, match="conf is 2"):
        Predictor(ColourRunner(), conf=2)
    with pytest.raises(InputError, match="there is no file"):
        Predictor(tmp_path / "nothing.onnx")
    with Predictor(ColourRunner()) as predictor, pytest.raises(InputError, match="expected H x W x 3 uint8"):
        predictor.predict(np.zeros((4, 4), np.uint8))


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (None, "an image of type NoneType; expected .* cv2.imread gives None for a file that it cannot read"),
        ([[0, 0, 0]], "an image of type list; expected a file's name, or a NumPy array"),
        (memoryview(b""), r"an image of type memoryview; .* in RGB, as Pillow's, give numpy\.asarray"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(image: Any, sentence: str) -> None:
    with Predictor(ColourRunner()) as predictor, pytest.raises(InputError, match=sentence):
        predictor.predict_batch([picture(0), image])


@pytest.mark.parametrize("images", ["street.jpg", Path("street.jpg")])
def test_one_file_is_no_batch(images: Any) -> None:
    with Predictor(ColourRunner()) as predictor, pytest.raises(InputError, match=r"'street\.jpg', one file; .* a list"):
        predictor.predict_batch(images)


def test_the_precision_is_that_of_the_runner(model: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is an extra")
    with Predictor(model, device="cpu", runtime="openvino", precision="fp32") as predictor:
        assert predictor.predict(picture(7)).classes
    with pytest.raises(UsageError, match="fp64"):
        Predictor(model, device="cpu", runtime="openvino", precision="fp64")
    with pytest.raises(UsageError, match="own precision"):
        Predictor(model, device="cpu", runtime="onnxruntime", precision="bf16")


@pytest.fixture(scope="module")
def dial(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make_exported(tmp_path_factory.mktemp("dial"), (64, 96), runtime_threshold=True)


@pytest.mark.parametrize("kind", ["checkpoint", "onnx"])
def test_the_threshold_of_a_call_goes_before_that_of_the_predictor_and_that_before_the_model_s(
    dial: Exported, kind: str, tmp_path: Path
) -> None:
    model = dial.checkpoint if kind == "checkpoint" else dial.onnx
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    path = tmp_path / "noise.png"
    assert cv2.imwrite(str(path), noise)
    with Predictor(model, device="cpu") as own, Predictor(model, device="cpu", threshold=0.02) as high:
        low, middle = own.predict(noise).select_ratio, high.predict(noise).select_ratio
        assert low != middle
        assert own.predict(noise, 0.01).select_ratio == low  # the model's own
        assert high.predict(noise, threshold=0.01).select_ratio == low
        assert [each.select_ratio for each in own.predict_batch([noise, path], 0.02)] == [middle, middle]
        assert [each.select_ratio for _, each in own.stream(path, threshold=0.02)] == [middle]
        assert [each.select_ratio for _, each in high.stream(path)] == [middle]


def test_a_model_that_takes_no_threshold_and_a_threshold_that_is_none_are_refused_at_once(
    model: Path, tmp_path: Path
) -> None:
    assert cv2.imwrite(str(tmp_path / "a.png"), picture(1))
    sentence = "export it again with --runtime-threshold"
    with pytest.raises(InputError, match=sentence):
        Predictor(model, device="cpu", threshold=0.5)
    with Predictor(model, device="cpu") as predictor:
        with pytest.raises(InputError, match=sentence):
            predictor.predict(picture(1), 0.5)
        with pytest.raises(InputError, match=sentence):
            predictor.stream(tmp_path / "a.png", threshold=0.5)
        with pytest.raises(UsageError, match=r"threshold is 1\.5; expected a number between 0 and 1"):
            predictor.predict(picture(1), 1.5)


def test_detections_become_those_of_supervision() -> None:
    supervision = pytest.importorskip("supervision", reason="not a dependency")
    with Predictor(ColourRunner(facts_of("detect"))) as predictor:
        prediction = predictor.predict(picture(3))
    assert prediction.detections
    found = prediction.to_supervision()
    assert isinstance(found, supervision.Detections)
    np.testing.assert_allclose(found.xyxy, [d.box for d in prediction.detections], rtol=1e-6)
    assert found.confidence.tolist() == pytest.approx([d.score for d in prediction.detections])
    assert list(found.data["class_name"]) == [d.name for d in prediction.detections]


def test_the_package_offers_it_and_nothing_that_is_not_there() -> None:
    assert spt_deploy.Predictor is Predictor
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = spt_deploy.Nothing  # type: ignore[attr-defined]
