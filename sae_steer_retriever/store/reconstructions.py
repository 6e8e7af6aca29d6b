"""Reconstructed embeddings of passages, by their stored vectors: read from the sidecar, and never of another vector."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.connection import translated
from sae_steer_retriever.store.documents import digest
from sae_steer_retriever.store.sidecar import SidecarReader

# Reconstructions that are remembered: 12 MB of 384 dimensions.
_REMEMBERED = 8192


class Reconstructed(NamedTuple):
    """Reconstructions of N passages.

    Attributes:
        x_hat: (N, d) the reconstructions; zero where unknown.
        known: (N,) whether the sidecar has a row of the passage's vector.
    """

    x_hat: Array
    known: NDArray[np.bool_]


class Reconstructions:
    """Reconstructions by the codes that a sidecar stores; safe to share between threads.

    The latest ones are remembered by the digest of the vector that was encoded. A reconstruction is a function of its
    vector, so what is remembered cannot be stale.
    """

    def __init__(self, sidecar: SidecarReader, sae: TopKSAE) -> None:
        self._sidecar = sidecar
        self._sae = sae
        self._remembered: OrderedDict[str, Array] = OrderedDict()
        self._lock = threading.Lock()

    @translated("reading reconstructions")
    def of(self, ids: Sequence[str], vectors: Array) -> Reconstructed:
        """Returns the reconstructions of passages; vectors that have no row of their own are unknown.

        Args:
            ids: N passages.
            vectors: (N, d) their stored vectors at unit norm, as the sidecar's writer normalises them.
        """
        digests = [digest(vector) for vector in vectors]
        found: dict[str, Array] = {}
        with self._lock:
            for source in digests:
                if source in self._remembered:
                    self._remembered.move_to_end(source)
                    found[source] = self._remembered[source]
        missing = {name: source for name, source in zip(ids, digests, strict=True) if source not in found}
        # Chroma may read a row's vector after a write and its metadata before it. Codes and digest are both metadata.
        rows = self._sidecar.rows(list(missing))
        own = [row for name, row in rows.items() if row.source == missing[name]]
        if own:
            x_hat = self._sae.decode(self._sidecar.unpack([row.packed for row in own]))
            found.update(zip((row.source for row in own), x_hat, strict=True))
        with self._lock:
            self._remembered.update((source, found[source]) for source in missing.values() if source in found)
            while len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        reconstructed = np.zeros_like(vectors)
        known = np.array([source in found for source in digests], dtype=bool)
        for place in np.nonzero(known)[0].tolist():
            reconstructed[place] = found[digests[place]]
        return Reconstructed(reconstructed, known)
