"""Inputs of the steering benchmark: labelled passages, names for the labels, ambiguous questions."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sae_steer_retriever.corpus.decoding import UnreadableFileError
from sae_steer_retriever.corpus.rows import json_objects, read_text, row_id, text_field
from sae_steer_retriever.errors import CorpusError, nearest_names

QUESTIONS = (
    "what is the best one to buy?",
    "is it legal?",
    "how much does it cost?",
    "what went wrong?",
    "who decides this?",
    "where can I find more information?",
    "is it safe?",
    "what are the rules?",
    "why does this happen?",
    "has anyone tried this before?",
    "which of the two is better?",
    "who is responsible?",
    "how does it work?",
    "what are the latest results?",
    "is there any evidence for this?",
    "what do the experts say?",
    "when will it be available?",
    "how can I fix this problem?",
    "should I be worried?",
    "what does the law say?",
)
"""Questions that a passage of nearly any subject may answer."""

# A label needs this many passages for a meaningful top 10; more labels than these take long.
LEAST_PASSAGES, MOST_PERSPECTIVES = 50, 40


class LabelledCorpus(NamedTuple):
    """Labelled passages.

    Attributes:
        ids: N unique ids.
        texts: N texts; a title stands on a line before its text.
        labels: N sets of labels; a set may be empty.
        notes: Remarks for readers of the figures, one sentence each.
    """

    ids: list[str]
    texts: list[str]
    labels: list[frozenset[str]]
    notes: tuple[str, ...]


def read_labelled_corpus(path: Path, *, limit: int | None = None, seed: int = 0) -> LabelledCorpus:
    """Returns the rows of a `.jsonl` or `.jsonl.gz` file with `text` and `label` or `labels`, `_id`, `title`.

    Each row is one passage, never split. Rows that repeat an id are skipped.

    Args:
        path: The file.
        limit: At most this many passages, drawn by the seed.
        seed: Seed of the draw.

    Raises:
        CorpusError: The file cannot be read, a row is malformed, or no row has both a text and a label.
    """
    try:
        text = read_text(path)[0]
    except UnreadableFileError as error:
        raise CorpusError(f"cannot read {path}: {error}") from error
    rows: dict[str, tuple[str, frozenset[str]]] = {}
    repeated = empty = 0
    for number, fields in json_objects(path, text):
        body = text_field(fields, "text")
        name = row_id(fields) or f"{path.name}#{number}"
        empty += not body
        repeated += bool(body) and name in rows
        if body:
            rows.setdefault(name, (_headed(text_field(fields, "title"), body), _labels(path, number, fields)))
    if not any(labels for _, labels in rows.values()):
        raise CorpusError(
            f'no row of {path} has a text and a label: expected rows such as {{"text": "...", "label": "hockey"}}, or '
            '"labels" with a list of them'
        )
    notes = [f"{repeated} rows have an id that an earlier row has: left out."] if repeated else []
    notes += [f"{empty} rows have no text: left out."] if empty else []
    ids = list(rows)
    if limit is not None and limit < len(ids):
        notes.append(f"{limit:,} of {len(ids):,} passages, drawn by the seed {seed}.")
        ids = sorted(random.Random(seed).sample(ids, limit))
    return LabelledCorpus(ids, [rows[name][0] for name in ids], [rows[name][1] for name in ids], tuple(notes))


def frequent_labels(
    corpus: LabelledCorpus, *, least: int = LEAST_PASSAGES, most: int = MOST_PERSPECTIVES
) -> tuple[str, ...]:
    """Returns the labels to steer towards, most frequent first.

    Args:
        corpus: The passages.
        least: Number of passages that a label needs.
        most: Number of labels at most.

    Raises:
        CorpusError: Fewer than two labels have enough passages.
    """
    counts = Counter(label for labels in corpus.labels for label in labels)
    found = sorted((label for label, count in counts.items() if count >= least), key=lambda name: (-counts[name], name))
    if len(found) < 2:
        raise CorpusError(
            f"{len(found)} of {len(counts)} labels have at least {least} passages: steering is measured towards at "
            "least two; give more passages"
        )
    return tuple(found[:most])


def read_concepts(path: Path) -> dict[str, str]:
    """Returns the names of labels from a JSON file: label -> the words that a person types.

    Raises:
        CorpusError: The file is not such a mapping.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorpusError(f"cannot read the concepts {path}: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(words, str) and words.strip() for words in found.values()):
        raise CorpusError(f'{path}: expected one object of label -> words, such as {{"rec.sport.hockey": "hockey"}}')
    return found


def words_of(labels: tuple[str, ...], concepts: Mapping[str, str] | None) -> tuple[str, ...]:
    """Returns the name of each label: the given words, else the label with punctuation replaced by spaces.

    Args:
        labels: Labels of the corpus.
        concepts: Label -> words; other labels are ignored.

    Raises:
        CorpusError: Concepts are given, and none of them belongs to one of these labels.
    """
    given = concepts or {}
    if given and not any(label in given for label in labels):
        near = [name for label in list(given)[:3] for name in nearest_names(label, labels, 1)]
        hint = f"; did you mean {', '.join(near)}?" if near else f"; there are {', '.join(labels[:5])}"
        raise CorpusError(f"none of the {len(given)} concepts names a label with enough passages{hint}")
    return tuple(given.get(label) or " ".join(re.sub(r"[\W_]+", " ", label).split()) or label for label in labels)


def read_questions(path: Path) -> tuple[str, ...]:
    """Returns the questions of a file, one a line.

    Raises:
        CorpusError: The file cannot be read, or holds fewer than two questions.
    """
    try:
        lines = read_text(path)[0].splitlines()
    except UnreadableFileError as error:
        raise CorpusError(f"cannot read the questions {path}: {error}") from error
    found = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(found) < 2:
        raise CorpusError(f"{path} has {len(found)} questions: expected at least two, one a line")
    return found


def _headed(title: str, text: str) -> str:
    # The same texts as from `read_corpus`: the cache knows the embeddings of an SAE's training passages.
    begins_with_it = text.startswith(title) and not text[len(title) : len(title) + 1].isalnum()
    return text if not title or begins_with_it else f"{title}\n{text}"


def _labels(path: Path, number: int, fields: dict[str, Any]) -> frozenset[str]:
    given = fields.get("labels", fields.get("label"))
    found = [given] if isinstance(given, str | int) else given or []
    if not isinstance(found, list) or not all(isinstance(label, str | int) for label in found):
        raise CorpusError(
            f"{path}, line {number}: expected a text as label, or a list of texts as labels; given: {given!r:.60}"
        )
    return frozenset(str(label) for label in found)
