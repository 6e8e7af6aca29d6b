"""What both adapters are made from: an SAE as users have it at hand, and a store, kept or passing."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from sae_steer_retriever.encoders.cache_root import cache_root
from sae_steer_retriever.encoders.embedders import Embedder, as_embedder, bundled_for
from sae_steer_retriever.errors import StoreError
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.loading import load_sae
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae.bundled import recordable
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.chroma_store import ChromaStore, client_of
from sae_steer_retriever.store.connection import connect
from sae_steer_retriever.store.recorded_sae import at_recorded_k, default_sae, require_readable

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


def load_parts(
    sae: SAESource | None,
    embedding: Any = None,  # noqa: ANN401 - see as_embedder
    *,
    client: ClientAPI | None = None,
    collection: str = "docs",
) -> Parts:
    """The parts of a retriever, loaded if need be.

    Args:
        sae: Folder of the SAE, its hub id, the name of one that ships, or the loaded SAE with its catalog; if None, the
            one that the collection was indexed with, else the bundled one for the encoder.
        embedding: Anything `as_embedder` takes; the SAE's own encoder if None.
        client: The store, where there is one already: its collection says which SAE it is of, and at which K.
        collection: Name of the documents collection.

    Raises:
        ArtifactError: A file is missing or damaged, or `sae` is None and no SAE ships for the encoder.
        MismatchError: The encoder is not the SAE's.
        TypeError: `sae` is none of these.
    """
    match sae:
        case (TopKSAE() as model, FeatureCatalog() as catalog):
            embedder = as_embedder(model.config.encoder.name if embedding is None else embedding)
            return Parts(model, catalog, embedder, None)
        case None:
            path = str(bundled_for(embedding)) if client is None else default_sae(client, collection, embedding)
        case str() | Path():
            path = str(sae)
        case _:
            raise TypeError(
                f"sae is a {type(sae).__name__}: expected a folder, a hub id, or a (TopKSAE, FeatureCatalog) pair."
            )
    parts = Parts(*load_sae(path, embedding=embedding), recordable(path))
    return parts if client is None else parts._replace(sae=at_recorded_k(parts.sae, client, collection))


def open_store(
    sae: SAESource | None,
    embedding: Any,  # noqa: ANN401 - see as_embedder
    persist_directory: str | Path | None,
    collection: str,
) -> tuple[Parts, ChromaStore]:
    """Open, or make, a store in a folder; without one, a store of its own that is gone when it is let go.

    Chroma's in-memory client is no substitute: all of one process share their data, and refuse each other's settings.

    Args:
        sae: See `load_parts`.
        embedding: See `load_parts`.
        persist_directory: Folder of the Chroma store, or None.
        collection: Name of the documents collection.

    Raises:
        StoreError: The folder cannot be used; otherwise see `load_parts`.
    """
    # A folder that is no store yet becomes one only if there is an SAE for it.
    existing = persist_directory is not None and Path(persist_directory).is_dir()
    parts = load_parts(
        sae, embedding, client=connect(path=persist_directory) if existing else None, collection=collection
    )
    folder = tempfile.mkdtemp(prefix="sae-steer-") if persist_directory is None else str(persist_directory)
    client = connect(path=folder)
    store = ChromaStore.open(parts.sae, client=client, collection=collection, sae_location=parts.location)
    if persist_directory is None:
        weakref.finalize(store, _discard, client, [Path(folder), cache_root() / "codes" / store.sidecar.id])
    return parts, store


def adopt_store(
    collection: Any,  # noqa: ANN401 - see ChromaStore.from_collection
    sae: SAESource | None,
    embedding: Any = None,  # noqa: ANN401 - see as_embedder
) -> tuple[Parts, ChromaStore]:
    """Put a sidecar beside a collection that exists.

    Args:
        collection: See `ChromaStore.from_collection`.
        sae: See `load_parts`.
        embedding: What the collection was embedded with; see `load_parts`.

    Raises:
        TypeError: It is no collection.
        MismatchError: No SAE was given, and the bundled one cannot read its vectors; otherwise see `load_parts`.
    """
    client, name = client_of(collection)
    parts = load_parts(sae, embedding, client=client, collection=name)
    if sae is None:
        require_readable(parts.sae, client, name)
    return parts, ChromaStore.from_collection(collection, parts.sae, sae_location=parts.location)


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
    parts = load_parts(sae, embedding, client=client, collection=collection)
    store = ChromaStore.open(parts.sae, client=client, collection=collection, create=False, sae_location=parts.location)
    return parts, store


def _discard(client: ClientAPI, folders: list[Path]) -> None:
    close = getattr(client, "close", None)
    if close is not None:  # an open database cannot be deleted on Windows
        close()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


__all__ = ["Parts", "SAESource", "adopt_store", "load_parts", "open_store", "reopen_store"]
