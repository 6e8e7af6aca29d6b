"""Losses of a fit: variance and ranking lost by the reconstructions, and the loss of one step."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.sampling import Sampler
from sae_steer_retriever.train.trainable_sae import FittingSAE

# In a list of sixteen, the four or so nearest documents decide what is retrieved.
_TARGET_PERPLEXITY = 4.0


class Constants(NamedTuple):
    """Constants of a fit: V = E|x - mu|^2 over the rows, and the temperature of the relative KL."""

    variance: float
    temperature: float


def fraction_unexplained(x: Tensor, x_hat: Tensor, variance: float) -> Tensor:
    """Returns FVU = sum |x - x_hat|^2 / (B V) of (B, d) rows: 0 perfect, 1 the mean alone.

    `variance` is V = E|x - mu|^2 over the corpus, so that batches of any size agree.
    """
    return (x - x_hat).square().sum() / (len(x) * variance)


def relative_kl(scores: Tensor, reconstructed: Tensor, temperature: float) -> Tensor:
    """Returns RKL = sum_q KL(p || p_hat) / sum_q (log|D| - H(p)): 0 perfect, 1 if the scores carry no information.

    p and p_hat are the softmax of a query's scores over its list at one temperature. Unlike a plain KL it depends
    neither on the batch size, nor on the dimension, nor, to first order, on the temperature. Scores are (Q, D) dot
    products, of the original embeddings and of the reconstructions.
    """
    log_p = torch.log_softmax(scores / temperature, dim=1)
    log_p_hat = torch.log_softmax(reconstructed / temperature, dim=1)
    p = log_p.exp()
    divergence = (p * (log_p - log_p_hat)).sum()
    information = (math.log(scores.shape[1]) + (p * log_p).sum(dim=1)).sum()
    return divergence / information.clamp_min(1e-6)


def paper_loss(q: Tensor, q_hat: Tensor, documents: Tensor, documents_hat: Tensor) -> Tensor:
    """Returns Eq. 2 of arXiv 2411.00786 as printed: MSE(q) + MSE(d) + KLD.

    Squared errors are means over dimensions and rows; the paper states neither weight nor temperature. Queries are
    (Q, d) and the documents of their lists (Q, L, d).
    """
    squared = (q - q_hat).square().mean() + (documents - documents_hat).square().mean()
    return squared + printed_kl(list_scores(q, documents), list_scores(q_hat, documents_hat))


def list_scores(q: Tensor, documents: Tensor) -> Tensor:
    """(Q, L) dot products of queries (Q, d) with their own lists (Q, L, d)."""
    return torch.einsum("qd,qld->ql", q, documents)


def printed_kl(scores: Tensor, reconstructed: Tensor) -> Tensor:
    """KLD of Eq. 2 of arXiv 2411.00786 for (Q, L) list scores: softmax over each list at T = 1, mean over queries."""
    log_p, log_p_hat = torch.log_softmax(scores, dim=1), torch.log_softmax(reconstructed, dim=1)
    return (log_p.exp() * (log_p - log_p_hat)).sum(dim=1).mean()


def released_kl(scores: Tensor, reconstructed: Tensor, d: int) -> Tensor:
    """Returns the KLD as the code released with arXiv 2411.00786 computes it, for comparison only.

    Scores are divided by sqrt(d), each document's own score counts twice in its denominator (so a row sums to
    L / (L + 1)), and the divergence is summed over the batch, not averaged. It penalises the variance of the score
    errors more than it keeps an order. Scores are (Q, L), `d` is the embedding size.
    """
    log_p, log_p_hat = (
        own - torch.logaddexp(own, torch.logsumexp(own, dim=1, keepdim=True))
        for own in (scores / math.sqrt(d), reconstructed / math.sqrt(d))
    )
    return (log_p.exp() * (log_p - log_p_hat)).sum()


def choose_temperature(scores: Tensor) -> float:
    """The temperature at which (Q, L) list scores have a median perplexity of 4, or of L / 2 if that is less."""
    target = min(_TARGET_PERPLEXITY, scores.shape[1] / 2)
    low, high = 1e-4, 10.0
    for _ in range(50):
        middle = math.sqrt(low * high)
        log_p = torch.log_softmax(scores / middle, dim=1)
        perplexity = float((-(log_p.exp() * log_p).sum(dim=1)).exp().median())
        low, high = (middle, high) if perplexity < target else (low, middle)
    return math.sqrt(low * high)


def ranking_objective(
    model: FittingSAE, sampler: Sampler, step: int, config: TrainConfig, sizes: SAEConfig, constants: Constants
) -> Tensor:
    """Returns the loss of one step, for every `config.loss` but "paper".

    It is FVU(k) + labels_weight FVU(k_labels) + ranking term + start_weight (1 - mean_i <d_i, d_i at start>). The FVUs
    are over rows, list queries and the documents of their lists. `config.loss` chooses the ranking term.

    Both FVUs decode one sorted code, at two lengths (multi-TopK): the second trains the strongest few latents to
    reconstruct on their own. Each document of the step's lists is encoded once. All losses see the same rows, so that
    comparing fits compares the losses.
    """
    chosen = sampler.draw_queries(step, config.list_queries)
    unique, place = torch.unique(sampler.lists[chosen], return_inverse=True)
    rows = sampler.rows[sampler.draw_rows(step, config.batch_size)]
    parts = [rows, sampler.queries[chosen], sampler.documents[unique]]
    batch = torch.cat(parts).to(model.mu.device)
    values, indices = model.encode(batch, sizes.k)
    lengths = (sizes.k_labels, sizes.k) if config.labels_weight and sizes.k_labels < sizes.k else (sizes.k,)
    *shorter, x_hat = model.decode_prefixes(values, indices, lengths)
    loss = fraction_unexplained(batch, x_hat, constants.variance)
    for part in shorter:
        loss = loss + config.labels_weight * fraction_unexplained(batch, part, constants.variance)
    counts = [len(part) for part in parts]
    (_, q, documents), (_, q_hat, documents_hat) = torch.split(batch, counts), torch.split(x_hat, counts)
    if config.loss == "rkl":
        # Reconstructions are searched by cosine, so their lengths are not compared.
        reconstructed = functional.normalize(q_hat, dim=1) @ functional.normalize(documents_hat, dim=1).T
        loss = loss + config.rkl_weight * relative_kl(q @ documents.T, reconstructed, constants.temperature)
    elif config.loss == "mse-queries":
        loss = loss + fraction_unexplained(q, q_hat, constants.variance)
    elif config.loss in ("eq2", "released"):
        place, d = place.to(batch.device), batch.shape[1]
        scores, reconstructed = (q @ documents.T).gather(1, place), (q_hat @ documents_hat.T).gather(1, place)
        kl = printed_kl(scores, reconstructed) if config.loss == "eq2" else released_kl(scores, reconstructed, d)
        # The paper adds it to an MSE, a mean over dimensions: FVU = MSE d / V.
        loss = loss + d / constants.variance * kl
    # Random starting directions mean nothing, so there is no reason to stay near them.
    if config.start_weight and config.init != "random":
        loss = loss + config.start_weight * (1 - model.alignment_with_start())
    return loss


def paper_objective(model: FittingSAE, sampler: Sampler, step: int, config: TrainConfig, sizes: SAEConfig) -> Tensor:
    """Returns Eq. 2 of arXiv 2411.00786 as printed, over queries and their lists (Appendix A)."""
    chosen = sampler.draw_queries(step, config.batch_size)
    unique, place = torch.unique(sampler.lists[chosen], return_inverse=True)
    device = model.mu.device
    q, documents, place = sampler.queries[chosen].to(device), sampler.documents[unique].to(device), place.to(device)
    reconstructed = model.decode(*model.encode(torch.cat([q, documents]), sizes.k))
    q_hat, documents_hat = torch.split(reconstructed, [len(q), len(unique)])
    return paper_loss(q, q_hat, documents[place], documents_hat[place])
