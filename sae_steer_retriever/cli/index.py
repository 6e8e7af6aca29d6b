"""`sae-steer index`: builds or updates a documents collection and its sidecar."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_steer_retriever.cli.runner import Outcome, UsageError, add_common_arguments, count
from sae_steer_retriever.cli.store_options import (
    add_sae_argument,
    add_store_arguments,
    open_store,
    require_path,
    sae_of,
)
from sae_steer_retriever.sae.bundled import bundled_name, bundled_names
from sae_steer_retriever.store.connection import translated

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

    from sae_steer_retriever.corpus.passage import Corpus, Passage
    from sae_steer_retriever.store.chroma_store import ChromaStore
    from sae_steer_retriever.store.recorded_sae import OpenedSAE

SUMMARY = "build or update a store for steered search: documents and a sidecar collection of codes"
_SHOWN_SKIPPED = 20
_PAGE = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--corpus", type=Path, metavar="PATH", help="embed and store these documents: a file or a folder")
    what.add_argument(
        "--attach", action="store_true", help="add the sidecar to an existing collection; no text is embedded"
    )
    add_sae_argument(parser)
    parser.add_argument(
        "--k",
        type=count,
        metavar="N",
        help="active features per passage: fewer give simpler explanations, more a better reconstruction (default: as "
        "in the collection's sidecar, else as the SAE was trained)",
    )
    add_store_arguments(parser)
    add = parser.add_argument
    add("--rebuild", action="store_true", help="delete the sidecar and build it again, e.g. for another SAE")
    add("--prune", action="store_true", help="also remove the passages of files that are no longer in the corpus")
    add(
        "--passage-characters",
        type=count,
        default=1200,
        metavar="N",
        help="longest passage, in characters (default: 1200)",
    )
    add_common_arguments(parser)


def run(arguments: argparse.Namespace) -> Outcome:
    """Returns the numbers of passages, once both collections are updated, or with `--attach` the sidecar.

    Raises:
        UsageError: The corpus, the store or the SAE does not exist, or the options contradict each other.
        SAESteerError: The store does not answer, or the SAE, the encoder and the store do not belong together.
    """
    if arguments.attach and arguments.prune:
        raise UsageError("--prune needs a corpus to compare with: give --corpus PATH in place of --attach.")
    return _attach(arguments) if arguments.attach else _add(arguments)


def _attach(arguments: argparse.Namespace) -> Outcome:
    client, location = open_store(arguments)
    store = _open_store(arguments, client, _opened_sae(arguments, client, location))
    encoded = store.attach(progress=not arguments.quiet)
    total = len(store)
    text = f"{arguments.collection}: {total} passages, {encoded} of them encoded, nothing embedded -> {arguments.store}"
    data = {**_identity(arguments, location, store), "passages": total, "encoded": encoded}
    return Outcome("\n".join([text, *_bundled_lines(location)]), data)


def _add(arguments: argparse.Namespace) -> Outcome:
    from sae_steer_retriever.corpus.read_corpus import read_corpus
    from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
    from sae_steer_retriever.sae.files import resolve_folder

    require_path("--corpus", arguments.corpus)
    corpus = read_corpus(arguments.corpus, passage_characters=arguments.passage_characters)
    if arguments.sae is not None:
        resolve_folder(arguments.sae)  # before a store is created for nothing
    client = arguments.store.connect(create=arguments.sae is not None or bool(bundled_names()))
    location = sae_of(arguments.sae, client, arguments.collection)
    opened = _opened_sae(arguments, client, location)
    cached = CachedEmbedder(opened.embedder(), progress=not arguments.quiet)
    store = _open_store(arguments, client, opened)
    # Embedded before writing: one progress bar, and texts of similar length share a batch. The cache keeps the vectors.
    cached.embed_documents(_new_texts(store, corpus.passages))
    report = store.add(
        [passage.id for passage in corpus.passages],
        [passage.text for passage in corpus.passages],
        [passage.metadata for passage in corpus.passages],
        embedder=cached,
        progress=not arguments.quiet,
    )
    if arguments.rebuild:
        store.attach(progress=not arguments.quiet)  # passages that are not from this corpus
    outdated, pruned = _remove_outdated(store, corpus, arguments.corpus, prune=arguments.prune)
    data = {
        **_identity(arguments, location, store),
        "passages": len(store),
        **report._asdict(),
        "removed": outdated,
        "pruned": pruned,
        "skipped": [{"file": file, "reason": reason} for file, reason in corpus.skipped],
        "notes": [{"file": file, "note": note} for file, note in corpus.notes],
    }
    lines = [f"skipped {file}: {reason}" for file, reason in corpus.skipped[:_SHOWN_SKIPPED]]
    if len(corpus.skipped) > _SHOWN_SKIPPED:
        lines.append(f"skipped {len(corpus.skipped) - _SHOWN_SKIPPED} more (--json lists all)")
    lines += [f"note {file}: {note}" for file, note in corpus.notes[:_SHOWN_SKIPPED]]
    lines.append(
        f"{arguments.collection}: {report.added} added, {report.updated} updated, {report.unchanged} unchanged, "
        f"{outdated + pruned} removed; {len(store)} passages -> {arguments.store}"
    )
    lines += _bundled_lines(location)
    return Outcome("\n".join(lines), data)


def _new_texts(store: ChromaStore, passages: Sequence[Passage]) -> list[str]:
    """Returns the texts that are new or changed."""
    new: list[str] = []
    for start in range(0, len(passages), _PAGE):
        page = passages[start : start + _PAGE]
        with translated("comparing passages"):
            found = store.documents.get(ids=[passage.id for passage in page], include=["documents"])
        known = dict(zip(found["ids"], found["documents"] or [], strict=True))
        new += [passage.text for passage in page if known.get(passage.id) != passage.text]
    return new


def _opened_sae(arguments: argparse.Namespace, client: ClientAPI, location: str) -> OpenedSAE:
    from sae_steer_retriever.features.catalog import FeatureCatalog
    from sae_steer_retriever.store.recorded_sae import opened_sae

    check_vectors = arguments.attach and arguments.sae is None
    opened = opened_sae(location, client=client, collection=arguments.collection, check_vectors=check_vectors)
    FeatureCatalog.load(opened.folder, opened.sae.fingerprint)  # a search needs it: a missing one is reported now
    try:
        return opened if arguments.k is None else opened._replace(sae=opened.sae.with_k(arguments.k))
    except ValueError as error:
        raise UsageError(f"--k: {error}") from error


def _open_store(arguments: argparse.Namespace, client: ClientAPI, opened: OpenedSAE) -> ChromaStore:
    from sae_steer_retriever.store.chroma_store import ChromaStore
    from sae_steer_retriever.store.sidecar import rebuild

    if arguments.rebuild:
        rebuild(client, arguments.collection)
    return ChromaStore.open(
        opened.sae,
        client=client,
        collection=arguments.collection,
        create=not arguments.attach,
        sae_location=opened.location,
    )


def _identity(arguments: argparse.Namespace, sae: str, store: ChromaStore) -> dict[str, Any]:
    named = {"store": str(arguments.store), "collection": arguments.collection, "sae": bundled_name(sae) or sae}
    return {**named, "k": store.sae.config.k}


def _bundled_lines(sae: str) -> list[str]:
    name = bundled_name(sae)
    return [f"features: the bundled SAE for {name}"] if name is not None else []


def _remove_outdated(store: ChromaStore, corpus: Corpus, root: Path, *, prune: bool) -> tuple[int, int]:
    """Removes passages that their files no longer hold and, with `prune`, the passages of deleted files.

    Returns:
        Numbers of removed passages: of changed files, and of deleted files.

    The metadata `source` names a passage's file. Passages without a `source`, and those of unreadable files, stay.
    """
    folder = root if root.is_dir() else root.parent
    current = {passage.id for passage in corpus.passages}
    unread = {file for file, _ in corpus.skipped}
    sources = {str(passage.metadata["source"]) for passage in corpus.passages}
    # The rows of a table may have a `source` column of their own, which names no file of the corpus.
    files = {source for source in sources if (folder / source).is_file()}
    outdated: list[str] = []
    pruned: list[str] = []
    for offset in range(0, len(store), _PAGE):
        with translated("looking for outdated passages"):
            page = store.documents.get(limit=_PAGE, offset=offset, include=["metadatas"])
        for name, metadata in zip(page["ids"], page["metadatas"] or [], strict=True):
            source = (metadata or {}).get("source")
            if name in current or not isinstance(source, str):
                continue
            if source in files:
                outdated.append(name)
            elif prune and source not in unread:
                pruned.append(name)
    store.delete(outdated + pruned)
    return len(outdated), len(pruned)
