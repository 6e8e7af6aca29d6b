"""Substitutes for a word: the nearest words of the corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.features.trie import clean_word, word_key, word_spans
from sae_steer_retriever.sae.codes import Array

_MOST_WORDS = 5_000
_NEAREST = 5
# Under all-MiniLM-L6-v2, forms of a word and synonyms have a higher cosine.
_ALIKE_FROM = 0.6
# Shorter words are symbols, which are near all other symbols.
_LETTERS = 3


class Substitutes:
    """The nearest words of a vocabulary.

    Neuron2Graph asks a masked language model for substitutes. A sentence encoder has no such head, but its embeddings
    of the corpus' words tell which words mean the same.
    """

    def __init__(self, words: Sequence[str], vectors: Array, *, nearest: int = _NEAREST) -> None:
        """Take V words with their (V, d) unit embeddings; a word has `nearest` substitutes at most.

        Raises:
            MismatchError: There is not one vector for each word.
        """
        if vectors.ndim != 2 or len(vectors) != len(words):
            raise MismatchError(f"{len(words)} words have vectors of shape {vectors.shape}: expected one for each.")
        self._words, self._vectors, self._nearest = tuple(words), vectors, nearest
        self._place = {word_key(word): place for place, word in reversed(list(enumerate(words)))}

    def __len__(self) -> int:
        """Number of words."""
        return len(self._words)

    @classmethod
    def of_texts(cls, texts: Sequence[str], embedder: Embedder, *, most: int = _MOST_WORDS) -> Substitutes:
        """The `most` words that stand in the most texts, each embedded once."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update({clean_word(text[start:end]) for start, end in word_spans(text)})
        common = sorted(counts, key=lambda word: (-counts[word], word))
        words = [word for word in common if len(word) >= _LETTERS and not word.isnumeric()][:most]
        return cls(words, embedder.embed_documents(words))

    def near(self, word: str) -> tuple[str, ...]:
        """The words nearest to a word, nearest first; none for a word that is not in the vocabulary."""
        place = self._place.get(word_key(word))
        if place is None:
            return ()
        cosines = self._vectors @ self._vectors[place]
        found: list[str] = []
        known = {word_key(word)}
        for other in np.argsort(-cosines, kind="stable")[: 4 * self._nearest].tolist():
            key = word_key(self._words[other])
            if cosines[other] < _ALIKE_FROM or len(found) == self._nearest:
                break
            if key not in known:
                known.add(key)
                found.append(self._words[other])
        return tuple(found)
