"""An ONNX file in OpenVINO on the CPU; its functions are inlined first, for OpenVINO's reader knows none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx

from spt_deploy.errors import ArtefactError, RuntimeMissingError, UsageError

try:
    import openvino
except ImportError as error:
    raise RuntimeMissingError("openvino is not installed; pip install openvino") from error

from spt_deploy.runtimes.base import Arrays, Runner, graph_inputs
from spt_deploy.runtimes.onnx_file import facts_of, inlined, load_onnx


def compile_model(proto: onnx.ModelProto, where: str, profiled: bool = False) -> Any:
    """Compile for the CPU in float32.

    OpenVINO computes in bfloat16 by default where the processor can, so float32 must be asked for.

    Args:
        proto: with its functions.
        where: names the file in errors.
        profiled: whether requests say how long each node took.

    Raises:
        ArtefactError: when OpenVINO cannot read or compile the model.
    """
    core = openvino.Core()
    try:
        model = core.read_model(inlined(proto).SerializeToString())
        options = {"INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": "YES" if profiled else "NO"}
        return core.compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise ArtefactError(f"OpenVINO cannot load {where}: {str(error).strip().splitlines()[-1]}") from error


def run_compiled(compiled: Any, feeds: Arrays, names: list[str]) -> Arrays:
    """Run a compiled model on named arrays; the outputs of these names, copied out of OpenVINO's buffers."""
    results = compiled(feeds)
    return {name: np.array(results[name]) for name in names}


class OpenVinoRunner(Runner):
    """Runs an exported ONNX file with OpenVINO in float32; the weights of a 16-bit file have 16 bits all the same."""

    runtime: ClassVar[str] = "openvino"

    def __init__(self, path: Path, device: str = "auto", threshold: float | None = None) -> None:
        if device not in ("auto", "cpu"):
            raise UsageError(f"the openvino runtime runs on the CPU here, not on {device!r}; use --device cpu")
        self._proto = load_onnx(path)
        self._compiled: Any = None
        facts = facts_of(self._proto, str(path))
        super().__init__(path, facts, precision=facts.precision, threshold=threshold)

    def _open(self) -> None:
        self._compiled = compile_model(self._proto, self.path.name)

    def _run(self, images: npt.NDArray[np.float32]) -> Arrays:
        return self._answer(graph_inputs(self.facts, images))

    def _run_at(self, images: npt.NDArray[np.float32], threshold: float) -> Arrays:
        return self._answer(graph_inputs(self.facts, images, threshold))

    def _answer(self, feeds: Arrays) -> Arrays:
        return run_compiled(self._compiled, feeds, self._output_names())

    def _output_names(self) -> list[str]:
        return [output.name for output in self._proto.graph.output]

    def _close(self) -> None:
        self._compiled = None
