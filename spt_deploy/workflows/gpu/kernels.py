"""The four kernels: error against float64 beside PyTorch's own float16, and time over the floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from spt_deploy.config import BackboneConfig
from spt_deploy.model import reference
from spt_deploy.model.order import window_order
from spt_deploy.model.shapes import stage_sizes
from spt_deploy.workflows.gpu.clock import Ceilings, seconds_per_run, sets_beyond_cache, spare_memory
from spt_deploy.workflows.gpu.floors import OPERATORS, Case

LARGEST_ERROR = 2e-3  # of a kernel in float16, relative, in the 2-norm
RATIOS = (1.0, 0.5, 0.25, 0.1)
MOST_SETS, MOST_BYTES = 256, 4 << 30  # of inputs that take turns
PACKING = "per-image"


@dataclass(frozen=True)
class KernelError:
    """How far a kernel is from float64.

    Attributes:
        operator: name.
        kernel: ||out - ref|| / ||ref|| of the kernel in float16; NaN never passes.
        pytorch: the same of the PyTorch reference in float16.
    """

    operator: str
    kernel: float
    pytorch: float

    @property
    def passed(self) -> bool:
        """Within ``LARGEST_ERROR``; the lists must be equal."""
        return self.kernel <= (0.0 if self.operator == "SelectTokens" else LARGEST_ERROR)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self) | {"passed": self.passed}


@dataclass(frozen=True)
class KernelTime:
    """How long a kernel takes.

    Attributes:
        operator: name.
        model: whose stage it is.
        stage: 3 or 4.
        image_size: height and width in pixels.
        images: in the batch.
        ratio: share of tokens kept.
        seconds: median of a launch.
        floor_s: the least that the GPU needs, if all comes from its memory.
        cached: whether the sets of inputs that took turns left some of them in the cache, so that less had to come
            from memory than the floor supposes.
    """

    operator: str
    model: str
    stage: int
    image_size: tuple[int, int]
    images: int
    ratio: float
    seconds: float
    floor_s: float
    cached: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self) | {"over_floor": self.seconds / self.floor_s}


class Inputs:
    """Random inputs of a case, on the device."""

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        random = torch.Generator(device=device).manual_seed(seed)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape, generator=random, device=device) * scale).to(dtype)

        c = case.channels
        self.case, self.dtype = case, dtype
        rank = torch.rand(case.images, case.tokens, generator=random, device=device).argsort(1)
        self.logits = torch.where(rank < case.kept, 1.0, -1.0)
        self.order = window_order(case.height, case.width, case.window, 0, device)
        self.threshold = torch.zeros((), device=device)
        self.gate = torch.rand(case.images, case.tokens, generator=random, device=device)
        self.h = normal(case.images, case.tokens, c)
        self.residual = normal(case.images, case.tokens, c)
        self.qkv_weight, self.qkv_bias = normal(3 * c, c, scale=c**-0.5), normal(3 * c, scale=0.1)
        self.proj_weight, self.proj_bias = normal(c, c, scale=c**-0.5), normal(c, scale=0.1)
        self.table = normal((2 * case.window - 1) ** 2, case.heads, scale=0.2)
        self.sizes = {"heads": case.heads, "window": case.window, "tokens": case.tokens, "width": case.width}


def _launchers(inputs: Inputs) -> dict[str, Callable[[], Any]]:
    """The kernels on these inputs, each given what the one before it made."""
    from spt_plugins.packed_attention import packed_attention
    from spt_plugins.packed_qkv import packed_qkv
    from spt_plugins.select_tokens import select_tokens
    from spt_plugins.unpack_project import unpack_project

    i = inputs
    token_of_slot, slot_of_token, cu_seqlens = select_tokens(i.logits, i.order, i.threshold)
    qkv = packed_qkv(i.h, i.gate, token_of_slot, i.qkv_weight, i.qkv_bias)
    o = packed_attention(qkv, token_of_slot, cu_seqlens, i.table, **i.sizes, packing=PACKING)
    return {
        "SelectTokens": lambda: select_tokens(i.logits, i.order, i.threshold),
        "PackedQKV": lambda: packed_qkv(i.h, i.gate, token_of_slot, i.qkv_weight, i.qkv_bias),
        "PackedAttention": lambda: packed_attention(
            qkv, token_of_slot, cu_seqlens, i.table, **i.sizes, packing=PACKING
        ),
        "UnpackProject": lambda: unpack_project(
            o, token_of_slot, slot_of_token, i.residual, i.proj_weight, i.proj_bias
        ),
    }


def _reference(inputs: Inputs, dtype: torch.dtype) -> dict[str, Tensor]:
    """The operators as written in PyTorch, in ``dtype``, each given what the kernels are given: float16 values."""
    from spt_plugins.packed_attention import packed_attention
    from spt_plugins.packed_qkv import packed_qkv

    i = inputs
    token_of_slot, slot_of_token, cu_seqlens = reference.select_tokens(i.logits, i.order, i.threshold)
    qkv = packed_qkv(i.h, i.gate, token_of_slot, i.qkv_weight, i.qkv_bias)
    o = packed_attention(qkv, token_of_slot, cu_seqlens, i.table, **i.sizes, packing=PACKING)
    to = {
        name: value.to(dtype) for name, value in vars(i).items() if isinstance(value, Tensor) and value.dtype == i.dtype
    }
    gate = i.gate.to(dtype) if dtype == torch.float64 else i.gate
    return {
        "SelectTokens": token_of_slot,
        "PackedQKV": reference.packed_qkv(to["h"], gate, token_of_slot, to["qkv_weight"], to["qkv_bias"]),
        "PackedAttention": reference.packed_attention(
            qkv.to(dtype), token_of_slot, cu_seqlens, to["table"], **i.sizes, packing=PACKING
        ),
        "UnpackProject": reference.unpack_project(
            o.to(dtype), token_of_slot, slot_of_token, to["residual"], to["proj_weight"], to["proj_bias"]
        ),
    }


def kernel_errors(case: Case, device: torch.device) -> list[KernelError]:
    """Each kernel in float16 against float64 on the same inputs."""
    inputs = Inputs(case, torch.float16, device, seed=0)
    exact, narrow = _reference(inputs, torch.float64), _reference(inputs, torch.float16)
    found = []
    for operator, launch in _launchers(inputs).items():
        out = launch()
        out = out[0] if isinstance(out, tuple) else out
        out = out[: len(exact[operator])]  # past the last kept token there is anything
        found.append(KernelError(operator, _error(out, exact[operator]), _error(narrow[operator], exact[operator])))
    return found


def _error(out: Tensor, exact: Tensor) -> float:
    exact = exact.double()
    return float(torch.linalg.vector_norm(out.double() - exact) / torch.linalg.vector_norm(exact))


def cases(model: str, stage: int, image_size: tuple[int, int], images: int) -> Iterator[tuple[float, Case]]:
    """A stage of a model at each share of kept tokens."""
    config = BackboneConfig.from_name(model)
    height, width = stage_sizes(image_size)[stage - 1]
    for ratio in RATIOS:
        kept = max(1, round(ratio * height * width))
        yield ratio, Case(images, height, width, config.stage_width(stage), kept, config.window)


def kernel_times(
    model: str,
    stage: int,
    image_size: tuple[int, int],
    images: int,
    ceilings: Ceilings,
    device: torch.device,
    quick: bool = False,
) -> Iterator[KernelTime]:
    """Each kernel at each share of kept tokens, in float16."""
    for ratio, case in cases(model, stage, image_size, images):
        for operator, seconds, cached in _case_times(case, device, quick):
            floor_s = OPERATORS[operator](case).floor_s(*ceilings)
            yield KernelTime(operator, model, stage, image_size, images, ratio, seconds, floor_s, cached)


def _case_times(case: Case, device: torch.device, quick: bool) -> list[tuple[str, float, bool]]:
    """Operator, seconds, and whether it found some of its inputs in the cache."""
    needed = {operator: sets_beyond_cache(device, work(case).bytes) for operator, work in OPERATORS.items()}
    bytes_each = 6 * case.images * case.tokens * case.channels * case.item  # h, residual, qkv, o at their full length
    room = min(MOST_BYTES, spare_memory(device)) // bytes_each
    count = max(1, min(MOST_SETS, room, max(needed.values())))
    launchers = [_launchers(Inputs(case, torch.float16, device, seed)) for seed in range(count)]
    found = []
    for operator, sets in needed.items():
        runs = [launch[operator] for launch in launchers[:sets]]
        found.append((operator, seconds_per_run(runs, device, quick), sets > count))
    return found
