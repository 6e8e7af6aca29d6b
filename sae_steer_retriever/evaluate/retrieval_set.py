"""A retrieval set: documents, queries, relevance judgments, and the embeddings of the texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sae_steer_retriever.corpus.passage import Passage
from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.errors import CorpusError
from sae_steer_retriever.sae.codes import Array

Judgments = dict[str, dict[str, int]]
"""Query id -> document id -> grade, in the order of their source."""

RELEVANT = 1
"""The smallest grade that means relevant."""

_SHOWN_IDS = 3


@dataclass(frozen=True)
class RetrievalSet:
    """Documents and the queries that are judged on them.

    Attributes:
        name: The folder's name, or the id that was asked for.
        passages: N documents with unique ids, one passage each; the text is title + " " + text.
        query_ids: Q unique ids of the queries with at least one relevant document, in the order of the judgments.
        queries: Q texts.
        judgments: Query id -> document id -> grade, for these queries. A grade of at least 1 means relevant. Zeros are
            kept, and so are documents that the corpus lacks: an ideal ranking would hold them.
        notes: Remarks for readers of the figures, one sentence each.
    """

    name: str
    passages: list[Passage]
    query_ids: list[str]
    queries: list[str]
    judgments: Judgments
    notes: tuple[str, ...] = ()

    @property
    def document_ids(self) -> list[str]:
        """Returns N ids."""
        return [passage.id for passage in self.passages]

    @property
    def texts(self) -> list[str]:
        """Returns N texts."""
        return [passage.text for passage in self.passages]


class EmbeddedSet(NamedTuple):
    """The unit vectors of a retrieval set's documents, (N, d) float32, and queries, (Q, d) float32, in its order."""

    documents: Array
    queries: Array


def embed_set(retrieval_set: RetrievalSet, embedder: Embedder) -> EmbeddedSet:
    """Returns the embeddings of a retrieval set; a `CachedEmbedder` saves later runs from embedding a text again.

    Raises:
        MismatchError: The encoder gives vectors that are zero, not finite, or of another size than it says.
    """
    documents = embedder.embed_documents(retrieval_set.texts)
    return EmbeddedSet(documents, embedder.embed_queries(retrieval_set.queries))


def judged_set(
    name: str,
    passages: Sequence[Passage],
    queries: Mapping[str, str],
    judgments: Judgments,
    *,
    source: str,
    notes: Sequence[str] = (),
) -> RetrievalSet:
    """Returns a retrieval set, checked: its documents, queries and judgments belong together.

    Args:
        name: Its name.
        passages: The documents.
        queries: Texts by query id; queries without a judgment are left out.
        judgments: All judgments of the split.
        source: Origin of the judgments, for messages.
        notes: First notes of the set; notes on what was left out follow.

    Raises:
        CorpusError: No judged query has a text, none has a relevant document, or no judged document is in the corpus.
    """
    document_ids = [passage.id for passage in passages]
    unknown = [query for query in judgments if query not in queries]
    if len(unknown) == len(judgments):
        raise CorpusError(
            f"none of the {len(judgments)} queries that {source} judges is among the {len(queries)} queries "
            f"(judged: {_some(unknown)}; there: {_some(list(queries))}): expected the same query ids in both"
        )
    known = {query: grades for query, grades in judgments.items() if query in queries}
    kept = {query: grades for query, grades in known.items() if max(grades.values()) >= RELEVANT}
    if not kept:
        raise CorpusError(
            f"none of the {len(known)} queries that {source} judges has a relevant document: expected a score of at "
            f"least {RELEVANT} for some; is this the right split?"
        )
    in_corpus = set(document_ids)
    judged = {document for grades in known.values() for document in grades}
    absent = judged - in_corpus
    if len(absent) == len(judged):
        raise CorpusError(
            f"none of the {len(judged)} documents that {source} judges is among the {len(in_corpus)} documents "
            f"(judged: {_some(sorted(judged))}; there: {_some(document_ids)}): are these qrels of another corpus?"
        )
    relevant = [{name for name, grade in grades.items() if grade >= RELEVANT} for grades in kept.values()]
    lost = [documents for documents in relevant if documents.isdisjoint(in_corpus)]
    irrelevant = len(known) - len(kept)
    found = [
        (len(unknown), f"{len(unknown)} of {len(judgments)} judged queries are not in the file of queries: left out"),
        (irrelevant, f"{irrelevant} of {len(known)} queries have no relevant document: left out"),
        (len(absent), f"{len(absent)} judged documents are not in the corpus"),
        (len(lost), f"{len(lost)} of {len(kept)} queries have none of their relevant documents in the corpus: kept"),
    ]
    remarks = (*notes, *(note for count, note in found if count))
    return RetrievalSet(name, list(passages), list(kept), [queries[query] for query in kept], kept, remarks)


def _some(ids: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in ids[:_SHOWN_IDS])
    return f"{shown}, ..." if len(ids) > _SHOWN_IDS else shown or "none"
