"""Dictionaries that were never trained: whatever a label score means, it means it against these."""

from __future__ import annotations

import torch

from sae_steer_retriever.sae import TopKSAE


def random_dictionary(sae: TopKSAE, seed: int = 0) -> TopKSAE:
    """A frozen dictionary of the same sizes: unit Gaussian rows, codes the TopK of centred projections."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn((sae.config.n, sae.config.d), generator=generator)
    rows /= rows.norm(dim=1, keepdim=True)
    return TopKSAE(rows, torch.zeros(sae.config.n), rows, sae.b_dec.cpu(), sae.config)
