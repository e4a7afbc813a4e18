"""The TensorRT plugins in NVIDIA's own registry: what they describe, and what they hand over for the engine."""

from __future__ import annotations

import itertools
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from spt_deploy.errors import RuntimeMissingError
from spt_deploy.model.domain import DOMAIN, PLUGIN_ATTRIBUTES
from spt_plugins import tensorrt_plugins
from spt_plugins.tensorrt_plugins import LARGE_TILES, SMALL_TILES
from tests.exported import make_exported
from tests.spt_plugins.child import run_python

ARCH = 89
BATCHES = [1, 3, 5]
SIZE = (64, 96)

# TensorRT's names, ONNX's and PyTorch's.
TYPES = {
    "FLOAT": (onnx.TensorProto.FLOAT, torch.float32),
    "HALF": (onnx.TensorProto.FLOAT16, torch.float16),
    "BF16": (onnx.TensorProto.BFLOAT16, torch.bfloat16),
    "INT64": (onnx.TensorProto.INT64, torch.int64),
}
PTX_OF_ARGUMENT = {"pointer": "u64", "INT32": "u32"}

# A size as a * batch + b.
Size = tuple[int, int]
BATCH: Size = (1, 0)


def fixed(*sizes: int) -> list[Size]:
    return [(0, size) for size in sizes]


def block(float_type: str, residual_type: str, attention: dict[str, Any]) -> list[dict[str, Any]]:
    """Requests for the four nodes of a block, with the floating types and the attention's attributes given."""
    tokens, heads = attention["tokens"], attention["heads"]
    channels, slots, table = 32 * heads, (tokens, 0), (2 * attention["window"] - 1) ** 2
    image = [BATCH, *fixed(tokens, channels)]
    scores = [BATCH, *fixed(tokens)]
    return [
        node("SelectTokens", {}, ("FLOAT", scores), ("INT64", fixed(tokens)), ("FLOAT", [])),
        node(
            "PackedQKV",
            {},
            (float_type, image),
            ("FLOAT", scores),
            ("INT64", [slots]),
            (float_type, fixed(3 * channels, channels)),
            (float_type, fixed(3 * channels)),
        ),
        node(
            "PackedAttention",
            attention,
            (float_type, [slots, *fixed(3 * channels)]),
            ("INT64", [slots]),
            ("INT64", [(1, 1)]),
            (float_type, fixed(table, heads)),
        ),
        node(
            "UnpackProject",
            {},
            (float_type, [slots, *fixed(channels)]),
            ("INT64", [slots]),
            ("INT64", scores),
            (residual_type, image),
            (float_type, fixed(channels, channels)),
            (float_type, fixed(channels)),
        ),
    ]


def made_up(float_type: str, residual_type: str) -> list[dict[str, Any]]:
    """A block of 3 heads on a map of 4 x 6 tokens."""
    # Not in the order of the plugin's own declaration.
    attention = {"scale": 0.25, "packing": "batch", "width": 6, "tokens": 24, "window": 7, "heads": 3}
    return block(float_type, residual_type, attention)


def node(operator: str, attributes: dict[str, Any], *inputs: tuple[str, list[Size]]) -> dict[str, Any]:
    """A request for `lean_tensorrt`."""
    return {
        "operator": operator,
        "attributes": {**attributes, **PLUGIN_ATTRIBUTES},
        "inputs": list(inputs),
        "batches": BATCHES,
    }


def exported_blocks(path: Path) -> list[dict[str, Any]]:
    """Requests for the `spt` nodes of an exported file, with the attributes and weights that stand there."""
    graph = onnx.load(path).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [each for each in graph.node if each.domain == DOMAIN]
    requests = []
    for first in range(0, len(nodes), 4):
        attributes = [{a.name: value_of(a) for a in each.attribute} for each in nodes[first : first + 4]]
        own = {name: value for name, value in attributes[2].items() if name not in PLUGIN_ATTRIBUTES}
        found = block("FLOAT", "FLOAT", own)
        for each, request, given in zip(nodes[first : first + 4], found, attributes, strict=True):
            assert each.op_type == request["operator"]
            request["attributes"] = given
            for name, (kind, sizes) in zip(each.input, request["inputs"], strict=True):
                if name in weights:
                    assert weights[name].data_type == TYPES[kind][0]
                    assert fixed(*weights[name].dims) == sizes
        requests += found
    return requests


def value_of(attribute: onnx.AttributeProto) -> Any:
    """Number or string."""
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def ask(folder: Path, requests: list[dict[str, Any]], arch: int = ARCH) -> dict[str, Any]:
    """Let the plugins answer in a process of their own; see `lean_tensorrt`."""
    missing = [name for name in ("tensorrt_lean_bindings", "tensorrt_lean_libs", "triton") if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install 'spt-deploy[dev]'")
    asked, answered = folder / "requests.json", folder / "answers.json"
    asked.write_text(json.dumps({"arch": arch, "requests": requests}))
    run_python("-m", "tests.spt_plugins.lean_tensorrt", str(asked), str(answered))
    answers: dict[str, Any] = json.loads(answered.read_text())
    return answers


@pytest.fixture(scope="module")
def conversation(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All requests that are well formed, and the answers."""
    folder = tmp_path_factory.mktemp("tensorrt")
    requests = exported_blocks(make_exported(folder / "model", SIZE).onnx)
    for types in (("HALF", "HALF"), ("HALF", "FLOAT"), ("BF16", "BF16")):
        requests += made_up(*types)
    return {**ask(folder, requests), "requests": requests}


@pytest.fixture(scope="module")
def pairs(conversation: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each request with its answer."""
    pairs = list(zip(conversation["requests"], conversation["answers"], strict=True))
    assert not [answer["message"] for _, answer in pairs if "error" in answer]
    return pairs


def concrete(request: dict[str, Any], batch: int) -> list[list[int]]:
    return [[a * batch + b for a, b in sizes] for _, sizes in request["inputs"]]


def test_the_four_operators_are_in_the_registry_under_their_nodes_names(conversation: dict[str, Any]) -> None:
    operators = ("SelectTokens", "PackedQKV", "PackedAttention", "UnpackProject")
    version = PLUGIN_ATTRIBUTES["plugin_version"]
    assert sorted(conversation["registered"]) == sorted([DOMAIN, operator, version] for operator in operators)


def test_every_node_of_an_exported_file_becomes_a_plugin_compiled_ahead_of_time(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    assert len(pairs) == 4 * (4 + 3)  # the blocks of spt_micro in stages 3 and 4; three that are made up
    assert all(answer["aot"] for _, answer in pairs)


def test_outputs_have_the_types_and_bounds_of_the_operator_set(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    for request, answer in pairs:
        types = [kind for kind, _ in request["inputs"]]
        for index, batch in enumerate(BATCHES):
            sizes = concrete(request, batch)
            expected = {
                "SelectTokens": lambda s=sizes: [
                    ("INT64", [s[0][0] * s[0][1]]),
                    ("INT64", s[0]),
                    ("INT64", [s[0][0] + 1]),
                ],
                "PackedQKV": lambda s=sizes, t=types: [(t[0], [s[2][0], s[3][0]])],
                "PackedAttention": lambda s=sizes, t=types: [(t[0], [s[0][0], s[0][1] // 3])],
                "UnpackProject": lambda s=sizes, t=types: [(t[3], s[3])],
            }[request["operator"]]()
            assert [(kind, shapes[index]) for kind, shapes in answer["outputs"]] == expected


def test_tensors_keep_the_types_that_the_network_gives_them(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    for request, answer in pairs:
        types = [kind for kind, _ in request["inputs"]] + [kind for kind, _ in answer["outputs"]]
        assert answer["combination"] == types


def test_the_matrix_products_offer_small_and_large_tiles_and_the_others_one_form(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    for request, answer in pairs:
        tuned = request["operator"] in ("PackedQKV", "UnpackProject")
        assert sorted(answer["kernels"]) == ([str(SMALL_TILES), str(LARGE_TILES)] if tuned else ["0"])
        names = [kernel["name"] for kernel in answer["kernels"].values()]
        assert len(set(names)) == len(names)


def test_the_ptx_has_the_named_entry_and_takes_inputs_then_extra_arguments_then_outputs(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    for request, answer in pairs:
        for kernel in answer["kernels"].values():
            [(name, listed)] = re.findall(r"\.visible \.entry (\w+)\((.*?)\n\)", kernel["ptx"], re.DOTALL)
            assert name == kernel["name"]
            pointers = [PTX_OF_ARGUMENT["pointer"]]
            extra = [PTX_OF_ARGUMENT[kind] for kind in kernel["extra_types"]]
            expected = pointers * len(request["inputs"]) + extra + pointers * len(answer["outputs"])
            assert re.findall(r"\.param \.(\w+)", listed) == expected


def test_the_block_is_the_one_that_the_ptx_was_compiled_for(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    for _, answer in pairs:
        for kernel in answer["kernels"].values():
            [threads] = re.findall(r"\.reqntid (\d+)", kernel["ptx"])
            launch = kernel["launch"]
            assert launch["block_x"] == [int(threads)] * len(BATCHES)
            assert launch["block_y"] == launch["block_z"] == [1] * len(BATCHES)


def test_the_ptx_is_for_the_architecture_and_for_drivers_since_cuda_12_and_tells_nothing_of_the_machine(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    for _, answer in pairs:
        for kernel in answer["kernels"].values():
            assert f".target sm_{ARCH}\n" in kernel["ptx"]
            assert ".version 8.0\n" in kernel["ptx"]
            assert not re.search(r"\.loc|\.file|\.section|\.py", kernel["ptx"])


def test_launches_are_those_of_the_pytorch_path_for_every_batch(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    for request, answer in pairs:
        for (tactic, kernel), (index, batch) in itertools.product(answer["kernels"].items(), enumerate(BATCHES)):
            launch = launch_of(request, int(tactic), batch)
            assert [kernel["launch"][f"grid_{axis}"][index] for axis in "xyz"] == [*launch.grid, 1, 1][:3]
            assert [values[index] for values in kernel["extra"]] == list(launch.sizes)
            assert kernel["name"].startswith(f"{launch.variant.kernel.__name__}_")
            assert kernel["launch"]["block_x"][index] == 32 * launch.variant.num_warps


def launch_of(request: dict[str, Any], tactic: int, batch: int) -> Any:
    """The launch as plain numbers, from the sizes of the node."""
    from spt_plugins import launches

    sizes, usual = concrete(request, batch), concrete(request, BATCHES[1])
    dtypes = [TYPES[kind][1] for kind, _ in request["inputs"]]
    usual_slots = {SMALL_TILES: 1, LARGE_TILES: 1 << 30}.get(tactic, 0)
    if request["operator"] == "SelectTokens":
        return launches.for_select_tokens(*sizes[0], usual_tokens=usual[0][1])
    if request["operator"] == "PackedQKV":
        return launches.for_packed_qkv(sizes[2][0], dtype=dtypes[0], channels=sizes[0][2], usual_slots=usual_slots)
    if request["operator"] == "UnpackProject":
        return launches.for_unpack_project(
            sizes[1][0],
            sizes[2][0] * sizes[2][1],
            dtype=dtypes[0],
            residual_dtype=dtypes[3],
            channels=sizes[0][1],
            usual_slots=usual_slots,
        )
    attributes = {name: value for name, value in request["attributes"].items() if name not in PLUGIN_ATTRIBUTES}
    return launches.for_packed_attention(
        sizes[0][0], sizes[2][0] - 1, dtype=dtypes[0], bias_dtype=dtypes[3], **attributes
    )


def test_the_scale_of_a_node_is_a_constant_of_its_ptx(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    for request, answer in pairs:
        if request["operator"] == "PackedAttention":
            [kernel] = answer["kernels"].values()
            scale = np.float32(request["attributes"]["scale"])
            assert f"0f{scale.view(np.uint32):08X}" in kernel["ptx"]


def test_nodes_that_the_kernels_cannot_serve_are_refused_with_what_was_expected(tmp_path: Path) -> None:
    select, qkv, attention, unpack = made_up("HALF", "HALF")
    select["inputs"][1] = ("INT32", select["inputs"][1][1])
    qkv["inputs"][3] = ("FLOAT", qkv["inputs"][3][1])
    attention["attributes"]["heads"] = 4
    unpack["inputs"][3] = ("INT64", unpack["inputs"][3][1])
    swapped = made_up("HALF", "HALF")[2]
    swapped["attributes"].update(tokens=6, width=24)
    unscaled = made_up("HALF", "HALF")[2]
    unscaled["attributes"]["scale"] = 0.0
    answers = ask(tmp_path, [select, qkv, attention, unpack, swapped, unscaled])["answers"]
    assert [answer.get("error") for answer in answers] == ["UsageError"] * 6
    for answer, words in zip(
        answers,
        ("type INT32, expected INT64", "FLOAT, HALF", "heads=4", "INT64", "tokens=6, width=24", "scale=0"),
        strict=True,
    ):
        assert words in answer["message"]


def test_without_tensorrt_the_error_says_which_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(RuntimeMissingError, match=r"TensorRT 10\.13 or newer, and it is not installed"):
        tensorrt_plugins.register()


def test_a_tensorrt_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("tensorrt")
    old.__version__ = "10.9.0.34"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(RuntimeMissingError, match=r"found 10\.9\.0\.34"):
        tensorrt_plugins.register()
