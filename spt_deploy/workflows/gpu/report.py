"""What a check found, as tables and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from spt_deploy.workflows.gpu.clock import Ceilings
from spt_deploy.workflows.gpu.kernels import KernelError, KernelTime
from spt_deploy.workflows.gpu.models import ModelError, Speedup
from spt_deploy.workflows.gpu.suite import SuiteReport


@dataclass
class GpuReport:
    """Everything that was found, filled as the check goes on.

    Attributes:
        machine: GPU, versions, date.
        suites: runs of tests.
        ceilings: what the GPU can do.
        kernel_errors: see `kernels.KernelError`; the other lists likewise.
        model_errors: see `models.ModelError`.
        kernel_times: see `kernels.KernelTime`.
        speedups: see `models.Speedup`.
        cut: parts that time did not suffice for, or that broke, and why.
        broken: whether a part broke.
    """

    machine: dict[str, str]
    suites: list[SuiteReport] = field(default_factory=list)
    ceilings: Ceilings | None = None
    kernel_errors: list[KernelError] = field(default_factory=list)
    model_errors: list[ModelError] = field(default_factory=list)
    kernel_times: list[KernelTime] = field(default_factory=list)
    speedups: list[Speedup] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    broken: bool = False

    @property
    def passed(self) -> bool:
        """No test failed, every number is right, and nothing broke. Speed is reported, not judged."""
        right = all(e.passed for e in self.kernel_errors) and all(e.passed for e in self.model_errors)
        return right and not self.broken and all(suite.is_good for suite in self.suites)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "passed": self.passed,
            "machine": self.machine,
            "ceilings": self.ceilings._asdict() if self.ceilings else None,
            "suites": [each.to_dict() for each in self.suites],
            "kernel_errors": [each.to_dict() for each in self.kernel_errors],
            "model_errors": [each.to_dict() for each in self.model_errors],
            "kernel_times": [each.to_dict() for each in self.kernel_times],
            "speedups": [each.to_dict() for each in self.speedups],
            "cut": self.cut,
        }

    def print(self, out: Console) -> None:
        """Tables, for a terminal and for `docs/gpu.md`."""
        out.print(", ".join(f"{name} {value}" for name, value in self.machine.items()), soft_wrap=True)
        if self.ceilings:
            out.print(
                f"measured: {self.ceilings.bandwidth / 1e12:.2f} TB/s, {self.ceilings.peak / 1e12:.0f} TFLOP/s fp16"
            )
        for suite in self.suites:
            state = "" if suite.ended else " (stopped: its time was up)"
            out.print(f"{suite.what}: {suite.passed} passed, {suite.failed} failed, {suite.skipped} skipped{state}")
            if suite.note:
                out.print(suite.note, markup=False)
        if self.kernel_errors:
            table = Table("relative error against float64", "kernel, fp16", "PyTorch, fp16", "")
            for error in self.kernel_errors:
                table.add_row(error.operator, f"{error.kernel:.1e}", f"{error.pytorch:.1e}", _mark(error.passed))
            out.print(table)
        if self.model_errors:
            table = Table("fp16 against fp32", "stage 1", "2", "3", "4", "")
            for found in self.model_errors:
                table.add_row(found.model, *(f"{error:.1e}" for error in found.errors), _mark(found.passed))
            out.print(table)
        if self.speedups:
            table = Table(
                "against dense", "size", "batch", "kept", "dense ms", "ms", "speed-up", "ideal", "of ideal", ""
            )
            for row in self.speedups:
                table.add_row(
                    row.what,
                    _size(row.image_size),
                    str(row.images),
                    f"{row.ratio:.0%}",
                    f"{row.dense_ms:.3f}",
                    f"{row.ms:.3f}",
                    f"{row.speedup:.3f}",
                    f"{row.ideal:.3f}",
                    f"{row.speedup / row.ideal:.0%}",
                    row.how,
                )
            out.print(table)
        if self.kernel_times:
            out.print(_times(self.kernel_times))
            if any(each.cached for each in self.kernel_times):
                out.print("* some of the inputs came from the cache; the floor supposes that all come from memory")
        for line in self.cut:
            out.print(line, markup=False, soft_wrap=True)


def _times(times: list[KernelTime]) -> Table:
    """A row a size and share, a column an operator: microseconds, and times over the floor."""
    operators = list(dict.fromkeys(each.operator for each in times))
    table = Table("us (over floor)", "size", "batch", "kept", *operators)
    rows: dict[tuple[str, str, str, str], dict[str, str]] = {}
    for each in times:
        key = (f"{each.model} stage {each.stage}", _size(each.image_size), str(each.images), f"{each.ratio:.0%}")
        over = f"{each.seconds / each.floor_s:.2f}{'*' if each.cached else ''}"
        rows.setdefault(key, {})[each.operator] = f"{each.seconds * 1e6:.1f} ({over})"
    for key, values in rows.items():
        table.add_row(*key, *(values.get(operator, "") for operator in operators))
    return table


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _mark(passed: bool) -> str:
    return "[green]ok[/]" if passed else "[red]FAILED[/]"
