"""CUDA for ONNX Runtime: taken where it is, refused with the reason where it is not."""

from __future__ import annotations

import onnxruntime as ort
import pytest

from spt_deploy.errors import RuntimeMissingError
from spt_deploy.runtimes import onnxruntime_cuda
from spt_deploy.runtimes.onnxruntime_cuda import choose_device, load_cuda, missing_libraries, why_it_fell_back

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

# What ONNX Runtime 1.31.1 printed where CUDA 13 was not installed and one library was damaged.
SAID = """\
Failed to load /venv/lib/python3.11/site-packages/nvidia/cu13/lib/libcublasLt.so.13: file too short
Failed to load libcublasLt.so.13: libcublasLt.so.13: cannot open shared object file: No such file or directory
Failed to load libcurand.so.10: libcurand.so.10: cannot open shared object file: No such file or directory
Please follow https://onnxruntime.ai/docs/install/#cuda-and-cudnn to install CUDA.
"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """With the providers and the GPU that the test names."""
    providers, gpu = request.param
    monkeypatch.setattr(ort, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime_cuda, "has_gpu", lambda: gpu)


@pytest.mark.parametrize("machine", [([CUDA, CPU], True)], indirect=True)
@pytest.mark.usefixtures("machine")
def test_a_gpu_and_its_provider_are_taken() -> None:
    assert [choose_device(wanted) for wanted in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (([CUDA, CPU], False), "NVIDIA's driver is not there or finds no GPU"),
        (([CPU], False), "NVIDIA's driver is not there or finds no GPU"),
        (
            ([CPU], True),
            r"no CUDA provider \(it has CPUExecutionProvider\): pip uninstall onnxruntime onnxruntime-gpu, .* "
            r"pip install 'onnxruntime-gpu\[cuda,cudnn\]'",
        ),
    ],
    indirect=["machine"],
)
@pytest.mark.usefixtures("machine")
def test_what_lacks_is_named_where_cuda_is_asked_for_and_else_it_is_the_cpu(reason: str) -> None:
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    with pytest.raises(RuntimeMissingError, match=rf"{reason}.*; or use --device cpu"):
        choose_device("cuda")


def test_libraries_that_are_nowhere_are_named_once() -> None:
    missing = missing_libraries(SAID)
    assert missing == ("libcublasLt.so.13", "libcurand.so.10")
    assert why_it_fell_back(missing).startswith("libcublasLt.so.13, libcurand.so.10 cannot be loaded; pip install")
    assert "driver" in why_it_fell_back(())


def test_nothing_is_printed_where_results_go(capfd: pytest.CaptureFixture[str]) -> None:
    load_cuda.cache_clear()
    load_cuda()
    assert capfd.readouterr().out == ""
