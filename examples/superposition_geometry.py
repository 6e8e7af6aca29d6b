"""Geometry of directions, without text: how similar they are, how many fit, and when a sum can be read back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.iterative_thresholding import refine

# Directions drawn at once.
_BATCH = 500
# More refinement steps than a query takes: nobody waits for these.
RECOVERY_STEPS = 30
CLOSE = 0.2
"""Two directions are nearly orthogonal if the absolute cosine is below this."""


class Cosines(NamedTuple):
    """Similarity of the rows of a dictionary.

    Attributes:
        pairs: Cosines of all pairs within a sample.
        nearest: Cosine of each sampled row with the nearest of all rows.
    """

    pairs: Array
    nearest: Array

    @property
    def close(self) -> float:
        """Share of the pairs that are not nearly orthogonal."""
        return float((np.abs(self.pairs) >= CLOSE).mean())


def cosines(directions: Array, sample: int = 1_000, seed: int = 0) -> Cosines:
    """Returns the cosines within a sample of unit rows, and of each sampled row with the nearest of all rows.

    Args:
        directions: (n, d), unit rows.
        sample: Size of the sample.
        seed: Seed of the sample.
    """
    rows = np.random.default_rng(seed).permutation(len(directions))[:sample]
    every = directions[rows] @ directions.T
    within = every[:, rows]
    every[np.arange(len(rows)), rows] = -1.0
    return Cosines(within[np.triu_indices(len(rows), 1)], every.max(axis=1))


def directions_that_fit(d: int, drawn: int = 20_000, limit: float = CLOSE, seed: int = 0) -> int:
    """Returns how many random directions fit: each is kept if its cosines with all kept ones stay below the limit.

    Args:
        d: Dimensions.
        drawn: Number of directions tried.
        limit: Limit of the absolute cosine.
        seed: Seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = torch.empty((drawn, d))
    count = 0
    for start in range(0, drawn, _BATCH):
        tried = torch.nn.functional.normalize(torch.randn((min(_BATCH, drawn - start), d), generator=generator), dim=1)
        tried = tried[(tried @ kept[:count].T).abs().amax(dim=1) < limit] if count else tried
        among = (tried @ tried.T).abs() >= limit
        chosen: list[int] = []
        for place in range(len(tried)):
            if not among[place, chosen].any():
                chosen.append(place)
        kept[count : count + len(chosen)] = tried[chosen]
        count += len(chosen)
    return count


def plant(n: int, k: int, trials: int, seed: int = 0) -> Tensor:
    """(trials, k) features drawn without repeats."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(n, generator=generator)[:k] for _ in range(trials)])


def recovered(directions: Tensor, planted: Tensor, steps: int = RECOVERY_STEPS, seed: int = 0) -> NDArray[np.float64]:
    """Returns, for each trial, the share of the planted features that are recovered from their sum.

    Each is added with a random amount from .5 to 1.5. Without steps, the features with the largest products with it
    are taken; with steps, the package's refinement starts from these.

    Args:
        directions: (n, d), unit rows.
        planted: (trials, k) features.
        steps: Steps of the refinement.
        seed: Seed of the amounts.
    """
    k = planted.shape[1]
    amounts = 0.5 + torch.rand(planted.shape, generator=torch.Generator().manual_seed(seed))
    sums = (amounts[:, :, None] * directions[planted]).sum(dim=1)
    found = (sums @ directions.T).topk(k, dim=1).indices
    if steps:
        found, values = refine(sums, directions, found, torch.zeros(found.shape), steps)
        found = found.masked_fill(values <= 0, -1)
    hits = (found[:, :, None] == planted[:, None, :]).any(dim=1).sum(dim=1)
    shares: NDArray[np.float64] = hits.numpy() / k
    return shares


class Recovery(NamedTuple):
    """Features recovered from sums of K features, mean over trials.

    Attributes:
        name: Name of the method.
        counts: The values of K.
        shares: Share of the planted features that is found, for each K.
    """

    name: str
    counts: tuple[int, ...]
    shares: tuple[float, ...]

    @property
    def readable(self) -> int:
        """The largest K with at least nine in ten found; 0 if there is none."""
        return max((k for k, share in zip(self.counts, self.shares, strict=True) if share >= 0.9), default=0)


def recovery_curves(decoder: Array, random: Array, counts: Sequence[int], trials: int) -> tuple[Recovery, ...]:
    """Returns the recovery as K grows, for the features of a random dictionary and of an SAE.

    Args:
        decoder: (n, d) the SAE's directions.
        random: (n, d) random unit directions.
        counts: The values of K.
        trials: Sums for each K.
    """
    own, drawn = torch.from_numpy(decoder.copy()), torch.from_numpy(random.copy())
    n = len(own)

    def curve(name: str, directions: Tensor, steps: int) -> Recovery:
        shares = (float(recovered(directions, plant(n, k, trials), steps).mean()) for k in counts)
        return Recovery(name, tuple(counts), tuple(shares))

    return (
        curve("random directions, refinement", drawn, RECOVERY_STEPS),
        curve("random directions, largest products", drawn, 0),
        curve("this SAE's, refinement", own, RECOVERY_STEPS),
        curve("this SAE's, largest products", own, 0),
    )
