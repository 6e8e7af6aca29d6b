"""One SAE on one set or corpus: what is measured, as text, as JSON and as a page to read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_steer_retriever.corpus.passage import Passage
from sae_steer_retriever.corpus.read_corpus import read_corpus
from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.evaluate.agreement import Agreement, held_out_queries, measure_agreement
from sae_steer_retriever.evaluate.datasets import read_retrieval_set
from sae_steer_retriever.evaluate.embedded import embed_set
from sae_steer_retriever.evaluate.fidelity import Fidelity, encode_in_batches, measure_fidelity
from sae_steer_retriever.evaluate.figure import Figure
from sae_steer_retriever.evaluate.held_out import recorded
from sae_steer_retriever.evaluate.meaning import Meaning, measure_meaning
from sae_steer_retriever.evaluate.page import write_page
from sae_steer_retriever.evaluate.plots import Plot, draw_features
from sae_steer_retriever.evaluate.ranks import figure_3
from sae_steer_retriever.evaluate.report_tables import agreement_table, fidelity_table, meaning_table
from sae_steer_retriever.evaluate.verdict import judge, summary
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured of an SAE.

    Attributes:
        name: Of the set or the corpus.
        sae: The SAE.
        fidelity: On judged queries; None for a corpus without judgments.
        agreement: With the original ranking, on a corpus without judgments; None for a judged set.
        meaning: Of its features; None if it was not asked for.
        ranks: Words and features by document frequency; None if it was not asked for.
    """

    name: str
    sae: TopKSAE
    fidelity: Fidelity | None = None
    agreement: Agreement | None = None
    meaning: Meaning | None = None
    ranks: Figure | None = None

    def to_text(self) -> str:
        """The tables, and what follows from them."""
        tables = [
            *([fidelity_table(self.fidelity)] if self.fidelity is not None else []),
            *([agreement_table(self.agreement)] if self.agreement is not None else []),
            *([meaning_table(self.meaning)] if self.meaning is not None else []),
        ]
        verdict = summary(judge(self.fidelity, self.agreement, self.meaning))
        return "\n\n".join([*(table.to_text() for table in tables), verdict])

    def to_json(self) -> dict[str, Any]:
        """One object: the fidelity's or the agreement's fields, and `meaning` where it was measured."""
        config = self.sae.config
        sizes = {"dataset": self.name, "encoder": config.encoder.name, "d": config.d, "n": config.n, "k": config.k}
        measured = self.fidelity or self.agreement
        found = {**sizes, **(measured.to_json() if measured is not None else {})}
        return found if self.meaning is None else {**found, "meaning": self.meaning.to_json()}

    def write(self, folder: Path) -> list[Path]:
        """Write a page to read, in Markdown and in HTML, with its plots.

        Returns:
            The files.

        Raises:
            MissingExtraError: There is something to draw, and matplotlib is not installed.
        """
        plots = [] if self.meaning is None else [_features_plot(self.meaning)]
        plots += self.ranks.plots() if self.ranks is not None else []
        config = self.sae.config
        sizes = f"{config.n:,} latents, K = {config.k}"
        title = f"{self.name}: a sparse autoencoder for {config.encoder.short_name}, {sizes}"
        return write_page(folder, self.fidelity, self.agreement, self.meaning, plots, title=title)


def _features_plot(meaning: Meaning) -> Plot:
    own, control = meaning.dictionaries["sae"], meaning.dictionaries["random"]
    canvas = draw_features(own.label_scores, own.shares, random_auroc=control.auroc_hard.value)
    caption = (
        "How well each scored label tells its feature's passages from those of neighbouring features (.5: not at all, "
        "1: always), and in which share of the passages each feature is among the names."
    )
    return Plot("features", "Label scores and document frequencies", caption, canvas)


def evaluate_set(
    sae: TopKSAE,
    source: str | Path,
    embedder: Embedder,
    *,
    split: str = "test",
    meaning: bool = False,
    recurrence_steps: int | None = None,
    ranks: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Measure an SAE on a judged set.

    Args:
        sae: The SAE.
        source: Anything `read_retrieval_set` takes.
        embedder: A caching one.
        split: Which judgments.
        meaning: Whether to measure what the features mean, too.
        recurrence_steps: Steps of each of the two fits that recurrence needs; 0 leaves it out.
        ranks: Whether to count words and features, for the page.
        progress: Whether to show progress bars on stderr.

    Raises:
        CorpusError: The set is malformed, or not there.
        MismatchError: The SAE is another encoder's.
    """
    sae.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
    judged = read_retrieval_set(source, split=split)
    vectors = embed_set(judged, embedder)
    found = None
    if meaning:
        found = _meaning(sae, judged.passages, vectors.documents, embedder, recurrence_steps, progress)
    figure = figure_3(sae, judged.texts, encode_in_batches(sae, vectors.documents)) if ranks else None
    return Evaluation(judged.name, sae, fidelity=measure_fidelity(sae, judged, vectors), meaning=found, ranks=figure)


def evaluate_corpus(
    sae: TopKSAE,
    corpus: Path,
    embedder: Embedder,
    *,
    meaning: bool = False,
    recurrence_steps: int | None = None,
    ranks: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Measure an SAE on documents without judgments: how much of the original ranking it keeps.

    The queries are titles and sentences of the documents that its training has not drawn.

    Args:
        sae: The SAE.
        corpus: File or folder.
        embedder: A caching one.
        meaning: Whether to measure what the features mean, too.
        recurrence_steps: Steps of each of the two fits that recurrence needs; 0 leaves it out.
        ranks: Whether to count words and features, for the page.
        progress: Whether to show progress bars on stderr.

    Raises:
        CorpusError: There is nothing to read, or too little.
        MismatchError: The SAE is another encoder's.
    """
    sae.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
    training = sae.config.training
    read = read_corpus(corpus, passage_characters=recorded(training, "passage_characters", 1200))
    queries = held_out_queries(read.passages, training)
    texts = [passage.text for passage in read.passages]
    vectors = embedder.embed_documents(texts)
    query_vectors = embedder.embed_queries([query.text for query in queries])
    agreement = measure_agreement(sae, vectors, query_vectors, latent=True)
    found = _meaning(sae, read.passages, vectors, embedder, recurrence_steps, progress) if meaning else None
    figure = figure_3(sae, texts, encode_in_batches(sae, vectors)) if ranks else None
    return Evaluation(corpus.resolve().name, sae, agreement=agreement, meaning=found, ranks=figure)


def _meaning(
    sae: TopKSAE,
    passages: Sequence[Passage],
    vectors: Array,
    embedder: Embedder,
    recurrence_steps: int | None,
    progress: bool,
) -> Meaning:
    options = {} if recurrence_steps is None else {"recurrence_steps": recurrence_steps}
    return measure_meaning(sae, passages, vectors, embedder, progress=progress, **options)
