"""The seam between the model and everything that runs it: four calls, each with three lives.

* While ONNX is being exported, a call leaves one node of the ``spt`` domain in the graph.
* Where gradients are on, it is the function of `reference.py`, differentiated by autograd.
* Otherwise it is a ``torch.library`` operator of the ``spt`` namespace, whose implementation is that same
  function; `spt_plugins` registers its kernels as the implementation on CUDA. Nothing here imports it.

Signatures, shapes and dtypes are those of `reference.py`. Kernels make S the upper bound B*N and fill
``token_of_slot`` with -1 past the last kept token, so that no shape has to leave the device; which devices do so
is noted in ``BOUNDED_DEVICES``. Static packing (`static_packing.py`) has no kernels: on every device it is the
functions of that module. Under autocast the operators take and give its dtype, as a linear layer does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spt_deploy.errors import UsageError
from spt_deploy.model import reference, static_packing
from spt_deploy.model.domain import OPSET_VERSION, PLUGIN_ATTRIBUTES

STATIC = "static"  # packing

# Device types whose registered kernels return lists of the upper bound's length.
BOUNDED_DEVICES: set[str] = set()


@torch.library.custom_op("spt::select_tokens", mutates_args=())
def _select_tokens(logits: Tensor, order: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return reference.select_tokens(logits, order, threshold)


@_select_tokens.register_fake
def _(logits: Tensor, order: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    bounded = logits.device.type in BOUNDED_DEVICES
    kept = logits.numel() if bounded else torch.library.get_ctx().new_dynamic_size()
    return (
        logits.new_empty(kept, dtype=torch.int64),
        logits.new_empty(logits.shape, dtype=torch.int64),
        logits.new_empty(logits.shape[0] + 1, dtype=torch.int64),
    )


@torch.library.custom_op("spt::packed_qkv", mutates_args=())
def _packed_qkv(h: Tensor, gate: Tensor, token_of_slot: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return reference.packed_qkv(h, gate, token_of_slot, weight, bias)


@_packed_qkv.register_fake
def _(h: Tensor, gate: Tensor, token_of_slot: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return h.new_empty(token_of_slot.shape[0], weight.shape[0])


@torch.library.custom_op("spt::packed_attention", mutates_args=())
def _packed_attention(
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
    return reference.packed_attention(
        qkv,
        token_of_slot,
        cu_seqlens,
        bias_table,
        heads=heads,
        window=window,
        tokens=tokens,
        width=width,
        packing=packing,
        scale=scale,
    )


@_packed_attention.register_fake
def _(
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
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)


@torch.library.custom_op("spt::unpack_project", mutates_args=())
def _unpack_project(
    o: Tensor, token_of_slot: Tensor, slot_of_token: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    out = reference.unpack_project(o, token_of_slot, slot_of_token, residual, weight, bias)
    return out if residual.is_contiguous() else torch.empty_like(residual).copy_(out)  # with the promised strides


@_unpack_project.register_fake
def _(
    o: Tensor, token_of_slot: Tensor, slot_of_token: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    return torch.empty_like(residual)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in autocast's dtype where it is on: operators that are opaque to torch must see to it themselves."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) for t in tensors)


def select_tokens(
    logits: Tensor, order: Tensor, threshold: Tensor, slots: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.select_tokens`, or `static_packing` where an image has so many ``slots``; there is no gradient."""
    if torch.onnx.is_in_onnx_export():
        batch, tokens = logits.shape
        outputs = torch.onnx.ops.symbolic_multi_out(
            "spt::SelectTokens",
            (logits, order, threshold),
            attrs=PLUGIN_ATTRIBUTES if slots is None else {"slots": slots, **PLUGIN_ATTRIBUTES},
            dtypes=(torch.int64, torch.int64, torch.int64),
            shapes=((batch * (tokens if slots is None else slots),), (batch, tokens), (batch + 1,)),
            version=OPSET_VERSION,
        )
        return outputs[0], outputs[1], outputs[2]
    if slots is not None:
        return static_packing.select_tokens(logits.detach(), order, threshold, slots)
    if torch.is_grad_enabled():
        return reference.select_tokens(logits.detach(), order, threshold)
    kept: tuple[Tensor, Tensor, Tensor] = _select_tokens(logits, order, threshold)
    return kept


def packed_qkv(
    h: Tensor, gate: Tensor, token_of_slot: Tensor, weight: Tensor, bias: Tensor, packing: str = "batch"
) -> Tensor:
    """See `reference.packed_qkv`; ``packing`` is that of `packed_attention`."""
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            "spt::PackedQKV",
            (h, gate, token_of_slot, weight, bias),
            attrs=PLUGIN_ATTRIBUTES,
            dtype=h.dtype,
            shape=(token_of_slot.shape[0], weight.shape[0]),
            version=OPSET_VERSION,
        )
    if packing == STATIC:
        return static_packing.packed_qkv(h, gate, token_of_slot, weight, bias)
    if torch.is_grad_enabled():
        return reference.packed_qkv(h, gate, token_of_slot, weight, bias)
    h, weight, bias = _autocast(h, weight, bias)
    qkv: Tensor = _packed_qkv(h, gate, token_of_slot, weight, bias)
    return qkv


def packed_attention(
    qkv: Tensor,
    token_of_slot: Tensor,
    cu_seqlens: Tensor,
    bias_table: Tensor,
    *,
    heads: int,
    window: int,
    tokens: int,
    width: int,
    packing: str,
    scale: float | None = None,
) -> Tensor:
    """See `reference.packed_attention`.

    Raises:
        UsageError: when ONNX is being exported and the scale is not 1, the only one that a file's functions know.
    """
    if torch.onnx.is_in_onnx_export():
        if scale != 1.0:
            raise UsageError(f"scale is {scale}; call fold_scale of every attention before ONNX is exported")
        return torch.onnx.ops.symbolic(
            "spt::PackedAttention",
            (qkv, token_of_slot, cu_seqlens, bias_table),
            attrs={
                "heads": heads,
                "window": window,
                "tokens": tokens,
                "width": width,
                "packing": packing,
                "scale": scale,
                **PLUGIN_ATTRIBUTES,
            },
            dtype=qkv.dtype,
            shape=(qkv.shape[0], qkv.shape[1] // 3),
            version=OPSET_VERSION,
        )
    if packing == STATIC:
        return static_packing.packed_attention(
            qkv, token_of_slot, bias_table, heads=heads, window=window, tokens=tokens, width=width, scale=scale
        )
    kind = {"heads": heads, "window": window, "tokens": tokens, "width": width, "packing": packing, "scale": scale}
    if torch.is_grad_enabled():
        return reference.packed_attention(qkv, token_of_slot, cu_seqlens, bias_table, **kind)  # type: ignore[arg-type]
    attended: Tensor = _packed_attention(qkv, token_of_slot, cu_seqlens, bias_table, **kind)
    return attended


def unpack_project(
    o: Tensor,
    token_of_slot: Tensor,
    slot_of_token: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    packing: str = "batch",
) -> Tensor:
    """See `reference.unpack_project`; ``packing`` is that of `packed_attention`."""
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            "spt::UnpackProject",
            (o, token_of_slot, slot_of_token, residual, weight, bias),
            attrs=PLUGIN_ATTRIBUTES,
            dtype=residual.dtype,
            shape=residual.shape,
            version=OPSET_VERSION,
        )
    if packing == STATIC:
        return static_packing.unpack_project(o, slot_of_token, residual, weight, bias)
    if torch.is_grad_enabled():
        return reference.unpack_project(o, token_of_slot, slot_of_token, residual, weight, bias)
    o, weight, bias = _autocast(o, weight, bias)
    out: Tensor = _unpack_project(o, token_of_slot, slot_of_token, residual, weight, bias)
    return out
