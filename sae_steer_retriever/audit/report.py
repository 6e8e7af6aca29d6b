"""The report of an audit, as one HTML page and as Markdown."""

from __future__ import annotations

import json
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sae_steer_retriever.audit.audit import Audit
from sae_steer_retriever.audit.sections import sections
from sae_steer_retriever.audit.summary import summary
from sae_steer_retriever.errors import MissingExtraError
from sae_steer_retriever.evaluate.page import TEMPLATE_FILE
from sae_steer_retriever.evaluate.table import escape_markdown
from sae_steer_retriever.sae.atomic_files import write_files

PAGE_FILE, TEXT_FILE, DATA_FILE = "audit.html", "audit.md", "audit.json"
_TEMPLATE = "audit.html.jinja"


def title(audit: Audit) -> str:
    """The heading of the report."""
    return f"Audit of {audit.sampled.collection}"


def looked_at(audit: Audit) -> str:
    """The store and the samples, in words."""
    seen = audit.sampled
    if seen.origin == "file":
        asked = f"{seen.queries:,} queries"
        if seen.queries < seen.queries_given:
            asked += f" drawn from {seen.queries_given:,}"
    else:
        asked = (
            f"{seen.queries:,} sentences drawn from the passages in place of queries, as no queries were given (real "
            "queries tell more; the passage that a sentence is from is left out of its hits)"
        )
    codes = ""
    if not seen.has_sidecar:
        codes = ", encoded for this audit as there is no sidecar collection of this SAE"
    elif seen.encoded:
        codes = (
            f", {seen.encoded:,} of them encoded for this audit as the sidecar collection has no current code of them "
            "(`sae-steer index --attach` adds these)"
        )
    if seen.coded < seen.passages:
        codes += f"; features are counted over {seen.coded:,} passages drawn at random"
    return (
        f"{seen.passages:,} passages{codes}. {asked}. Seed {seen.seed}, encoder {seen.encoder}, SAE "
        f"{seen.fingerprint}. Nothing was written to the store."
    )


def write_report(audit: Audit, folder: Path, *, data: bool = False) -> list[Path]:
    """Returns the files written to a folder: `audit.html`, `audit.md`, and with `data` also `audit.json`.

    Passages, ids, queries and labels may hold any text: all are escaped.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    pages = {PAGE_FILE: to_html(audit), TEXT_FILE: to_markdown(audit)}
    if data:
        pages[DATA_FILE] = json.dumps(audit.to_json(), ensure_ascii=False, indent=2) + "\n"
    write_files(folder, {name: text.encode("utf-8", "replace") for name, text in pages.items()})
    return [folder / name for name in pages]


def to_text(audit: Audit) -> str:
    """The summary, for a terminal."""
    lines = [f"{'fine' if finding.fine else 'look'}: {finding.sentence}" for finding in summary(audit)]
    return "\n".join([f"{title(audit)}: {looked_at(audit)}", "", *lines])


def to_markdown(audit: Audit) -> str:
    """The whole report in Markdown, without charts."""
    parts = [f"# {escape_markdown(title(audit))}", escape_markdown(looked_at(audit))]
    findings = [(finding.fine, escape_markdown(finding.sentence)) for finding in summary(audit)]
    lines = [f"{row}. **{'Fine' if fine else 'Look'}:** {text}" for row, (fine, text) in enumerate(findings, start=1)]
    parts.append("\n".join(lines))
    for section in sections(audit):
        parts += [f"## {escape_markdown(section.title)}", escape_markdown(section.answer)]
        parts += [f"*How to read it:* {_code(section.reading)}", f"*What to do:* {_code(section.action)}"]
        parts += [table.to_markdown().rstrip() for table in section.tables]
        if section.code:
            parts.append("\n".join(f"    {line}" for line in section.code))
        parts.append(f"*Definition:* {_code(section.definition)}")
    return "\n\n".join(parts) + "\n"


def to_html(audit: Audit) -> str:
    """Returns the whole report as one page.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    require_pages()
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    templates = {
        TEMPLATE_FILE: (files("sae_steer_retriever.evaluate") / TEMPLATE_FILE).read_text(encoding="utf-8"),
        _TEMPLATE: (files(__package__) / _TEMPLATE).read_text(encoding="utf-8"),
    }
    environment = Environment(
        loader=DictLoader(templates), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    told: dict[str, Any] = {
        "title": title(audit),
        "looked_at": looked_at(audit),
        "findings": summary(audit),
        "sections": sections(audit),
        "parts_of": lambda text: enumerate(text.split("`")),
        # Our own charts are markup, not text.
        "drawn": Markup,
    }
    return environment.get_template(_TEMPLATE).render(told)


def require_pages() -> None:
    """Check that the page can be made, before anything is measured.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    if find_spec("jinja2") is None:
        raise MissingExtraError("the page of an audit", "evaluate")


def _code(text: str) -> str:
    """Our own sentence in Markdown; text between backticks stays code."""
    return "`".join(part if place % 2 else _escaped(part) for place, part in enumerate(text.split("`")))


def _escaped(part: str) -> str:
    """Escaped text that keeps a space at either end."""
    return " " * part.startswith(" ") + escape_markdown(part) + " " * part.endswith(" ")
