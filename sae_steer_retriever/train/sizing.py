"""How large a dictionary and how long a fit a corpus can bear."""

from __future__ import annotations

import math
from typing import NamedTuple

from sae_steer_retriever.train.config import TrainConfig

_PER_PASSAGE = 0.2
_SMALLEST = 64
_WIDEST_EXPANSION = 32
_STEPS = 1900


class Sizes(NamedTuple):
    """Latents, active latents per embedding, and passes over the rows."""

    latents: int
    k: int
    epochs: float


def choose_sizes(config: TrainConfig, passages: int, rows: int, d: int) -> Sizes:
    """What the settings leave open, by the size of the corpus.

    Latents: the power of two nearest to 0.2 per passage; with eight names a passage a latent then names about forty,
    enough to be labelled and to be tested, and two halves of the corpus still find many of the same. `k` is at most a
    quarter of them, unless both were given. Epochs: as many as make about 1,900 steps; what counts is steps, not
    epochs.

    Args:
        config: Settings.
        passages: Number of passages.
        rows: Number of rows fitted.
        d: Embedding size; more than 32 d latents are never useful.
    """
    if config.latents is not None:
        latents, k = config.latents, config.k
    else:
        wanted = max(_SMALLEST, min(_PER_PASSAGE * passages, _WIDEST_EXPANSION * d))
        latents = int(2 ** round(math.log2(wanted)))
        k = min(config.k, latents // 4)
    epochs = config.epochs or min(400.0, max(2.0, _STEPS * config.batch_size / rows))
    return Sizes(latents, k, epochs)
