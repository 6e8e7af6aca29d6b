"""Tables 1 and 8 of arXiv 2411.00786: retrieval kept by latents and reconstructions, beside the printed rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from sae_steer_retriever.evaluate.fidelity import LATENT, LATENT_COSINE, LATENT_NORMALISED, ORIGINAL, RECONSTRUCTED
from sae_steer_retriever.evaluate.plots import Plot
from sae_steer_retriever.evaluate.report_tables import SHOWN_NAMES, metric_cells, metric_columns
from sae_steer_retriever.evaluate.table import Cell, Column, Table
from sae_steer_retriever.sae.codes import POWER

from .fits import FitSeries
from .plots import draw_table_1
from .printed import TABLE_1_IN_DOMAIN, TABLE_1_OUT_OF_DOMAIN, TABLE_8, PaperRow, PaperSet
from .seed_average import JudgedSet, SeedAverage, average_seeds, score_sets

logger = logging.getLogger(f"sae_steer_retriever.{__name__}")

OURS, PAPER = "ours", "paper"

_COLUMNS = (
    *(Column(name) for name in ("domain", "by", "set", "search", "K")),
    Column("MSE", ".2e"),
    *metric_columns(),
    Column("MRR@10 kept, seeds", ".1%"),
    Column("nDCG@10 kept, seeds", ".1%"),
)


def table_1(
    series: FitSeries,
    sets: Sequence[JudgedSet],
    *,
    ks: Sequence[int] = (32, 64, 128),
    seeds: Sequence[int] = (0, 1, 2),
) -> Table:
    """Returns Table 1: one encoder, in domain and out of domain, by K.

    "Latent" is the dot product of codes, as in the paper. Extra rows show their cosine, and the cosine of
    power-normalised codes, by which `space="latent"` ranks. Each query's values are averaged over the seeds first, so
    the intervals are over queries; the last two columns have the lowest and the highest seed.

    Args:
        series: Fits or loads the SAEs.
        sets: First the set whose documents are fitted, then sets out of domain.
        ks: Numbers of active latents.
        seeds: Seeds of the fits.

    Raises:
        ValueError: There is no set, no K or no seed.
        ArtifactError: An SAE cannot be written or read.
    """
    titled = ("table-1", "Table 1: what latents and reconstructions keep of the retrieval")
    return _paper_table(titled, series, sets, ks, seeds, (TABLE_1_IN_DOMAIN, TABLE_1_OUT_OF_DOMAIN))


def table_8(
    series: FitSeries,
    sets: Sequence[JudgedSet],
    *,
    ks: Sequence[int] = (32, 64, 128),
    seeds: Sequence[int] = (0, 1, 2),
) -> Table:
    """Returns Table 8: the same for a second encoder; arguments and errors are those of `table_1`."""
    titled = ("table-8", "Table 8: what latents and reconstructions keep of the retrieval, second encoder")
    return _paper_table(titled, series, sets, ks, seeds, (TABLE_8, None))


def _paper_table(
    titled: tuple[str, str],
    series: FitSeries,
    sets: Sequence[JudgedSet],
    ks: Sequence[int],
    seeds: Sequence[int],
    papers: tuple[PaperSet, PaperSet | None],
) -> Table:
    if not (sets and ks and seeds):
        raise ValueError(f"{len(sets)} sets, {len(ks)} K and {len(seeds)} seeds: expected at least one of each.")
    by_k: dict[int, list[SeedAverage]] = {}
    encoder = ""
    for k in ks:
        fits = []
        for seed in seeds:
            sae = series.sae(k=k, seed=seed)
            encoder = sae.config.encoder.short_name
            fits.append(score_sets(sae, sets))
            logger.info("measured K = %d, seed %d on %d sets", k, seed, len(sets))
        by_k[k] = [average_seeds(found) for found in zip(*fits, strict=True)]
    rows: list[tuple[Cell, ...]] = []
    places = len(next(iter(by_k.values())))
    for place in range(places):
        # The paper has one pooled score out of domain: it stands beside ours, the last place.
        paper = papers[0] if place == 0 else papers[1] if place == places - 1 else None
        rows += _set_rows({k: averages[place] for k, averages in by_k.items()}, paper)
    name, title = titled
    notes = _notes(encoder, [average.queries for average in by_k[ks[0]]], seeds, sets)
    return Table(title, _COLUMNS, tuple(rows), notes, name)


def _set_rows(by_k: dict[int, SeedAverage], paper: PaperSet | None) -> list[tuple[Cell, ...]]:
    """The rows of one set; the paper's row follows each of ours."""
    first = next(iter(by_k.values()))
    rows = [_our_row(first, ORIGINAL, None), *_paper_rows(first.domain, paper, ORIGINAL, None)]
    for search in (LATENT, LATENT_COSINE, LATENT_NORMALISED, RECONSTRUCTED):
        for k, average in by_k.items():
            rows += [_our_row(average, search, k), *_paper_rows(first.domain, paper, search, k)]
    return rows


def _our_row(average: SeedAverage, search: str, k: int | None) -> tuple[Cell, ...]:
    quality = average.rows[search]
    mse = average.mse if search == RECONSTRUCTED else None
    seeds = [average.extremes(search, metric) if search != ORIGINAL else None for metric in ("mrr@10", "ndcg@10")]
    return (average.domain, OURS, average.dataset, SHOWN_NAMES[search], k, mse, *metric_cells(quality), *seeds)


def _paper_rows(domain: str, paper: PaperSet | None, search: str, k: int | None) -> list[tuple[Cell, ...]]:
    row: PaperRow | None = paper.row(search, k) if paper is not None else None
    if paper is None or row is None:
        return []
    mrr, precision, recall = paper.kept(row)
    figures = (row.mrr, mrr, row.precision, precision, row.recall, recall, None, None)
    return [(domain, PAPER, paper.name, SHOWN_NAMES[search], k, row.mse, *figures, None, None)]


def _notes(encoder: str, queries: Sequence[int], seeds: Sequence[int], sets: Sequence[JudgedSet]) -> tuple[str, ...]:
    names = ", ".join(f"{judged.name} ({count:,} queries)" for (judged, _), count in zip(sets, queries, strict=False))
    notes = [
        f"Ours: encoder {encoder}, sets {names}; fitted to the documents of {sets[0][0].name} only.",
        "The paper's rows (arXiv 2411.00786) are for another encoder, other sets and collections of millions of "
        "passages: compare the shares kept (a metric over that of the original embeddings), not the metrics.",
        f"Mean over seeds {', '.join(map(str, seeds))}, query by query; in brackets 95 % intervals over queries. These "
        "do not cover differences between seeds: the last columns have the lowest and the highest seed.",
        "Latent is the dot product of codes, as in the paper, which prints its MRR without a depth; power-normalised "
        f"is the cosine of activations to the power {POWER}, as in the latent space. MSE is per dimension, over judged "
        "queries and their relevant documents.",
    ]
    return (*notes, *(f"{judged.name}: {note}." for judged, _ in sets for note in judged.notes))


def write_table(table: Table, folder: Path) -> list[Path]:
    """Writes a table (Markdown, CSV, JSON) and its bars beside the paper's (PNG, SVG).

    Args:
        table: From `table_1` or `table_8`.
        folder: Created if needed.

    Returns:
        The files.

    Raises:
        MissingExtraError: matplotlib is not installed; the table is written before.
    """
    files = table.write(folder)
    plot = Plot(table.name, table.title, "Share kept of the original embeddings' MRR.", draw_table_1(table))
    return files + plot.save(folder)
