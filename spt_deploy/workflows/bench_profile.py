"""Where the time of an ONNX file goes: operator by operator, as the runtime itself measures it."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spt_deploy.errors import UsageError
from spt_deploy.image_input import Images
from spt_deploy.parity.instrument import instrument
from spt_deploy.parity.probe import Masks, feeds_of
from spt_deploy.runtimes import Runner
from spt_deploy.runtimes.base import IMAGES_INPUT, Arrays
from spt_deploy.runtimes.onnx_file import load_onnx
from spt_deploy.runtimes.openvino_extension.bodies import operator_of

_RUNS = 5
_WARM_UP = 2


PROFILED = ("onnxruntime", "openvino")  # the runtimes that say where their time goes


@dataclass(frozen=True)
class OperatorTime:
    """What all nodes of one operator take together.

    Attributes:
        operator: as the runtime calls it, which may have fused several of the file into one.
        nodes: how many there are.
        ms: that they take in a run, in milliseconds, the mean of some runs.
        share: of the time of all nodes, in [0, 1].
    """

    operator: str
    nodes: int
    ms: float
    share: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)


def check_profiled(profiled: bool, runners: Sequence[Runner]) -> None:
    """Raise a UsageError where a profile is wanted and none of the runners has one to give."""
    if profiled and not any(runner.runtime in PROFILED for runner in runners):
        names = ", ".join(sorted({runner.runtime for runner in runners}))
        raise UsageError(f"{names} gives no profile here; profile an ONNX file in {' or '.join(PROFILED)}")


def profile(runner: Runner, images: Images, masks: Masks | None = None) -> list[OperatorTime]:
    """Time of each operator, the largest first; of the whole batch on all cores, where runners compute it in parts.

    Args:
        runner: of an ONNX file, in ONNX Runtime or OpenVINO.
        images: as for ``Runner.infer``.
        masks: see ``Probe.run``; None leaves the selection to the model.

    Raises:
        UsageError: when the runtime does not say where its time goes.
    """
    if runner.runtime not in PROFILED:
        raise UsageError(f"{runner.runtime} gives no profile here; profile an ONNX file in onnxruntime or openvino")
    proto, ports = instrument(load_onnx(runner.path), runner.facts.model.backbone.selector)
    feeds = feeds_of(runner.facts, images, ports, masks)
    times = _onnxruntime(runner, proto, feeds) if runner.runtime == "onnxruntime" else _openvino(runner, proto, feeds)
    return _summed(times)


def _summed(times: Iterable[tuple[str, str, float]]) -> list[OperatorTime]:
    """Of operator, node and milliseconds."""
    total: dict[str, float] = defaultdict(float)
    nodes: dict[str, set[str]] = defaultdict(set)
    for operator, node, ms in times:
        total[operator] += ms
        nodes[operator].add(node)
    whole = sum(total.values()) or 1.0
    ranked = sorted(total, key=lambda operator: -total[operator])
    return [OperatorTime(name, len(nodes[name]), total[name], total[name] / whole) for name in ranked]


def _onnxruntime(runner: Runner, proto: Any, feeds: Arrays) -> list[tuple[str, str, float]]:
    from spt_deploy.runtimes.onnxruntime_runner import open_session

    with tempfile.TemporaryDirectory() as folder:
        session = open_session(proto.SerializeToString(), runner.device, profile=Path(folder) / "profile")
        for _ in range(_WARM_UP + _RUNS):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    starts: Sequence[int] = sorted(event["ts"] for event in events if event["name"] == "model_run")
    return [
        (event["args"]["op_name"], event["name"], event["dur"] / 1e3 / _RUNS)
        for event in events
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= starts[_WARM_UP]
    ]


def _openvino(runner: Runner, proto: Any, feeds: Arrays) -> list[tuple[str, str, float]]:
    from spt_deploy.runtimes.openvino_runner import OpenVinoRunner, compile_model

    assert isinstance(runner, OpenVinoRunner)
    options = runner.options | {"PERF_COUNT": "YES"}
    batch = len(feeds[IMAGES_INPUT])
    request = compile_model(proto, runner.path.name, options, batch).create_infer_request()
    return openvino_times(request, feeds)


def openvino_times(request: Any, feeds: Arrays) -> list[tuple[str, str, float]]:
    """Operator, node and milliseconds of a run, of a request whose model was just compiled to count them.

    OpenVINO gives the mean of all runs, the first of which takes several times as long; that is taken out again.
    """
    warm = _total(request, feeds, _WARM_UP, _WARM_UP)
    total = _total(request, feeds, _RUNS, _WARM_UP + _RUNS)
    times = [(_named(*node), node[1], (ms - warm[node]) / _RUNS) for node, ms in total.items()]
    return [each for each in times if each[-1] > 0]


def _named(operator: str, node: str) -> str:
    """The operator's own name where it is one of ours."""
    return operator_of(node) if operator == "Reference" else operator


def _total(request: Any, feeds: Arrays, more: int, runs: int) -> dict[tuple[str, str], float]:
    """Milliseconds of each operator and node in all runs so far, after so many more."""
    for _ in range(more):
        request.infer(feeds)
    return {
        (info.node_type, info.node_name): info.real_time.total_seconds() * 1e3 * runs for info in request.profiling_info
    }
