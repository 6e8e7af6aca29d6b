"""What the features of an SAE mean, beside dictionaries that were never trained on anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_steer_retriever.corpus.passage import Corpus, Passage
from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.evaluate.frequencies import Frequencies, measure_frequencies, passage_counts
from sae_steer_retriever.evaluate.median import Median, bootstrap_median
from sae_steer_retriever.evaluate.recurrence import Recurrence, measure_recurrence
from sae_steer_retriever.features.calibration import calibrate
from sae_steer_retriever.labelling.baselines import kmeans_dictionary, random_dictionary
from sae_steer_retriever.labelling.coherence import corpus_mean, feature_coherence, group_coherence, random_groups
from sae_steer_retriever.labelling.gather_evidence import strengths
from sae_steer_retriever.labelling.keyword_labels import label_features
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.embedded_corpus import require_enough

_RANDOM_GROUPS = 2000


@dataclasses.dataclass(frozen=True)
class DictionaryMeaning:
    """What the features of one dictionary mean, read at `k_labels`.

    Attributes:
        labelled: Features with a label.
        share_labelled: The same as a share of all features.
        scored: Features whose label could be scored on passages it was not made of.
        share_scored: The same as a share of all features.
        auroc_random: Label detection AUROC against random passages, over the scored features.
        auroc_hard: The same against passages of neighbouring features.
        coherence: Mean pairwise cosine of a feature's five strongest of the given passages, over the features that
            have five. The SAE may have been fitted to them; `Recurrence` has the same on passages it was not.
        frequencies: At the reading for reconstruction, "k", and at that for names, "k_labels".
        label_scores: Each scored label's AUROC against passages of neighbouring features, for a histogram.
        shares: Of each feature, the share of the passages whose names it is among, for a histogram.
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
        """All but the figures of single features; a figure that could not be measured is null."""
        fields = dataclasses.asdict(self)
        del fields["label_scores"], fields["shares"]
        plain: dict[str, Any] = _without_nan(fields)
        return plain


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What the features of an SAE mean, and what those of untrained dictionaries of the same sizes do.

    Attributes:
        passages: How many were read.
        latents: n.
        k: Active latents, the reading for reconstruction.
        k_labels: Active latents, the reading for names, of all three dictionaries.
        seed: Of everything random.
        dictionaries: By "sae", "random" (frozen Gaussian directions) and "kmeans" (of the given passages).
        random_passages: Coherence of groups of five random passages: the zero of that scale.
        recurrence: Of dictionaries of two halves of the passages; None if it was left out.
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
        """Everything, as one JSON object; a figure that could not be measured is null."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["dictionaries"] = {name: found.to_json() for name, found in self.dictionaries.items()}
        fields["random_passages"] = dataclasses.asdict(self.random_passages)
        fields["recurrence"] = None if self.recurrence is None else dataclasses.asdict(self.recurrence)
        plain: dict[str, Any] = _without_nan(fields)
        return plain


def measure_meaning(
    sae: TopKSAE,
    passages: Sequence[Passage],
    vectors: Array,
    embedder: Embedder,
    *,
    seed: int = 0,
    recurrence_steps: int = 600,
    k_labels: int | None = None,
    progress: bool = False,
) -> Meaning:
    """Measure labels, coherence, frequencies and recurrence of an SAE, a random dictionary and k-means directions.

    Args:
        sae: The SAE.
        passages: The corpus to read it on, at least 20 passages.
        vectors: (N, d) the passages' unit embeddings.
        embedder: A caching one: it embeds labels and, for the recurrence, passages and sentences.
        seed: Of everything random.
        recurrence_steps: Steps of each of the two fits that the recurrence needs; 0 leaves it out.
        k_labels: The reading for names, if it is not to be the SAE's own; at most its `k`.
        progress: Whether to show progress bars on stderr.

    Raises:
        MismatchError: Passages and vectors differ in number, or the embedder is not the SAE's encoder.
        ArtifactError: The recurrence is wanted, and the SAE does not record how it was fitted.
        CorpusError: There are too few passages.
        ValueError: `k_labels` or `recurrence_steps` is out of range.
    """
    if len(passages) != len(vectors):
        raise MismatchError(f"{len(passages)} passages, {len(vectors)} vectors: expected one vector a passage.")
    if recurrence_steps < 0:
        raise ValueError(f"recurrence_steps = {recurrence_steps}: expected steps of a fit, or 0 to leave it out.")
    require_enough(Corpus(list(passages)))
    sae.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
    read = sae if k_labels is None else reading_at(sae, k_labels)
    dictionaries = {
        "sae": read,
        "random": random_dictionary(read, seed),
        "kmeans": kmeans_dictionary(read, vectors, seed),
    }
    found = {
        name: measure_dictionary(dictionary, passages, vectors, embedder, seed=seed)
        for name, dictionary in dictionaries.items()
    }
    groups = random_groups(len(passages), _RANDOM_GROUPS, np.random.default_rng(seed))
    recurrence = None
    if recurrence_steps:
        recurrence = measure_recurrence(
            sae,
            passages,
            vectors,
            embedder,
            steps=recurrence_steps,
            seed=seed,
            k_labels=read.config.k_labels,
            progress=progress,
        )
    return Meaning(
        passages=len(passages),
        latents=read.config.n,
        k=read.config.k,
        k_labels=read.config.k_labels,
        seed=seed,
        dictionaries=found,
        random_passages=bootstrap_median(group_coherence(groups, vectors, corpus_mean(vectors)), seed),
        recurrence=recurrence,
    )


def measure_dictionary(
    sae: TopKSAE, passages: Sequence[Passage], vectors: Array, embedder: Embedder, *, seed: int = 0
) -> DictionaryMeaning:
    """Measure one dictionary: labels and their scores, coherence, frequencies.

    Args:
        sae: The dictionary, read at its `k_labels`.
        passages: The corpus.
        vectors: (N, d) the passages' unit embeddings.
        embedder: Embeds the labels.
        seed: Of the split into passages for labels and passages for scores, and of the negatives.
    """
    n = sae.config.n
    codes = sae.encode(vectors)
    names = codes.truncate(sae.config.k_labels)
    strong = strengths(sae, vectors, names)
    # The spread of scores matters to steering, not to labels.
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


def reading_at(sae: TopKSAE, k_labels: int) -> TopKSAE:
    """The same dictionary with another reading for names.

    Args:
        sae: The dictionary.
        k_labels: From 1 to its `k`.

    Raises:
        ValueError: It is not.
    """
    if not 1 <= k_labels <= sae.config.k:
        raise ValueError(f"k_labels = {k_labels}: expected 1 to {sae.config.k}, the SAE's k.")
    config = dataclasses.replace(sae.config, k_labels=k_labels)
    return TopKSAE(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, config)


def _without_nan(value: Any) -> Any:  # noqa: ANN401 - what JSON can hold
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and value != value else value
