"""A general SAE adapted to a corpus: centred there, with the features that occur there awake, and some new ones.

Every feature keeps its id, and its direction within a cosine of `model.KEPT_COSINE`: what was said of it, its label and
the policies that name it, stays true. What is new comes after the parent's features. What the corpus does not use
sleeps: it stays in the dictionary and is never active, so that codes, labels and lists are of what is there. A large
dictionary has several near directions for what a small corpus says in one way, and a query and its passage each take
another.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.sae.directions import kmeans_directions
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.config import PRETRAINED, TrainConfig
from sae_steer_retriever.train.sampling import Rows, Sampler
from sae_steer_retriever.train.sizing import Sizes

# Live features for each passage, and for each that is active: fewer reconstruct badly, more tell alike texts apart
# (`benchmarks/adaptation.py`).
_LIVE_PER_PASSAGE, _LIVE_PER_ACTIVE = 1.0, 4
# Of these, the share that is new.
_ADDED_SHARE = 0.25
# Rows that the mean, the live features and the new directions are taken of.
_ROWS = 50_000
# Below any pre-activation.
_ASLEEP = -100.0
_STEPS, _LR = 200, 1e-3


class Start(NamedTuple):
    """What an adaptation starts from.

    Attributes:
        live: An SAE of the live features alone, centred in the corpus.
        ids: (live,) their ids in the adapted SAE, ascending: the parent's first, then those that are new.
        parent: The SAE that is adapted.
    """

    live: TopKSAE
    ids: Tensor
    parent: TopKSAE

    @property
    def kept(self) -> int:
        """How many of the live features are the parent's."""
        return int((self.ids < self.parent.config.n).sum())

    @property
    def added(self) -> int:
        """How many are new."""
        return len(self.ids) - self.kept

    def whole(self, live: TopKSAE) -> TopKSAE:
        """The adapted SAE: the live features, as they were fitted, in their places, and the others asleep."""
        old, n = self.parent, self.parent.config.n + self.added
        room = torch.zeros((self.added, old.config.d))
        W_enc, W_dec = torch.cat([old.W_enc, room]), torch.cat([old.W_dec, room])
        b_enc = torch.full((n,), _ASLEEP)
        W_enc[self.ids], W_dec[self.ids], b_enc[self.ids] = live.W_enc, live.W_dec, live.b_enc
        config = dataclasses.replace(live.config, n=n, refine_candidates=_candidates(old, len(self.ids)))
        return TopKSAE(W_enc, b_enc, W_dec, live.b_dec, config)


def adapted_config(parent: SAEConfig, settings: Mapping[str, Any] | None = None) -> TrainConfig:
    """Settings of an adaptation: few steps at a low rate, over which those that are given have the last word.

    Args:
        parent: Of the SAE that is adapted, whose readings are kept.
        settings: Fields of `TrainConfig`. `latents` is how many features are to be live.
    """
    readings = ("k", "k_labels", "refine_steps")
    settled = {"lr": _LR, "steps": _STEPS, **{name: getattr(parent, name) for name in readings}}
    given = {name: value for name, value in (settings or {}).items() if name != "init"}
    if "epochs" in given:
        del settled["steps"]
    return TrainConfig(**{**settled, **given, "init": PRETRAINED})


def adapted_sizes(config: TrainConfig, passages: int, rows: int, parent: SAEConfig) -> Sizes:
    """Live features, active ones per embedding, and passes over the rows.

    Live are, if settings do not say, the power of two nearest to one per passage.

    Args:
        config: Settings.
        passages: Number of passages.
        rows: Number of rows fitted.
        parent: Of the SAE that is adapted; no more features than it has are live.
    """
    wanted = max(_LIVE_PER_ACTIVE * config.k, _LIVE_PER_PASSAGE * passages)
    live = min(parent.n, config.latents or int(2 ** round(math.log2(wanted))))
    epochs = config.epochs or (config.steps or _STEPS) * config.batch_size / rows
    return Sizes(live, min(config.k, live), epochs)


def adapted_start(parent: TopKSAE, rows: Rows, live: int, config: TrainConfig) -> Start:
    """The parent, centred at a corpus' mean, with the features that the corpus uses and those that it lacks.

    With the mean of the corpus for `b_dec`, codes no longer spend their largest values on what all passages have in
    common: pre-activations are of the centred embedding, and keep their biases. Live are the features with the largest
    sum of squared activations over the rows. The new directions are k-means centres of the rows themselves, as in a fit
    from scratch: what this corpus' passages have in common can be named and found again.

    Args:
        parent: A general SAE.
        rows: What is fitted.
        live: How many features are to be live.
        config: Settings.
    """
    sample = Sampler(rows, config.seed).sample_rows(_ROWS)
    sae_config = dataclasses.replace(
        parent.config, k=min(config.k, live), fitted_k=None, adapted_from=parent.fingerprint, training={}, metrics={}
    )
    centred = TopKSAE(parent.W_enc, parent.b_enc, parent.W_dec, sample.mean(dim=0), sae_config)
    added = round(_ADDED_SHARE * live)
    ids = _most_used(centred, sample.numpy(), live - added)
    some = dataclasses.replace(sae_config, n=len(ids), refine_candidates=_candidates(parent, len(ids)))
    sae = TopKSAE(centred.W_enc[ids], centred.b_enc[ids], centred.W_dec[ids], centred.b_dec, some)
    if not added:
        return Start(sae, ids, parent)
    new = kmeans_directions(sample - sae.b_dec, added, torch.Generator().manual_seed(config.seed))
    return Start(_extended(sae, new, parent), torch.cat([ids, parent.config.n + torch.arange(added)]), parent)


def _most_used(sae: TopKSAE, rows: NDArray[Any], most: int) -> Tensor:
    """(most,) ids, ascending."""
    codes = sae.encode(rows)
    used = np.bincount(codes.indices.ravel(), weights=codes.values.ravel() ** 2, minlength=sae.config.n)
    return torch.from_numpy(np.sort(np.argsort(-used, kind="stable")[:most]))


def _candidates(parent: TopKSAE, live: int) -> int | None:
    """How many latents a refinement chooses from: never one that sleeps."""
    if not parent.config.refine_steps:
        return None
    return min(parent.config.refine_candidates or live, live)


def _extended(sae: TopKSAE, directions: Tensor, parent: TopKSAE) -> TopKSAE:
    """With features after its own, whose encoder rows are as long as the others and whose biases are as large."""
    length, bias, n = float(sae.W_enc.norm(dim=1).median()), float(sae.b_enc.median()), sae.config.n + len(directions)
    return TopKSAE(
        torch.cat([sae.W_enc, length * directions]),
        torch.cat([sae.b_enc, torch.full((len(directions),), bias)]),
        torch.cat([sae.W_dec, directions]),
        sae.b_dec,
        dataclasses.replace(sae.config, n=n, refine_candidates=_candidates(parent, n)),
    )


__all__ = ["Start", "adapted_config", "adapted_sizes", "adapted_start"]
