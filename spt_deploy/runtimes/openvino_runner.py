"""An ONNX file in OpenVINO on the CPU; its functions are inlined first, for OpenVINO's reader knows none."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from spt_deploy.errors import ArtefactError, RuntimeMissingError, UsageError
from spt_deploy.telemetry import no_telemetry

try:
    with no_telemetry():
        import openvino
except ImportError as error:
    raise RuntimeMissingError("openvino is not installed; pip install openvino") from error

from spt_deploy.facts import ModelFacts
from spt_deploy.image_input import Images
from spt_deploy.runtimes.base import IMAGES_INPUT, Arrays, Runner, graph_inputs, usable_cores
from spt_deploy.runtimes.compiled_cache import compiled_path, keep_compiled, read_compiled
from spt_deploy.runtimes.onnx_file import inlined, load_onnx, read_facts
from spt_deploy.runtimes.openvino_attention import transpose_scores
from spt_deploy.runtimes.openvino_batches import ByBatch
from spt_deploy.runtimes.openvino_extension.bodies import takes_operators, with_operators
from spt_deploy.runtimes.openvino_extension.library import extension, refuse
from spt_deploy.runtimes.parts import may_be_cut

_FAST_BYTES = 4 * 224 * 224 * 4  # of float32 or bfloat16, one for each pixel: measured on cores with 2 MiB of cache
PRECISIONS = {"fp32": "f32", "bf16": "bf16"}  # and what OpenVINO calls them
_LOCK = threading.Lock()
_REVISION = 3  # of what `compile_model` makes of a file; one that was compiled by another is compiled again


@cache
def openvino_core() -> Any:
    """The one Core of this process, kept until it ends; whatever here needs a Core uses this one.

    On a processor with AMX a Core gives the thread that first uses its CPU plugin an alternate signal stack, and unmaps
    it when it goes. When an earlier Core goes before a later one, the later one puts the earlier one's unmapped stack
    back, and Python's next signal handler runs on whatever has been mapped there since (seen in OpenVINO 2026.4).

    OpenVINO looks NumPy up when it first hands over an array; two threads that do so at the same time may wait for each
    other for ever (seen there too, with pybind11's GIL-safe call once). So it is done here, before there are threads.
    """
    _ = openvino.Tensor(np.zeros(1, dtype=np.float32)).data
    return openvino.Core()


def operators_of_ours() -> str:
    """The name of the library with our operators, which the Core has from now on; empty where it cannot be had."""
    with _LOCK:
        return _offered_operators()


@cache
def _offered_operators() -> str:
    library = extension()
    if library is None:
        return ""
    try:
        openvino_core().add_extension(str(library))
    except RuntimeError as error:
        refuse(str(error).strip().splitlines()[-1])
        return ""
    return library.name


def precisions_here() -> tuple[str, ...]:
    """The precisions that OpenVINO computes in on this processor."""
    has_bf16 = "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name in PRECISIONS if name != "bf16" or has_bf16)


def options_for(precision: str | None = None, lanes: int = 1, cores: int | None = None) -> dict[str, object]:
    """OpenVINO's options for a precision and a number of models that run at the same time.

    OpenVINO computes in bfloat16 by default where the processor can, so float32 must be asked for.

    Args:
        precision: ``fp32`` or ``bf16``; None is ``fp32``.
        lanes: models that run at the same time, each on its share of the cores; 1 gives one all of them.
        cores: to use; all of them if None.

    Raises:
        UsageError: when the precision is unknown.
        RuntimeMissingError: when this processor cannot compute in it.
    """
    if precision not in (None, *PRECISIONS):
        raise UsageError(f"precision is {precision!r}; openvino computes in {' or '.join(PRECISIONS)}")
    options: dict[str, object] = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision or "fp32"]}
    if precision == "bf16" and precision not in precisions_here():
        raise RuntimeMissingError("this processor does not compute in bfloat16; use --precision fp32")
    if lanes > 1:
        # Each lane has a model of its own (openvino_batches.py). Pinned, all of them would be to the same cores.
        cores = max(1, (cores or usable_cores()) // lanes)
        options |= {"NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    if cores is not None:
        options["INFERENCE_NUM_THREADS"] = cores
    return options


def with_requests(options: dict[str, object], together: int) -> dict[str, object]:
    """The options for so many requests at the same time, which share the model's weights and all cores."""
    return options if together == 1 else options | {"NUM_STREAMS": together, "INFERENCE_NUM_THREADS": usable_cores()}


def images_a_core_computes_fast(facts: ModelFacts, precision: str | None) -> int:
    """How many of a model's images: more of them no longer fit a core's cache together (docs/cpu.md)."""
    height, width = facts.preprocessing.size
    return max(1, _FAST_BYTES // (height * width * (2 if precision == "bf16" else 4)))


def compile_model(
    proto: onnx.ModelProto,
    where: str,
    options: dict[str, object] | None = None,
    batch: int | None = None,
    operators: bool = True,
) -> Any:
    """Compile for the CPU, with our operators where they can be had (openvino_extension).

    In bfloat16 the scores of attention that is OpenVINO's are transposed (openvino_attention.py).

    Args:
        proto: with its functions.
        where: names the file in errors.
        options: see ``options_for``.
        batch: images that it is run on, no more and no less; None compiles it for any number.
        operators: whether ours take the functions' place where they can be had.

    Raises:
        ArtefactError: when OpenVINO cannot read or compile the model.
    """
    core = openvino_core()
    options = options or options_for()
    bfloat16 = options["INFERENCE_PRECISION_HINT"] == PRECISIONS["bf16"]
    if operators and takes_operators(proto) and operators_of_ours():
        proto = with_operators(proto, bfloat16)
    try:
        model = core.read_model(inlined(proto).SerializeToString())
        _forget_inner_names(model)
        if batch is not None:
            model.reshape(
                {
                    each: [batch, *each.partial_shape[1:]]
                    for each in model.inputs
                    if IMAGES_INPUT in each.names or (len(each.partial_shape) and each.partial_shape[0].is_dynamic)
                }
            )
        if bfloat16:
            transpose_scores(model)
        return core.compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise ArtefactError(f"OpenVINO cannot load {where}: {str(error).strip().splitlines()[-1]}") from error


def _forget_inner_names(model: Any) -> None:
    """Leave names to inputs and outputs alone: a step that OpenVINO takes out hands its names on to what is left."""
    named = {name for port in (*model.inputs, *model.outputs) for name in port.names}
    for node in model.get_ops():
        for value in node.outputs():
            if value.names.isdisjoint(named):
                value.get_tensor().set_names(set())


def _shown(of_file: str, asked: str | None) -> str:
    """The precision that a runner has."""
    if of_file == "int8":
        return "int8+bf16" if asked == "bf16" else "int8"
    return asked or of_file


class OpenVinoRunner(Runner):
    """Runs an exported ONNX file with OpenVINO on the CPU, in float32 or bfloat16.

    The weights of a 16-bit file have 16 bits all the same. An int8 file's layers compute in integers, and the rest of
    it in this precision: it is called ``int8``, or ``int8+bf16``. What was compiled is kept for the next time.

    Args:
        path: of the file.
        device: ``auto`` or ``cpu``.
        threshold: see ``Runner``.
        precision: ``fp32`` or ``bf16``; None is the file's own.
        lanes: see ``Runner``.
        keep: whether what was compiled is read from and kept in the cache; not of a file that will be gone.

    Raises:
        ArtefactError: when the file cannot be used.
        RuntimeMissingError: when this processor cannot compute in the precision.
        UsageError: when the device or precision is none that there is.
    """

    runtime: ClassVar[str] = "openvino"

    def __init__(
        self,
        path: Path,
        device: str = "auto",
        threshold: float | None = None,
        precision: str | None = None,
        lanes: int = 1,
        keep: bool = True,
    ) -> None:
        if device not in ("auto", "cpu"):
            raise UsageError(f"the openvino runtime runs on the CPU here, not on {device!r}; use --device cpu")
        facts = read_facts(path)
        self.options = options_for(precision, lanes)
        super().__init__(path, facts, precision=_shown(facts.precision, precision), threshold=threshold)
        self.computes_in = precision
        self.lanes = lanes
        self._keep = keep
        self._batch: int | None = 1
        self.most = images_a_core_computes_fast(facts, precision)
        self._model = self._by_batch()
        self._names: Sequence[str] = ()

    def expect(self, batch: int | None) -> None:
        self._batch = batch
        if self._is_open:
            self._open()

    def _open(self) -> None:
        self._names = self._model.expect(self._batch)

    def _compiled(self, images: int | None, together: int) -> Any:
        options = with_requests(self.options, together)

        def compiled() -> Any:
            return compile_model(load_onnx(self.path), self.path.name, options, images)

        if not self._keep:
            return compiled()
        core = openvino_core()
        processor = str(core.get_property("CPU", "FULL_DEVICE_NAME"))
        may_take = self.facts.has_spt_nodes and self.facts.model.backbone.spa_blocks
        operators = operators_of_ours() if may_take else ""
        made_with = {"batch": images, "revision": _REVISION, "operators": operators}
        place = compiled_path(self.path, openvino.__version__, processor, options | made_with)
        data = read_compiled(place)
        if data:
            try:
                return core.import_model(data, "CPU", options)
            except RuntimeError:  # of a library that only looks the same
                pass
        fresh = compiled()
        keep_compiled(place, fresh.export_model().getvalue())
        return fresh

    def _run(self, images: Images, threshold: float | None) -> Arrays:
        return self._model.run(graph_inputs(self.facts, images, threshold))

    def _output_names(self) -> Sequence[str]:
        return self._names

    def _close(self) -> None:
        self._model = self._by_batch()

    def _by_batch(self) -> ByBatch:
        return ByBatch(self._compiled, self.lanes, most=self.most, whole=not may_be_cut(self.facts))
