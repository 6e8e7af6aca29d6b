"""Which words of a text a feature answers to: the exact split of a mean-pooled embedding's match over its words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.embedders import Embedder, SentenceTransformerEmbedder
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import FeatureDirections, TopKSAE

Span = tuple[int, int]

# Letters and digits; what hyphens, apostrophes, points and underscores hold together is one word: COVID-19, IL-1.5.
_WORD = re.compile(r"[^\W_]+(?:[-_.'\N{RIGHT SINGLE QUOTATION MARK}][^\W_]+)*")
# Texts whose token vectors are in memory at once: 256 tokens of 1,024 numbers each are 1 MB a text.
_TEXTS = 128
# Two ways of adding the same token vectors up differ by less, two ways of pooling by far more.
_TOLERANCE = 1e-4
_PROBES = (
    "A short text.",
    "Nominal wages in manufacturing rose; unemployment, at 4.2 %, did not (preliminary figures).",
)


def word_spans(text: str) -> list[Span]:
    """Where the words of a text are: (start, end) of each, in characters."""
    return [match.span() for match in _WORD.finditer(text)]


class WordActivations(NamedTuple):
    """A text's match with some features, split over its words: `values.sum(axis=0) + rest` is the match.

    Attributes:
        words: Those that the encoder has read, as written; a long text is cut where the encoder cuts it.
        spans: Where each is in the text.
        values: (words, features) each word's share.
        rest: (features,) what is no word's share: special tokens, punctuation, the prompt, and the feature's constant.
    """

    words: tuple[str, ...]
    spans: tuple[Span, ...]
    values: Array
    rest: Array

    @property
    def match(self) -> Array:
        """(features,) the whole."""
        return np.asarray(self.values.sum(axis=0, dtype=np.float64) + self.rest, dtype=np.float32)


class WordReader(Protocol):
    """Tells which words of a text its features answer to."""

    def read(self, texts: Sequence[str], features: Sequence[Sequence[int]]) -> list[WordActivations]:
        """Split the matches of each text with its features over its words.

        Args:
            texts: Any number.
            features: For each text, the features to read.
        """
        ...


def unwrapped(embedder: Embedder) -> Embedder:
    """The encoder behind a cache: what is embedded once and never again is not worth a place in it."""
    return embedder.embedder if isinstance(embedder, CachedEmbedder) else embedder


class TokenReader:
    """Reads words in one forward pass per text, exactly, where an embedding is the mean of its token vectors.

    `x = sum_j t_j / |sum_j t_j|`, so `<w_f, x> = sum_j <w_f, t_j> / |sum t|`: each token has its share. Tokens know
    their context, so a share says where the encoder keeps a meaning, which is mostly where it is written.
    """

    def __init__(self, embedder: Embedder, sae: TopKSAE) -> None:
        """Check that the encoder pools so.

        Args:
            embedder: A `SentenceTransformerEmbedder`, perhaps behind a `CachedEmbedder`.
            sae: Whose features.

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
        """Split matches over words, one forward pass per text; see `WordReader.read`.

        Raises:
            MismatchError: The tokenizer cuts a text differently from the model that uses it.
        """
        found: list[WordActivations | None] = [None] * len(texts)
        # Texts of like length share a batch.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), _TEXTS):
            chunk = order[start : start + _TEXTS]
            for place, tokens in zip(chunk, self._tokens([texts[place] for place in chunk]), strict=True):
                found[place] = self._split(texts[place], tokens, np.asarray(features[place], dtype=np.int64))
        return [one for one in found if one is not None]

    def _split(self, text: str, tokens: _Tokens, features: NDArray[np.int64]) -> WordActivations:
        spans = np.array(word_spans(text), dtype=np.int64).reshape(-1, 2)
        # The first word that ends after the token begins is the token's, if it begins before the token ends.
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
        return WordActivations(
            tuple(text[start:end] for start, end in spans[read].tolist()),
            tuple((start, end) for start, end in spans[read].tolist()),
            values[read].astype(np.float32),
            rest.astype(np.float32),
        )

    def _tokens(self, texts: Sequence[str]) -> list[_Tokens]:
        """The token vectors of texts with their places in them; what is before the text, the prompt, has none."""
        prefix = self._embedder.spec.document_prefix
        model = self._embedder.model
        # With this, `encode` returns everything that a forward pass gave, in every version of sentence-transformers.
        passed: Any = model.encode(list(texts), prompt=prefix, output_value=None, show_progress_bar=False)  # type: ignore[call-overload, unused-ignore]
        read = model.tokenizer(
            [prefix + text for text in texts],
            truncation=True,
            max_length=model.max_seq_length,
            return_offsets_mapping=True,
        )
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
            raise MismatchError(
                f"the tokenizer of {name!r} does not say where in a text its tokens are; "
                'read words with how="prefixes".'
            )
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


__all__ = [
    "Span",
    "TokenReader",
    "WordActivations",
    "WordReader",
    "unwrapped",
    "word_spans",
]
