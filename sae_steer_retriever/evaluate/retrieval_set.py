"""A retrieval set: documents, queries, and which documents answer which query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sae_steer_retriever.corpus.passage import Passage
from sae_steer_retriever.errors import CorpusError
from sae_steer_retriever.evaluate.qrels import Judgments

RELEVANT = 1
"""The smallest grade that means relevant."""

_SHOWN_IDS = 3


@dataclass(frozen=True)
class RetrievalSet:
    """Documents and the queries that are judged on them.

    Attributes:
        name: The folder's name, or the id it was asked for by.
        passages: N documents with unique ids, one passage each; the text is title + " " + text.
        query_ids: Q unique ids of the queries that have at least one relevant document, in the order of the
            judgments.
        queries: Q texts.
        judgments: Query id -> document id -> grade, for those queries only. A grade of at least 1 means relevant;
            zeros are kept, and so are documents that are not in the corpus (an ideal ranking would hold them).
        notes: What a reader of the figures has to know, one sentence each.
    """

    name: str
    passages: list[Passage]
    query_ids: list[str]
    queries: list[str]
    judgments: Judgments
    notes: tuple[str, ...] = ()

    @property
    def document_ids(self) -> list[str]:
        """N ids."""
        return [passage.id for passage in self.passages]

    @property
    def texts(self) -> list[str]:
        """N texts."""
        return [passage.text for passage in self.passages]


def judged_set(
    name: str,
    passages: Sequence[Passage],
    queries: Mapping[str, str],
    judgments: Judgments,
    *,
    source: str,
    notes: Sequence[str] = (),
) -> RetrievalSet:
    """Put a retrieval set together and see to it that its parts belong together.

    Args:
        name: Its name.
        passages: The documents.
        queries: Texts by query id; those without a judgment are left out.
        judgments: All judgments of the split.
        source: Where the judgments come from, for messages.
        notes: What is to be noted already.

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
    lost = [
        query
        for query, grades in kept.items()
        if not any(grade >= RELEVANT and document in in_corpus for document, grade in grades.items())
    ]
    found = [
        (len(unknown), f"{len(unknown)} of {len(judgments)} judged queries are not in the file of queries: left out"),
        (
            len(known) - len(kept),
            f"{len(known) - len(kept)} of {len(known)} queries have no relevant document: left out",
        ),
        (len(absent), f"{len(absent)} judged documents are not in the corpus"),
        (len(lost), f"{len(lost)} of {len(kept)} queries have none of their relevant documents in the corpus: kept"),
    ]
    return RetrievalSet(
        name=name,
        passages=list(passages),
        query_ids=list(kept),
        queries=[queries[query] for query in kept],
        judgments=kept,
        notes=(*notes, *(note for count, note in found if count)),
    )


def _some(ids: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in ids[:_SHOWN_IDS])
    return f"{shown}, ..." if len(ids) > _SHOWN_IDS else shown or "none"
