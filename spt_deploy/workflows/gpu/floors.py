"""The least time that each operator can take: bytes that must move and operations that must be done.

Each input is read once and each output written once. What no kept token needs is not read: rows of dropped tokens cost
`UnpackProject` a copy and the others nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

INDEX_BYTES = 8  # lists of tokens are int64
SCORE_BYTES = 4  # scores and gates are float32


@dataclass(frozen=True)
class Case:
    """One size of the operators.

    Attributes:
        images: B.
        height: of the map, in tokens; so ``width``.
        channels: C.
        kept: tokens kept of each image.
        window: M.
        item: bytes of a number of the activations and weights.
    """

    images: int
    height: int
    width: int
    channels: int
    kept: int
    window: int = 7
    item: int = 2

    @property
    def tokens(self) -> int:
        """N."""
        return self.height * self.width

    @property
    def heads(self) -> int:
        """Of 32 channels each."""
        return self.channels // 32

    @property
    def slots(self) -> int:
        """S: all kept tokens."""
        return self.images * self.kept

    @property
    def containers(self) -> int:
        """Under per-image packing."""
        return self.images * -(-self.kept // self.window**2)


@dataclass(frozen=True)
class Work:
    """What an operator must do.

    Attributes:
        bytes: moved between the chip and its memory.
        operations: multiplications and additions of matrix products.
    """

    bytes: int
    operations: int

    def floor_s(self, bandwidth: float, peak: float) -> float:
        """Seconds: the longer of moving (bytes a second) and computing (operations a second)."""
        return max(self.bytes / bandwidth, self.operations / peak)


def select_tokens(case: Case) -> Work:
    """Reads scores and order; writes the list at its full length, its inverse, and the counts."""
    read = case.images * case.tokens * SCORE_BYTES + case.tokens * INDEX_BYTES
    written = 2 * case.images * case.tokens * INDEX_BYTES + (case.images + 1) * INDEX_BYTES
    return Work(read + written, 0)


def packed_qkv(case: Case) -> Work:
    """Reads the kept rows, their gates and numbers, and the weights; writes three rows for each."""
    c, s = case.channels, case.slots
    read = s * (c * case.item + SCORE_BYTES + INDEX_BYTES) + (3 * c * c + 3 * c) * case.item
    return Work(read + s * 3 * c * case.item, 2 * s * 3 * c * c)


def packed_attention(case: Case) -> Work:
    """Reads query, key and value of each slot and the bias table; writes a row. Containers are computed whole."""
    c, s, length = case.channels, case.slots, case.window**2
    table = (2 * case.window - 1) ** 2 * case.heads * case.item
    read = s * (3 * c * case.item + INDEX_BYTES) + (case.images + 1) * INDEX_BYTES + table
    return Work(read + s * c * case.item, 2 * 2 * case.containers * length * length * c)


def unpack_project(case: Case) -> Work:
    """Reads the kept rows, the residual, the inverse list and the weights; writes every row."""
    c, s, rows = case.channels, case.slots, case.images * case.tokens
    read = s * c * case.item + rows * (c * case.item + INDEX_BYTES) + (c * c + c) * case.item
    return Work(read + rows * c * case.item, 2 * s * c * c)


OPERATORS = {
    "SelectTokens": select_tokens,
    "PackedQKV": packed_qkv,
    "PackedAttention": packed_attention,
    "UnpackProject": unpack_project,
}
