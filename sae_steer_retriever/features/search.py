"""Searching a catalog by a text: by keywords, by the label's meaning, and by the features of the text itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.features.calibration import Calibration
from sae_steer_retriever.features.feature import BY_PERSON, Feature
from sae_steer_retriever.features.names import stem
from sae_steer_retriever.features.text_reading import Concept
from sae_steer_retriever.sae.codes import Array

# A hub is a feature that more than this share of the passages has; in a dictionary so small that every feature is
# frequent, more than this many times the average feature's share.
HUB_FROM, _HUB_TIMES = 0.1, 4.0
# A text's relevance to a feature is its cosine with the label plus its cosine with the feature's direction. Features
# below this relevance are left out, unless the text is this near to the label alone.
_RELEVANT_FROM = 0.5
_MEANT_FROM = 0.35
# Results with a score below this share of the best one's are left out.
_SHOWN_FROM = 0.2
# Factors on the scores of weak labels and of labels that were not measured.
_WEAK, _UNMEASURED = 0.4, 0.7


class FeatureSearch:
    """Ranks features against a text."""

    def __init__(
        self, features: Sequence[Feature], calibration: Calibration, label_embeddings: Array | None = None
    ) -> None:
        """Index the keywords of the labels; see `FeatureCatalog` for the arguments."""
        self._features, self._calibration, self._label_embeddings = features, calibration, label_embeddings
        # By stem of a keyword or of one of its words: the features that have it, each with its place in the label.
        self._by_word: dict[str, dict[int, int]] = {}
        for feature in features:
            if feature.label:
                for rank, keyword in enumerate(feature.keywords):
                    for word in {stem(keyword), *map(stem, keyword.split())}:
                        self._by_word.setdefault(word, {}).setdefault(feature.id, rank)
        self._trust = np.array([_trust(feature) for feature in features])

    def find(
        self, text: str, concept: Concept | None, limit: int, include_hubs: bool, include_dead: bool
    ) -> list[Feature]:
        """Returns the features that match a text, best first; see `FeatureCatalog.search`.

        Raises:
            TypeError: `text` is not a string.
            ValueError: `limit` is below 0.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a text to look for, got {type(text).__name__}.")
        if limit < 0:
            raise ValueError(f"limit is {limit}: expected the most features to return, 0 or more.")
        if not text.strip():
            return []
        scores = self._by_words(text)
        if concept is not None:
            scores = scores + self._by_meaning(concept)
        scores = scores * self._trust
        if not include_hubs:
            scores[hubs(self._calibration)] = 0.0
        if not include_dead:
            scores[self._calibration.count == 0] = 0.0
        least = _SHOWN_FROM * scores.max(initial=0.0)
        order = np.argsort(-scores, kind="stable")[:limit]
        return [self._features[latent] for latent in order if scores[latent] > 0 and scores[latent] >= least]

    def _by_words(self, text: str) -> NDArray[np.float64]:
        """The share of the text's words that are keywords; a keyword late in its label counts less."""
        whole, words = stem(text), {stem(word) for word in text.split()}
        scores = np.zeros(len(self._features))
        for word in sorted(words | {whole}):
            share = 1.0 if word == whole else 1.0 / len(words)
            for feature, rank in self._by_word.get(word, {}).items():
                scores[feature] += share / (1.0 + rank)
        return scores

    def _by_meaning(self, concept: Concept) -> NDArray[np.float64]:
        """The text's cosine with the label plus its cosine with the feature's direction."""
        labels = self._label_embeddings
        meaning = np.zeros(len(self._features)) if labels is None else np.asarray(labels @ concept.embedding, float)
        relevance = np.maximum(meaning, 0.0) + np.maximum(concept.matches, 0.0)
        return np.where((meaning >= _MEANT_FROM) | (relevance >= _RELEVANT_FROM), relevance, 0.0)


def hubs(calibration: Calibration) -> NDArray[np.bool_]:
    """(n,) which features more than a tenth of the passages have, or in a small dictionary four times the average."""
    frequency = calibration.frequency
    return np.asarray(frequency > max(HUB_FROM, _HUB_TIMES * float(frequency.mean())), dtype=np.bool_)


def _trust(feature: Feature) -> float:
    """The factor on a feature's score, in [0, 1], by how well its label detects its passages."""
    if not feature.label:
        return 0.0
    if feature.label_by == BY_PERSON:
        return 1.0
    if feature.label_score is None:
        return _UNMEASURED
    return _WEAK * feature.label_score if feature.is_weak else feature.label_score
