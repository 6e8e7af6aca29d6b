"""A study: SAEs fitted on one judged set, measured there and on sets that they have not seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from benchmarks.paper.figures import figure_2
from benchmarks.paper.fits import FitSeries
from benchmarks.paper.tables import table_1, table_8
from sae_steer_retriever.corpus.read_corpus import read_corpus
from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.evaluate.datasets import RetrievalSet, read_retrieval_set
from sae_steer_retriever.evaluate.embedded import EmbeddedSet, embed_set
from sae_steer_retriever.evaluate.figure import Figure
from sae_steer_retriever.evaluate.plots import Plot, draw_table_1
from sae_steer_retriever.evaluate.table import Table
from sae_steer_retriever.train.config import LossName, TrainConfig


@dataclasses.dataclass(frozen=True)
class Study:
    """The fits and the sets that the paper's tables and figures are repeated with.

    Attributes:
        series: Fits on the documents and train queries of the first set.
        sets: The judged sets with their embeddings: the one that is fitted on first, then those out of domain.
        steps: Of each fit; None if the size of the corpus decides.
    """

    series: FitSeries
    sets: Sequence[tuple[RetrievalSet, EmbeddedSet]]
    steps: int | None = None

    @classmethod
    def open(
        cls,
        in_domain: Path,
        out_of_domain: Sequence[str | Path],
        embedder: Embedder,
        config: TrainConfig,
        *,
        fits: Path,
        split: str = "test",
        progress: bool = False,
    ) -> Study:
        """Read and embed the sets.

        Args:
            in_domain: Folder in BEIR layout; its documents and the queries of its train judgments are fitted.
            out_of_domain: Further sets.
            embedder: A caching one.
            config: What all fits share.
            fits: Folder that keeps them.
            split: Which judgments.
            progress: Whether to show progress bars on stderr.

        Raises:
            CorpusError: A set is malformed, or not there.
        """
        judged = [read_retrieval_set(source, split=split) for source in (in_domain, *out_of_domain)]
        series = FitSeries(read_corpus(in_domain), fits, embedder, config, progress=progress)
        return cls(series, [(one, embed_set(one, embedder)) for one in judged], config.steps)

    def table(self, number: int, ks: Sequence[int], seeds: Sequence[int]) -> Table:
        """Table 1, or Table 8: the same with a second encoder."""
        return (table_1 if number == 1 else table_8)(self.series, self.sets, ks=ks, seeds=seeds)

    def figure_2(self, ks: Sequence[int], seeds: Sequence[int], losses: Sequence[LossName]) -> Figure:
        """Figure 2: losses compared, all else equal."""
        return figure_2(self.series, self.sets, ks=ks, seeds=seeds, losses=losses, steps=self.steps)


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write a table (Markdown, CSV, JSON) and its bars beside the paper's (PNG, SVG).

    Returns:
        The files.

    Raises:
        MissingExtraError: matplotlib is not installed; the table is written then.
    """
    files = table.write(folder)
    plot = Plot(table.name, table.title, "What is kept of the original embeddings' MRR.", draw_table_1(table))
    return files + plot.save(folder)
