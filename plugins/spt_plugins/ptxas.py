"""What the kernels cost an architecture: registers, shared memory and spills, as NVIDIA's assembler reports them, and
the instructions that it makes of them.

``python -m spt_plugins.ptxas_report`` assembles every representative variant for every architecture and prints the
table; no GPU is needed, Triton brings the assembler and the disassembler along.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from spt_deploy.errors import ResultError
from spt_plugins.ptx import CompiledKernel

# Dynamic shared memory that one block may ask for, bytes, and threads that a multiprocessor holds (CUDA C++ programming
# guide, "technical specifications per compute capability").
SHARED_MEMORY_LIMIT = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
_THREADS = {80: 2048, 86: 1536, 89: 1536, 90: 2048, 120: 1536}
_REGISTERS = 1 << 16  # of a multiprocessor, given to warps by the 256
_RESERVED = 1 << 10  # bytes of shared memory that each block takes besides its own


@dataclass(frozen=True)
class Resources:
    """What one block, or one thread, of an assembled kernel takes."""

    registers: int  # a thread
    stack: int  # bytes a thread
    spill_stores: int  # bytes
    spill_loads: int  # bytes
    static_shared_memory: int  # bytes a block, on top of the dynamic one


@dataclass(frozen=True)
class Instructions:
    """What a kernel's machine code has; one in a loop counts once."""

    all: int
    tensor_cores: int  # matrix products
    wide: int  # loads from global memory, 16 bytes a thread


def assemble(kernel: CompiledKernel) -> tuple[Resources, Instructions]:
    """Assemble to machine code with ``ptxas -v``, and take that apart again.

    Raises:
        ResultError: ptxas refused the PTX; its first words are in the message.
    """
    from triton import knobs
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"^\.target (\w+)", kernel.ptx, re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(kernel.ptx)
        code = source.with_suffix(".cubin")
        name = f"--gpu-name={target.group(1) if target else f'sm_{kernel.arch}'}"
        said = _run(get_ptxas(kernel.arch).path, "-v", name, str(source), "-o", str(code), kernel=kernel)
        listing = _run(knobs.nvidia.nvdisasm.path, "--print-code", "--no-dataflow", str(code), kernel=kernel)
    return parse_report(said), count_instructions(listing)


def _run(*command: str, kernel: CompiledKernel) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode:
        raise ResultError(
            f"{Path(command[0]).name} does not take {kernel.name} for sm_{kernel.arch} "
            f"({said.strip().splitlines()[0]}): use a Triton from 3.6 to 3.9."
        )
    return said


def parse_report(said: str) -> Resources:
    """Read what ``ptxas -v`` says about the one kernel of a module."""

    def number(pattern: str) -> int:
        found = re.search(pattern, said)
        return int(found.group(1)) if found else 0

    return Resources(
        registers=number(r"Used (\d+) registers"),
        stack=number(r"(\d+) bytes stack frame"),
        spill_stores=number(r"(\d+) bytes spill stores"),
        spill_loads=number(r"(\d+) bytes spill loads"),
        static_shared_memory=number(r"(\d+) bytes smem"),
    )


def blocks_at_once(arch: int, threads: int, registers: int, shared_memory: int) -> int | None:
    """How many blocks of a kernel fit a multiprocessor; None for an architecture whose sizes are not known here.

    Args:
        arch: compute capability, 89 for 8.9.
        threads: a block.
        registers: a thread.
        shared_memory: bytes a block.
    """
    if arch not in _THREADS:
        return None
    registers_of_block = threads // 32 * -(-registers * 32 // 256) * 256
    in_shared_memory = (SHARED_MEMORY_LIMIT[arch] + _RESERVED) // (shared_memory + _RESERVED)
    return min(_REGISTERS // registers_of_block, in_shared_memory, _THREADS[arch] // threads)


_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)([.\w]*)", re.MULTILINE)
_TENSOR_CORES = re.compile(r"HMMA|HGMMA|UTC\w*MMA")
_GLOBAL_LOADS = ("LDG", "LDGSTS", "UTMALDG")


def count_instructions(listing: str) -> Instructions:
    """Count what ``nvdisasm`` lists, but for what fills the end up."""
    found = [(name, rest) for name, rest in _INSTRUCTION.findall(listing) if name != "NOP"]
    return Instructions(
        all=len(found),
        tensor_cores=sum(_TENSOR_CORES.fullmatch(name) is not None for name, _ in found),
        wide=sum(name in _GLOBAL_LOADS and rest.endswith(".128") for name, rest in found),
    )
