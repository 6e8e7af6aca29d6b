"""Which words a feature answers to, for any encoder: what each prefix of a text adds, the paper's way."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.labelling.token_attribution import (
    TokenReader,
    WordActivations,
    WordReader,
    unwrapped,
    word_spans,
)
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import FeatureDirections, TopKSAE

logger = logging.getLogger(__name__)

Reading = Literal["auto", "split", "prefixes"]

# Encoders cut long texts; prefixes beyond would all have the same embedding.
_MOST_WORDS = 256
# The mean of fewer prefixes of one length is those texts' own match rather than what the length does.
_MEAN_FROM = 20
# Texts whose prefixes are in memory at once.
_TEXTS = 16


class PrefixReader:
    """Reads words by forward passes on prefixes (Kang, Wang & Xiong, section 3.3, after Neuron2Graph).

    A prefix's match less the mean match of prefixes of its length, over the texts that were given: short prefixes are
    noisy, and all alike. A word's share is what its prefix adds to the one before.
    """

    def __init__(self, embedder: Embedder, sae: TopKSAE, *, stride: int = 1) -> None:
        """Take the parts.

        Args:
            embedder: Any encoder; of a `CachedEmbedder` the one that it wraps.
            sae: Whose features.
            stride: Words by which a prefix is longer than the one before; they share equally in what it adds.

        Raises:
            ValueError: `stride` is below 1.
        """
        if stride < 1:
            raise ValueError(f"stride is {stride}: expected at least 1.")
        self._embedder = unwrapped(embedder)
        self._directions = FeatureDirections.of(sae)
        self._stride = stride

    def read(self, texts: Sequence[str], features: Sequence[Sequence[int]]) -> list[WordActivations]:
        """Split matches over words, one forward pass per prefix; see `WordReader.read`."""
        chosen = [np.asarray(own, dtype=np.int64) for own in features]
        spans = [word_spans(text)[:_MOST_WORDS] for text in texts]
        lengths = [self._lengths(len(own)) for own in spans]
        matches: list[Array] = []
        wholes: list[Array] = []
        size = self._directions.rows.shape[1]
        total, count = np.zeros((_MOST_WORDS + 1, size)), np.zeros(_MOST_WORDS + 1, dtype=np.int64)
        for start in range(0, len(texts), _TEXTS):
            chunk = range(start, min(start + _TEXTS, len(texts)))
            prefixes = [texts[place][: spans[place][length - 1][1]] for place in chunk for length in lengths[place]]
            vectors = self._embedder.embed_documents([*prefixes, *(texts[place] for place in chunk)])
            ends = np.cumsum([len(lengths[place]) for place in chunk])[:-1]
            for place, part in zip(chunk, np.split(vectors[: len(prefixes)], ends), strict=True):
                np.add.at(total, lengths[place], part)
                np.add.at(count, lengths[place], 1)
                # Without the constant, which is no word's.
                matches.append(part @ self._directions.rows[chosen[place]].T)
            wholes += [
                self._directions.match(vector[None], chosen[place])[0]
                for place, vector in zip(chunk, vectors[len(prefixes) :], strict=True)
            ]
        means = _means(total, count)
        found = []
        for place, own in enumerate(chosen):
            # The mean match of a length is the match of the mean, since a match is linear.
            usual = means[lengths[place]] @ self._directions.rows[own].T
            values = self._shares(matches[place] - usual, lengths[place], len(spans[place]))
            words = tuple(texts[place][start:end] for start, end in spans[place])
            rest = wholes[place] - values.sum(axis=0, dtype=np.float64)
            found.append(WordActivations(words, tuple(spans[place]), values, rest.astype(np.float32)))
        return found

    def _lengths(self, words: int) -> NDArray[np.int64]:
        """In words, of the prefixes of a text; the last has all words."""
        return np.unique(np.append(np.arange(self._stride, words, self._stride), words)[: words or 0])

    def _shares(self, matches: Array, lengths: NDArray[np.int64], words: int) -> Array:
        if not words:
            return np.zeros((0, matches.shape[1]), dtype=np.float32)
        widths = np.diff(lengths, prepend=0)
        added = np.diff(matches, axis=0, prepend=np.zeros((1, matches.shape[1]))) / widths[:, None]
        return np.repeat(added, widths, axis=0).astype(np.float32)


def _means(total: NDArray[np.float64], count: NDArray[np.int64]) -> Array:
    """(lengths, d) mean vectors; of lengths that few texts have that of the next shorter one, and before it none."""
    means = np.zeros_like(total)
    known = np.nonzero(count >= _MEAN_FROM)[0]
    if len(known):
        place = np.searchsorted(known, np.arange(len(count)), side="right") - 1
        nearest = known[np.maximum(place, 0)]
        means = total[nearest] / count[nearest, None]
    return np.asarray(means, dtype=np.float32)


def word_reader(embedder: Embedder, sae: TopKSAE, how: Reading = "auto") -> WordReader:
    """What reads the words that an SAE's features answer to.

    Args:
        embedder: The SAE's encoder.
        sae: Whose features.
        how: "split" (`TokenReader`: exact, one forward pass per text, for encoders that mean-pool), "prefixes"
            (`PrefixReader`: any encoder, one forward pass per word), or "auto": the first where it works.

    Raises:
        MismatchError: "split" was asked for, and the encoder's embeddings cannot be split.
        ValueError: `how` is none of these.
    """
    if how not in ("auto", "split", "prefixes"):
        raise ValueError(f'how is {how!r}: expected "auto", "split" or "prefixes".')
    if how == "prefixes":
        return PrefixReader(embedder, sae)
    try:
        return TokenReader(embedder, sae)
    except MismatchError as error:
        if how == "split":
            raise
        logger.info("words are read by prefixes, a forward pass each: %s", error)
        return PrefixReader(embedder, sae)


__all__ = ["PrefixReader", "Reading", "word_reader"]
