"""From a corpus to the embeddings that are fitted and those that are held out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sae_steer_retriever.embedders import Embedder
from sae_steer_retriever.errors import CorpusError
from sae_steer_retriever.sae import Array
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.corpus import Corpus
from sae_steer_retriever.train.lists import nearest_documents
from sae_steer_retriever.train.measure import hold_out
from sae_steer_retriever.train.queries import query_texts
from sae_steer_retriever.train.sampling import Rows, TrainingData

# Below this many passages there is nothing to hold out, and no dictionary to be had.
SMALLEST_CORPUS = 20
# Held-out queries and passages to search: more would only make the measurement slower.
_MEASURED_QUERIES = 500
_MEASURED_PASSAGES = 20_000
_SPREAD_RANK = 100


class EmbeddedCorpus(NamedTuple):
    """A corpus' embeddings.

    Attributes:
        passages: (M, d) unit vectors, in the order of the corpus.
        data: What is fitted and held out.
        score_spread: Median distance between a list query's second and hundredth score, for the calibration.
    """

    passages: Array
    data: TrainingData
    score_spread: float


def embed_corpus(corpus: Corpus, config: TrainConfig, embedder: Embedder) -> EmbeddedCorpus:
    """Embed passages, query-like texts and real queries, and split them.

    A tenth of the passages, with the sentences taken from them, and a tenth of the real queries are held out.

    Args:
        corpus: What was read.
        config: Settings.
        embedder: A caching one: every later run and the index use the same vectors.

    Raises:
        CorpusError: The corpus is too small, or all its passages are alike.
    """
    require_enough(corpus)
    passages = embedder.embed_documents([passage.text for passage in corpus.passages])
    short = query_texts(corpus.passages, seed=config.seed, per_passage=config.sentences) if config.sentences else []
    short_rows = embedder.embed_queries([query.text for query in short])
    real_rows = embedder.embed_queries(corpus.queries)
    if float(np.std(passages, axis=0).max()) < 1e-6:
        raise CorpusError(f"all {len(passages)} passages have the same embedding: there is nothing to learn.")
    generator = np.random.default_rng(config.seed)
    held_passage = np.zeros(len(passages), dtype=bool)
    count = max(2, round(config.holdout * len(passages)))
    held_passage[generator.permutation(len(passages))[:count]] = True
    held_short = held_passage[[query.passage_index for query in short]] if short else np.zeros(0, dtype=bool)
    held_real = np.zeros(len(real_rows), dtype=bool)
    held_real[generator.permutation(len(real_rows))[: round(config.holdout * len(real_rows))]] = True

    held_rows = np.concatenate([passages[held_passage], short_rows[held_short], real_rows[held_real]])
    held_queries = np.concatenate([real_rows[held_real], generator.permutation(short_rows[held_short])])
    if not len(held_queries):
        held_queries = passages[held_passage]
    searched = passages[np.sort(generator.permutation(len(passages))[:_MEASURED_PASSAGES])]
    fitted = _with_lists(
        passages[~held_passage], np.concatenate([real_rows[~held_real], short_rows[~held_short]]), config.list_size
    )
    everything = _with_lists(passages, np.concatenate([real_rows, short_rows]), config.list_size)
    data = TrainingData(fitted, everything, hold_out(held_rows, held_queries[:_MEASURED_QUERIES], searched))
    sample = generator.permutation(everything.queries)[:1000]
    return EmbeddedCorpus(passages, data, score_spread(sample, passages))


def _with_lists(documents: Array, queries: Array, size: int) -> Rows:
    if not len(queries):  # no titles, no sentences: passages stand in for queries, each its own nearest document
        return Rows(documents, documents, documents, nearest_documents(documents, documents, size))
    rows = np.concatenate([documents, queries])
    return Rows(rows, documents, queries, nearest_documents(queries, documents, size))


def require_enough(corpus: Corpus) -> None:
    """Refuse a corpus on which nothing can be fitted.

    Raises:
        CorpusError: Fewer than 20 passages.
    """
    if len(corpus.passages) < SMALLEST_CORPUS:
        raise CorpusError(
            f"the corpus has {len(corpus.passages)} passage(s), expected at least {SMALLEST_CORPUS}: a dictionary of "
            "features needs text to learn from; add documents, or lower --passage-characters."
        )


def score_spread(queries: Array, documents: Array) -> float:
    """Median over queries of the second score less the hundredth; the first may be the query's own passage."""
    rank = min(_SPREAD_RANK, len(documents))
    rows = nearest_documents(queries, documents, rank)
    second = np.einsum("qd,qd->q", queries, documents[rows[:, min(1, rank - 1)]])
    last = np.einsum("qd,qd->q", queries, documents[rows[:, -1]])
    return float(np.median(second - last))
