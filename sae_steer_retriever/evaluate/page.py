"""One page per SAE with its tables, plots and verdict, as Markdown and as one self-contained HTML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from sae_steer_retriever.evaluate.plots import Plot
from sae_steer_retriever.evaluate.table import Table, escape_markdown
from sae_steer_retriever.evaluate.verdict import Finding, summary

TEMPLATE_FILE = "report.html.jinja"
_HEADINGS = {"good": "Good for", "caution": "Keep in mind", "not": "Not for"}


def write_page(
    folder: Path, title: str, findings: Sequence[Finding], tables: Sequence[Table], plots: Sequence[Plot] = ()
) -> list[Path]:
    """Returns the files that it writes: `report.md`, `report.html`, then the plots as PNG and SVG.

    The folder is created if needed. The page has title, verdict (`findings`), tables and plots, in their order. The
    HTML file is self-contained. Names of datasets and labels are untrusted texts: all are escaped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plot_files = [file for plot in plots for file in plot.save(folder)]
    svgs = [inline_svg((folder / f"{plot.stem}.svg").read_text(encoding="utf-8"), plot.stem) for plot in plots]
    pages = {
        "report.md": _markdown(title, findings, tables, plots),
        "report.html": _html(title, findings, tables, list(zip(plots, svgs, strict=True))),
    }
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return [*(folder / name for name in pages), *plot_files]


def inline_svg(text: str, prefix: str) -> str:
    """Returns an SVG file of matplotlib as an element of a page; the prefix makes its ids unique on the page."""
    element = text[text.index("<svg") :]
    # matplotlib keeps the texts of a drawing in comments, for people who edit the file.
    element = re.sub(r"<!--.*?-->", "", element, flags=re.DOTALL)
    own = re.sub(r"[^A-Za-z0-9]", "-", prefix)
    element = re.sub(r'\bid="([^"]+)"', rf'id="{own}-\1"', element)
    element = re.sub(r'(href="#|url\(#)', rf"\g<1>{own}-", element)
    # The page decides on the width; the viewBox has the proportions.
    for size in ("width", "height"):
        element = re.sub(rf'(<svg[^>]*?)\s{size}="[^"]*"', r"\1", element, count=1)
    return element


def _grouped(findings: Sequence[Finding]) -> list[tuple[str, list[Finding]]]:
    groups = [(name, [finding for finding in findings if finding.kind == kind]) for kind, name in _HEADINGS.items()]
    return [(name, found) for name, found in groups if found]


def _markdown(title: str, findings: Sequence[Finding], tables: Sequence[Table], plots: Sequence[Plot]) -> str:
    parts = [f"# {escape_markdown(title)}", escape_markdown(summary(findings))]
    for name, found in _grouped(findings):
        points = [f"- {escape_markdown(finding.sentence)} ({escape_markdown(finding.because)})" for finding in found]
        parts.append("\n".join([f"**{name}**", "", *points]))
    parts += [table.to_markdown().rstrip() for table in tables]
    parts += [f"![{escape_markdown(plot.title)}]({plot.stem}.png)\n\n{escape_markdown(plot.caption)}" for plot in plots]
    return "\n\n".join(parts) + "\n"


def _html(title: str, findings: Sequence[Finding], tables: Sequence[Table], plots: Sequence[tuple[Plot, str]]) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    template = (files(__package__) / TEMPLATE_FILE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        title=title,
        summary=summary(findings),
        groups=_grouped(findings),
        tables=tables,
        # Our own drawings are markup, not text.
        plots=[(plot, Markup(svg)) for plot, svg in plots],
    )
