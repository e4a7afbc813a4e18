"""Run an artefact with its selection in view: scores of every SPA block out, masks to force in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spt_deploy.errors import UsageError
from spt_deploy.facts import ModelFacts
from spt_deploy.image_input import Images
from spt_deploy.parity.instrument import DROP, FREE, KEEP, BlockPorts, instrument
from spt_deploy.runtimes.base import Arrays, Runner, graph_inputs
from spt_deploy.runtimes.onnx_file import load_onnx

Masks = Sequence[npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Probed:
    """One batch through one artefact.

    Attributes:
        outputs: by name, as a runner gives them.
        scores: of each SPA block in order, B x N float32: logits where a threshold selects, gates in (0, 1) where a
            ranking does.
    """

    outputs: Arrays
    scores: tuple[npt.NDArray[np.float32], ...]


class Probe(ABC):
    """An artefact in one runtime, opened for inspection."""

    @abstractmethod
    def run(self, images: Images, forced: Masks | None = None) -> Probed:
        """Run a batch.

        Args:
            images: as for ``Runner.infer``.
            forced: for each SPA block in order a B x N bool mask to use in place of its selection.
        """


class _TorchProbe(Probe):
    def __init__(self, runner: Runner) -> None:
        from spt_deploy.runtimes.torch_runner import TorchRunner

        assert isinstance(runner, TorchRunner)
        self._model = runner.model
        self._device = next(self._model.parameters()).device

    def run(self, images: Images, forced: Masks | None = None) -> Probed:
        import torch

        masks = None if forced is None else [torch.from_numpy(m).to(self._device) for m in forced]
        with torch.inference_mode():
            output = self._model(torch.from_numpy(images).to(self._device), masks)
            scores = [score.flatten(1) for score in output.features.scores]
        arrays = {name: value.cpu().numpy() for name, value in output.named().items()}
        return Probed(arrays, tuple(score.cpu().numpy() for score in scores))


class _OnnxProbe(Probe):
    """The common part of the runtimes that take the instrumented ONNX model."""

    def __init__(self, facts: ModelFacts, ports: list[BlockPorts]) -> None:
        self._facts = facts
        self._ports = ports

    @abstractmethod
    def _run(self, feeds: Arrays) -> Arrays:
        """All outputs by name."""

    def run(self, images: Images, forced: Masks | None = None) -> Probed:
        outputs = self._run(feeds_of(self._facts, images, self._ports, forced))
        scores = tuple(np.asarray(outputs.pop(port.score), dtype=np.float32) for port in self._ports)
        return Probed(outputs, scores)


def feeds_of(facts: ModelFacts, images: Images, ports: Sequence[BlockPorts], forced: Masks | None) -> Arrays:
    """What an instrumented ONNX model with these facts takes; arguments as for ``Probe.run``."""
    feeds = graph_inputs(facts, images)
    for i, port in enumerate(ports):
        free = np.full((images.shape[0], port.tokens), FREE, dtype=np.float32)
        feeds[port.forced] = free if forced is None else np.where(forced[i], KEEP, DROP).astype(np.float32)
    return feeds


class _OnnxRuntimeProbe(_OnnxProbe):
    def __init__(self, runner: Runner, batch: int | None) -> None:
        from spt_deploy.runtimes.onnxruntime_runner import sessions_by_batch

        proto, ports = instrument(load_onnx(runner.path), runner.facts.model.backbone.selector)
        self._sessions = sessions_by_batch(proto.SerializeToString(), runner.facts, runner.device, runner.lanes)
        self._sessions.expect(batch)
        super().__init__(runner.facts, ports)

    def _run(self, feeds: Arrays) -> Arrays:
        return self._sessions.run(feeds)


class _OpenVinoProbe(_OnnxProbe):
    def __init__(self, runner: Runner, batch: int | None) -> None:
        from spt_deploy.runtimes.openvino_batches import ByBatch
        from spt_deploy.runtimes.openvino_runner import OpenVinoRunner, compile_model, with_requests
        from spt_deploy.runtimes.parts import may_be_cut

        proto, ports = instrument(load_onnx(runner.path), runner.facts.model.backbone.selector)
        assert isinstance(runner, OpenVinoRunner)
        name, options = runner.path.name, runner.options
        outputs = [output.name for output in proto.graph.output]
        self._model = ByBatch(
            lambda images, together: compile_model(proto, name, with_requests(options, together), images),
            runner.lanes,
            outputs,
            most=runner.most,
            whole=not may_be_cut(runner.facts),
        )
        self._model.expect(batch)
        super().__init__(runner.facts, ports)

    def _run(self, feeds: Arrays) -> Arrays:
        return self._model.run(feeds)


def open_probe(runner: Runner, batch: int | None = None) -> Probe:
    """A probe of an open runner's artefact in the runner's runtime, on its device and with its lanes.

    Args:
        runner: that is open.
        batch: images that it will mostly run on; see ``Runner.expect``.

    Raises:
        UsageError: when the runtime cannot be probed.
    """
    if runner.runtime == "torch":
        return _TorchProbe(runner)
    if runner.facts.has_spt_nodes and runner.runtime == "onnxruntime":
        return _OnnxRuntimeProbe(runner, batch)
    if runner.facts.has_spt_nodes and runner.runtime == "openvino":
        return _OpenVinoProbe(runner, batch)
    what = "an int8 file" if runner.facts.precision == "int8" else "a file in standard operators alone"
    if runner.runtime.startswith("tensorrt"):
        what = "an engine"
    raise UsageError(
        f"{runner.path.name} is {what}, whose selection cannot be forced: name it after the checkpoint or ONNX file "
        "that it is compared with, and bench it without --ratio"
    )
