"""Damaged images and videos through ``infer``: each is an answer or an error of one sentence, never a crash or a wait.

    python tools/fuzz_infer.py [--count N] [--seed S] [--first NUMBER] [--keep FOLDER]

Each file goes through the whole of ``infer`` with a model that only takes means, in a child process that has a limit of
time and of memory: a crash of a decoder, or one that never ends, takes the child with it and names the case. What must
hold:

- every frame that was read has a line, at times that increase, and the annotated video or image shows it;
- an unreadable input is named, with exit code 1 beside good frames and 2 without, and then nothing is left behind;
- no other error comes out, not even one of the output.

A seed and a number make the same file again wherever the same OpenCV and PyAV made the whole ones: ``--first NUMBER
--count 1 --keep FOLDER`` runs one case and leaves its file. Exit code 1 when something was found.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar

import av
import cv2
import numpy as np
import numpy.typing as npt

# Found from anywhere, and under the same name by the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spt_deploy.config import BackboneConfig, ModelConfig
from spt_deploy.errors import SourceError
from spt_deploy.facts import ModelFacts
from spt_deploy.preprocess import Preprocessing
from spt_deploy.runtimes.base import Arrays, Runner
from spt_deploy.workflows.infer import UnreadableInputs, infer
from tools.damaged_files import Case, whole_files

CASE_SECONDS = 30.0  # a case takes a hundredth of that, or some tenths where it is a large picture
CASE_BYTES = 1 << 30  # beyond what the child has when it begins; a picture may claim more, and must be refused
LONGEST_GAP = 100.0  # seconds; MP4 cannot hold any gap, and one that is longer here comes of the damage
OUTCOMES = ("all read", "partly read", "refused")


class MeanRunner(Runner):
    """Two logits of each image: its mean and the negative of it."""

    runtime: ClassVar[str] = "means"

    def __init__(self) -> None:
        model = ModelConfig(backbone=BackboneConfig.from_name("spt_micro"), task="classify", class_names=("a", "b"))
        facts = ModelFacts(model=model, preprocessing=Preprocessing.for_task("classify", (32, 32)), tool_version="0")
        super().__init__(Path("mean.model"), facts)

    def _open(self) -> None:
        pass

    def _close(self) -> None:
        pass

    def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
        means = images.mean(axis=(1, 2, 3))
        selection = np.ones((len(images), 2, 2), np.float32)
        return {"logits": np.stack([means, -means], 1), "selection": selection, "select_ratio": selection[:, 0]}


class WrongError(Exception):
    """Something that must hold does not."""


def hold(condition: bool, what: str) -> None:
    """Raise ``WrongError`` with ``what`` unless the condition holds."""
    if not condition:
        raise WrongError(what)


def outcome(path: Path, out: Path) -> str:
    """What ``infer`` makes of a file, one of ``OUTCOMES``.

    Raises:
        WrongError: when what it left does not agree with what it said.
        Exception: whatever came out that should not.
    """
    try:
        report, said = infer([path], MeanRunner(), batch=4, out=out), "all read"
    except UnreadableInputs as error:
        hold(error.exit_code == 1 and str(path) in str(error), f"the error does not name the input: {error}")
        report, said = error.report, "partly read"
    except SourceError as error:
        hold(error.exit_code == 2 and str(path) in str(error), f"the error does not name the input: {error}")
        hold(not out.exists(), "files were left behind")
        return "refused"
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    hold(len(lines) == report.summary.inferred == report.summary.read > 0, "frames and lines differ")
    hold([line["frame"] for line in lines] == list(range(len(lines))), "a frame is missing")
    hold(bool(report.summary.failures) == (said == "partly read"), "failures and exit code differ")
    times = [line["time"] for line in lines if line["time"] is not None]
    if times:
        hold(all(earlier < later for earlier, later in pairwise([-1e-6, *times])), f"times do not increase: {times}")
        played = times_of(out / "annotated.mp4")
        hold(len(played) == len(times), f"{len(times)} frames, and the annotated video plays {len(played)}")
        at = next((index for index, gap in enumerate(np.diff(times)) if gap > LONGEST_GAP), len(times))
        hold(np.allclose(played[: at + 1], times[: at + 1], atol=2e-3), f"times {times} became {played}")
    else:
        (image,) = (out / "annotated").iterdir()
        hold(cv2.imread(str(image)) is not None, "the annotated image cannot be read")
    return said


def times_of(video: Path) -> list[float]:
    """Of every frame that plays, in seconds."""
    with av.open(str(video)) as container:
        return [float(frame.time) for frame in container.decode(video=0) if frame.time is not None]


def child(seed: int, numbers: Sequence[int], keep: Path | None, said: Connection, crash: Path) -> None:
    """Run cases one after the other; each is announced, then its result and seconds are sent."""
    whole_files("images"), whole_files("videos")
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + CASE_BYTES, used + CASE_BYTES))
    with tempfile.TemporaryDirectory() as name, crash.open("w", encoding="utf-8") as frames:
        faulthandler.enable(frames)
        out = Path(name) / "out"
        for number in numbers:
            said.send(number)
            start = time.monotonic()
            path = Case(seed, number).write(keep or Path(name))
            try:
                result = outcome(path, out)
            except Exception:
                result = f"case {path.name}: {traceback.format_exc()}"
            shutil.rmtree(out, ignore_errors=True)
            if keep is None:
                path.unlink()
            said.send((result, time.monotonic() - start))


@dataclass
class Findings:
    """What a fuzzing run came to.

    Attributes:
        outcomes: how many cases came to each of ``OUTCOMES``.
        wrong: case by case what went wrong.
        slowest: seconds of the slowest case, and its number.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, 0)

    def add(self, number: int, result: str, seconds: float) -> None:
        """Count a case that came to its end."""
        self.slowest = max(self.slowest, (seconds, number))
        if result in OUTCOMES:
            self.outcomes[result] += 1
        else:
            self.wrong.append(result)


def fuzz(
    seed: int,
    numbers: Sequence[int],
    keep: Path | None = None,
    run: Callable[[int, Sequence[int], Path | None, Connection, Path], None] = child,
    limit: float = CASE_SECONDS,
) -> Findings:
    """Run cases in child processes; one that crashes or hangs costs its child, and another goes on behind it.

    Args:
        seed: of all cases.
        numbers: of the cases.
        keep: folder for the files; none is kept if None.
        run: what a child does.
        limit: seconds that a case may take.
    """
    findings, left = Findings(), list(numbers)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        crash = Path(folder) / "crash.txt"
        while left:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=run, args=(seed, left, keep, theirs, crash))
            process.start()
            theirs.close()
            try:
                while left:
                    assert ours.recv() == left[0]
                    if not ours.poll(limit):
                        findings.wrong.append(f"case {left.pop(0)}: no end after {limit:g} s")
                        break
                    findings.add(left[0], *ours.recv())
                    left.pop(0)
            except EOFError:
                process.join()
                trace = crash.read_text(encoding="utf-8") if crash.is_file() else ""
                findings.wrong.append(f"case {left.pop(0)}: the process died ({process.exitcode})\n{trace}")
            finally:
                ours.close()
                if left:
                    process.kill()
                process.join()
    return findings


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000, help="cases; every other one is a video")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--keep", type=Path, help="folder that keeps the files")
    given = parser.parse_args()
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
    found = fuzz(given.seed, range(given.first, given.first + given.count), given.keep)
    for wrong in found.wrong:
        print(wrong, end="\n\n")
    counts = ", ".join(f"{found.outcomes[name]} {name}" for name in OUTCOMES)
    seconds, number = found.slowest
    print(f"{given.count} cases of seed {given.seed}: {counts}, {len(found.wrong)} wrong; ", end="")
    print(f"the slowest was case {number} with {seconds:.1f} s")
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
