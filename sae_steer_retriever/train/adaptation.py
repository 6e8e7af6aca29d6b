"""Adapts a general SAE to a corpus: centres it there and chooses which features are live.

Every feature of the parent keeps its id, and its direction within a cosine of `trainable_sae.KEPT_COSINE`. So its label
and the policies that name it stay true. New features come after the parent's. Features that the corpus does not use
are asleep: they stay in the dictionary and are never active. A large dictionary has several similar directions for one
topic of a small corpus, and a query and its passage might each activate another one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.sae.directions import kmeans_directions
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.config import PRETRAINED, TrainConfig
from sae_steer_retriever.train.sampling import Rows, Sampler
from sae_steer_retriever.train.sizing import ADAPTATION_STEPS

# Share of the live features that is new.
_ADDED_SHARE = 0.25
# Most rows that the mean, the live features and the new directions are computed from.
_ROWS = 50_000
# Encoder bias of a feature that is asleep: below any pre-activation.
_ASLEEP = -100.0
_LR = 1e-3


class Start(NamedTuple):
    """The start of an adaptation."""

    live: TopKSAE  # the live features alone, centred at the mean of the corpus
    ids: Tensor  # (live,) their ids in the adapted SAE, ascending: the parent's first, then the new ones
    parent: TopKSAE

    @property
    def kept(self) -> int:
        """Number of live features that are the parent's."""
        return int((self.ids < self.parent.config.n).sum())

    @property
    def added(self) -> int:
        """Number of new features."""
        return len(self.ids) - self.kept

    def whole(self, live: TopKSAE) -> TopKSAE:
        """The adapted SAE: the fitted live features in their places, and the others asleep."""
        old, n = self.parent, self.parent.config.n + self.added
        room = torch.zeros((self.added, old.config.d))
        W_enc, W_dec = torch.cat([old.W_enc, room]), torch.cat([old.W_dec, room])
        b_enc = torch.full((n,), _ASLEEP)
        W_enc[self.ids], W_dec[self.ids], b_enc[self.ids] = live.W_enc, live.W_dec, live.b_enc
        config = dataclasses.replace(live.config, n=n, refine_candidates=_candidates(old, len(self.ids)))
        return TopKSAE(W_enc, b_enc, W_dec, live.b_dec, config)


def adapted_config(parent: SAEConfig, settings: Mapping[str, Any] | None = None) -> TrainConfig:
    """Returns the settings of an adaptation: few steps at a low learning rate, and the parent's K.

    `settings` are fields of `TrainConfig` that override these; `latents` is the number of live features.
    """
    given = settings or {}
    own = {"lr": _LR, **{name: getattr(parent, name) for name in ("k", "k_labels", "refine_steps")}}
    if "epochs" not in given:
        own["steps"] = ADAPTATION_STEPS
    return TrainConfig(**{**own, **given, "init": PRETRAINED})


def adapted_start(parent: TopKSAE, rows: Rows, live: int, config: TrainConfig) -> Start:
    """Returns the parent, centred at the mean of a corpus, reduced to the live features, with new ones added.

    `b_dec` becomes the mean of the corpus, so that codes no longer spend their largest values on what all passages have
    in common. Pre-activations are those of the centred embedding and keep their biases. The features with the largest
    sum of squared activations over the rows are live. The new directions are k-means centres of the rows, as in a fit
    from scratch.
    """
    sample = Sampler(rows, config.seed).sample_rows(_ROWS)
    sae_config = dataclasses.replace(
        parent.config, k=min(config.k, live), fitted_k=None, adapted_from=parent.fingerprint, training={}, metrics={}
    )
    centred = TopKSAE(parent.W_enc, parent.b_enc, parent.W_dec, sample.mean(dim=0), sae_config)
    added = round(_ADDED_SHARE * live)
    codes = centred.encode(sample.numpy())
    used = np.bincount(codes.indices.ravel(), weights=codes.values.ravel() ** 2, minlength=parent.config.n)
    ids = torch.from_numpy(np.sort(np.argsort(-used, kind="stable")[: live - added]))
    some = dataclasses.replace(sae_config, n=len(ids), refine_candidates=_candidates(parent, len(ids)))
    sae = TopKSAE(centred.W_enc[ids], centred.b_enc[ids], centred.W_dec[ids], centred.b_dec, some)
    if not added:
        return Start(sae, ids, parent)
    new = kmeans_directions(sample - sae.b_dec, added, torch.Generator().manual_seed(config.seed))
    # The new encoder rows have the median length of the others, their biases the median.
    length, bias = float(sae.W_enc.norm(dim=1).median()), float(sae.b_enc.median())
    extended = TopKSAE(
        torch.cat([sae.W_enc, length * new]),
        torch.cat([sae.b_enc, torch.full((added,), bias)]),
        torch.cat([sae.W_dec, new]),
        sae.b_dec,
        dataclasses.replace(some, n=len(ids) + added, refine_candidates=_candidates(parent, len(ids) + added)),
    )
    return Start(extended, torch.cat([ids, parent.config.n + torch.arange(added)]), parent)


def _candidates(parent: TopKSAE, live: int) -> int | None:
    """Number of latents that a refinement chooses from: none of them is asleep."""
    if not parent.config.refine_steps:
        return None
    return min(parent.config.refine_candidates or live, live)
