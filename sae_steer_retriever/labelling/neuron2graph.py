"""Neuron2Graph for pooled embeddings: a trie of the words that carry a feature, from the feature's passages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.features.trie import Trie, Window, word_key
from sae_steer_retriever.labelling.word_attribution import WordActivations, WordReader, unwrapped, word_reader
from sae_steer_retriever.labelling.word_substitutes import Substitutes
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import FeatureDirections, TopKSAE

PASSAGES = 16
"""Passages of a feature that are read; the paper reads 512."""
_MOST_PASSAGES = 512
# A window carries a feature if it has, embedded alone, more than this share of its passage's match (Neuron2Graph).
_KEPT = 0.5
_LONGEST = 4
# Passages that are read at once, features whose windows are augmented at once, vectors of windows that are remembered.
_ROWS, _FEATURES, _REMEMBERED = 512, 256, 20_000


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
    """Returns a trie for each feature, by feature id, of the words that carry the feature in its passages.

    The peak of a passage is the word with the largest share of the match. The shortest window of words that ends at
    the peak and keeps more than half of the match *when it is embedded alone* carries the feature. (Shares cannot
    prune: token vectors depend on their context, so the match is spread over all words of the passage.) A trie is
    empty where no window of any passage carries the feature.

    Args:
        texts: The corpus.
        passages: By feature id, the rows of `texts` that have the feature, strongest first.
        embedder: The SAE's encoder.
        sae: The dictionary.
        reader: Splits matches over words; `word_reader(embedder, sae)` if not given.
        substitutes: Words to try in a word's place; none are tried if not given.
        limit: Passages of a feature that are read, the strongest; 512 at most.

    Raises:
        ValueError: `limit` is not in [1, 512].

    Example:
        >>> feature = catalog.labelled[0]
        >>> rows = np.argsort(-(vectors @ sae.decoder[feature.id]))[:4]
        >>> tries = grow_tries(texts, {feature.id: rows.tolist()}, embedder, sae)
        >>> list(tries) == [feature.id]
        True
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
        pairs = (_pairs(texts[row], words, wanted[row]) for row, words in zip(chunk, read, strict=True))
        for feature, window in _prune(list(chain.from_iterable(pairs)), matcher):
            windows[feature].append(window)
    if substitutes is not None:
        _augment(windows, substitutes, matcher)
    return {feature: Trie.build(own) for feature, own in windows.items()}


class _Pair(NamedTuple):
    """A passage with one of its features, and the windows that may carry the feature."""

    feature: int
    match: float
    # Of 1, 2, ... words.
    windows: tuple[_Cut, ...]


class _Cut(NamedTuple):
    """Adjacent words, and the text from the first to the last."""

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
    """Each pair's shortest window that carries the feature, if there is one."""
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
    """Add windows with another peak that keep half of the match."""
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
                        # Of windows that differ in case or number alone, the strongest sets the threshold.
                        key = feature, words
                        tried[key] = max(tried.get(key, 0.0), _KEPT * window.activation)
        matches = matcher.match([(feature, _Cut(words, " ".join(words))) for feature, words in tried]).tolist()
        for ((feature, words), least), match in zip(tried.items(), matches, strict=True):
            if match >= least:
                windows[feature].append(Window(words, match))
