"""The check itself: what matters most first, and what time does not suffice for is said."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import NamedTuple

import torch

from spt_deploy.errors import RuntimeMissingError
from spt_deploy.version import __version__
from spt_deploy.workflows.gpu import kernels, models, suite
from spt_deploy.workflows.gpu.clock import measure_ceilings
from spt_deploy.workflows.gpu.floors import Case
from spt_deploy.workflows.gpu.report import GpuReport

LARGE, SMALL = (800, 1280), (224, 224)
TESTS_SHARE, SANITIZER_S = 0.45, 60.0  # of the time for the tests; seconds for compute-sanitizer


class Part(NamedTuple):
    """A part of the check.

    Attributes:
        name: for messages.
        cost_s: about how long it takes, corrected by how long others of its kind took; not begun when less is left.
        run: does it, and adds to the report.
        kind: parts of one kind are alike in what makes them slow.
    """

    name: str
    cost_s: float
    run: Callable[[], None]
    kind: str = ""


def gpu_check(
    device_name: str = "cuda",
    seconds: float = 420.0,
    quick: bool = False,
    status: Callable[[str], None] = lambda text: None,
    on_part: Callable[[GpuReport], None] = lambda report: None,
) -> GpuReport:
    """Check the kernels on this machine's GPU.

    Args:
        device_name: ``cuda``; ``cpu`` only proves that the check itself runs, at toy sizes, in Triton's interpreter.
        seconds: that it may take.
        quick: fewer repetitions and only the first of the sizes.
        status: hears what is being done.
        on_part: hears of the report after each part, so that nothing is lost when the check is stopped.

    Raises:
        RuntimeMissingError: when there is no CUDA device or no Triton.
    """
    if device_name == "cuda" and not torch.cuda.is_available():
        raise RuntimeMissingError(
            "gpu-check needs an NVIDIA GPU, and PyTorch sees none; run it where one is, with a CUDA build of torch"
        )
    device = torch.device(device_name)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    import spt_plugins

    spt_plugins.register_torch_cuda()
    report = GpuReport(_machine(device))
    end = time.monotonic() + seconds
    slower: dict[str, float] = {}
    for part in _parts(report, device, seconds, quick):
        begun = time.monotonic()
        left, cost_s = end - begun, part.cost_s * slower.get(part.kind, 1.0)
        if left < cost_s:
            report.cut.append(f"{part.name}: not run, {left:.0f} s were left and it takes about {cost_s:.0f} s")
            continue
        status(f"{part.name} ({left:.0f} s left)")
        try:
            part.run()
        except torch.cuda.OutOfMemoryError:  # is about this GPU's size, not about what is checked
            report.cut.append(f"{part.name}: the GPU's memory does not suffice")
        except Exception as error:  # one part that breaks must not cost the results of the others
            report.broken = True
            report.cut.append(f"{part.name}: broke with {type(error).__name__}: {str(error)[:2000]}")
        if part.kind:
            slower[part.kind] = max(slower.get(part.kind, 0.0), (time.monotonic() - begun) / part.cost_s)
        on_part(report)
    return report


def _parts(report: GpuReport, device: torch.device, seconds: float, quick: bool) -> Iterator[Part]:
    on_gpu = device.type == "cuda"
    large, small = (LARGE, SMALL) if on_gpu else ((64, 96), (32, 32))
    names = ("spt_t", "spt_b") if on_gpu else ("spt_micro",)

    def add_ceilings() -> None:
        report.ceilings = measure_ceilings(device)

    yield Part("memory bandwidth and matrix peak", 3, add_ceilings)
    case = Case(4, 50, 80, 384, 1003) if on_gpu else Case(2, 4, 5, 64, 7)
    yield Part("kernels against float64", 10, lambda: report.kernel_errors.extend(kernels.kernel_errors(case, device)))
    if on_gpu:
        yield Part("GPU tests", 30, lambda: report.suites.append(suite.run_tests(TESTS_SHARE * seconds)))
    for name in names:
        yield Part(
            f"{name} in float16",
            8,
            lambda name=name: report.model_errors.append(models.model_error(name, small, 2, device)),  # type: ignore[misc]
        )

    def times(model: str, stage: int, size: tuple[int, int], images: int) -> Part:
        def run() -> None:
            assert report.ceilings is not None
            report.kernel_times += kernels.kernel_times(model, stage, size, images, report.ceilings, device, quick)

        return Part(f"kernels of {model} stage {stage}, {size[0]}x{size[1]}, batch {images}", 5, run, "kernels")

    def against(variant: str, size: tuple[int, int], images: int, cost_s: float) -> Part:
        def run() -> None:
            report.speedups.extend(models.spt_against_swin(variant, size, images, device, 5 if quick else 20, on_gpu))

        name = f"spt_{variant} against swin_{variant}, {size[0]}x{size[1]}, batch {images}"
        return Part(name, cost_s, run, "models")

    def block() -> None:
        report.speedups.extend(
            models.block_against_window(large, 8 if on_gpu else 2, device, 5 if quick else 30, on_gpu)
        )

    yield times(names[0], 3, large, 8 if on_gpu else 2)
    yield Part("SPA block against window block", 15 if on_gpu else 1, block)
    if not on_gpu:
        yield against("micro", large, 2, 1)
        return
    # Most of these parts is the compiler's time, which follows the number of blocks: 12 of T, 24 of S and B.
    yield against("t", large, 8, 60)
    yield times(names[0], 4, large, 8)
    if quick:
        return
    yield against("s", large, 8, 110)
    for size, images in ((large, 1), (small, 8), (small, 32), (small, 1), (large, 32)):
        for stage in (3, 4):
            yield times(names[0], stage, size, images)
    yield times("spt_b", 3, large, 8)
    yield Part("compute-sanitizer", SANITIZER_S, lambda: report.suites.append(suite.run_sanitizer(SANITIZER_S)))
    yield against("t", small, 8, 55)
    yield against("b", large, 8, 110)
    for variant, size, images in (
        ("t", small, 32),
        ("t", small, 1),
        ("t", large, 1),
        ("s", small, 32),
        ("b", small, 32),
        ("t", large, 32),
    ):
        yield against(variant, size, images, 55 if variant == "t" else 100)


def _machine(device: torch.device) -> dict[str, str]:
    name = "cpu: says nothing of speed" if device.type == "cpu" else torch.cuda.get_device_name(device)
    import triton

    return {
        "device": name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "spt-deploy": __version__,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
