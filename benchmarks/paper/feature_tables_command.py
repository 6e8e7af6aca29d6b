"""`sae-steer features tables`: features by frequency, of documents and of queries, and the figure of ranks."""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_steer_retriever.cli.feature_options import open_catalog
from sae_steer_retriever.cli.feature_passages import (
    OpenedPassages,
    cached_embedder,
    check_source,
    open_passages,
)
from sae_steer_retriever.cli.outcome import Outcome, UsageError
from sae_steer_retriever.cli.store_options import make_folder

if TYPE_CHECKING:
    from sae_steer_retriever.evaluate.figure import Figure
    from sae_steer_retriever.evaluate.table import Table
    from sae_steer_retriever.sae.topk_sae import TopKSAE

logger = logging.getLogger(__name__)

SUMMARY = "sample features by frequency, list those of documents and queries, and count them beside words"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options beside those that every action of `features` has: `--sae`, `--store`, `--json` and so on."""
    parser.add_argument(
        "--corpus", type=Path, metavar="PATH", help="your documents, in place of --store: for --document and the figure"
    )
    parser.add_argument(
        "--document", nargs="+", action="extend", default=[], metavar="ID", help="passages whose features to list"
    )
    parser.add_argument(
        "--query", nargs="+", action="extend", default=[], metavar="TEXT", help="questions whose features to list"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples (default: 0)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for Markdown, CSV and JSON files and the figure's picture"
    )


def run(arguments: argparse.Namespace) -> Outcome:
    """Make the tables, and write them where a folder is given.

    Raises:
        UsageError: The options do not go together, or what they name is not there.
        SAESteerError: The SAE is damaged, the store does not answer, or matplotlib is not installed.
    """
    _check(arguments)
    from benchmarks.paper.feature_tables import TOP, document_table, query_table, region_tables

    opened = open_catalog(arguments)
    sae, catalog, limit = opened.sae, opened.catalog, arguments.limit or TOP
    found = region_tables(catalog, arguments.seed)
    embedder = functools.cache(lambda: cached_embedder(sae, arguments))
    passages = open_passages(arguments, opened, embedder)
    if arguments.document and passages is not None:
        vectors = passages.vectors[_rows(arguments.document, passages.ids)]
        found.append(document_table(sae, catalog, arguments.document, vectors, limit))
    if arguments.query:
        vectors = embedder().embed_queries(arguments.query)
        found.append(query_table(sae, catalog, arguments.query, vectors, limit))
    figure = _figure(sae, passages) if passages is not None else None
    shown: list[Table | Figure] = [*found, *([figure] if figure is not None else [])]
    text = "\n\n\n".join(part.to_text() for part in shown)
    data: dict[str, Any] = {"tables": {table.name: table.to_json() for table in found}}
    if figure is not None:
        data["figure"] = figure.to_json()
    if arguments.output is not None:
        files = [str(file) for part in shown for file in part.write(arguments.output)]
        text += f"\n\nwritten: {', '.join(files)}"
        data["files"] = files
    return Outcome(text, data)


def _check(arguments: argparse.Namespace) -> None:
    check_source(arguments)
    if arguments.document and arguments.corpus is None and arguments.store is None:
        raise UsageError("--document names passages of --corpus PATH or of --store DIR: give one of them.")
    if any(not query.strip() for query in arguments.query):
        raise UsageError("--query: a question is empty.")
    if arguments.seed < 0:
        raise UsageError(f"--seed {arguments.seed}: expected a whole number of at least 0.")
    if arguments.output is not None:
        make_folder(arguments.output, "--output")


def _rows(wanted: Sequence[str], ids: Sequence[str]) -> list[int]:
    """Where passages are.

    Raises:
        UsageError: One is not there; those with ids like it are named.
    """
    from sae_steer_retriever.errors import nearest_names

    row_of = {name: row for row, name in enumerate(ids)}
    for name in wanted:
        if name not in row_of:
            shown = ", ".join(map(repr, nearest_names(name, ids) or ids[:3]))
            raise UsageError(f"--document {name!r}: no such passage among {len(ids):,}, e.g. {shown}.")
    return [row_of[name] for name in wanted]


def _figure(sae: TopKSAE, passages: OpenedPassages) -> Figure | None:
    """Figure 3; None where the passages have no texts to count the words of."""
    from sae_steer_retriever.evaluate.fidelity import encode_in_batches
    from sae_steer_retriever.evaluate.ranks import figure_3

    if not any(text.strip() for text in passages.texts):
        logger.warning("the store holds no texts: no words to set beside the features, no figure")
        return None
    return figure_3(sae, passages.texts, encode_in_batches(sae, passages.vectors))
