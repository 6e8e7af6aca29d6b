"""Searching a catalog: which features answer to a text, by its words, by meaning and by what it activates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.features.calibration import Calibration
from sae_steer_retriever.features.feature import BY_PERSON, CLEAR_FROM, Feature
from sae_steer_retriever.features.names import stem

if TYPE_CHECKING:
    from sae_steer_retriever.features.catalog import FeatureCatalog
    from sae_steer_retriever.features.text_reading import Concept

# More passages than this have a hub, which says little of any of them; in a dictionary so small that every feature is
# frequent, more than this many times the average feature's.
HUB_FROM, _HUB_TIMES = 0.1, 4.0
# Relevance is the cosine of a text with a label plus its cosine with the feature's direction, as names are resolved;
# or the text is near the label alone. What is below both has nothing to do with the text.
_RELEVANT_FROM = 0.5
_MEANT_FROM = 0.35
# Answers weaker than this share of the best would only hide it.
_SHOWN_FROM = 0.2
# Labels that fail on near misses come later, and so do those that were measured on nothing.
_WEAK, _UNMEASURED = 0.4, 0.7


class FeatureSearch:
    """Ranks the features of one catalog against a text."""

    def __init__(self, catalog: FeatureCatalog) -> None:
        """Index the catalog's keywords.

        Args:
            catalog: Whose features.
        """
        self._catalog = catalog
        n = len(catalog)
        # By stem of a keyword, or of one of its words: which features have it, and at what place of their label.
        self._by_word: dict[str, dict[int, int]] = {}
        for feature in catalog.labelled:
            for rank, keyword in enumerate(feature.keywords):
                for word in {stem(keyword), *map(stem, keyword.split())}:
                    self._by_word.setdefault(word, {}).setdefault(feature.id, rank)
        self._trust = np.ones(n)
        for feature in catalog.features:
            self._trust[feature.id] = trust(feature)
        self._labelled = np.array([bool(feature.label) for feature in catalog.features], dtype=bool)

    def find(
        self, text: str, *, concept: Concept | None, limit: int, include_hubs: bool, include_dead: bool
    ) -> list[Feature]:
        """See `FeatureCatalog.search`.

        Raises:
            TypeError: `text` is no text.
            ValueError: `limit` is below 0.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a text to look for, got {type(text).__name__}.")
        if limit < 0:
            raise ValueError(f"limit is {limit}: expected how many features at most, 0 or more.")
        if not text.strip():
            return []
        scores = self._by_words(text)
        if concept is not None:
            scores = scores + self._by_meaning(concept)
        scores = np.where(self._labelled, scores * self._trust, 0.0)
        calibration = self._catalog.calibration
        if not include_hubs:
            scores[hubs(calibration)] = 0.0
        if not include_dead:
            scores[calibration.count == 0] = 0.0
        least = _SHOWN_FROM * scores.max(initial=0.0)
        order = np.argsort(-scores, kind="stable")[:limit]
        return [self._catalog.features[latent] for latent in order if scores[latent] > 0 and scores[latent] >= least]

    def _by_words(self, text: str) -> NDArray[np.float64]:
        """How much of the text the keywords say, each by its place in the label."""
        whole, words = stem(text), {stem(word) for word in text.split()}
        scores = np.zeros(len(self._catalog))
        for word in sorted(words | {whole}):
            share = 1.0 if word == whole else 1.0 / len(words)
            for feature, rank in self._by_word.get(word, {}).items():
                scores[feature] += share / (1.0 + rank)
        return scores

    def _by_meaning(self, concept: Concept) -> NDArray[np.float64]:
        """How near the label is to the text, and how much the text itself has of the feature."""
        labels = self._catalog.label_embeddings
        meaning = np.zeros(len(self._catalog)) if labels is None else np.asarray(labels @ concept.embedding, float)
        relevance = np.maximum(meaning, 0.0) + np.maximum(concept.matches, 0.0)
        return np.where((meaning >= _MEANT_FROM) | (relevance >= _RELEVANT_FROM), relevance, 0.0)


def hubs(calibration: Calibration) -> NDArray[np.bool_]:
    """(n,) which features more than a tenth of the passages have, or in a small dictionary four times the average."""
    frequency = calibration.frequency
    return np.asarray(frequency > max(HUB_FROM, _HUB_TIMES * float(frequency.mean())), dtype=np.bool_)


def trust(feature: Feature) -> float:
    """How much a match with a feature's label counts, in (0, 1]: by how well the label tells its passages apart."""
    if not feature.label or feature.label_by == BY_PERSON:
        return 1.0
    if feature.label_score is None:
        return _UNMEASURED
    return feature.label_score if feature.label_score >= CLEAR_FROM else _WEAK * feature.label_score


__all__ = ["HUB_FROM", "FeatureSearch", "hubs", "trust"]
