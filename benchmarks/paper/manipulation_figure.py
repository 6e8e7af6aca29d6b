"""Figure 4 of arXiv 2411.00786 as a table and a drawing: retrieval against what is added to a latent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.paper.manipulation import (
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
from benchmarks.paper.strength_plot import draw_strengths
from benchmarks.paper.tables import SHOWN_METRICS
from sae_steer_retriever.evaluate.bootstrap import Estimate, estimate
from sae_steer_retriever.evaluate.embedded import EmbeddedSet
from sae_steer_retriever.evaluate.figure import Figure
from sae_steer_retriever.evaluate.metrics import PerQuery
from sae_steer_retriever.evaluate.panel import Line, Panel
from sae_steer_retriever.evaluate.plots import Plot
from sae_steer_retriever.evaluate.retrieval_set import RELEVANT, RetrievalSet
from sae_steer_retriever.evaluate.table import Cell, Column, Table
from sae_steer_retriever.sae.topk_sae import TopKSAE

_METRICS = ("mrr@10", "p@10", "ndcg@10")
_DRAWN = ("mrr@10", "p@10")
_PRODUCTS: dict[Product, str] = {"dot": "dot product", "cosine": "cosine"}
_SIDES: dict[ManipulatedSide, str] = {"document": "relevant documents", "query": "query"}
_UNCHANGED = "unchanged"
# What "reaches 1" is held to.
_REACHED = 0.99


class StrengthFigure(Figure):
    """A figure whose lines are drawn over strengths."""

    def plots(self) -> list[Plot]:
        """The images.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return [
            Plot(stem, self.table.title, self.caption, draw_strengths(panels)) for stem, panels in self.panels.items()
        ]


def figure_4(
    sae: TopKSAE,
    judged: RetrievalSet,
    vectors: EmbeddedSet,
    strengths: Sequence[float] = STRENGTHS,
    *,
    relevant_from: int = RELEVANT,
) -> Figure:
    """Figure 4: a latent of the relevant documents, or of the query, is raised more and more.

    Args:
        sae: The dictionary.
        judged: Queries and judgments.
        vectors: The set's embeddings by the SAE's encoder.
        strengths: What is added, in embedding units.
        relevant_from: The smallest grade that counts as relevant.

    Raises:
        MismatchError: The embeddings are of another encoder, or not those of the set.
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
    title = f"Figure 4: what is added to one latent, and the ranking of {judged.name}"
    table = Table(title, columns, tuple(rows), _notes(found, sae, judged), "figure-4")
    panels = tuple(_panel(found, product, metric) for metric in _DRAWN for product in PRODUCTS)
    caption = (
        "Retrieval over reconstructions against what is added to one latent: of the relevant documents only (an "
        "oracle), or of the query. Bars are 95 % intervals over queries, the vertical lines usual values of the "
        "queries' latents."
    )
    return StrengthFigure("figure-4", table, caption, {"figure-4": panels})


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
            # One place and no height: a mark on the axis of strengths.
            lines.append(Line(name, (value,), (0.0,)))
    title = f"{SHOWN_METRICS[metric]}, {_PRODUCTS[product]}"
    return Panel(title, "strength, embedding units", SHOWN_METRICS[metric], tuple(lines))


def _notes(found: Manipulation, sae: TopKSAE, judged: RetrievalSet) -> tuple[str, ...]:
    encoder = sae.config.encoder.short_name
    notes = [
        f"{judged.name}, {len(judged.query_ids):,} queries, {len(judged.passages):,} documents; {encoder}, n = "
        f"{sae.config.n:,}, K = {sae.config.k}. In brackets 95 % intervals over queries.",
        "Decode-replace: the code is edited, decoded, and reconstructions are searched, by their dot product as they "
        "are decoded, or by their cosine, everything scaled to unit norm after the edit. No TopK follows an edit.",
        "Documents: the latent with the largest value in the query is raised in the documents that are relevant to it "
        "and in no others, which needs the judgments. Query: the latent with the largest sum of values over its "
        "relevant documents is raised in the query.",
        f"Usual values, median / 95th percentile of active latents / median of a text's largest: queries "
        f"{_shown(found.queries)}, documents {_shown(found.documents)}; over usual: strength over the median of the "
        "side that is changed.",
    ]
    notes += [_shape(found, product) for product in PRODUCTS]
    notes.append(
        "The paper (BGE-base-en-v1.5, MS MARCO, scores are dot products) says: on documents MRR rises steadily and "
        "reaches 1.0 at the largest strength; on queries MRR and P@10 rise, then fall once the strength is about twice "
        "usual values. By cosine the documents' curve has to fall too: a document whose latent is raised without end "
        "becomes the latent's direction, and is as near to the query as that is."
    )
    return (*notes, *(f"{judged.name}: {note}." for note in judged.notes))


def _shape(found: Manipulation, product: Product) -> str:
    """Where the curves of MRR go, in words."""
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


__all__ = ["StrengthFigure", "figure_4"]
