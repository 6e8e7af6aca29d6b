"""Dictionaries that were never trained: whatever a label score means, it means it against these."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from sae_steer_retriever.encoders.vector_rows import Vectors
from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.sae.directions import kmeans_directions, random_directions
from sae_steer_retriever.sae.topk_sae import TopKSAE

# As many as k-means looks at.
_POINTS = 200_000


def random_dictionary(sae: TopKSAE, seed: int = 0) -> TopKSAE:
    """A frozen dictionary of the same sizes: unit Gaussian rows, codes the TopK of centred projections."""
    rows = random_directions(sae.config.n, sae.config.d, torch.Generator().manual_seed(seed))
    return TopKSAE(rows, torch.zeros(sae.config.n), rows, sae.b_dec.cpu(), _plain(sae.config))


def kmeans_dictionary(sae: TopKSAE, vectors: Vectors, seed: int = 0) -> TopKSAE:
    """Centres of spherical k-means of the same sizes, codes the TopK of projections centred on the mean.

    Args:
        sae: Whose `n`, K and encoder it has.
        vectors: (N, d) unit embeddings to take the mean and the centres of; of more than 200,000 a sample is read.
        seed: Of the sample and of the points that the centres start from.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = np.arange(len(vectors))
    if len(vectors) > _POINTS:
        # In their order: a file is read from front to back.
        chosen = torch.randperm(len(vectors), generator=generator)[:_POINTS].sort().values.numpy()
    points = torch.from_numpy(np.asarray(vectors[chosen], dtype=np.float32))
    mean = points.mean(dim=0)
    rows = kmeans_directions(points.sub_(mean), sae.config.n, generator)
    return TopKSAE(rows, torch.zeros(sae.config.n), rows, mean, _plain(sae.config))


def _plain(config: SAEConfig) -> SAEConfig:
    """Without refinement, which would make the names of an untrained dictionary worse than they can be."""
    return dataclasses.replace(config, refine_steps=0)
