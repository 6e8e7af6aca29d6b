"""Readers of the sources in `base-sources.toml`: one function per kind, from a path to `Text`s."""

from __future__ import annotations

import csv
import glob
import gzip
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

_PASSAGE_SENTENCES = 6
_SPACED_HYPHEN = re.compile(r"(?<=\w) ?- ?(?=\w)")
_BEFORE = re.compile(r" (?=[,.;:%)\]'’]|\?$)")
_AFTER = re.compile(r"(?<=[(\[]) ")
_SLASH = re.compile(r" / ")
_BRACES = re.compile(r"\{([^{}]*)\}")


class Text(NamedTuple):
    """A text and its title."""

    text: str
    title: str = ""


def files(pattern: Path) -> list[Path]:
    """The files of a pattern with *, ** and {one,other}, sorted."""
    parts = _BRACES.split(str(pattern))
    choices = [part.split(",") if place % 2 else [part] for place, part in enumerate(parts)]
    found = [Path(name) for chosen in product(*choices) for name in glob.glob("".join(chosen), recursive=True)]
    if not found:
        raise SystemExit(f"nothing at {pattern}: a clone or a folder of data is missing")
    return sorted(set(found))


def clean(text: str | None) -> str:
    """One line, single spaces."""
    return " ".join((text or "").split())


def rows(path: Path, source: dict[str, Any]) -> Iterator[Text]:
    """JSON Lines with `text` and perhaps `title`; a source can choose one `split`, or ids up to `last_id`."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if source.get("split") in (None, row.get("split")) and _number(row) <= source.get("last_id", math.inf):
                yield Text(row["text"], row.get("title") or "")


def _number(row: dict[str, Any]) -> float:
    """A row's id if it is a number, else 0."""
    own = str(row.get("_id", ""))
    return int(own) if own.isdecimal() else 0


def standard_library(path: Path, source: dict[str, Any]) -> Iterator[Text]:
    """The passages of `examples/standard_library.py`."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    from standard_library import collect

    yield from (Text(text) for text in collect().values())


def debian_packages(path: Path, source: dict[str, Any]) -> Iterator[Text]:
    """Name and short description of each Debian package, without libraries, headers, data and documentation."""
    listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    for entry in listed.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line and line[0] != " ")
        name, description = fields.get("Package", ""), fields.get("Description", "")
        if description and not re.search(r"-(dev|dbg|data|doc|common|l10n|locale)\b|^lib.*\d$", name):
            yield Text(f"{name}: {description}")


def records(path: Path, source: dict[str, Any]) -> Iterator[Text]:
    """CSV files with the columns `title` and `abstract`."""
    for file in files(path):
        with file.open(encoding="utf-8", errors="replace", newline="") as lines:
            for row in csv.DictReader(lines):
                if len(abstract := clean(row.get("abstract"))) > 200:
                    yield Text(abstract, clean(row.get("title")))


def medquad(path: Path, source: dict[str, Any]) -> Iterator[Text]:
    """The answers of MedQuAD, each titled with its topic."""
    longest = source["first_characters"]
    yield from (Text(answer[:longest], focus) for focus, _, answer in _medquad(path) if len(answer) > 80)


def medquad_questions(path: Path, source: dict[str, Any]) -> Iterator[Text]:
    """The questions of MedQuAD."""
    yield from (Text(question.replace(" ?", "?")) for _, question, _ in _medquad(path))


def _medquad(path: Path) -> Iterator[tuple[str, str, str]]:
    for file in files(path / "*_QA*" / "*.xml"):
        document = ElementTree.parse(file).getroot()
        focus = clean(document.findtext("Focus"))
        for pair in document.iter("QAPair"):
            yield focus, clean(pair.findtext("Question")), clean(pair.findtext("Answer"))


def pubmedqa(path: Path, source: dict[str, Any]) -> Iterator[Text]:
    """Abstracts of PubMedQA, each titled with its question."""
    for entry in json.loads(path.read_text(encoding="utf-8")).values():
        yield Text(clean(" ".join([*entry["CONTEXTS"], entry["LONG_ANSWER"]])), entry["QUESTION"])


def scitldr(path: Path, source: dict[str, Any]) -> Iterator[Text]:
    """Abstracts of SciTLDR with their titles."""
    for file in files(path):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield Text(clean(" ".join(row["source"])), clean(row.get("title")))


def genia(path: Path, source: dict[str, Any]) -> Iterator[Text]:
    """Abstracts of GENIA, with the fields UI, TI and AB."""
    for file in files(path):
        title = ""
        for sentences in _fields(list(_sentences(file))):
            body = joined(sentences)
            if sentences[0][:1] == ["TI"]:
                title = body.removeprefix("TI-").removeprefix("TI -").lstrip(": ")
            elif sentences[0][:1] == ["AB"]:
                yield Text(body.removeprefix("AB-").removeprefix("AB -").lstrip(": "), title)


def _fields(sentences: list[list[str]]) -> Iterator[list[list[str]]]:
    starts = [row for row, tokens in enumerate(sentences) if tokens[0] in ("UI", "TI", "AB")] + [len(sentences)]
    for start, end in zip(starts, starts[1:], strict=False):
        yield sentences[start:end]


def tokens(path: Path, source: dict[str, Any]) -> Iterator[Text]:
    """Passages of six sentences from files with one token per line."""
    for file in files(path):
        sentences = list(_sentences(file))
        for start in range(0, len(sentences), _PASSAGE_SENTENCES):
            yield Text(joined(sentences[start : start + _PASSAGE_SENTENCES]))


def token_sentences(path: Path, source: dict[str, Any]) -> Iterator[Text]:
    """Single sentences from files with one token per line."""
    for file in files(path):
        yield from (Text(joined([sentence])) for sentence in _sentences(file) if 6 <= len(sentence) <= 50)


def _sentences(file: Path) -> Iterator[list[str]]:
    sentence: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        token = line.split("\t")[0].strip()
        if token:
            sentence.append(token)
        elif sentence:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def joined(sentences: list[list[str]]) -> str:
    """Tokens to text: no space before a comma, after a bracket or around a hyphen."""
    text = " ".join(" ".join(sentence) for sentence in sentences)
    text = text.replace("-LRB-", "(").replace("-RRB-", ")")
    for pattern, by in ((_BEFORE, ""), (_AFTER, ""), (_SPACED_HYPHEN, "-"), (_SLASH, "/")):
        text = pattern.sub(by, text)
    return text


READERS: dict[str, Callable[[Path, dict[str, Any]], Iterator[Text]]] = {
    reader.__name__: reader
    for reader in (
        rows, standard_library, debian_packages, records, medquad, medquad_questions, pubmedqa, scitldr, genia, tokens,
        token_sentences,
    )
}  # fmt: skip
