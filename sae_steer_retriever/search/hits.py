"""Hits: ranked passages with their texts and the reasons for their scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from sae_steer_retriever.explain.attribution import Attribution
from sae_steer_retriever.search.ranking import Ranking
from sae_steer_retriever.store.documents import Record

# From a place in a ranking and its passage to the parts of its score.
Explain = Callable[[int, Record], Attribution]


@dataclasses.dataclass(frozen=True)
class Hit:
    """One retrieved passage.

    Attributes:
        id: The passage's id.
        text: The passage.
        metadata: The user's metadata.
        score: What it was ranked by: cosine similarity for unit embeddings, of power-normalised codes in the latent
            space, plus what the steering adds. Larger is better.
        base_score: Its score without steering.
        base_rank: Its rank without steering, from 1; None if it was not among the candidates of the plain search.
        attribution: Why it has this score; None if `explain=False`.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    score: float
    base_score: float
    base_rank: int | None
    attribution: Attribution | None


def hits_of(ranking: Ranking, records: Mapping[str, Record], explain: Explain | None) -> list[Hit]:
    """Put texts and reasons beside a ranking.

    Args:
        ranking: The passages, best first.
        records: What is stored of them; what is missing was deleted since it was found, and is left out.
        explain: Decomposes a score, where that is wanted.
    """
    hits = []
    for row, name in enumerate(ranking.ids):
        record = records.get(name)
        if record is None:
            continue
        hits.append(
            Hit(
                id=name,
                text=record.text,
                metadata=record.metadata,
                score=float(ranking.scores[row]),
                base_score=float(ranking.base_scores[row]),
                base_rank=ranking.base_ranks[row],
                attribution=None if explain is None else explain(row, record),
            )
        )
    return hits


__all__ = ["Explain", "Hit", "hits_of"]
