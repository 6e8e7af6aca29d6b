"""Sparse codes: their type, their text form for stores, and power normalisation for search in the latent space."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import warn_renamed

Array = NDArray[np.float32]
ArrayType = TypeVar("ArrayType")

POWER = 0.7
"""The power that activations are raised to before codes are compared in the latent space.

A refinement leaves a few large corrections in a code, which dominate a plain cosine. On SciFact's training queries 0.7
keeps most nDCG@10 at K = 32 and 64, and on average over 32, 64 and 128; at 128 alone 0.9 keeps more. 1 is the plain
cosine; 0 would count the latents that two codes share.
"""


class Codes(NamedTuple, Generic[ArrayType]):
    """Sparse codes of a batch. In each row the latents come in the order of their values, largest first.

    After a refinement they come in the order of the match of their directions with the embedding.

    Attributes:
        indices: (batch, K) int32, the latents' ids.
        values: (batch, K) float32, >= 0. A zero is an empty place, after all others, in a row with fewer than K active
            latents.

    Example:
        >>> codes = sae.encode(vectors[:2])
        >>> codes.truncate(8).indices.shape
        (2, 8)
    """

    indices: ArrayType
    values: ArrayType

    def truncate(self, k: int) -> Codes[ArrayType]:
        """Returns the codes at a smaller K: the first `k` latents of every row."""
        return Codes(self.indices[:, :k], self.values[:, :k])  # type: ignore[index]

    def leading(self, k: int) -> Codes[ArrayType]:
        """Returns `truncate(k)`, by its name in the first release."""
        warn_renamed("Codes.leading", "truncate")
        return self.truncate(k)


def pack(indices: NDArray[np.integer[Any]], values: Array, n: int) -> str:
    """Returns one code as text: base64 of the indices (16 bits if `n` allows) followed by float32 values."""
    width = np.uint16 if n <= 2**16 else np.uint32
    return base64.b64encode(indices.astype(width).tobytes() + values.astype(np.float32).tobytes()).decode("ascii")


def unpack(packed: Sequence[str], n: int, k: int) -> Codes[NDArray[Any]]:
    """Returns the codes of `pack`, (len(packed), k)."""
    width = np.dtype(np.uint16 if n <= 2**16 else np.uint32)
    raw = np.frombuffer(b"".join(base64.b64decode(text) for text in packed), dtype=np.uint8)
    rows = raw.reshape(len(packed), k * (width.itemsize + 4))
    indices = np.ascontiguousarray(rows[:, : k * width.itemsize]).view(width)
    values = rows[:, k * width.itemsize :].copy().view(np.float32)
    return Codes(indices.astype(np.int32), values)


def power_normalise(values: Array) -> Array:
    """Returns activations raised to the power `POWER`; negative ones keep their sign."""
    return np.asarray(np.copysign(np.abs(values) ** np.float32(POWER), values), dtype=np.float32)


def power_normalised(codes: Codes[NDArray[Any]]) -> Codes[NDArray[Any]]:
    """Returns (batch, K) codes with power-normalised activations, which the latent space compares."""
    return Codes(codes.indices, power_normalise(codes.values))


NO_CODE: Codes[NDArray[Any]] = Codes(np.empty((1, 0), dtype=np.int32), np.empty((1, 0), dtype=np.float32))
"""The code of a query that no operation reads."""
