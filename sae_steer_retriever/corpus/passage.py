"""Passages: the texts that are embedded and stored, and the corpus that holds them."""

from __future__ import annotations

from dataclasses import dataclass, field

Scalar = str | int | float | bool
"""The values of metadata that vector stores take."""


@dataclass(frozen=True)
class Passage:
    """One text to embed and to store.

    Attributes:
        id: Stable and unique in its corpus: the id of the row, or "relative/path.md#3".
        text: The text, after its title.
        title: The nearest heading or the row's title, or "".
        metadata: `source` (the file's path relative to the corpus, with "/"), `title` if there is one, `page` of a PDF
            file, and the other scalar fields of a row. A row's own `source` replaces the file's.

    Example:
        >>> from sae_steer_retriever.corpus.passage import Passage
        >>> Passage("handbook.md#1", "We refund within 14 days.", metadata={"source": "handbook.md"}).id
        'handbook.md#1'
    """

    id: str
    text: str
    title: str = ""
    metadata: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """The passages of a file or folder, and what was left out.

    Attributes:
        passages: In the order of their files' paths and of the text in them.
        queries: Real queries: of the given file, and of the train judgements of a BEIR-layout folder.
        skipped: (path relative to the corpus, reason) of files, and of rows of a file, that were left out.
        notes: (path, note) of files that were read with a guess, such as their encoding.
    """

    passages: list[Passage]
    queries: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
