"""What the kernels cost an architecture: registers, shared memory and spills, as NVIDIA's assembler reports them.

``python -m spt_plugins.ptxas`` assembles every representative variant for every architecture and prints the table;
no GPU is needed, Triton brings the assembler along.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from spt_deploy.errors import ResultError
from spt_plugins.ptx import CompiledKernel

# Dynamic shared memory that one block may ask for, bytes (CUDA C++ programming guide, "technical specifications per
# compute capability").
SHARED_MEMORY_LIMIT = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}


@dataclass(frozen=True)
class Resources:
    """What one block, or one thread, of an assembled kernel takes."""

    registers: int  # a thread
    stack: int  # bytes a thread
    spill_stores: int  # bytes
    spill_loads: int  # bytes
    static_shared_memory: int  # bytes a block, on top of the dynamic one


def assemble(kernel: CompiledKernel) -> Resources:
    """Assemble to machine code with ``ptxas -v``.

    Raises:
        ResultError: ptxas refused the PTX; its first words are in the message.
    """
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"^\.target (\w+)", kernel.ptx, re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(kernel.ptx)
        command = [
            get_ptxas(kernel.arch).path,
            "-v",
            f"--gpu-name={target.group(1) if target else f'sm_{kernel.arch}'}",
            str(source),
            "-o",
            str(source.with_suffix(".cubin")),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode:
        raise ResultError(
            f"ptxas does not take {kernel.name} for sm_{kernel.arch} ({said.strip().splitlines()[0]}): "
            "use a Triton from 3.6 to 3.9."
        )
    return parse_report(said)


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
