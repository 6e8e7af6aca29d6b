"""From a name to the features it means: by id, label, family, keyword or meaning, and never by a guess."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import AmbiguousFeatureError, UnknownFeatureError, nearest_names, quoted
from sae_steer_retriever.features.feature import BY_PERSON, CLEAR_FROM, Feature
from sae_steer_retriever.features.names import feature_id, folded, stem
from sae_steer_retriever.features.text_reading import Concept

if TYPE_CHECKING:
    from sae_steer_retriever.features.catalog import FeatureCatalog

# Relevance is the cosine of a name with a label plus its cosine with the feature's direction. Under all-MiniLM-L6-v2
# names of what a corpus is about reach 0.85 to 1.5 with their best feature, names of what it lacks stay below 0.75.
_MEANT_FROM = 0.8
# What may be a misspelt keyword must mean something all the same to be taken at its word.
_CERTAIN_FROM = 0.95
# A label's score counts as much as relevance does; one that was not measured counts as weak.
_UNMEASURED = 0.6
# What a feature without passages would lose, and of how many passages it loses half of that: who types a word means a
# feature of many passages rather than one of the few that go furthest with the word.
_RARE_LOSES, _RARE = 0.25, 20
# A name that is itself a keyword.
_KEYWORD_BONUS = 0.2
# Features this close to the best are rivals; labels with cosines below this are unrelated.
_RIVAL_WITHIN, _RELATED_FROM = 0.1, 0.2
# A name steers at most this many features, none with less than this share of the best one's relevance.
_FAMILY_SIZE, _FAMILY_FROM = 5, 0.7
_FAMILY_PREFIX = "family:"


class Resolution(NamedTuple):
    """Which features a name means.

    Attributes:
        features: Latent ids, the strongest first.
        weights: Their shares, the largest 1.0.
        how: "id", "label", "keyword" or "meaning".
    """

    features: tuple[int, ...]
    weights: tuple[float, ...]
    how: str


class NameResolver:
    """Finds the features of one catalog by name."""

    def __init__(self, catalog: FeatureCatalog) -> None:
        """Index the catalog's labels, keywords and families.

        Args:
            catalog: Whose features.
        """
        self._catalog = catalog
        self._by_label: dict[str, list[int]] = {}
        self._by_keyword: dict[str, list[int]] = {}
        # How a keyword is written, by its stem: suggestions are words, not stems.
        self._written: dict[str, str] = {}
        for feature in catalog.features:
            if feature.label:
                self._by_label.setdefault(folded(feature.label), []).append(feature.id)
            for key, keyword in {stem(keyword): keyword for keyword in reversed(feature.keywords)}.items():
                self._by_keyword.setdefault(key, []).append(feature.id)
                self._written.setdefault(key, keyword)
        # What a person called a feature means that one, whatever else has the same label.
        for label, alike in self._by_label.items():
            own = [latent for latent in alike if catalog.features[latent].label_by == BY_PERSON]
            self._by_label[label] = own or alike
        self._by_family = {folded(family.name): family for family in catalog.families}
        rare = _RARE / (catalog.calibration.count + _RARE)
        self._trust = np.array([_trusted(feature) for feature in catalog.features]) - _RARE_LOSES * rare
        alive = catalog.calibration.count > 0
        named = np.array([bool(feature.label) for feature in catalog.features], dtype=bool) & alive
        self._weak = np.array([_is_weak(feature) for feature in catalog.features], dtype=bool) & named
        self._eligible = named & ~self._weak

    def resolve(self, name: str | int, concept: Callable[[str], Concept] | None = None) -> Resolution:
        """The features a name means.

        In order: an id (`84340`, `"#84340"`), a display name or whole label, a family (its name, or `"family:12"`),
        free text by its meaning. By meaning a feature is relevant if the text is near its label and its direction;
        the better its label detects its passages, the better. A text may mean several features: the five most relevant,
        with weights that fall as the square of relevance. A feature whose label is weak answers to its id and to its
        whole name, and to nothing else.

        Args:
            name: As the user wrote it.
            concept: Embeds and encodes a text; without it only ids, labels, families and keywords are known.

        Raises:
            UnknownFeatureError: No live feature answers to the name, or only one whose label is weak; the nearest names
                are listed.
            AmbiguousFeatureError: Several unrelated features do; they are listed.
        """
        latent = feature_id(name)
        if latent is not None:
            return self._alive([self._catalog[latent].id], "id")
        text = str(name).strip()
        key = folded(text)
        alike = self._by_label.get(key)
        if alike is not None:
            return self._alive(alike, "label")
        family = self._by_family.get(key)
        if key.startswith(_FAMILY_PREFIX):
            family = self._catalog.family(text[len(_FAMILY_PREFIX) :].strip())
        if family is not None:
            return Resolution(family.features, (1.0,) * len(family.features), "family")
        matches = self._by_keyword.get(stem(text), [])
        weak = [latent for latent in matches if self._weak[latent]]
        matches = [latent for latent in matches if not self._weak[latent]]
        if weak and not matches and concept is None:
            raise self._too_weak(text, weak[0])
        if concept is None or self._catalog.label_embeddings is None or not self._eligible.any():
            return self._resolve_by_words(text, matches)
        return self._resolve_by_meaning(text, matches, concept(text))

    def _alive(self, latents: Sequence[int], how: str) -> Resolution:
        """Those of some features that any passage has."""
        alive = [latent for latent in latents if self._catalog.calibration.count[latent] > 0][:_FAMILY_SIZE]
        if not alive:
            raise UnknownFeatureError(f"feature #{latents[0]} is dead: it is active in no passage of the corpus.")
        return Resolution(tuple(alive), (1.0,) * len(alive), how)

    def _resolve_by_words(self, text: str, matches: list[int]) -> Resolution:
        if not matches:
            raise self._unknown(text, None)
        self._refuse_unrelated(text, matches)
        ranks = {latent: self._rank_of(text, latent) for latent in matches}
        family = sorted(matches, key=lambda latent: ranks[latent])[:_FAMILY_SIZE]
        first = 1.0 + ranks[family[0]]
        return Resolution(tuple(family), tuple(first / (1.0 + ranks[latent]) for latent in family), "keyword")

    def _resolve_by_meaning(self, text: str, matches: list[int], concept: Concept) -> Resolution:
        relevance = self.relevance(concept)
        ranking = relevance + self._trust
        for latent in matches:
            ranking[latent] += _KEYWORD_BONUS
        ranking[~self._eligible] = -np.inf
        order = np.argsort(-ranking, kind="stable")
        best = int(order[0])
        if relevance[best] < self._meant_from(text):
            if matches:
                return self._resolve_by_words(text, matches)
            weak = np.where(self._weak, relevance, -np.inf)
            if weak.max() >= _MEANT_FROM:
                raise self._too_weak(text, int(weak.argmax()))
            raise self._unknown(text, concept)
        rivals = [int(latent) for latent in order[:_FAMILY_SIZE] if ranking[latent] >= ranking[best] - _RIVAL_WITHIN]
        self._refuse_unrelated(text, rivals)
        family = [
            int(latent)
            for latent in order[:_FAMILY_SIZE]
            if relevance[latent] >= _FAMILY_FROM * relevance[best] and self._related(best, int(latent))
        ]
        weights = tuple(min(1.0, float(relevance[latent] / relevance[best]) ** 2) for latent in family)
        return Resolution(tuple(family), weights, "keyword" if best in matches else "meaning")

    def relevance(self, concept: Concept) -> NDArray[np.float64]:
        """(n,) the cosine of a text with each label plus its cosine with each direction."""
        found = concept.matches.astype(np.float64)
        if self._catalog.label_embeddings is not None:
            found += self._catalog.label_embeddings @ concept.embedding
        return found

    def _meant_from(self, text: str) -> float:
        # Several words are not one keyword misspelt.
        misspelt = " " not in text and stem(text) not in self._by_keyword and bool(self._spelt_like(text, 1))
        return _CERTAIN_FROM if misspelt else _MEANT_FROM

    def _related(self, one: int, other: int) -> bool:
        labels = self._catalog.label_embeddings
        return labels is None or one == other or float(labels[one] @ labels[other]) >= _RELATED_FROM

    def _refuse_unrelated(self, text: str, rivals: Sequence[int]) -> None:
        if len(rivals) < 2:
            return
        first, *others = rivals
        unrelated = [other for other in others if not self._related(first, other)]
        if unrelated:
            options = "; ".join(f"#{latent} {self._catalog.name(latent)}" for latent in [first, *unrelated][:5])
            raise AmbiguousFeatureError(
                f"{quoted(text)} is ambiguous, it fits unrelated features: {options}. Name one by its id or its "
                "whole label."
            )

    def _too_weak(self, text: str, latent: int) -> UnknownFeatureError:
        feature = self._catalog[latent]
        return UnknownFeatureError(
            f"{quoted(text)} fits only {feature.name}, whose label does not tell its own passages from near misses "
            f"({feature.label_score:.2f}, 0.5 is chance): look at it with `sae-steer features show {latent}`, "
            f"and write '#{latent}' to steer by it all the same."
        )

    def _unknown(self, text: str, concept: Concept | None) -> UnknownFeatureError:
        spelt = self._spelt_like(text, 3)
        nearest = [f"#{feature.id} {feature.name}" for feature in self._catalog.search(text, concept=concept, limit=3)]
        if concept is not None and self._catalog.label_embeddings is not None and not nearest:
            order = np.argsort(-np.where(self._eligible, self.relevance(concept), -np.inf), kind="stable")[:3]
            nearest = [f"#{latent} {self._catalog.name(int(latent))}" for latent in order]
        message = f"unknown feature {quoted(text)}."
        if spelt:
            message += f" Did you mean {', '.join(repr(name) for name in spelt)}?"
        if nearest:
            message += f" Nearest features: {'; '.join(nearest)}."
        return UnknownFeatureError(
            f"{message} {len(self._catalog.labelled)} features have names: see `sae-steer features`."
        )

    def _spelt_like(self, text: str, limit: int) -> list[str]:
        return [self._written[key] for key in nearest_names(stem(text), self._by_keyword, limit)]

    def _rank_of(self, text: str, latent: int) -> int:
        stems = [stem(keyword) for keyword in self._catalog.features[latent].keywords]
        return stems.index(stem(text))


def _trusted(feature: Feature) -> float:
    """How well a feature's label finds its passages; a person's own name is taken at its word."""
    if feature.label_by == BY_PERSON:
        return 1.0
    return _UNMEASURED if feature.label_score is None else feature.label_score


def _is_weak(feature: Feature) -> bool:
    return feature.label_score is not None and feature.label_score < CLEAR_FROM
