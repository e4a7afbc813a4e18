"""The answers of infer, with real models, do not depend on batches, on other sources, or on threads.

Which frame, when, which label, how many: exactly the same. Scores and box corners are sums of floats, whose order a
runtime may choose by the size of a batch; PyTorch does, and the last of the written digits may differ by one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from spt_deploy.workflows import infer as infer_module
from spt_deploy.workflows.infer import infer
from tests.exported import Exported, make_exported
from tests.spt_deploy.streaming.support import ExpectingRunner, Recording

LAST_SCORE_DIGIT = 1.1e-5  # they are written with five digits
LAST_BOX_DIGIT = 1.1e-2  # with two, in pixels
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make_exported(tmp_path_factory.mktemp("model"), (64, 96), task="detect")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of 11, 5 and 7 frames of noise, so that no two frames have the same answer."""
    folder, random = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    paths = [folder / f"{name}.mp4" for name in NAMES]
    for path, frames in zip(paths, (11, 5, 7), strict=True):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            (stream.height, stream.width), stream.pix_fmt = (48, 64), "yuv420p"
            for _ in range(frames):
                image = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
            container.mux(stream.encode(None))
    return paths


def answers(sources: list[Path], out: Path, **arguments: Any) -> dict[str, list[dict[str, Any]]]:
    """The lines of every source, in their order."""
    infer(sources, out=out, device="cpu", video=False, **arguments)
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    return {str(source): [line for line in lines if line["source"] == str(source)] for source in sources}


def check_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Line by line; detections whose scores are all but equal may change places."""
    for line, reference in zip(found, expected, strict=True):
        assert (line["frame"], line["time"]) == (reference["frame"], reference["time"])
        assert line["select_ratio"] == pytest.approx(reference["select_ratio"], abs=LAST_SCORE_DIGIT)
        left = list(reference["detections"])
        assert left, "a comparison of nothing"
        for detection in line["detections"]:
            same = [
                other
                for other in left
                if other["label"] == detection["label"]
                and abs(other["score"] - detection["score"]) <= LAST_SCORE_DIGIT
                and np.allclose(other["box"], detection["box"], rtol=0, atol=LAST_BOX_DIGIT)
            ]
            assert same, (detection, left)
            left.remove(same[0])
        assert not left


@pytest.mark.parametrize(("runtime", "batches"), [("onnxruntime", (2, 3, 8)), ("torch", (2, 3, 8)), ("openvino", (3,))])
def test_answers_do_not_depend_on_the_batch_nor_on_the_other_sources(
    runtime: str, batches: tuple[int, ...], made: Exported, videos: list[Path], tmp_path: Path
) -> None:
    model = made.checkpoint if runtime == "torch" else made.onnx
    alone: dict[str, list[dict[str, Any]]] = {}
    for video in videos[:1] if runtime == "openvino" else videos:
        alone |= answers([video], tmp_path / video.stem, model=model, runtime=runtime, batch=1)
    for batch in batches:
        sources = videos[::-1] if batch == 3 else videos
        found = answers(sources, tmp_path / "out", model=model, runtime=runtime, batch=batch)
        for source, expected in alone.items():
            check_same(found[source], expected)


@pytest.mark.parametrize(
    ("counts", "batch", "prompt", "expected"),
    [
        ([30], 8, True, 8),
        ([5, 3], 8, True, 8),
        ([7], 8, True, None),  # not one is full
        ([1], 8, True, 1),
        ([30], 8, False, None),  # a camera: as many as came while the last batch was run
        ([30], 1, False, 1),
    ],
)
def test_the_model_hears_which_batches_will_come(
    counts: list[int], batch: int, prompt: bool, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [Recording(f"{number}", count) for number, count in enumerate(counts)]
    for source in sources:
        source.prompt = prompt
    monkeypatch.setattr(infer_module, "open_sources", lambda *given: sources)
    runner = ExpectingRunner()
    infer(["any"], runner, batch=batch, out=tmp_path / "out", video=False)
    assert runner.expected == [expected]


@pytest.fixture
def one_core() -> Iterator[None]:
    """Runtimes that are opened now count one processor, and PyTorch may use two threads."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(2)
    yield
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors cannot be chosen here")
@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_answers_do_not_depend_on_the_number_of_threads(
    runtime: str, made: Exported, videos: list[Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = made.checkpoint if runtime == "torch" else made.onnx
    before = answers(videos[:1], tmp_path / "before", model=model, runtime=runtime, batch=4)
    request.getfixturevalue("one_core")
    after = answers(videos[:1], tmp_path / "after", model=model, runtime=runtime, batch=4)
    check_same(after[str(videos[0])], before[str(videos[0])])
