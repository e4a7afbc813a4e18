"""An engine of TensorRT or TensorRT-RTX on the GPU it was built for.

Device buffers and pinned host buffers are allocated once, for the largest batch. The engine runs on a stream of its
own. Under TensorRT each batch size that occurs has an execution context and a CUDA graph of its own: a graph is good
for the shapes and the context that it was captured with. TensorRT-RTX captures graphs by itself, and keeps the
kernels that it compiled for this GPU in the user's cache folder.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from spt_deploy.engine.caches import kernel_cache_path, read_cache, write_cache
from spt_deploy.engine.description import (
    EngineDescription,
    check_batch,
    check_gpu,
    check_version,
    read_description,
    read_plan,
)
from spt_deploy.engine.library import Gpu, Library, current_gpu, load_library
from spt_deploy.errors import ArtefactError, InputError, OutputError, RuntimeMissingError, UsageError
from spt_deploy.facts import THRESHOLD_INPUT
from spt_deploy.image_input import Images
from spt_deploy.runtimes.base import IMAGES_INPUT, Arrays, Runner, graph_inputs

_TORCH_TYPES: dict[str, torch.dtype] = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
}


class EngineRunner(Runner):
    """Runs a built engine; its description lies beside it.

    Raises:
        ArtefactError: when the engine is not whole, not described, or made by another version or for another GPU.
        RuntimeMissingError: when the library or a GPU is missing.
        UsageError: when another device than CUDA is asked for.
    """

    runtime: ClassVar[str] = "tensorrt"

    def __init__(self, path: Path, device: str = "auto", threshold: float | None = None) -> None:
        if device == "cpu":
            raise UsageError(f"{path.name} is an engine and runs on a GPU; use --device cuda, or run the ONNX file")
        self.description: EngineDescription = read_description(path)
        self._plan = read_plan(path, self.description)
        self._library: Library = load_library(self.description.runtime)
        check_version(self.description, self._library.version, path.name)
        gpu = current_gpu()
        check_gpu(self.description, gpu, path)
        assert gpu is not None
        self._gpu: Gpu = gpu
        self._engine: _OpenEngine | None = None
        super().__init__(path, self.description.facts, "cuda", self.description.precision, threshold)

    @property
    def max_batch(self) -> int | None:
        """The largest batch of the engine's profile."""
        return self.description.batch.largest

    def _open(self) -> None:
        kind = _OpenEngine if self.description.runtime == "tensorrt" else _OpenRtxEngine
        self._engine = kind(self._library, self._plan, self.description, self._gpu, self.path.name)

    def _run(self, images: Images, threshold: float | None) -> Arrays:
        assert self._engine is not None
        check_batch(self.description, len(images), self.path.name)
        return self._engine.run(graph_inputs(self.facts, images, threshold))

    def _output_names(self) -> list[str]:
        return self._engine.outputs if self._engine else []

    def _close(self) -> None:
        assert self._engine is not None
        self._engine.close()
        self._engine = None


class RtxEngineRunner(EngineRunner):
    """The same for an engine of TensorRT-RTX."""

    runtime: ClassVar[str] = "tensorrt-rtx"


class _OpenEngine:
    """A deserialised engine with its buffers."""

    def __init__(self, library: Library, plan: bytes, description: EngineDescription, gpu: Gpu, name: str) -> None:
        self._trt, self._log, self._name = library.module, library.log, name
        self._description, self._gpu, self._version = description, gpu, library.version
        self._runtime = self._trt.Runtime(self._log)
        if description.version_compatible and hasattr(self._runtime, "engine_host_code_allowed"):
            self._runtime.engine_host_code_allowed = True  # it brings its own runtime; its hash was checked
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise ArtefactError(
                f"{library.name} cannot open {name}: {self._errors()}; rebuild it: {description.command}"
            )
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        tensors = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = self._trt.TensorIOMode.INPUT
        self.outputs = [each for each in tensors if self._engine.get_tensor_mode(each) != inputs]
        with torch.cuda.stream(self._stream):  # whose copies come after the zeros then
            self._device = {each: self._buffer(each) for each in tensors}
        self._host = {each: torch.empty_like(self._device[each], device="cpu", pin_memory=True) for each in tensors}
        self._contexts: dict[int, Any] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def run(self, feeds: Arrays) -> Arrays:
        """Pad, run, trim. The images are no more than the largest batch."""
        images = feeds[IMAGES_INPUT]
        count = len(images)
        size = self._description.batch.padded(count)
        host, device = self._host[IMAGES_INPUT], self._device[IMAGES_INPUT]
        host[:count].numpy()[:] = images
        host[count:size].zero_()
        with torch.cuda.stream(self._stream):
            device[:size].copy_(host[:size], non_blocking=True)
            if THRESHOLD_INPUT in feeds:  # where the buffer is: a graph reads what lies there when it is replayed
                self._host[THRESHOLD_INPUT].fill_(float(feeds[THRESHOLD_INPUT]))
                self._device[THRESHOLD_INPUT].copy_(self._host[THRESHOLD_INPUT], non_blocking=True)
            self._launch(size)
            for name in self.outputs:
                self._host[name][:count].copy_(self._device[name][:count], non_blocking=True)
        self._stream.synchronize()
        return {name: self._host[name][:count].numpy().copy() for name in self.outputs}

    def close(self) -> None:
        """Give back graphs before contexts, contexts before the engine."""
        self._stream.synchronize()
        self._graphs.clear()
        self._contexts.clear()
        self._engine = self._runtime = None

    def _launch(self, size: int) -> None:
        """Replay the graph of this size; capture it the first time."""
        graph = self._graphs.get(size)
        if graph is not None:
            graph.replay()
            return
        context = self._contexts[size] = self._context(size)
        self._enqueue(context)  # outside of the capture: it does what is left to do of setting shapes
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._enqueue(context)
        graph.replay()  # capturing runs nothing
        self._graphs[size] = graph

    def _context(self, size: int) -> Any:
        """An execution context for one batch size, its tensors bound to the buffers."""
        context = self._make_context()
        if context is None:
            raise RuntimeMissingError(
                f"there is no room on {self._gpu.name} for {self._name} at a batch of {size}: {self._errors()}; use a "
                "smaller --batch"
            )
        if not context.set_input_shape(IMAGES_INPUT, (size, *self._device[IMAGES_INPUT].shape[1:])):
            raise InputError(f"{self._name} does not take a batch of {size}: {self._errors()}")
        for name, buffer in self._device.items():
            context.set_tensor_address(name, buffer.data_ptr())
        return context

    def _make_context(self) -> Any:
        return self._engine.create_execution_context()

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise ArtefactError(f"{self._name} does not run: {self._errors()}")

    def _buffer(self, name: str) -> Tensor:
        shape = list(self._engine.get_tensor_shape(name))
        if shape:  # the threshold is a scalar
            shape[0] = self._description.batch.largest
        if min(shape, default=0) < 0:
            raise ArtefactError(f"{self._name} has an output {name} of unknown size {shape}; export the model again")
        return torch.zeros(shape, dtype=_TORCH_TYPES[self._engine.get_tensor_dtype(name).name], device="cuda")

    def _errors(self) -> str:
        return self._log.take_errors() or "it gave no reason"


class _OpenRtxEngine(_OpenEngine):
    """TensorRT-RTX compiles kernels when an engine is first run, and captures CUDA graphs by itself."""

    def __init__(self, library: Library, plan: bytes, description: EngineDescription, gpu: Gpu, name: str) -> None:
        super().__init__(library, plan, description, gpu, name)
        self._config = self._engine.create_runtime_config()
        self._cache_path = kernel_cache_path(library.version, gpu, description.plan_sha256)
        self._cache = self._config.create_runtime_cache()
        before = read_cache(self._cache_path)
        if before and not self._cache.deserialize(before):
            self._log.take_errors()  # of another driver, say: the kernels are compiled anew
        self._config.set_runtime_cache(self._cache)
        self._config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE

    def close(self) -> None:
        """As of any engine, and keep the kernels for the next time."""
        kernels = bytes(self._cache.serialize())
        if kernels and kernels != read_cache(self._cache_path):
            with suppress(OutputError):  # a folder that may not be written costs time, nothing else
                write_cache(self._cache_path, kernels)
        super().close()

    def _launch(self, size: int) -> None:
        context = self._contexts.get(size)
        if context is None:
            context = self._contexts[size] = self._context(size)
        self._enqueue(context)

    def _make_context(self) -> Any:
        return self._engine.create_execution_context(self._config)
