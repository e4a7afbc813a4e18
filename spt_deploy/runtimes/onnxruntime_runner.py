"""An ONNX file in ONNX Runtime, on the CPU or on CUDA; never silently on another device than asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from spt_deploy.errors import ArtefactError, RuntimeMissingError
from spt_deploy.telemetry import no_telemetry

try:
    with no_telemetry():
        import onnxruntime as ort
except ImportError as error:
    raise RuntimeMissingError("onnxruntime is not installed; pip install onnxruntime (or onnxruntime-gpu)") from error

from spt_deploy.facts import ModelFacts
from spt_deploy.image_input import Images
from spt_deploy.runtimes.base import Arrays, Runner, graph_inputs
from spt_deploy.runtimes.onnx_file import read_facts
from spt_deploy.runtimes.onnxruntime_batches import SessionsByBatch
from spt_deploy.runtimes.onnxruntime_cuda import PROVIDER, choose_device, load_cuda, why_it_fell_back
from spt_deploy.runtimes.parts import may_be_cut

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": PROVIDER}
_CUDA_OPTIONS = {"use_tf32": "0"}  # float32 has its 23 bits of mantissa: with ten of them parity fails
_ERRORS_ONLY = 3  # ONNX Runtime's log severity


def open_session(
    model: Path | bytes, device: str, threads: int | None = None, profile: Path | None = None
) -> ort.InferenceSession:
    """A session on exactly the device named.

    Args:
        model: a file, or its bytes.
        device: ``cpu`` or ``cuda``.
        threads: that compute, one that calls among them; None takes all cores, and has threads that wait for each other
            keep theirs busy, which is faster alone and slower beside other work.
        profile: how the file begins that ``end_profiling`` writes; None measures nothing.

    Raises:
        ArtefactError: when ONNX Runtime cannot load the model.
        RuntimeMissingError: when the session fell back to another device.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if threads is not None:
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    provider = _PROVIDERS[device]
    # CUDA sessions keep the CPU provider for shape arithmetic; a session wholly on the CPU is caught below.
    providers = [provider] if device == "cpu" else [(provider, _CUDA_OPTIONS), _PROVIDERS["cpu"]]
    missing = load_cuda() if device == "cuda" else ()
    source = str(model) if isinstance(model, Path) else model
    try:
        session = ort.InferenceSession(source, options, providers=providers)
    except Exception as error:  # ONNX Runtime has no public base class of its errors
        name = model.name if isinstance(model, Path) else "the model"
        raise ArtefactError(f"ONNX Runtime cannot load {name}: {str(error).splitlines()[0]}") from error
    if session.get_providers()[0] != provider:
        raise RuntimeMissingError(
            f"ONNX Runtime fell back from {provider} to {session.get_providers()[0]}: {why_it_fell_back(missing)}"
        )
    return session


def sessions_by_batch(model: Path | bytes, facts: ModelFacts, device: str, lanes: int = 1) -> SessionsByBatch:
    """Sessions of a model with these facts; other arguments and errors as for ``open_session``, once it is expected."""
    height, width = facts.preprocessing.size
    image_bytes = 4 * height * width if device == "cpu" and may_be_cut(facts) else None
    return SessionsByBatch(partial(open_session, model, device), image_bytes, lanes)


class OnnxRuntimeRunner(Runner):
    """Runs an exported ONNX file with ONNX Runtime in the file's precision.

    On a CPU ONNX Runtime computes 16-bit nodes in float32; their weights have 16 bits all the same.
    """

    runtime: ClassVar[str] = "onnxruntime"

    def __init__(self, path: Path, device: str = "auto", threshold: float | None = None, lanes: int = 1) -> None:
        facts = read_facts(path)
        super().__init__(path, facts, choose_device(device), facts.precision, threshold)
        self.lanes = lanes if self.device == "cpu" else 1
        self._sessions: SessionsByBatch | None = None
        self._batch: int | None = 1
        self._names: Sequence[str] = ()

    def expect(self, batch: int | None) -> None:
        self._batch = batch
        if self._sessions is not None:
            self._sessions.expect(batch)

    def _open(self) -> None:
        self._sessions = sessions_by_batch(self.path, self.facts, self.device, self.lanes)
        try:
            self._names = self._sessions.expect(self._batch)
        except ArtefactError as error:
            if self.facts.precision != "bf16" or self.device != "cpu":
                raise
            raise ArtefactError(
                f"{self.path.name} is in bf16, in which ONNX Runtime has no convolution on a CPU; run it with "
                "--runtime openvino, or run the float32 file that it was made of"
            ) from error

    def _run(self, images: Images, threshold: float | None) -> Arrays:
        assert self._sessions is not None
        return self._sessions.run(graph_inputs(self.facts, images, threshold))

    def _output_names(self) -> Sequence[str]:
        return self._names

    def _close(self) -> None:
        if self._sessions is not None:
            self._sessions.close_pool()
        self._sessions = None
