"""Labels by a language model, for features that have keyword labels already: better words where it finds any."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.evidence import Example, FeatureEvidence
from sae_steer_retriever.features.feature import BY_PERSON, LabelScore
from sae_steer_retriever.labelling.label_cache import LabelCache
from sae_steer_retriever.labelling.label_filters import (
    COMPLAINTS,
    Rejection,
    central_labels,
    generic_keywords,
    keywords_of,
    without_generic,
)
from sae_steer_retriever.labelling.label_prompt import PASSAGE_CHARACTERS, LabelPrompt, label_prompt
from sae_steer_retriever.labelling.label_results import LabelFailure, LabellingResult
from sae_steer_retriever.labelling.language_model import Failure, LanguageModel
from sae_steer_retriever.sae.codes import Array

Embed = Callable[[Sequence[str]], Array]
"""(m, d) unit vectors of texts, e.g. an embedder's `embed_queries`."""
Score = Callable[[int, Array], LabelScore | None]
"""How well a label, given as its (d,) unit vector, detects a feature's passages; e.g. `scoring.score_label`."""
Progress = Callable[[int, int], None]
"""Is told how many prompts have been answered, of how many so far."""

_TOP, _MIDDLE, _NEAR_MISSES = 8, 6, 8
# Prompts that are given to the model at once; a kill loses the replies of as many.
_BATCH = 32
# So many prompts in a row without a reply, and the model is not asked any more: a wrong key answers nothing.
_GIVE_UP_AFTER = 32


def label_prompts(
    catalog: FeatureCatalog,
    evidence: Mapping[int, FeatureEvidence],
    texts: Mapping[str, str],
    *,
    limit: int | None = None,
    characters: int = PASSAGE_CHARACTERS,
    complaints: Mapping[int, str] | None = None,
) -> dict[int, LabelPrompt]:
    """What to ask about which features: those that have a label which no person wrote, the most frequent first.

    Args:
        catalog: The features.
        evidence: By feature id; a feature without it is left out.
        texts: By passage id. Only these are shown: leave out those that the labels will be scored on.
        limit: How many features at most.
        characters: Most characters of a passage.
        complaints: By feature id, what was wrong with the first reply; then only these features.
    """
    named = [feature for feature in catalog.labelled if feature.label_by != BY_PERSON and feature.id in evidence]
    if complaints is not None:
        named = [feature for feature in named if feature.id in complaints]
    prompts: dict[int, LabelPrompt] = {}
    for feature in sorted(named, key=lambda feature: (-feature.frequency, feature.id)):
        if limit is not None and len(prompts) == limit:
            break
        own = evidence[feature.id]
        active = _texts_of(own.top, texts, _TOP)
        middle = [text for text in _texts_of(own.middle, texts, _TOP + _MIDDLE) if text not in active][:_MIDDLE]
        inactive = _texts_of(own.near_misses, texts, _NEAR_MISSES)
        if active or middle:
            complaint = "" if complaints is None else complaints[feature.id]
            prompts[feature.id] = label_prompt([*active, *middle], inactive, characters=characters, complaint=complaint)
    return prompts


def label_with(
    model: LanguageModel,
    catalog: FeatureCatalog,
    evidence: Mapping[int, FeatureEvidence],
    texts: Mapping[str, str],
    *,
    embed: Embed,
    score: Score | None = None,
    cache: LabelCache | None = None,
    limit: int | None = None,
    characters: int = PASSAGE_CHARACTERS,
    progress: Progress | None = None,
) -> LabellingResult:
    """Have a language model name features by passages that have them and similar ones that do not.

    A reply that is no label (a refusal, a sentence, words of the prompt, words that most labels have) is asked for
    once more, with a prompt that says what was wrong. What is no label then, or had no reply, costs only that label:
    the feature keeps the one it has. The same replies give the same labels.

    Args:
        model: What writes the labels; `as_language_model` makes one.
        catalog: The features. Those without a label, and those that a person named, are left as they are.
        evidence: By feature id.
        texts: By passage id. Only these are shown: leave out those that `score` measures on.
        embed: Embeds the labels as queries are embedded.
        score: Scores a label on passages that are not among `texts`; without it the new labels have no score.
        cache: Replies that are known; new ones are added batch by batch, so a run that was killed goes on.
        limit: How many features at most, the most frequent first.
        characters: Most characters of a passage in a prompt.
        progress: Called after each batch.

    Raises:
        ArtifactError: The cache cannot be written.
        MismatchError: The model gives another number of replies than it was given prompts.
    """
    first = label_prompts(catalog, evidence, texts, limit=limit, characters=characters)
    asked = _Asked(model, cache, progress)
    found = _keywords(first, asked.replies(first))
    named = {feature: keywords for feature, keywords in found.items() if not isinstance(keywords, LabelFailure)}
    every = generic_keywords(named.values())
    among = _embedded(named, embed)
    found |= _specific(named, every, among, among)

    complaints = {
        feature: COMPLAINTS[failure.reason]
        for feature, failure in found.items()
        if isinstance(failure, LabelFailure)
        and failure.reason != "timeout"
        and failure.reason != "error"
        and failure.reason != "not asked"
    }
    second = label_prompts(catalog, evidence, texts, characters=characters, complaints=complaints)
    again = _keywords(second, asked.replies(second))
    named = {feature: keywords for feature, keywords in again.items() if not isinstance(keywords, LabelFailure)}
    again |= _specific(named, every, _embedded(named, embed), among)
    return _result(model.name, catalog, {**found, **again}, {**first, **second}, embed, score, asked.calls)


_Found = dict[int, "tuple[str, ...] | LabelFailure"]


class _Asked:
    """A model with a memory, which gives up on one that does not answer."""

    def __init__(self, model: LanguageModel, cache: LabelCache | None, progress: Progress | None) -> None:
        self._model, self._cache, self._progress = model, cache, progress
        self._silent = self._done = self._planned = 0
        self.calls = 0

    def replies(self, prompts: Mapping[int, LabelPrompt]) -> dict[int, str | LabelFailure]:
        """By feature; features with the same prompt have the same reply."""
        texts = {prompt.hash: prompt.text for prompt in prompts.values()}
        known: dict[str, str | LabelFailure] = {}
        for key in texts:
            reply = None if self._cache is None else self._cache.get(self._model.name, key)
            if reply is not None:
                known[key] = reply
        waiting = [key for key in texts if key not in known]
        self._planned += len(texts)
        self._report(len(known))
        for start in range(0, len(waiting), _BATCH):
            batch = waiting[start : start + _BATCH]
            known |= self._ask({key: texts[key] for key in batch})
            self._report(len(batch))
        return {feature: known[prompt.hash] for feature, prompt in prompts.items()}

    def _ask(self, texts: Mapping[str, str]) -> dict[str, str | LabelFailure]:
        if self._silent >= _GIVE_UP_AFTER:
            message = f"given up: {self._silent} prompts in a row had no reply"
            return {key: LabelFailure("not asked", message) for key in texts}
        self.calls += len(texts)
        replies = self._complete(list(texts.values()))
        if len(replies) != len(texts):
            raise MismatchError(f"{self._model.name} gave {len(replies)} replies to {len(texts)} prompts.")
        for reply in replies:
            self._silent = 0 if isinstance(reply, str) else self._silent + 1
        outcomes = dict(zip(texts, replies, strict=True))
        if self._cache is not None:
            # A timeout or an error is not kept: the next run asks again.
            said = {key: reply for key, reply in outcomes.items() if isinstance(reply, str)}
            self._cache.keep(self._model.name, said)
        return {key: reply if isinstance(reply, str) else LabelFailure(*reply) for key, reply in outcomes.items()}

    def _complete(self, prompts: Sequence[str]) -> list[str | Failure]:
        # A model of the user's own may raise for a batch: that costs these labels, and is listed with each of them.
        try:
            return self._model.complete(prompts)
        except Exception as error:
            message = " ".join(f"{type(error).__name__}: {error}".split())
            return [Failure("error", message)] * len(prompts)

    def _report(self, more: int) -> None:
        self._done += more
        if self._progress is not None and more:
            self._progress(self._done, self._planned)


def _texts_of(examples: Sequence[Example], texts: Mapping[str, str], limit: int) -> list[str]:
    """The different texts of examples, as far as they are known, in their order."""
    found = dict.fromkeys(texts[example.id] for example in examples if texts.get(example.id, "").strip())
    return list(found)[:limit]


def _keywords(prompts: Mapping[int, LabelPrompt], replies: Mapping[int, str | LabelFailure]) -> _Found:
    found: _Found = {}
    for feature, prompt in prompts.items():
        reply = replies[feature]
        if isinstance(reply, LabelFailure):
            found[feature] = reply
        else:
            found[feature] = _or_failure(keywords_of(reply, prompt.passages, prompt.marker))
    return found


def _embedded(named: Mapping[int, Sequence[str]], embed: Embed) -> Array:
    """(m, d) of the labels, in their order."""
    return embed([", ".join(keywords) for keywords in named.values()]) if named else np.empty((0, 0), np.float32)


def _specific(named: Mapping[int, tuple[str, ...]], every: frozenset[str], rows: Array, among: Array) -> _Found:
    """The labels without generic words, or that they are generic altogether.

    Args:
        named: Keywords by feature.
        every: Stems of keywords that too many labels have.
        rows: (m, d) of these labels.
        among: (all, d) of all labels, which these are compared with.
    """
    found: _Found = {}
    for (feature, keywords), is_central in zip(named.items(), central_labels(rows, among), strict=True):
        if is_central:
            found[feature] = LabelFailure(
                "generic", f"nearest to what all labels have in common: {', '.join(keywords)}"
            )
        else:
            found[feature] = _or_failure(without_generic(keywords, every))
    return found


def _or_failure(found: tuple[str, ...] | Rejection) -> tuple[str, ...] | LabelFailure:
    return LabelFailure(found.reason, found.detail) if isinstance(found, Rejection) else found


def _result(
    model: str,
    catalog: FeatureCatalog,
    found: _Found,
    prompts: Mapping[int, LabelPrompt],
    embed: Embed,
    score: Score | None,
    calls: int,
) -> LabellingResult:
    named = {feature: keywords for feature, keywords in found.items() if not isinstance(keywords, LabelFailure)}
    embeddings = dict(zip(named, _embedded(named, embed), strict=True))
    features = {
        feature: dataclasses.replace(
            catalog[feature],
            label=", ".join(keywords),
            keywords=keywords,
            score=None if score is None else score(feature, embeddings[feature]),
            label_by=model,
            label_prompt=prompts[feature].hash,
        )
        for feature, keywords in named.items()
    }
    failures = {feature: failure for feature, failure in found.items() if isinstance(failure, LabelFailure)}
    hashes = {feature: prompts[feature].hash for feature in named}
    return LabellingResult(model, features, embeddings, hashes, failures, calls)
