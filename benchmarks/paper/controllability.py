"""The controllability study of arXiv 2411.00786 from files: Figure 4, and Tables 4, 5 and 9."""

from __future__ import annotations

from pathlib import Path

from benchmarks.paper.manipulation_figure import figure_4
from benchmarks.paper.perspective_search import PerspectiveSearch
from benchmarks.paper.perspectives_table import labelled_table_4, table_4
from benchmarks.steering.corpus import read_labelled_corpus
from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.evaluate.datasets import read_retrieval_set
from sae_steer_retriever.evaluate.embedded import embed_set
from sae_steer_retriever.evaluate.figure import Figure
from sae_steer_retriever.evaluate.retrieval_set import RELEVANT
from sae_steer_retriever.evaluate.table import Table
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.topk_sae import TopKSAE


def manipulation_study(
    sae: Path, dataset: str | Path, embedder: Embedder, *, split: str = "test", relevant_from: int = RELEVANT
) -> Figure:
    """Figure 4 on a judged set.

    Args:
        sae: Folder of the SAE; it needs no catalog.
        dataset: The judged set, as `read_retrieval_set` takes it.
        embedder: The SAE's encoder; a caching one.
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


def perspectives_study(
    sae: Path, embedder: Embedder, *, dataset: str | Path | None = None, corpus: Path | None = None, split: str = "test"
) -> Table:
    """Table 4: the paper's questions on a set's documents, or twenty others on labelled passages.

    Args:
        sae: Folder of the SAE and its catalog.
        embedder: The SAE's encoder; a caching one.
        dataset: A judged set; only its documents are used.
        corpus: Or a file of rows with `text` and `label` or `labels`.
        split: Of the judged set.

    Raises:
        ArtifactError: The SAE or its catalog cannot be read.
        CorpusError: The passages cannot be read, or none of the questions is about them.
        MismatchError: The embedder is not the SAE's encoder.
        ValueError: Both or neither are given.
    """
    dictionary = TopKSAE.from_pretrained(sae)
    dictionary.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
    catalog = FeatureCatalog.load(sae, dictionary.fingerprint)
    if corpus is not None and dataset is None:
        labelled = read_labelled_corpus(corpus)
        vectors = embedder.embed_documents(labelled.texts)
        search = PerspectiveSearch(dictionary, catalog, embedder, labelled.ids, vectors)
        return labelled_table_4(search, labelled.labels)
    if dataset is not None and corpus is None:
        judged = read_retrieval_set(dataset, split=split)
        vectors = embedder.embed_documents(judged.texts)
        return table_4(PerspectiveSearch(dictionary, catalog, embedder, judged.document_ids, vectors))
    raise ValueError("expected either dataset or corpus, the passages to search, and not both.")


__all__ = ["manipulation_study", "perspectives_study"]
