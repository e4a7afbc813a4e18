"""OpenVINO: what was compiled is kept, several requests run at a time, and bfloat16 only where the processor has it."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from spt_deploy.engine.caches import cache_folder
from spt_deploy.errors import RuntimeMissingError, UsageError
from spt_deploy.parity.checks import compare_runners
from spt_deploy.parity.inputs import generated_cases
from spt_deploy.runtimes import open_runner
from spt_deploy.runtimes.compiled_cache import MOST_FILES, compiled_path, keep_compiled, read_compiled
from spt_deploy.workflows.bench import bench
from spt_deploy.workflows.validate import validate
from tests.exported import Exported, make_exported

pytest.importorskip("openvino", reason="an extra")

from spt_deploy.runtimes import openvino_runner
from spt_deploy.runtimes.openvino_runner import openvino_core

SIZE = (64, 64)
HAS_BF16 = "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make_exported(tmp_path_factory.mktemp("openvino"), SIZE)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def images(count: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((count, 3, *SIZE), dtype=np.float32)


def test_outputs_have_the_names_that_the_file_gives_them(tmp_path: Path) -> None:
    """Of one SPA block: OpenVINO takes out the step that makes its ratio an output, whose input has a name too."""
    made = make_exported(tmp_path, SIZE, spa_stages=(3,), depths=(1, 1, 1, 1))
    with open_runner(made.onnx, "openvino") as runner:
        assert list(runner.infer(images(1))) == ["logits", "select_ratio", "selection"]


def test_the_second_time_nothing_is_compiled(made: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_runner(made.onnx, "openvino") as runner:
        first = runner.infer(images(3))
    monkeypatch.setattr(openvino_runner, "compile_model", lambda *given: pytest.fail("compiled again"))
    with open_runner(made.onnx, "openvino") as runner:
        again = runner.infer(images(3))
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value)


def test_a_damaged_or_forbidden_cache_is_no_error(made: Exported, tmp_path: Path) -> None:
    with open_runner(made.onnx, "openvino") as runner:
        expected = runner.infer(images(2))["logits"]
    folder = cache_folder() / "openvino"
    kept = list(folder.glob("*.blob"))
    for each in kept:
        each.write_bytes(b"no model")
    with open_runner(made.onnx, "openvino") as runner:
        np.testing.assert_array_equal(runner.infer(images(2))["logits"], expected)
    for each in kept:
        each.unlink()
    folder.rmdir()
    folder.write_text("a file where a folder should be", encoding="utf-8")
    with open_runner(made.onnx, "openvino") as runner:
        np.testing.assert_array_equal(runner.infer(images(2))["logits"], expected)


def test_another_file_option_or_version_is_another_place(made: Exported) -> None:
    path = compiled_path(made.onnx, "1", "cpu", {"a": 1})
    assert path == compiled_path(made.onnx, "1", "cpu", {"a": 1})
    assert (
        len({path, compiled_path(made.onnx, "2", "cpu", {"a": 1}), compiled_path(made.onnx, "1", "b", {"a": 1})}) == 3
    )
    assert path != compiled_path(made.onnx, "1", "cpu", {"a": 2})


def test_a_file_is_known_by_what_is_in_it_and_by_nothing_else(tmp_path: Path) -> None:
    path, copy = tmp_path / "a.onnx", tmp_path / "b.onnx"
    path.write_bytes(b"one")
    copy.write_bytes(b"one")
    os.utime(path, (1e9, 1e9))
    one = compiled_path(path, "1", "cpu", {})
    assert one == compiled_path(copy, "1", "cpu", {})
    copy.write_bytes(b"two")  # of the same size
    os.utime(copy, (1e9, 1e9))
    copy.replace(path)
    assert one != compiled_path(path, "1", "cpu", {})


def test_the_oldest_go_when_there_are_many(made: Exported) -> None:
    paths = [compiled_path(made.onnx, str(number), "cpu", {}) for number in range(MOST_FILES + 2)]
    for number, path in enumerate(paths):
        keep_compiled(path, bytes([number]))
        if number:
            assert read_compiled(paths[0]) == b"\0"  # of use, so that it is not the oldest
    assert sum(path.is_file() for path in paths) == MOST_FILES
    assert paths[-1].is_file()
    assert not paths[1].is_file()


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_several_batches_at_a_time_have_the_same_answers(made: Exported, runtime: str) -> None:
    batches = [images(1 + number % 3, number) for number in range(12)]
    with open_runner(made.onnx, runtime, "cpu") as runner:
        expected = [runner.infer(batch)["logits"] for batch in batches]
    with (
        open_runner(made.onnx, runtime, "cpu", throughput=True) as runner,
        ThreadPoolExecutor(max(2, runner.lanes)) as pool,
    ):
        found = list(pool.map(lambda batch: runner.infer(batch)["logits"], batches))
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-5)


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no bfloat16")
def test_bfloat16_is_near_and_its_selection_borderline(made: Exported) -> None:
    with open_runner(made.checkpoint) as ours, open_runner(made.onnx, precision="bf16") as theirs:
        assert theirs.name == "openvino cpu bf16"
        assert compare_runners(ours, theirs, generated_cases(SIZE)).passed
        given = images(2)
        assert np.abs(ours.infer(given)["logits"] - theirs.infer(given)["logits"]).max() > 1e-4, "not rounded at all"


_SIGNAL_STACK = """
import ctypes, gc, sys
from pathlib import Path
from spt_deploy.runtimes import open_runner

class Stack(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

for _ in range(2):
    with open_runner(Path(sys.argv[1]), "openvino") as first, open_runner(Path(sys.argv[1]), "openvino") as second:
        del first
        gc.collect()
del second
gc.collect()
stack = Stack()
assert ctypes.CDLL(None, use_errno=True).sigaltstack(None, ctypes.byref(stack)) == 0
mapped = [[int(end, 16) for end in line.split()[0].split("-")] for line in open("/proc/self/maps")]
assert not stack.address or any(first <= stack.address < last for first, last in mapped), "unmapped"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_signal_handlers_have_a_stack_when_every_runner_is_gone(made: Exported) -> None:
    done = subprocess.run([sys.executable, "-c", _SIGNAL_STACK, str(made.onnx)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


_FIRST_ARRAYS = """
import faulthandler, threading
import numpy as np
import openvino.opset13 as ops
from openvino import Model
from spt_deploy.runtimes.openvino_runner import openvino_core

faulthandler.dump_traceback_later(20, exit=True)
x = ops.parameter([-1, 3], np.float32)
compiled = openvino_core().compile_model(Model([ops.add(x, x)], [x]), "CPU")
requests = [compiled.create_infer_request() for _ in range(4)]
together = threading.Barrier(4)

def infer(request):
    together.wait()
    request.infer({0: np.ones((2, 3), dtype=np.float32)})

threads = [threading.Thread(target=infer, args=(request,)) for request in requests]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_the_first_batches_of_a_process_may_run_at_the_same_time() -> None:
    command = [sys.executable, "-c", _FIRST_ARRAYS]  # every other process hangs where NumPy was not looked up before
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    heard = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 6, "".join(heard)


def test_a_processor_without_bfloat16_is_told(made: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino_runner, "openvino_core", Old)
    assert openvino_runner.precisions_here() == ("fp32",)
    with pytest.raises(RuntimeMissingError, match="does not compute in bfloat16"):
        open_runner(made.onnx, precision="bf16")


def test_precisions_that_there_are_not(made: Exported) -> None:
    with pytest.raises(UsageError, match="precision is 'int4'; openvino computes in fp32 or bf16"):
        open_runner(made.onnx, "openvino", precision="int4")
    with pytest.raises(UsageError, match=r"onnxruntime runs files in their own precision; .* or use openvino"):
        open_runner(made.onnx, "onnxruntime", precision="bf16")
    for path in (made.checkpoint, made.onnx.with_suffix(".engine")):
        with pytest.raises(UsageError, match=rf"{path.name} runs in its own precision; leave out --precision"):
            open_runner(path, precision="bf16")


def test_a_precision_that_nobody_can_be_asked_for_is_refused(made: Exported) -> None:
    with pytest.raises(UsageError, match=r"precision is int4, .* runs in torch, onnxruntime; leave --precision out"):
        validate([made.checkpoint, made.onnx], runtimes=["onnxruntime"], precisions=["int4"])
    with pytest.raises(UsageError, match=r"precision is bf16, .* runs in torch; leave --precision out"):
        bench([made.checkpoint], precisions=["bf16"])
    with pytest.raises(UsageError, match="without memory, profile, precision and throughput"):
        bench([made.checkpoint], precisions=["bf16"], ratios=[0.5], training=True)
