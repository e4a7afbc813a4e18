"""Selection-aware parity: a borderline token that flipped is not a wrong kernel.

Two runtimes sum in another order, so a score that lies almost on the threshold may fall on either side. That alone
changes the outputs downstream, although nothing is wrong. So the candidate runs once more with the reference's
selection forced on it: then every score and every output must agree, and a token whose own score would have flipped
it must lie within the scores' tolerance of the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from spt_deploy.config import BackboneConfig

Scores = tuple[npt.NDArray[np.float32], ...]


@dataclass(frozen=True)
class BlockSelection:
    """One SPA block over one or more batches.

    Attributes:
        block: ``stage.block``, counted from 1.
        tokens: compared.
        kept: by the reference.
        overlap: tokens kept by both over tokens kept by either; 1 when both keep none.
        flips: tokens that one keeps and the other does not.
        max_margin: largest distance of a flipped token's score from the cut, in the reference; 0 without flips. Where
            static packing overflows the cut is the lowest score that found room.
        max_score_error: largest difference of any two scores.
    """

    block: str
    tokens: int
    kept: int
    overlap: float
    flips: int
    max_margin: float
    max_score_error: float

    @property
    def select_ratio(self) -> float:
        """Share of tokens that the reference keeps."""
        return self.kept / self.tokens

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"select_ratio": self.select_ratio}

    @staticmethod
    def total(parts: list[BlockSelection]) -> BlockSelection:
        """The same block over several batches."""
        kept = sum(p.kept for p in parts)
        flips = sum(p.flips for p in parts)
        # |either| = (kept_a + kept_b + flips) / 2; each part's overlap is |both| / |either|.
        either = [_either(p) for p in parts]
        both = sum(e - p.flips for e, p in zip(either, parts, strict=True))
        return BlockSelection(
            block=parts[0].block,
            tokens=sum(p.tokens for p in parts),
            kept=kept,
            overlap=both / sum(either) if sum(either) else 1.0,
            flips=flips,
            max_margin=max(p.max_margin for p in parts),
            max_score_error=max(p.max_score_error for p in parts),
        )


def _either(part: BlockSelection) -> float:
    """Tokens kept by either side: flips are those kept by exactly one."""
    return part.flips / (1 - part.overlap) if part.flips else float(part.kept)


def cut_of(score: npt.NDArray[np.float32], backbone: BackboneConfig) -> npt.NDArray[np.float32]:
    """What a score must exceed (``threshold``) or reach (``topk``) to be kept, B x 1 float32."""
    if backbone.selector == "threshold":
        share = np.float32(backbone.threshold)  # as the model has it
        value = math.log(share / (np.float32(1) - share))
        return np.full((score.shape[0], 1), value, dtype=np.float32)
    return np.sort(score, axis=1)[:, score.shape[1] - backbone.best_count(score.shape[1]), None]


def kept_of(score: npt.NDArray[np.float32], backbone: BackboneConfig) -> npt.NDArray[np.bool_]:
    """Tokens that a block's scores select, B x N bool; under static packing no more than there is room for."""
    cut = cut_of(score, backbone)
    if backbone.selector == "topk":
        # Of equal scores the earlier tokens, as `blocks.best_tokens`.
        return _places(np.argsort(-score, axis=1, kind="stable")[:, : backbone.best_count(score.shape[1])], score)
    kept: npt.NDArray[np.bool_] = score > cut
    if backbone.packing == "static":
        best = np.argsort(-score, axis=1, kind="stable")[:, : backbone.static_slots(score.shape[1])]
        kept &= _places(best, score)
    return kept


def _places(tokens: npt.NDArray[np.int64], score: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """B x N, true at the tokens named for each image."""
    kept = np.zeros(score.shape, dtype=np.bool_)
    np.put_along_axis(kept, tokens, True, axis=1)
    return kept


def _edge_of(score: npt.NDArray[np.float32], backbone: BackboneConfig) -> npt.NDArray[np.float32]:
    """The score about which a token is borderline, B x 1 float32: the lowest kept one where an image overflows."""
    cut = cut_of(score, backbone)
    if backbone.packing != "static" or backbone.selector == "topk":
        return cut
    slots = backbone.static_slots(score.shape[1])
    if slots >= score.shape[1]:
        return cut
    return np.maximum(cut, np.sort(score, axis=1)[:, score.shape[1] - slots, None])


def compare_selection(reference: Scores, candidate: Scores, backbone: BackboneConfig) -> list[BlockSelection]:
    """Compare the scores of each SPA block, each B x N, both computed under the same forced selection upstream."""
    masks = [kept_of(score, backbone) for score in candidate]
    blocks = compare_masks(reference, masks, backbone)
    errors = [float(np.abs(ours - theirs).max()) for ours, theirs in zip(reference, candidate, strict=True)]
    return [replace(block, max_score_error=error) for block, error in zip(blocks, errors, strict=True)]


def compare_masks(
    reference: Scores, kept: Sequence[npt.NDArray[np.bool_]], backbone: BackboneConfig
) -> list[BlockSelection]:
    """Compare the scores of each SPA block with what another kept, each B x N, under the same selection upstream.

    ``max_score_error`` is the least that explains the flips: the largest margin.
    """
    blocks = []
    for name, ours, their_kept in zip(backbone.spa_blocks, reference, kept, strict=True):
        our_kept = kept_of(ours, backbone)
        flipped = our_kept != their_kept
        either = int((our_kept | their_kept).sum())
        margin = np.abs(ours - _edge_of(ours, backbone))
        furthest = float(margin[flipped].max()) if flipped.any() else 0.0
        blocks.append(
            BlockSelection(
                block=name,
                tokens=ours.size,
                kept=int(our_kept.sum()),
                overlap=float((our_kept & their_kept).sum()) / either if either else 1.0,
                flips=int(flipped.sum()),
                max_margin=furthest,
                max_score_error=furthest,
            )
        )
    return blocks
