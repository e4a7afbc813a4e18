"""The four operators as TensorRT plugins whose PTX is embedded in the engine.

TensorRT's quick-deploy plugins with an ahead-of-time implementation (`tensorrt.plugin.aot_impl`): while an engine is
built, TensorRT asks each plugin for shapes, a kernel, a grid and extra arguments; the engine holds all of it, and
needs neither Python nor a plugin library to run. Attributes are *not* in the engine: each is a compile-time constant
of the PTX or an extra argument.

* The nodes' ``plugin_namespace`` and ``plugin_version`` are how the ONNX parser finds a plugin. It hands on only the
  attributes that the plugin declares, so these two are not declared here.
* Plugins take and give INT64 tensors (TensorRT excludes only BOOL and UINT8), so the lists of tokens keep the type
  they have in ONNX.
* The list has the upper bound B*N as its length, -1 past the last kept token: every shape follows from the inputs'
  shapes, and none has to leave the device.

TensorRT 10.13 or newer; TensorRT-RTX has no plugins.
"""

# No `from __future__ import annotations`: TensorRT reads the annotations of the functions below, and wants types.

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from spt_deploy.config import DYNAMIC_PACKINGS, HEAD_DIM
from spt_deploy.errors import RuntimeMissingError, UsageError

NAMESPACE = "spt"
OLDEST = (10, 13)

# Tactics of the two matrix products, among which TensorRT takes the fastest for the optimum shape. The small tiles
# need no more shared memory than every launch may have.
SMALL_TILES = 1
LARGE_TILES = 2
_USUAL_SLOTS_OF_TACTIC = {SMALL_TILES: 1, LARGE_TILES: 1 << 30}

_F = TypeVar("_F", bound=Callable[..., Any])

_arch: int | None = None


def register(arch: int | None = None) -> None:
    """Register the plugins with TensorRT, once for the process; further calls change ``arch`` only.

    Args:
        arch: compute capability to compile for, 89 for 8.9; None asks the current CUDA device when an engine is built.

    Raises:
        RuntimeMissingError: TensorRT is not installed, or older than 10.13.
    """
    global _arch
    _define(_tensorrt())
    _arch = arch


def _tensorrt() -> Any:
    wanted = f"TensorRT {OLDEST[0]}.{OLDEST[1]} or newer"
    remedy = f"pip install 'tensorrt>={OLDEST[0]}.{OLDEST[1]}'"
    try:
        import tensorrt as trt
    except ImportError as error:
        raise RuntimeMissingError(f"The plugins need {wanted}, and it is not installed: {remedy}.") from error
    if tuple(int(part) for part in trt.__version__.split(".")[:2]) < OLDEST:
        raise RuntimeMissingError(f"The plugins need {wanted} and found {trt.__version__}: {remedy}.")
    return trt


def _target() -> int:
    from spt_plugins.driver import compute_capability

    return compute_capability() if _arch is None else _arch


@functools.cache
def _define(trt: Any) -> None:
    """Describe the four plugins to TensorRT: what comes out, what runs, what to choose from."""
    import tensorrt.plugin as trtp
    import torch
    from tensorrt.plugin import AutoTuneCombination, KernelLaunchParams, SymIntExprs
    from tensorrt.plugin import TensorDesc as Desc

    from spt_plugins import launches
    from spt_plugins.ptx import compile_ptx

    dtypes = {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
    }

    # TensorRT's decorators, with types.
    def described(operator: str) -> Callable[[_F], _F]:
        return cast(Callable[[_F], _F], trtp.register(f"{NAMESPACE}::{operator}"))

    def implemented(operator: str) -> Callable[[_F], _F]:
        return cast(Callable[[_F], _F], trtp.aot_impl(f"{NAMESPACE}::{operator}"))

    def tuned(operator: str) -> Callable[[_F], _F]:
        return cast(Callable[[_F], _F], trtp.autotune(f"{NAMESPACE}::{operator}"))

    def ceil_div(a: Any, b: Any) -> Any:
        """TensorRT's own wants a symbol on one side at least."""
        return -(-a // b) if isinstance(a, int) and isinstance(b, int) else trtp.cdiv(a, b)

    def hand_over(launch: launches.Launch) -> tuple[str, str, KernelLaunchParams, SymIntExprs]:
        compiled = compile_ptx(launch.variant, _target())
        parameters = KernelLaunchParams()
        for axis, blocks in zip("xyz", launch.grid, strict=False):
            setattr(parameters, f"grid_{axis}", blocks)
        parameters.block_x = compiled.threads
        parameters.shared_mem = compiled.shared_memory
        sizes = SymIntExprs(len(launch.sizes))
        for index, size in enumerate(launch.sizes):
            sizes[index] = trtp.SymInt32(size)
        return compiled.name, compiled.ptx, parameters, sizes

    def tune(*descriptors: Any) -> list[Any]:
        types = ",".join(descriptor.dtype.name for descriptor in descriptors)
        return [AutoTuneCombination(types, "LINEAR", [SMALL_TILES, LARGE_TILES])]

    @described("SelectTokens")
    def _(logits: Desc, order: Desc, threshold: Desc) -> tuple[Desc, Desc, Desc]:
        _expect("SelectTokens", FLOAT=[logits, threshold], INT64=[order])
        images, tokens = logits.shape_expr
        return (
            trtp.from_shape_expr((images * tokens,), trt.int64),
            trtp.from_shape_expr((images, tokens), trt.int64),
            trtp.from_shape_expr((images + 1,), trt.int64),
        )

    @implemented("SelectTokens")
    def _(
        logits: Desc, order: Desc, threshold: Desc, outputs: tuple[Desc, Desc, Desc], tactic: int
    ) -> tuple[str, str, KernelLaunchParams, SymIntExprs]:
        images, tokens = logits.shape_expr
        usual = _usual(order)[0]
        return hand_over(launches.for_select_tokens(images, tokens, usual_tokens=usual, ceil_div=ceil_div))

    @described("PackedQKV")
    def _(h: Desc, gate: Desc, token_of_slot: Desc, weight: Desc, bias: Desc) -> Desc:
        _expect("PackedQKV", FLOAT=[gate], INT64=[token_of_slot])
        _expect_float("PackedQKV", dtypes, h, weight, bias)
        return trtp.from_shape_expr((token_of_slot.shape_expr[0], weight.shape_expr[0]), h.dtype)

    @implemented("PackedQKV")
    def _(
        h: Desc, gate: Desc, token_of_slot: Desc, weight: Desc, bias: Desc, outputs: tuple[Desc], tactic: int
    ) -> tuple[str, str, KernelLaunchParams, SymIntExprs]:
        return hand_over(
            launches.for_packed_qkv(
                token_of_slot.shape_expr[0],
                dtype=dtypes[h.dtype],
                channels=_usual(weight)[1],
                usual_slots=_USUAL_SLOTS_OF_TACTIC.get(tactic, _usual(token_of_slot)[0]),
                ceil_div=ceil_div,
            )
        )

    @tuned("PackedQKV")
    def _(
        h: Desc, gate: Desc, token_of_slot: Desc, weight: Desc, bias: Desc, outputs: tuple[Desc]
    ) -> list[AutoTuneCombination]:
        return tune(h, gate, token_of_slot, weight, bias, *outputs)

    @described("PackedAttention")
    def _(
        qkv: Desc,
        token_of_slot: Desc,
        cu_seqlens: Desc,
        bias_table: Desc,
        heads: int,
        window: int,
        tokens: int,
        width: int,
        packing: str,
        scale: float,
    ) -> Desc:
        _expect("PackedAttention", INT64=[token_of_slot, cu_seqlens])
        _expect_float("PackedAttention", dtypes, qkv)
        _expect_float("PackedAttention", dtypes, bias_table)
        return trtp.from_shape_expr((qkv.shape_expr[0], heads * HEAD_DIM), qkv.dtype)

    @implemented("PackedAttention")
    def _(
        qkv: Desc,
        token_of_slot: Desc,
        cu_seqlens: Desc,
        bias_table: Desc,
        heads: int,
        window: int,
        tokens: int,
        width: int,
        packing: str,
        scale: float,
        outputs: tuple[Desc],
        tactic: int,
    ) -> tuple[str, str, KernelLaunchParams, SymIntExprs]:
        packing = packing.rstrip("\0")  # the ONNX parser counts the end of a C string as part of it
        _check_attributes(_usual(qkv)[1], _usual(bias_table), heads, window, tokens, width, packing, scale)
        return hand_over(
            launches.for_packed_attention(
                qkv.shape_expr[0],
                cu_seqlens.shape_expr[0] - 1,
                dtype=dtypes[qkv.dtype],
                bias_dtype=dtypes[bias_table.dtype],
                heads=heads,
                window=window,
                tokens=tokens,
                width=width,
                packing=packing,
                scale=float(scale),
                ceil_div=ceil_div,
            )
        )

    @described("UnpackProject")
    def _(o: Desc, token_of_slot: Desc, slot_of_token: Desc, residual: Desc, weight: Desc, bias: Desc) -> Desc:
        _expect("UnpackProject", INT64=[token_of_slot, slot_of_token])
        _expect_float("UnpackProject", dtypes, o, weight, bias)
        _expect_float("UnpackProject", dtypes, residual)
        return residual.like()

    @implemented("UnpackProject")
    def _(
        o: Desc,
        token_of_slot: Desc,
        slot_of_token: Desc,
        residual: Desc,
        weight: Desc,
        bias: Desc,
        outputs: tuple[Desc],
        tactic: int,
    ) -> tuple[str, str, KernelLaunchParams, SymIntExprs]:
        return hand_over(
            launches.for_unpack_project(
                token_of_slot.shape_expr[0],
                slot_of_token.shape_expr.numel(),
                dtype=dtypes[o.dtype],
                residual_dtype=dtypes[residual.dtype],
                channels=_usual(weight)[1],
                usual_slots=_USUAL_SLOTS_OF_TACTIC.get(tactic, _usual(token_of_slot)[0]),
                ceil_div=ceil_div,
            )
        )

    @tuned("UnpackProject")
    def _(
        o: Desc,
        token_of_slot: Desc,
        slot_of_token: Desc,
        residual: Desc,
        weight: Desc,
        bias: Desc,
        outputs: tuple[Desc],
    ) -> list[AutoTuneCombination]:
        return tune(o, token_of_slot, slot_of_token, residual, weight, bias, *outputs)


def _usual(descriptor: Any) -> tuple[int, ...]:
    """The shape of a tensor as numbers: the optimum of the profile where it is dynamic."""
    shape = descriptor.shape
    return tuple(shape.opt if shape.is_dynamic else shape)


def _expect(operator: str, **descriptors: list[Any]) -> None:
    """Each tensor must have the TensorRT type it is listed under."""
    for name, listed in descriptors.items():
        for descriptor in listed:
            if descriptor.dtype.name != name:
                raise UsageError(
                    f"{operator} got a tensor of type {descriptor.dtype.name}, expected {name}: export the model again."
                )


def _expect_float(operator: str, dtypes: dict[Any, Any], *descriptors: Any) -> None:
    """The tensors must share one of the types that the kernels take."""
    found = {descriptor.dtype for descriptor in descriptors}
    if len(found) > 1 or not found <= dtypes.keys():
        names = ", ".join(sorted(dtype.name for dtype in found))
        raise UsageError(
            f"{operator} got {names} where one of {', '.join(dtype.name for dtype in dtypes)} was expected for all: "
            "convert the precision of the whole graph."
        )


def _check_attributes(
    qkv_width: int,
    table: tuple[int, ...],
    heads: int,
    window: int,
    tokens: int,
    width: int,
    packing: str,
    scale: float,
) -> None:
    """Attributes reach the implementation by position alone; a mix-up must not become a wrong answer."""
    wanted = (3 * HEAD_DIM * heads, ((2 * window - 1) ** 2, heads))
    fits = width >= 1 and tokens % width == 0 and packing in DYNAMIC_PACKINGS and 0 < scale <= 1
    if (qkv_width, table) != wanted or not fits:
        raise UsageError(
            f"PackedAttention got heads={heads}, window={window}, tokens={tokens}, width={width}, packing={packing!r}, "
            f"scale={scale:g} for qkv of {qkv_width} columns and a bias table of {table}: export the model again."
        )
