"""Whether features come back: dictionaries made of two disjoint halves of a corpus, compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.corpus.passage import Corpus, Passage
from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.errors import ArtifactError, CorpusError
from sae_steer_retriever.evaluate.frequencies import passage_counts
from sae_steer_retriever.evaluate.median import Median, bootstrap_median
from sae_steer_retriever.labelling.baselines import kmeans_dictionary, random_dictionary
from sae_steer_retriever.labelling.coherence import corpus_mean, feature_coherence
from sae_steer_retriever.labelling.gather_evidence import strengths
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.embedded_corpus import SMALLEST_CORPUS, embed_corpus
from sae_steer_retriever.train.trainer import Trainer

SAME_FEATURE = 0.7
"""Two features are the same if the cosine of their decoder directions is above this."""

_TILE = 1024


@dataclasses.dataclass(frozen=True)
class Match:
    """How many features of two dictionaries, A and B, are the same.

    Attributes:
        forward: Share of A's live features that have a counterpart among B's.
        backward: Share of B's that have one among A's.
        best_cosine: Median over the live features of both of the cosine to the nearest one of the other.
    """

    forward: float
    backward: float
    best_cosine: float

    @property
    def mean(self) -> float:
        """The mean of both directions: the recurrence."""
        return (self.forward + self.backward) / 2


@dataclasses.dataclass(frozen=True)
class HalvesMeaning:
    """What a kind of dictionary keeps from one half of a corpus to the other.

    Attributes:
        recurrence: Share of live features with a counterpart in the dictionary of the other half, mean of both.
        match: Both directions.
        held_out_coherence: Of each dictionary's features on the other half's passages, none of which it has seen;
            features of both pooled.
    """

    recurrence: float
    match: Match
    held_out_coherence: Median


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """Dictionaries of two disjoint halves of a corpus.

    Attributes:
        steps: Of each of the two fits; fewer than a full fit has.
        passages: Of each half.
        threshold: Cosine above which two features are the same.
        dictionaries: By "sae", "random" and "kmeans".
    """

    steps: int
    passages: tuple[int, int]
    threshold: float
    dictionaries: dict[str, HalvesMeaning]


class _Half(NamedTuple):
    rows: NDArray[np.int64]
    dictionaries: dict[str, TopKSAE]


def match_features(one: TopKSAE, other: TopKSAE, vectors: Array) -> Match:
    """Compare two dictionaries by their decoder directions.

    Args:
        one: A.
        other: B, of the same embedding size.
        vectors: (N, d) passages; a feature is live if it is active in one of them.
    """
    a, b = _live(one, vectors), _live(other, vectors)
    if not len(a) or not len(b):
        return Match(float("nan"), float("nan"), float("nan"))
    forward, backward = np.empty(len(a), dtype=np.float32), np.full(len(b), -1.0, dtype=np.float32)
    for start in range(0, len(a), _TILE):
        cosines = a[start : start + _TILE] @ b.T
        forward[start : start + _TILE] = cosines.max(axis=1)
        np.maximum(backward, cosines.max(axis=0), out=backward)
    return Match(
        forward=float((forward > SAME_FEATURE).mean()),
        backward=float((backward > SAME_FEATURE).mean()),
        best_cosine=float(np.median(np.concatenate([forward, backward]))),
    )


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
    """Fit two SAEs by the recipe of `sae`, each to half of the passages and the sentences taken from them, and compare.

    The same is done for k-means directions of the rows that the two SAEs are fitted to, and for two random
    dictionaries. The two share neither text nor seed: features that recur are the corpus', not the start's. The
    sentences are those that the recipe draws with its own seed, so that a cache knows most of them.

    Args:
        sae: Whose sizes and recorded recipe are taken.
        passages: The corpus.
        vectors: (N, d) the passages' unit embeddings.
        embedder: A caching one: it is asked for all passages and sentences.
        steps: Of each fit. Two of 600 took 160 s of CPU time for SciFact's 5,183 passages (n = 2048, K = 64).
        seed: Of the halves, and of everything random in the fits.
        k_labels: The reading that coherence is measured at; the SAE's own if not given.
        progress: Whether to show progress bars on stderr.

    Raises:
        ArtifactError: The SAE has no usable record of how it was fitted.
        CorpusError: There are too few passages to halve.
    """
    if len(passages) < 2 * SMALLEST_CORPUS:
        raise CorpusError(
            f"the corpus has {len(passages)} passage(s), expected at least {2 * SMALLEST_CORPUS} to fit each half of "
            "them: add documents, or leave the recurrence out (recurrence_steps=0, --recurrence-steps 0)."
        )
    recipe = recorded_recipe(sae, steps)
    order = np.random.default_rng(seed).permutation(len(passages))
    middle = len(order) // 2
    halves = []
    for number, rows in enumerate((np.sort(order[:middle]), np.sort(order[middle:]))):
        corpus = Corpus([passages[row] for row in rows])
        own_seed = recipe.seed + 1 + 2 * seed + number
        halves.append(_Half(rows, _dictionaries(sae, corpus, recipe, embedder, own_seed, progress=progress)))
    mean = corpus_mean(vectors)
    found = {}
    for name in halves[0].dictionaries:
        match = match_features(halves[0].dictionaries[name], halves[1].dictionaries[name], vectors)
        unseen = [
            _coherence(half.dictionaries[name], vectors[other.rows], mean, k_labels)
            for half, other in (halves, halves[::-1])
        ]
        found[name] = HalvesMeaning(match.mean, match, bootstrap_median(np.concatenate(unseen), seed))
    return Recurrence(steps, (len(halves[0].rows), len(halves[1].rows)), SAME_FEATURE, found)


def recorded_recipe(sae: TopKSAE, steps: int) -> TrainConfig:
    """The settings that an SAE says it was fitted with, for another number of steps.

    Args:
        sae: The SAE.
        steps: Steps of the fit to make.

    Raises:
        ArtifactError: There is no record, or it holds a setting that is not valid.
    """
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    settings: dict[str, Any] = {name: value for name, value in sae.config.training.items() if name in known}
    if not {"loss", "init"} <= settings.keys():
        raise ArtifactError(
            f"{sae!r} does not record how it was fitted (its config holds no loss and init), expected the settings of "
            "sae-steer train: leave the recurrence out (recurrence_steps=0, --recurrence-steps 0)."
        )
    try:
        return TrainConfig(
            **{**settings, "latents": sae.config.n, "k": sae.config.k, "epochs": None, "steps": steps, "patience": 0}
        )
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"the settings that {sae!r} was fitted with cannot be used again: {error}") from error


def _dictionaries(
    sae: TopKSAE, corpus: Corpus, recipe: TrainConfig, embedder: Embedder, seed: int, *, progress: bool
) -> dict[str, TopKSAE]:
    data = embed_corpus(corpus, recipe, embedder).data
    sizes = dataclasses.replace(sae.config, training={}, metrics={})
    config = dataclasses.replace(recipe, seed=seed)
    # Steps are given, so the number of passes is not used.
    fit = Trainer(data, config, sizes, epochs=1.0).fit(progress=progress)
    return {
        "sae": fit.sae,
        "random": random_dictionary(fit.sae, seed),
        "kmeans": kmeans_dictionary(fit.sae, np.asarray(data.everything.rows), seed),
    }


def _live(sae: TopKSAE, vectors: Array) -> Array:
    """(live, d) directions of the features that are active in a passage."""
    alive: Array = sae.decoder[passage_counts(sae.encode(vectors), sae.config.n) > 0]
    return alive


def _coherence(sae: TopKSAE, vectors: Array, mean: Array, k_labels: int | None) -> NDArray[np.float64]:
    codes = sae.encode(vectors).truncate(min(k_labels or sae.config.k_labels, sae.config.k))
    return feature_coherence(strengths(sae, vectors, codes), sae.config.n, vectors, mean)
