"""Word attribution: a text's match with a feature, split over the words of the text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.embedders import Embedder, SentenceTransformerEmbedder
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.features.trie import Span, word_spans
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import FeatureDirections, TopKSAE

logger = logging.getLogger(__name__)

Reading = Literal["auto", "split", "prefixes"]

# Texts whose token vectors are in memory at once: 256 tokens of 1,024 numbers each are 1 MB a text.
_TEXTS = 128
# Two sums of the same token vectors differ by less, two ways of pooling by far more.
_TOLERANCE = 1e-4
_PROBES = (
    "A short text.",
    "Nominal wages in manufacturing rose; unemployment, at 4.2 %, did not (preliminary figures).",
)
# Encoders cut long texts; longer prefixes would all have the same embedding.
_MOST_WORDS = 256
# The mean of fewer prefixes of one length depends on these texts more than on the length.
_MEAN_FROM = 20
# Texts whose prefixes are in memory at once.
_PREFIXED_TEXTS = 16


class WordActivations(NamedTuple):
    """A text's match with some features, split over its words: `values.sum(axis=0) + rest` is the match.

    Attributes:
        words: The words that the encoder reads, as written; a long text is cut where the encoder cuts it.
        spans: (start, end) of each word in the text.
        values: (words, features) each word's share.
        rest: (features,) the shares of special tokens, punctuation and the prompt, and the feature's constant.
    """

    words: tuple[str, ...]
    spans: tuple[Span, ...]
    values: Array
    rest: Array

    @property
    def match(self) -> Array:
        """(features,) the match of the whole text."""
        return np.asarray(self.values.sum(axis=0, dtype=np.float64) + self.rest, dtype=np.float32)


class WordReader(Protocol):
    """Splits the matches of texts with features over the words of the texts."""

    def read(self, texts: Sequence[str], features: Sequence[Sequence[int]]) -> list[WordActivations]:
        """The matches of each text with its `features`, split over its words."""
        ...


def unwrapped(embedder: Embedder) -> Embedder:
    """The encoder behind a cache: windows and prefixes are embedded once, so caching them is no use."""
    return embedder.embedder if isinstance(embedder, CachedEmbedder) else embedder


class TokenReader:
    """Reads words in one forward pass per text, exactly, where an embedding is the mean of its token vectors.

    `x = sum_j t_j / |sum_j t_j|`, so `<w_f, x> = sum_j <w_f, t_j> / |sum t|`: each token has its share. Token vectors
    depend on their context, but a meaning is mostly kept in the tokens that express it.
    """

    def __init__(self, embedder: Embedder, sae: TopKSAE) -> None:
        """Check that the encoder, perhaps behind a `CachedEmbedder`, is a mean-pooling `SentenceTransformerEmbedder`.

        Raises:
            MismatchError: The encoder shows no token vectors, or its embedding is not their normalised sum.
        """
        model = unwrapped(embedder)
        if not isinstance(model, SentenceTransformerEmbedder):
            raise MismatchError(
                f"the encoder {model.spec.name!r} is reached through {type(model).__name__}, which shows no token "
                'vectors: expected a SentenceTransformerEmbedder; read words with how="prefixes".'
            )
        self._embedder = model
        self._directions = FeatureDirections.of(sae)
        self._require_mean()

    def read(self, texts: Sequence[str], features: Sequence[Sequence[int]]) -> list[WordActivations]:
        """Returns the matches of texts split over words, with one forward pass per text.

        Raises:
            MismatchError: The tokenizer cuts a text differently from the model that uses it.
        """
        found: list[WordActivations | None] = [None] * len(texts)
        # Texts of similar length share a batch.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), _TEXTS):
            chunk = order[start : start + _TEXTS]
            for place, tokens in zip(chunk, self._tokens([texts[place] for place in chunk]), strict=True):
                found[place] = self._split(texts[place], tokens, np.asarray(features[place], dtype=np.int64))
        return [one for one in found if one is not None]

    def _split(self, text: str, tokens: _Tokens, features: NDArray[np.int64]) -> WordActivations:
        spans = np.array(word_spans(text), dtype=np.int64).reshape(-1, 2)
        # A token belongs to the first word that ends after the token begins, if the word begins before the token ends.
        word = np.searchsorted(spans[:, 1], tokens.spans[:, 0], side="right")
        known = (tokens.spans[:, 1] > tokens.spans[:, 0]) & (word < len(spans))
        known[known] = spans[word[known], 0] < tokens.spans[known, 1]
        # In double precision: hundreds of terms of either sign must add up to their sum.
        total = tokens.vectors.sum(axis=0, dtype=np.float64)
        shares = (tokens.vectors @ self._directions.rows[features].T).astype(np.float64) / np.linalg.norm(total)
        values = np.zeros((len(spans), len(features)))
        np.add.at(values, word[known], shares[known])
        read = np.unique(word[known])
        rest = shares[~known].sum(axis=0) + self._directions.constants[features]
        places = tuple((start, end) for start, end in spans[read].tolist())
        words = tuple(text[start:end] for start, end in places)
        return WordActivations(words, places, values[read].astype(np.float32), rest.astype(np.float32))

    def _tokens(self, texts: Sequence[str]) -> list[_Tokens]:
        """The token vectors of texts, with their places in the texts; tokens of the prompt have none."""
        prefix = self._embedder.spec.document_prefix
        model = self._embedder.model
        # `output_value=None` returns all outputs of the forward pass, in every version of sentence-transformers.
        passed: Any = model.encode(list(texts), prompt=prefix, output_value=None, show_progress_bar=False)  # type: ignore[call-overload, unused-ignore]
        options = {"truncation": True, "max_length": model.max_seq_length, "return_offsets_mapping": True}
        read = model.tokenizer([prefix + text for text in texts], **options)
        found = []
        for one, ids, offsets in zip(passed, read["input_ids"], read["offset_mapping"], strict=True):
            mask = one["attention_mask"].cpu().numpy().astype(bool)
            if one["input_ids"].cpu().numpy()[mask].tolist() != ids:
                raise MismatchError(
                    f"the tokenizer of {self._embedder.spec.name!r} cuts a text of {len(ids)} tokens differently from "
                    'the model: its tokens have no places in the text; read words with how="prefixes".'
                )
            vectors = one["token_embeddings"].float().cpu().numpy()[: len(mask)][mask]
            found.append(_Tokens(vectors, np.maximum(np.array(offsets, dtype=np.int64) - len(prefix), 0)))
        return found

    def _require_mean(self) -> None:
        name = self._embedder.spec.name
        if not getattr(self._embedder.model.tokenizer, "is_fast", False):
            problem = f"the tokenizer of {name!r} does not say where in a text its tokens are"
            raise MismatchError(f'{problem}; read words with how="prefixes".')
        sums = [tokens.vectors.sum(axis=0) for tokens in self._tokens(_PROBES)]
        expected = self._embedder.embed_documents(_PROBES)
        for total, vector in zip(sums, expected, strict=True):
            if total.shape != vector.shape or not np.allclose(total / np.linalg.norm(total), vector, atol=_TOLERANCE):
                raise MismatchError(
                    f"the encoder {name!r} (pooling: {self._embedder.spec.pooling}) gives embeddings that are not the "
                    'mean of their token vectors: they cannot be split over words; read words with how="prefixes".'
                )


class _Tokens(NamedTuple):
    vectors: Array
    spans: NDArray[np.int64]


class PrefixReader:
    """Reads words by forward passes on prefixes, for any encoder (Kang, Wang & Xiong, section 3.3).

    A word's share is the match of the prefix that ends with it, less the match of the prefix before. Each prefix's
    match is taken less the mean match of the given texts' prefixes of the same length, because short prefixes are
    noisy and much alike.
    """

    def __init__(self, embedder: Embedder, sae: TopKSAE, *, stride: int = 1) -> None:
        """Take any encoder and an SAE; `stride` new words of a prefix have equal shares.

        Raises:
            ValueError: `stride` is below 1.
        """
        if stride < 1:
            raise ValueError(f"stride is {stride}: expected at least 1.")
        self._embedder = unwrapped(embedder)
        self._directions = FeatureDirections.of(sae)
        self._stride = stride

    def read(self, texts: Sequence[str], features: Sequence[Sequence[int]]) -> list[WordActivations]:
        """The matches of texts split over words, with one forward pass per prefix."""
        chosen = [np.asarray(own, dtype=np.int64) for own in features]
        spans = [word_spans(text)[:_MOST_WORDS] for text in texts]
        lengths = [self._lengths(len(own)) for own in spans]
        matches: list[Array] = []
        wholes: list[Array] = []
        size = self._directions.rows.shape[1]
        total, count = np.zeros((_MOST_WORDS + 1, size)), np.zeros(_MOST_WORDS + 1, dtype=np.int64)
        for start in range(0, len(texts), _PREFIXED_TEXTS):
            chunk = range(start, min(start + _PREFIXED_TEXTS, len(texts)))
            prefixes = [texts[place][: spans[place][length - 1][1]] for place in chunk for length in lengths[place]]
            vectors = self._embedder.embed_documents([*prefixes, *(texts[place] for place in chunk)])
            ends = np.cumsum([len(lengths[place]) for place in chunk])[:-1]
            for place, part in zip(chunk, np.split(vectors[: len(prefixes)], ends), strict=True):
                np.add.at(total, lengths[place], part)
                np.add.at(count, lengths[place], 1)
                # Without the constant, which belongs to no word.
                matches.append(part @ self._directions.rows[chosen[place]].T)
            pairs = zip(chunk, vectors[len(prefixes) :], strict=True)
            wholes += [self._directions.match(vector[None], chosen[place])[0] for place, vector in pairs]
        means = _means(total, count)
        found = []
        for place, own in enumerate(chosen):
            # A match is linear: the mean match of a length is the match of the mean vector.
            usual = means[lengths[place]] @ self._directions.rows[own].T
            values = self._shares(matches[place] - usual, lengths[place], len(spans[place]))
            words = tuple(texts[place][start:end] for start, end in spans[place])
            rest = wholes[place] - values.sum(axis=0, dtype=np.float64)
            found.append(WordActivations(words, tuple(spans[place]), values, rest.astype(np.float32)))
        return found

    def _lengths(self, words: int) -> NDArray[np.int64]:
        """Numbers of words of a text's prefixes; the last has all words."""
        return np.unique(np.append(np.arange(self._stride, words, self._stride), words)[: words or 0])

    def _shares(self, matches: Array, lengths: NDArray[np.int64], words: int) -> Array:
        if not words:
            return np.zeros((0, matches.shape[1]), dtype=np.float32)
        widths = np.diff(lengths, prepend=0)
        added = np.diff(matches, axis=0, prepend=np.zeros((1, matches.shape[1]))) / widths[:, None]
        return np.repeat(added, widths, axis=0).astype(np.float32)


def _means(total: NDArray[np.float64], count: NDArray[np.int64]) -> Array:
    """(lengths, d) mean vectors; a length of few texts has the mean of the next shorter one, if there is one."""
    means = np.zeros_like(total)
    known = np.nonzero(count >= _MEAN_FROM)[0]
    if len(known):
        place = np.searchsorted(known, np.arange(len(count)), side="right") - 1
        nearest = known[np.maximum(place, 0)]
        means = total[nearest] / count[nearest, None]
    return np.asarray(means, dtype=np.float32)


def word_reader(embedder: Embedder, sae: TopKSAE, how: Reading = "auto") -> WordReader:
    """Returns a reader that splits matches with an SAE's features over words.

    Args:
        embedder: The SAE's encoder.
        sae: The dictionary.
        how: "split" (`TokenReader`: exact, one forward pass per text, for encoders that mean-pool), "prefixes"
            (`PrefixReader`: any encoder, one forward pass per word), or "auto": the first where it works.

    Raises:
        MismatchError: "split" was asked for, and the encoder's embeddings cannot be split.
        ValueError: `how` is none of these.

    Example:
        >>> words, spans, values, rest = word_reader(embedder, sae).read(["open the file"], [[3, 5]])[0]
        >>> words, values.shape
        (('open', 'the', 'file'), (3, 2))
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
