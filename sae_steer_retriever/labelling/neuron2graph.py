"""Neuron2Graph for pooled embeddings: from a feature's passages to a trie of the words that carry it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.features.trie import Trie, Window, word_key
from sae_steer_retriever.labelling.prefix_attribution import word_reader
from sae_steer_retriever.labelling.token_attribution import WordActivations, WordReader, unwrapped
from sae_steer_retriever.labelling.word_substitutes import Substitutes
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import FeatureDirections, TopKSAE

PASSAGES = 16
"""Passages of a feature that are read; the paper reads 512."""
_MOST_PASSAGES = 512
# A window carries a feature if, alone, it has more than this share of its passage's match (Neuron2Graph's threshold).
_KEPT = 0.5
_LONGEST = 4
# Passages that are read at once.
_ROWS = 512
# Features whose windows are augmented at once.
_FEATURES = 256
# Vectors of windows that are remembered.
_REMEMBERED = 20_000


def grow_tries(
    texts: Sequence[str],
    passages: Mapping[int, Sequence[int]],
    embedder: Embedder,
    sae: TopKSAE,
    *,
    reader: WordReader | None = None,
    substitutes: Substitutes | None = None,
    limit: int = PASSAGES,
) -> dict[int, Trie]:
    """The trie of each feature, of the words that carry it in its passages.

    Each passage is read once, for all features that need it. Its peak is the word with the largest share; the
    shortest window of words that ends there and keeps more than half of the match *when it is embedded alone* carries
    the feature. Shares do not prune: tokens know their context, so a passage's match is spread over all of its words,
    and a few of them never have half. What a few words are worth to the encoder is asked of the encoder.

    Args:
        texts: The corpus.
        passages: Feature -> rows of `texts` that have it, strongest first.
        embedder: The SAE's encoder.
        sae: Whose features.
        reader: Splits matches over words; `word_reader(embedder, sae)` if not given.
        substitutes: Words to try in a word's place; none are tried if not given.
        limit: Passages of a feature that are read, the strongest; 512 at most.

    Returns:
        By feature id; a trie is empty where no few words of any passage carry the feature.

    Raises:
        ValueError: `limit` is not in [1, 512].
    """
    if not 1 <= limit <= _MOST_PASSAGES:
        raise ValueError(f"limit is {limit}: expected 1 to {_MOST_PASSAGES} passages a feature.")
    reader = reader or word_reader(embedder, sae)
    wanted: dict[int, list[int]] = {}
    for feature, rows in passages.items():
        for row in rows[:limit]:
            wanted.setdefault(int(row), []).append(feature)
    windows: dict[int, list[Window]] = {feature: [] for feature in passages}
    matcher = _Matcher(embedder, sae)
    rows = sorted(wanted)
    for start in range(0, len(rows), _ROWS):
        chunk = rows[start : start + _ROWS]
        read = reader.read([texts[row] for row in chunk], [wanted[row] for row in chunk])
        pairs = [
            pair for row, words in zip(chunk, read, strict=True) for pair in _pairs(texts[row], words, wanted[row])
        ]
        for feature, window in _prune(pairs, matcher):
            windows[feature].append(window)
    if substitutes is not None:
        _augment(windows, substitutes, matcher)
    return {feature: Trie.build(own) for feature, own in windows.items()}


class _Pair(NamedTuple):
    """A passage with one of its features, and the windows that may carry it."""

    feature: int
    match: float
    # Of 1, 2, ... words.
    windows: tuple[_Cut, ...]


class _Cut(NamedTuple):
    """Words in a row, and the text that they are cut from, with what stands between them."""

    words: tuple[str, ...]
    text: str


class _Matcher:
    """Matches of short texts, embedded alone."""

    def __init__(self, embedder: Embedder, sae: TopKSAE) -> None:
        self._embedder = unwrapped(embedder)
        self._directions = FeatureDirections.of(sae)
        self._vectors: dict[str, Array] = {}

    def match(self, asked: Sequence[tuple[int, _Cut]]) -> Array:
        """(asked,) the match of each window with its feature."""
        if not asked:
            return np.zeros(0, dtype=np.float32)
        if len(self._vectors) > _REMEMBERED:
            self._vectors.clear()
        new = sorted({cut.text for _, cut in asked} - set(self._vectors), key=len)
        self._vectors.update(zip(new, self._embedder.embed_documents(new), strict=True))
        features = np.array([feature for feature, _ in asked], dtype=np.int64)
        vectors = np.stack([self._vectors[cut.text] for _, cut in asked])
        rows = self._directions.rows[features]
        return np.asarray(np.einsum("wd,wd->w", rows, vectors) + self._directions.constants[features])


def _pairs(text: str, read: WordActivations, features: Sequence[int]) -> Iterator[_Pair]:
    for feature, match, shares in zip(features, read.match.tolist(), read.values.T, strict=True):
        if match > 0 and len(shares):
            yield _Pair(feature, match, _cuts(text, read, int(np.argmax(shares))))


def _cuts(text: str, read: WordActivations, peak: int) -> tuple[_Cut, ...]:
    firsts = range(peak, max(peak - _LONGEST, -1), -1)
    end = read.spans[peak][1]
    return tuple(_Cut(read.words[first : peak + 1], text[read.spans[first][0] : end]) for first in firsts)


def _prune(pairs: Sequence[_Pair], matcher: _Matcher) -> Iterator[tuple[int, Window]]:
    """The shortest window of each pair that carries the feature, if one does."""
    left = list(pairs)
    for length in range(1, _LONGEST + 1):
        left = [pair for pair in left if len(pair.windows) >= length]
        matches = matcher.match([(pair.feature, pair.windows[length - 1]) for pair in left]).tolist()
        kept = [match > _KEPT * pair.match for pair, match in zip(left, matches, strict=True)]
        for pair, match, carries in zip(left, matches, kept, strict=True):
            if carries:
                yield pair.feature, Window(pair.windows[length - 1].words, match)
        left = [pair for pair, carries in zip(left, kept, strict=True) if not carries]


def _augment(windows: Mapping[int, list[Window]], substitutes: Substitutes, matcher: _Matcher) -> None:
    """Add each window with another peak, if it keeps half of the window's match."""
    near: dict[str, tuple[str, ...]] = {}
    features = sorted(windows)
    for start in range(0, len(features), _FEATURES):
        tried: dict[tuple[int, tuple[str, ...]], float] = {}
        for feature in features[start : start + _FEATURES]:
            known = {tuple(map(word_key, window.words)) for window in windows[feature]}
            for window in windows[feature]:
                peak = word_key(window.words[-1])
                if peak not in near:
                    near[peak] = substitutes.near(peak)
                for other in near[peak]:
                    words = (*window.words[:-1], other)
                    if tuple(map(word_key, words)) not in known:
                        # Of windows that differ in case or number only, the strongest sets the bar.
                        key = feature, words
                        tried[key] = max(tried.get(key, 0.0), _KEPT * window.activation)
        matches = matcher.match([(feature, _Cut(words, " ".join(words))) for feature, words in tried]).tolist()
        for ((feature, words), least), match in zip(tried.items(), matches, strict=True):
            if match >= least:
                windows[feature].append(Window(words, match))


__all__ = ["PASSAGES", "grow_tries"]
