"""A real video, from a checkpoint and from its ONNX file: every frame is answered, the same by both, in flat memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest

from spt_deploy.workflows.infer import infer
from tests.exported import Exported, make_exported

FRAMES = 795
# A process's peak, with the annotated video being encoded; printed by the process itself.
_PEAK = """
import resource, sys
from pathlib import Path
from spt_deploy.workflows.infer import infer
infer([Path(sys.argv[1])], Path(sys.argv[2]), out=Path(sys.argv[3]), max_frames=int(sys.argv[4]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make_exported(tmp_path_factory.mktemp("video"), (64, 64))


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_checkpoint_and_onnx_file_answer_all_frames_alike_and_the_video_plays(
    made: Exported, vtest_video: Path, tmp_path: Path
) -> None:
    infer([vtest_video], made.checkpoint, out=tmp_path / "torch", video=False)
    infer([vtest_video], made.onnx, out=tmp_path / "onnx")
    ours, theirs = _lines(tmp_path / "torch"), _lines(tmp_path / "onnx")
    assert len(ours) == len(theirs) == FRAMES
    assert [line["frame"] for line in theirs] == list(range(FRAMES))
    for a, b in zip(ours, theirs, strict=True):
        assert (a["frame"], a["time"]) == (b["frame"], b["time"])
        assert a["select_ratio"] == pytest.approx(b["select_ratio"], abs=0.1)  # a token on the threshold may flip
        scores = {c["name"]: c["score"] for c in a["classes"]}
        assert {c["name"]: c["score"] for c in b["classes"]} == pytest.approx(scores, abs=5e-3)
    with av.open(str(tmp_path / "onnx" / "annotated.mp4")) as video, av.open(str(vtest_video)) as source:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        times = [frame.time for frame in video.decode(stream)]
        expected = [frame.time for frame in source.decode(source.streams.video[0])]
    assert len(times) == FRAMES
    assert times == pytest.approx(expected, abs=1e-3)


def test_memory_is_the_same_for_200_and_for_795_frames(made: Exported, vtest_video: Path, tmp_path: Path) -> None:
    peaks = []
    for frames in (200, FRAMES):
        arguments = [str(vtest_video), str(made.onnx), str(tmp_path / str(frames)), str(frames)]
        command = [sys.executable, "-c", _PEAK, *arguments]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < 1.05 * peaks[0]
