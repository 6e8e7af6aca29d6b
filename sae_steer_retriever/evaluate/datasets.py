"""Retrieval sets by whatever a user gives: a folder in BEIR layout, an id of ir_datasets, a dataset of the hub."""

from __future__ import annotations

from pathlib import Path

from sae_steer_retriever.errors import CorpusError, nearest_names
from sae_steer_retriever.evaluate.beir_folder import read_beir_folder
from sae_steer_retriever.evaluate.remote import HUB_PREFIX, IR_DATASETS_PREFIX, read_named_set
from sae_steer_retriever.evaluate.retrieval_set import RELEVANT, RetrievalSet

__all__ = ["RELEVANT", "RetrievalSet", "read_retrieval_set"]


def read_retrieval_set(source: str | Path, *, split: str = "test") -> RetrievalSet:
    """Read documents, queries and judgments.

    Args:
        source: A folder in BEIR layout (`corpus.jsonl[.gz]`, `queries.jsonl[.gz]`, `qrels/SPLIT.tsv`); or, where
            there is no such folder, an id of ir_datasets ("beir/scifact/test", "irds:vaswani") or a dataset
            repository of the Hugging Face hub in that layout ("mteb/scifact", "hub:mteb/scifact").
        split: Which judgments to read.

    Returns:
        The set, with the queries that have at least one relevant document (score >= 1).

    Raises:
        CorpusError: There is no such set, or a file is missing, malformed, or contradicts another.
        MissingExtraError: The set comes from ir_datasets and the extra `datasets` is not installed.
    """
    folder = Path(source)
    if folder.is_dir():
        return read_beir_folder(folder, split)
    if folder.exists():
        raise CorpusError(
            f"{source} is a file: expected a folder with corpus.jsonl, queries.jsonl and qrels/{split}.tsv"
        )
    named = read_named_set(source, split) if isinstance(source, str) else None
    if named is None:
        raise CorpusError(
            f"no such folder: {source}{_suggestion(folder)}; expected one in BEIR layout, {IR_DATASETS_PREFIX}ID of "
            f"ir_datasets, or {HUB_PREFIX}OWNER/NAME of a dataset on the hub"
        )
    return named


def _suggestion(folder: Path) -> str:
    try:
        near = nearest_names(folder.name, [entry.name for entry in folder.parent.iterdir() if entry.is_dir()], limit=3)
    except OSError:
        return ""
    return f" (did you mean {', '.join(near)}?)" if near else ""
