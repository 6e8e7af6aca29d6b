"""Opens the SAE of a collection: the one given, else the one recorded in the sidecar, else the bundled one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sae_steer_retriever.encoders.embedders import Embedder, as_embedder, bundled_for, unit_rows
from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.sae.bundled import recordable, recorded
from sae_steer_retriever.sae.files import resolve_folder
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.connection import translated
from sae_steer_retriever.store.sidecar import SUFFIX, k_of

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

# Key in the documents collection's metadata: the encoder of its vectors, if this library created the collection.
ENCODER_KEY = "sae_steer_encoder"
_SAMPLE = 200
_LEAST_COSINE = 0.27


class OpenedSAE(NamedTuple):
    """An SAE opened for a collection."""

    sae: TopKSAE  # at the collection's K
    folder: Path  # `FeatureCatalog.load(folder, sae.fingerprint)` loads its catalog
    location: str  # as the sidecar records it (`sae_location`)

    def embedder(self, embedding: Any = None) -> Embedder:  # noqa: ANN401 - see as_embedder
        """Returns the SAE's encoder, or `embedding` (anything `as_embedder` takes) if that is the same encoder.

        Raises:
            ArtifactError: The encoder cannot be loaded.
            MismatchError: `embedding` is another encoder.
        """
        embedder = as_embedder(self.sae.config.encoder.name if embedding is None else embedding)
        self.sae.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
        return embedder


def opened_sae(
    location: str | Path | None = None,
    *,
    client: ClientAPI | None = None,
    collection: str = "docs",
    embedding: Any = None,  # noqa: ANN401 - see as_embedder
    k: int | None = None,
    check_vectors: bool = False,
) -> OpenedSAE:
    """Returns the SAE for a collection: every command and every constructor opens its SAE here.

    Args:
        location: The SAE's folder, its hub id, or the name of a bundled one; if None, see `default_sae`.
        client: The store; None if there is none yet.
        collection: Name of the documents collection, which may be absent.
        embedding: The collection's encoder, if known: anything `as_embedder` takes.
        k: Active latents per embedding; if None, the K of the collection's sidecar, else the SAE's own.
        check_vectors: Whether to call `require_readable`.

    Raises:
        ArtifactError: A file is missing or damaged, or `location` is None and no SAE is bundled for the encoder.
        MismatchError: The collection's vectors are another encoder's.
        StoreError: The store does not answer.
        ValueError: `k` is out of range.
    """
    if location is None:
        location = bundled_for(embedding) if client is None else default_sae(client, collection, embedding)
    folder = resolve_folder(location)
    sae = TopKSAE.from_pretrained(folder, k=k)
    if client is not None and k is None:
        sae = at_recorded_k(sae, client, collection)
    if client is not None and check_vectors:
        require_readable(sae, client, collection)
    return OpenedSAE(sae, folder, recordable(location))


def recorded_sae(client: ClientAPI, collection: str) -> str | None:
    """Returns the location of the SAE that a collection was indexed with; None if no location is recorded."""
    location = _metadata(client, collection + SUFFIX).get("sae_location")
    return None if location is None else recorded(str(location))


def default_sae(client: ClientAPI, collection: str, embedding: Any = None) -> str:  # noqa: ANN401 - see as_embedder
    """Returns the location of a collection's SAE: the recorded one, else the bundled one for its encoder.

    `embedding` is that encoder, if known: anything `as_embedder` takes. The collection may be absent.

    Raises:
        ArtifactError: The collection was never indexed, and no SAE is bundled for its encoder.
    """
    found = recorded_sae(client, collection)
    if found is not None:
        return found
    return str(bundled_for(_metadata(client, collection).get(ENCODER_KEY) if embedding is None else embedding))


def at_recorded_k(sae: TopKSAE, client: ClientAPI, collection: str) -> TopKSAE:
    """Returns the SAE at the K of the collection's sidecar; unchanged if the sidecar is absent or another SAE's."""
    metadata = _metadata(client, collection + SUFFIX)
    return sae.with_k(k_of(metadata, sae)) if metadata.get("sae_fingerprint") == sae.fingerprint else sae


def require_readable(sae: TopKSAE, client: ClientAPI, collection: str) -> None:
    """Refuses a collection whose vectors are not of the SAE's encoder, judged by a sample.

    A vector of the SAE's encoder has a large cosine with some feature. A vector of another encoder of the same
    dimension d has not: the largest of n chance cosines is about sqrt(2 ln(n) / d), 0.2 for all-MiniLM-L6-v2. The check
    is skipped if the collection records its encoder, has a sidecar, or is empty.

    Raises:
        MismatchError: The typical largest cosine is below 0.27.
        StoreError: The store does not answer.
    """
    if _metadata(client, collection).get(ENCODER_KEY) is not None or _metadata(client, collection + SUFFIX):
        return
    with translated("reading the collection"):
        found = client.get_collection(collection, embedding_function=None).get(limit=_SAMPLE, include=["embeddings"])
    if not found["ids"]:
        return
    centred = unit_rows(found["embeddings"], sae.config.d) - sae.bias
    cosines = (centred @ sae.decoder.T).max(axis=1) / np.linalg.norm(centred, axis=1)
    typical = float(np.median(cosines))
    if typical < _LEAST_COSINE:
        raise MismatchError(
            f"collection {collection!r} does not record its encoder, and its vectors match no feature of the bundled "
            f"SAE for {sae.config.encoder.name!r} (median cosine with the nearest feature: {typical:.2f}, expected at "
            f"least {_LEAST_COSINE}): they are another encoder's. Train an SAE for that encoder (`sae-steer train "
            "--model NAME`) and give its folder."
        )


def _metadata(client: ClientAPI, name: str) -> Mapping[str, Any]:
    from chromadb.errors import NotFoundError

    with translated("reading the sidecar"):
        try:
            return client.get_collection(name, embedding_function=None).metadata or {}
        except (NotFoundError, ValueError):
            return {}
