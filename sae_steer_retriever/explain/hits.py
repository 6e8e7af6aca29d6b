"""Hits: ranked passages with their texts and the parts of their scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

from sae_steer_retriever.explain.attribution import Attribution
from sae_steer_retriever.explain.text import excerpt, one_line

ReadOn = Literal["reconstruction", "vector"]
_LINE_CHARACTERS = 80


@dataclasses.dataclass(frozen=True)
class Hit:
    """One retrieved passage.

    Attributes:
        id: The passage's id.
        text: The passage.
        metadata: The user's metadata.
        score: The score that ranks it; larger is better. Without steering it is the cosine similarity of unit
            embeddings (of power-normalised codes in the latent space); steering terms are added.
        base_score: Its score without steering.
        base_rank: Its rank without steering, from 1; None if it is not among the plain search's candidates.
        attribution: The parts of its score; None if `explain=False`.
        read_on: The vector on which the steering's terms were read: "reconstruction" (the sidecar's) or "vector" (the
            stored one, where the sidecar has no row of it); None without steering.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    score: float
    base_score: float
    base_rank: int | None
    attribution: Attribution | None
    read_on: ReadOn | None = None


class Hits(list[Hit]):
    """The hits of a search, best first; prints as a table.

    Attributes:
        certified: Whether these are the best of all passages, as far as the store's own nearest neighbours are exact.
            A strong steering, or one of more than three features, can leave that open; the hits are then the best of
            the candidates that were found.

    Example:
        >>> hits = retriever.search("wait for a thread to end", k=3)
        >>> print(hits)
         rank   score   was  id...
        >>> hits[0].id in [hit.id for hit in hits]
        True
    """

    def __init__(self, hits: Iterable[Hit] = (), *, certified: bool = False) -> None:
        super().__init__(hits)
        self.certified = certified

    def __str__(self) -> str:
        """Returns a table: rank, score, rank without steering, id, and the beginning of the text."""
        lines = [" rank   score   was  id, text"]
        for rank, hit in enumerate(self, start=1):
            was = "-" if hit.base_rank is None else str(hit.base_rank)
            line = f"{one_line(hit.id)}  {excerpt(hit.text)}"
            lines.append(f"{rank:>5}  {hit.score:>6.3f}  {was:>4}  {line[:_LINE_CHARACTERS]}")
        return "\n".join(lines)
