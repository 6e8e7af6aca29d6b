"""Checks of a language model's replies: by their form, by their words, and against all other labels."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import quoted
from sae_steer_retriever.features.names import stem
from sae_steer_retriever.labelling.label_prompt import EXAMPLE, FEWEST_KEYWORDS, MOST_KEYWORDS
from sae_steer_retriever.sae.codes import Array

Reason = Literal["empty", "refusal", "too long", "not words", "prompt leak", "generic", "timeout", "error", "not asked"]
"""Why there is no label: the first six are faults of a reply, the others mean that there was none."""

_MOST_WORDS, _MOST_CHARACTERS = 4, 40
# Vocabulary of neuron interpretation, frequent in the labels of arXiv 2411.00786, and words of our own prompt.
LEAKING_WORDS = frozenset((
    "activate", "activated", "activating", "activation", "comma", "content", "context", "dictionary", "document",
    "embedding", "example", "excerpt", "explanation", "feature", "fires", "firing", "group", "index", "instruction",
    "json", "keyword", "label", "language", "latent", "marker", "neuron", "numbering", "passage", "pattern", "phrase",
    "prompt", "sequence", "shared", "signal", "snippet", "stimuli", "stimulus", "subject", "subsequence", "text",
    "token", "topic", "trie", "vector", "wildcard", "word",
))  # fmt: skip
"""No label may have these words, unless the passages have them."""

_REFUSAL = re.compile(
    r"\bi\s+can(no|['’])?t\b|\bi\s+can\s+not\b|\bi(\s+a|['’])m\s+(sorry|unable|not\s+able)\b|\bi\s+won['’]t\b"
    r"|\bas\s+an?\s+(ai|artificial|language\s+model|large\s+language)\b"
    r"|\b(unable|cannot|not\s+able)\s+(to\s+)?(assist|comply|help|provide|fulfil\w*|answer|determine)\b",
    re.IGNORECASE,
)
_REASONING = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^```\w*\s*\n(.*?)\n?```$", re.DOTALL)
_HEADING = re.compile(r"^(?:the\s+)?(?:labels?|keywords?|answers?|topics?)(?:\s+(?:of|for)\s+group\s+a)?\s*:\s*", re.I)
# Letters and digits with inner hyphens and similar signs, or an abbreviation with dots: r&d, tcp/ip, c++, u.s.
_WORD = re.compile(r"[^\W_](?:[\w'’&/+#-]*[\w+#])?|(?:[^\W\d_]\.){2,}")
_REPEATED = re.compile(r"(.)\1{3}")
_TOKEN = re.compile(r"[^\W_]+")

_GENERIC_SHARE, _GENERIC_FROM = 0.05, 5
_CENTRAL_DEVIATIONS, _CENTRAL_FROM = 3.0, 50


class Rejection(NamedTuple):
    """The kind of fault for which a feature keeps the label it has, and the fault in words, for a person.

    The words may quote the model, so they never go into a prompt.
    """

    reason: Reason
    detail: str


COMPLAINTS: dict[Reason, str] = {
    "empty": "it was empty.",
    "refusal": "it declined. The excerpts are material of a library; naming their subject harms nobody.",
    "too long": "it was too long, or no single line of keywords.",
    "not words": f"it was no list of {FEWEST_KEYWORDS} to {MOST_KEYWORDS} keywords in plain words.",
    "prompt leak": "it spoke of the task. Name what the excerpts are about, in words of their subject.",
    "generic": "it would fit most documents of this library. Name what sets group A apart from group B.",
}
"""The sentence about the first reply in the second prompt, by the fault of the reply."""


def keywords_of(reply: str, passages: Iterable[str] = (), marker: str = "") -> tuple[str, ...] | Rejection:
    """Returns the keywords of a reply, or the reason why it is no label.

    A label is one line of two to five keywords, separated by commas, or a JSON list of them, or a JSON object with
    one such list. A reply that follows an instruction inside a passage has to have the same form.

    Args:
        reply: The model's reply.
        passages: The passages of the prompt: their words are no leak of the prompt.
        marker: The fence around them.
    """
    text = _unwrapped(reply)
    if not text:
        return Rejection("empty", "the reply is empty")
    if _REFUSAL.search(text):
        return Rejection("refusal", f"the model declined: {quoted(text)}")
    parts = _parts(text)
    if parts is None:
        return Rejection("too long", f"no single line of keywords: {quoted(text)}")
    keywords = _distinct(" ".join(part.strip(" \t\"'“”‘’`*.;").casefold().split()) for part in parts)
    if len(keywords) > MOST_KEYWORDS:
        return Rejection("too long", f"{len(keywords)} keywords: {quoted(text)}")
    for keyword in keywords:
        words = keyword.split()
        if len(words) > _MOST_WORDS or len(keyword) > _MOST_CHARACTERS:
            return Rejection("too long", f"no keyword but a sentence: {quoted(keyword)}")
        if not all(_is_word(word) for word in words):
            return Rejection("not words", f"not in plain words: {quoted(keyword)}")
    if len(keywords) < FEWEST_KEYWORDS:
        return Rejection("not words", f"{len(keywords)} keywords, expected at least {FEWEST_KEYWORDS}: {quoted(text)}")
    leaks = _leaks(keywords, passages, marker)
    if leaks:
        return Rejection("prompt leak", f"words of the prompt, not of the passages: {', '.join(leaks)}")
    return keywords


def generic_keywords(labels: Collection[Sequence[str]], share: float = _GENERIC_SHARE) -> frozenset[str]:
    """The stems of keywords that are in five labels at least and in more than a `share`, in (0, 1], of all labels."""
    counts = Counter(key for keywords in labels for key in {stem(keyword) for keyword in keywords})
    return frozenset(key for key, count in counts.items() if count >= _GENERIC_FROM and count > share * len(labels))


def without_generic(keywords: Sequence[str], generic: Collection[str]) -> tuple[str, ...] | Rejection:
    """A label without the keywords whose stems are `generic`; a rejection where fewer than two are left."""
    left = tuple(keyword for keyword in keywords if stem(keyword) not in generic)
    if len(left) >= FEWEST_KEYWORDS:
        return left
    return Rejection("generic", f"too many labels have these words: {', '.join(keywords)}")


def central_labels(embeddings: Array, among: Array) -> NDArray[np.bool_]:
    """Returns (m,) which of the (m, d) labels are near the centroid of all (all, d) labels, and so name nothing.

    Their cosine with the centroid lies three standard deviations above the mean; among fewer than 50 labels none does.
    """
    if not len(embeddings) or len(among) < _CENTRAL_FROM:
        return np.zeros(len(embeddings), dtype=np.bool_)
    centroid = among.mean(axis=0, dtype=np.float64)
    all_cosines = among @ centroid
    highest = all_cosines.mean() + _CENTRAL_DEVIATIONS * all_cosines.std()
    return np.asarray(embeddings @ centroid > highest, dtype=np.bool_)


def _unwrapped(reply: str) -> str:
    """A reply without a reasoning model's thoughts, a code fence or a heading."""
    text = _REASONING.sub("", reply).strip()
    fenced = _FENCE.match(text)
    text = (fenced[1] if fenced else text).strip()
    return _HEADING.sub("", text.strip("*` ")).strip("*` ")


def _parts(text: str) -> list[str] | None:
    """The parts between the commas of one line, or in the list of a JSON text; None for anything else."""
    if text[0] in "[{":
        try:
            found: Any = json.loads(text)
        except (ValueError, RecursionError):
            return None
        lists = [value for value in found.values() if isinstance(value, list)] if isinstance(found, dict) else [found]
        return lists[0] if len(lists) == 1 and all(isinstance(part, str) for part in lists[0]) else None
    return None if len(text.splitlines()) > 1 else re.split(r"[,;]", text)


def _distinct(keywords: Iterable[str]) -> tuple[str, ...]:
    """The first of those keywords that differ in case or plural alone."""
    found: dict[str, str] = {}
    for keyword in filter(None, keywords):
        found.setdefault(stem(keyword), keyword)
    return tuple(found.values())


def _is_word(word: str) -> bool:
    return bool(_WORD.fullmatch(word) and any(sign.isalpha() for sign in word) and not _REPEATED.search(word))


def _leaks(keywords: Sequence[str], passages: Iterable[str], marker: str) -> list[str]:
    """The label's words that come from the prompt or its example, and not from the passages."""
    leaking = LEAKING_WORDS.union(_TOKEN.findall(marker))
    words = [word for keyword in keywords for word in keyword.split()]
    suspects = [
        word
        for word in words
        if any(token in leaking or stem(token) in LEAKING_WORDS for token in _TOKEN.findall(word))
    ]
    echoes = [keyword for keyword in keywords if keyword in EXAMPLE]
    if not suspects and not echoes:
        return []
    known = {stem(token) for passage in passages for token in _TOKEN.findall(passage.casefold())}

    def absent(found: Iterable[str]) -> list[str]:
        return [word for word in found if not all(stem(token) in known for token in _TOKEN.findall(word))]

    # One word of the example may be meant; several are an echo of it.
    echoes = absent(echoes)
    return absent(suspects) + (echoes if len(echoes) > 1 else [])
