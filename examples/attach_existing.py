"""Add steering to an existing Chroma collection, without embedding a text and without modifying the collection.

    python examples/attach_existing.py

A plain Chroma collection, filled without this library and with Chroma's default distance, stands in for your index.
"""

from __future__ import annotations

import sys
import time

import chromadb
from chromadb.config import Settings
from quickstart import DATA, QUESTION, prepare

from sae_steer_retriever import ChromaStore, SteeredRetriever
from sae_steer_retriever.features.loading import load_sae


def existing_collection(client: chromadb.ClientAPI, made: SteeredRetriever) -> chromadb.Collection:
    """A collection as another tool would make it: squared distances, its own name."""
    collection = client.get_or_create_collection("handbook", embedding_function=None)
    rows = made.store.documents.get(include=["documents", "metadatas", "embeddings"])
    for start in range(0, len(rows["ids"]), 1000):
        part = slice(start, start + 1000)
        collection.upsert(rows["ids"][part], rows["embeddings"][part], rows["metadatas"][part], rows["documents"][part])
    return collection


def main() -> int:
    """Run the example."""
    made = prepare(DATA)
    client = chromadb.PersistentClient(str(DATA / "existing"), settings=Settings(anonymized_telemetry=False))
    collection = existing_collection(client, made)
    sae, catalog, embedder = load_sae(DATA / "sae")

    start = time.monotonic()
    store = ChromaStore.from_collection(collection, sae)
    encoded = store.attach()
    print(f"\n{store}\n{encoded} stored vectors encoded in {time.monotonic() - start:.1f} s, no text embedded")

    retriever = SteeredRetriever(store, embedder, catalog)
    for steer in ({}, {"thread": 0.5}, {"thread": -0.5}):
        print(f"steer={steer}")
        for hit in retriever.search(QUESTION, k=3, steer=steer):
            print(f"  {hit.score:.3f}  {hit.id}")
    store.detach()
    print(f"detached: {[found.name for found in client.list_collections()]} is what was there before")
    return 0


if __name__ == "__main__":
    sys.exit(main())
