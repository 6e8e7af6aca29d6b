"""One page per SAE: its tables, its plots and what it is good for, as Markdown and as one self-contained HTML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from sae_steer_retriever.evaluate.agreement import Agreement
from sae_steer_retriever.evaluate.fidelity import Fidelity
from sae_steer_retriever.evaluate.plots import Plot
from sae_steer_retriever.evaluate.report_tables import agreement_table, fidelity_table, meaning_table
from sae_steer_retriever.evaluate.table import Table, escape_markdown
from sae_steer_retriever.evaluate.verdict import Finding, JSONObject, judge, summary

TEMPLATE_FILE = "report.html.jinja"
_HEADINGS = {"good": "Good for", "caution": "Keep in mind", "not": "Not for"}


def write_page(
    folder: Path,
    fidelity: Fidelity | None,
    agreement: Agreement | None,
    meaning: JSONObject | None,
    plots: Sequence[Plot] = (),
    *,
    tables: Sequence[Table] = (),
    title: str | None = None,
) -> list[Path]:
    """Write `report.md` and `report.html`, and the plots beside them as PNG and SVG.

    The HTML file needs nothing beside it. Names of datasets and labels are anybody's texts: all are escaped.

    Args:
        folder: Made if it is not there.
        fidelity: On judged queries.
        agreement: On queries without judgments.
        meaning: Of the features, a `Meaning`.
        plots: In order, below the tables.
        tables: Further ones, below those of the figures above.
        title: Heading; made of the figures if not given.

    Returns:
        The page in Markdown, the page in HTML, then the plots' files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = [fidelity_table(fidelity)] if fidelity is not None else []
    shown += [agreement_table(agreement)] if agreement is not None else []
    shown += [meaning_table(meaning)] if meaning is not None else []
    shown += tables
    findings = judge(fidelity, agreement, meaning)
    heading = title or _title(fidelity)
    plot_files = [file for plot in plots for file in plot.save(folder)]
    svgs = [inline_svg((folder / f"{plot.stem}.svg").read_text(encoding="utf-8"), plot.stem) for plot in plots]
    pages = {
        "report.md": _markdown(heading, findings, shown, plots),
        "report.html": _html(heading, findings, shown, list(zip(plots, svgs, strict=True))),
    }
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return [*(folder / name for name in pages), *plot_files]


def inline_svg(text: str, prefix: str) -> str:
    """An SVG file as an element of a page, with ids that no other plot on the page has.

    Args:
        text: The file, as matplotlib writes it.
        prefix: Of the ids.
    """
    element = text[text.index("<svg") :]
    # matplotlib keeps the texts of a drawing in comments, for people who edit the file.
    element = re.sub(r"<!--.*?-->", "", element, flags=re.DOTALL)
    own = re.sub(r"[^A-Za-z0-9]", "-", prefix)
    element = re.sub(r'\bid="([^"]+)"', rf'id="{own}-\1"', element)
    element = re.sub(r'(href="#|url\(#)', rf"\g<1>{own}-", element)
    # The page, not the drawing, decides how wide it is; its proportions are in the viewBox.
    return re.sub(
        r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", element, count=1), count=1
    )


def _title(fidelity: Fidelity | None) -> str:
    if fidelity is None:
        return "Evaluation of a sparse autoencoder"
    sizes = f"{fidelity.n:,} latents, K = {fidelity.k}"
    return f"{fidelity.dataset}: a sparse autoencoder for {fidelity.encoder}, {sizes}"


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
        # Drawn by us: markup, not text.
        plots=[(plot, Markup(svg)) for plot, svg in plots],
    )
