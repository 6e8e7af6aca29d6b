"""Reads one document file into titled sections of plain text (.txt, .md, .rst, .html, .pdf, .docx)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sae_steer_retriever.corpus.decoding import UnreadableFileError, clean_text, decode_text, read_bytes
from sae_steer_retriever.corpus.webpage import html_lines
from sae_steer_retriever.errors import MissingExtraError, first_line

# A longer line that is marked up as a heading is taken for text.
_LONGEST_HEADING = 200
_LONGEST_CONTEXT = 300
_MARKDOWN_HEADING = re.compile(r" {0,3}#{1,6}(?=[ \t]|$)")
_MARKDOWN_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_MARKDOWN_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*")
_MARKDOWN_NO_TITLE = re.compile(r"\s*(?:[-*+>|]|\d+[.)]\s)")
_RST_UNDERLINE = re.compile(r"([!-/:-@\[-`{-~])\1{2,}\s*")
_FILE_NAME_AS_TITLE = re.compile(r"untitled|microsoft word\b|.*\.(?:docx?|pdf|tex|indd|dvi|rtf)$", re.IGNORECASE)

# A line of text, and whether it is a heading.
_Line = tuple[str, bool]


class Section(NamedTuple):
    """The text below one heading of a document, without the heading.

    `heading` has the lines to put before the text: the title, and the headings above it that have no text of their own.
    """

    text: str
    title: str = ""  # the nearest heading above the text
    heading: str = ""
    page: int | None = None  # of a paged document, counted from 1


def read_document(path: Path) -> tuple[list[Section], str]:
    """Returns the sections of a file, none of them empty, and a note on how it was read ("" if there is none).

    Raises:
        UnreadableFileError: It is binary, damaged, encrypted, not permitted, or holds no text.
        MissingExtraError: It needs a package that is not installed (.pdf, .docx: the extra `documents`).
    """
    suffix, note = path.suffix.lower(), ""
    if suffix == ".pdf":
        sections = _pdf_sections(path)
    elif suffix == ".docx":
        sections = _sections(_docx_lines(path))
    else:
        text, note = decode_text(read_bytes(path), declared_in_html=suffix in (".html", ".htm"))
        sections = _sections(_TEXT_FORMATS[suffix](text))
    if not sections:
        hint = ": are its pages scanned images? run text recognition (OCR) first" if suffix == ".pdf" else ""
        raise UnreadableFileError(f"it holds no text{hint}")
    return sections, note


def _sections(lines: Iterable[_Line]) -> list[Section]:
    """Gathers lines below their headings. A heading without text of its own stays above the next one."""
    sections: list[Section] = []
    headings: list[str] = []
    body: list[str] = []

    def close() -> None:
        text = "\n".join(body).strip("\n").rstrip()
        body.clear()
        if text.strip():
            heading, title = "\n".join(headings), headings[-1] if headings else ""
            if len(heading) > _LONGEST_CONTEXT:
                text, heading = "\n".join([*headings[:-1], "", text]), title
            sections.append(Section(text, title, heading))
            headings.clear()

    for line, is_heading in lines:
        heading = " ".join(line.split()) if is_heading else ""
        if not is_heading:
            body.append(line)
        elif len(heading) > _LONGEST_HEADING:
            body.extend(("", heading, ""))
        elif heading:
            close()
            if headings[-1:] != [heading]:
                headings.append(heading)
    close()
    if headings and not sections:
        sections.append(Section("\n".join(headings), headings[-1]))
    return sections


def _markdown_lines(text: str) -> Iterator[_Line]:
    """ATX (`## x`) and underlined headings, outside of fenced code. Of YAML front matter only the title is kept."""
    lines = text.split("\n")
    position = 0
    if lines[0].rstrip() == "---" and "---" in (rest := [line.rstrip() for line in lines[1:200]]):
        position = rest.index("---") + 2
        for line in lines[1 : position - 1]:
            if line.startswith("title:"):
                yield line.removeprefix("title:").strip().strip("\"'"), True
    fence = ""
    while position < len(lines):
        line = lines[position]
        position += 1
        if fence:
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif opened := _MARKDOWN_FENCE.match(line):
            fence = opened[1]
        elif found := _MARKDOWN_HEADING.match(line):
            yield _without_emphasis(line[found.end() :].strip().rstrip("#")), True
            continue
        elif (
            position < len(lines)
            and line.strip()
            and _MARKDOWN_UNDERLINE.fullmatch(lines[position])
            and (position < 2 or not lines[position - 2].strip())
            and not _MARKDOWN_NO_TITLE.match(line)
        ):
            yield _without_emphasis(line), True
            position += 1
            continue
        yield line, False


def _without_emphasis(heading: str) -> str:
    return re.sub(r"\*\*|__|`", "", heading).strip(" \t*")


def _rst_lines(text: str) -> Iterator[_Line]:
    """Titles that are underlined, or over- and underlined, at least as long as themselves (docutils' rule)."""
    lines = text.split("\n")
    position = 0
    while position < len(lines):
        line = lines[position]
        begins_block = not line[:1].isspace() and (position == 0 or not lines[position - 1].strip())
        if _is_rst_title(lines, position) and begins_block:
            yield line, True
            position += 2
        elif (
            _RST_UNDERLINE.fullmatch(line)
            and _is_rst_title(lines, position + 1)
            and line.rstrip() == lines[position + 2].rstrip()
        ):
            yield lines[position + 1], True
            position += 3
        else:
            yield line, False
            position += 1


def _is_rst_title(lines: list[str], title: int) -> bool:
    """Whether the line below is the underline of line `title`."""
    if title + 1 >= len(lines):
        return False
    line, below = lines[title].strip(), lines[title + 1]
    underlined = _RST_UNDERLINE.fullmatch(below) and not _RST_UNDERLINE.fullmatch(lines[title])
    return bool(line and underlined) and len(below.rstrip()) >= len(line)


def _pdf_sections(path: Path) -> list[Section]:
    try:
        import pypdf
    except ImportError as error:
        raise MissingExtraError("reading PDF files", "documents") from error
    try:
        reader = pypdf.PdfReader(path)
        # Many encrypted files have an empty user password: anyone may read them.
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableFileError("it is encrypted: remove its password first")
        title = " ".join(((reader.metadata.title if reader.metadata else None) or "").split())
        pages = [clean_text(page.extract_text()) for page in reader.pages]
    except UnreadableFileError:
        raise
    except Exception as error:  # pypdf raises anything from its own errors to KeyError on a damaged file
        raise UnreadableFileError(f"it is a damaged PDF file: {first_line(error)}") from error
    if len(title) > _LONGEST_HEADING or _FILE_NAME_AS_TITLE.match(title):
        title = ""
    return [Section(text, title, title, number) for number, text in enumerate(pages, start=1) if text.strip()]


def _docx_lines(path: Path) -> Iterator[_Line]:
    try:
        import docx
        from docx.table import Table
    except ImportError as error:
        raise MissingExtraError("reading Word files", "documents") from error
    try:
        for block in docx.Document(str(path)).iter_inner_content():
            if isinstance(block, Table):
                for row in block.rows:
                    # A merged cell is listed once for each column that it spans.
                    cells = dict.fromkeys(" ".join(cell.text.split()) for cell in row.cells)
                    yield "\t".join(clean_text(cell) for cell in cells), False
                yield "", False
            elif block.text.strip():
                style = (block.style.name if block.style else None) or ""
                yield clean_text(block.text), style.startswith(("Heading", "Title"))
                yield "", False
    except Exception as error:  # python-docx passes on errors of zipfile, lxml and its own
        raise UnreadableFileError(f"it is not a Word file, or a damaged one: {first_line(error)}") from error


_TEXT_FORMATS: dict[str, Callable[[str], Iterable[_Line]]] = {
    ".txt": lambda text: ((line, False) for line in text.split("\n")),
    ".md": _markdown_lines,
    ".rst": _rst_lines,
    ".html": html_lines,
    ".htm": html_lines,
}

DOCUMENT_SUFFIXES = (*_TEXT_FORMATS, ".pdf", ".docx")
"""Lower-case suffixes of the files that `read_document` reads."""
