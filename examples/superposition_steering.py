"""Steers ambiguous questions to one meaning, and compares that with adding a word to the question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from superposition_texts import SENSES, Sense, question

from sae_steer_retriever import AmbiguousFeatureError, Hit, SteeredRetriever, UnknownFeatureError

STRENGTHS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
# As many as a meaning has sentences, so that all places can be right.
PLACES = 8


class Steered(NamedTuple):
    """One question, asked once for each strength.

    Attributes:
        group: Place of the wanted meaning in `SENSES`.
        rankings: For each strength the ids of all sentences, best first.
        shares: For each strength the share of the first eight hits that have the wanted meaning.
        kept: For each strength the mean unsteered score of the first eight, divided by that of the unsteered search.
        appended: The share if the meaning is added to the question instead.
        appended_kept: The kept score if the meaning is added to the question instead.
        error: Largest difference between a score and the sum of its parts.
    """

    group: int
    rankings: tuple[tuple[str, ...], ...]
    shares: tuple[float, ...]
    kept: tuple[float, ...]
    appended: float
    appended_kept: float
    error: float


class Benefit(NamedTuple):
    """The results of all questions.

    Attributes:
        steered: Questions for whose meaning the SAE has features.
        unnamed: Meanings without features.
    """

    steered: tuple[Steered, ...]
    unnamed: tuple[Sense, ...]

    def mean(self, field: str) -> tuple[float, ...]:
        """Mean over the questions of `shares`, `kept`, `appended` or `appended_kept`."""
        rows = [np.atleast_1d(getattr(one, field)) for one in self.steered]
        return tuple(np.mean(rows, axis=0).tolist())

    @property
    def error(self) -> float:
        """Largest difference between a score and the sum of its parts, over all hits."""
        return max(one.error for one in self.steered)

    @property
    def clearest(self) -> Steered:
        """The question whose first eight gain most from +0.5."""
        return max(self.steered, key=lambda one: one.shares[STRENGTHS.index(0.5)] - one.shares[0])


def sentence_ids() -> list[str]:
    """An id for every sentence: place of its meaning / its own place."""
    return [f"{group}/{place}" for group, sense in enumerate(SENSES) for place in range(len(sense.sentences))]


def group_of(sentence_id: str) -> int:
    """The place of a sentence's meaning in `SENSES`."""
    return int(sentence_id.partition("/")[0])


def steer_all(retriever: SteeredRetriever) -> Benefit:
    """Ask about every word, once for each meaning that has features."""
    steered, unnamed = [], []
    for group, sense in enumerate(SENSES):
        try:
            retriever.resolve_name(sense.meaning)
        except (UnknownFeatureError, AmbiguousFeatureError):
            unnamed.append(sense)
        else:
            steered.append(_steer(retriever, group))
    return Benefit(tuple(steered), tuple(unnamed))


def _steer(retriever: SteeredRetriever, group: int) -> Steered:
    sense, everything = SENSES[group], sum(len(one.sentences) for one in SENSES)
    asked = question(sense.word)
    plain = {hit.id: hit.score for hit in retriever.search(asked, k=everything, explain=False)}
    best = float(np.mean(sorted(plain.values(), reverse=True)[:PLACES]))
    rankings, errors = [], []
    for strength in STRENGTHS:
        steer = {sense.meaning: strength} if strength else None
        hits = retriever.search(asked, k=everything, steer=steer, explain=False)
        explained = retriever.search(asked, k=PLACES, steer=steer)
        errors.append(max(_error(hit) for hit in explained))
        rankings.append(tuple(hit.id for hit in hits))
    appended = [hit.id for hit in retriever.search(f"{asked} {sense.meaning}", k=PLACES, explain=False)]
    return Steered(
        group,
        tuple(rankings),
        tuple(_share(ids, group) for ids in rankings),
        tuple(_kept(ids, plain, best) for ids in rankings),
        _share(appended, group),
        _kept(appended, plain, best),
        max(errors),
    )


def _share(ids: Sequence[str], group: int) -> float:
    return float(np.mean([group_of(one) == group for one in ids[:PLACES]]))


def _kept(ids: Sequence[str], plain: dict[str, float], best: float) -> float:
    return float(np.mean([plain[one] for one in ids[:PLACES]])) / best


def _error(hit: Hit) -> float:
    assert hit.attribution is not None  # it is asked for
    return abs(hit.attribution.total - hit.score)
