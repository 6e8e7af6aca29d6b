"""Query embeddings that were made already: who turns a knob does not ask another question."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from sae_steer_retriever.sae.codes import Array

if TYPE_CHECKING:
    from sae_steer_retriever.encoders.embedders import Embedder


class QueryEmbeddings:
    """The latest queries' embeddings; safe to share between threads."""

    def __init__(self, embedder: Embedder, size: int = 512) -> None:
        """Remember what an encoder says.

        Args:
            embedder: The encoder.
            size: How many queries.
        """
        self._embedder = embedder
        self._size = size
        self._known: OrderedDict[str, Array] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, query: str) -> Array:
        """(d,) the unit vector of a query."""
        with self._lock:
            found = self._known.get(query)
            if found is not None:
                self._known.move_to_end(query)
                return found
        made: Array = self._embedder.embed_queries([query])[0]
        with self._lock:
            self._known[query] = made
            while len(self._known) > self._size:
                self._known.popitem(last=False)
        return made


__all__ = ["QueryEmbeddings"]
