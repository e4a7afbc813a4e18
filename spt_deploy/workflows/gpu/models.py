"""Whole models: float16 against float32, and SPT against Swin under torch.compile and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from spt_deploy.bench import Timing, take_turns
from spt_deploy.config import BackboneConfig, ModelConfig
from spt_deploy.model.backbone import Backbone
from spt_deploy.model.blocks import SpaBlock, SwinBlock
from spt_deploy.model.complexity import complexity, kept_tokens
from spt_deploy.model.shapes import stage_sizes
from spt_deploy.workflows.bench_work import forced_mask
from spt_deploy.workflows.gpu.kernels import RATIOS

LARGEST_ERROR = 1e-2  # of a feature map in float16, relative, in the 2-norm


@dataclass(frozen=True)
class ModelError:
    """A model in float16 against itself in float32, on the same selection.

    Attributes:
        model: name.
        errors: of the map of each stage, ||out - ref|| / ||ref||.
    """

    model: str
    errors: tuple[float, ...]

    @property
    def passed(self) -> bool:
        """All maps within ``LARGEST_ERROR``."""
        return all(error <= LARGEST_ERROR for error in self.errors)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self) | {"passed": self.passed}


@dataclass(frozen=True)
class Speedup:
    """One contender beside the dense one.

    Attributes:
        what: ``spt_t against swin_t`` and the like.
        image_size: in pixels.
        images: in the batch.
        ratio: share of tokens kept.
        dense_ms: median of the dense contender; ``ms`` of this one.
        ms: see ``dense_ms``.
        speedup: median over rounds of the ratio.
        ideal: ratio of the multiply-accumulates.
        how: ``compiled, CUDA graph``, or what of it did not work, of this contender and of the dense one.
    """

    what: str
    image_size: tuple[int, int]
    images: int
    ratio: float
    dense_ms: float
    ms: float
    speedup: float
    ideal: float
    how: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self) | {"of_ideal": self.speedup / self.ideal}


def masks_for(config: BackboneConfig, image_size: tuple[int, int], images: int, ratio: float) -> list[Tensor]:
    """For each SPA block a B x h x w bool mask that keeps the same number of tokens of each image."""
    sizes = stage_sizes(image_size)
    shapes = [sizes[int(name[0]) - 1] for name in config.spa_blocks]
    return [torch.from_numpy(forced_mask(images, h * w, ratio)).view(images, h, w) for h, w in shapes]


def model_error(name: str, image_size: tuple[int, int], images: int, device: torch.device) -> ModelError:
    """A randomly initialised backbone in float16 against float32, a quarter of the tokens kept."""
    torch.manual_seed(0)
    config = BackboneConfig.from_name(name, packing="per-image", drop_path=0.0)
    wide = Backbone(config).eval().to(device)
    narrow = Backbone(config).eval().to(device)
    narrow.load_state_dict(wide.state_dict())
    narrow.half()
    batch = torch.randn(images, 3, *image_size, device=device)
    masks = [mask.to(device) for mask in masks_for(config, image_size, images, 0.25)]
    with torch.inference_mode():
        expected, found = wide(batch, masks).tokens, narrow(batch.half(), masks).tokens
    norm = torch.linalg.vector_norm
    errors = (float(norm(b.double() - a.double()) / norm(a.double())) for a, b in zip(expected, found, strict=True))
    return ModelError(name, tuple(errors))


def spt_against_swin(
    size: str, image_size: tuple[int, int], images: int, device: torch.device, rounds: int = 20, compiles: bool = True
) -> list[Speedup]:
    """A backbone with and without selection, in float16, at each share of kept tokens, in one run."""
    torch.manual_seed(0)
    spt = BackboneConfig.from_name(f"spt_{size}", packing="per-image", drop_path=0.0)
    swin = replace(spt, name=f"swin_{size}", spa_stages=())
    batch = torch.randn(images, 3, *image_size, device=device, dtype=_dtype(device))
    masks = {ratio: [mask.to(device) for mask in masks_for(spt, image_size, images, ratio)] for ratio in RATIOS}
    dense, selecting = _Maps(_model(swin, device)), _Maps(_model(spt, device))
    timings, how = _against(
        dense, (batch,), selecting, [(batch, *masks[ratio]) for ratio in RATIOS], images, device, rounds, compiles
    )
    classes = ModelConfig(swin, "classify", ("one",))
    work = complexity(classes, image_size).total.macs
    found = []
    for ratio, timing in zip(RATIOS, timings[1:], strict=True):
        kept = kept_tokens(spt, image_size, ratio)
        ideal = work / complexity(replace(classes, backbone=spt), image_size, kept).total.macs
        found.append(
            _speedup(f"spt_{size} against swin_{size}", image_size, images, ratio, timings[0], timing, ideal, how)
        )
    return found


def block_against_window(
    image_size: tuple[int, int], images: int, device: torch.device, rounds: int = 30, compiles: bool = True
) -> list[Speedup]:
    """A block of stage 3 of SPT-T against the dense window block, in float16."""
    torch.manual_seed(0)
    config = BackboneConfig.from_name("spt_t", packing="per-image", drop_path=0.0)
    height, width = stage_sizes(image_size)[2]
    x = torch.randn(images, height, width, config.stage_width(3), device=device, dtype=_dtype(device))
    threshold = torch.zeros((), device=device)
    dense = SwinBlock(config, 3, 0, 0.0).eval().to(device, x.dtype)
    spa = _Block(SpaBlock(config, 3, 0, 0.0).eval().to(device, x.dtype))
    masks = [torch.from_numpy(forced_mask(images, height * width, ratio)).to(device) for ratio in RATIOS]
    timings, how = _against(
        dense, (x,), spa, [(x, threshold, mask) for mask in masks], images, device, rounds, compiles
    )
    c, window = config.stage_width(3), config.window
    tokens = height * width
    padded = -(-height // window) * -(-width // window) * window**2
    mlp = 8 * c * c * tokens
    whole = padded * (4 * c * c + 2 * window**2 * c) + mlp
    found = []
    for ratio, timing in zip(RATIOS, timings[1:], strict=True):
        kept = max(1, round(ratio * tokens))
        containers = -(-kept // window**2)
        needed = kept * 4 * c * c + containers * 2 * window**4 * c + mlp + tokens * c
        found.append(
            _speedup(
                "SPA block against window block", image_size, images, ratio, timings[0], timing, whole / needed, how
            )
        )
    return found


class _Maps(nn.Module):
    """A backbone as a function of tensors only."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor, *masks: Tensor) -> tuple[Tensor, ...]:
        """``images`` B x 3 x H x W; the maps of the four stages."""
        return tuple(self.backbone(images, masks or None).tokens)


class _Block(nn.Module):
    def __init__(self, block: SpaBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, threshold: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.block(x, None, threshold, mask)[0]
        return out


def _model(config: BackboneConfig, device: torch.device) -> Backbone:
    return Backbone(config).eval().to(device, _dtype(device))


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.float32


def _against(
    dense: nn.Module,
    dense_inputs: tuple[Tensor, ...],
    selecting: nn.Module,
    inputs: Sequence[tuple[Tensor, ...]],
    images: int,
    device: torch.device,
    rounds: int,
    compiles: bool,
) -> tuple[list[Timing], str]:
    """Timings of the dense module first, then of the other on each of its inputs; and how both were run."""
    torch.compiler.reset()  # forms compiled for other modules count towards a limit, past which nothing is compiled
    call, dense_how = _compiled(dense, dense_inputs, compiles)
    run, graph = _captured(call, dense_inputs, device)
    dense_how += graph
    runs = {"dense": run}
    call, how = _compiled(selecting, inputs[0], compiles)
    for number, each in enumerate(inputs):
        runs[str(number)], graph = _captured(call, each, device)
    how += graph
    timings = take_turns(runs, images=images, rounds=rounds)
    return timings, how if how == dense_how else f"{how}; dense: {dense_how}"


def _run(call: Callable[..., object], inputs: tuple[Tensor, ...]) -> object:
    with torch.inference_mode():
        return call(*inputs)


def _compiled(module: nn.Module, inputs: tuple[Tensor, ...], compiles: bool) -> tuple[Callable[..., object], str]:
    """The module put through torch.compile, whole or in pieces or not, as far as that works; and which it is."""
    _run(module, inputs)  # makes tables of indices on the device: their copy from the host cannot be in a CUDA graph
    if not compiles:
        return module, "as written"
    reason = ""
    for whole, how in ((True, "compiled"), (False, "compiled in pieces")):
        try:
            call = torch.compile(module, dynamic=False, fullgraph=whole)
            _run(call, inputs)
            return call, how + reason
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # of the compiler: the figure is worth having without it, and says so
            reason = f" ({type(error).__name__})"
            torch.compiler.reset()
    return module, f"not compiled{reason}"


def _captured(
    call: Callable[..., object], inputs: tuple[Tensor, ...], device: torch.device
) -> tuple[Callable[[], object], str]:
    """A run that ends when the GPU is done, replaying a CUDA graph where one can be captured; and whether one was."""
    if device.type != "cuda":
        return lambda: _run(call, inputs), ", cpu"
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # libraries take memory and choose algorithms at first use, which a capture does not allow
            _run(call, inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            _run(call, inputs)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        reason = f", no CUDA graph ({type(error).__name__})"

        def launch() -> None:
            _run(call, inputs)
            torch.cuda.synchronize()

        return launch, reason

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay, ", CUDA graph"


def _speedup(
    what: str,
    image_size: tuple[int, int],
    images: int,
    ratio: float,
    dense: Timing,
    timing: Timing,
    ideal: float,
    how: str,
) -> Speedup:
    return Speedup(what, image_size, images, ratio, dense.median_ms, timing.median_ms, timing.speedup, ideal, how)
