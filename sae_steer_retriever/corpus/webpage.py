"""The readable text of an HTML page. libxml2 parses the page, this file decides what is a line, a heading, a cell."""

from __future__ import annotations

from lxml import etree  # type: ignore[import-untyped]

_DROPPED = frozenset({"script", "style", "nav", "noscript", "template", "svg", "iframe", "object", "select", "button"})
# A navigation that is never closed must not swallow the page.
_NEVER_DROPPED = frozenset({"main", "article", "body"})
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6", "title"})
_PARAGRAPHS = _HEADINGS | {
    *("address", "article", "aside", "blockquote", "body", "div", "dl", "fieldset", "figure", "footer", "form"),
    *("header", "hr", "main", "ol", "p", "pre", "section", "table", "ul"),
}
_LINES = frozenset({"br", "caption", "dd", "dt", "figcaption", "li", "option", "summary", "tr"})
_CELLS = frozenset({"td", "th"})


def html_lines(page: str) -> list[tuple[str, bool]]:
    """Returns the lines of a page and whether each is a heading (`<title>`, `<h1>` to `<h6>`).

    Scripts, styles, navigation and the like are dropped. Block elements end a line, tabs separate the cells of a table
    row, and white space is collapsed except in `<pre>`. A malformed page gives what can be read.
    """
    # The parser ignores </br>, and takes a comment that is never closed to reach to the end of the page.
    before, end, after = page.replace("</br>", "<br>").rpartition("-->")
    parser = etree.HTMLParser(target=_Lines(), huge_tree=True)
    parser.feed(f"<html>{before}{end}{after.replace('<!--', '&lt;!--')}")
    lines: list[tuple[str, bool]] = parser.close()
    return lines


class _Lines:
    """Takes the parser's events; every `start` has its `end`, also where the page does not close an element."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, bool]] = []
        self._pieces: list[str] = []
        self._heading = False
        self._dropped = [False]  # for each open element, innermost last
        self._pre_depth = 0

    def start(self, tag: str, attributes: object) -> None:
        dropped = tag in _DROPPED or (self._dropped[-1] and tag not in _NEVER_DROPPED)
        self._dropped.append(dropped)
        if dropped:
            return
        if tag in _CELLS and self._pieces:
            self._pieces.append("\t")
        self._end_block(tag)
        self._heading = self._heading or tag in _HEADINGS
        self._pre_depth += tag == "pre"

    def end(self, tag: str) -> None:
        if not self._dropped.pop():
            self._end_block(tag)
            self._pre_depth -= tag == "pre"

    def data(self, text: str) -> None:
        if not self._dropped[-1]:
            # A tab of the source is white space; the tabs that `start` adds separate cells.
            self._pieces.append(text if self._pre_depth else text.replace("\t", " "))

    def close(self) -> list[tuple[str, bool]]:
        self._end_line()
        return self._lines

    def _end_block(self, tag: str) -> None:
        if tag in _PARAGRAPHS or tag in _LINES:
            self._end_line()
        if tag in _PARAGRAPHS:
            self._heading = False
            if self._lines and self._lines[-1][0]:
                self._lines.append(("", False))

    def _end_line(self) -> None:
        text = "".join(self._pieces)
        self._pieces.clear()
        if self._pre_depth and not self._heading:
            self._lines.extend((line.rstrip(), False) for line in text.split("\n"))
        elif cells := [cell for part in text.split("\t") if (cell := " ".join(part.split()))]:
            self._lines.append(("\t".join(cells), self._heading))
