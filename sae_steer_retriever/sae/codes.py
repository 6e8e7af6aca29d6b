"""Codes as text, for a store that keeps neither arrays nor bytes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.topk_sae import Array, Codes


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
