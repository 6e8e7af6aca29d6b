"""What both adapters are made from: an SAE as users have it at hand, and a store, kept or passing."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from sae_steer_retriever.embedders import Embedder, as_embedder
from sae_steer_retriever.embedding_cache import cache_root
from sae_steer_retriever.errors import ArtifactError, StoreError
from sae_steer_retriever.features import FeatureCatalog
from sae_steer_retriever.retriever import SteeredRetriever, load_sae
from sae_steer_retriever.sae import TopKSAE
from sae_steer_retriever.store import ChromaStore, connect, recorded_sae

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

SAESource: TypeAlias = str | Path | tuple[TopKSAE, FeatureCatalog]


class Parts(NamedTuple):
    """What a retriever needs beside a store.

    Attributes:
        sae: The SAE.
        catalog: Its features' names.
        embedder: Its encoder.
        location: Where the SAE was loaded from, for the store to record; None if it was given ready.
    """

    sae: TopKSAE
    catalog: FeatureCatalog
    embedder: Embedder
    location: str | None

    def retriever(self, store: ChromaStore) -> SteeredRetriever:
        """The core retriever over a store of this SAE."""
        return SteeredRetriever(store, self.embedder, self.catalog)


def load_parts(sae: SAESource | None, embedding: Any = None) -> Parts:  # noqa: ANN401 - see as_embedder
    """The parts of a retriever, loaded if need be.

    Args:
        sae: Folder of the SAE, its hub id, or the loaded SAE with its catalog.
        embedding: Anything `as_embedder` takes; the SAE's own encoder if None.

    Raises:
        ArtifactError: `sae` is None, or a file is missing or damaged.
        MismatchError: The encoder is not the SAE's.
        TypeError: `sae` is none of these.
    """
    if sae is None:
        raise ArtifactError(
            "no SAE was given, and none ships with this release: train one on your documents with "
            "`sae-steer train --corpus ./docs --output ./sae` and pass sae='./sae'."
        )
    if isinstance(sae, str | Path):
        location = str(Path(sae).resolve()) if Path(sae).is_dir() else str(sae)
        return Parts(*load_sae(sae, embedding=embedding), location)
    match sae:
        case (TopKSAE() as model, FeatureCatalog() as catalog):
            embedder = as_embedder(model.config.encoder.name if embedding is None else embedding)
            return Parts(model, catalog, embedder, None)
    raise TypeError(f"sae is a {type(sae).__name__}: expected a folder, a hub id, or a (TopKSAE, FeatureCatalog) pair.")


def open_store(parts: Parts, persist_directory: str | Path | None, collection: str) -> ChromaStore:
    """Open, or make, a store in a folder; without one, a store of its own that is gone when it is let go.

    Chroma's in-memory client is no substitute: all of one process share their data, and refuse each other's settings.

    Args:
        parts: From `load_parts`.
        persist_directory: Folder of the Chroma store, or None.
        collection: Name of the documents collection.
    """
    folder = tempfile.mkdtemp(prefix="sae-steer-") if persist_directory is None else str(persist_directory)
    client = connect(path=folder)
    store = ChromaStore.open(parts.sae, client=client, collection=collection, sae_location=parts.location)
    if persist_directory is None:
        weakref.finalize(store, _discard, client, [Path(folder), cache_root() / "codes" / store.companion.id])
    return store


def reopen_store(
    persist_directory: str | Path,
    collection: str,
    sae: SAESource | None,
    embedding: Any = None,  # noqa: ANN401 - see as_embedder
) -> tuple[Parts, ChromaStore]:
    """Open a store that exists; without `sae`, the SAE is the one it was indexed with.

    Args:
        persist_directory: Folder of the Chroma store.
        collection: Name of the documents collection.
        sae: See `load_parts`.
        embedding: See `load_parts`.

    Raises:
        StoreError: There is no such folder or collection; otherwise see `load_parts`.
    """
    if not Path(persist_directory).is_dir():
        raise StoreError(f"there is no folder {str(persist_directory)!r}: index documents into it first.")
    client = connect(path=persist_directory)
    parts = load_parts(recorded_sae(client, collection) if sae is None else sae, embedding)
    store = ChromaStore.open(parts.sae, client=client, collection=collection, create=False, sae_location=parts.location)
    return parts, store


def _discard(client: ClientAPI, folders: list[Path]) -> None:
    close = getattr(client, "close", None)
    if close is not None:  # an open database cannot be deleted on Windows
        close()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


__all__ = ["Parts", "SAESource", "load_parts", "open_store", "reopen_store"]
