"""Kernels compiled ahead of time, without a GPU: for every architecture, in every form."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest

from spt_deploy.errors import UsageError
from spt_plugins.ptx import ARCHITECTURES, compile_ptx, rename_entry, strip_hidden_parameters
from spt_plugins.ptxas import (
    SHARED_MEMORY_LIMIT,
    Instructions,
    Resources,
    blocks_at_once,
    count_instructions,
    parse_report,
)
from spt_plugins.variant import Variant
from tests.spt_plugins.child import run_python

REGISTERS_OF_A_BLOCK = 65536  # on every architecture here

# As Triton 3.6 to 3.9 write it: two parameters more than the kernel has, of which it reads the last here.
PTX = """.version 8.0
.target sm_89
.address_size 64

.visible .entry add_kernel(
	.param .u64 .ptr .global .align 1 add_kernel_param_0,
	.param .u32 add_kernel_param_1,
	.param .u64 .ptr .global .align 1 add_kernel_param_2,
	.param .u64 .ptr .global .align 1 add_kernel_param_3,
	.param .u64 .ptr .global .align 1 add_kernel_param_4
)
.reqntid 128
{
	ld.param.b64 	%rd1, [add_kernel_param_0];
	ld.param.b32 	%r1, [add_kernel_param_1];
	ld.param.b64 	%rd2, [add_kernel_param_2];
	ret;
}
"""


@pytest.fixture(scope="module")
def report() -> list[dict[str, Any]]:
    """The rows of the report on every representative variant; about two minutes on one processor."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    rows: list[dict[str, Any]] = json.loads(run_python("-m", "spt_plugins.ptxas_report", "--json"))
    return rows


def test_every_variant_compiles_for_every_architecture(report: list[dict[str, Any]]) -> None:
    kernels = {row["variant"].split("-")[0] for row in report}
    assert kernels == {"select_tokens", "packed_qkv", "packed_attention", "unpack_project"}
    assert {row["arch"] for row in report} == set(ARCHITECTURES)
    variants = {row["variant"] for row in report}
    assert {(row["variant"], row["arch"]) for row in report} == {(v, a) for v in variants for a in ARCHITECTURES}
    for dtype in ("fp16", "bf16", "fp32"):
        assert {v.split("-")[0] for v in variants if v.split("-")[1] == dtype} >= kernels - {"select_tokens"}


def test_no_kernel_spills_registers(report: list[dict[str, Any]]) -> None:
    spilled = [row for row in report if row["spill_stores"] or row["spill_loads"] or row["stack"]]
    assert not spilled


def test_a_block_fits_every_multiprocessor(report: list[dict[str, Any]]) -> None:
    for row in report:
        assert row["registers"] * row["threads"] <= REGISTERS_OF_A_BLOCK, row
        assert row["shared_memory"] <= SHARED_MEMORY_LIMIT[row["arch"]], row


def test_products_run_on_tensor_cores_and_loads_are_wide(report: list[dict[str, Any]]) -> None:
    for row in report:
        kernel, dtype = row["variant"].split("-")[:2]
        if kernel == "select_tokens" or row["variant"].endswith("-block16"):  # so small that no thread has 16 bytes
            continue
        assert (row["tensor_core_instructions"] > 0) == (dtype != "fp32"), row
        assert row["wide_loads"] >= 2, row


def test_attention_has_few_instructions(report: list[dict[str, Any]]) -> None:
    """With those of generic divisions it had 2,700."""
    usual = [row for row in report if row["variant"].startswith("packed_attention-fp16-heads12-window7")]
    assert len(usual) == 2 * len(ARCHITECTURES)
    for row in usual:
        assert row["instructions"] < 1900, row


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("arch", [87, 100, 103, 110, 121])
def test_other_architectures_from_the_oldest_on_work_alike(arch: int) -> None:
    """In a process of its own: a PTX version that does not know the architecture ends the process."""
    compiles = (
        "from spt_plugins import launches, ptx, ptxas; "
        "kernel = ptx.compile_ptx(launches.for_select_tokens(1, 196, usual_tokens=196).variant, {}); "
        "print(kernel.arch, ptxas.assemble(kernel)[0].spill_stores)"
    )
    assert run_python("-c", compiles.format(arch)).split() == [str(arch), "0"]


def test_parameters_that_triton_appends_go_and_the_kernels_own_stay() -> None:
    stripped = strip_hidden_parameters(PTX, ("u64", "u32", "u64"))
    assert "add_kernel_param_2\n)" in stripped
    assert "add_kernel_param_3" not in stripped
    assert stripped.split("\n)")[1] == PTX.split("\n)")[1]
    assert strip_hidden_parameters(stripped, ("u64", "u32", "u64")) == stripped


def test_a_kernel_that_reads_an_appended_parameter_is_refused() -> None:
    reads = PTX.replace("\tret;", "\tld.param.b64 \t%rd3, [add_kernel_param_4];\n\tret;")
    with pytest.raises(UsageError, match="scratch memory"):
        strip_hidden_parameters(reads, ("u64", "u32", "u64"))


@pytest.mark.parametrize("types", [("u64", "u64", "u64"), ("u64",) * 6, ("u32",)])
def test_a_parameter_list_of_another_kernel_is_refused(types: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="was expected"):
        strip_hidden_parameters(PTX, types)


def test_text_without_a_kernel_is_refused() -> None:
    with pytest.raises(UsageError, match="no kernel entry"):
        strip_hidden_parameters(".version 8.0\n", ())


def test_two_kernels_of_one_name_get_two_names() -> None:
    name, renamed = rename_entry("add_kernel", PTX)
    other, _ = rename_entry("add_kernel", PTX.replace("reqntid 128", "reqntid 256"))
    assert name != other
    assert renamed.replace(name, "add_kernel") == PTX
    assert renamed.count(name) == PTX.count("add_kernel")
    assert rename_entry("add_kernel", PTX) == (name, renamed)


def test_what_ptxas_says_is_read() -> None:
    said = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k' for 'sm_90a'
ptxas info    : Function properties for k
    104 bytes stack frame, 100 bytes spill stores, 96 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 104 bytes cumulative stack size, 32 bytes smem
"""
    assert parse_report(said) == Resources(255, 104, 100, 96, 32)


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "kib", "blocks"),
    [
        (90, 256, 142, 80, 1),  # 8 warps of 144 x 32 registers
        (90, 256, 108, 96, 2),  # of 112 x 32, and 2 x 97 KiB of 228
        (90, 256, 64, 96, 2),
        (90, 128, 100, 16, 4),
        (90, 128, 31, 2, 16),  # 2,048 threads
        (86, 128, 31, 2, 12),  # 1,536
        (86, 256, 100, 60, 1),  # 61 KiB of 100
        (110, 128, 100, 16, None),
    ],
)
def test_what_a_block_takes_says_how_many_fit(
    arch: int, threads: int, registers: int, kib: int, blocks: int | None
) -> None:
    assert blocks_at_once(arch, threads, registers, kib << 10) == blocks


def test_two_programs_of_the_large_products_fit_a_multiprocessor_of_hopper(report: list[dict[str, Any]]) -> None:
    large = [row for row in report if row["variant"].startswith("packed_qkv-fp16") and "block_m128" in row["variant"]]
    assert {row["blocks"] for row in large if row["arch"] == 90} <= {2, 3, 4}


def test_instructions_of_a_listing_are_counted() -> None:
    listing = """        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.64 R4, desc[UR4][R2.64] ;
        /*0030*/              @P1 LDGSTS.E.BYPASS.128 [R7], desc[UR4][R2.64] ;
        /*0040*/                   HMMA.16816.F32 R8, R4, R6, R8 ;
        /*0050*/                   HGMMA.64x64x16.F32 R24, gdesc[UR16], RZ, !UPT ;
.L_x_0:
        /*0060*/                   BRA `(.L_x_0);
        /*0070*/                   NOP;
"""
    assert count_instructions(listing) == Instructions(all=7, tensor_cores=2, wide=2)


def _not_compiled() -> None:
    """Stands for a kernel that Triton was told to interpret: anything but a JITFunction."""


def test_kernels_under_the_interpreter_are_refused_with_the_variable_that_does_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    variant = Variant(_not_compiled, {"x": "*fp16"}, {}, num_warps=4, num_stages=1)
    with pytest.raises(UsageError, match="TRITON_INTERPRET=1"):
        compile_ptx(variant, 89)


def test_an_architecture_before_ampere_is_refused_with_the_oldest_that_will_do() -> None:
    variant = Variant(_not_compiled, {"x": "*fp16"}, {}, num_warps=4, num_stages=1)
    with pytest.raises(UsageError, match=r"8\.0 or newer and got 7\.5"):
        compile_ptx(variant, 75)
