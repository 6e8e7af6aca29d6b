"""Small parts for tests that need no language: a hashing encoder, random dictionaries, a catalog by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from sae_steer_retriever.features.calibration import calibrate
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.feature import Feature, LabelScore
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.config import EncoderSpec, SAEConfig
from sae_steer_retriever.sae.topk_sae import TopKSAE

D, N, K, K_LABELS = 16, 32, 6, 3


def word_vector(word: str, d: int = D) -> Array:
    """The same unit vector for the same word, on every machine."""
    seed = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
    vector = np.random.default_rng(seed).normal(size=d)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class ToyEmbedder:
    """Sums the vectors of a text's words; remembers what it was asked to embed."""

    def __init__(self, name: str = "toy/words", d: int = D) -> None:
        self.spec = EncoderSpec(name=name, dimension=d)
        self.embedded: list[str] = []

    def embed_queries(self, texts: Sequence[str]) -> Array:
        rows = [sum((word_vector(word, self.spec.dimension) for word in text.split()), 0.0) for text in texts]
        stacked = np.stack(rows) if rows else np.empty((0, self.spec.dimension))
        return (stacked / np.linalg.norm(stacked, axis=1, keepdims=True)).astype(np.float32)

    def embed_documents(self, texts: Sequence[str]) -> Array:
        self.embedded.extend(texts)
        return self.embed_queries(texts)


def random_sae(
    seed: int = 0,
    d: int = D,
    n: int = N,
    k: int = K,
    k_labels: int = K_LABELS,
    *,
    shift: float = 0.0,
    encoder: str = "toy/words",
) -> TopKSAE:
    """A dictionary of random unit directions; a large negative `shift` leaves few latents active."""
    random = np.random.default_rng(seed)
    directions = random.normal(size=(n, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    config = SAEConfig(d=d, n=n, k=k, k_labels=k_labels, encoder=EncoderSpec(name=encoder, dimension=d))
    return TopKSAE(
        torch.tensor(directions + 0.1 * random.normal(size=(n, d)), dtype=torch.float32),
        torch.tensor(0.1 * random.normal(size=n) + shift, dtype=torch.float32),
        torch.tensor(directions, dtype=torch.float32),
        torch.tensor(0.2 * random.normal(size=d), dtype=torch.float32),
        config,
    )


def unit_rows(seed: int, rows: int, d: int = D) -> Array:
    """(rows, d) random unit vectors."""
    vectors = np.random.default_rng(seed).normal(size=(rows, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def catalog_for(sae: TopKSAE, vectors: Array, *, score_spread: float = 0.2) -> FeatureCatalog:
    """Features called "feature 0 name", ... with units from the vectors."""
    codes = sae.encode(vectors, k=sae.config.k_labels)
    calibration = calibrate([codes], n=sae.config.n, score_spread=score_spread)
    features = [
        Feature(
            latent,
            f"feature {latent} name",
            (f"feature {latent} name",),
            LabelScore(0.95, 0.9),
            float(calibration.frequency[latent]),
            float(calibration.unit[latent]),
            (),
        )
        for latent in range(sae.config.n)
    ]
    return FeatureCatalog(features, calibration, sae.fingerprint)
