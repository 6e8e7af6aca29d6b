"""The core retriever of both adapters: opens an SAE in any form that users have, over a new or an existing store."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from sae_steer_retriever.encoders.cache_root import cache_root
from sae_steer_retriever.encoders.embedders import Embedder, as_embedder
from sae_steer_retriever.errors import StoreError
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.chroma_store import ChromaStore, client_of
from sae_steer_retriever.store.connection import connect
from sae_steer_retriever.store.recorded_sae import at_recorded_k, opened_sae, require_readable

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

SAESource: TypeAlias = str | Path | tuple[TopKSAE, FeatureCatalog]


class Parts(NamedTuple):
    """An SAE, its catalog and encoder, and the location that the sidecar records: None for an SAE given loaded."""

    sae: TopKSAE
    catalog: FeatureCatalog
    embedder: Embedder
    location: str | None


def load_parts(
    sae: SAESource | None,
    embedding: Any = None,  # noqa: ANN401 - see as_embedder
    *,
    client: ClientAPI | None = None,
    collection: str = "docs",
) -> Parts:
    """Returns the parts of a retriever.

    Args:
        sae: The SAE's folder, its hub id, the name of a bundled one, or a loaded SAE with its catalog. If None, see
            `default_sae`.
        embedding: Anything `as_embedder` takes; the SAE's own encoder if None.
        client: The store, if it exists: its collection records the SAE and its K.
        collection: Name of the documents collection.

    Raises:
        ArtifactError: A file is missing or damaged, or `sae` is None and no SAE is bundled for the encoder.
        MismatchError: The encoder is not the SAE's.
        TypeError: `sae` is none of these.
    """
    match sae:
        case (TopKSAE() as model, FeatureCatalog() as catalog):
            embedder = as_embedder(model.config.encoder.name if embedding is None else embedding)
            own = model if client is None else at_recorded_k(model, client, collection)
            return Parts(own, catalog, embedder, None)
        case None | str() | Path():
            opened = opened_sae(sae, client=client, collection=collection, embedding=embedding)
            catalog = FeatureCatalog.load(opened.folder, opened.sae.fingerprint)
            return Parts(opened.sae, catalog, opened.embedder(embedding), opened.location)
        case _:
            raise TypeError(
                f"sae is a {type(sae).__name__}: expected a folder, a hub id, or a (TopKSAE, FeatureCatalog) pair."
            )


def open_store(
    persist_directory: str | Path | None,
    collection: str,
    sae: SAESource | None,
    embedding: Any = None,  # noqa: ANN401 - see as_embedder
    *,
    create: bool = True,
) -> SteeredRetriever:
    """Returns a retriever over a store in a folder; `collection`, `sae` and `embedding` as in `load_parts`.

    Without a folder the store is private and is deleted with the retriever. Chroma's in-memory client is no substitute:
    all in-memory clients of a process share their data and must have the same settings.

    Raises:
        StoreError: The folder cannot be used; or the folder or the collection is absent, and `create` is False.
    """
    existing = persist_directory is not None and Path(persist_directory).is_dir()
    if not existing and not create:
        raise StoreError(f"there is no folder {str(persist_directory)!r}: index documents into it first.")
    # The SAE is loaded first: a missing SAE must not leave a new folder behind.
    client = connect(path=persist_directory) if existing else None
    parts = load_parts(sae, embedding, client=client, collection=collection)
    folder = tempfile.mkdtemp(prefix="sae-steer-") if persist_directory is None else str(persist_directory)
    client = client or connect(path=folder)
    store = ChromaStore.open(
        parts.sae, client=client, collection=collection, create=create, sae_location=parts.location
    )
    if persist_directory is None:
        weakref.finalize(store, _discard, client, [Path(folder), cache_root() / "codes" / store.sidecar.id])
    return SteeredRetriever(store, parts.embedder, parts.catalog)


def adopt_store(
    collection: Any,  # noqa: ANN401 - see ChromaStore.from_collection
    sae: SAESource | None,
    embedding: Any = None,  # noqa: ANN401 - see as_embedder
) -> SteeredRetriever:
    """Returns a retriever over a collection that exists; `sae` and `embedding` as in `load_parts`.

    Raises:
        TypeError: `collection` is not a collection; see `ChromaStore.from_collection`.
        MismatchError: No SAE was given, and the bundled one cannot read the collection's vectors; for the other errors
            see `load_parts`.
    """
    client, name = client_of(collection)
    parts = load_parts(sae, embedding, client=client, collection=name)
    if sae is None:
        require_readable(parts.sae, client, name)
    store = ChromaStore.from_collection(collection, parts.sae, sae_location=parts.location)
    return SteeredRetriever(store, parts.embedder, parts.catalog)


def _discard(client: ClientAPI, folders: list[Path]) -> None:
    close = getattr(client, "close", None)
    if close is not None:  # Windows cannot delete an open database
        close()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
