"""Passages of a corpus or a store, for the actions of `sae-steer features` that read them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from sae_steer_retriever.cli.feature_options import OpenedCatalog, embedder_of
from sae_steer_retriever.cli.runner import UsageError
from sae_steer_retriever.cli.store_options import require_path

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

    from sae_steer_retriever.encoders.embedders import Embedder
    from sae_steer_retriever.sae.codes import Array
    from sae_steer_retriever.sae.topk_sae import TopKSAE

_PAGE = 1000
# For an SAE whose config does not record the passage length.
_PASSAGE_CHARACTERS = 1200


class OpenedPassages(NamedTuple):
    """Passages with their embeddings."""

    ids: list[str]  # N ids
    texts: list[str]  # N texts
    vectors: Array  # (N, d) unit embeddings


def check_source(arguments: argparse.Namespace) -> None:
    """Refuses `--corpus` together with `--store`, and a missing corpus.

    Raises:
        UsageError: Both are given, or the corpus does not exist.
    """
    if arguments.corpus is not None and arguments.store is not None:
        raise UsageError("give either --corpus PATH or --store DIR: the passages are read from one of them.")
    require_path("--corpus", arguments.corpus)


def open_passages(
    arguments: argparse.Namespace, opened: OpenedCatalog, embedder: Callable[[], Embedder]
) -> OpenedPassages | None:
    """Returns the passages of the corpus or the store; None if neither is given.

    The encoder is loaded for a corpus only: a store has the embeddings already.

    Raises:
        UsageError: The collection is empty.
        SAESteerError: The corpus cannot be read, or the store does not answer.
    """
    if arguments.corpus is not None:
        from sae_steer_retriever.corpus.read_corpus import read_corpus

        length = opened.sae.config.training.get("passage_characters")
        length = length if isinstance(length, int) else _PASSAGE_CHARACTERS
        read = read_corpus(arguments.corpus, passage_characters=length).passages
        texts = [passage.text for passage in read]
        return OpenedPassages([passage.id for passage in read], texts, embedder().embed_documents(texts))
    return None if opened.client is None else _stored(opened.client, arguments.collection)


def cached_embedder(sae: TopKSAE, arguments: argparse.Namespace) -> Embedder:
    """Returns the SAE's encoder with the embedding cache.

    Raises:
        ArtifactError: The encoder cannot be loaded.
        MismatchError: The loaded encoder is not the SAE's.
    """
    from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder

    embedder = embedder_of(sae)
    sae.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
    return CachedEmbedder(embedder, progress=not arguments.quiet)


def _stored(client: ClientAPI, collection: str) -> OpenedPassages:
    import numpy as np

    from sae_steer_retriever.encoders.embedders import unit_rows
    from sae_steer_retriever.store.connection import translated

    ids: list[str] = []
    texts: list[str] = []
    rows: list[Any] = []
    with translated("reading passages"):
        documents = client.get_collection(collection, embedding_function=None)
        while True:
            page = documents.get(limit=_PAGE, offset=len(ids), include=["documents", "embeddings"])
            if not page["ids"]:
                break
            ids += page["ids"]
            texts += [text or "" for text in page["documents"] or [""] * len(page["ids"])]
            rows.append(np.asarray(page["embeddings"], dtype=np.float32))
    if not ids:
        raise UsageError(f"collection {collection!r} is empty: fill it with `sae-steer index`.")
    return OpenedPassages(ids, texts, unit_rows(np.concatenate(rows), rows[0].shape[1]))
