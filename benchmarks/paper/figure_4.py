"""Figure 4 of arXiv 2411.00786 as a table and a drawing: retrieval against the addition to one latent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.evaluate.bootstrap import Estimate, estimate
from sae_steer_retriever.evaluate.datasets import read_retrieval_set
from sae_steer_retriever.evaluate.metrics import PerQuery
from sae_steer_retriever.evaluate.report_tables import SHOWN_METRICS
from sae_steer_retriever.evaluate.retrieval_set import RELEVANT, EmbeddedSet, RetrievalSet, embed_set
from sae_steer_retriever.evaluate.table import Cell, Column, Table
from sae_steer_retriever.sae.topk_sae import TopKSAE

from .figure import Figure, Line, Panel
from .manipulation import (
    PRODUCTS,
    SIDES,
    STRENGTHS,
    ManipulatedSide,
    Manipulation,
    Product,
    UsualValues,
    judged_from,
    manipulate,
)
from .plots import draw_strengths

_METRICS = ("mrr@10", "p@10", "ndcg@10")
_DRAWN = ("mrr@10", "p@10")
_PRODUCTS: dict[Product, str] = {"dot": "dot product", "cosine": "cosine"}
_SIDES: dict[ManipulatedSide, str] = {"document": "relevant documents", "query": "query"}
_UNCHANGED = "unchanged"
# From here on an MRR counts as "reaches 1".
_REACHED = 0.99


def manipulation_study(
    sae: Path, dataset: str | Path, embedder: Embedder, *, split: str = "test", relevant_from: int = RELEVANT
) -> Figure:
    """Returns Figure 4 for a judged set.

    Args:
        sae: Folder of the SAE; it needs no catalog.
        dataset: The judged set, as `read_retrieval_set` takes it.
        embedder: The SAE's encoder, a `CachedEmbedder`.
        split: Which judgments.
        relevant_from: The smallest grade that counts as relevant.

    Raises:
        ArtifactError: The SAE cannot be read.
        CorpusError: The set is malformed, or no query has a relevant document of that grade.
        MismatchError: The embedder is not the SAE's encoder.
    """
    dictionary = TopKSAE.from_pretrained(sae)
    dictionary.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
    judged = read_retrieval_set(dataset, split=split)
    return figure_4(dictionary, judged, embed_set(judged, embedder), relevant_from=relevant_from)


def figure_4(
    sae: TopKSAE,
    judged: RetrievalSet,
    vectors: EmbeddedSet,
    strengths: Sequence[float] = STRENGTHS,
    *,
    relevant_from: int = RELEVANT,
) -> Figure:
    """Returns Figure 4: a latent of the relevant documents, or of the query, is raised in growing steps.

    Args:
        sae: The dictionary.
        judged: Queries and judgments.
        vectors: Embeddings of the set by the SAE's encoder.
        strengths: Additions in embedding units.
        relevant_from: The smallest grade that counts as relevant.

    Raises:
        MismatchError: The embeddings belong to another encoder or set.
        CorpusError: No query has a relevant document in the corpus, or none of that grade.
        ValueError: There is no strength, or one is not above 0.
    """
    judged, vectors = judged_from(judged, vectors, relevant_from)
    found = manipulate(sae, judged, vectors, strengths)
    columns = (
        Column("ranked by"),
        Column("added to"),
        Column("strength", ".4f"),
        Column("over usual", ".1f"),
        *(Column(SHOWN_METRICS[metric], ".4f", intervals=metric != "ndcg@10") for metric in _METRICS),
    )
    rows: list[tuple[Cell, ...]] = []
    for product in PRODUCTS:
        rows.append((_PRODUCTS[product], "nothing", 0.0, None, *_estimates(found.unchanged[product])))
        for side in SIDES:
            usual = _usual(found, side)
            rows += [
                (_PRODUCTS[product], _SIDES[side], strength, _ratio(strength, usual), *_estimates(values))
                for strength, values in zip(found.strengths, found.curves[product, side], strict=True)
            ]
    title = f"Figure 4: addition to one latent, and the ranking of {judged.name}"
    table = Table(title, columns, tuple(rows), _notes(found, sae, judged), "figure-4")
    panels = tuple(_panel(found, product, metric) for metric in _DRAWN for product in PRODUCTS)
    caption = (
        "Retrieval over reconstructions against the addition to one latent, of the relevant documents only (an oracle) "
        "or of the query. Bars are 95 % intervals over queries; vertical lines mark usual values of the queries' "
        "latents."
    )
    return Figure("figure-4", table, caption, {"figure-4": panels}, draw_strengths)


def _estimates(values: PerQuery) -> list[Estimate]:
    return [estimate(values[metric]) for metric in _METRICS]


def _usual(found: Manipulation, side: ManipulatedSide) -> UsualValues:
    return found.queries if side == "query" else found.documents


def _ratio(strength: float, usual: UsualValues) -> float | None:
    return strength / usual.median if usual.median > 0 else None


def _panel(found: Manipulation, product: Product, metric: str) -> Panel:
    lines = []
    x = found.strengths
    for side in SIDES:
        points = [estimate(values[metric]) for values in found.curves[product, side]]
        own = [tuple(getattr(point, name) for point in points) for name in ("value", "low", "high")]
        lines.append(Line(f"added to the {_SIDES[side]}", x, *own))
    level = float(found.unchanged[product][metric].mean())
    lines.append(Line(_UNCHANGED, (x[0], x[-1]), (level, level)))
    usual = found.queries
    for name, value in (("usual latent (median)", usual.median), ("a query's largest (median)", usual.largest)):
        if x[0] <= value <= x[-1]:
            # A line of one point is drawn as a mark on the axis of strengths.
            lines.append(Line(name, (value,), (0.0,)))
    title = f"{SHOWN_METRICS[metric]}, {_PRODUCTS[product]}"
    return Panel(title, "strength, embedding units", SHOWN_METRICS[metric], tuple(lines))


def _notes(found: Manipulation, sae: TopKSAE, judged: RetrievalSet) -> tuple[str, ...]:
    encoder = sae.config.encoder.short_name
    notes = [
        f"{judged.name}, {len(judged.query_ids):,} queries, {len(judged.passages):,} documents; {encoder}, n = "
        f"{sae.config.n:,}, K = {sae.config.k}. In brackets 95 % intervals over queries.",
        "Decode-replace: the code is edited and decoded, and the reconstructions are searched, by dot product as "
        "decoded, or by cosine, with everything scaled to unit norm after the edit. No TopK follows an edit.",
        "Documents: the query's largest latent is raised in the query's relevant documents and in no others, which "
        "needs the judgments. Query: the latent with the largest sum over the relevant documents is raised in the "
        "query.",
        f"Usual values, median / 95th percentile of active latents / median of a text's largest: queries "
        f"{_shown(found.queries)}, documents {_shown(found.documents)}; over usual: strength over the median of the "
        "changed side.",
    ]
    notes += [_shape(found, product) for product in PRODUCTS]
    notes.append(
        "In the paper (BGE-base-en-v1.5, MS MARCO, dot products), MRR rises steadily on documents and reaches 1.0 at "
        "the largest strength; on queries MRR and P@10 rise, then fall from about twice the usual values on. By cosine "
        "the documents' curve must fall too: a document with an ever larger latent approaches the latent's direction, "
        "which has a fixed cosine with the query."
    )
    return (*notes, *(f"{judged.name}: {note}." for note in judged.notes))


def _shape(found: Manipulation, product: Product) -> str:
    """The course of the MRR curves, in words."""
    before = float(found.unchanged[product]["mrr@10"].mean())
    document, query = (np.array([values["mrr@10"].mean() for values in found.curves[product, side]]) for side in SIDES)
    text = f"By {_PRODUCTS[product]}, MRR@10 {before:.3f} unchanged"
    if before >= _REACHED:
        return f"{text}: nothing is left to raise; P@10 and nDCG@10 tell more."
    reached = np.nonzero(document >= _REACHED)[0]
    text += f"; documents raise it to {document.max():.3f} at {found.strengths[int(document.argmax())]:.4f}"
    text += f" ({_REACHED} from {found.strengths[reached[0]]:.4f} on)" if len(reached) else f" (not to {_REACHED})"
    peak, last = int(query.argmax()), f"{found.strengths[-1]:.4f} leaves {query[-1]:.3f}"
    if peak == len(query) - 1:
        last = "the largest strength tried"
    if query[peak] <= before:
        return f"{text}; no strength on the query raises it, {last}."
    usual = found.queries
    ratios = (
        f"{found.strengths[peak] / usual.median:.1f} usual values, {found.strengths[peak] / usual.largest:.1f} of a"
    )
    return (
        f"{text}; the query raises it to {query[peak]:.3f} at {found.strengths[peak]:.4f} ({ratios} query's largest), "
        f"{last}."
    )


def _shown(usual: UsualValues) -> str:
    return f"{usual.median:.3f} / {usual.percentile:.3f} / {usual.largest:.3f}"
