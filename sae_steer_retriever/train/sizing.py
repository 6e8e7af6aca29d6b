"""How large a dictionary and how long a fit a corpus can bear."""

from __future__ import annotations

import math

_FIRINGS = 0.4
_SMALLEST = 64
_WIDEST_EXPANSION = 32
_STEPS = 1900


def choose_latents(passages: int, d: int) -> int:
    """Number of latents for a corpus: the power of two nearest to 0.4 per passage.

    With eight names a passage a latent then fires about twenty times, enough to be labelled and to be tested.

    Args:
        passages: Number of passages.
        d: Embedding size; more than 32 d latents are never useful.
    """
    wanted = max(_SMALLEST, min(_FIRINGS * passages, _WIDEST_EXPANSION * d))
    return int(2 ** round(math.log2(wanted)))


def choose_epochs(rows: int, batch_size: int) -> float:
    """Passes over the rows that make about 1,900 steps: what counts is steps, not epochs."""
    return min(400.0, max(2.0, _STEPS * batch_size / rows))
