"""TensorRT's progress as one number: steps done, of the steps that are known so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spt_deploy.interrupt import StopRequest

Report = Callable[[int, int, str], None]


class Steps:
    """Adds up the steps of phases that begin inside each other. A phase that ends has done all of its steps."""

    def __init__(self) -> None:
        self.done = self.total = 0
        self._phases: dict[str, list[int]] = {}  # steps done and to be done of those that run

    def start(self, phase: str, steps: int) -> None:
        """A phase of ``steps`` steps begins."""
        self.finish(phase)  # names are those of running phases: an older one of this name is over
        self._phases[phase] = [0, steps]
        self.total += steps

    def step(self, phase: str) -> None:
        """A step of it is done."""
        counts = self._phases.get(phase)
        if counts and counts[0] < counts[1]:
            counts[0] += 1
            self.done += 1

    def finish(self, phase: str) -> None:
        """It ends."""
        done, steps = self._phases.pop(phase, (0, 0))
        self.done += steps - done


def make_monitor(trt: Any, report: Report, stop: StopRequest) -> Any:
    """An ``IProgressMonitor`` of the library ``trt`` that ends the build when ``stop`` is made."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps = Steps()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps.start(phase_name, num_steps)
            report(self._steps.done, self._steps.total, phase_name)

        def phase_finish(self, phase_name: str) -> None:
            self._steps.finish(phase_name)
            report(self._steps.done, self._steps.total, "")

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._steps.step(phase_name)
            report(self._steps.done, self._steps.total, "")
            return not stop.made

    return Monitor()
