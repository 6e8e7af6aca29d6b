"""Tables 1 and 8 of arXiv 2411.00786: what latents and reconstructions keep of a retrieval, beside the paper's rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sae_steer_retriever.evaluate.bootstrap import Estimate
from sae_steer_retriever.evaluate.fidelity import LATENT, LATENT_COSINE, LATENT_NORMALISED, ORIGINAL, RECONSTRUCTED
from sae_steer_retriever.evaluate.fits import FitSeries
from sae_steer_retriever.evaluate.metrics import METRICS, Quality
from sae_steer_retriever.evaluate.paper import TABLE_1_IN_DOMAIN, TABLE_1_OUT_OF_DOMAIN, TABLE_8, PaperRow, PaperSet
from sae_steer_retriever.evaluate.seed_average import JudgedSet, SeedAverage, average_seeds, score_sets
from sae_steer_retriever.evaluate.table import Cell, Column, Table
from sae_steer_retriever.sae.codes import POWER

logger = logging.getLogger(__name__)

OURS, PAPER = "ours", "paper"

SHOWN_NAMES = {
    ORIGINAL: "Original",
    LATENT: "Latent",
    LATENT_COSINE: "Latent, cosine",
    LATENT_NORMALISED: "Latent, power-normalised",
    RECONSTRUCTED: "Recon",
}
"""The ways to search, as the paper's tables name them."""

SHOWN_METRICS = {"mrr@10": "MRR@10", "p@10": "P@10", "r@10": "R@10", "ndcg@10": "nDCG@10"}
"""The metrics, as a heading names them."""

_COLUMNS = (
    Column("domain"),
    Column("by"),
    Column("set"),
    Column("search"),
    Column("K"),
    Column("MSE", ".2e"),
    *(
        column
        for metric in METRICS
        for column in (
            Column(SHOWN_METRICS[metric], ".4f", intervals=False),
            # People are shown the intervals of two: a line of all four is wider than any screen.
            Column(f"{SHOWN_METRICS[metric]} kept", ".1%", intervals=metric in ("mrr@10", "ndcg@10")),
        )
    ),
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
    """Table 1: one encoder, in domain and out of it, by K.

    "Latent" is the dot product of codes, as in the paper; their cosine, and the cosine of power-normalised codes that
    `space="latent"` ranks by, are extra rows. Each query's values are averaged over the seeds before anything else, so
    that the intervals are over queries; the last two columns have the lowest and the highest seed.

    Args:
        series: Fits, or loads, the SAEs.
        sets: The set whose documents are fitted, then those that are not.
        ks: Active latents.
        seeds: Of the fits.

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
    """Table 8: the same for a second encoder, beside the paper's second one; arguments and errors are `table_1`'s."""
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
    """The rows of one set, each of ours with the paper's below it."""
    first = next(iter(by_k.values()))
    rows = [_our_row(first, ORIGINAL, None), *_paper_rows(first.domain, paper, ORIGINAL, None)]
    for search in (LATENT, LATENT_COSINE, LATENT_NORMALISED, RECONSTRUCTED):
        for k, average in by_k.items():
            rows += [_our_row(average, search, k), *_paper_rows(first.domain, paper, search, k)]
    return rows


def _our_row(average: SeedAverage, search: str, k: int | None) -> tuple[Cell, ...]:
    quality = average.rows[search]
    mse = average.mse if search == RECONSTRUCTED else None
    altered = search != ORIGINAL
    figures: list[Cell] = []
    for metric in METRICS:
        figures += [_value(quality, metric), kept(quality, metric) if altered else quality.retention[metric]]
    seeds = [average.extremes(search, metric) if altered else None for metric in ("mrr@10", "ndcg@10")]
    return (average.domain, OURS, average.dataset, SHOWN_NAMES[search], k, mse, *figures, *seeds)


def _paper_rows(domain: str, paper: PaperSet | None, search: str, k: int | None) -> list[tuple[Cell, ...]]:
    row: PaperRow | None = paper.row(search, k) if paper is not None else None
    if paper is None or row is None:
        return []
    mrr, precision, recall = paper.kept(row)
    figures = (row.mrr, mrr, row.precision, precision, row.recall, recall, None, None)
    return [(domain, PAPER, paper.name, SHOWN_NAMES[search], k, row.mse, *figures, None, None)]


def _value(quality: Quality, metric: str) -> Estimate:
    return Estimate(quality.values[metric], *quality.intervals[metric])


def kept(quality: Quality, metric: str) -> Estimate:
    """The retention of a metric with its interval."""
    return Estimate(quality.retention[metric], *quality.retention_intervals[metric])


def _notes(encoder: str, queries: Sequence[int], seeds: Sequence[int], sets: Sequence[JudgedSet]) -> tuple[str, ...]:
    names = ", ".join(f"{judged.name} ({count:,} queries)" for (judged, _), count in zip(sets, queries, strict=False))
    notes = [
        f"Ours: encoder {encoder}, sets {names}; fitted to the documents of {sets[0][0].name} only.",
        "The rows by the paper are printed in arXiv 2411.00786 for another encoder, other sets and collections of "
        "millions of passages: compare what is kept (a metric over that of the original embeddings), not the metrics.",
        f"Mean over seeds {', '.join(map(str, seeds))}, query by query; in brackets 95 % intervals over queries, which "
        "do not hold what another seed would have changed: the last columns have the lowest and the highest seed.",
        "Latent is the dot product of codes, as in the paper, which prints its MRR without a depth; power-normalised "
        f"is the cosine of activations to the power {POWER}, as in the latent space. MSE is per dimension, "
        "over judged queries and their relevant documents.",
    ]
    return (*notes, *(f"{judged.name}: {note}." for judged, _ in sets for note in judged.notes))
