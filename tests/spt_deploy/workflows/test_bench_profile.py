"""Where the time goes, out of what a runtime says of all its runs so far."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from spt_deploy.workflows.bench_profile import openvino_times


class Counted:
    """Says of its nodes what OpenVINO does: the mean of all runs, of which the first takes longer."""

    def __init__(self, operator: str = "MatMul", **milliseconds: float) -> None:
        self.operator, self.milliseconds, self.runs = operator, milliseconds, 0

    def infer(self, feeds: object) -> None:
        self.runs += 1

    @property
    def profiling_info(self) -> list[Any]:
        return [
            SimpleNamespace(
                node_type=self.operator,
                node_name=name,
                real_time=timedelta(milliseconds=each + 40 * each / self.runs),
            )
            for name, each in self.milliseconds.items()
        ]


def test_the_first_run_is_not_in_what_a_node_takes() -> None:
    times = openvino_times(Counted(fast=1.5, slow=20, idle=0), {})
    assert [each[:2] for each in times] == [("MatMul", "fast"), ("MatMul", "slow")]
    assert [each[2] for each in times] == pytest.approx([1.5, 20], abs=0.01)


def test_operators_of_ours_have_their_names() -> None:
    times = openvino_times(Counted("Reference", PackedAttention_o__7=2, SelectTokens_cu_seqlens__1=1), {})
    assert [each[0] for each in times] == ["PackedAttention", "SelectTokens"]
