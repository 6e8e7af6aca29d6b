"""Query-like texts: titles and sentences of the passages, or real queries from a file.

An SAE that is fitted to passages only reconstructs short queries badly. Titles and sentences of the same passages
close most of that gap, and serve as queries of the ranking loss if there are few real ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sae_steer_retriever.corpus.decoding import UnreadableFileError
from sae_steer_retriever.corpus.passage import Passage
from sae_steer_retriever.corpus.rows import json_objects, read_text, text_field
from sae_steer_retriever.errors import CorpusError

# Lengths in characters.
_SHORTEST_SENTENCE, _LONGEST_SENTENCE = 20, 300
_SHORTEST_TITLE = 3
_WINDOW = 150
_WRAPPED_LINE = 45

# A full stop after an abbreviation ends no sentence; after a numbered one it ends none if a digit follows.
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
    r"[{}]|;$|\(\)|==|:=|=>|->|::|&&|\|\||</\w|^\s*(?:\$ |>{3} |import |from \w+ import |def |class \w+[(:])"
)
_LETTER = re.compile(r"[^\W\d_]")
_SYMBOL = re.compile(r"[^\w\s]|[\d_]")
_WIDE_GAP = re.compile(r"\S {3,}(?=\S)")
_EMPHASIS = re.compile(r"\*\*|__")
_LITERAL = re.compile(r"`([^`]*)`")
_URL = re.compile(r"https?://\S+|www\.\S+")


class QueryText(NamedTuple):
    """A title or sentence, and the position of its passage in the given sequence."""

    text: str
    passage_index: int


def query_texts(
    passages: Sequence[Passage], limit: int | None = None, seed: int = 0, *, per_passage: int = 4
) -> list[QueryText]:
    """Returns titles and sentences of passages as query-like texts, in the order of the passages.

    A passage gives its title, then sentences of 20 to 300 characters that are prose (no code, no table rows), drawn at
    random if there are too many. No text is returned twice, letter case aside. A passage that has neither a title nor
    sentences (text without punctuation) gives windows of up to 150 characters.

    `per_passage` limits the texts of one passage, its title included, and `limit` all texts: if there are more, they
    are a seeded sample. The texts drawn from one passage do not depend on the others.
    """
    seen: set[str] = set()
    found = [
        QueryText(text, index)
        for index, passage in enumerate(passages)
        for text in _passage_texts(passage, per_passage, seed, seen)
    ]
    if limit is None or len(found) <= limit:
        return found
    chosen = random.Random(seed).sample(range(len(found)), max(limit, 0))
    return [found[position] for position in sorted(chosen)]


def read_queries(file: str | Path) -> list[str]:
    """Returns real queries in order, each once: the lines of a text file, or `text` or `query` of .jsonl[.gz] rows.

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
    """Yields the sentences of running text.

    A full stop ends no sentence after abbreviations ("et al.", "Fig. 2") and initials ("J. Smith", "U.S. troops"),
    inside numbers, and before a lower-case letter unless the whole text is lower case.
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
    """Returns texts of one passage and adds their normalised forms to `seen`."""

    def key(text: str) -> str:
        return " ".join(text.casefold().split())

    title = " ".join(passage.title.split())
    has_title = _SHORTEST_TITLE <= len(title) <= _LONGEST_SENTENCE and bool(_LETTER.search(title))
    paragraphs = list(_paragraphs(passage.text.removeprefix(passage.title)))
    candidates = [
        sentence
        for paragraph in paragraphs
        if len(paragraph) >= _SHORTEST_SENTENCE
        for sentence in sentences(paragraph)
        if _is_sentence(sentence) and _is_prose(sentence)
    ]
    if not candidates and not has_title:
        candidates = [window for paragraph in paragraphs for window in _windows(paragraph) if _is_prose(window)]
    candidates = [text for text in dict.fromkeys(candidates) if key(text) not in seen]
    texts = [title] if has_title and most > 0 and key(title) not in seen else []
    wanted = most - len(texts)
    if len(candidates) > wanted:
        chosen = random.Random(f"{seed}:{passage.id}").sample(range(len(candidates)), max(wanted, 0))
        candidates = [candidates[position] for position in sorted(chosen)]
    for text in candidates:
        if key(text) not in seen:
            seen.add(key(text))
            texts.append(text)
    if texts and has_title:
        seen.add(key(title))
    return texts


def _is_sentence(text: str) -> bool:
    # Long text without a full stop is text that has lost its punctuation.
    longest = _LONGEST_SENTENCE if _SENTENCE_MARK.search(text) else _WINDOW
    return _SHORTEST_SENTENCE <= len(text) <= longest


def _paragraphs(text: str) -> Iterator[str]:
    """Yields running text without the marks of lists, links and emphasis, and without lines of code and tables."""
    gathered: list[str] = []
    in_fence = False
    for line in [*text.split("\n"), ""]:
        stripped = line.strip()
        is_fence = stripped.startswith(("```", "~~~"))
        in_fence ^= is_fence
        is_text = bool(stripped) and not in_fence and not is_fence and not _is_code_or_table(line)
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
    if len(plain) < _SHORTEST_SENTENCE or not _LETTER.search(plain):
        return False
    if len(_SYMBOL.findall(plain)) > 0.25 * len(plain) or len(_CODE.findall(plain)) >= 2 or plain.count("|") >= 2:
        return False
    # Scripts without spaces have no words to count.
    return len(plain.split()) >= 3 or not plain.isascii()


def _windows(paragraph: str) -> Iterator[str]:
    """Yields windows of whole words of a text that has no sentences."""
    words: list[str] = []
    length = 0
    for word in paragraph.split():
        if length + len(word) > _WINDOW and words:
            yield " ".join(words)
            words, length = [], 0
        if len(word) <= _WINDOW:
            words.append(word)
            length += len(word) + 1
    if length > _SHORTEST_SENTENCE:
        yield " ".join(words)
