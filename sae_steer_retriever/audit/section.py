"""One part of a report: its figures as tables and charts, and what a reader needs to know to use them."""

from __future__ import annotations

from typing import NamedTuple

from sae_steer_retriever.audit.charts import Chart
from sae_steer_retriever.evaluate.table import Table


class Section(NamedTuple):
    """One part of a report.

    Attributes:
        name: Of its anchor.
        title: Its heading.
        answer: What was found, in a sentence or two.
        reading: How to read it.
        action: What to do about it.
        definition: What exactly was counted.
        tables: Its figures.
        charts: The same, drawn.
        code: Lines to copy, if there are any.
    """

    name: str
    title: str
    answer: str
    reading: str
    action: str
    definition: str
    tables: tuple[Table, ...]
    charts: tuple[Chart, ...] = ()
    code: tuple[str, ...] = ()


__all__ = ["Section"]
