"""Reads retrieval sets from a folder in BEIR layout, from ir_datasets, or from a dataset of the Hugging Face hub."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sae_steer_retriever.corpus.decoding import clean_text
from sae_steer_retriever.corpus.passage import Passage
from sae_steer_retriever.errors import CorpusError, MissingExtraError, nearest_names
from sae_steer_retriever.evaluate.beir_folder import FILES, Judgment, gather, missing_files, read_beir_folder
from sae_steer_retriever.evaluate.retrieval_set import RetrievalSet, judged_set

IR_DATASETS_PREFIX = "irds:"
HUB_PREFIX = "hub:"

_NAME = r"[A-Za-z0-9][\w.-]*"
_HUB_NAME = re.compile(f"{_NAME}/{_NAME}")
_LONG_NAME = re.compile(f"{_NAME}(/{_NAME}){{2,}}")


def read_retrieval_set(source: str | Path, *, split: str = "test") -> RetrievalSet:
    """Returns documents, queries and judgments, with the queries that have at least one relevant document (score >= 1).

    Args:
        source: A folder in BEIR layout (`corpus.jsonl[.gz]`, `queries.jsonl[.gz]`, `qrels/SPLIT.tsv`). Where there is
            no such folder: an id of ir_datasets ("beir/scifact/test", "irds:vaswani"), or a dataset repository of the
            Hugging Face hub in that layout ("mteb/scifact", "hub:mteb/scifact").
        split: Which judgments to read.

    Raises:
        CorpusError: There is no such set, or a file is missing, malformed, or contradicts another.
        MissingExtraError: The set comes from ir_datasets and the extra `datasets` is not installed.
    """
    folder = Path(source)
    if folder.is_dir():
        return read_beir_folder(folder, split)
    if folder.exists():
        files = f"corpus.jsonl, queries.jsonl and qrels/{split}.tsv"
        raise CorpusError(f"{source} is a file: expected a folder with {files}")
    named = _read_named(source, split) if isinstance(source, str) else None
    if named is None:
        raise CorpusError(
            f"no such folder: {source}{_suggestion(folder)}; expected one in BEIR layout, {IR_DATASETS_PREFIX}ID of "
            f"ir_datasets, or {HUB_PREFIX}OWNER/NAME of a dataset on the hub"
        )
    return named


def _read_named(source: str, split: str) -> RetrievalSet | None:
    """Returns the set of that name; None if it cannot be a name, or is a path into an existing folder.

    `irds:ID` and `hub:OWNER/NAME` say where to look. Without a prefix, an id that ir_datasets knows is read from there,
    OWNER/NAME from the hub, and a longer name is taken for an id of ir_datasets.
    """
    if source.startswith(IR_DATASETS_PREFIX):
        return _read_ir_dataset(source.removeprefix(IR_DATASETS_PREFIX), split)
    if source.startswith(HUB_PREFIX):
        return _read_from_hub(source.removeprefix(HUB_PREFIX), split)
    first, separator, _ = source.partition("/")
    if separator and Path(first).exists():
        return None
    if find_spec("ir_datasets") is not None and _dataset_id(source, split) is not None:
        return _read_ir_dataset(source, split)
    if _HUB_NAME.fullmatch(source):
        return _read_from_hub(source, split)
    return _read_ir_dataset(source, split) if _LONG_NAME.fullmatch(source) else None


def _read_from_hub(repository: str, split: str) -> RetrievalSet:
    """The set of a dataset repository in BEIR layout ("mteb/scifact"), downloaded once; Parquet is not read."""
    from huggingface_hub import snapshot_download

    if not _HUB_NAME.fullmatch(repository):
        raise CorpusError(f"{HUB_PREFIX}{repository} names no dataset: expected {HUB_PREFIX}OWNER/NAME")
    try:
        folder = Path(snapshot_download(repository, repo_type="dataset", allow_patterns=list(FILES)))
    except Exception as error:  # the hub's client changed its transport, and with that its errors, several times
        raise CorpusError(
            f"no folder {repository}, and the hub gave no dataset of that name ({_first_line(error)}): check the name "
            f"and the network, or give a folder in BEIR layout (ids of ir_datasets: {IR_DATASETS_PREFIX}ID)"
        ) from error
    if missing := missing_files(folder, split):
        raise CorpusError(
            f"the hub's dataset {repository} has no {', no '.join(missing)}: only the JSON Lines and TSV files of BEIR "
            "layout are read, no Parquet; give a folder in that layout"
        )
    return read_beir_folder(folder, split, name=repository)


def _read_ir_dataset(dataset_id: str, split: str) -> RetrievalSet:
    """A dataset of ir_datasets, which downloads it once; the split is appended to an id without judgments."""
    try:
        import ir_datasets
    except ImportError as error:
        raise MissingExtraError(f"{dataset_id!r} is no folder; reading it from ir_datasets", "datasets") from error
    known = _dataset_id(dataset_id, split)
    if known is None:
        near = nearest_names(dataset_id, [str(name) for name in ir_datasets.registry])
        hint = f"did you mean {', '.join(near)}?" if near else "its catalogue lists the ids"
        raise CorpusError(f"no folder {dataset_id}, and ir_datasets has no such dataset: {hint}")
    dataset = ir_datasets.load(known)
    missing = [part for part in ("docs", "queries", "qrels") if not dataset.has(part)]
    if missing:
        raise CorpusError(
            f"the dataset {known} of ir_datasets has no {', no '.join(missing)}: expected documents, queries and "
            f"judgments; give the id of a judged split, such as {known}/{split}"
        )
    try:
        documents = {row.doc_id: _text(row) for row in dataset.docs_iter()}
        queries = {row.query_id: _text(row) for row in dataset.queries_iter()}
        rows = [
            Judgment(row.query_id, row.doc_id, int(row.relevance), f"judgment {number}")
            for number, row in enumerate(dataset.qrels_iter(), start=1)
        ]
    except Exception as error:  # each dataset has a download, a format and errors of its own
        problem = f"ir_datasets cannot give {known} ({_first_line(error)})"
        raise CorpusError(f"{problem}: check the network, or give a folder in BEIR layout") from error
    place = f"the dataset {known} of ir_datasets"
    judgments = gather(rows, place)
    if not judgments or not documents:
        raise CorpusError(f"{place} has {len(documents)} documents and {len(rows)} judgments: expected some of each")
    empty = [name for name, text in documents.items() if not text]
    notes = [f"{len(empty)} documents without text: left out"] if empty else []
    kept = [Passage(name, text) for name, text in documents.items() if text]
    asked = {name: text for name, text in queries.items() if text}
    return judged_set(known, kept, asked, judgments, source=place, notes=notes)


def _dataset_id(name: str, split: str) -> str | None:
    """The id that ir_datasets knows: `name`, or `name/split` if only that has judgments; None if it knows neither."""
    import ir_datasets

    known: str | None = None
    for candidate in (name, f"{name}/{split}"):
        try:
            dataset = ir_datasets.load(candidate)
        except KeyError:
            continue
        if dataset.has("qrels"):
            return candidate
        known = known or candidate
    return known


def _text(row: Any) -> str:  # noqa: ANN401 - each dataset of ir_datasets has its own type of row
    return clean_text(str(row.default_text())).strip()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".:") or type(error).__name__


def _suggestion(folder: Path) -> str:
    try:
        near = nearest_names(folder.name, [entry.name for entry in folder.parent.iterdir() if entry.is_dir()], limit=3)
    except OSError:
        return ""
    return f" (did you mean {', '.join(near)}?)" if near else ""
