"""Sizes of a dictionary and length of a fit for a corpus, and advice where a corpus is too small for them."""

from __future__ import annotations

import math
from typing import NamedTuple

from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.train.config import TrainConfig

_PER_PASSAGE = 0.2
_SMALLEST = 64
_WIDEST_EXPANSION = 32
_STEPS = 1900
# An adaptation keeps so many features live per passage and per active latent: fewer reconstruct badly, more separate
# similar texts (`benchmarks/adaptation.py`).
_LIVE_PER_PASSAGE, _LIVE_PER_ACTIVE = 1.0, 4
ADAPTATION_STEPS = 200
# Rules of thumb, not measured. A label latent of fewer passages has too few examples to label it and to test the label.
_ENOUGH_PASSAGES = 500
_ENOUGH_FIRINGS = 8


class Sizes(NamedTuple):
    """Latents, active latents per embedding, and passes over the rows."""

    latents: int
    k: int
    epochs: float


def choose_sizes(config: TrainConfig, passages: int, rows: int, d: int) -> Sizes:
    """Returns the sizes of a fit from scratch; the size of the corpus decides what the settings leave open.

    Latents: the power of two nearest to 0.2 per passage. With eight label latents per passage a latent then labels
    about forty passages, enough to make its label and to test it, and two halves of the corpus still share many
    features. More than 32 per dimension of the embedding are never useful. `k` is at most a quarter of the latents,
    unless both were given. Epochs: as many as make about 1,900 steps; the number of steps decides the quality, not the
    number of epochs.
    """
    if config.latents is not None:
        latents, k = config.latents, config.k
    else:
        wanted = max(_SMALLEST, min(_PER_PASSAGE * passages, _WIDEST_EXPANSION * d))
        latents = int(2 ** round(math.log2(wanted)))
        k = min(config.k, latents // 4)
    epochs = config.epochs or min(400.0, max(2.0, _STEPS * config.batch_size / rows))
    return Sizes(latents, k, epochs)


def adapted_sizes(config: TrainConfig, passages: int, rows: int, parent: SAEConfig) -> Sizes:
    """Returns the sizes of an adaptation: live features, active ones per embedding, and passes over the rows.

    If the settings do not give them, the power of two nearest to one per passage is live, at most the parent's number.
    """
    wanted = max(_LIVE_PER_ACTIVE * config.k, _LIVE_PER_PASSAGE * passages)
    live = min(parent.n, config.latents or int(2 ** round(math.log2(wanted))))
    epochs = config.epochs or (config.steps or ADAPTATION_STEPS) * config.batch_size / rows
    return Sizes(live, min(config.k, live), epochs)


def advise(passages: int, rows: int, sizes: Sizes, k_labels: int, *, latents_given: bool) -> tuple[str, ...]:
    """Returns sentences that say what suffers from the size of the corpus, and what to do; none if nothing does.

    `rows` counts passages, their query-like texts and queries. The number of latents is compared with it only if the
    user chose that number (`latents_given`).
    """
    latents, k = sizes.latents, sizes.k
    # With the k that is advised, where that is lower: following one sentence must not cause another.
    firings = _firings(passages, latents, min(k, _quarter(latents)), k_labels)
    advice = []
    if passages < _ENOUGH_PASSAGES:
        advice.append(
            f"{passages:,} passages: features will be coarse: topics rather than details. Add documents, or lower "
            "--passage-characters to get more and shorter passages."
        )
    rare = firings < _ENOUGH_FIRINGS
    crowded = latents_given and latents > rows / 2
    fitting = _fitting_latents(passages, rows, sizes, k_labels) if rare or crowded else latents
    if rare:
        advice.append(
            f"{latents:,} latents: each would label {firings:.1f} of {passages:,} passages on average, fewer than "
            f"{_ENOUGH_FIRINGS}: most latents will be too rare to get a label: {_remedy(fitting, k)}."
        )
    elif crowded:
        advice.append(
            f"{latents:,} latents for {rows:,} rows, more than one for two: many latents will memorise a single row "
            f"instead of what rows share: {_remedy(fitting, k)}."
        )
    if k > _quarter(latents):
        best = _quarter(fitting or latents)
        advice.append(
            f"k = {k}, more than a quarter of {latents:,} latents: most latents will be active in most texts and "
            f"cannot tell them apart: lower -k to {min(k, best)}."
        )
    return tuple(advice)


def _quarter(latents: int) -> int:
    """The most active latents that leave a code sparse."""
    return max(1, latents // 4)


def _firings(passages: int, latents: int, k: int, k_labels: int) -> float:
    """Mean number of passages in which a latent is a label latent."""
    return passages * min(k_labels, k) / latents


def _fitting_latents(passages: int, rows: int, sizes: Sizes, k_labels: int) -> int | None:
    """The largest power of two, below the number of latents, that needs no advice."""
    largest, latents = None, 4
    while latents < sizes.latents and latents <= rows / 2:
        if _firings(passages, latents, min(sizes.k, _quarter(latents)), k_labels) >= _ENOUGH_FIRINGS:
            largest = latents
        latents *= 2
    return largest


def _remedy(latents: int | None, k: int) -> str:
    if latents is None:
        return "add documents"
    return f"lower --latents to {latents}" + (f" and -k to {_quarter(latents)}" if k > _quarter(latents) else "")
