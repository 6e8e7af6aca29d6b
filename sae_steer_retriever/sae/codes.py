"""Codes as text, for a store that keeps neither arrays nor bytes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
ArrayType = TypeVar("ArrayType")

POWER = 0.7
"""The power that activations are raised to before codes are compared in the latent space.

A refinement leaves a few large corrections in a code, which dominate a bare cosine. On SciFact's training queries .7
keeps
most nDCG@10 at K = 32 and 64, and on average over these and 128, where .9 keeps more. 1 is the bare cosine, and 0 would
count the latents that two codes share.
"""


class Codes(NamedTuple, Generic[ArrayType]):
    """Sparse codes of a batch; in each row the latents that name it best come first.

    That order is the order of values or, after a refinement, of how well a latent's direction matches the embedding.

    Attributes:
        indices: (batch, K) int32, the latents' ids.
        values: (batch, K) float32, >= 0. A zero is an empty place, after all others: that row has fewer than K active
            latents.
    """

    indices: ArrayType
    values: ArrayType

    def truncate(self, k: int) -> Codes[ArrayType]:
        """The reading at a smaller K: the first `k` latents of every row."""
        return Codes(self.indices[:, :k], self.values[:, :k])  # type: ignore[index]


def pack(indices: NDArray[np.integer[Any]], values: Array, n: int) -> str:
    """One code as text: base64 of the indices (16 bits where `n` allows) followed by float32 values."""
    width = np.uint16 if n <= 2**16 else np.uint32
    return base64.b64encode(indices.astype(width).tobytes() + values.astype(np.float32).tobytes()).decode("ascii")


def unpack(packed: Sequence[str], n: int, k: int) -> Codes[NDArray[Any]]:
    """The codes of `pack`, (len(packed), k)."""
    width = np.dtype(np.uint16 if n <= 2**16 else np.uint32)
    raw = np.frombuffer(b"".join(base64.b64decode(text) for text in packed), dtype=np.uint8)
    rows = raw.reshape(len(packed), k * (width.itemsize + 4))
    indices = np.ascontiguousarray(rows[:, : k * width.itemsize]).view(width)
    values = np.ascontiguousarray(rows[:, k * width.itemsize :]).view(np.float32)
    return Codes(indices.astype(np.int32), values)


def power_normalise(values: Array) -> Array:
    """Activations raised to the power `POWER`; negative ones keep their sign."""
    return np.asarray(np.copysign(np.abs(values) ** np.float32(POWER), values), dtype=np.float32)


def power_normalised(codes: Codes[NDArray[Any]]) -> Codes[NDArray[Any]]:
    """(batch, K) the same latents with power-normalised activations: the codes that the latent space is made of."""
    return Codes(codes.indices, power_normalise(codes.values))
