"""Batches, order and counts: the answers do not depend on how frames are batched, and no frame is lost."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from spt_deploy.interrupt import StopRequest
from spt_deploy.postprocess import Postprocessing, Prediction
from spt_deploy.runtimes.base import Arrays
from spt_deploy.streaming import pipeline as pipelines
from spt_deploy.streaming.annotations import Annotations
from spt_deploy.streaming.frames import Failure, Frame, Sampling, Source
from spt_deploy.streaming.overlay import Overlay
from spt_deploy.streaming.pipeline import READY, Pipeline, Progress
from spt_deploy.streaming.sources import Unreadable, open_sources
from spt_deploy.streaming.summary import STAGES, StreamSummary
from spt_deploy.streaming.video import VideoFile
from spt_deploy.streaming.writers import PredictionLog
from tests.spt_deploy.streaming.support import ColourRunner, Recording, facts_of, picture, read_times, write_video


def run(
    names: list[Path],
    out: Path,
    batch: int = 4,
    runner: ColourRunner | None = None,
    stop: StopRequest | None = None,
    heard: list[Progress] | None = None,
    sampling: Sampling | None = None,
    drawn_by: type[Annotations] = Annotations,
) -> tuple[StreamSummary, list[dict[str, Any]]]:
    """The summary and the lines of a run."""
    sources = open_sources(names)
    log = PredictionLog(out)
    with runner or ColourRunner() as opened:
        annotations = drawn_by(out, sources, Overlay(), opened.facts)
        listen = None if heard is None else heard.append
        pipeline = Pipeline(opened, Postprocessing(), log, annotations, batch, listen)
        try:
            summary = pipeline.run(sources, sampling or Sampling(), stop or StopRequest())
        except BaseException:
            annotations.drop()
            log.drop()
            raise
    annotations.keep()
    lines = log.keep()[0].read_text(encoding="utf-8").splitlines()
    return summary, [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("count", "batch", "expected"),
    [(1, 1, [1]), (1, 8, [1]), (8, 8, [8]), (9, 4, [4, 4, 1]), (3, 2, [2, 1]), (5, 1, [1] * 5)],
)
def test_batches_are_full_and_the_last_is_what_is_left(
    count: int, batch: int, expected: list[int], tmp_path: Path
) -> None:
    runner = ColourRunner()
    video = write_video(tmp_path / "v.mp4", range(0, 40 * count, 40))
    summary, lines = run([video], tmp_path / "out", batch, runner)
    assert runner.batches == expected
    assert [line["frame"] for line in lines] == list(range(count))
    assert (summary.read, summary.inferred, summary.dropped, summary.failures) == (count, count, 0, [])


def test_the_answers_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", range(0, 440, 40))
    _, alone = run([video], tmp_path / "1", batch=1)
    for batch in (2, 5, 11, 64):
        assert run([video], tmp_path / str(batch), batch)[1] == alone


def test_each_line_is_the_answer_to_its_own_frame(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", range(0, 440, 40))
    seen: list[npt.NDArray[np.float32]] = []

    class Remembering(ColourRunner):
        def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
            seen.extend(images.copy())
            return super()._run(images, threshold)

    _, lines = run([video], tmp_path / "out", 3, Remembering())
    frames = [frame.image for frame in open_sources([video])[0].frames(Sampling())]  # type: ignore[union-attr]
    for line, frame, given in zip(lines, frames, seen, strict=True):
        np.testing.assert_array_equal(given, facts_of().preprocessing.apply(frame))
        best = line["classes"][0]
        assert best["label"] == int(given.mean(axis=(1, 2)).argmax())


def test_batches_fill_across_sources_which_take_turns(tmp_path: Path) -> None:
    runner = ColourRunner()
    videos = [write_video(tmp_path / f"{n}.mp4", range(0, 40 * n, 40)) for n in (3, 1, 2)]
    summary, lines = run(videos, tmp_path / "out", 4, runner)
    assert runner.batches == [4, 2]
    expected = [(str(videos[i]), frame) for frame in range(3) for i, n in enumerate((3, 1, 2)) if frame < n]
    expected[3:] = [expected[3], *sorted(expected[4:], key=lambda e: e[1])]  # a source that ends gives up its turn
    assert [(line["source"], line["frame"]) for line in lines] == expected
    assert sorted(path.name for path in (tmp_path / "out").glob("*.mp4")) == [f"{n}.annotated.mp4" for n in (1, 2, 3)]
    assert summary.last == expected[-1]


def test_a_video_has_its_name_as_soon_as_its_last_frame_is_written(tmp_path: Path) -> None:
    videos = [write_video(tmp_path / f"{n}.mp4", range(0, 160, 40)) for n in (1, 2, 3)]
    long = write_video(tmp_path / "4.mp4", range(0, 4000, 40))
    waited = 0

    class Waiting(ColourRunner):
        def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
            nonlocal waited
            deadline = time.monotonic() + 20  # while the long one is still on its way
            while len(self.batches) == 20 and len(list((tmp_path / "out").glob("[!.]*.mp4"))) < 3:
                assert time.monotonic() < deadline
                time.sleep(0.01)
                waited += 1
            return super()._run(images, threshold)

    run([*videos, long], tmp_path / "out", 4, Waiting())
    assert sorted(path.name for path in (tmp_path / "out").glob("*.mp4")) == [f"{n}.annotated.mp4" for n in range(1, 5)]


def test_a_broken_image_among_good_ones_is_counted_and_the_good_ones_are_done(tmp_path: Path) -> None:
    import cv2

    for name in ("a", "c", "d"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture(1))
    (tmp_path / "b.png").write_bytes(b"no image")
    summary, lines = run([tmp_path], tmp_path / "out", 2)
    assert [Path(line["source"]).name for line in lines] == ["a.png", "c.png", "d.png"]
    assert [failure.source for failure in summary.failures] == [str(tmp_path / "b.png")]
    assert summary.read == summary.inferred == 3


def test_a_stop_request_finishes_what_was_read_and_reads_no_more(tmp_path: Path) -> None:
    stop = StopRequest()

    class Stopping(ColourRunner):
        def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
            if len(self.batches) == 2:
                stop.signal_number = 15
            return super()._run(images, threshold)

    videos = [write_video(tmp_path / f"{n}.mp4", range(0, 4000, 40)) for n in (1, 2)]
    summary, lines = run(videos, tmp_path / "out", 4, Stopping(), stop)
    assert summary.stopped_by == 15
    assert 12 <= summary.read == summary.inferred == len(lines) < 60  # no more than the queues hold


def test_progress_is_told_after_every_batch_with_the_total_after_sampling(tmp_path: Path) -> None:
    heard: list[Progress] = []
    video = write_video(tmp_path / "v.mp4", range(0, 800, 40))
    summary, _ = run([video], tmp_path / "out", 4, heard=heard, sampling=Sampling(stride=2))
    assert [(now.done, now.total) for now in heard] == [(4, 10), (8, 10), (10, 10)]
    assert heard[-1].mean_select_ratio == pytest.approx(summary.mean_select_ratio)


def test_the_summary_accounts_for_the_time_of_every_stage_and_names_the_longest(tmp_path: Path) -> None:
    summary, _ = run([write_video(tmp_path / "v.mp4", range(0, 800, 40))], tmp_path / "out")
    values = summary.to_dict()
    assert list(values["stages"]) == list(STAGES)
    assert all(stage["busy_s"] > 0 for stage in values["stages"].values())
    for stage in values["stages"].values():
        assert 0 < stage["utilisation"] <= 1.001
        assert 0 < stage["p50_ms"] <= stage["p95_ms"]
    longest = max(values["stages"], key=lambda name: values["stages"][name]["busy_s"])
    assert values["limiting_stage"] == longest
    assert values["hint"]
    others = dict.fromkeys(("dropped", "failed", "resumed", "overflowed", "not_finite"), 0)
    assert values["frames"] == {"read": 20, "inferred": 20} | others
    json.dumps(values, allow_nan=False)


def test_what_the_model_raises_comes_out_as_it_is(tmp_path: Path) -> None:
    class Broken(ColourRunner):
        def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
            raise ZeroDivisionError("of the model")

    with pytest.raises(ZeroDivisionError, match="of the model"):
        run([write_video(tmp_path / "v.mp4", [0, 40])], tmp_path / "out", runner=Broken())


def test_four_sources_of_which_one_ends_early_and_one_breaks_half_way_are_all_done_as_far_as_they_go(
    tmp_path: Path,
) -> None:
    before = set(threading.enumerate())
    videos = [write_video(tmp_path / f"{n}.mp4", range(0, 40 * n, 40)) for n in (60, 61, 7)]
    broken = write_video(tmp_path / "broken.mkv", range(0, 4000, 40), g=5)
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    summary, lines = run([*videos, broken], tmp_path / "out", 8)
    for path, count in zip(videos, (60, 61, 7), strict=True):
        assert [line["frame"] for line in lines if line["source"] == str(path)] == list(range(count))
    of_broken = [line["frame"] for line in lines if line["source"] == str(broken)]
    assert 0 < len(of_broken) < 100
    assert of_broken == sorted(of_broken)
    assert [failure.source for failure in summary.failures] == [str(broken)]
    assert summary.read == summary.inferred == len(lines)
    assert set(threading.enumerate()) <= before


def test_failures_are_named_in_the_order_of_turns_whichever_decoder_is_faster(tmp_path: Path) -> None:
    class Slow(Unreadable):
        def frames(self, sampling: Sampling) -> Iterator[Frame | Failure]:
            time.sleep(0.2)
            yield from super().frames(sampling)

    sources = [Slow("slow", "broken"), Unreadable("fast", "broken"), Unreadable("faster", "broken")]
    with ColourRunner() as runner:
        log = PredictionLog(tmp_path / "out")
        summary = Pipeline(runner, Postprocessing(), log, None, 4).run(sources, Sampling(), StopRequest())
        log.drop()
    assert [failure.source for failure in summary.failures] == ["slow", "fast", "faster"]


def test_the_answers_of_a_source_do_not_depend_on_the_others_nor_on_the_number_read_at_a_time(tmp_path: Path) -> None:
    videos = [write_video(tmp_path / f"{n}.mp4", range(0, 40 * n, 40)) for n in (9, 3, 14, 5, 8, 2)]
    _, together = run(videos, tmp_path / "all", 5)
    again = run(videos, tmp_path / "again", 5)[1]
    assert again == together  # the order too
    for index, path in enumerate(videos):
        alone = run([path], tmp_path / str(index), 3)[1]
        assert [line for line in together if line["source"] == str(path)] == alone


@pytest.mark.parametrize("where", ["model", "log", "annotations", "draw", "decode"])
def test_the_first_error_anywhere_ends_the_run_with_no_thread_left(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = write_video(tmp_path / "v.mp4", range(0, 8000, 40))

    def fail(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError(where)

    target = {
        "model": (ColourRunner, "_run"),
        "log": (PredictionLog, "write"),
        "annotations": (Annotations, "write"),
        "draw": (Annotations, "prepare"),
        "decode": (VideoFile, "frames"),
    }[where]
    before = set(threading.enumerate())
    monkeypatch.setattr(*target, fail)
    with pytest.raises(ZeroDivisionError, match=where):
        run([video], tmp_path / "out", 4)
    assert set(threading.enumerate()) <= before


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    """Buffers go round: however many batches there are, the model sees no more than these."""
    seen: set[int] = set()

    class Remembering(ColourRunner):
        def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
            seen.add(images.ctypes.data)
            return super()._run(images, threshold)

    summary, _ = run([write_video(tmp_path / "v.mp4", range(0, 24_000, 40))], tmp_path / "out", 8, Remembering())
    assert summary.inferred == 600
    assert len(seen) <= READY + 2  # and one in the model, and one being filled


def test_pictures_that_nothing_is_made_of_are_not_held(tmp_path: Path) -> None:
    held: list[int] = []

    class Looking(PredictionLog):
        def write(self, frame: Frame, prediction: Prediction, threshold: float | None = None) -> None:
            held.append(frame.image.strides[0])
            super().write(frame, prediction, threshold)

    sources = open_sources([write_video(tmp_path / "v.mp4", range(0, 400, 40))])
    log = Looking(tmp_path / "out")
    with ColourRunner() as runner:
        Pipeline(runner, Postprocessing(), log, None, 4).run(sources, Sampling(), StopRequest())
    lines = [json.loads(line) for line in log.keep()[0].read_text(encoding="utf-8").splitlines()]
    assert held == [0] * 10
    _, shown = run([tmp_path / "v.mp4"], tmp_path / "shown")
    assert lines == shown  # the size of the picture among it


class Sharing(ColourRunner):
    """Takes two batches at a time, each so many seconds long."""

    lanes = 2

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
        time.sleep(self._seconds)
        return super()._run(images, threshold)


@pytest.mark.parametrize(
    ("runner", "pause", "ahead"),
    [
        (Sharing(0.0), 0.005, True),
        (Sharing(0.01), 0.0, False),
        (ColourRunner(), 0.0, True),
    ],
    ids=["several lanes, waiting", "several lanes, busy", "one lane"],
)
def test_beside_a_model_of_several_lanes_recordings_are_decoded_ahead_only_when_it_keeps_waiting(
    runner: ColourRunner, pause: float, ahead: bool, tmp_path: Path
) -> None:
    source = Recording("a", 100, pause)
    log = PredictionLog(tmp_path)
    with runner:
        Pipeline(runner, Postprocessing(), log, None, 2).run([source], Sampling(), StopRequest())
    lines = [json.loads(line) for line in log.keep()[0].read_text(encoding="utf-8").splitlines()]
    assert [line["frame"] for line in lines] == list(range(100))
    assert ("decode" in source.readers) == ahead
    assert set(source.readers) <= ({"MainThread", "lane", "decode"} if runner.lanes > 1 else {"decode"})


class LanesRunner(ColourRunner):
    """Takes three batches at a time, and now and then one overtakes another."""

    lanes = 3

    def __init__(self) -> None:
        super().__init__()
        self.together = 0
        self.most_together = 0
        self._lock = threading.Lock()

    def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
        with self._lock:
            self.together += 1
            self.most_together = max(self.most_together, self.together)
            slow = len(self.batches) % 3 == 0
        time.sleep(0.02 if slow else 0.005)
        with self._lock:
            self.together -= 1
        return super()._run(images, threshold)


def test_lanes_of_the_model_change_neither_order_nor_answers(tmp_path: Path) -> None:
    videos = [write_video(tmp_path / f"{name}.mp4", range(0, 40 * count, 40)) for name, count in (("a", 31), ("b", 12))]
    _, alone = run(videos, tmp_path / "1", batch=2)
    runner = LanesRunner()
    summary, together = run(videos, tmp_path / "3", 2, runner)
    assert together == alone
    assert runner.most_together > 1
    assert summary.inferred == 43
    assert summary.stages["model"].workers == 3


@pytest.mark.parametrize("lanes", [1, 3])
def test_frames_are_drawn_by_several_threads_and_written_in_order(
    lanes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "usable_cores", lambda: 8)
    threads: set[str] = set()
    written: list[int] = []

    class Slow(Annotations):
        def prepare(self, source: Source, frame: Frame, prediction: Prediction) -> Any:
            threads.add(str(threading.get_ident()))
            time.sleep(0.004 if frame.index % 3 == 0 else 0.0)
            return super().prepare(source, frame, prediction)

        def write(self, source: Source, frame: Frame, prediction: Prediction, prepared: Any) -> None:
            written.append(frame.index)
            super().write(source, frame, prediction, prepared)

    video = write_video(tmp_path / "v.mp4", range(0, 2400, 40))
    runner = LanesRunner() if lanes == 3 else ColourRunner()
    summary, _ = run([video], tmp_path / "out", 2, runner, drawn_by=Slow)
    assert written == list(range(60))
    assert len(threads) > 1
    assert summary.stages["draw"].workers == summary.stages["postprocess"].workers == (5 if lanes == 3 else 2)
    assert not isinstance(runner, LanesRunner) or runner.most_together <= 3
    assert summary.stages["encode"].workers == 1
    assert len(read_times(tmp_path / "out" / "annotated.mp4")) == 60


def test_an_error_in_one_lane_ends_all(tmp_path: Path) -> None:
    class Failing(LanesRunner):
        def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
            if len(self.batches) >= 5:  # several lanes may pass it at a time
                raise ValueError("broken")
            return super()._run(images, threshold)

    before = set(threading.enumerate())
    with pytest.raises(ValueError, match="broken"):
        run([write_video(tmp_path / "v.mp4", range(0, 2000, 40))], tmp_path / "out", 2, Failing())
    assert set(threading.enumerate()) <= before
