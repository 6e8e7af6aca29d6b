"""Meaning of the features of an SAE, measured beside untrained dictionaries: labels, coherence, recurrence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_steer_retriever.corpus.passage import Corpus, Passage
from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.evaluate.bootstrap import Median, bootstrap_median
from sae_steer_retriever.evaluate.frequencies import Frequencies, measure_frequencies, passage_counts
from sae_steer_retriever.evaluate.recurrence import Recurrence, measure_recurrence
from sae_steer_retriever.features.calibration import calibrate
from sae_steer_retriever.labelling.baselines import kmeans_dictionary, random_dictionary
from sae_steer_retriever.labelling.coherence import corpus_mean, feature_coherence, group_coherence, random_groups
from sae_steer_retriever.labelling.gather_evidence import strengths
from sae_steer_retriever.labelling.keyword_labels import label_features
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.config import former_keys
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.embedded_corpus import require_enough

RECURRENCE_STEPS = 600
"""Steps of each of the two fits of the recurrence, unless others are asked for."""

_RANDOM_GROUPS = 2000


@dataclasses.dataclass(frozen=True)
class DictionaryMeaning:
    """Meaning of the features of one dictionary, by its label latents.

    Attributes:
        labelled: Number of features with a label.
        share_labelled: Their share of all features.
        scored: Number of features whose label could be scored on passages that it was not made from.
        share_scored: Their share of all features.
        auroc_random: Label detection AUROC against random passages, over the scored features.
        auroc_hard: The same against passages of neighbouring features.
        coherence: Mean pairwise cosine of a feature's five strongest passages, over the features with five. The SAE may
            have been fitted to these passages; `Recurrence` has the same on passages that it was not fitted to.
        frequencies: "k": over all active latents; "k_names": over the label latents.
        label_scores: AUROC of each scored label against passages of neighbouring features, for a histogram.
        shares: For each feature, the share of the passages with it as a label latent, for a histogram.
    """

    labelled: int
    share_labelled: float
    scored: int
    share_scored: float
    auroc_random: Median
    auroc_hard: Median
    coherence: Median
    frequencies: dict[str, Frequencies]
    label_scores: tuple[float, ...] = dataclasses.field(repr=False)
    shares: tuple[float, ...] = dataclasses.field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Returns all but the figures of single features; a figure that could not be measured is null."""
        fields = dataclasses.asdict(self)
        del fields["label_scores"], fields["shares"]
        return {name: _without_nan(value) for name, value in fields.items()}


@dataclasses.dataclass(frozen=True)
class Meaning:
    """Meaning of the features of an SAE, and of untrained dictionaries of the same sizes.

    Attributes:
        passages: Number of passages.
        latents: n.
        k: Active latents.
        k_labels: Label latents, the same for all three dictionaries; `k_names` in JSON.
        seed: Seed of everything random.
        dictionaries: "sae", "random" (frozen Gaussian directions) and "kmeans" (centres of the given passages).
        random_passages: Coherence of groups of five random passages: the zero of that scale.
        recurrence: Dictionaries of two halves of the passages; None if it was skipped.
    """

    passages: int
    latents: int
    k: int
    k_labels: int
    seed: int
    dictionaries: dict[str, DictionaryMeaning]
    random_passages: Median
    recurrence: Recurrence | None

    def to_json(self) -> dict[str, Any]:
        """Returns everything as one JSON object; a figure that could not be measured is null."""
        fields = dataclasses.asdict(self)
        fields["dictionaries"] = {name: found.to_json() for name, found in self.dictionaries.items()}
        return {name: _without_nan(value) for name, value in former_keys(fields).items()}


def measure_meaning(
    sae: TopKSAE,
    passages: Sequence[Passage],
    vectors: Array,
    embedder: Embedder,
    *,
    seed: int = 0,
    recurrence_steps: int = RECURRENCE_STEPS,
    k_labels: int | None = None,
    progress: bool = False,
) -> Meaning:
    """Returns labels, coherence, frequencies and recurrence of an SAE, a random dictionary and k-means directions.

    Args:
        sae: The SAE.
        passages: At least 20 passages.
        vectors: (N, d) unit embeddings of the passages.
        embedder: A `CachedEmbedder`; it embeds labels and, for the recurrence, passages and sentences.
        seed: Seed of everything random.
        recurrence_steps: Steps of each of the two fits that the recurrence needs; 0 skips it.
        k_labels: Number of label latents, if not the SAE's own; at most its `k`.
        progress: Whether to show progress bars on stderr.

    Raises:
        MismatchError: Passages and vectors differ in number, or the embedder is not the SAE's encoder.
        ArtifactError: The recurrence is asked for, and the SAE does not record how it was fitted.
        CorpusError: There are too few passages.
        ValueError: `k_labels` or `recurrence_steps` is out of range.
    """
    if len(passages) != len(vectors):
        raise MismatchError(f"{len(passages)} passages, {len(vectors)} vectors: expected one vector a passage.")
    if recurrence_steps < 0:
        raise ValueError(f"recurrence_steps = {recurrence_steps}: expected the steps of a fit, or 0 to skip it.")
    require_enough(Corpus(list(passages)))
    sae.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
    read = sae if k_labels is None else with_k_labels(sae, k_labels)
    kmeans = kmeans_dictionary(read, vectors, seed)
    dictionaries = {"sae": read, "random": random_dictionary(read, seed), "kmeans": kmeans}
    found = {
        name: measure_dictionary(one, passages, vectors, embedder, seed=seed) for name, one in dictionaries.items()
    }
    groups = random_groups(len(passages), _RANDOM_GROUPS, np.random.default_rng(seed))
    recurrence = None
    if recurrence_steps:
        options = {"steps": recurrence_steps, "seed": seed, "k_labels": read.config.k_labels}
        recurrence = measure_recurrence(sae, passages, vectors, embedder, **options, progress=progress)
    sizes = (len(passages), read.config.n, read.config.k, read.config.k_labels)
    unrelated = bootstrap_median(group_coherence(groups, vectors, corpus_mean(vectors)), seed)
    return Meaning(*sizes, seed, dictionaries=found, random_passages=unrelated, recurrence=recurrence)


def measure_dictionary(
    sae: TopKSAE, passages: Sequence[Passage], vectors: Array, embedder: Embedder, *, seed: int = 0
) -> DictionaryMeaning:
    """Returns the measurements of one dictionary: labels and their scores, coherence, frequencies.

    The arguments are those of `measure_meaning`; the seed is that of `label_features` and of the intervals.
    """
    n, codes = sae.config.n, sae.encode(vectors)
    names = codes.truncate(sae.config.k_labels)
    strong = strengths(sae, vectors, names)
    # Labels do not depend on the spread of scores, only steering does.
    calibration = calibrate([names], n, score_spread=1.0)
    ids, texts = [passage.id for passage in passages], [passage.text for passage in passages]
    report = label_features(sae, calibration, ids, texts, vectors, embedder, names=names, seed=seed)
    scores = np.array([(score.random, score.hard) for score in report.scores.values()]).reshape(-1, 2)
    return DictionaryMeaning(
        labelled=report.labelled,
        share_labelled=report.labelled / n,
        scored=report.scored,
        share_scored=report.scored / n,
        auroc_random=bootstrap_median(scores[:, 0], seed),
        auroc_hard=bootstrap_median(scores[:, 1], seed),
        coherence=bootstrap_median(feature_coherence(strong, n, vectors, corpus_mean(vectors)), seed),
        frequencies={"k": measure_frequencies(codes, n), "k_names": measure_frequencies(names, n)},
        label_scores=tuple(scores[:, 1].tolist()),
        shares=tuple((passage_counts(names, n) / len(passages)).tolist()),
    )


def with_k_labels(sae: TopKSAE, k_labels: int) -> TopKSAE:
    """Returns the same dictionary with another number of label latents.

    Raises:
        ValueError: `k_labels` is not from 1 to the dictionary's `k`.
    """
    if not 1 <= k_labels <= sae.config.k:
        raise ValueError(f"k_labels = {k_labels}: expected 1 to {sae.config.k}, the SAE's k.")
    return TopKSAE(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, dataclasses.replace(sae.config, k_labels=k_labels))


def _without_nan(value: Any) -> Any:  # noqa: ANN401 - what JSON can hold
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and value != value else value
