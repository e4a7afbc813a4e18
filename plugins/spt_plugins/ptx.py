"""A kernel compiled ahead of time: a `Variant` becomes PTX for one architecture, on a machine without a GPU.

What a launch must pass is exactly the kernel's own parameters: input pointers, 32-bit sizes, output pointers, in the
order of TensorRT's ahead-of-time plugins. Triton (3.4 and later) appends two pointers of its own to every kernel, to
scratch memory on the device and for its profiler. No caller but Triton's own launcher knows of them, so they are
taken off again; a kernel that does use one cannot be launched this way, and is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import Any

from spt_deploy.errors import RuntimeMissingError, UsageError
from spt_plugins.variant import Variant

# The compute capabilities that every variant is compiled for in the tests: A100; RTX 30; L4, L40S and RTX 40; H100;
# RTX 50. Others from OLDEST on work alike.
ARCHITECTURES = (80, 86, 89, 90, 120)
OLDEST = 80

# The oldest PTX version that knows the architecture, times ten, from 8.0 (CUDA 12.0) on. Triton would write the newest
# that its assembler knows, which drivers older than that assembler refuse ("unsupported toolchain").
_PTX_VERSION = {88: 90, 100: 86, 101: 86, 103: 88, 110: 90, 120: 87, 121: 88}
_OLDEST_PTX_VERSION = 80

# TensorRT asks for network inputs and outputs aligned to 256 bytes and aligns what it allocates itself; PyTorch's
# allocator aligns to 512. Sixteen is what a vector load needs.
_ALIGNMENT = 16

_PTX_OF_INTEGER = {"i32": "u32", "i64": "u64"}
_ENTRY = re.compile(r"(\.visible \.entry (\w+)\(\n)(.*?)(\n\))", re.DOTALL)


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel as a driver, or TensorRT, takes it."""

    name: str  # of the entry in the PTX
    ptx: str
    arch: int  # compute capability, 89 for 8.9
    threads: int  # a block
    shared_memory: int  # dynamic shared memory a block, bytes
    parameters: tuple[str, ...]  # PTX type of each parameter, in order: u64 (pointers too) or u32


_compiled: dict[Any, CompiledKernel] = {}


def compile_ptx(variant: Variant, arch: int) -> CompiledKernel:
    """Compile a variant; the second call with the same arguments returns the first one's result.

    Args:
        variant: kernel, argument types, compile-time constants, warps and stages.
        arch: compute capability, 89 for 8.9; the PTX runs there and, below 90, on newer ones too.

    Raises:
        RuntimeMissingError: Triton is not installed.
        UsageError: the architecture is too old, or Triton's interpreter is on.
    """
    if arch < OLDEST:
        raise UsageError(
            f"The kernels need compute capability {OLDEST / 10:.1f} or newer and got {arch / 10:.1f}: "
            "run on a GPU of the Ampere generation or later."
        )
    key = (
        variant.kernel,
        tuple(variant.signature.items()),
        tuple(sorted(variant.constants.items())),
        variant.num_warps,
        variant.num_stages,
        arch,
    )
    if key not in _compiled:
        _compiled[key] = _compile(variant, arch)
    return _compiled[key]


def _compile(variant: Variant, arch: int) -> CompiledKernel:
    try:
        import triton
    except ImportError as error:
        raise RuntimeMissingError(
            'Compiling kernels needs Triton, which is not installed: pip install "spt-deploy[gpu]".'
        ) from error
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    kernel = variant.kernel
    if not isinstance(kernel, JITFunction):
        raise UsageError(
            f"{variant.name} cannot be compiled while TRITON_INTERPRET={os.environ.get('TRITON_INTERPRET')} makes "
            "Triton interpret its kernels: unset it before Python starts."
        )
    own = [name for name in kernel.arg_names if name not in variant.constants]
    signature = {name: variant.signature.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (index,): [["tt.divisibility", _ALIGNMENT]]
        for index, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(variant.constants), attrs=aligned)
    options = {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "ptx_version": _PTX_VERSION.get(arch, _OLDEST_PTX_VERSION) if arch <= max(_PTX_VERSION) else None,
        "enable_fp_fusion": True,  # said, because Triton's default is about to change
    }
    with triton.knobs.compilation.scope():
        # An engine has no use for the paths and line numbers of the machine that built it.
        triton.knobs.compilation.disable_line_info = True
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    types = tuple(_PTX_OF_INTEGER.get(signature[name], "u64") for name in own)
    metadata = compiled.metadata
    name, ptx = rename_entry(metadata.name, strip_hidden_parameters(compiled.asm["ptx"], types))
    return CompiledKernel(
        name=name,
        ptx=ptx,
        arch=arch,
        threads=32 * metadata.num_warps,
        shared_memory=metadata.shared,
        parameters=types,
    )


def rename_entry(name: str, ptx: str) -> tuple[str, str]:
    """Give an entry a name that no other PTX has: an engine holds many forms of one kernel.

    Returns:
        The new name, and the PTX with it.
    """
    unique = f"{name}_{hashlib.sha256(ptx.encode()).hexdigest()[:8]}"
    return unique, re.sub(rf"\b{name}(?=_param_|\b)", unique, ptx)


def strip_hidden_parameters(ptx: str, types: tuple[str, ...]) -> str:
    """Take the parameters that Triton appended off an entry's list.

    Args:
        ptx: one module with one ``.visible .entry``.
        types: the PTX types of the parameters that stay.

    Raises:
        UsageError: the list begins otherwise, or the kernel reads a parameter that would go.
    """
    found = _ENTRY.search(ptx)
    if found is None:
        raise UsageError("The PTX has no kernel entry where one was expected: use a Triton from 3.6 to 3.9.")
    head, name, listed, tail = found.groups()
    parameters = listed.split(",\n")
    written = tuple(match.group(1) if (match := re.search(r"\.param \.(\w+)", p)) else "?" for p in parameters)
    if written[: len(types)] != types:
        raise UsageError(
            f"The PTX of {name} takes ({', '.join(written)}) where ({', '.join(types)}) was expected: "
            "use a Triton from 3.6 to 3.9."
        )
    body = ptx[found.end() :]
    for parameter in parameters[len(types) :]:
        hidden = parameter.split()[-1]
        if re.search(rf"\b{hidden}\b", body):
            raise UsageError(
                f"The kernel {name} uses scratch memory that Triton's launcher alone provides ({hidden}): "
                "choose a variant without device-side descriptors."
            )
    return ptx[: found.start()] + head + ",\n".join(parameters[: len(types)]) + tail + body
