"""Recurrence: the share of features that two dictionaries of disjoint halves of a corpus have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.corpus.passage import Corpus, Passage
from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.errors import ArtifactError, CorpusError
from sae_steer_retriever.evaluate.bootstrap import Median, bootstrap_median
from sae_steer_retriever.evaluate.frequencies import passage_counts
from sae_steer_retriever.labelling.baselines import kmeans_dictionary, random_dictionary
from sae_steer_retriever.labelling.coherence import corpus_mean, feature_coherence
from sae_steer_retriever.labelling.gather_evidence import strengths
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.embedded_corpus import SMALLEST_CORPUS, embed_corpus
from sae_steer_retriever.train.trainer import Trainer

SAME_FEATURE = 0.7
"""Cosine of two decoder directions above which two features count as the same."""

_TILE = 1024


@dataclasses.dataclass(frozen=True)
class Match:
    """Features that two dictionaries, A and B, have in common.

    Attributes:
        forward: Share of A's live features with a counterpart in B.
        backward: Share of B's live features with a counterpart in A.
        best_cosine: Cosine of a feature to the nearest one of the other dictionary; median over live features of both.
    """

    forward: float
    backward: float
    best_cosine: float

    @property
    def mean(self) -> float:
        """Returns the recurrence: the mean of both directions."""
        return (self.forward + self.backward) / 2


@dataclasses.dataclass(frozen=True)
class HalvesMeaning:
    """Two dictionaries of the same kind, one of each half of a corpus.

    Attributes:
        recurrence: Share of live features with a counterpart in the dictionary of the other half, mean of both.
        match: Both directions.
        held_out_coherence: Coherence of each dictionary's features on the passages of the other half, which it has not
            seen; features of both pooled.
    """

    recurrence: float
    match: Match
    held_out_coherence: Median


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """Dictionaries of two disjoint halves of a corpus.

    Attributes:
        steps: Steps of each of the two fits; a full fit has more.
        passages: Number of passages of each half.
        threshold: Cosine above which two features count as the same.
        dictionaries: "sae", "random" and "kmeans".
    """

    steps: int
    passages: tuple[int, int]
    threshold: float
    dictionaries: dict[str, HalvesMeaning]


def match_features(one: TopKSAE, other: TopKSAE, vectors: Array) -> Match:
    """Returns the features that dictionaries A and B have in common, by the cosine of their decoder directions.

    A feature is live if it is active in one of the passages, given as (N, d) vectors.
    """
    a, b = _live(one, vectors), _live(other, vectors)
    if not len(a) or not len(b):
        return Match(float("nan"), float("nan"), float("nan"))
    forward, backward = np.empty(len(a), dtype=np.float32), np.full(len(b), -1.0, dtype=np.float32)
    for start in range(0, len(a), _TILE):
        cosines = a[start : start + _TILE] @ b.T
        forward[start : start + _TILE] = cosines.max(axis=1)
        np.maximum(backward, cosines.max(axis=0), out=backward)
    best = float(np.median(np.concatenate([forward, backward])))
    return Match(float((forward > SAME_FEATURE).mean()), float((backward > SAME_FEATURE).mean()), best)


def measure_recurrence(
    sae: TopKSAE,
    passages: Sequence[Passage],
    vectors: Array,
    embedder: Embedder,
    *,
    steps: int = 600,
    seed: int = 0,
    k_labels: int | None = None,
    progress: bool = False,
) -> Recurrence:
    """Returns the features that two SAEs have in common, each fitted by the recipe of `sae` to half of the passages.

    K-means directions of the rows that the two SAEs are fitted to, and two random dictionaries, are compared the same
    way. The halves share neither text nor seed: a feature that recurs comes from the corpus, not from the start of the
    fit. The recipe draws the sentences with its own seed, so a cache knows most of them.

    Args:
        sae: Gives the sizes and the recorded recipe.
        passages: The corpus.
        vectors: (N, d) unit embeddings of the passages.
        embedder: A `CachedEmbedder`; it embeds all passages and sentences.
        steps: Steps of each fit. Two of 600 took 160 s of CPU time for SciFact's 5,183 passages (n = 2048, K = 64).
        seed: Seed of the halves, and of everything random in the fits.
        k_labels: Number of label latents for the coherence; the SAE's own if not given.
        progress: Whether to show progress bars on stderr.

    Raises:
        ArtifactError: The SAE has no usable record of how it was fitted.
        CorpusError: There are too few passages to halve.
    """
    if len(passages) < 2 * SMALLEST_CORPUS:
        raise CorpusError(
            f"the corpus has {len(passages)} passage(s), expected at least {2 * SMALLEST_CORPUS} to fit each half of "
            "them: add documents, or skip the recurrence (recurrence_steps=0, --recurrence-steps 0)."
        )
    recipe = recorded_recipe(sae, steps)
    order = np.random.default_rng(seed).permutation(len(passages))
    rows = [np.sort(half) for half in np.split(order, [len(order) // 2])]
    one, other = (
        _dictionaries(sae, Corpus([passages[row] for row in half]), recipe, embedder, recipe.seed + own, progress)
        for own, half in enumerate(rows, start=1 + 2 * seed)
    )
    mean = corpus_mean(vectors)
    found = {}
    for name in one:
        match = match_features(one[name], other[name], vectors)
        pairs = ((one, rows[1]), (other, rows[0]))
        unseen = [_coherence(fitted[name], vectors[half], mean, k_labels) for fitted, half in pairs]
        found[name] = HalvesMeaning(match.mean, match, bootstrap_median(np.concatenate(unseen), seed))
    return Recurrence(steps, (len(rows[0]), len(rows[1])), SAME_FEATURE, found)


def recorded_recipe(sae: TopKSAE, steps: int) -> TrainConfig:
    """Returns the recorded settings of an SAE's training, for another number of steps.

    Raises:
        ArtifactError: There is no record, or it holds an invalid setting.
    """
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    settings: dict[str, Any] = {name: value for name, value in sae.config.training.items() if name in known}
    if not {"loss", "init"} <= settings.keys():
        raise ArtifactError(
            f"{sae!r} does not record how it was fitted (its config holds no loss and init), expected the settings of "
            "sae-steer train: skip the recurrence (recurrence_steps=0, --recurrence-steps 0)."
        )
    sizes = {"latents": sae.config.n, "k": sae.config.k}
    try:
        return TrainConfig(**{**settings, **sizes, "epochs": None, "steps": steps, "patience": 0})
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"the settings that {sae!r} was fitted with cannot be used again: {error}") from error


def _dictionaries(
    sae: TopKSAE, corpus: Corpus, recipe: TrainConfig, embedder: Embedder, seed: int, progress: bool
) -> dict[str, TopKSAE]:
    data = embed_corpus(corpus, recipe, embedder).data
    sizes = dataclasses.replace(sae.config, training={}, metrics={})
    config = dataclasses.replace(recipe, seed=seed)
    # The steps are given: the number of passes is not used.
    fit = Trainer(data, config, sizes, epochs=1.0).fit(progress=progress)
    kmeans = kmeans_dictionary(fit.sae, np.asarray(data.everything.rows), seed)
    return {"sae": fit.sae, "random": random_dictionary(fit.sae, seed), "kmeans": kmeans}


def _live(sae: TopKSAE, vectors: Array) -> Array:
    """(live, d) directions of the features that are active in a passage."""
    return np.asarray(sae.decoder[passage_counts(sae.encode(vectors), sae.config.n) > 0])


def _coherence(sae: TopKSAE, vectors: Array, mean: Array, k_labels: int | None) -> NDArray[np.float64]:
    codes = sae.encode(vectors).truncate(min(k_labels or sae.config.k_labels, sae.config.k))
    return feature_coherence(strengths(sae, vectors, codes), sae.config.n, vectors, mean)
