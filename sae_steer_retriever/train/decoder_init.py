"""Where the decoder starts: at random, at data points, or at the directions of spherical k-means."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_steer_retriever.sae.directions import data_directions, kmeans_directions, random_directions
from sae_steer_retriever.train.config import InitName


def initial_directions(name: InitName, centred: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """(n, d) unit rows.

    Args:
        name: "random", "data" (data points with a fifth of noise) or "kmeans" (spherical k-means of the data).
        centred: (N, d) embeddings less their mean.
        n: Number of latents.
        generator: Source of randomness.
    """
    if name == "random":
        return random_directions(n, centred.shape[1], generator)
    return (data_directions if name == "data" else kmeans_directions)(centred, n, generator)
