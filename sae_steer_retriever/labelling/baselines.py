"""Untrained dictionaries, the baselines of label scores; without refinement, which worsens their label latents."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from sae_steer_retriever.encoders.vector_rows import Vectors
from sae_steer_retriever.sae.directions import kmeans_directions, random_directions
from sae_steer_retriever.sae.topk_sae import TopKSAE

# Most points of the k-means.
_POINTS = 200_000


def random_dictionary(sae: TopKSAE, seed: int = 0) -> TopKSAE:
    """A random dictionary of the same sizes: unit Gaussian rows, codes are the TopK of centred projections."""
    rows = random_directions(sae.config.n, sae.config.d, torch.Generator().manual_seed(seed))
    return TopKSAE(
        rows, torch.zeros(sae.config.n), rows, sae.b_dec.cpu(), dataclasses.replace(sae.config, refine_steps=0)
    )


def kmeans_dictionary(sae: TopKSAE, vectors: Vectors, seed: int = 0) -> TopKSAE:
    """Returns the centres of a spherical k-means as a dictionary; codes are the TopK of centred projections.

    Args:
        sae: Gives `n`, K and the encoder.
        vectors: (N, d) unit embeddings to cluster; of more than 200,000 a sample.
        seed: Of the sample and of the first centres.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = np.arange(len(vectors))
    if len(vectors) > _POINTS:
        # Sorted: a file is read from front to back.
        chosen = torch.randperm(len(vectors), generator=generator)[:_POINTS].sort().values.numpy()
    points = torch.from_numpy(np.asarray(vectors[chosen], dtype=np.float32))
    mean = points.mean(dim=0)
    rows = kmeans_directions(points.sub_(mean), sae.config.n, generator)
    return TopKSAE(rows, torch.zeros(sae.config.n), rows, mean, dataclasses.replace(sae.config, refine_steps=0))
