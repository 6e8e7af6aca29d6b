"""Figures 2 and 5 of arXiv 2411.00786: retrieval kept after fits with different losses, in and out of domain."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from sae_steer_retriever.evaluate.bootstrap import Estimate, difference
from sae_steer_retriever.evaluate.fidelity import LATENT, LATENT_COSINE, LATENT_NORMALISED, RECONSTRUCTED
from sae_steer_retriever.evaluate.report_tables import SHOWN_METRICS, SHOWN_NAMES, kept, value
from sae_steer_retriever.evaluate.table import Cell, Column, Table
from sae_steer_retriever.train.config import LossName

from .figure import Figure, Line, Panel
from .fits import FitSeries
from .plots import draw_panels
from .printed import FIGURE_2
from .seed_average import JudgedSet, SeedAverage, average_seeds, score_sets

logger = logging.getLogger(f"sae_steer_retriever.{__name__}")

REFERENCE_LOSS: LossName = "mse"
"""Reference for all other losses."""

_COMPARED = ("mrr@10", "ndcg@10")
_SEARCHES = (RECONSTRUCTED, LATENT, LATENT_COSINE, LATENT_NORMALISED)
_DRAWN = (RECONSTRUCTED, LATENT)


def figure_2(
    series: FitSeries,
    sets: Sequence[JudgedSet],
    *,
    ks: Sequence[int] = (32, 64, 128),
    seeds: Sequence[int] = (0, 1, 2),
    losses: Sequence[LossName] = ("rkl", "mse", "mse-queries", "eq2", "released"),
    steps: int | None = None,
) -> Figure:
    """Returns Figures 2 and 5: the retrieval kept after fits that differ only in the loss.

    Each query's values are averaged over the seeds. The difference to the loss "mse" is taken query by query, and its
    interval resamples queries.

    Args:
        series: Fits or loads the SAEs.
        sets: First the set whose documents are fitted, then sets out of domain; several of these are pooled, and all
            their queries weigh the same.
        ks: Numbers of active latents.
        seeds: Seeds of the fits.
        losses: Losses to compare, "mse" among them.
        steps: Steps of each fit; those of the series if not given.

    Raises:
        ValueError: There is no set, no K or no seed, or "mse" is not compared.
        ArtifactError: An SAE cannot be written or read.
    """
    if not (sets and ks and seeds):
        raise ValueError(f"{len(sets)} sets, {len(ks)} K and {len(seeds)} seeds: expected at least one of each.")
    if REFERENCE_LOSS not in losses:
        raise ValueError(
            f"losses {', '.join(losses) or 'none'}: expected {REFERENCE_LOSS} among them, with which the others are "
            "compared; add it."
        )
    fixed: dict[str, Any] = {} if steps is None else {"steps": steps}
    found: dict[tuple[str, int], list[SeedAverage]] = {}
    for k in ks:
        for loss in losses:
            fits = []
            for seed in seeds:
                fits.append(score_sets(series.sae(k=k, loss=loss, seed=seed, **fixed), sets))
                logger.info("measured K = %d, loss %s, seed %d", k, loss, seed)
            averages = [average_seeds(scores) for scores in zip(*fits, strict=True)]
            # The first is in domain, the last pools all sets out of domain.
            found[loss, k] = [averages[0], averages[-1]]
    places = range(min(2, len(sets)))
    rows = [row for place in places for row in _loss_rows(found, place, ks, losses)]
    columns = [Column("domain"), Column("set"), Column("search"), Column("K"), Column("loss"), Column("MSE", ".2e")]
    for metric in _COMPARED:
        shown = SHOWN_METRICS[metric]
        columns += [Column(shown, ".4f", intervals=False), Column(f"{shown} kept", ".1%")]
        columns += [Column(f"{shown} over mse", "+.4f"), Column(f"{shown} over mse, seeds", "+.4f")]
    table = Table("Figure 2: losses compared", tuple(columns), tuple(rows), _loss_notes(seeds, steps), "figure-2")
    panels = {
        f"figure-2-{metric.partition('@')[0]}": tuple(
            _loss_panel(found, place, search, metric, ks, losses) for search in _DRAWN for place in places
        )
        for metric in _COMPARED
    }
    caption = (
        "Retrieval kept of the original embeddings after a fit with each loss, by the number of active latents; bars "
        "are 95 % intervals over queries. A loss helps if neither interval of its difference to mse in the table, over "
        "queries or over seeds, contains 0."
    )
    return Figure("figure-2", table, caption, panels, draw_panels)


def _loss_rows(
    found: dict[tuple[str, int], list[SeedAverage]], place: int, ks: Sequence[int], losses: Sequence[LossName]
) -> Iterable[tuple[Cell, ...]]:
    for search in _SEARCHES:
        for k in ks:
            reference = found[REFERENCE_LOSS, k][place]
            for loss in losses:
                average = found[loss, k][place]
                quality = average.rows[search]
                figures: list[Cell] = []
                for metric in _COMPARED:
                    figures += [value(quality, metric), kept(quality, metric)]
                    if loss == REFERENCE_LOSS:
                        figures += [None, None]
                        continue
                    other = reference.rows[search].per_query[metric]
                    figures.append(Estimate(*difference(quality.per_query[metric], other)))
                    figures.append(average.gained(reference, search, metric))
                mse = average.mse if search == RECONSTRUCTED else None
                yield (average.domain, average.dataset, SHOWN_NAMES[search], k, loss, mse, *figures)


def _loss_panel(
    found: dict[tuple[str, int], list[SeedAverage]],
    place: int,
    search: str,
    metric: str,
    ks: Sequence[int],
    losses: Sequence[LossName],
) -> Panel:
    lines = []
    for loss in losses:
        points = [kept(found[loss, k][place].rows[search], metric) for k in sorted(ks)]
        lines.append(
            Line(
                name=loss,
                x=tuple(map(float, sorted(ks))),
                y=tuple(point.value for point in points),
                low=tuple(point.low for point in points),
                high=tuple(point.high for point in points),
            )
        )
    average = found[REFERENCE_LOSS, ks[0]][place]
    what = {RECONSTRUCTED: "reconstructions", LATENT: "latents, dot product"}[search]
    return Panel(
        title=f"{what}, {average.domain}",
        x_label="K, active latents",
        y_label=f"{SHOWN_METRICS[metric]} kept",
        lines=tuple(lines),
    )


def _loss_notes(seeds: Sequence[int], steps: int | None) -> tuple[str, ...]:
    paper = FIGURE_2
    return (
        f"Mean over seeds {', '.join(map(str, seeds))}, query by query; in brackets 95 % intervals over queries. "
        "Over mse: the metric minus that of the fit with mse alone, paired by query; seeds: the lowest and the highest "
        "single seed, each minus mse of the same seed.",
        *([] if steps is None else [f"Each fit took {steps:,} steps."]),
        "rkl: FVU and the relative KL at a chosen temperature; mse: FVU alone; mse-queries: the list queries count "
        "twice; eq2 and released: FVU and the KL of arXiv 2411.00786 as printed, and as in its code.",
        f"The paper prints one pair: latent MRR at K = {paper.k}, {paper.mse:.4f} with MSE alone and {paper.kld:.4f} "
        "with its KL (BGE-base-en-v1.5, MS MARCO). It compares with MSE alone, never with a heavier MSE on queries.",
    )
