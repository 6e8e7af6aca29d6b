"""What needs no text: how near directions are to each other, how many fit, and when a sum of some can be read back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.iterative_thresholding import pursue

# Directions that are drawn at once.
_BATCH = 500
# Of a refinement that nobody waits for; a query's takes fewer.
RECOVERY_STEPS = 30
CLOSE = 0.2
"""Two directions are nearly orthogonal if the size of their cosine is below this."""


class Cosines(NamedTuple):
    """How near the rows of a dictionary are to each other.

    Attributes:
        pairs: Cosines of all pairs of a sample.
        nearest: Of each of the sample, the cosine with its nearest of all rows.
    """

    pairs: Array
    nearest: Array

    @property
    def close(self) -> float:
        """Share of the pairs that are not nearly orthogonal."""
        return float((np.abs(self.pairs) >= CLOSE).mean())


def cosines(directions: Array, sample: int = 1_000, seed: int = 0) -> Cosines:
    """Cosines within a sample of unit rows, and of the sample with its nearest among all rows.

    Args:
        directions: (n, d), unit rows.
        sample: How many rows are looked at.
        seed: Of the draw.
    """
    rows = np.random.default_rng(seed).permutation(len(directions))[:sample]
    every = directions[rows] @ directions.T
    within = every[:, rows]
    every[np.arange(len(rows)), rows] = -1.0
    return Cosines(within[np.triu_indices(len(rows), 1)], every.max(axis=1))


def directions_that_fit(d: int, drawn: int = 20_000, limit: float = CLOSE, seed: int = 0) -> int:
    """How many random directions are kept if each is refused whose cosine with one already kept reaches the limit.

    Args:
        d: Dimensions.
        drawn: How many are tried.
        limit: Of the cosine's size.
        seed: Of the draws.
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
    """Share of planted features that are among as many read back from their sum, for each trial.

    Amounts are drawn evenly from .5 to 1.5. Without steps the features of the largest products with the sum are read;
    with steps the package's refinement starts from these.

    Args:
        directions: (n, d), unit rows.
        planted: (trials, k) features.
        steps: Of the refinement.
        seed: Of the amounts.
    """
    k = planted.shape[1]
    amounts = 0.5 + torch.rand(planted.shape, generator=torch.Generator().manual_seed(seed))
    sums = (amounts[:, :, None] * directions[planted]).sum(dim=1)
    found = (sums @ directions.T).topk(k, dim=1).indices
    if steps:
        found, values = pursue(sums, directions, found, torch.zeros(found.shape), steps)
        found = found.masked_fill(values <= 0, -1)
    hits = (found[:, :, None] == planted[:, None, :]).any(dim=1).sum(dim=1)
    shares: NDArray[np.float64] = hits.numpy() / k
    return shares


class Recovery(NamedTuple):
    """What is read back from sums of K features, mean over trials.

    Attributes:
        name: Of the way.
        counts: The K.
        shares: For each the share of the planted features that is found.
    """

    name: str
    counts: tuple[int, ...]
    shares: tuple[float, ...]

    @property
    def readable(self) -> int:
        """The largest K with at least nine in ten found; 0 if there is none."""
        return max((k for k, share in zip(self.counts, self.shares, strict=True) if share >= 0.9), default=0)


def recovery_curves(decoder: Array, random: Array, counts: Sequence[int], trials: int) -> tuple[Recovery, ...]:
    """Recovery as K grows, of a random dictionary's and of an SAE's features.

    Args:
        decoder: (n, d) the SAE's directions.
        random: (n, d) random unit directions.
        counts: The K.
        trials: Sums for each.
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


__all__ = [
    "CLOSE",
    "RECOVERY_STEPS",
    "Cosines",
    "Recovery",
    "cosines",
    "directions_that_fit",
    "plant",
    "recovered",
    "recovery_curves",
]
