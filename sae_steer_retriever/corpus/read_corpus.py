"""Reads a user's corpus: a file or a folder of text, Markdown, HTML, PDF, Word, JSON Lines and CSV files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sae_steer_retriever.corpus.decoding import UnreadableFileError
from sae_steer_retriever.corpus.documents import DOCUMENT_SUFFIXES, read_document
from sae_steer_retriever.corpus.passage import Corpus, Passage, Scalar
from sae_steer_retriever.corpus.query_texts import read_queries
from sae_steer_retriever.corpus.rows import ROW_SUFFIXES, Row, json_objects, read_rows, read_text, row_id, text_field
from sae_steer_retriever.corpus.splitting import split_text
from sae_steer_retriever.errors import CorpusError, MissingExtraError, nearest_names

SUFFIXES = (*DOCUMENT_SUFFIXES, *ROW_SUFFIXES)
"""Lower-case suffixes of the files that are read."""

_SHORTEST_PASSAGE = 50
_READ_IN_BEIR = ("corpus.jsonl", "corpus.jsonl.gz", "queries.jsonl", "queries.jsonl.gz")


def read_corpus(
    path: str | os.PathLike[str],
    *,
    passage_characters: int = 1200,
    overlap: int = 0,
    queries: str | os.PathLike[str] | None = None,
) -> Corpus:
    """Returns the passages of a file or, with its subfolders, of a folder; at least one.

    Documents (.txt, .md, .rst, .html, .htm, .pdf, .docx) are split into passages below their headings. Each row of a
    .jsonl or .jsonl.gz file (`text`, and optionally `_id` or `id`, `title`) or a .csv file (a column `text`, or the
    only column) is a passage, split only if it is longer than twice `passage_characters`. A folder that holds a
    `corpus.jsonl[.gz]` is a retrieval set in BEIR layout (Thakur et al. 2021): each document is one passage, title +
    " " + text, and the queries of `qrels/train.tsv`, only those, are its queries.

    Hidden files are left out. `Corpus.skipped` lists the files of a folder that cannot be read.

    Args:
        path: The file or folder.
        passage_characters: Most characters of a passage's text (its title included, unless that is very long).
        overlap: Characters that a passage repeats of the one before, as far as sentence boundaries allow.
        queries: A file of real queries, see `read_queries`.

    Raises:
        CorpusError: There is nothing to read, two rows have the same id, or a row is malformed.
        MissingExtraError: The corpus is one .pdf or .docx file and the extra `documents` is not installed; or a text
            has to be split and the extra `langchain` is not installed.

    Example:
        >>> from pathlib import Path
        >>> from sae_steer_retriever.corpus.read_corpus import read_corpus
        >>> _ = Path("handbook.txt").write_text("We refund within 14 days.")
        >>> [(passage.id, passage.text) for passage in read_corpus("handbook.txt").passages]
        [('handbook.txt#1', 'We refund within 14 days.')]
    """
    root = Path(path)
    if passage_characters < _SHORTEST_PASSAGE or not 0 <= overlap < passage_characters // 2:
        raise CorpusError(
            f"passages of {passage_characters} characters with {overlap} overlapping: expected at least "
            f"{_SHORTEST_PASSAGE} characters and an overlap from 0 to less than half of them"
        )
    if not root.exists():
        raise CorpusError(f"no such file or folder: {root}{_suggestion(root)}")
    corpus = Corpus([], read_queries(Path(queries)) if queries is not None else [])
    is_folder = root.is_dir()
    reader = _Reader(root if is_folder else root.parent, passage_characters, overlap, corpus)
    beir = next((root / name for name in _READ_IN_BEIR[:2] if (root / name).is_file()), None)
    if is_folder and beir is None:
        for file in _files_below(root, corpus.skipped):
            reader.read_or_skip(file)
    else:
        reader.read_alone(beir or root, is_beir=beir is not None)
        corpus.queries.extend(_beir_train_queries(root) if beir else [])
    if not corpus.passages:
        raise CorpusError(f"no text in {root}: {_why_nothing(corpus.skipped)}")
    return corpus


@dataclass
class _Reader:
    """Gathers the passages of a corpus and refuses an id that occurs twice."""

    folder: Path
    passage_characters: int
    overlap: int
    corpus: Corpus
    place_of_id: dict[str, tuple[str, int]] = field(default_factory=dict)

    def read_alone(self, file: Path, *, is_beir: bool) -> None:
        """Reads the only file of the corpus; a failure is an error."""
        if not _is_readable_kind(file):
            raise CorpusError(f"{file} is not of a kind that is read: expected {', '.join(SUFFIXES)}")
        for other in sorted(self.folder.iterdir()) if is_beir else ():
            if other.is_file() and _is_readable_kind(other) and other.name not in _READ_IN_BEIR:
                self.corpus.skipped.append(
                    (other.name, f"beside {file.name}, in a folder of BEIR layout, it is not read")
                )
        try:
            self._read(file, file.name, is_beir=is_beir)
        except UnreadableFileError as error:
            raise CorpusError(f"cannot read {file}: {error}") from error

    def read_or_skip(self, file: Path) -> None:
        """Reads one file of a folder; a failure is listed in `skipped`."""
        source = file.relative_to(self.folder).as_posix()
        if not _is_readable_kind(file):
            self.corpus.skipped.append((source, f"files of the kind {file.suffix or '(no suffix)'} are not read"))
            return
        try:
            self._read(file, source)
        except (UnreadableFileError, MissingExtraError) as error:
            if isinstance(error, MissingExtraError) and error.extra != "documents":
                raise
            self.corpus.skipped.append((source, str(error)))

    def _read(self, file: Path, source: str, *, is_beir: bool = False) -> None:
        if file.name.lower().endswith(ROW_SUFFIXES):
            self._read_rows(file, source, is_beir=is_beir)
            return
        sections, note = read_document(file)
        if note:
            self.corpus.notes.append((source, note))
        number = 0
        for section in sections:
            metadata: dict[str, Scalar] = {"source": source}
            if section.title:
                metadata["title"] = section.title
            if section.page is not None:
                metadata["page"] = section.page
            for text in self._split(section.text, section.heading, self.passage_characters):
                number += 1
                self._add(Passage(f"{source}#{number}", text, section.title, metadata), source, number)

    def _read_rows(self, file: Path, source: str, *, is_beir: bool) -> None:
        rows, note = read_rows(file)
        if note:
            self.corpus.notes.append((source, note))
        without_text: list[Row] = []
        count = 0
        for row in rows:
            count += 1
            if not (row.text or (is_beir and row.title)):
                without_text.append(row)
                continue
            metadata: dict[str, Scalar] = {"source": source, **row.metadata}
            if row.title:
                metadata["title"] = row.title
            passage_id = row.id if row.id is not None else f"{source}#{row.line}"
            if is_beir:
                texts = [f"{row.title} {row.text}".strip()]
            else:
                texts = self._split(row.text, row.title, 2 * self.passage_characters)
            for number, text in enumerate(texts, start=1):
                part_id = passage_id if len(texts) == 1 else f"{passage_id}#{number}"
                self._add(Passage(part_id, text, row.title, metadata), source, row.line)
        if not count:
            raise UnreadableFileError("it is empty")
        if len(without_text) == count:
            fields = ", ".join(without_text[0].fields) or "none"
            raise UnreadableFileError(f"none of its {count} rows has a 'text' (a string); the fields are: {fields}")
        if without_text:
            rows_are = "1 row without text" if len(without_text) == 1 else f"{len(without_text)} rows without text"
            self.corpus.skipped.append((source, f"{rows_are} (the first on line {without_text[0].line})"))

    def _split(self, text: str, heading: str, longest_whole: int) -> list[str]:
        """Splits a text that is longer than `longest_whole` and puts the heading before every piece."""
        room = self.passage_characters
        if heading:
            room = max(room - len(heading) - 1, room // 2)
        limit = longest_whole - (self.passage_characters - room)
        pieces = [text.strip()] if len(text) <= limit else split_text(text, room, self.overlap)
        return [_with_heading(piece, heading) for piece in pieces]

    def _add(self, passage: Passage, source: str, place: int) -> None:
        if first := self.place_of_id.get(passage.id):
            raise CorpusError(
                f"two rows have the id {passage.id!r}: {first[0]}, line {first[1]} and {source}, line {place}; "
                "ids must be unique (rows without an id get one)"
            )
        self.place_of_id[passage.id] = (source, place)
        self.corpus.passages.append(passage)


def _files_below(root: Path, skipped: list[tuple[str, str]]) -> Iterator[Path]:
    """Yields the files of a folder and its subfolders, sorted by name, each once, without hidden ones.

    Symbolic links are followed, except to a place that is read anyway. `skipped` gets a (path relative to `root`,
    reason) for each link that is not followed, folder that cannot be opened and entry that is not a regular file.
    """
    real_root = root.resolve()
    visited: set[Path] = set()

    def is_read_anyway(target: Path) -> bool:
        if real_root == target or target in real_root.parents:
            return True
        return target.is_relative_to(real_root) and not any(
            part.startswith(".") for part in target.relative_to(real_root).parts
        )

    def walk(folder: Path) -> Iterator[Path]:
        try:
            entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
        except OSError as error:
            skipped.append((folder.relative_to(root).as_posix(), f"the folder cannot be opened: {error.strerror}"))
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = entry.relative_to(root).as_posix()
            try:
                target = entry.resolve(strict=True)
            except (OSError, RuntimeError):  # RuntimeError: a link to itself, before Python 3.13
                skipped.append((name, "a symbolic link to nothing"))
                continue
            if entry.is_symlink():
                if is_read_anyway(target) or target in visited:
                    skipped.append((name, "a symbolic link to a place that is read already"))
                    continue
                visited.add(target)
            if target.is_dir():
                yield from walk(entry)
            elif target.is_file():
                yield entry
            else:
                skipped.append((name, "not a regular file"))

    yield from walk(root)


def _with_heading(piece: str, heading: str) -> str:
    if not heading:
        return piece
    begins_with_it = piece.startswith(heading) and not piece[len(heading) : len(heading) + 1].isalnum()
    return piece if begins_with_it else f"{heading}\n{piece}"


def _is_readable_kind(file: Path) -> bool:
    return file.name.lower().endswith(SUFFIXES)


def _beir_train_queries(root: Path) -> list[str]:
    """Returns the queries that `qrels/train.tsv` judges, if there is one, in the order of the file of queries."""
    judgements = root / "qrels" / "train.tsv"
    file = next((root / name for name in _READ_IN_BEIR[2:] if (root / name).is_file()), None)
    if file is None or not judgements.is_file():
        return []
    judged: set[str] = set()
    try:
        for number, line in enumerate(read_text(judgements)[0].split("\n"), start=1):
            columns = line.split("\t")
            # Four columns are TREC's form: query-id, 0, corpus-id, score.
            if line.strip() and len(columns) not in (3, 4):
                raise CorpusError(
                    f"{judgements}, line {number} has {len(columns)} columns, expected 3 with tabs between: "
                    "query-id, corpus-id, score"
                )
            judged.add(columns[0].strip())
        rows = json_objects(file, read_text(file)[0])
    except UnreadableFileError as error:
        raise CorpusError(f"cannot read the training queries of {root}: {error}") from error
    return [text for _, fields in rows if row_id(fields) in judged and (text := text_field(fields, "text"))]


def _suggestion(path: Path) -> str:
    try:
        near = nearest_names(path.name, [entry.name for entry in path.parent.iterdir()], limit=3)
    except OSError:
        return ""
    return f" (did you mean {', '.join(near)}?)" if near else ""


def _why_nothing(skipped: list[tuple[str, str]]) -> str:
    if not skipped:
        return "the folder is empty"
    shown = "; ".join(f"{path}: {reason}" for path, reason in skipped[:3])
    more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return f"{shown}{more}. Files of these kinds are read: {', '.join(SUFFIXES)}"
