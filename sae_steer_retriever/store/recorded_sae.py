"""What a store says of the SAE that it was indexed with, and which one to take where it says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sae_steer_retriever.encoders.embedders import bundled_for, unit_rows
from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.sae.bundled import recorded
from sae_steer_retriever.store.connection import translated
from sae_steer_retriever.store.sidecar import SUFFIX, k_of

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

    from sae_steer_retriever.sae.topk_sae import TopKSAE

# Which encoder made the vectors of a documents collection: in its metadata, where we made it.
ENCODER_KEY = "sae_steer_encoder"
_SAMPLE = 200
_POINTS_SOMEWHERE = 0.27


def recorded_sae(client: ClientAPI, collection: str) -> str | None:
    """Where the SAE of a collection's sidecar was loaded from when it was indexed, if that is known."""
    location = _metadata(client, collection + SUFFIX).get("sae_location")
    return None if location is None else recorded(str(location))


def default_sae(client: ClientAPI, collection: str, embedding: Any = None) -> str:  # noqa: ANN401 - see as_embedder
    """The SAE of a collection that nobody named one for: the one that it was indexed with, else the bundled one.

    Args:
        client: The store.
        collection: Name of the documents collection, which need not be there.
        embedding: What it is embedded with, where that is known: anything `as_embedder` takes.

    Returns:
        A folder or a hub id.

    Raises:
        ArtifactError: The collection was never indexed, and none ships for its encoder.
    """
    found = recorded_sae(client, collection)
    if found is not None:
        return found
    return str(bundled_for(_metadata(client, collection).get(ENCODER_KEY) if embedding is None else embedding))


def at_recorded_k(sae: TopKSAE, client: ClientAPI, collection: str) -> TopKSAE:
    """An SAE at the K that a collection was indexed at, where its sidecar is this SAE's; else as it is."""
    metadata = _metadata(client, collection + SUFFIX)
    return sae.with_k(k_of(metadata, sae)) if metadata.get("sae_fingerprint") == sae.fingerprint else sae


def require_readable(sae: TopKSAE, client: ClientAPI, collection: str) -> None:
    """Refuse a collection whose vectors an SAE that nobody named makes nothing of: they are of another encoder.

    Vectors of its own encoder point to some feature, those of another one of the same size to none: in d dimensions the
    largest of n chance cosines is about sqrt(2 ln(n) / d), 0.2 for all-MiniLM-L6-v2. A collection that says what
    embedded it, one that has a sidecar, and an empty one need no look.

    Raises:
        MismatchError: So it is.
        StoreError: The store does not answer.
    """
    import numpy as np

    if _metadata(client, collection).get(ENCODER_KEY) is not None or _metadata(client, collection + SUFFIX):
        return
    with translated("looking at the collection"):
        found = client.get_collection(collection, embedding_function=None).get(limit=_SAMPLE, include=["embeddings"])
    if not found["ids"]:
        return
    centred = unit_rows(found["embeddings"], sae.config.d) - sae.bias
    cosines = (centred @ sae.decoder.T).max(axis=1) / np.linalg.norm(centred, axis=1)
    typical = float(np.median(cosines))
    if typical < _POINTS_SOMEWHERE:
        raise MismatchError(
            f"collection {collection!r} does not say which encoder made its vectors, and they point to no feature "
            f"of the bundled SAE for {sae.config.encoder.name!r} (typical cosine with the nearest: {typical:.2f}): "
            "they are another encoder's. Train an SAE for that one (`sae-steer train --model NAME`) and name it."
        )


def _metadata(client: ClientAPI, name: str) -> Mapping[str, Any]:
    """That of a collection; empty if there is none."""
    from chromadb.errors import NotFoundError

    with translated("reading the sidecar"):
        try:
            return client.get_collection(name, embedding_function=None).metadata or {}
        except (NotFoundError, ValueError):
            return {}


__all__ = ["ENCODER_KEY", "at_recorded_k", "default_sae", "recorded_sae", "require_readable"]
