"""The figures of one SAE as tables: fidelity, agreement, meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.paper.tables import SHOWN_METRICS, SHOWN_NAMES, kept
from sae_steer_retriever.evaluate.agreement import Agreement
from sae_steer_retriever.evaluate.bootstrap import Estimate
from sae_steer_retriever.evaluate.fidelity import MIXED, ORIGINAL, Fidelity
from sae_steer_retriever.evaluate.metrics import METRICS
from sae_steer_retriever.evaluate.table import Cell, Column, Table
from sae_steer_retriever.evaluate.verdict import JSONObject

_NAMES = {**SHOWN_NAMES, MIXED: "Original query, recon"}
_DICTIONARIES = {"sae": "this SAE", "random": "frozen random", "kmeans": "k-means, untrained"}


def fidelity_table(fidelity: Fidelity) -> Table:
    """What each way to search keeps on a judged set."""
    columns = [Column("search")]
    for metric in METRICS:
        # As in Table 1, people are shown the intervals of two: the files have all.
        intervals = metric in ("mrr@10", "ndcg@10")
        columns += [
            Column(SHOWN_METRICS[metric], ".4f", intervals=False),
            Column(f"{SHOWN_METRICS[metric]} kept", ".1%", intervals=intervals),
        ]
    rows = []
    for quality in fidelity.rows:
        cells: list[Cell] = [_NAMES[quality.name]]
        for metric in METRICS:
            cells.append(Estimate(quality.values[metric], *quality.intervals[metric]))
            cells.append(quality.retention[metric] if quality.name == ORIGINAL else kept(quality, metric))
        rows.append(tuple(cells))
    notes = (
        f"{fidelity.documents:,} passages, {fidelity.queries:,} judged queries; in brackets 95 % intervals over "
        "queries.",
        _errors(fidelity),
        f"{fidelity.l0:.1f} latents active in a passage; {fidelity.dead:.1%} of {fidelity.n:,} are dead, "
        f"{fidelity.rare:.1%} active in fewer than five passages.",
        *(f"{note}." for note in fidelity.notes),
    )
    return Table(f"Retrieval on {fidelity.dataset}", tuple(columns), tuple(rows), notes, "fidelity")


def agreement_table(agreement: Agreement) -> Table:
    """How much of the original ranking each way to search keeps, without judgments."""
    columns = (Column("search"), Column("overlap@10", ".3f"), Column("rank correlation", ".3f"))
    rows = tuple((_NAMES[name], row.overlap, row.rank_correlation) for name, row in agreement.rows.items())
    notes = (
        f"{agreement.documents:,} passages, {agreement.queries:,} titles and sentences of them as queries; in brackets "
        "95 % intervals over queries. Rank correlation: Kendall's tau-b over the original's first hundred.",
        "A query that was taken from a passage is an easy one: real queries keep less.",
    )
    return Table("Agreement with the original ranking", columns, rows, notes, "agreement")


def meaning_table(meaning: JSONObject) -> Table:
    """What the features mean, beside dictionaries that were never trained."""
    found = meaning.to_json()
    halves: Mapping[str, Any] = (found.get("recurrence") or {}).get("dictionaries", {})
    columns = [
        Column("dictionary"),
        Column("labelled", ".1%"),
        Column("AUROC random", ".3f"),
        Column("AUROC hard", ".3f"),
        Column("coherence", ".3f"),
        Column("dead", ".1%"),
        Column("rare", ".1%"),
        Column("most frequent", ".1%"),
    ]
    if halves:
        columns += [Column("recurrence", ".1%"), Column("coherence, held out", ".3f")]
    rows = []
    for name, one in found["dictionaries"].items():
        frequencies = one["frequencies"]["k_names"]
        cells: list[Cell] = [_DICTIONARIES.get(name, name), one["share_labelled"]]
        cells += [_estimate(one[figure]) for figure in ("auroc_random", "auroc_hard", "coherence")]
        cells += [frequencies[figure] for figure in ("dead", "rare", "maximum")]
        if halves:
            cells += [halves[name]["recurrence"], _estimate(halves[name]["held_out_coherence"])]
        rows.append(tuple(cells))
    notes = [
        f"{found['passages']:,} passages, read at {found['k_labels']} latents. AUROC: whether a label finds the "
        "passages of its feature among random ones, and among those of neighbouring features, on passages the label "
        "was not made of. Medians over the features that could be scored, so a dictionary with fewer labels is judged "
        "by fewer; in brackets 95 % intervals.",
        f"Coherence: mean cosine between a feature's strongest passages, centred; random passages have "
        f"{found['random_passages']['value']:.3f}.",
    ]
    if halves:
        notes.append(
            f"Recurrence: the share of features that come back when the other half of the passages is fitted "
            f"({found['recurrence']['steps']:,} steps a fit); coherence, held out, is measured on the half not fitted."
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
    """A median with its interval; None where it could not be measured."""
    if found["value"] is None:
        return None
    return Estimate(found["value"], found["low"], found["high"])
