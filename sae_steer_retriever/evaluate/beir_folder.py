"""Reads a folder in BEIR layout: corpus.jsonl, queries.jsonl and the relevance judgments in qrels/SPLIT.tsv."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sae_steer_retriever.corpus.decoding import UnreadableFileError
from sae_steer_retriever.corpus.read_corpus import read_corpus
from sae_steer_retriever.corpus.rows import json_objects, read_text, row_id, text_field
from sae_steer_retriever.errors import CorpusError, excerpt, nearest_names
from sae_steer_retriever.evaluate.retrieval_set import Judgments, RetrievalSet, judged_set

CORPUS_FILES = ("corpus.jsonl", "corpus.jsonl.gz")
QUERY_FILES = ("queries.jsonl", "queries.jsonl.gz")
QRELS_FOLDER = "qrels"
FILES = (*CORPUS_FILES, *QUERY_FILES, f"{QRELS_FOLDER}/*.tsv")
"""Patterns of all files in the layout."""

LARGEST_GRADE = 1000
"""The largest accepted grade, of either sign: trec_eval needs memory for every grade up to it."""

_WITHOUT_JUDGMENTS = "to evaluate documents without judgments, give them with --corpus"
_SHOWN_ENTRIES = 4
# Python refuses to read numbers of thousands of digits.
_GRADE = re.compile(r"[+-]?[0-9]{1,1000}")
_HEADER_NAMES = ("score", "relevance", "rel", "grade", "label")


class Judgment(NamedTuple):
    """The grade of a document for a query, by their ids; at least 1 means relevant.

    The `place` is its position in the source, for messages ("line 3").
    """

    query: str
    document: str
    grade: int
    place: str


def read_beir_folder(folder: Path, split: str, *, name: str | None = None) -> RetrievalSet:
    """Returns the set in a folder of BEIR layout (Thakur et al. 2021).

    Args:
        folder: An existing folder.
        split: Which file of `qrels/` to read.
        name: The set's name; that of the folder if not given.

    Raises:
        CorpusError: A file is missing or malformed, or the files do not belong together.
    """
    corpus_file = _first_file(folder, CORPUS_FILES)
    if corpus_file is None:
        raise CorpusError(_no_retrieval_set(folder, split))
    query_file = _first_file(folder, QUERY_FILES)
    if query_file is None:
        raise CorpusError(
            f"{folder} has {corpus_file.name}, but no {QUERY_FILES[0]} or {QUERY_FILES[1]}: expected one line "
            f'{{"_id": ..., "text": ...}} a query; {_WITHOUT_JUDGMENTS}'
        )
    splits = _splits(folder, split)
    qrels_file = folder / QRELS_FOLDER / f"{split}.tsv"
    judgments = read_qrels(qrels_file)
    queries, notes = _read_queries(query_file)
    unjudged = len(queries.keys() - judgments.keys())
    if unjudged and splits == [split]:  # with several splits, most of these belong to another one
        notes.append(f"{unjudged} of {len(queries)} queries have no judgment: left out")
    corpus = read_corpus(folder)
    trained = set(corpus.queries)
    repeated = sum(queries.get(query) in trained for query in judgments)
    if repeated and split != "train":
        notes.append(f"{repeated} queries are, word for word, also in the train split, which an SAE may be fitted to")
    notes += [f"{file}: {note}" for file, note in [*corpus.skipped, *corpus.notes] if file == corpus_file.name]
    found = name or folder.resolve().name
    return judged_set(found, corpus.passages, queries, judgments, source=str(qrels_file), notes=notes)


def read_qrels(path: Path) -> Judgments:
    """Returns the judgments in a file, one a line.

    A line has three columns with tabs between (query-id, corpus-id, score: BEIR, Thakur et al. 2021) or the four of
    TREC (query-id, 0, corpus-id, score; tabs or spaces). A first line of column names is skipped.

    Raises:
        CorpusError: The file cannot be read or holds no judgment, a line is malformed, or two lines contradict each
            other. The message names the file and the line.
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
    """Returns judgments grouped by query; the same one may occur twice. `source` is their origin, for messages.

    Raises:
        CorpusError: A query has two different grades for one document, or a grade is too large.
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


def missing_files(folder: Path, split: str) -> list[str]:
    """Returns the names of the files of a retrieval set that a folder lacks."""
    missing = [names[0] for names in (CORPUS_FILES, QUERY_FILES) if _first_file(folder, names) is None]
    return missing if any((folder / QRELS_FOLDER).glob("*.tsv")) else [*missing, f"{QRELS_FOLDER}/{split}.tsv"]


def _first_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _no_retrieval_set(folder: Path, split: str) -> str:
    entries = sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda e: e.name)
    sets = [entry.name for entry in entries if entry.is_dir() and _first_file(entry, CORPUS_FILES)]
    expected = (
        f"{folder} is no retrieval set in BEIR layout: expected {CORPUS_FILES[0]}, {QUERY_FILES[0]} and "
        f"{QRELS_FOLDER}/{split}.tsv in it"
    )
    if sets:
        return f"{expected}; did you mean one of the folders in it: {', '.join(sets)}?"
    shown = ", ".join(entry.name for entry in entries[:_SHOWN_ENTRIES])
    more = ", ..." if len(entries) > _SHOWN_ENTRIES else ""
    return f"{expected}; found {shown or 'nothing'}{more}; {_WITHOUT_JUDGMENTS}"


def _splits(folder: Path, split: str) -> list[str]:
    """The splits that a folder has, `split` among them."""
    qrels = folder / QRELS_FOLDER
    splits = sorted(file.stem for file in qrels.glob("*.tsv") if file.is_file())
    if not splits:
        what = "an empty folder" if qrels.is_dir() else "no folder"
        raise CorpusError(
            f"{folder} has {what} {QRELS_FOLDER}: expected judgments in {QRELS_FOLDER}/{split}.tsv, one line of "
            f"query-id, corpus-id and score a judgment; {_WITHOUT_JUDGMENTS}"
        )
    if split not in splits:
        near = nearest_names(split, splits, limit=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of these"
        raise CorpusError(f"{qrels} has no split {split!r}, only {', '.join(splits)}: {hint}")
    return splits


def _read_queries(path: Path) -> tuple[dict[str, str], list[str]]:
    """Texts by id, and notes on the file."""
    queries: dict[str, str] = {}
    lines: dict[str, int] = {}
    without_text = 0
    try:
        text, note = read_text(path)
    except UnreadableFileError as error:
        raise CorpusError(f"cannot read the queries {path}: {error}") from error
    for number, fields in json_objects(path, text):
        query_id = row_id(fields)
        if query_id is None:
            raise CorpusError(
                f"{path}, line {number} has no '_id': expected an _id and a text in every row; the fields are: "
                f"{', '.join(fields) or 'none'}"
            )
        query = text_field(fields, "text") or text_field(fields, "query")
        if not query:
            without_text += 1
            continue
        if queries.setdefault(query_id, query) != query:
            raise CorpusError(
                f"{path} has two queries with the id {query_id!r} and different texts, lines {lines[query_id]} and "
                f"{number}: ids must be unique; rename or remove one"
            )
        lines.setdefault(query_id, number)
    if not queries:
        raise CorpusError(f"no query in {path}: expected a field 'text' (a string) in each row")
    notes = [f"{path.name}: {note}"] if note else []
    if without_text:
        notes.append(f"{path.name}: {without_text} queries without a text")
    return queries, notes


def _judgments(path: Path, text: str) -> Iterator[Judgment]:
    lines = ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    for place, (number, line) in enumerate(lines):
        columns = [column.strip() for column in (line.split("\t") if "\t" in line else line.split())]
        if place == 0 and columns[-1].lower() in _HEADER_NAMES:
            continue
        # With three columns only tabs separate: an id that holds a space would be cut in two.
        if len(columns) != 4 and not (len(columns) == 3 and "\t" in line):
            count = len(columns) if "\t" in line else 1
            raise CorpusError(
                f"{path}, line {number} has {count} column{'s' * (count != 1)}, expected 3 with tabs between "
                f"(query-id, corpus-id, score) or TREC's 4 (query-id, 0, corpus-id, score); given: {excerpt(line)}"
            )
        query, document, score = columns[0], columns[-2], columns[-1]
        if not query or not document:
            problem = f"{path}, line {number} has an empty id, expected query-id, corpus-id and score"
            raise CorpusError(f"{problem}; given: {excerpt(line)}")
        if not _GRADE.fullmatch(score):
            raise CorpusError(
                f"{path}, line {number} has the score {score[:40]!r}, expected a whole number (0: not relevant, "
                "1 and more: relevant); round it, or check the order of the columns"
            )
        yield Judgment(query, document, int(score), f"line {number}")
