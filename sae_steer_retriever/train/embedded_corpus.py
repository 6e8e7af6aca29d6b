"""Embeds a corpus, and splits it into the embeddings that are fitted and those that are held out."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.corpus.passage import Corpus
from sae_steer_retriever.corpus.query_texts import QueryText, query_texts
from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.encoders.vector_rows import VectorRows
from sae_steer_retriever.errors import CorpusError
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.measure import hold_out
from sae_steer_retriever.train.nearest_lists import Ranking, filtered_lists, nearest_documents, rank_documents
from sae_steer_retriever.train.sampling import Rows, TrainingData

# Fewer passages leave nothing to hold out and nothing to learn.
SMALLEST_CORPUS = 20
# Of more query-like texts than this, a seeded sample has lists: a fit of 1,900 steps draws 32 per step, 61,000 in all,
# and finding a list costs a product per document.
MOST_LIST_QUERIES = 50_000
# Most held-out queries, rows and passages: more would only make the measurement slower.
_MEASURED_QUERIES = 500
_MEASURED_ROWS = 20_000
_MEASURED_PASSAGES = 20_000
_SPREAD_RANK = 100
_ALIKE = 1e-6
_TILE = 16_384


class EmbeddedCorpus(NamedTuple):
    """A corpus' embeddings."""

    passages: VectorRows  # (M, d) unit vectors, in the order of the corpus; memory-mapped if the embedder has a cache
    data: TrainingData
    score_spread: float  # median difference between a list query's second and hundredth score, for the calibration


class _Masks(NamedTuple):
    """One mask for each of the `_Parts`."""

    passages: NDArray[np.bool_]
    real: NDArray[np.bool_]
    short: NDArray[np.bool_]


class _Parts(NamedTuple):
    """Rows of one store: passages, real queries, and short texts (titles and sentences)."""

    passages: VectorRows
    real: VectorRows
    short: VectorRows

    def select(self, chosen: _Masks) -> _Parts:
        """The rows under the masks."""
        return _Parts(*(part.select(mask) for part, mask in zip(self, chosen, strict=True)))


def short_texts(corpus: Corpus, config: TrainConfig) -> list[QueryText]:
    """The query-like texts of the passages that are fitted too; none if `config.sentences` is 0."""
    if not config.sentences:
        return []
    return query_texts(corpus.passages, seed=config.seed, per_passage=config.sentences)


def embed_corpus(
    corpus: Corpus, config: TrainConfig, embedder: Embedder, short: list[QueryText] | None = None
) -> EmbeddedCorpus:
    """Returns the embeddings of passages, query-like texts and real queries, split into fitted and held-out ones.

    A share `config.holdout` of the passages, with the sentences taken from them, and of the real queries is held out.
    With a `CachedEmbedder` the vectors stay in its file and are read as they are needed; only what is measured is in
    memory. `short` is the result of `short_texts`, computed here if not given.

    Raises:
        CorpusError: The corpus is too small, or all its passages have the same embedding.
    """
    require_enough(corpus)
    short = short_texts(corpus, config) if short is None else short
    parts = _embedded(corpus, [query.text for query in short], embedder)
    passages = parts.passages
    first = passages[:1]
    if all(float(np.abs(batch - first).max()) < _ALIKE for batch in passages.batches(_TILE)):
        raise CorpusError(f"all {len(passages)} passages have the same embedding: there is nothing to learn.")
    generator = np.random.default_rng(config.seed)
    count = max(2, round(config.holdout * len(passages)))
    # Held out are those with one of the first places in a random order.
    held_passage = generator.permutation(len(passages)).argsort() < count
    held_short = held_passage[[query.passage_index for query in short]] if short else np.zeros(0, dtype=bool)
    held_real = generator.permutation(len(parts.real)).argsort() < round(config.holdout * len(parts.real))

    held = parts.select(_Masks(held_passage, held_real, held_short))
    held_queries = VectorRows.joined([held.real, held.short.select(generator.permutation(len(held.short)))])
    if not len(held_queries):
        held_queries = held.passages
    searched = passages[np.sort(generator.permutation(len(passages))[:_MEASURED_PASSAGES])]
    fitted, everything = _with_lists(parts, _Masks(~held_passage, ~held_real, ~held_short), config)
    spread = score_spread(everything.queries[generator.permutation(len(everything.queries))[:1000]], passages)
    held_rows = VectorRows.joined([held.passages, held.short, held.real])
    if len(held_rows) > _MEASURED_ROWS:
        held_rows = held_rows.select(np.sort(generator.permutation(len(held_rows))[:_MEASURED_ROWS]))
    held_out = hold_out(held_rows[:], held_queries[:_MEASURED_QUERIES], searched)
    return EmbeddedCorpus(passages, TrainingData(fitted, everything, held_out), spread)


def _embedded(corpus: Corpus, short: list[str], embedder: Embedder) -> _Parts:
    texts = [passage.text for passage in corpus.passages]
    if isinstance(embedder, CachedEmbedder):
        places = [embedder.document_places(texts), embedder.query_places(corpus.queries), embedder.query_places(short)]
        store = embedder.vectors()
    else:
        parts = [embedder.embed_documents(texts), embedder.embed_queries(corpus.queries), embedder.embed_queries(short)]
        store = np.concatenate(parts)
        places = np.split(np.arange(len(store)), np.cumsum([len(part) for part in parts])[:-1])
    return _Parts(*(VectorRows(store, own) for own in places))


def _with_lists(parts: _Parts, fitted: _Masks, config: TrainConfig) -> tuple[Rows, Rows]:
    """Returns the fitted rows, and all rows, each with the lists of its queries.

    All documents are ranked once, deeper than needed, and the held-out ones are then removed. A list is searched for
    again if it may be wrong after that, or if its query is not in the sample of queries that were ranked.
    """
    whole = _Masks(*(np.ones(len(part), dtype=bool) for part in parts))
    candidates = VectorRows.joined([parts.real, parts.short, parts.passages])
    asked = _list_queries(whole, config.seed)
    depth = config.list_size + _margin(fitted.passages, config.list_size)
    ranking = rank_documents(candidates.select(asked), parts.passages, depth)
    found = []
    for masks in (fitted, whole):
        own, numbers = parts.select(masks), _list_queries(masks, config.seed)
        place = np.minimum(np.searchsorted(asked, numbers), len(asked) - 1)
        queries = candidates.select(numbers)
        ranked = Ranking(ranking.rows[place], ranking.scores[place])
        lists, unsure = filtered_lists(ranked, masks.passages, config.list_size)
        again = np.nonzero(unsure | (asked[place] != numbers))[0]
        if len(again):
            lists[again] = nearest_documents(queries.select(again), own.passages, config.list_size)
        found.append(Rows(VectorRows.joined(own), own.passages, queries, lists))
    return found[0], found[1]


def _list_queries(chosen: _Masks, seed: int) -> NDArray[np.int64]:
    """Ascending numbers of the queries that have lists, counted over real queries, short texts, passages."""
    passages, real, short = (np.nonzero(mask)[0] for mask in chosen)
    # Real queries are left out only once all others are.
    real = _sampled(real, MOST_LIST_QUERIES, seed)
    short = len(chosen.real) + _sampled(short, MOST_LIST_QUERIES - len(real), seed)
    if len(real) or len(short):
        return np.concatenate([real, short])
    # Without titles and sentences, passages serve as queries, each its own nearest document.
    return len(chosen.real) + len(chosen.short) + _sampled(passages, MOST_LIST_QUERIES, seed)


def _sampled(numbers: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """All numbers, or a sample in their order if there are more than `most`."""
    if len(numbers) <= most:
        return numbers
    return numbers[np.sort(np.random.default_rng(seed).permutation(len(numbers))[:most])]


def _margin(kept: NDArray[np.bool_], size: int) -> int:
    """Documents to rank beyond `size`, so that only one list in 50,000 is too short once others are removed."""
    expected = size * (len(kept) / int(kept.sum()) - 1)
    return math.ceil(expected + 5 * math.sqrt(expected))


def require_enough(corpus: Corpus) -> None:
    """Raises a CorpusError if the corpus has fewer than 20 passages, too few to fit anything."""
    if len(corpus.passages) < SMALLEST_CORPUS:
        raise CorpusError(
            f"the corpus has {len(corpus.passages)} passage(s), expected at least {SMALLEST_CORPUS}: a dictionary of "
            "features needs text to learn from; add documents, or lower --passage-characters."
        )


def score_spread(queries: Array, documents: VectorRows) -> float:
    """Median over queries of the second score less the hundredth; the first may be the query's own passage."""
    rank = min(_SPREAD_RANK, len(documents))
    rows = nearest_documents(queries, documents, rank)
    second = np.einsum("qd,qd->q", queries, documents[rows[:, min(1, rank - 1)]])
    last = np.einsum("qd,qd->q", queries, documents[rows[:, -1]])
    return float(np.median(second - last))
