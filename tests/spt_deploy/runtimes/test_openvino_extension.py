"""Operators of our own in OpenVINO: what they answer and on what processors, where they are used, how they are made."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from spt_deploy.config import DYNAMIC_PACKINGS, Packing
from spt_deploy.errors import RuntimeMissingError
from spt_deploy.runtimes import open_runner
from tests.exported import make_exported
from tests.operator_chain import CHANNELS, COUNTS, MAPS, THRESHOLD, assert_same, chain, expected, inputs

pytest.importorskip("openvino", reason="an extra")
if not shutil.which("c++"):
    pytest.skip("no C++ compiler is there", allow_module_level=True)

from spt_deploy.runtimes import openvino_runner
from spt_deploy.runtimes.openvino_extension import library
from spt_deploy.runtimes.openvino_extension.bodies import OPERATORS, takes_operators, with_operators
from spt_deploy.runtimes.openvino_runner import compile_model, openvino_core, options_for, precisions_here

BF16 = pytest.mark.skipif("bf16" not in precisions_here(), reason="this processor has no bfloat16")
SIZE = (64, 64)


def operators_in(compiled: object) -> set[str]:
    nodes = compiled.get_runtime_model().get_ops()  # type: ignore[attr-defined]
    return {node.get_rt_info()["layerType"].astype(str) for node in nodes if "layerType" in node.get_rt_info()}


@pytest.mark.parametrize("packing", DYNAMIC_PACKINGS)
@pytest.mark.parametrize(("height", "width", "shift"), MAPS)
def test_they_mean_the_same_as_the_reference(packing: Packing, height: int, width: int, shift: int) -> None:
    compiled = compile_model(chain(packing, height, width, shift), "the chain")
    assert "Reference" in operators_in(compiled), library.why_not()
    for counts in COUNTS:
        feeds = inputs(counts, height * width)
        results = compiled(feeds)
        right = expected(feeds, packing, height, width, shift)
        assert_same({name: results[name] for name in right}, right)


@pytest.mark.parametrize("packing", DYNAMIC_PACKINGS)
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 6, 8])
def test_other_windows(packing: Packing, window: int) -> None:
    compiled = compile_model(chain(packing, 9, 17, window // 2, window), "the chain")
    for counts in COUNTS:
        feeds = inputs(counts, 9 * 17)
        results = compiled(feeds)
        right = expected(feeds, packing, 9, 17, window // 2, window)
        assert_same({name: results[name] for name in right}, right)


@BF16
@pytest.mark.parametrize("packing", DYNAMIC_PACKINGS)
@pytest.mark.parametrize(("height", "width", "shift"), MAPS)
def test_in_bfloat16_they_are_as_near_to_the_reference_as_the_functions(
    packing: Packing, height: int, width: int, shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = chain(packing, height, width, shift)
    ours = compile_model(model, "the chain", options_for("bf16"))
    assert "Reference" in operators_in(ours), library.why_not()
    monkeypatch.setattr(openvino_runner, "operators_of_ours", lambda: "")
    functions = compile_model(model, "the chain", options_for("bf16"))
    for counts in COUNTS:
        feeds = inputs(counts, height * width)
        right = expected(feeds, packing, height, width, shift)
        found, theirs = ours(feeds), functions(feeds)
        for name in ("token_of_slot", "slot_of_token", "cu_seqlens"):
            assert np.array_equal(found[name], right[name])
        for name in ("qkv", "o", "x"):
            error, usual = (np.abs(each[name] - right[name]) for each in (found, theirs))
            assert found[name].shape == right[name].shape
            rounding = 2.0**-8 * np.abs(right[name]).sum()  # of h, which is an input here and float32
            assert error.sum() <= 1.5 * usual.sum() + rounding, name
            largest = np.abs(right[name]).max(initial=0.0)
            assert error.max(initial=0.0) <= 2 * usual.max(initial=0.0) + 2.0**-7 * largest, name


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=BF16)])
@pytest.mark.parametrize(("height", "width"), [(7, 7), (5, 4), (14, 14)])
def test_the_rest_of_the_batch_changes_no_bit_of_an_answer(height: int, width: int, precision: str) -> None:
    compiled = compile_model(chain("per-image", height, width, 0), "the chain", options_for(precision))
    feeds = inputs((3, 49, 0, 17, 33), height * width)
    together = compiled(feeds)["o"], compiled(feeds)["slot_of_token"]
    start = 0
    for image in range(5):
        alone = compiled({name: value[image : image + 1] for name, value in feeds.items()})["o"]
        assert np.array_equal(alone, together[0][start : start + len(alone)])
        start += len(alone)
    assert start == len(together[0])


def test_an_image_of_nothing_but_nan_does_not_touch_the_others() -> None:
    compiled = compile_model(chain("per-image", 14, 14, 0), "the chain")
    feeds = inputs((60, 3, 33, 50), 14 * 14)
    clean = compiled(feeds)["x"]
    feeds["h"][1] = np.nan
    for _ in range(3):  # whatever a thread left over is there the next time
        found = compiled(feeds)["x"]
        for image in (0, 2, 3):
            assert np.array_equal(found[image], clean[image])


@pytest.mark.parametrize("packing", DYNAMIC_PACKINGS)
def test_nan_goes_where_the_reference_lets_it(packing: Packing) -> None:
    compiled = compile_model(chain(packing, 14, 14, 0), "the chain")
    feeds = inputs((60, 3, 33, 50), 14 * 14)
    feeds["h"][0, np.flatnonzero(feeds["logits"][0] > THRESHOLD)[5]] = np.nan
    results, right = compiled(feeds), expected(feeds, packing, 14, 14, 0)
    for name in ("qkv", "o", "x"):
        assert np.isnan(right[name]).any()
        assert np.array_equal(np.isnan(results[name]), np.isnan(right[name])), name


def test_scores_that_are_far_apart_stay_finite() -> None:
    feeds = inputs((196,), 196)
    feeds["h"] *= 900
    results = compile_model(chain("per-image", 14, 14, 3), "the chain")(feeds)
    right = expected(feeds, "per-image", 14, 14, 3)["o"]
    np.testing.assert_allclose(results["o"], right, atol=1e-3 * np.abs(right).max())


def test_requests_at_the_same_time_do_not_disturb_each_other() -> None:
    """They infer shapes of the same nodes; the number of kept tokens is another one each time."""
    compiled = compile_model(chain("per-image", 14, 14, 0), "the chain", options_for(lanes=2) | {"NUM_STREAMS": 4})
    cases = [inputs((count, 3 * count), 196) for count in range(40)]
    first = compiled.create_infer_request()
    alone = [np.array(first.infer(feeds)["x"]) for feeds in cases]

    def run(start: int) -> bool:
        request = compiled.create_infer_request()
        order = [*range(start, len(cases)), *range(start)] * 3
        return all(np.array_equal(request.infer(cases[at])["x"], alone[at]) for at in order)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, (0, 10, 20, 30)))


_ON_A_PROCESSOR = """
import sys
from pathlib import Path
import numpy as np
from tests.operator_chain import assert_same, chain, expected, inputs
from spt_deploy.runtimes import openvino_runner

openvino_runner.extension = lambda: Path(sys.argv[1])
for precision, tolerance in (("fp32", 1e-5), ("bf16", 0.1)):
    if precision in openvino_runner.precisions_here():
        options = openvino_runner.options_for(precision)
        compiled = openvino_runner.compile_model(chain("per-image", 14, 14, 3), "", options)
        for counts in ((196, 3), (60, 49, 16), (0, 1), (17,)):
            feeds = inputs(counts, 196)
            results, right = compiled(feeds), expected(feeds, "per-image", 14, 14, 3)
            assert_same({name: results[name] for name in right}, right, tolerance)
"""


@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3", "x86-64-v4"])
def test_other_processors_are_compiled_for(level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSE, AVX2, and AVX-512 without bfloat16, each where the processor here has it."""
    has = {"x86-64": "sse2", "x86-64-v3": "avx2", "x86-64-v4": "avx512bw"}[level]
    if f" {has} " not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip(f"this processor has no {has}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "_for_this_processor", lambda: f"-march={level}")
    made = library._library()
    done = subprocess.run([sys.executable, "-c", _ON_A_PROCESSOR, str(made)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_models_whose_functions_say_something_else_keep_them() -> None:
    model = chain("per-image", 7, 7, 0)
    assert takes_operators(model)
    larger = chain("per-image", 9, 9, 0, 9)
    assert not takes_operators(larger)
    feeds = inputs((70, 3), 81)
    results = compile_model(larger, "the chain")(feeds)
    right = expected(feeds, "per-image", 9, 9, 0, 9)
    assert_same({name: results[name] for name in right}, right)

    older = onnx.ModelProto()
    older.CopyFrom(model)
    (attention,) = [node for node in older.graph.node if node.op_type == "PackedAttention"]
    kept = [each for each in attention.attribute if each.name != "scale"]
    del attention.attribute[:]
    attention.attribute.extend(kept)
    assert not takes_operators(older)

    inlined = onnx.ModelProto()
    inlined.CopyFrom(model)
    del inlined.functions[:]
    assert not takes_operators(inlined)


def test_the_model_that_is_given_stays_as_it_is() -> None:
    model = chain("per-image", 7, 7, 0)
    before = model.SerializeToString(deterministic=True)
    ours = with_operators(model, bfloat16=False)
    assert OPERATORS in {node.domain for function in ours.functions for node in function.node}
    assert model.SerializeToString(deterministic=True) == before


def test_an_spt_answers_as_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_exported(tmp_path, SIZE, task="detect")
    images = np.random.default_rng(0).standard_normal((3, 3, *SIZE), dtype=np.float32)
    with open_runner(made.onnx, "openvino") as runner:
        ours = runner.infer(images)
    monkeypatch.setattr(openvino_runner, "operators_of_ours", lambda: "")
    with open_runner(made.onnx, "openvino") as runner:
        functions = runner.infer(images)
    assert any(not np.array_equal(ours[name], functions[name]) for name in ours)  # it was not the same kept model
    for name, value in functions.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-4, rtol=1e-4, err_msg=name)


def test_a_swin_is_run_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_exported(tmp_path, SIZE, name="swin_micro")
    monkeypatch.setattr(openvino_runner, "operators_of_ours", lambda: pytest.fail("asked for"))
    with open_runner(made.onnx, "openvino") as runner:
        assert runner.infer(np.zeros((1, 3, *SIZE), dtype=np.float32))["logits"].shape[0] == 1


@pytest.fixture
def not_yet_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and a process that has not looked for the library."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library._found.cache_clear()
    yield tmp_path
    library._found.cache_clear()


def broken_compiler(folder: Path) -> Path:
    path = folder / "broken++"
    path.write_text('#!/bin/sh\necho "once" >> "$0.calls"\necho "x.cpp:1:1: error: no such thing" >&2\nexit 1\n')
    path.chmod(0o755)
    return path


def test_it_is_compiled_once(not_yet_made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = library.extension()
    assert first is not None
    assert first.is_file()
    assert library.why_not() == ""
    library._found.cache_clear()
    monkeypatch.setattr(library, "_compile", lambda command: pytest.fail("compiled again"))
    assert library.extension() == first
    assert {each.suffix for each in first.parent.iterdir()} == {".so"}


def test_what_cannot_be_compiled_is_told_of_and_not_tried_at_every_start(
    not_yet_made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = broken_compiler(not_yet_made)
    monkeypatch.setenv("CXX", str(compiler))
    for _ in range(2):
        assert library.extension() is None
        assert library.why_not() == "broken++ did not compile the operators: x.cpp:1:1: error: no such thing"
        library._found.cache_clear()
    calls = Path(f"{compiler}.calls")
    assert calls.read_text().splitlines() == ["once"]
    library.try_again()
    assert library.extension() is None
    assert len(calls.read_text().splitlines()) == 2


def test_without_it_models_run_as_they_are(not_yet_made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(broken_compiler(not_yet_made)))
    monkeypatch.setattr(openvino_runner, "_offered_operators", openvino_runner._offered_operators.__wrapped__)
    feeds = inputs((20, 0, 49), 49)
    compiled = compile_model(chain("per-image", 7, 7, 0), "the chain")
    assert "Reference" not in operators_in(compiled)
    np.testing.assert_allclose(compiled(feeds)["x"], expected(feeds, "per-image", 7, 7, 0)["x"], atol=1e-5)


def test_a_library_that_openvino_refuses_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    monkeypatch.setattr(openvino_runner, "extension", lambda: broken)
    monkeypatch.setattr(openvino_runner, "_offered_operators", openvino_runner._offered_operators.__wrapped__)
    monkeypatch.setattr(library, "_REFUSALS", [])
    assert openvino_runner.operators_of_ours() == ""
    assert library.why_not().startswith("OpenVINO cannot load them: ")
    assert "broken.so" in library.why_not()


def test_another_process_needs_nothing_but_the_library(not_yet_made: Path) -> None:
    """Not even the libraries of OpenVINO's that were loaded here before."""
    made = library.extension()
    script = "import sys; from spt_deploy.runtimes.openvino_runner import openvino_core; "
    script += "openvino_core().add_extension(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", script, str(made)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"SPT_DEPLOY_EXTENSION": "off"}, "switched off by SPT_DEPLOY_EXTENSION"),
        ({"CXX": "no-such-compiler"}, "CXX names 'no-such-compiler', which is not there"),
        ({"PATH": "/nowhere", "CXX": ""}, "no C++ compiler is there; install one, such as g++"),
    ],
)
def test_why_it_is_not_there(
    not_yet_made: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], reason: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert library.extension() is None
    assert library.why_not() == reason


def test_a_cache_folder_that_cannot_be_written(not_yet_made: Path) -> None:
    (not_yet_made / "cache").write_text("a file")
    assert library.extension() is None
    assert "cannot be written" in library.why_not()


def test_another_system(not_yet_made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RuntimeMissingError, match="made for Linux, and this is darwin"):
        library._library()


def test_another_compiler_or_source_is_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {library._key(["/bin/sh", "-O3"]), library._key(["/bin/sh", "-O2"]), library._key(["/bin/cat", "-O3"])}
    monkeypatch.setattr(library, "_processor", lambda: "another")
    keys.add(library._key(["/bin/sh", "-O3"]))
    assert len(keys) == 4


def test_the_core_of_the_process_has_them(tmp_path: Path) -> None:
    assert openvino_runner.operators_of_ours()
    model = openvino_core().read_model(_node_of_ours().SerializeToString())
    assert [node.get_type_name() for node in model.get_ops()].count("GatherGated") == 1


def _node_of_ours() -> onnx.ModelProto:
    from onnx import TensorProto, helper

    info = helper.make_tensor_value_info
    node = helper.make_node("GatherGated", ["h", "gate", "slots"], ["rows"], domain=OPERATORS)
    graph = helper.make_graph(
        [node],
        "one",
        [
            info("h", TensorProto.FLOAT, [1, 4, CHANNELS]),
            info("gate", TensorProto.FLOAT, [1, 4]),
            info("slots", TensorProto.INT32, ["kept"]),
        ],
        [info("rows", TensorProto.FLOAT, ["kept", CHANNELS])],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(OPERATORS, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)
