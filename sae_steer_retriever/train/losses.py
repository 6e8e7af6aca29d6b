"""What is minimised: how much of the variance is lost, and how much of the ranking."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Of a list of sixteen, the four or so nearest documents decide what is retrieved.
_TARGET_PERPLEXITY = 4.0


def fraction_unexplained(x: Tensor, x_hat: Tensor, variance: float) -> Tensor:
    """FVU = sum |x - x_hat|^2 / (rows V), with V = E|x - mu|^2 over the corpus: 0 perfect, 1 the mean alone.

    Args:
        x: (B, d).
        x_hat: (B, d).
        variance: V, a constant of the corpus, so that batches of any size agree.
    """
    return (x - x_hat).square().sum() / (len(x) * variance)


def relative_kl(scores: Tensor, reconstructed: Tensor, temperature: float) -> Tensor:
    """RKL = sum_q KL(p || p_hat) / sum_q (log|D| - H(p)): 0 perfect, 1 if the scores carry no information.

    p and p_hat are the softmax of a query's scores over its list at one temperature. Unlike a plain KL it depends
    neither on the batch size, nor on the dimension, nor, to first order, on the temperature.

    Args:
        scores: (Q, D) dot products of the original embeddings.
        reconstructed: (Q, D) dot products of the reconstructions.
        temperature: T.
    """
    log_p = torch.log_softmax(scores / temperature, dim=1)
    log_p_hat = torch.log_softmax(reconstructed / temperature, dim=1)
    p = log_p.exp()
    divergence = (p * (log_p - log_p_hat)).sum()
    information = (math.log(scores.shape[1]) + (p * log_p).sum(dim=1)).sum()
    return divergence / information.clamp_min(1e-6)


def paper_loss(q: Tensor, q_hat: Tensor, documents: Tensor, documents_hat: Tensor) -> Tensor:
    """Eq. 2 of arXiv 2411.00786 as printed: MSE(q) + MSE(d) + KLD.

    Squared errors are means over dimensions and rows; the paper states neither weight nor temperature.

    Args:
        q: (Q, d) queries.
        q_hat: (Q, d) their reconstructions.
        documents: (Q, L, d) each query's list.
        documents_hat: (Q, L, d) their reconstructions.
    """
    squared = (q - q_hat).square().mean() + (documents - documents_hat).square().mean()
    return squared + printed_kl(list_scores(q, documents), list_scores(q_hat, documents_hat))


def list_scores(q: Tensor, documents: Tensor) -> Tensor:
    """(Q, L) dot products of queries (Q, d) with their own lists (Q, L, d)."""
    return torch.einsum("qd,qld->ql", q, documents)


def printed_kl(scores: Tensor, reconstructed: Tensor) -> Tensor:
    """The KLD of Eq. 2 of arXiv 2411.00786: softmax over each query's own list at T = 1, mean over queries.

    Args:
        scores: (Q, L) dot products of the original embeddings.
        reconstructed: (Q, L) dot products of the reconstructions.
    """
    log_p, log_p_hat = torch.log_softmax(scores, dim=1), torch.log_softmax(reconstructed, dim=1)
    return (log_p.exp() * (log_p - log_p_hat)).sum(dim=1).mean()


def released_kl(scores: Tensor, reconstructed: Tensor, d: int) -> Tensor:
    """The KLD as the code released with arXiv 2411.00786 computes it, for comparison only.

    Scores are divided by sqrt(d), each document's own score counts twice in its denominator (so a row sums to
    L / (L + 1)), and the divergence is summed over the batch, not averaged. It penalises the variance of the score
    errors more than it keeps an order.

    Args:
        scores: (Q, L) dot products of the original embeddings.
        reconstructed: (Q, L) dot products of the reconstructions.
        d: Embedding size.
    """
    log_p, log_p_hat = (_released_log_shares(part / math.sqrt(d)) for part in (scores, reconstructed))
    return (log_p.exp() * (log_p - log_p_hat)).sum()


def _released_log_shares(scores: Tensor) -> Tensor:
    return scores - torch.logaddexp(scores, torch.logsumexp(scores, dim=1, keepdim=True))


def choose_temperature(scores: Tensor) -> float:
    """The temperature at which the median perplexity of the lists is 4, or half their length if that is less.

    Args:
        scores: (Q, L) dot products of queries with their own lists.
    """
    target = min(_TARGET_PERPLEXITY, scores.shape[1] / 2)
    low, high = 1e-4, 10.0
    for _ in range(50):
        middle = math.sqrt(low * high)
        log_p = torch.log_softmax(scores / middle, dim=1)
        perplexity = float((-(log_p.exp() * log_p).sum(dim=1)).exp().median())
        low, high = (middle, high) if perplexity < target else (low, middle)
    return math.sqrt(low * high)
