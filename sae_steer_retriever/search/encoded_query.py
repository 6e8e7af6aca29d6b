"""A question as the encoder and the SAE read it."""

from __future__ import annotations

from concurrent.futures import Executor
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE


class Query:
    """A question as the encoder and the SAE read it.

    Attributes:
        embedding: (d,) unit vector.
    """

    def __init__(self, embedding: Array, sae: TopKSAE, pool: Executor | None = None) -> None:
        """Takes the embedding; with a `pool` the code is worked out meanwhile, else when it is read."""
        self.embedding = embedding
        self._sae = sae
        self._coming = None if pool is None else pool.submit(sae.encode, embedding[None])

    @cached_property
    def code(self) -> Codes[NDArray[Any]]:
        """(1, K) its code."""
        return self._sae.encode(self.embedding[None]) if self._coming is None else self._coming.result()

    @property
    def labels(self) -> Codes[NDArray[Any]]:
        """(1, k_labels) its label latents."""
        return self.code.truncate(self._sae.config.k_labels)
