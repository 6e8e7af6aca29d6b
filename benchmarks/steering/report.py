"""The report of the steering benchmark: tables, a plot, and their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_steer_retriever.evaluate.table import Cell, Column, Table

from ..paper.figure import Line, Panel
from .cost import Cost
from .curve import LOSSES, OPERATING_LOSS
from .dictionaries import DEFAULT_NAME, RANDOM_NAME
from .methods import ADD_NAME, ORACLE_NAME
from .pairs import Combination
from .plot import draw_steering
from .removal import PRESENT_FROM, Removal
from .study import Compared, MethodResult

_AT = [f"{loss:.0%}" for loss in LOSSES]
_PLACE = LOSSES.index(OPERATING_LOSS)
# Methods in the plot; the table has all.
_DRAWN = (
    ORACLE_NAME,
    "linear probe, probability",
    "DiffMean",
    DEFAULT_NAME,
    "k-means directions",
    ADD_NAME,
    RANDOM_NAME,
)


@dataclass(frozen=True)
class SteeringReport:
    """All ways to steer on one labelled corpus.

    Columns and JSON keys called "drift" hold the score loss.

    Attributes:
        corpus: Name of the corpus.
        passages: Number of ranked passages.
        questions: The queries.
        words: Names of the concepts.
        unsteered: Mean share of a concept in the unsteered top 10.
        compared: The ways to steer.
        unresolved: Words that mean no feature -> the reason.
        removals: Results of steering away from a concept.
        combinations: Results of steering towards two concepts at once.
        costs: nDCG on judged queries.
        judged: Name of their set.
        notes: Remarks for readers of the figures, one sentence each.
    """

    corpus: str
    passages: int
    questions: tuple[str, ...]
    words: tuple[str, ...]
    unsteered: float
    compared: Compared
    unresolved: dict[str, str]
    removals: tuple[Removal, ...]
    combinations: tuple[Combination, ...]
    costs: tuple[Cost, ...] = ()
    judged: str = ""
    notes: tuple[str, ...] = ()

    def tables(self) -> list[Table]:
        """Returns the methods, the default against others, and removal, combinations and costs if measured."""
        results = self.compared.results
        tables = [self._methods(results), self._differences()]
        if self.removals:
            tables.append(self._removals())
        if self.combinations:
            tables.append(self._combinations())
        if self.costs:
            tables.append(self._costs())
        return tables

    def panel(self, results: list[MethodResult]) -> Panel:
        """Returns the curves of share over score loss."""
        curves = {result.name: result.curve for result in results if len(result.curve[0]) > 1}
        drawn = [name for wanted in _DRAWN for name in curves if name == wanted or name.startswith(f"{wanted} (")]
        lines = [Line(name, tuple(curves[name][0].tolist()), tuple(curves[name][1].tolist())) for name in drawn]
        return Panel(
            f"{self.corpus}: held-out questions and perspectives",
            "score loss: relative fall of the mean unsteered score of the top 10",
            "share of the top 10",
            tuple(lines),
        )

    def to_text(self) -> str:
        """Returns the tables, for a terminal."""
        return "\n\n\n".join(table.to_text() for table in self.tables())

    def to_json(self) -> dict[str, Any]:
        """Returns all tables and all curves."""
        curves = {
            result.name: {"drift": result.curve[0].tolist(), "share": result.curve[1].tolist()}
            for result in self.compared.results
        }
        tables = {table.name: table.to_json() for table in self.tables()}
        return {"corpus": self.corpus, **tables, "curves": curves, "unresolved": self.unresolved}

    def write(self, folder: Path) -> list[Path]:
        """Writes each table (Markdown, CSV, JSON) and the plot (PNG, SVG).

        Args:
            folder: Created if needed.

        Returns:
            The files.

        Raises:
            MissingExtraError: matplotlib is not installed; the tables are written before.
        """
        results = self.compared.results
        files = [file for table in self.tables() for file in table.write(folder)]
        intervals = {result.name: result.shares for result in results}
        return files + draw_steering(self.panel(results), intervals, f"steering-{self.corpus}").save(folder)

    def _methods(self, results: list[MethodResult]) -> Table:
        columns = [Column("method"), Column("needs"), *(Column(at, ".3f", intervals=at == _AT[_PLACE]) for at in _AT)]
        columns += [Column("area to 10%", ".3f"), Column("strength", ".3g"), Column("its drift", ".1%")]
        columns += [Column("its share", ".3f"), Column("5%, all pairs", ".3f")]
        rows: list[tuple[Cell, ...]] = [
            (
                result.name, result.needs, *result.shares, result.area, result.strength, result.loss, result.share,
                result.everywhere[_PLACE],
            )
            for result in results
        ]  # fmt: skip
        return Table(
            f"{self.corpus}: share of the wanted perspective in the top 10, at equal score loss",
            tuple(columns),
            tuple(rows),
            (*self._facts(), *self._leaders(results), *self.notes),
            f"steering-{self.corpus}",
        )

    def _facts(self) -> list[str]:
        queries, concepts = self.compared.reported
        facts = [
            f"{self.passages:,} passages; of {len(self.questions)} questions and {len(self.words)} perspectives those "
            f"at even places are reported ({len(queries)} x {len(concepts)}); unsteered, {self.unsteered:.3f} of a top "
            "10 carries a perspective, over all pairs.",
            "Drift is the score loss: the relative fall of the mean unsteered score of the top 10. The shares at 2, 5 "
            "and 10 % are interpolated along the mean curve; intervals are 95 %, by bootstrap over questions and "
            "perspectives.",
            "Strength: the best one with at most 5 % score loss on the other half of questions and perspectives; its "
            "drift and its share are measured on the reported half. The SAE's strengths are in units of `steer=`.",
            f"Labelled examples are in no ranking. Unresolved: {len(self.unresolved)} of {len(self.words)} names"
            + (f" ({', '.join(self.unresolved)}): these are not steered." if self.unresolved else "."),
        ]
        if not any(name.startswith("LLM") for name in self.compared.found):
            facts.append("No language model was given to rewrite queries: that baseline is left out.")
        return facts

    def _leaders(self, results: list[MethodResult]) -> list[str]:
        own = next(result for result in results if result.name == DEFAULT_NAME)
        ahead = [
            f"{result.name} ({result.needs})"
            for result in results
            if result.shares[_PLACE].value > own.shares[_PLACE].value and result.name != ORACLE_NAME
        ]
        led = (
            f"ahead of the default at 5 % score loss: {', '.join(ahead)}" if ahead else "only the oracle is ahead of it"
        )
        return [f"Held out, {led}."]

    def _differences(self) -> Table:
        compared = self.compared
        columns = (Column("the default"), Column("of pairs"), *(Column(at, ".3f") for at in _AT))
        rows: list[tuple[Cell, ...]] = []
        for everywhere, which in ((False, "held out"), (True, "all")):
            for other in (ADD_NAME, RANDOM_NAME):
                found = compared.differences(DEFAULT_NAME, other, everywhere=everywhere)
                rows.append((f"minus {other}", which, *found))
            way = compared.way(DEFAULT_NAME, ADD_NAME, ORACLE_NAME, everywhere=everywhere)
            rows.append((f"of the way from {ADD_NAME} to the {ORACLE_NAME}", which, *way))
        note = "Both methods use the same drawn questions and perspectives."
        return Table(
            f"{self.corpus}: the default against its baselines", columns, tuple(rows), (note,),
            f"steering-{self.corpus}-differences",
        )  # fmt: skip

    def _removals(self) -> Table:
        columns = [Column("method"), Column("questions"), Column("perspectives"), Column("before", ".3f")]
        columns += [Column("after", ".3f"), Column("drift", ".1%"), Column("left, median", ".2f")]
        columns += [Column("left, own strength", ".2f")]
        notes = (
            f"Pairs with at least {PRESENT_FROM:.0%} of the perspective in the unsteered top 10: ambiguous questions "
            "that happen to find it, and questions that ask for it by its words.",
            "After: at the largest strength with at most 5 % mean score loss (drift) on every other perspective, "
            "reported on the rest. Left: share after / share before, median over perspectives; with one strength for "
            "all, and at each perspective's own best strength of at most 5 % score loss.",
        )
        title = f"{self.corpus}: steering away from a perspective"
        return Table(title, tuple(columns), self.removals, notes, f"steering-{self.corpus}-removal")

    def _combinations(self) -> Table:
        columns = [Column("method"), Column("pairs"), Column("before", ".3f"), Column("either", ".3f")]
        columns += [Column("the weaker", ".3f")]
        note = "At 5 % score loss, over all questions: share of the top 10 that carries either, and that of the weaker."
        title = f"{self.corpus}: steering towards two perspectives at once"
        return Table(title, tuple(columns), self.combinations, (note,), f"steering-{self.corpus}-pairs")

    def _costs(self) -> Table:
        columns = [Column("method"), Column("queries"), Column("unsteered", ".4f"), *(Column(at, ".4f") for at in _AT)]
        columns += [Column("change at strength 0.5", "+.4f")]
        rows = tuple((name, queries, before, *at, at_half) for name, queries, before, at, at_half in self.costs)
        note = "Each query is steered by a labelled feature drawn at random: nDCG@10 at 2, 5 and 10 % mean score loss."
        title = f"{self.judged}: nDCG lost on judged queries under a random steering"
        return Table(title, tuple(columns), rows, (note,), f"steering-{self.corpus}-cost")


def unsteered_share(members: np.ndarray[Any, Any], plain: np.ndarray[Any, Any]) -> float:
    """Returns the mean share of a concept in the unsteered top 10.

    Args:
        members: (C, N).
        plain: (Q, 10) rows.
    """
    return float(members[:, plain].mean())
