"""Dictionaries that were never trained: whatever a label score means, it means it against these."""

from __future__ import annotations

import numpy as np
import torch

from sae_steer_retriever.directions import kmeans_directions, random_directions
from sae_steer_retriever.sae import Array, TopKSAE


def random_dictionary(sae: TopKSAE, seed: int = 0) -> TopKSAE:
    """A frozen dictionary of the same sizes: unit Gaussian rows, codes the TopK of centred projections."""
    rows = random_directions(sae.config.n, sae.config.d, torch.Generator().manual_seed(seed))
    return TopKSAE(rows, torch.zeros(sae.config.n), rows, sae.b_dec.cpu(), sae.config)


def kmeans_dictionary(sae: TopKSAE, vectors: Array, seed: int = 0) -> TopKSAE:
    """Centres of spherical k-means of the same sizes, codes the TopK of projections centred on the mean.

    Args:
        sae: Whose `n`, K and encoder it has.
        vectors: (N, d) unit embeddings to take the mean and the centres of.
        seed: Of the points that the centres start from.
    """
    points = torch.from_numpy(np.array(vectors, dtype=np.float32))
    mean = points.mean(dim=0)
    rows = kmeans_directions(points - mean, sae.config.n, torch.Generator().manual_seed(seed))
    return TopKSAE(rows, torch.zeros(sae.config.n), rows, mean, sae.config)
