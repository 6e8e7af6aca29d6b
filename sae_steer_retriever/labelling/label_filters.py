"""What is a label and what is not: replies are checked by their form, their words, and against all other labels."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.features.names import stem
from sae_steer_retriever.labelling.label_prompt import EXAMPLE, FEWEST_KEYWORDS, MOST_KEYWORDS
from sae_steer_retriever.sae.codes import Array

Reason = Literal["empty", "refusal", "too long", "not words", "prompt leak", "generic"]
"""Why a reply is no label."""

_MOST_WORDS, _MOST_CHARACTERS = 4, 40
# Words of interpreting neurons, which the labels of arXiv 2411.00786 are full of, and words of our own prompt.
LEAKING_WORDS = frozenset((
    "activate", "activated", "activating", "activation", "comma", "content", "context", "dictionary", "document",
    "embedding", "example", "excerpt", "explanation", "feature", "fires", "firing", "group", "index", "instruction",
    "json", "keyword", "label", "language", "latent", "marker", "neuron", "numbering", "passage", "pattern", "phrase",
    "prompt", "sequence", "shared", "signal", "snippet", "stimuli", "stimulus", "subject", "subsequence", "text",
    "token", "topic", "trie", "vector", "wildcard", "word",
))  # fmt: skip
"""No label may have these words, unless they are in the passages themselves."""

_REFUSAL = re.compile(
    r"\bi\s+can(no|['’])?t\b|\bi\s+can\s+not\b|\bi(\s+a|['’])m\s+(sorry|unable|not\s+able)\b|\bi\s+won['’]t\b"
    r"|\bas\s+an?\s+(ai|artificial|language\s+model|large\s+language)\b"
    r"|\b(unable|cannot|not\s+able)\s+(to\s+)?(assist|comply|help|provide|fulfil\w*|answer|determine)\b",
    re.IGNORECASE,
)
_REASONING = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^```\w*\s*\n(.*?)\n?```$", re.DOTALL)
_HEADING = re.compile(r"^(?:the\s+)?(?:labels?|keywords?|answers?|topics?)(?:\s+(?:of|for)\s+group\s+a)?\s*:\s*", re.I)
# Letters and digits, joined within by a hyphen and the like, or an abbreviation with dots: r&d, tcp/ip, c++, u.s.
_WORD = re.compile(r"[^\W_](?:[\w'’&/+#-]*[\w+#])?|(?:[^\W\d_]\.){2,}")
_REPEATED = re.compile(r"(.)\1{3}")
_TOKEN = re.compile(r"[^\W_]+")

_GENERIC_SHARE, _GENERIC_FROM = 0.05, 5
_CENTRAL_DEVIATIONS, _CENTRAL_FROM = 3.0, 50


class Rejection(NamedTuple):
    """That a reply is no label.

    Attributes:
        reason: One of a few.
        detail: What is wrong, for a person; may hold what the model said, so never goes into a prompt.
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
"""What the second prompt says of the first reply."""


def keywords_of(reply: str, passages: Iterable[str] = (), marker: str = "") -> tuple[str, ...] | Rejection:
    """The keywords of a reply, or why it has none.

    A reply is one line of two to five keywords, separated by commas, or the same as a JSON list or as the only list
    of a JSON object. What a passage may have told the model to say is held to the same form.

    Args:
        reply: What the model said.
        passages: Those that it was asked about: words in them are no leak of the prompt.
        marker: What fenced them.
    """
    text = _unwrapped(reply)
    if not text:
        return Rejection("empty", "the reply is empty")
    if _REFUSAL.search(text):
        return Rejection("refusal", f"the model declined: {_shown(text)}")
    parts = _parts(text)
    if parts is None:
        return Rejection("too long", f"no single line of keywords: {_shown(text)}")
    keywords = _distinct(" ".join(part.strip(" \t\"'“”‘’`*.;").casefold().split()) for part in parts)
    if len(keywords) > MOST_KEYWORDS:
        return Rejection("too long", f"{len(keywords)} keywords: {_shown(text)}")
    for keyword in keywords:
        words = keyword.split()
        if len(words) > _MOST_WORDS or len(keyword) > _MOST_CHARACTERS:
            return Rejection("too long", f"no keyword but a sentence: {_shown(keyword)}")
        if not all(_is_word(word) for word in words):
            return Rejection("not words", f"not in plain words: {_shown(keyword)}")
    if len(keywords) < FEWEST_KEYWORDS:
        return Rejection("not words", f"{len(keywords)} keywords, expected at least {FEWEST_KEYWORDS}: {_shown(text)}")
    leaks = _leaks(keywords, passages, marker)
    if leaks:
        return Rejection("prompt leak", f"words of the prompt, not of the passages: {', '.join(leaks)}")
    return keywords


def generic_keywords(labels: Collection[Sequence[str]], share: float = _GENERIC_SHARE) -> frozenset[str]:
    """The keywords, as stems, that are in more than a share of all labels (and in five at least): they tell nothing.

    Args:
        labels: The keywords of each label.
        share: Of the labels, in (0, 1].
    """
    counts = Counter(key for keywords in labels for key in {stem(keyword) for keyword in keywords})
    return frozenset(key for key, count in counts.items() if count >= _GENERIC_FROM and count > share * len(labels))


def without_generic(keywords: Sequence[str], generic: Collection[str]) -> tuple[str, ...] | Rejection:
    """A label without its generic keywords, or why too little is left of it.

    Args:
        keywords: The label's.
        generic: Stems of `generic_keywords`.
    """
    left = tuple(keyword for keyword in keywords if stem(keyword) not in generic)
    if len(left) >= FEWEST_KEYWORDS:
        return left
    return Rejection("generic", f"too many labels have these words: {', '.join(keywords)}")


def central_labels(embeddings: Array, among: Array) -> NDArray[np.bool_]:
    """(m,) which labels are so near to the centroid of all labels that they name nothing in particular.

    Those whose cosine with the centroid lies three standard deviations above the mean of all labels' cosines; none
    where there are fewer than 50 labels.

    Args:
        embeddings: (m, d) unit vectors of some labels.
        among: (all, d) unit vectors of all of them.
    """
    if not len(embeddings) or len(among) < _CENTRAL_FROM:
        return np.zeros(len(embeddings), dtype=np.bool_)
    centroid = among.mean(axis=0, dtype=np.float64)
    all_cosines = among @ centroid
    highest = all_cosines.mean() + _CENTRAL_DEVIATIONS * all_cosines.std()
    central: NDArray[np.bool_] = embeddings @ centroid > highest
    return central


def _unwrapped(reply: str) -> str:
    """A reply without the thoughts of a reasoning model, a code fence or a heading around it."""
    text = _REASONING.sub("", reply).strip()
    fenced = _FENCE.match(text)
    text = (fenced[1] if fenced else text).strip()
    return _HEADING.sub("", text.strip("*` ")).strip("*` ")


def _parts(text: str) -> list[str] | None:
    """What stands between the commas of one line, or in the list of a JSON text; None for anything else."""
    if text[0] in "[{":
        try:
            found: Any = json.loads(text)
        except (ValueError, RecursionError):
            return None
        lists = [value for value in found.values() if isinstance(value, list)] if isinstance(found, dict) else [found]
        return lists[0] if len(lists) == 1 and all(isinstance(part, str) for part in lists[0]) else None
    return None if len(text.splitlines()) > 1 else re.split(r"[,;]", text)


def _distinct(keywords: Iterable[str]) -> tuple[str, ...]:
    """Of those that differ in their plural alone the first."""
    found: dict[str, str] = {}
    for keyword in filter(None, keywords):
        found.setdefault(stem(keyword), keyword)
    return tuple(found.values())


def _is_word(word: str) -> bool:
    return bool(_WORD.fullmatch(word) and any(sign.isalpha() for sign in word) and not _REPEATED.search(word))


def _leaks(keywords: Sequence[str], passages: Iterable[str], marker: str) -> list[str]:
    """The words of the prompt, and the keywords of its example, that are not in the passages."""
    fences = set(_TOKEN.findall(marker))
    words = [word for keyword in keywords for word in keyword.split()]
    suspects = [
        word
        for word in words
        if any(
            token in LEAKING_WORDS or stem(token) in LEAKING_WORDS or token in fences for token in _TOKEN.findall(word)
        )
    ]
    echoes = [keyword for keyword in keywords if keyword in EXAMPLE]
    if not suspects and not echoes:
        return []
    known = {stem(token) for passage in passages for token in _TOKEN.findall(passage.casefold())}

    def absent(found: Iterable[str]) -> list[str]:
        return [word for word in found if not all(stem(token) in known for token in _TOKEN.findall(word))]

    # One word of the example may be meant, several are an echo.
    echoes = absent(echoes)
    return absent(suspects) + (echoes if len(echoes) > 1 else [])


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:79]}…")
