"""A text as an SAE reads it: its embedding, its codes and its match with each feature."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE


class Concept(NamedTuple):
    """A text as an SAE reads it.

    Attributes:
        embedding: (d,) unit vector.
        codes: (1, K) its codes.
        matches: (n,) cosine of the embedding, less the decoder's bias, with each feature's direction.
    """

    embedding: Array
    codes: Codes[NDArray[Any]]
    matches: Array


def read_concept(sae: TopKSAE, embedding: Array) -> Concept:
    """Returns a text as the SAE reads it; `embedding` is its (d,) unit vector, embedded as a query.

    Example:
        >>> concept = read_concept(sae, embedder.embed_queries(["open a file"])[0])
        >>> concept.matches.shape == (sae.config.n,)
        True
    """
    centred = embedding - sae.bias
    length = max(float(np.linalg.norm(centred)), 1e-12)
    matches = np.asarray(sae.decoder @ (centred / np.float32(length)), dtype=np.float32)
    return Concept(embedding, sae.encode(embedding[None]), matches)
