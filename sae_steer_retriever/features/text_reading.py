"""A text as an SAE reads it: what a name is compared with the features by."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE


class Concept(NamedTuple):
    """A name read as text.

    Attributes:
        embedding: (d,) unit vector.
        codes: (1, K) its codes.
        matches: (n,) cosines of the embedding, less the decoder's bias, with the features' directions.
    """

    embedding: Array
    codes: Codes[NDArray[Any]]
    matches: Array


def read_concept(sae: TopKSAE, embedding: Array) -> Concept:
    """Read a text's embedding.

    Args:
        sae: The dictionary.
        embedding: (d,) unit vector, as a query's.
    """
    centred = embedding - sae.bias
    length = max(float(np.linalg.norm(centred)), 1e-12)
    matches = np.asarray(sae.decoder @ (centred / np.float32(length)), dtype=np.float32)
    return Concept(embedding, sae.encode(embedding[None]), matches)


__all__ = ["Concept", "read_concept"]
