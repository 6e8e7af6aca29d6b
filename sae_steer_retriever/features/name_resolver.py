"""From a name to the features it means: by id, label, family, keyword or meaning; unclear names are errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import AmbiguousFeatureError, UnknownFeatureError, nearest_names, quoted
from sae_steer_retriever.features.feature import BY_PERSON, Family, Feature
from sae_steer_retriever.features.names import feature_id, folded, stem
from sae_steer_retriever.features.text_reading import Concept
from sae_steer_retriever.sae.codes import Array

# A name's relevance to a feature is its cosine with the label plus its cosine with the feature's direction. Under
# all-MiniLM-L6-v2 names of what a corpus is about reach 0.85 to 1.5 with their best feature, names of what it lacks
# stay below 0.75.
_MEANT_FROM = 0.8
# A name that may be a misspelt keyword needs a higher relevance.
_CERTAIN_FROM = 0.95
# Features are ranked by relevance plus label score; this stands for a score that was not measured.
_UNMEASURED = 0.6
# Features of few passages rank lower: by _RARE_LOSES at no passages, by half of it at _RARE passages.
_RARE_LOSES, _RARE = 0.25, 20
# Added to the rank of a feature that has the name as a keyword.
_KEYWORD_BONUS = 0.2
# Features ranked this close to the best are rivals; labels with a cosine below _RELATED_FROM are unrelated.
_RIVAL_WITHIN, _RELATED_FROM = 0.1, 0.2
# A name means at most this many features, none with less than this share of the best one's relevance.
_MOST_FEATURES, _SHARE_FROM = 5, 0.7
_FAMILY_PREFIX = "family:"


class Resolution(NamedTuple):
    """The features that a name means.

    Attributes:
        features: Latent ids, the most relevant first.
        weights: Their shares, the largest 1.0.
        how: "id", "label", "family", "keyword" or "meaning".

    Example:
        >>> catalog.resolve(catalog.labelled[0].id).how
        'id'
    """

    features: tuple[int, ...]
    weights: tuple[float, ...]
    how: str


class NameResolver:
    """Finds features by name."""

    def __init__(
        self,
        features: Sequence[Feature],
        count: NDArray[np.int64],
        families: Sequence[Family] = (),
        label_embeddings: Array | None = None,
        nearest: Callable[[str, Concept | None], Sequence[Feature]] = lambda text, concept: (),
    ) -> None:
        """Index labels, keywords and families; see `FeatureCatalog`.

        `count` (n,) is `Calibration.count`; `nearest` finds the features that the error for an unknown name suggests.
        """
        self._features, self._count, self._families = features, count, families
        self._label_embeddings, self._nearest = label_embeddings, nearest
        self._by_label: dict[str, list[int]] = {}
        self._by_keyword: dict[str, list[int]] = {}
        # A keyword's spelling by its stem: suggestions are words, not stems.
        self._written: dict[str, str] = {}
        for feature in features:
            if feature.label:
                self._by_label.setdefault(folded(feature.label), []).append(feature.id)
            for key, keyword in {stem(keyword): keyword for keyword in reversed(feature.keywords)}.items():
                self._by_keyword.setdefault(key, []).append(feature.id)
                self._written.setdefault(key, keyword)
        # A label by a person wins over the same label by anything else.
        for label, alike in self._by_label.items():
            own = [latent for latent in alike if features[latent].label_by == BY_PERSON]
            self._by_label[label] = own or alike
        self._by_family = {folded(family.name): family for family in families}
        self._trust = np.array([_trust(feature) for feature in features]) - _RARE_LOSES * (_RARE / (count + _RARE))
        named = np.array([bool(feature.label) for feature in features], dtype=bool) & (count > 0)
        self._weak = np.array([feature.is_weak for feature in features], dtype=bool) & named
        self._eligible = named & ~self._weak

    def resolve(self, name: str | int, concept: Callable[[str], Concept] | None = None) -> Resolution:
        """The features that a name means; see `FeatureCatalog.resolve`."""
        latent = feature_id(name)
        if latent is not None:
            return self._alive([find_feature(self._features, latent).id], "id")
        text = str(name).strip()
        key = folded(text)
        if key in self._by_label:
            return self._alive(self._by_label[key], "label")
        family = self._by_family.get(key)
        if key.startswith(_FAMILY_PREFIX):
            family = find_family(self._families, text[len(_FAMILY_PREFIX) :].strip())
        if family is not None:
            return Resolution(family.features, (1.0,) * len(family.features), "family")
        matches = self._by_keyword.get(stem(text), [])
        weak = [latent for latent in matches if self._weak[latent]]
        matches = [latent for latent in matches if not self._weak[latent]]
        if weak and not matches and concept is None:
            raise self._too_weak(text, weak[0])
        if concept is None or self._label_embeddings is None or not self._eligible.any():
            return self._resolve_by_words(text, matches)
        return self._resolve_by_meaning(text, matches, concept(text))

    def _alive(self, latents: Sequence[int], how: str) -> Resolution:
        alive = [latent for latent in latents if self._count[latent] > 0][:_MOST_FEATURES]
        if not alive:
            raise UnknownFeatureError(f"feature #{latents[0]} is dead: it is active in no passage of the corpus.")
        return Resolution(tuple(alive), (1.0,) * len(alive), how)

    def _resolve_by_words(self, text: str, matches: list[int]) -> Resolution:
        if not matches:
            raise self._unknown(text, None)
        self._refuse_unrelated(text, matches)
        # A keyword's place in the label.
        ranks = {latent: list(map(stem, self._features[latent].keywords)).index(stem(text)) for latent in matches}
        meant = sorted(matches, key=ranks.__getitem__)[:_MOST_FEATURES]
        first = 1.0 + ranks[meant[0]]
        return Resolution(tuple(meant), tuple(first / (1.0 + ranks[latent]) for latent in meant), "keyword")

    def _resolve_by_meaning(self, text: str, matches: list[int], concept: Concept) -> Resolution:
        relevance = self._relevance(concept)
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
        first = order[:_MOST_FEATURES].tolist()
        self._refuse_unrelated(text, [one for one in first if ranking[one] >= ranking[best] - _RIVAL_WITHIN])
        least = _SHARE_FROM * relevance[best]
        meant = [one for one in first if relevance[one] >= least and self._related(best, one)]
        weights = tuple(min(1.0, float(relevance[latent] / relevance[best]) ** 2) for latent in meant)
        return Resolution(tuple(meant), weights, "keyword" if best in matches else "meaning")

    def _relevance(self, concept: Concept) -> NDArray[np.float64]:
        """(n,) the cosine of a text with each label plus its cosine with each direction."""
        found = concept.matches.astype(np.float64)
        if self._label_embeddings is not None:
            found += self._label_embeddings @ concept.embedding
        return found

    def _meant_from(self, text: str) -> float:
        # Several words are not one keyword misspelt.
        misspelt = " " not in text and stem(text) not in self._by_keyword and bool(self._spelt_like(text, 1))
        return _CERTAIN_FROM if misspelt else _MEANT_FROM

    def _related(self, one: int, other: int) -> bool:
        labels = self._label_embeddings
        return labels is None or one == other or float(labels[one] @ labels[other]) >= _RELATED_FROM

    def _refuse_unrelated(self, text: str, rivals: Sequence[int]) -> None:
        unrelated = [other for other in rivals[1:] if not self._related(rivals[0], other)]
        if unrelated:
            options = "; ".join(f"#{latent} {self._features[latent].name}" for latent in [rivals[0], *unrelated][:5])
            problem = f"{quoted(text)} is ambiguous, it fits unrelated features: {options}"
            raise AmbiguousFeatureError(f"{problem}. Name one by its id or its whole label.")

    def _too_weak(self, text: str, latent: int) -> UnknownFeatureError:
        feature = self._features[latent]
        return UnknownFeatureError(
            f"{quoted(text)} fits only {feature.name}, whose label does not tell its own passages from near misses "
            f"({feature.label_score:.2f}, 0.5 is chance): look at it with `sae-steer features show {latent}`, "
            f"and write '#{latent}' to steer by it all the same."
        )

    def _unknown(self, text: str, concept: Concept | None) -> UnknownFeatureError:
        spelt = self._spelt_like(text, 3)
        nearest = [f"#{feature.id} {feature.name}" for feature in self._nearest(text, concept)]
        if concept is not None and self._label_embeddings is not None and not nearest:
            order = np.argsort(-np.where(self._eligible, self._relevance(concept), -np.inf), kind="stable")[:3]
            nearest = [f"#{latent} {self._features[latent].name}" for latent in order]
        message = f"unknown feature {quoted(text)}."
        message += f" Did you mean {', '.join(map(repr, spelt))}?" if spelt else ""
        message += f" Nearest features: {'; '.join(nearest)}." if nearest else ""
        named = sum(bool(one.label) for one in self._features)
        return UnknownFeatureError(f"{message} {named} features have names: see `sae-steer features`.")

    def _spelt_like(self, text: str, limit: int) -> list[str]:
        return [self._written[key] for key in nearest_names(stem(text), self._by_keyword, limit)]


def _trust(feature: Feature) -> float:
    """A label's score; 1.0 for a person's label."""
    if feature.label_by == BY_PERSON:
        return 1.0
    return _UNMEASURED if feature.label_score is None else feature.label_score


def find_feature(features: Sequence[Feature], latent: int) -> Feature:
    """Returns the feature with an id.

    Raises:
        TypeError: `latent` is not a whole number.
        UnknownFeatureError: There is no such feature.
    """
    if not isinstance(latent, int | np.integer):
        raise TypeError(f"a feature's id is a whole number, got {type(latent).__name__}; `resolve` takes names.")
    if not 0 <= latent < len(features):
        raise UnknownFeatureError(f"unknown feature #{latent}: this SAE has features #0 to #{len(features) - 1}.")
    return features[latent]


def find_family(families: Sequence[Family], name: str | int) -> Family:
    """Returns the family with a name or number.

    Raises:
        TypeError: `name` is neither a number nor a text.
        UnknownFeatureError: There is no such family; the nearest names are listed.
    """
    number, key = feature_id(name), folded(str(name))
    for family in families:
        if family.id == number or key == folded(family.name):
            return family
    if not families:
        raise UnknownFeatureError(f"unknown family {quoted(name)}: this catalog was made without families.")
    names = {folded(family.name): family.name for family in families}
    near = [names[spelt] for spelt in nearest_names(key, names, 3)]
    words = set(key.replace(",", " ").split())
    sharing = [name for spelt, name in names.items() if words & set(spelt.replace(",", " ").split())]
    near += [name for name in sharing if name not in near][:3]
    hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
    raise UnknownFeatureError(
        f"unknown family {quoted(name)}.{hint} There are {len(families)}: see `sae-steer features families`."
    )
