"""`sae-steer index`: build or update a documents collection and its sidecar."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sae_steer_retriever.cli.outcome import Outcome, UsageError
from sae_steer_retriever.cli.runner import add_common_arguments, count
from sae_steer_retriever.cli.store_options import (
    StoreLocation,
    add_sae_argument,
    add_store_arguments,
    require_collection,
    sae_of,
)
from sae_steer_retriever.sae.bundled import bundled_name, bundled_names
from sae_steer_retriever.store.connection import translated

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

    from sae_steer_retriever.corpus.passage import Corpus, Passage
    from sae_steer_retriever.sae.topk_sae import TopKSAE
    from sae_steer_retriever.store.chroma_store import ChromaStore

SUMMARY = "build or update a store of documents that can be searched with steering"
_SHOWN_SKIPPED = 20
_PAGE = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--corpus", type=Path, metavar="PATH", help="file or folder of documents to embed and store")
    what.add_argument(
        "--attach",
        action="store_true",
        help="embed nothing: work from the vectors of a collection that exists, which stays as it is",
    )
    add_sae_argument(parser)
    parser.add_argument(
        "--k",
        type=count,
        metavar="N",
        help="active features of a passage: fewer explain more simply, more reconstruct better (default: as the "
        "collection was indexed, else as the SAE was fitted)",
    )
    add_store_arguments(parser)
    parser.add_argument("--rebuild", action="store_true", help="make the sidecar collection anew, e.g. for another SAE")
    parser.add_argument(
        "--prune", action="store_true", help="remove passages of files that are no longer in the corpus, too"
    )
    parser.add_argument(
        "--passage-characters", type=count, default=1200, metavar="N", help="longest passage (default: 1200)"
    )
    add_common_arguments(parser)


class _Removed(NamedTuple):
    """How many passages were removed: of files that have changed, and of files that are gone."""

    outdated: int
    pruned: int


def run(arguments: argparse.Namespace) -> Outcome:
    """Bring the collections in step with the corpus, or the sidecar with the collection.

    Raises:
        UsageError: The corpus, the store or the SAE is not there, or the options contradict each other.
        SAESteerError: The store does not answer, or the parts do not belong together.
    """
    if arguments.attach and arguments.prune:
        raise UsageError("--prune compares a collection with a corpus: give --corpus PATH in place of --attach.")
    return _attach(arguments) if arguments.attach else _add(arguments)


def _attach(arguments: argparse.Namespace) -> Outcome:
    from sae_steer_retriever.features.catalog import FeatureCatalog
    from sae_steer_retriever.sae.files import resolve_folder
    from sae_steer_retriever.sae.topk_sae import TopKSAE
    from sae_steer_retriever.store.recorded_sae import require_readable

    client = arguments.store.connect(create=False)
    require_collection(client, arguments.store, arguments.collection)
    location = sae_of(arguments.sae, client, arguments.collection)
    folder = resolve_folder(location)
    sae = TopKSAE.from_pretrained(folder)
    FeatureCatalog.load(folder, sae.fingerprint)  # a search needs it: better to miss it now
    if arguments.sae is None:
        require_readable(sae, client, arguments.collection)
    store = _open(arguments, client, sae, location)
    encoded = store.attach(progress=not arguments.quiet)
    total = len(store)
    text = f"{arguments.collection}: {total} passages, {encoded} of them encoded, nothing embedded -> {arguments.store}"
    return Outcome(
        "\n".join([text, *_bundled_lines(location)]),
        {**_identity(arguments, location, store), "passages": total, "encoded": encoded},
    )


def _add(arguments: argparse.Namespace) -> Outcome:
    from sae_steer_retriever.corpus.read_corpus import read_corpus
    from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
    from sae_steer_retriever.retriever import load_sae
    from sae_steer_retriever.sae.files import resolve_folder

    if not arguments.corpus.exists():
        raise UsageError(f"--corpus: no such file or folder: {arguments.corpus}")
    corpus = read_corpus(arguments.corpus, passage_characters=arguments.passage_characters)
    if arguments.sae is not None:
        resolve_folder(arguments.sae)  # before a store is made for nothing
    client = arguments.store.connect(create=arguments.sae is not None or bool(bundled_names()))
    location = sae_of(arguments.sae, client, arguments.collection)
    sae, _, embedder = load_sae(location)
    store = _open(arguments, client, sae, location)
    cached = CachedEmbedder(embedder, progress=not arguments.quiet)
    # Ahead of writing, so that one bar shows all of it and texts of like length share a batch; the cache remembers.
    cached.embed_documents(_new_texts(store, corpus.passages))
    report = store.add(
        [passage.id for passage in corpus.passages],
        [passage.text for passage in corpus.passages],
        [passage.metadata for passage in corpus.passages],
        embedder=cached,
        progress=not arguments.quiet,
    )
    if arguments.rebuild:
        store.attach(progress=not arguments.quiet)  # the passages that are not of this corpus
    removed = _remove_outdated(store, corpus, arguments.corpus, prune=arguments.prune)
    data = {
        **_identity(arguments, location, store),
        "passages": len(store),
        **report._asdict(),
        "removed": removed.outdated,
        "pruned": removed.pruned,
        "skipped": [{"file": file, "reason": reason} for file, reason in corpus.skipped],
        "notes": [{"file": file, "note": note} for file, note in corpus.notes],
    }
    lines = [f"skipped {file}: {reason}" for file, reason in corpus.skipped[:_SHOWN_SKIPPED]]
    if len(corpus.skipped) > _SHOWN_SKIPPED:
        lines.append(f"skipped {len(corpus.skipped) - _SHOWN_SKIPPED} more (--json lists all)")
    lines += [f"note {file}: {note}" for file, note in corpus.notes[:_SHOWN_SKIPPED]]
    gone = removed.outdated + removed.pruned
    lines.append(
        f"{arguments.collection}: {report.added} added, {report.updated} updated, {report.unchanged} unchanged, "
        f"{gone} removed; {len(store)} passages -> {arguments.store}"
    )
    lines += _bundled_lines(location)
    return Outcome("\n".join(lines), data)


def _new_texts(store: ChromaStore, passages: Sequence[Passage]) -> list[str]:
    """The texts that the store does not have yet, or has otherwise."""
    new: list[str] = []
    for start in range(0, len(passages), _PAGE):
        page = passages[start : start + _PAGE]
        with translated("comparing passages"):
            found = store.documents.get(ids=[passage.id for passage in page], include=["documents"])
        known = dict(zip(found["ids"], found["documents"] or [], strict=True))
        new += [passage.text for passage in page if known.get(passage.id) != passage.text]
    return new


def _open(arguments: argparse.Namespace, client: ClientAPI, sae: TopKSAE, location: str) -> ChromaStore:
    from sae_steer_retriever.sae.bundled import recordable
    from sae_steer_retriever.store.chroma_store import ChromaStore
    from sae_steer_retriever.store.recorded_sae import at_recorded_k
    from sae_steer_retriever.store.sidecar import rebuild

    try:
        sae = at_recorded_k(sae, client, arguments.collection) if arguments.k is None else sae.with_k(arguments.k)
    except ValueError as error:
        raise UsageError(f"--k: {error}") from error
    if arguments.rebuild:
        rebuild(client, arguments.collection)
    return ChromaStore.open(
        sae,
        client=client,
        collection=arguments.collection,
        create=not arguments.attach,
        sae_location=recordable(location),
    )


def _identity(arguments: argparse.Namespace, sae: str, store: ChromaStore) -> dict[str, Any]:
    where: StoreLocation = arguments.store
    return {
        "store": str(where),
        "collection": arguments.collection,
        "sae": bundled_name(sae) or sae,
        "k": store.sae.config.k,
    }


def _bundled_lines(sae: str) -> list[str]:
    name = bundled_name(sae)
    return [f"features are those of the bundled SAE for {name}"] if name is not None else []


def _remove_outdated(store: ChromaStore, corpus: Corpus, root: Path, *, prune: bool) -> _Removed:
    """Remove passages that files of the corpus no longer hold and, if asked, those of files that are gone.

    A passage is of a file if its metadata says so in `source`; passages without one came from elsewhere and stay, and
    so do those of files that could not be read this time.
    """
    folder = root if root.is_dir() else root.parent
    current = {passage.id for passage in corpus.passages}
    unread = {file for file, _ in corpus.skipped}
    sources = {str(passage.metadata["source"]) for passage in corpus.passages}
    # The rows of a file may name a source of their own, which is no file of this corpus.
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
    return _Removed(len(outdated), len(pruned))
