"""Retrieval sets by name: from ir_datasets, or from a dataset repository of the Hugging Face hub."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sae_steer_retriever.corpus.decoding import clean_text
from sae_steer_retriever.corpus.passage import Passage
from sae_steer_retriever.errors import CorpusError, MissingExtraError, nearest_names
from sae_steer_retriever.evaluate.beir_folder import CORPUS_FILES, QRELS_FOLDER, QUERY_FILES, read_beir_folder
from sae_steer_retriever.evaluate.qrels import Judgment, gather
from sae_steer_retriever.evaluate.retrieval_set import RetrievalSet, judged_set

IR_DATASETS_PREFIX = "irds:"
HUB_PREFIX = "hub:"

_NAME = r"[A-Za-z0-9][\w.-]*"
_HUB_NAME = re.compile(f"{_NAME}/{_NAME}")
_LONG_NAME = re.compile(f"{_NAME}(/{_NAME}){{2,}}")


def read_named_set(source: str, split: str) -> RetrievalSet | None:
    """Read a retrieval set by its name.

    `irds:ID` and `hub:OWNER/NAME` say where to look. Without these, an id that ir_datasets knows is taken from there,
    OWNER/NAME from the hub, and a longer name is expected to be an id of ir_datasets.

    Args:
        source: What the user gave; no existing file or folder.
        split: The split of a hub dataset; added to an id of ir_datasets that has no judgments.

    Returns:
        The set; None when `source` cannot be such a name, or is a path into a folder that is there.

    Raises:
        CorpusError: There is no such set, it cannot be reached, or its parts do not belong together.
        MissingExtraError: It takes the extra `datasets`.
    """
    if source.startswith(IR_DATASETS_PREFIX):
        return read_ir_dataset(source.removeprefix(IR_DATASETS_PREFIX), split)
    if source.startswith(HUB_PREFIX):
        return read_hub_dataset(source.removeprefix(HUB_PREFIX), split)
    first, separator, _ = source.partition("/")
    if separator and Path(first).exists():
        return None
    if find_spec("ir_datasets") is not None and _dataset_id(source, split) is not None:
        return read_ir_dataset(source, split)
    if _HUB_NAME.fullmatch(source):
        return read_hub_dataset(source, split)
    return read_ir_dataset(source, split) if _LONG_NAME.fullmatch(source) else None


def read_hub_dataset(repository: str, split: str) -> RetrievalSet:
    """Download a dataset repository in BEIR layout from the Hugging Face hub, once, and read it.

    Args:
        repository: "owner/name", such as "mteb/scifact".
        split: Which file of `qrels/` to read.

    Raises:
        CorpusError: It cannot be had, or has no corpus.jsonl, queries.jsonl and qrels/*.tsv (Parquet is not read).
    """
    from huggingface_hub import snapshot_download

    if not _HUB_NAME.fullmatch(repository):
        raise CorpusError(f"{HUB_PREFIX}{repository} names no dataset: expected {HUB_PREFIX}OWNER/NAME")
    patterns = [*CORPUS_FILES, *QUERY_FILES, f"{QRELS_FOLDER}/*.tsv"]
    try:
        folder = Path(snapshot_download(repository, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # the hub's client changed its transport, and with that its errors, several times
        raise CorpusError(
            f"no folder {repository}, and the hub gave no dataset of that name ({_first_line(error)}): check the name "
            f"and the network, or give a folder in BEIR layout (ids of ir_datasets: {IR_DATASETS_PREFIX}ID)"
        ) from error
    if missing := _missing_files(folder, split):
        raise CorpusError(
            f"the hub's dataset {repository} has no {', no '.join(missing)}: only the JSON Lines and TSV files of BEIR "
            "layout are read, no Parquet; give a folder in that layout"
        )
    return read_beir_folder(folder, split, name=repository)


def read_ir_dataset(dataset_id: str, split: str) -> RetrievalSet:
    """Read a dataset of the package ir_datasets, which downloads it once. All documents are held in memory.

    Args:
        dataset_id: Such as "beir/scifact/test", or "beir/scifact" with the split beside it.
        split: Added to an id that has no judgments.

    Raises:
        CorpusError: There is no such dataset, it has no judgments, or it cannot be had.
        MissingExtraError: The extra `datasets` is not installed.
    """
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
        raise CorpusError(
            f"ir_datasets cannot give {known} ({_first_line(error)}): check the network, or give a folder in BEIR "
            "layout"
        ) from error
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
    """The id under which ir_datasets knows `name`: with judgments, if one with the split added has them."""
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


def _missing_files(folder: Path, split: str) -> list[str]:
    """What of BEIR layout is not in a folder that the hub gave."""
    kinds = (CORPUS_FILES, QUERY_FILES)
    missing = [names[0] for names in kinds if not any((folder / name).is_file() for name in names)]
    has_judgments = any((folder / QRELS_FOLDER).glob("*.tsv"))
    return missing if has_judgments else [*missing, f"{QRELS_FOLDER}/{split}.tsv"]


def _text(row: Any) -> str:  # noqa: ANN401 - each dataset of ir_datasets has its own type of row
    return clean_text(str(row.default_text())).strip()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".:") or type(error).__name__
