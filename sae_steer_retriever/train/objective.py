"""The loss of one step: ours, and the one that the paper prints."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sae_steer_retriever.sae import SAEConfig
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.losses import fraction_unexplained, paper_loss, relative_kl
from sae_steer_retriever.train.model import FittingSAE
from sae_steer_retriever.train.sampling import Sampler


class Constants(NamedTuple):
    """Of a fit: V = E|x - mu|^2 over the rows, and the temperature of the relative KL."""

    variance: float
    temperature: float


def ranking_objective(
    model: FittingSAE, sampler: Sampler, step: int, config: TrainConfig, sizes: SAEConfig, constants: Constants
) -> Tensor:
    """`FVU(k) + FVU(k_names) + rkl_weight * RKL(k)`; with `loss="mse"` without the last term.

    The two FVUs read one sorted code at two lengths (multi-TopK): the strongest few latents learn to stand on their
    own, which is what makes them nameable, and all of them to reconstruct. Each list query's candidates are the
    documents of all lists of the step, each encoded once.
    """
    parts = [sampler.rows[sampler.draw_rows(step, config.batch_size)]]
    if config.loss == "rkl":
        chosen = sampler.draw_queries(step, config.list_queries)
        parts += [sampler.queries[chosen], sampler.documents[torch.unique(sampler.lists[chosen])]]
    batch = torch.cat(parts).to(model.mu.device)
    values, indices = model.encode(batch, sizes.k)
    x_hat = model.decode(values, indices)
    loss = fraction_unexplained(batch, x_hat, constants.variance)
    if sizes.k_names < sizes.k:
        named = model.decode(values[:, : sizes.k_names].contiguous(), indices[:, : sizes.k_names].contiguous())
        loss = loss + config.names_weight * fraction_unexplained(batch, named, constants.variance)
    if config.loss == "rkl":
        lengths = [len(part) for part in parts]
        (_, q, documents), (_, q_hat, documents_hat) = torch.split(batch, lengths), torch.split(x_hat, lengths)
        # Reconstructions are searched by cosine, so their lengths are no part of what is compared.
        reconstructed = functional.normalize(q_hat, dim=1) @ functional.normalize(documents_hat, dim=1).T
        kl = relative_kl(q @ documents.T, reconstructed, constants.temperature)
        loss = loss + config.rkl_weight * kl
    return loss


def paper_objective(model: FittingSAE, sampler: Sampler, step: int, config: TrainConfig, sizes: SAEConfig) -> Tensor:
    """Eq. 2 of arXiv 2411.00786 as printed, over queries and their lists (Appendix A)."""
    chosen = sampler.draw_queries(step, config.batch_size)
    unique, place = torch.unique(sampler.lists[chosen], return_inverse=True)
    device = model.mu.device
    q, documents, place = sampler.queries[chosen].to(device), sampler.documents[unique].to(device), place.to(device)
    reconstructed = model.decode(*model.encode(torch.cat([q, documents]), sizes.k))
    q_hat, documents_hat = torch.split(reconstructed, [len(q), len(unique)])
    return paper_loss(q, q_hat, documents[place], documents_hat[place])
