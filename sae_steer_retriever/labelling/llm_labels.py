"""Labels by a language model, for features that have keyword labels: prompts, cost, labelling and its result."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.evidence import Example, FeatureEvidence
from sae_steer_retriever.features.feature import BY_PERSON, Feature, LabelScore
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
from sae_steer_retriever.labelling.language_model import Failure, LanguageModel
from sae_steer_retriever.sae.codes import Array

Embed = Callable[[Sequence[str]], Array]
"""Returns (m, d) unit vectors of texts, e.g. an embedder's `embed_queries`."""
Score = Callable[[int, Array], LabelScore | None]
"""Returns the score of a feature's label, given as its (d,) unit vector; e.g. `LabelHalves.score`."""
Progress = Callable[[int, int], None]
"""Called with the number of prompts answered and the number known so far."""

_TOP, _MIDDLE, _NEAR_MISSES = 8, 6, 8
# Prompts that are given to the model at once; a killed run loses the replies of one batch.
_BATCH = 32
# After this many prompts in a row without a reply the model is not asked again: a wrong key answers nothing.
_GIVE_UP_AFTER = 32
# Rules of thumb for the cost: UTF-8 bytes per token of byte-pair vocabularies, and tokens of five keywords.
_BYTES_PER_TOKEN, _TOKENS_PER_REPLY = 4, 24

_Found = dict[int, tuple[str, ...] | Rejection]


def label_prompts(
    catalog: FeatureCatalog,
    evidence: Mapping[int, FeatureEvidence],
    texts: Mapping[str, str],
    *,
    limit: int | None = None,
    characters: int = PASSAGE_CHARACTERS,
    complaints: Mapping[int, str] | None = None,
) -> dict[int, LabelPrompt]:
    """Returns the prompts for the features that have a generated label, by feature id, the most frequent first.

    Args:
        catalog: The features.
        evidence: By feature id; a feature without it is left out.
        texts: By passage id. Only these are shown: leave out those that the labels will be scored on.
        limit: The most features to label.
        characters: Most characters of a passage.
        complaints: By feature id, the fault of the first reply; then only these features.
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


class Price(NamedTuple):
    """The price of a model, in any currency, per million tokens of prompts and per million tokens of replies."""

    prompts: float
    replies: float


class Estimate(NamedTuple):
    """The cost of labels by rule of thumb: four bytes of UTF-8 per token, 24 tokens per reply.

    A reply that is refused is asked for once more, so the cost can double; a reasoning model writes far more.

    Attributes:
        features: Features to be labelled.
        calls: Prompts that have no reply yet.
        tokens_in: Tokens of these prompts.
        tokens_out: Tokens of their replies.
        price: In the currency of the given price; None if none was given.
    """

    features: int
    calls: int
    tokens_in: int
    tokens_out: int
    price: float | None = None

    def __str__(self) -> str:
        """The estimate on one line."""
        known = f" ({self.features - self.calls} of {self.features} need none)" if self.calls < self.features else ""
        line = f"{self.calls} prompts{known}, about {self.tokens_in:,} tokens to read and {self.tokens_out:,} to write"
        return line if self.price is None else f"{line}: about {self.price:.2f}, at most {2 * self.price:.2f}"


def estimate_labels(
    prompts: Mapping[int, LabelPrompt], model: str, cache: LabelCache | None = None, price: Price | None = None
) -> Estimate:
    """The estimated cost of having prompts answered by the model with a name; replies in the cache cost nothing."""
    texts = {prompt.hash: prompt.text for prompt in prompts.values()}
    asked = [text for key, text in texts.items() if cache is None or cache.get(model, key) is None]
    tokens_in = sum(-(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN) for text in asked)
    tokens_out = _TOKENS_PER_REPLY * len(asked)
    cost = None if price is None else (tokens_in * price.prompts + tokens_out * price.replies) / 1e6
    return Estimate(len(prompts), len(asked), tokens_in, tokens_out, cost)


@dataclasses.dataclass(frozen=True)
class LabellingResult:
    """New labels by a language model, and the reasons why other features keep theirs.

    Attributes:
        model: Its name, also each feature's `label_by`.
        features: The features under their new labels and scores, by id.
        embeddings: (d,) unit vectors of the new labels, by id.
        prompts: Hash of the prompt that each new label answers, by id.
        failures: The features that keep their labels, by id.
        calls: Prompts that the model was given; the others had a cached reply.
    """

    model: str
    features: Mapping[int, Feature]
    embeddings: Mapping[int, Array] = dataclasses.field(repr=False)
    prompts: Mapping[int, str] = dataclasses.field(repr=False)
    failures: Mapping[int, Rejection]
    calls: int

    def reasons(self) -> dict[str, int]:
        """Number of features that keep their label, by reason, the most frequent first."""
        return dict(Counter(failure.reason for failure in self.failures.values()).most_common())

    def applied(self, features: Sequence[Feature], embeddings: Array | None) -> tuple[list[Feature], Array | None]:
        """All n features and their labels' (n, d) embeddings, with the new labels in their places."""
        changed = [self.features.get(feature.id, feature) for feature in features]
        if not self.embeddings:
            return changed, embeddings
        new = np.stack(list(self.embeddings.values()))
        rows = np.zeros((len(features), new.shape[1]), dtype=np.float32) if embeddings is None else embeddings.copy()
        rows[list(self.embeddings)] = new
        return changed, rows

    def summary(self) -> str:
        """Two or three lines: the numbers of new and kept labels, and their median score."""
        scores = [feature.score for feature in self.features.values() if feature.score is not None]
        lines = [f"{len(self.features)} features labelled by {self.model}, {self.calls} prompts asked"]
        if scores:
            random, hard = (float(np.median([score[place] for score in scores])) for place in (0, 1))
            lines.append(f"median label score {random:.2f} against random passages, {hard:.2f} against near misses")
        if self.failures:
            counts = ", ".join(f"{count} {reason}" for reason, count in self.reasons().items())
            kept = f"{len(self.failures)} keep the labels they had" if len(self.failures) > 1 else "1 keeps its label"
            lines.append(f"{kept}: {counts}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The result without the embeddings, as data for JSON."""
        return {
            "model": self.model,
            "calls": self.calls,
            "labelled": [
                {"id": key, "label": one.label, "score": one.score and one.score._asdict(), "prompt": self.prompts[key]}
                for key, one in self.features.items()
            ],
            "kept": [{"id": feature, **failure._asdict()} for feature, failure in self.failures.items()],
            "reasons": self.reasons(),
        }


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
    """Returns labels that a language model writes from passages with a feature and similar passages without it.

    A reply that is no label (a refusal, a sentence, words of the prompt, words that most labels have) is asked for
    once more, with a prompt that names the fault. If the second reply fails too, or none came, the feature keeps its
    label. The same replies give the same labels.

    Args:
        model: Writes the labels; see `as_language_model`.
        catalog: The features. Features without a label and features that a person labelled stay as they are.
        evidence: By feature id.
        texts: By passage id. Only these are shown: leave out those that `score` measures on.
        embed: Embeds the labels as queries are embedded.
        score: Scores a label on passages that are not among `texts`; without it the new labels have no score.
        cache: Known replies; new ones are added batch by batch, so an interrupted run resumes.
        limit: The most features to label, the most frequent first.
        characters: Most characters of a passage in a prompt.
        progress: Called after each batch.

    Raises:
        ArtifactError: The cache cannot be written.
        MismatchError: The model returns another number of replies than it was given prompts.
    """
    first = label_prompts(catalog, evidence, texts, limit=limit, characters=characters)
    asked = _CachedModel(model, cache, progress)
    found = _keywords(first, asked.replies(first))
    labels = _labels(found)
    generic, among = generic_keywords(labels.values()), _embedded(labels, embed)
    found |= _specific(labels, generic, among, among)

    refused = {feature: failure for feature, failure in found.items() if isinstance(failure, Rejection)}
    complaints = {key: COMPLAINTS[one.reason] for key, one in refused.items() if one.reason in COMPLAINTS}
    second = label_prompts(catalog, evidence, texts, characters=characters, complaints=complaints)
    again = _keywords(second, asked.replies(second))
    labels = _labels(again)
    found |= again | _specific(labels, generic, _embedded(labels, embed), among)
    labels = _labels(found)
    embeddings = dict(zip(labels, _embedded(labels, embed), strict=True))
    hashes = {feature: (second.get(feature) or first[feature]).hash for feature in labels}
    features = {}
    for feature, words in labels.items():
        measured = None if score is None else score(feature, embeddings[feature])
        named = dataclasses.replace(catalog[feature], label=", ".join(words), keywords=words, score=measured)
        features[feature] = dataclasses.replace(named, label_by=model.name, label_prompt=hashes[feature])
    failures = {feature: failure for feature, failure in found.items() if isinstance(failure, Rejection)}
    return LabellingResult(model.name, features, embeddings, hashes, failures, asked.calls)


class _CachedModel:
    """A model with a cache of replies; a model that does not answer is given up."""

    def __init__(self, model: LanguageModel, cache: LabelCache | None, progress: Progress | None) -> None:
        self._model, self._cache, self._progress = model, cache, progress
        self._silent = self._done = self._planned = 0
        self.calls = 0

    def replies(self, prompts: Mapping[int, LabelPrompt]) -> dict[int, str | Rejection]:
        """By feature; features with the same prompt have the same reply."""
        texts = {prompt.hash: prompt.text for prompt in prompts.values()}
        cached = {key: None if self._cache is None else self._cache.get(self._model.name, key) for key in texts}
        known: dict[str, str | Rejection] = {key: reply for key, reply in cached.items() if reply is not None}
        waiting = [key for key in texts if key not in known]
        self._planned += len(texts)
        self._report(len(known))
        for start in range(0, len(waiting), _BATCH):
            batch = waiting[start : start + _BATCH]
            known |= self._ask({key: texts[key] for key in batch})
            self._report(len(batch))
        return {feature: known[prompt.hash] for feature, prompt in prompts.items()}

    def _ask(self, texts: Mapping[str, str]) -> dict[str, str | Rejection]:
        if self._silent >= _GIVE_UP_AFTER:
            message = f"given up: {self._silent} prompts in a row had no reply"
            return {key: Rejection("not asked", message) for key in texts}
        self.calls += len(texts)
        try:
            replies = self._model.complete(list(texts.values()))
        except Exception as error:  # a user's own model may raise for a whole batch: each of its labels lists the error
            message = " ".join(f"{type(error).__name__}: {error}".split())
            replies = [Failure("error", message)] * len(texts)
        if len(replies) != len(texts):
            raise MismatchError(f"{self._model.name} gave {len(replies)} replies to {len(texts)} prompts.")
        for reply in replies:
            self._silent = 0 if isinstance(reply, str) else self._silent + 1
        outcomes = dict(zip(texts, replies, strict=True))
        if self._cache is not None:
            # A timeout or an error is not kept: the next run asks again.
            said = {key: reply for key, reply in outcomes.items() if isinstance(reply, str)}
            self._cache.keep(self._model.name, said)
        return {key: reply if isinstance(reply, str) else Rejection(*reply) for key, reply in outcomes.items()}

    def _report(self, more: int) -> None:
        self._done += more
        if self._progress is not None and more:
            self._progress(self._done, self._planned)


def _texts_of(examples: Sequence[Example], texts: Mapping[str, str], limit: int) -> list[str]:
    """The different texts of examples, as far as they are known, in their order."""
    found = dict.fromkeys(texts[example.id] for example in examples if texts.get(example.id, "").strip())
    return list(found)[:limit]


def _keywords(prompts: Mapping[int, LabelPrompt], replies: Mapping[int, str | Rejection]) -> _Found:
    found: _Found = {}
    for feature, prompt in prompts.items():
        reply = replies[feature]
        found[feature] = keywords_of(reply, prompt.passages, prompt.marker) if isinstance(reply, str) else reply
    return found


def _labels(found: _Found) -> dict[int, tuple[str, ...]]:
    return {feature: keywords for feature, keywords in found.items() if not isinstance(keywords, Rejection)}


def _embedded(labels: Mapping[int, Sequence[str]], embed: Embed) -> Array:
    """(m, d) of the labels, in their order."""
    return embed([", ".join(keywords) for keywords in labels.values()]) if labels else np.empty((0, 0), np.float32)


def _specific(labels: Mapping[int, tuple[str, ...]], generic: frozenset[str], rows: Array, among: Array) -> _Found:
    """Labels, with (m, d) embeddings `rows`, without generic keywords; labels near the centroid of all are rejected."""
    found: _Found = {}
    for (feature, keywords), is_central in zip(labels.items(), central_labels(rows, among), strict=True):
        central = Rejection("generic", f"nearest to the centroid of all labels: {', '.join(keywords)}")
        found[feature] = central if is_central else without_generic(keywords, generic)
    return found
