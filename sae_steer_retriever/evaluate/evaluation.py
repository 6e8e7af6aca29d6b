"""One SAE measured on one set or corpus: the result as text, as JSON and as a page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sae_steer_retriever.corpus.passage import Passage
from sae_steer_retriever.corpus.read_corpus import read_corpus
from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.evaluate.agreement import Agreement, held_out_queries, measure_agreement, recorded
from sae_steer_retriever.evaluate.datasets import read_retrieval_set
from sae_steer_retriever.evaluate.fidelity import Fidelity, encode_in_batches, measure_fidelity
from sae_steer_retriever.evaluate.frequencies import document_frequencies, rank_curve
from sae_steer_retriever.evaluate.meaning import RECURRENCE_STEPS, Meaning, measure_meaning
from sae_steer_retriever.evaluate.page import write_page
from sae_steer_retriever.evaluate.plots import RANKS_CAPTION, Plot, draw_features, draw_ranks
from sae_steer_retriever.evaluate.report_tables import agreement_table, fidelity_table, meaning_table
from sae_steer_retriever.evaluate.retrieval_set import EmbeddedSet, embed_set
from sae_steer_retriever.evaluate.table import Table
from sae_steer_retriever.evaluate.verdict import Finding, judge, summary
from sae_steer_retriever.sae.topk_sae import TopKSAE

# Length of passages if an SAE does not record it.
_PASSAGE_CHARACTERS = 1200


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Measurements of an SAE.

    Attributes:
        name: Name of the set or the corpus.
        sae: The SAE.
        fidelity: Retrieval on judged queries; None for a corpus without judgments.
        agreement: Agreement with the original ranking, for a corpus without judgments; None for a judged set.
        meaning: Meaning of its features; None if it was not asked for.
        ranks: Plot of words and features by document frequency; None if it was not asked for.
    """

    name: str
    sae: TopKSAE
    fidelity: Fidelity | None = None
    agreement: Agreement | None = None
    meaning: Meaning | None = None
    ranks: Plot | None = None

    def to_text(self) -> str:
        """Returns the tables and the verdict, for a terminal."""
        return "\n\n".join([*(table.to_text() for table in self._tables()), summary(self._findings())])

    def to_json(self) -> dict[str, Any]:
        """Returns one object: the fields of the fidelity or the agreement, and `meaning` if it was measured."""
        config = self.sae.config
        sizes = {"dataset": self.name, "encoder": config.encoder.name, "d": config.d, "n": config.n, "k": config.k}
        measured = self.fidelity or self.agreement
        found = {**sizes, **(measured.to_json() if measured is not None else {})}
        return found if self.meaning is None else {**found, "meaning": self.meaning.to_json()}

    def write(self, folder: Path) -> list[Path]:
        """Returns the files that it writes: the page in Markdown and in HTML, and its plots.

        The folder is created if needed.

        Raises:
            MissingExtraError: There is something to draw, and matplotlib is not installed.
        """
        plots = [] if self.meaning is None else [_features_plot(self.meaning)]
        plots += [] if self.ranks is None else [self.ranks]
        config = self.sae.config
        sizes = f"{config.n:,} latents, K = {config.k}"
        title = f"{self.name}: a sparse autoencoder for {config.encoder.short_name}, {sizes}"
        return write_page(folder, title, self._findings(), self._tables(), plots)

    def _tables(self) -> list[Table]:
        tables = [] if self.fidelity is None else [fidelity_table(self.fidelity)]
        tables += [] if self.agreement is None else [agreement_table(self.agreement)]
        return tables if self.meaning is None else [*tables, meaning_table(self.meaning.to_json())]

    def _findings(self) -> list[Finding]:
        return judge(self.fidelity, self.agreement, None if self.meaning is None else self.meaning.to_json())


def evaluate(
    sae: TopKSAE,
    embedder: Embedder,
    *,
    dataset: str | Path | None = None,
    corpus: Path | None = None,
    split: str = "test",
    meaning: bool = False,
    recurrence_steps: int = RECURRENCE_STEPS,
    ranks: bool = False,
    progress: bool = False,
) -> Evaluation:
    r"""Returns the measurements of an SAE on a judged set, or on documents without judgments.

    Without judgments the queries are titles and sentences of the documents that the SAE's training has not drawn, and
    the measure is how much of the original ranking the SAE keeps.

    Args:
        sae: The SAE.
        embedder: The SAE's encoder, a `CachedEmbedder`.
        dataset: A judged set: anything `read_retrieval_set` takes.
        corpus: Documents without judgments: a file or folder.
        split: Which judgments of the set.
        meaning: Whether to measure the meaning of the features too.
        recurrence_steps: Steps of each of the two fits that recurrence needs; 0 skips it.
        ranks: Whether to count and draw words and features, for the page.
        progress: Whether to show progress bars on stderr.

    Raises:
        CorpusError: The set or the corpus is malformed, too small, or does not exist.
        MismatchError: The SAE belongs to another encoder.
        MissingExtraError: `ranks` is asked for, and matplotlib is not installed.
        ValueError: Both `dataset` and `corpus` are given, or neither.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("docs.md").write_text("\n\n".join(texts[:60]), encoding="utf-8")
        >>> found = evaluate(sae, embedder, corpus=Path("docs.md"))
        >>> 0 < found.agreement.rows["reconstructed"].overlap.value <= 1
        True
    """
    sae.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
    if dataset is not None and corpus is None:
        judged = read_retrieval_set(dataset, split=split)
        passages, (vectors, queries) = judged.passages, embed_set(judged, embedder)
        fidelity = measure_fidelity(sae, judged, EmbeddedSet(vectors, queries))
        found = Evaluation(judged.name, sae, fidelity=fidelity)
    elif corpus is not None and dataset is None:
        passages = passages_like_training(corpus, sae)
        held_out = held_out_queries(passages, sae.config.training)
        vectors = embedder.embed_documents([passage.text for passage in passages])
        queries = embedder.embed_queries([query.text for query in held_out])
        agreement = measure_agreement(sae, vectors, queries, latent=True)
        found = Evaluation(corpus.resolve().name, sae, agreement=agreement)
    else:
        raise ValueError("expected either dataset, a judged set, or corpus, documents without judgments.")
    if meaning:
        steps = recurrence_steps
        measured = measure_meaning(sae, passages, vectors, embedder, recurrence_steps=steps, progress=progress)
        found = dataclasses.replace(found, meaning=measured)
    if ranks:
        texts = [passage.text for passage in passages]
        ranked = document_frequencies(sae, texts, encode_in_batches(sae, vectors))
        canvas = draw_ranks({name: rank_curve(counts, len(texts)) for name, counts in ranked.items()})
        title = "Figure 3: document frequency of words and features"
        found = dataclasses.replace(found, ranks=Plot("figure-3", title, RANKS_CAPTION, canvas))
    return found


def passages_like_training(corpus: Path, sae: TopKSAE) -> list[Passage]:
    """Returns the passages of a file or folder, cut to the length that the SAE's training recorded.

    Raises:
        ArtifactError: The record is not a whole number.
        CorpusError: There is nothing to read.
    """
    length = recorded(sae.config.training, "passage_characters", _PASSAGE_CHARACTERS)
    return read_corpus(corpus, passage_characters=length).passages


def _features_plot(meaning: Meaning) -> Plot:
    own, control = meaning.dictionaries["sae"], meaning.dictionaries["random"]
    canvas = draw_features(own.label_scores, own.shares, random_auroc=control.auroc_hard.value)
    caption = (
        "Left: how well each scored label tells its feature's passages from those of neighbouring features (0.5 is "
        "chance, 1 perfect). Right: share of the passages in which each feature is a label latent."
    )
    return Plot("features", "Label scores and document frequencies", caption, canvas)
