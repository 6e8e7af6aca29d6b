"""The loss of one step: ours, and the one that the paper prints."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.losses import fraction_unexplained, paper_loss, printed_kl, relative_kl, released_kl
from sae_steer_retriever.train.sampling import Sampler
from sae_steer_retriever.train.trainable_sae import FittingSAE


class Constants(NamedTuple):
    """Of a fit: V = E|x - mu|^2 over the rows, and the temperature of the relative KL."""

    variance: float
    temperature: float


def ranking_objective(
    model: FittingSAE, sampler: Sampler, step: int, config: TrainConfig, sizes: SAEConfig, constants: Constants
) -> Tensor:
    """`FVU(k) + labels_weight FVU(k_labels) + what config.loss adds + start_weight (1 - mean_i <d_i, d_i at start>)`.

    The first three are over rows, list queries and their documents.

    The two FVUs read one sorted code at two lengths (multi-TopK), so that the strongest few latents learn to stand on
    their own: what makes them nameable where nothing refines a code and no start is kept to. Each document of the
    step's lists is encoded once. All losses see the same rows, so that a comparison compares the losses.
    """
    chosen = sampler.draw_queries(step, config.list_queries)
    unique, place = torch.unique(sampler.lists[chosen], return_inverse=True)
    parts = [sampler.rows[sampler.draw_rows(step, config.batch_size)], sampler.queries[chosen]]
    parts.append(sampler.documents[unique])
    batch = torch.cat(parts).to(model.mu.device)
    values, indices = model.encode(batch, sizes.k)
    lengths = (sizes.k_labels, sizes.k) if config.labels_weight and sizes.k_labels < sizes.k else (sizes.k,)
    *named, x_hat = model.decode_prefixes(values, indices, lengths)
    loss = fraction_unexplained(batch, x_hat, constants.variance)
    for part in named:
        loss = loss + config.labels_weight * fraction_unexplained(batch, part, constants.variance)
    counts = [len(part) for part in parts]
    (_, q, documents), (_, q_hat, documents_hat) = torch.split(batch, counts), torch.split(x_hat, counts)
    loss = loss + _added(config, _Lists(q, documents, q_hat, documents_hat, place.to(batch.device)), constants)
    # Directions of random starts mean nothing: there is nothing to stay near.
    if config.start_weight and config.init != "random":
        loss = loss + config.start_weight * (1 - model.alignment_with_start())
    return loss


class _Lists(NamedTuple):
    """The list queries of a step, the documents of all their lists, the reconstructions of both, and whose are whose.

    `place` is (Q, L), positions in `documents`.
    """

    q: Tensor
    documents: Tensor
    q_hat: Tensor
    documents_hat: Tensor
    place: Tensor


def _added(config: TrainConfig, lists: _Lists, constants: Constants) -> Tensor:
    """What a loss has beside the FVU."""
    q, documents, q_hat, documents_hat, place = lists
    if config.loss == "rkl":
        # Reconstructions are searched by cosine, so their lengths are no part of what is compared.
        reconstructed = functional.normalize(q_hat, dim=1) @ functional.normalize(documents_hat, dim=1).T
        return config.rkl_weight * relative_kl(q @ documents.T, reconstructed, constants.temperature)
    if config.loss == "mse-queries":
        return fraction_unexplained(q, q_hat, constants.variance)
    if config.loss == "mse":
        return q.new_zeros(())
    d = q.shape[1]
    scores, reconstructed = (q @ documents.T).gather(1, place), (q_hat @ documents_hat.T).gather(1, place)
    divergence = printed_kl(scores, reconstructed) if config.loss == "eq2" else released_kl(scores, reconstructed, d)
    # The paper adds it to an MSE, a mean over dimensions: FVU = MSE d / V.
    return d / constants.variance * divergence


def paper_objective(model: FittingSAE, sampler: Sampler, step: int, config: TrainConfig, sizes: SAEConfig) -> Tensor:
    """Eq. 2 of arXiv 2411.00786 as printed, over queries and their lists (Appendix A)."""
    chosen = sampler.draw_queries(step, config.batch_size)
    unique, place = torch.unique(sampler.lists[chosen], return_inverse=True)
    device = model.mu.device
    q, documents, place = sampler.queries[chosen].to(device), sampler.documents[unique].to(device), place.to(device)
    reconstructed = model.decode(*model.encode(torch.cat([q, documents]), sizes.k))
    q_hat, documents_hat = torch.split(reconstructed, [len(q), len(unique)])
    return paper_loss(q, q_hat, documents[place], documents_hat[place])
