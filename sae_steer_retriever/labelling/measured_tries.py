"""Tries of some features, each scored on passages that it was not made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.encoders.vector_rows import Vectors
from sae_steer_retriever.errors import MismatchError, UnknownFeatureError
from sae_steer_retriever.features.trie import Trie, TrieScore, detection
from sae_steer_retriever.labelling.gather_evidence import gather_evidence, read_label_latents, strengths
from sae_steer_retriever.labelling.keyword_labels import split_halves
from sae_steer_retriever.labelling.label_scores import sample_others
from sae_steer_retriever.labelling.neuron2graph import PASSAGES, grow_tries
from sae_steer_retriever.labelling.word_attribution import Reading, word_reader
from sae_steer_retriever.labelling.word_substitutes import Substitutes
from sae_steer_retriever.sae.topk_sae import TopKSAE


class MeasuredTrie(NamedTuple):
    """A trie and its score.

    Attributes:
        trie: The words that carry the feature.
        score: Precision and recall on unseen passages.
        made_of: Number of passages that the trie was made of.
        having: Number of unseen passages with the feature.
        lacking: Number of unseen passages without it, drawn at random: as many, or all there are.
    """

    trie: Trie
    score: TrieScore
    made_of: int
    having: int
    lacking: int


def measured_tries(
    sae: TopKSAE,
    texts: Sequence[str],
    vectors: Vectors,
    embedder: Embedder,
    features: Sequence[int],
    *,
    seed: int = 0,
    limit: int = PASSAGES,
    how: Reading = "auto",
    substitutes: bool = False,
) -> dict[int, MeasuredTrie]:
    """Returns a trie for each feature, by feature id, made of one half of a corpus and tested on the other.

    The halves are those of `label_features`. A passage has a feature if it is among the passage's label latents. Where
    no passage of a half has the feature, the trie is empty or its score is NaN.

    Args:
        sae: The dictionary.
        texts: The corpus.
        vectors: (N, d) its unit embeddings.
        embedder: The SAE's encoder.
        features: Ids.
        seed: Of the halves and of the passages without a feature; the training seed gives the halves of the labels.
        limit: Passages of a feature that its trie is made of, the strongest; 512 at most.
        how: How matches are split over words; see `word_reader`.
        substitutes: Whether to try the half's own words in each other's place (`Substitutes`).

    Raises:
        MismatchError: There is not one vector a text, or the encoder's embeddings cannot be split (`how="split"`).
        UnknownFeatureError: The SAE has no such feature.
        ValueError: `limit` is not in [1, 512].
    """
    if len(vectors) != len(texts):
        raise MismatchError(f"{len(texts)} texts came with {len(vectors)} vectors: expected one each.")
    chosen = list(dict.fromkeys(features))
    unknown = [feature for feature in chosen if not 0 <= feature < sae.config.n]
    if unknown:
        raise UnknownFeatureError(f"unknown feature #{unknown[0]}: this SAE has features #0 to #{sae.config.n - 1}.")
    # Before the corpus is read: it raises if the encoder's embeddings cannot be split.
    reader = word_reader(embedder, sae, how)
    names = strengths(sae, vectors, read_label_latents(sae, vectors))
    halves = split_halves(len(texts), seed)
    # No neighbours: near misses are not needed.
    nobody = np.empty((sae.config.n, 0), dtype=np.int64)
    seen, unseen = (gather_evidence(names, nobody, half) for half in halves)
    passages = {feature: halves.made_of[seen.passages(feature)[0]][:limit].tolist() for feature in chosen}
    words = Substitutes.of_texts([texts[row] for row in halves.made_of], embedder) if substitutes else None
    tries = grow_tries(texts, passages, embedder, sae, reader=reader, substitutes=words, limit=limit)
    tested = [texts[row] for row in halves.unseen]
    found = {}
    for feature in chosen:
        having, _ = unseen.passages(feature)
        # A generator for each feature: a score does not depend on which other tries are measured.
        lacking = sample_others(having, len(tested), len(having), np.random.default_rng([seed, feature]))
        score = detection(tries[feature], [tested[row] for row in having], [tested[row] for row in lacking])
        found[feature] = MeasuredTrie(tries[feature], score, len(passages[feature]), len(having), len(lacking))
    return found
