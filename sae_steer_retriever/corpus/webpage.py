"""The readable text of an HTML page, by the standard library's parser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

_DROPPED = frozenset({"script", "style", "nav", "noscript", "template", "svg", "iframe", "object", "select", "button"})
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6", "title"})
_PARAGRAPHS = frozenset(
    {"address", "article", "aside", "blockquote", "body", "div", "dl", "fieldset", "figure", "footer", "form"}
    | {"header", "hr", "main", "ol", "p", "pre", "section", "table", "ul"}
)
_LINES = frozenset({"br", "caption", "dd", "dt", "figcaption", "li", "option", "summary", "tr"})
_CELLS = frozenset({"td", "th"})
_END_OF_FORGOTTEN = frozenset({"main", "article", "body"})

_STRAY_MARK = re.compile(r"<(?![a-zA-Z/!?][^<>]*>)")
_LONG_TAG = re.compile(r"<(/?[a-zA-Z][\w-]{0,30})\b[^<>]{1000,}>")


def html_lines(page: str) -> Iterator[tuple[str, bool]]:
    """Yield the lines of a page and whether each is a heading (`<title>`, `<h1>` to `<h6>`).

    Scripts, styles, navigation and the like are dropped; block elements end a line, the cells of a table row
    are parted by tabs, white space is collapsed except in `<pre>`. Malformed pages give what can be read.
    """
    parser = _TextParser()
    parser.feed(_well_formed(page))
    parser.close()
    parser.end_line()
    yield from parser.lines


def _well_formed(page: str) -> str:
    """Drop what HTMLParser needs quadratic time or worse for, before Python 3.13.6: open tags, giant attributes."""
    pieces = []
    start = 0
    while (comment := page.find("<!--", start)) >= 0 and (end := page.find("-->", comment + 4)) >= 0:
        pieces.append(page[start:comment])
        start = end + 3
    pieces.append(page[start:])
    return _LONG_TAG.sub(r"<\1>", _STRAY_MARK.sub("&lt;", "".join(pieces)))


class _TextParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[tuple[str, bool]] = []
        self._pieces: list[str] = []
        self._heading = ""
        self._dropped = ""
        self._dropped_depth = 0
        self._pre_depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._dropped:
            if tag == self._dropped:
                self._dropped_depth += 1
            elif tag in _END_OF_FORGOTTEN:
                # A navigation that was never closed must not swallow the page.
                self._dropped = ""
        elif tag in _DROPPED:
            self._dropped, self._dropped_depth = tag, 1
            return
        if self._dropped:
            return
        if tag in _HEADINGS:
            self._end_paragraph()
            self._heading = tag
        elif tag in _PARAGRAPHS:
            self._end_paragraph()
            self._pre_depth += tag == "pre"
        elif tag in _LINES:
            self.end_line()
        elif tag in _CELLS and self._pieces:
            self._pieces.append("\t")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _DROPPED:  # <script/> and <svg/> open nothing that would have to be closed
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._dropped:
            if tag == self._dropped:
                self._dropped_depth -= 1
                if not self._dropped_depth:
                    self._dropped = ""
            return
        if tag in _HEADINGS or tag in _PARAGRAPHS:
            self._end_paragraph()
            if tag == "pre":
                self._pre_depth = max(0, self._pre_depth - 1)
        elif tag in _LINES:
            self.end_line()

    def handle_data(self, data: str) -> None:
        if not self._dropped:
            # A tab of the source is white space; the tabs put in above part cells.
            self._pieces.append(data if self._pre_depth else data.replace("\t", " "))

    def end_line(self) -> None:
        """Close the line, or the heading, that is being gathered."""
        text, is_heading = "".join(self._pieces), bool(self._heading)
        self._pieces.clear()
        if not is_heading and self._pre_depth:
            self.lines.extend((line.rstrip(), False) for line in text.split("\n"))
            return
        text = "\t".join(cell for part in text.split("\t") if (cell := " ".join(part.split())))
        if text:
            self.lines.append((text, is_heading))

    def _end_paragraph(self) -> None:
        self.end_line()
        self._heading = ""
        if self.lines and self.lines[-1][0]:
            self.lines.append(("", False))
