"""The figures of one SAE as tables: fidelity, agreement, meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sae_steer_retriever.evaluate.agreement import Agreement
from sae_steer_retriever.evaluate.bootstrap import Estimate
from sae_steer_retriever.evaluate.fidelity import ORIGINAL, ROWS, Fidelity
from sae_steer_retriever.evaluate.metrics import METRICS, Quality
from sae_steer_retriever.evaluate.table import Cell, Column, Table

_SEARCHES = ("Original", "Latent", "Latent, cosine", "Latent, power-normalised", "Recon", "Original query, recon")
SHOWN_NAMES = dict(zip(ROWS, _SEARCHES, strict=True))
"""The ways to search, named as in the paper's tables."""

SHOWN_METRICS = {"mrr@10": "MRR@10", "p@10": "P@10", "r@10": "R@10", "ndcg@10": "nDCG@10"}
"""The metrics, as named in a heading."""

_DICTIONARIES = {"sae": "this SAE", "random": "frozen random", "kmeans": "k-means, untrained"}


def metric_columns() -> list[Column]:
    """Returns two columns a metric, its value and the share kept; only two of the intervals fit on a screen."""
    columns = []
    for metric in METRICS:
        columns.append(Column(SHOWN_METRICS[metric], ".4f", intervals=False))
        columns.append(Column(f"{SHOWN_METRICS[metric]} kept", ".1%", intervals=metric in ("mrr@10", "ndcg@10")))
    return columns


def metric_cells(quality: Quality) -> list[Cell]:
    """Returns the cells of `metric_columns`; the original embeddings keep all by definition, without an interval."""
    cells: list[Cell] = []
    for metric in METRICS:
        cells.append(value(quality, metric))
        cells.append(quality.retention[metric] if quality.name == ORIGINAL else kept(quality, metric))
    return cells


def value(quality: Quality, metric: str) -> Estimate:
    """Returns a metric with its interval."""
    return Estimate(quality.values[metric], *quality.intervals[metric])


def kept(quality: Quality, metric: str) -> Estimate:
    """Returns the retention of a metric with its interval."""
    return Estimate(quality.retention[metric], *quality.retention_intervals[metric])


def fidelity_table(fidelity: Fidelity) -> Table:
    """Returns the metrics of each way to search on a judged set, and the share that each keeps."""
    rows = tuple((SHOWN_NAMES[quality.name], *metric_cells(quality)) for quality in fidelity.rows)
    notes = (
        f"{fidelity.documents:,} passages, {fidelity.queries:,} judged queries; in brackets 95 % intervals over "
        "queries.",
        _errors(fidelity),
        f"{fidelity.l0:.1f} latents active in a passage; {fidelity.dead:.1%} of {fidelity.n:,} are dead, "
        f"{fidelity.rare:.1%} active in fewer than five passages.",
        *(f"{note}." for note in fidelity.notes),
    )
    return Table(f"Retrieval on {fidelity.dataset}", (Column("search"), *metric_columns()), rows, notes, "fidelity")


def agreement_table(agreement: Agreement) -> Table:
    """Returns how much of the original ranking each way to search keeps, without judgments."""
    columns = (Column("search"), Column("overlap@10", ".3f"), Column("rank correlation", ".3f"))
    rows = tuple((SHOWN_NAMES[name], row.overlap, row.rank_correlation) for name, row in agreement.rows.items())
    notes = (
        f"{agreement.documents:,} passages, {agreement.queries:,} titles and sentences of them as queries; in brackets "
        "95 % intervals over queries. Rank correlation: Kendall's tau-b over the original's first hundred.",
        "A query that was taken from a passage is an easy one: real queries keep less.",
    )
    return Table("Agreement with the original ranking", columns, rows, notes, "agreement")


def meaning_table(meaning: Mapping[str, Any]) -> Table:
    """Returns the meaning of the features beside that of untrained dictionaries; `meaning` is `Meaning.to_json()`."""
    halves: Mapping[str, Any] = (meaning.get("recurrence") or {}).get("dictionaries", {})
    columns = [Column("dictionary"), Column("labelled", ".1%")]
    columns += [Column(name, ".3f") for name in ("AUROC random", "AUROC hard", "coherence")]
    columns += [Column(name, ".1%") for name in ("dead", "rare", "most frequent")]
    if halves:
        columns += [Column("recurrence", ".1%"), Column("coherence, held out", ".3f")]
    rows = []
    for name, one in meaning["dictionaries"].items():
        frequencies = one["frequencies"]["k_names"]
        cells: list[Cell] = [_DICTIONARIES.get(name, name), one["share_labelled"]]
        cells += [_estimate(one[figure]) for figure in ("auroc_random", "auroc_hard", "coherence")]
        cells += [frequencies[figure] for figure in ("dead", "rare", "maximum")]
        if halves:
            cells += [halves[name]["recurrence"], _estimate(halves[name]["held_out_coherence"])]
        rows.append(tuple(cells))
    notes = [
        f"{meaning['passages']:,} passages, {meaning['k_names']} label latents each. AUROC: whether a label finds the "
        "passages of its feature among random ones, and among those of neighbouring features, on passages that the "
        "label was not made from. Medians over the features that could be scored, so a dictionary with fewer labels is "
        "judged by fewer; in brackets 95 % intervals.",
        f"Coherence: mean cosine between a feature's strongest passages, centred; random passages have "
        f"{meaning['random_passages']['value']:.3f}.",
    ]
    if halves:
        notes.append(
            "Recurrence: share of the features that come back when the other half of the passages is fitted "
            f"({meaning['recurrence']['steps']:,} steps a fit); coherence, held out, is measured on the half not "
            "fitted."
        )
    return Table("Meaning of the features", tuple(columns), tuple(rows), tuple(notes), "meaning")


def _errors(fidelity: Fidelity) -> str:
    judged = "over judged queries and their relevant documents"
    if math.isnan(fidelity.fvu):
        return f"MSE {fidelity.mse:.2e} per dimension {judged}; no FVU, the passages do not differ."
    return (
        f"MSE {fidelity.mse:.2e} per dimension and FVU {fidelity.fvu:.3f} {judged}; FVU {fidelity.fvu_documents:.3f} "
        f"over all passages, {fidelity.fvu_queries:.3f} over the queries."
    )


def _estimate(found: Mapping[str, Any]) -> Cell:
    """A median with its interval; None if it could not be measured."""
    return None if found["value"] is None else Estimate(found["value"], found["low"], found["high"])
