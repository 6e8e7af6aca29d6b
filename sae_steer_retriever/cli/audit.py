"""`sae-steer audit`: report on the topics, the retrieval and the steerability of a store."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sae_steer_retriever.cli.runner import Outcome, UsageError, add_common_arguments, count
from sae_steer_retriever.cli.store_options import (
    StoreLocation,
    add_store_arguments,
    make_folder,
    require_collection,
    sae_of,
)

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

    from sae_steer_retriever.audit.audit import Audit

SUMMARY = "report what a store is about, what is wrong with its retrieval, and what steering would change"
DEFAULT_OUTPUT = Path("audit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add_store_arguments(parser)
    add("--sae", metavar="DIR", help="folder of the SAE (default: the one of the collection, else the bundled one)")
    add(
        "--queries",
        type=Path,
        metavar="FILE",
        help="real queries: one a line, or .jsonl with `text` or `query` (default: sentences of the passages)",
    )
    add("--output", type=Path, default=DEFAULT_OUTPUT, metavar="DIR", help="folder for the report (default: audit)")
    add("--limit-queries", type=count, default=500, metavar="N", help="ask at most N random queries (default: 500)")
    add(
        "--limit-passages",
        type=count,
        default=50_000,
        metavar="N",
        help="encode about N random passages at most, where the sidecar collection has no codes (default: 50000)",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of all random samples (default: 0)")
    add_common_arguments(parser)


def run(arguments: argparse.Namespace) -> Outcome:
    """Returns the summary, all figures, and the files of the report; nothing is written to the store.

    Raises:
        UsageError: The store, the collection, the SAE or the queries do not exist.
        SAESteerError: The SAE does not fit the store, or there are too few passages or queries.
    """
    if arguments.queries is not None and not arguments.queries.is_file():
        raise UsageError(f"--queries: no such file: {arguments.queries}")
    if arguments.seed < 0:
        raise UsageError(f"--seed {arguments.seed}: expected a whole number of at least 0.")
    from sae_steer_retriever.audit.report import require_pages, to_text, write_report

    require_pages()
    with _opened(arguments.store) as client:
        require_collection(client, arguments.store, arguments.collection)
        make_folder(arguments.output, "--output")
        found = _audit(arguments, client)
    files = write_report(found, arguments.output, data=arguments.json)
    data = {**found.to_json(), "files": [str(path) for path in files]}
    return Outcome(f"{to_text(found)}\n\nwritten: {', '.join(map(str, files))}", data)


def _audit(arguments: argparse.Namespace, client: ClientAPI) -> Audit:
    from sae_steer_retriever.audit.audit import audit
    from sae_steer_retriever.audit.audited_queries import queries_of_file, sentences_of_passages
    from sae_steer_retriever.audit.read_only_store import ReadOnlyStore
    from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
    from sae_steer_retriever.features.loading import load_sae
    from sae_steer_retriever.store.recorded_sae import at_recorded_k, require_readable

    location = sae_of(arguments.sae, client, arguments.collection)
    sae, catalog, embedder = load_sae(location)
    sae = at_recorded_k(sae, client, arguments.collection)
    if arguments.sae is None:
        require_readable(sae, client, arguments.collection)
    progress = not arguments.quiet
    cached = CachedEmbedder(embedder, progress=progress)
    drawn = {"limit": arguments.limit_queries, "seed": arguments.seed}
    # Before the store is read, which takes longer, so that an unusable file of queries fails at once.
    given = None if arguments.queries is None else queries_of_file(arguments.queries, sae, cached, **drawn)
    store = ReadOnlyStore(
        client, arguments.collection, sae, limit=arguments.limit_passages, seed=arguments.seed, progress=progress
    )
    queries = given or sentences_of_passages(store, cached, **drawn)
    return audit(store, catalog, cached, queries, seed=arguments.seed, progress=progress)


@contextlib.contextmanager
def _opened(store: StoreLocation) -> Iterator[ClientAPI]:
    """Yields a client of a server, or of a private copy of an embedded store."""
    from sae_steer_retriever.audit.private_copy import private_copy
    from sae_steer_retriever.store.connection import DATABASE

    if store.folder is None or not (store.folder / DATABASE).is_file():
        yield store.connect(create=False)  # a server, or an error for a folder without a store
        return
    with private_copy(store.folder) as folder:
        yield StoreLocation(folder).connect(create=False)
