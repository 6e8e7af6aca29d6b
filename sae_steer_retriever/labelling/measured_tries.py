"""Tries of some features of a corpus, each with how well it detects its feature in passages it was not made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.encoders.vector_rows import Vectors
from sae_steer_retriever.errors import MismatchError, UnknownFeatureError
from sae_steer_retriever.features.trie import Trie, TrieScore, detection
from sae_steer_retriever.labelling.gather_evidence import Evidence, gather_evidence, read_label_latents, strengths
from sae_steer_retriever.labelling.keyword_labels import split_halves
from sae_steer_retriever.labelling.label_scores import sample_others
from sae_steer_retriever.labelling.neuron2graph import PASSAGES, grow_tries
from sae_steer_retriever.labelling.prefix_attribution import Reading, word_reader
from sae_steer_retriever.labelling.word_substitutes import Substitutes
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE


class MeasuredTrie(NamedTuple):
    """A trie, and what it is worth.

    Attributes:
        trie: The words that carry the feature.
        score: Precision and recall on unseen passages.
        made_of: Passages that the trie was made of.
        having: Unseen passages with the feature, that it was tested on.
        lacking: Unseen passages without it, drawn at random: as many, or all there are.
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
    """Grow a trie for each feature on one half of a corpus, and test it on the other.

    The halves are those of `labels.label_features`. A passage has a feature if it is among its names.

    Args:
        sae: Whose features.
        texts: The corpus.
        vectors: (N, d) its unit embeddings.
        embedder: The SAE's encoder.
        features: Their ids.
        seed: Of the halves and of the passages without a feature; that of the SAE's training gives the halves that
            its labels were made with.
        limit: Passages of a feature that its trie is made of, the strongest; 512 at most.
        how: How words are read; see `prefixes.word_reader`.
        substitutes: Whether to try the half's own words in each other's place (`Substitutes`).

    Returns:
        By feature id, in the order given. Where no passage of a half has the feature, the trie is empty or the score
        NaN.

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
    # Before the corpus is read: it says whether the encoder can be read so at all.
    reader = word_reader(embedder, sae, how)
    names = strengths(sae, vectors, read_label_latents(sae, vectors))
    halves = split_halves(len(texts), seed)
    # Near misses are not asked for: no feature has neighbours here.
    nobody = np.empty((sae.config.n, 0), dtype=np.int64)
    seen, unseen = (gather_evidence(Codes(names.indices[half], names.values[half]), nobody) for half in halves)
    passages = {feature: halves.made_of[seen.passages(feature)[0]][:limit].tolist() for feature in chosen}
    words = Substitutes.of_texts([texts[row] for row in halves.made_of], embedder) if substitutes else None
    tries = grow_tries(texts, passages, embedder, sae, reader=reader, substitutes=words, limit=limit)
    tested = [texts[row] for row in halves.unseen]
    return {
        feature: _measured(tries[feature], len(passages[feature]), feature, unseen, tested, seed) for feature in chosen
    }


def _measured(
    trie: Trie, made_of: int, feature: int, unseen: Evidence, texts: Sequence[str], seed: int
) -> MeasuredTrie:
    having, _ = unseen.passages(feature)
    # A generator of its own: a score does not depend on which other tries are measured.
    lacking = sample_others(having, len(texts), len(having), np.random.default_rng([seed, feature]))
    score = detection(trie, [texts[row] for row in having], [texts[row] for row in lacking])
    return MeasuredTrie(trie, score, made_of, len(having), len(lacking))


__all__ = ["MeasuredTrie", "measured_tries"]
