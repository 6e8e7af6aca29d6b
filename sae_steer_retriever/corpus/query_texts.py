"""Short query-like texts: made of the passages themselves (titles, sentences), or read from a file of real queries.

A dictionary that has only seen passages reconstructs short queries badly; titles and sentences of the same
passages close most of that gap, and serve as the queries of the ranking loss where real ones are few.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sae_steer_retriever.corpus.decoding import UnreadableFileError
from sae_steer_retriever.corpus.rows import json_objects, read_text, text_field
from sae_steer_retriever.errors import CorpusError

if TYPE_CHECKING:
    from sae_steer_retriever.corpus.passage import Passage

SHORTEST_SENTENCE, LONGEST_SENTENCE = 20, 300
"""Characters of the sentences that are used."""

_SHORTEST_TITLE = 3
_WINDOW = 150
_WRAPPED_LINE = 45

# A full stop after these ends no sentence; after the numbered ones it ends none when a digit follows.
_ABBREVIATION = re.compile(
    r"adj|al|approx|assoc|aug|ave|ca|capt|cf|col|dec|dept|dr|eds?|e\.?g|est|feb|gen|gov|hon|i\.?e|jan|jr|lt|mr|mrs|ms|mt|"
    r"nov|oct|prof|rep|resp|rev|sen|sept?|sgt|sr|st|viz|vs"
)
_NUMBERED = re.compile(r"apr|art|chap|ch|eqs?|figs?|jul|jun|lect|mar|nos?|pp?|par|refs?|sect?|tab|vol")
_SENTENCE_END = re.compile(r"[.!?…]{1,9}[\"'”’»)\]]{0,4}\s+(?=[\"'“‘«(\[¿¡]*(\w))|[。！？]+[」』）”]*\s*")
_SENTENCE_MARK = re.compile(r"[.!?…:;。！？][^\w\s]*$")
_LAST_TOKEN = re.compile(r"[\w.'’-]+$")
_INITIALS = re.compile(r"[^\W\d_](?:[.-]{1,2}[^\W\d_])*")
_BULLET = re.compile(r"\s*(?:[-*+•‣–]|\d{1,3}[.)]|\(?[a-z]\)|[>#]+)\s+")
_LINK = re.compile(r"!?\[([^\[\]]{0,300})\]\((?=[^()\s]{0,1000}[/.#:])[^()\s]{0,1000}\)")
_CODE = re.compile(
    r"[{}]|;$|\(\)|==|:=|=>|->|::|&&|\|\||</\w|^\s*(?:\$ |>>> |import |from \w+ import |def |class \w+[(:])"
)
_LETTER = re.compile(r"[^\W\d_]")
_SYMBOL = re.compile(r"[^\w\s]|[\d_]")
_WIDE_GAP = re.compile(r"\S {3,}(?=\S)")
_EMPHASIS = re.compile(r"\*\*|__")
_LITERAL = re.compile(r"`([^`]*)`")
_URL = re.compile(r"https?://\S+|www\.\S+")
_FENCE = ("```", "~~~")


@dataclass(frozen=True)
class QueryText:
    """A query-like text and the passage that it was taken from.

    Attributes:
        text: A title or a sentence.
        passage_index: The position of its passage in the sequence that was given.
    """

    text: str
    passage_index: int


def query_texts(
    passages: Sequence[Passage], limit: int | None = None, seed: int = 0, *, per_passage: int = 4
) -> list[QueryText]:
    """Take titles and sentences of passages as query-like texts.

    Of each passage the title comes first, then sentences of 20 to 300 characters that are prose (no code, no table
    rows), drawn at random when there are more than wanted. No text is given twice, letter case aside. A passage
    that has neither title nor sentence (text without punctuation) gives stretches of up to 150 characters.

    Args:
        passages: The passages.
        limit: Most texts altogether; a seeded sample of them is taken when there are more. None: no limit.
        seed: Seed of every random choice. What is drawn of one passage does not depend on the others.
        per_passage: Most texts of one passage, its title included.

    Returns:
        The texts, in the order of their passages.
    """
    found: list[QueryText] = []
    seen: set[str] = set()
    for index, passage in enumerate(passages):
        for text in _passage_texts(passage, per_passage, seed, seen):
            found.append(QueryText(text, index))
    if limit is None or len(found) <= limit:
        return found
    chosen = random.Random(seed).sample(range(len(found)), max(limit, 0))
    return [found[position] for position in sorted(chosen)]


def read_queries(file: str | Path) -> list[str]:
    """Read real queries: one a line of a text file, or `text` or `query` of each line of a .jsonl or .jsonl.gz file.

    Returns:
        The queries in order; blank ones and repetitions are left out.

    Raises:
        CorpusError: The file is missing, unreadable or malformed, or holds no query.
    """
    path = Path(file)
    if not path.is_file():
        raise CorpusError(f"no such file of queries: {path} (expected a text file with one query a line, or a .jsonl)")
    try:
        text, _ = read_text(path)
    except UnreadableFileError as error:
        raise CorpusError(f"cannot read the queries of {path}: {error}") from error
    if path.name.lower().endswith((".jsonl", ".jsonl.gz")):
        rows = json_objects(path, text)
        queries = [text_field(fields, "text") or text_field(fields, "query") for _, fields in rows]
    else:
        queries = [line.strip() for line in text.split("\n")]
    queries = list(dict.fromkeys(query for query in queries if query))
    if not queries:
        raise CorpusError(f"no query in {path}: expected one a line, or a field 'text' or 'query' in each .jsonl row")
    return queries


def sentences(text: str) -> Iterator[str]:
    """Split running text into its sentences.

    A full stop ends none after abbreviations ("et al.", "Fig. 2"), initials ("J. Smith", "U.S. troops") and inside
    numbers, nor before a lower-case letter, unless the whole text is lower case.
    """
    only_lower_case = text == text.lower()
    start = 0
    for end in _SENTENCE_END.finditer(text):
        if end[1] is None or _ends_sentence(text, end, only_lower_case=only_lower_case):
            yield " ".join(text[start : end.end()].split())
            start = end.end()
    if rest := " ".join(text[start:].split()):
        yield rest


def _ends_sentence(text: str, end: re.Match[str], *, only_lower_case: bool) -> bool:
    following = end[1]
    if following.islower() and not only_lower_case:
        return False
    if not end[0].rstrip().endswith("."):
        return True
    last = _LAST_TOKEN.search(text, max(0, end.start() - 40), end.start())
    token = last[0].lower() if last else ""
    if _ABBREVIATION.fullmatch(token) or (_NUMBERED.fullmatch(token) and following.isdigit()):
        return False
    return not _INITIALS.fullmatch(token)


def _passage_texts(passage: Passage, most: int, seed: int, seen: set[str]) -> list[str]:
    """Texts of one passage, whose normalised forms are added to `seen`."""

    def is_new(text: str) -> bool:
        return " ".join(text.casefold().split()) not in seen

    title = " ".join(passage.title.split())
    has_title = _SHORTEST_TITLE <= len(title) <= LONGEST_SENTENCE and bool(_LETTER.search(title))
    body = passage.text
    if passage.title and body.startswith(passage.title):
        body = body[len(passage.title) :]
    paragraphs = list(_paragraphs(body))
    candidates = [
        sentence
        for paragraph in paragraphs
        if len(paragraph) >= SHORTEST_SENTENCE
        for sentence in sentences(paragraph)
        if _is_sentence(sentence) and _is_prose(sentence)
    ]
    if not candidates and not has_title:
        candidates = [window for paragraph in paragraphs for window in _windows(paragraph) if _is_prose(window)]
    candidates = [text for text in dict.fromkeys(candidates) if is_new(text)]
    texts = [title] if has_title and most > 0 and is_new(title) else []
    wanted = most - len(texts)
    if len(candidates) > wanted:
        chosen = random.Random(f"{seed}:{passage.id}").sample(range(len(candidates)), max(wanted, 0))
        candidates = [candidates[position] for position in sorted(chosen)]
    for text in candidates:
        if is_new(text):
            seen.add(" ".join(text.casefold().split()))
            texts.append(text)
    if texts and has_title:
        seen.add(" ".join(title.casefold().split()))
    return texts


def _is_sentence(text: str) -> bool:
    # Long text without any full stop is no sentence, but text whose punctuation is gone.
    longest = LONGEST_SENTENCE if _SENTENCE_MARK.search(text) else _WINDOW
    return SHORTEST_SENTENCE <= len(text) <= longest


def _paragraphs(text: str) -> Iterator[str]:
    """Running text without the marks of lists, links and emphasis; code and table lines are left out."""
    gathered: list[str] = []
    in_fence = False
    for line in [*text.split("\n"), ""]:
        stripped = line.strip()
        if stripped.startswith(_FENCE):
            in_fence = not in_fence
        is_text = bool(stripped) and not in_fence and not stripped.startswith(_FENCE) and not _is_code_or_table(line)
        begins = not is_text or _BULLET.match(line) or (gathered and len(gathered[-1]) < _WRAPPED_LINE)
        if begins and gathered:
            yield " ".join(gathered)
            gathered.clear()
        if is_text:
            gathered.append(_without_marks(stripped))


def _without_marks(line: str) -> str:
    line = _BULLET.sub("", line, count=1) if _BULLET.match(line) else line
    return _EMPHASIS.sub("", _LITERAL.sub(r"\1", _LINK.sub(r"\1", line))).strip()


def _is_code_or_table(line: str) -> bool:
    stripped = line.strip()
    return (
        stripped.count("|") >= 2
        or stripped.count("\t") >= 1
        or len(_WIDE_GAP.findall(stripped)) >= 2
        or (line.startswith(("    ", "\t")) and bool(_CODE.search(stripped)))
    )


def _is_prose(text: str) -> bool:
    plain = _URL.sub("", text)
    if len(plain) < SHORTEST_SENTENCE or not _LETTER.search(plain):
        return False
    if len(_SYMBOL.findall(plain)) > 0.25 * len(plain) or len(_CODE.findall(plain)) >= 2 or plain.count("|") >= 2:
        return False
    # Scripts without spaces have no words to count.
    return len(plain.split()) >= 3 or not plain.isascii()


def _windows(paragraph: str) -> Iterator[str]:
    """Stretches of whole words of a text that has no sentences."""
    words: list[str] = []
    length = 0
    for word in paragraph.split():
        if length + len(word) > _WINDOW and words:
            yield " ".join(words)
            words, length = [], 0
        if len(word) <= _WINDOW:
            words.append(word)
            length += len(word) + 1
    if length > SHORTEST_SENTENCE:
        yield " ".join(words)
