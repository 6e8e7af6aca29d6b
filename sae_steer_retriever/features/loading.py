"""Opening an SAE with its catalog and its encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_steer_retriever.encoders.embedders import Embedder, as_embedder, bundled_for
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.files import resolve_folder
from sae_steer_retriever.sae.topk_sae import TopKSAE


def load_sae(
    path: str | Path | None = None, *, embedding: Any = None, k: int | None = None
) -> tuple[TopKSAE, FeatureCatalog, Embedder]:
    """Returns an SAE, its catalog and its encoder.

    Args:
        path: The SAE's folder, its hub id, or the name of a bundled SAE; if None, the bundled one for the encoder.
        embedding: Anything `as_embedder` takes; the SAE's own encoder if not given.
        k: Active latents per embedding, in place of the number it was fitted for; see `TopKSAE.with_k`.

    Raises:
        ArtifactError: A file is missing or damaged, or no SAE was given and none is bundled for the encoder.
        MismatchError: The given encoder is not the SAE's.
        ValueError: `k` is out of range.
    """
    folder = resolve_folder(bundled_for(embedding) if path is None else path)
    sae = TopKSAE.from_pretrained(folder, k=k)
    catalog = FeatureCatalog.load(folder, sae.fingerprint)
    embedder = as_embedder(sae.config.encoder.name if embedding is None else embedding)
    sae.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
    return sae, catalog, embedder
