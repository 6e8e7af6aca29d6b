"""An SAE with all that belongs to it: its catalog and its encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_steer_retriever.embedders import Embedder, as_embedder
from sae_steer_retriever.features import FeatureCatalog
from sae_steer_retriever.sae import TopKSAE, resolve_folder


def load_sae(
    path: str | Path,
    *,
    embedding: Any = None,  # noqa: ANN401 - see as_embedder
) -> tuple[TopKSAE, FeatureCatalog, Embedder]:
    """An SAE, its catalog and its encoder, from the SAE's folder or hub id.

    Args:
        path: The folder, or the hub id.
        embedding: Anything `as_embedder` takes; the SAE's own encoder if not given.

    Raises:
        ArtifactError: A file is missing or damaged.
        MismatchError: The given encoder is not the SAE's.
    """
    folder = resolve_folder(path)
    sae = TopKSAE.from_pretrained(folder)
    catalog = FeatureCatalog.load(folder, sae.fingerprint)
    embedder = as_embedder(sae.config.encoder.name if embedding is None else embedding)
    sae.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
    return sae, catalog, embedder


__all__ = ["load_sae"]
