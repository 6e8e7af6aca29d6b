"""Relevance judgments: query id -> document id -> grade, from the lines of a file or from records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sae_steer_retriever.corpus.decoding import UnreadableFileError
from sae_steer_retriever.corpus.rows import read_text
from sae_steer_retriever.errors import CorpusError

Judgments = dict[str, dict[str, int]]
"""Query id -> document id -> grade, in the order of their source."""

LARGEST_GRADE = 1000
"""The largest grade that is taken, of either sign: trec_eval, which scores, needs memory for every grade up to it."""

# Python refuses to read numbers of thousands of digits.
_GRADE = re.compile(r"[+-]?[0-9]{1,1000}")
_HEADER_NAMES = ("score", "relevance", "rel", "grade", "label")


class Judgment(NamedTuple):
    """One judgment.

    Attributes:
        query: The query's id.
        document: The document's id.
        grade: How relevant the document is; at least 1 means relevant.
        place: Where it stands, for messages ("line 3").
    """

    query: str
    document: str
    grade: int
    place: str


def read_qrels(path: Path) -> Judgments:
    """Read a file of judgments, one a line.

    A line has three columns with tabs between (query-id, corpus-id, score: BEIR, Thakur et al. 2021) or the four of
    TREC (query-id, 0, corpus-id, score; tabs or spaces). A first line of column names is passed over.

    Raises:
        CorpusError: The file cannot be read or holds no judgment, a line is malformed, or two lines contradict each
            other; the message names the file and the line.
    """
    try:
        text, _ = read_text(path)
    except UnreadableFileError as error:
        raise CorpusError(f"cannot read the judgments {path}: {error}") from error
    judgments = gather(_judgments(path, text), str(path))
    if not judgments:
        raise CorpusError(f"no judgment in {path}: expected lines of query-id, corpus-id and score, with tabs between")
    return judgments


def gather(judgments: Iterable[Judgment], source: str) -> Judgments:
    """Bring judgments together by query.

    Args:
        judgments: In order; the same one may occur twice.
        source: Where they come from, for messages.

    Raises:
        CorpusError: One document is judged twice for one query, with different grades, or a grade is too large.
    """
    gathered: Judgments = {}
    places: dict[tuple[str, str], str] = {}
    for query, document, grade, place in judgments:
        if abs(grade) > LARGEST_GRADE:
            raise CorpusError(
                f"{source} has the score {str(grade)[:40]} ({place}), expected {-LARGEST_GRADE:,} to "
                f"{LARGEST_GRADE:,}; rescale it, or check the order of the columns"
            )
        grades = gathered.setdefault(query, {})
        known = grades.setdefault(document, grade)
        first = places.setdefault((query, document), place)
        if known != grade:
            raise CorpusError(
                f"{source} judges document {document!r} for query {query!r} as {known} ({first}) and as {grade} "
                f"({place}): expected one score for each pair; remove one of the two"
            )
    return gathered


def _judgments(path: Path, text: str) -> Iterator[Judgment]:
    first = True
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        columns = [column.strip() for column in (line.split("\t") if "\t" in line else line.split())]
        if first and columns[-1].lower() in _HEADER_NAMES:
            first = False
            continue
        first = False
        # Spaces alone part only TREC's four columns: with three, an id that holds a space would be cut in two.
        if len(columns) != 4 and not (len(columns) == 3 and "\t" in line):
            count = len(columns) if "\t" in line else 1
            raise CorpusError(
                f"{path}, line {number} has {count} column{'s' * (count != 1)}, expected 3 with tabs between "
                f"(query-id, corpus-id, score) or TREC's 4 (query-id, 0, corpus-id, score); given: {_excerpt(line)}"
            )
        query, document, score = columns[0], columns[-2], columns[-1]
        if not query or not document:
            raise CorpusError(
                f"{path}, line {number} has an empty id, expected query-id, corpus-id and score; "
                f"given: {_excerpt(line)}"
            )
        if not _GRADE.fullmatch(score):
            raise CorpusError(
                f"{path}, line {number} has the score {score[:40]!r}, expected a whole number (0: not relevant, "
                "1 and more: relevant); round it, or check the order of the columns"
            )
        yield Judgment(query, document, int(score), f"line {number}")


def _excerpt(line: str) -> str:
    line = " ".join(line[:300].split())
    return line if len(line) <= 80 else line[:80] + "..."
