"""``PackedAttention``: multi-head attention inside containers of L = M*M kept tokens of one image.

    o[i] = sum_j softmax_j(scale q_i k_j + table[clamp(y_i - y_j), clamp(x_i - x_j)]) v_j

over the tokens j of the container of i that are of the image of i; the clamp is to +-(M - 1).

Source: arXiv 2410.23608, figure 3; the table is Swin's, arXiv 2103.14030; meaning in `spt_deploy.model.reference`.

A program takes one container and some heads. It finds its container by arithmetic, for the number of containers
is bounded by sizes that the host knows, and returns at once if there is no such container. Mask and bias never
exist in memory: a pair's entry of the table is found from the two tokens' places, and pairs that do not see each
other read minus infinity. The softmax is in float32 and divides last, after the second product, where there are
32 numbers a token and not L. The kernel is bound by the number of its instructions as much as by memory
(`tests/spt_plugins/test_ptx.py` counts them).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spt_deploy.config import DYNAMIC_PACKINGS, HEAD_DIM
from spt_deploy.errors import UsageError
from spt_plugins import checks
from spt_plugins.division import divide, divisor
from spt_plugins.variant import CeilDiv, Variant, cdiv, next_power_of_two, pointer


@triton.jit(
    do_not_specialize=[
        "slots",
        "tokens",
        "width",
        "tokens_multiplier",
        "tokens_shift",
        "width_multiplier",
        "width_shift",
    ]
)
def packed_attention_kernel(
    qkv,
    token_of_slot,
    cu_seqlens,
    bias_table,
    slots,
    tokens,
    width,
    tokens_multiplier,
    tokens_shift,
    width_multiplier,
    width_shift,
    o,
    HEADS: tl.constexpr,
    WINDOW: tl.constexpr,
    PER_IMAGE: tl.constexpr,
    HEADS_PER_PROGRAM: tl.constexpr,
    UNSEEN_PAIR: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    DIM: tl.constexpr = 32  # of a head
    CHANNELS: tl.constexpr = HEADS * DIM
    LENGTH: tl.constexpr = WINDOW * WINDOW
    LOG2_E: tl.constexpr = 1.4426950408889634  # exp(x) is exp2(x log2 e)
    PAIRED: tl.constexpr = HEADS_PER_PROGRAM == 2
    GROUPS: tl.constexpr = HEADS // HEADS_PER_PROGRAM
    # Of the table, in what is loaded at once, one head or two: a step in x, one in y, and the farthest of each.
    STEP_X: tl.constexpr = HEADS // HEADS_PER_PROGRAM
    STEP_Y: tl.constexpr = STEP_X * (2 * WINDOW - 1)
    REACH_X: tl.constexpr = STEP_X * (WINDOW - 1)
    REACH_Y: tl.constexpr = STEP_Y * (WINDOW - 1)
    container = tl.program_id(0) // GROUPS
    first_head = tl.program_id(0) % GROUPS * HEADS_PER_PROGRAM

    if PER_IMAGE:
        per_image = tl.cdiv(tokens, LENGTH)
        image = container // per_image
        first = tl.load(cu_seqlens + image) + container % per_image * LENGTH
        left = (tl.load(cu_seqlens + image + 1) - first).to(tl.int32)
        missing = left <= 0
    else:
        first = container.to(tl.int64) * LENGTH
        left = slots - container * LENGTH
        missing = tl.load(token_of_slot + first) < 0
    if missing:
        return

    # Everything about one token is worked out in every thread that needs it, so that each operation here counts.
    place = tl.arange(0, BLOCK)
    token = tl.load(token_of_slot + first + place, mask=place < tl.minimum(left, LENGTH), other=-1).to(tl.int32)
    filled = token >= 0
    if PER_IMAGE:
        inside = token - image * tokens
        sees = tl.broadcast_to(filled[None, :], (BLOCK, BLOCK))
    else:
        start = divide(token, tokens_multiplier, tokens_shift) * tokens  # of its image
        inside = token - start
        owner = tl.where(filled, start, -1)
        # Places without a token see each other, so that no row of the softmax is empty.
        sees = owner[:, None] == owner[None, :]
    row = divide(inside, width_multiplier, width_shift)
    y = row * STEP_Y
    x = (inside - row * width) * STEP_X
    dy = tl.minimum(tl.maximum(y[:, None] - y[None, :], -REACH_Y), REACH_Y)
    dx = tl.minimum(tl.maximum(x[:, None] - x[None, :], -REACH_X), REACH_X)
    entry = dy + dx  # from the middle of the table
    middle = REACH_Y + REACH_X + first_head // HEADS_PER_PROGRAM
    if PAIRED:
        # Two heads stand side by side in the table: one load of 32 bits serves both, and halves the gathering.
        pair = tl.load(bias_table.to(tl.pointer_type(tl.uint32)) + middle + entry, mask=sees, other=UNSEEN_PAIR)

    qkv += first * (3 * CHANNELS)
    o += first * CHANNELS
    for index in tl.static_range(HEADS_PER_PROGRAM):
        if PAIRED:
            bias = (pair >> (16 * index)).to(tl.uint16).to(bias_table.dtype.element_ty, bitcast=True)
        else:
            bias = tl.load(bias_table + middle + entry, mask=sees, other=float("-inf"))
        column = (first_head + index) * DIM + tl.arange(0, DIM)
        source = qkv + place[:, None] * (3 * CHANNELS) + column[None, :]
        q = tl.load(source, mask=filled[:, None], other=0.0)
        k = tl.load(source + CHANNELS, mask=filled[:, None], other=0.0)
        v = tl.load(source + 2 * CHANNELS, mask=filled[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * SCALE + bias.to(tl.float32)
        highest = tl.max(scores, 1) * LOG2_E
        weights = tl.exp2(scores * LOG2_E - highest[:, None])
        factor = 1 / tl.sum(weights, 1)
        mixed = tl.dot(weights.to(v.dtype), v, input_precision="ieee") * factor[:, None]
        target = o + place[:, None] * CHANNELS + column[None, :]
        tl.store(target, mixed.to(o.dtype.element_ty), mask=filled[:, None])


DEFAULT_SCALE = HEAD_DIM**-0.5

# Two numbers of 16 bits, both minus infinity: the bias between tokens that do not see each other.
UNSEEN_PAIRS = {torch.float16: 0xFC00FC00, torch.bfloat16: 0xFF80FF80}


def variant(
    dtype: torch.dtype,
    heads: int,
    window: int,
    packing: str,
    bias_dtype: torch.dtype | None = None,
    scale: float = DEFAULT_SCALE,
) -> Variant:
    """The form for one kind of attention.

    Args:
        dtype: of qkv and o.
        heads: attention heads of 32 channels.
        window: M; a container holds M*M tokens.
        packing: ``per-image`` or ``batch``.
        bias_dtype: of the bias table; ``dtype`` unless given. A table of 16 bits must begin at a multiple of 4 bytes.
        scale: of the product of a query and a key.
    """
    bias_dtype = bias_dtype or dtype
    paired = heads % 2 == 0 and bias_dtype in UNSEEN_PAIRS
    return Variant(
        kernel=packed_attention_kernel,
        signature={
            "qkv": pointer(dtype),
            "token_of_slot": "*i64",
            "cu_seqlens": "*i64",
            "bias_table": pointer(bias_dtype),
            "slots": "i32",
            "tokens": "i32",
            "width": "i32",
            "tokens_multiplier": "i32",
            "tokens_shift": "i32",
            "width_multiplier": "i32",
            "width_shift": "i32",
            "o": pointer(dtype),
            "HEADS": "constexpr",
            "WINDOW": "constexpr",
            "PER_IMAGE": "constexpr",
            "HEADS_PER_PROGRAM": "constexpr",
            "UNSEEN_PAIR": "constexpr",
            "SCALE": "constexpr",
            "BLOCK": "constexpr",
        },
        constants={
            "HEADS": heads,
            "WINDOW": window,
            "PER_IMAGE": packing == "per-image",
            "HEADS_PER_PROGRAM": 2 if paired else 1,
            "UNSEEN_PAIR": UNSEEN_PAIRS[bias_dtype] if paired else 0,
            "SCALE": scale,
            "BLOCK": max(16, next_power_of_two(window**2)),
        },
        num_warps=8 if dtype is torch.float32 else 4,  # without tensor cores, products take more registers
        num_stages=2,
    )


def grid(variant: Variant, slots: Any, images: Any, tokens: Any, cdiv: CeilDiv = cdiv) -> tuple[Any]:
    """Programs to launch for ``slots`` slots of ``images`` images of ``tokens`` tokens; sizes may be symbolic."""
    constants = variant.constants
    length = constants["WINDOW"] ** 2
    containers = images * cdiv(tokens, length) if constants["PER_IMAGE"] else cdiv(slots, length)
    return (containers * (constants["HEADS"] // constants["HEADS_PER_PROGRAM"]),)


def sizes(slots: Any, tokens: int, width: int) -> tuple[Any, ...]:
    """What stands between the inputs and the output of a launch for ``slots`` slots, which may be symbolic."""
    return (slots, tokens, width, *divisor(tokens), *divisor(width))


def packed_attention(
    qkv: Tensor,
    token_of_slot: Tensor,
    cu_seqlens: Tensor,
    bias_table: Tensor,
    heads: int,
    window: int,
    tokens: int,
    width: int,
    packing: str,
    scale: float | None = None,
) -> Tensor:
    """Multi-head attention inside each container; a token sees tokens of its own image only.

    Args:
        qkv: S x 3C float16, bfloat16 or float32 (T), C = 32 heads.
        token_of_slot: S int64, -1 past the last kept token.
        cu_seqlens: B + 1 int64.
        bias_table: (2M - 1)^2 x heads, float16, bfloat16 or float32.
        heads: attention heads.
        window: M, at most 8; a container holds M*M tokens.
        tokens: N, tokens an image.
        width: tokens a row of the map.
        packing: ``per-image`` or ``batch``.
        scale: of the product of a query and a key; 1 / sqrt(32) unless given.

    Returns:
        S x C T. Rows past the last kept token hold anything.

    Raises:
        UsageError: a size, shape, dtype or the packing is another.
    """
    checks.one_device(qkv=qkv, token_of_slot=token_of_slot, cu_seqlens=cu_seqlens, bias_table=bias_table)
    checks.dimensions("qkv", qkv, 2)
    dtype = checks.float_dtype("qkv", qkv)
    bias_dtype = checks.float_dtype("bias_table", bias_table)
    channels = checks.channels(heads * HEAD_DIM)
    slots = checks.slots(token_of_slot.shape[0])
    checks.shape("qkv", qkv, (slots, 3 * channels))
    for name, index in (("token_of_slot", token_of_slot), ("cu_seqlens", cu_seqlens)):
        checks.dimensions(name, index, 1)
        checks.same_dtype(name, index, torch.int64)
    if not 1 <= window <= checks.MAX_WINDOW:
        raise UsageError(f"Window {window}, and the kernels take 1 to {checks.MAX_WINDOW}: run the model on the CPU.")
    checks.shape("bias_table", bias_table, ((2 * window - 1) ** 2, heads))
    if tokens < 1 or width < 1 or tokens % width:
        raise UsageError(f"{tokens} tokens in rows of {width}: give whole rows, at least one.")
    if packing not in DYNAMIC_PACKINGS:
        raise UsageError(f"Packing {packing!r}: choose one of {', '.join(DYNAMIC_PACKINGS)}.")
    o = qkv.new_empty(slots, channels)
    form = variant(dtype, heads, window, packing, bias_dtype, DEFAULT_SCALE if scale is None else scale)
    inputs = [tensor.contiguous() for tensor in (qkv, token_of_slot, cu_seqlens, bias_table)]
    if inputs[3].data_ptr() % 4:  # the kernel reads two heads at once
        inputs[3] = inputs[3].clone()
    form.launch(grid(form, slots, cu_seqlens.shape[0] - 1, tokens), *inputs, *sizes(slots, tokens, width), o)
    return o
