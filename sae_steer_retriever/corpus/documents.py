"""Reading one document file into titled sections of plain text (.txt, .md, .rst, .html, .pdf, .docx)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from sae_steer_retriever.corpus.decoding import UnreadableFileError, clean_text, decode_text, read_bytes
from sae_steer_retriever.corpus.webpage import html_lines
from sae_steer_retriever.errors import MissingExtraError

LONGEST_HEADING = 200
"""Characters; a longer line that is marked up as a heading is taken for text."""

_LONGEST_CONTEXT = 300
_MARKDOWN_HEADING = re.compile(r" {0,3}#{1,6}(?=[ \t]|$)")
_MARKDOWN_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_MARKDOWN_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*")
_MARKDOWN_NO_TITLE = re.compile(r"\s*(?:[-*+>|]|\d+[.)]\s)")
_RST_UNDERLINE = re.compile(r"([!-/:-@\[-`{-~])\1{2,}\s*")
_FILE_NAME_AS_TITLE = re.compile(r"untitled|microsoft word\b|.*\.(?:docx?|pdf|tex|indd|dvi|rtf)$", re.IGNORECASE)


class Section(NamedTuple):
    """A stretch of one document below a heading.

    Attributes:
        text: The text itself, without the heading.
        title: The nearest heading above it, or "".
        heading: What to put before the text: the title and, above it, headings that have no text of their own.
        page: The page of a paged document, counted from 1.
    """

    text: str
    title: str = ""
    heading: str = ""
    page: int | None = None


class Document(NamedTuple):
    """The sections of one file and what a user should know of how it was read ("" when nothing)."""

    sections: list[Section]
    note: str = ""


def read_document(path: Path) -> Document:
    """Read one document file by its suffix.

    Args:
        path: A file whose lower-case suffix is in `DOCUMENT_SUFFIXES`.

    Returns:
        Its sections in reading order; none of them is empty.

    Raises:
        UnreadableFileError: It is binary, damaged, encrypted, not permitted, or holds no text.
        MissingExtraError: It needs a package that is not installed (.pdf, .docx: the extra `documents`).
    """
    suffix = path.suffix.lower()
    if suffix == ".pdf":
        document = Document(_pdf_sections(path))
    elif suffix == ".docx":
        document = Document(_line_sections(_docx_lines(path)))
    else:
        text, note = decode_text(read_bytes(path), declared_in_html=suffix in (".html", ".htm"))
        document = Document(_TEXT_FORMATS[suffix](text), note)
    if not document.sections:
        hint = ": are its pages scanned images? run text recognition (OCR) first" if suffix == ".pdf" else ""
        raise UnreadableFileError(f"it holds no text{hint}")
    return document


class _Line(NamedTuple):
    text: str
    is_heading: bool = False


def _line_sections(lines: Iterator[_Line]) -> list[Section]:
    """Gather lines below their headings. A heading without text of its own stays above the next one."""
    sections: list[Section] = []
    headings: list[str] = []
    body: list[str] = []

    def close() -> None:
        text = "\n".join(body).strip("\n").rstrip()
        body.clear()
        if text.strip():
            sections.append(_section(text, headings))
            headings.clear()

    for line in lines:
        heading = " ".join(line.text.split()) if line.is_heading else ""
        if not line.is_heading:
            body.append(line.text)
        elif len(heading) > LONGEST_HEADING:
            body.extend(("", heading, ""))
        elif heading:
            # The heading of what precedes goes with it; one without text is kept for what follows.
            close()
            if headings[-1:] != [heading]:
                headings.append(heading)
    close()
    if headings and not sections:
        sections.append(Section("\n".join(headings), headings[-1]))
    return sections


def _section(text: str, headings: list[str]) -> Section:
    heading = "\n".join(headings)
    if len(heading) > _LONGEST_CONTEXT:
        text = "\n".join([*headings[:-1], "", text])
        heading = headings[-1]
    return Section(text, headings[-1] if headings else "", heading)


def _plain_sections(text: str) -> list[Section]:
    return [Section(text)] if text.strip() else []


def _markdown_sections(text: str) -> list[Section]:
    return _line_sections(_markdown_lines(text.split("\n")))


def _markdown_lines(lines: list[str]) -> Iterator[_Line]:
    """ATX (`## x`) and underlined headings; fenced code is never one. Of YAML front matter the title is kept."""
    position = 0
    if lines[0].rstrip() == "---" and "---" in (rest := [line.rstrip() for line in lines[1:200]]):
        position = rest.index("---") + 2
        for line in lines[1 : position - 1]:
            if line.startswith("title:"):
                yield _Line(line.removeprefix("title:").strip().strip("\"'"), is_heading=True)
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
            yield _Line(_without_emphasis(line[found.end() :].strip().rstrip("#")), is_heading=True)
            continue
        elif (
            position < len(lines)
            and line.strip()
            and _MARKDOWN_UNDERLINE.fullmatch(lines[position])
            and (position < 2 or not lines[position - 2].strip())
            and not _MARKDOWN_NO_TITLE.match(line)
        ):
            yield _Line(_without_emphasis(line), is_heading=True)
            position += 1
            continue
        yield _Line(line)


def _without_emphasis(heading: str) -> str:
    return re.sub(r"\*\*|__|`", "", heading).strip(" \t*")


def _rst_sections(text: str) -> list[Section]:
    return _line_sections(_rst_lines(text.split("\n")))


def _rst_lines(lines: list[str]) -> Iterator[_Line]:
    """Titles that are underlined, or over- and underlined, at least as long as themselves (docutils' rule)."""
    position = 0
    while position < len(lines):
        if _is_rst_underline(lines, position + 1, position) and _starts_rst_block(lines, position):
            yield _Line(lines[position], is_heading=True)
            position += 2
        elif (
            _RST_UNDERLINE.fullmatch(lines[position])
            and _is_rst_underline(lines, position + 2, position + 1)
            and lines[position].rstrip() == lines[position + 2].rstrip()
        ):
            yield _Line(lines[position + 1], is_heading=True)
            position += 3
        else:
            yield _Line(lines[position])
            position += 1


def _is_rst_underline(lines: list[str], underline: int, title: int) -> bool:
    return (
        underline < len(lines)
        and bool(lines[title].strip())
        and bool(_RST_UNDERLINE.fullmatch(lines[underline]))
        and not _RST_UNDERLINE.fullmatch(lines[title])
        and len(lines[underline].rstrip()) >= len(lines[title].strip())
    )


def _starts_rst_block(lines: list[str], position: int) -> bool:
    return not lines[position][0].isspace() and (position == 0 or not lines[position - 1].strip())


def _html_sections(text: str) -> list[Section]:
    return _line_sections(_Line(line, is_heading) for line, is_heading in html_lines(text))


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
        raise UnreadableFileError(f"it is a damaged PDF file: {_first_line(error)}") from error
    if len(title) > LONGEST_HEADING or _FILE_NAME_AS_TITLE.match(title):
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
                    yield _Line("\t".join(clean_text(cell) for cell in cells))
                yield _Line("")
            elif block.text.strip():
                style = (block.style.name if block.style else None) or ""
                yield _Line(clean_text(block.text), is_heading=style.startswith(("Heading", "Title")))
                yield _Line("")
    except Exception as error:  # python-docx passes on errors of zipfile, lxml and its own
        raise UnreadableFileError(f"it is not a Word file, or a damaged one: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


_TEXT_FORMATS: dict[str, Callable[[str], list[Section]]] = {
    ".txt": _plain_sections,
    ".md": _markdown_sections,
    ".rst": _rst_sections,
    ".html": _html_sections,
    ".htm": _html_sections,
}

DOCUMENT_SUFFIXES = (*_TEXT_FORMATS, ".pdf", ".docx")
"""Lower-case suffixes of the files that `read_document` reads."""
