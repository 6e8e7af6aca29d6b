"""The passages that an action of `sae-steer features` is about, of a corpus or of a store."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from sae_steer_retriever.cli.feature_options import OpenedCatalog, embedder_of
from sae_steer_retriever.cli.outcome import UsageError

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

    from sae_steer_retriever.encoders.embedders import Embedder
    from sae_steer_retriever.sae.codes import Array
    from sae_steer_retriever.sae.topk_sae import TopKSAE

_PAGE = 1000
# Of an SAE that does not say how its corpus was cut.
_PASSAGE_CHARACTERS = 1200


class OpenedPassages(NamedTuple):
    """Passages with their embeddings.

    Attributes:
        ids: N ids.
        texts: N texts.
        vectors: (N, d) unit embeddings.
    """

    ids: list[str]
    texts: list[str]
    vectors: Array


def check_source(arguments: argparse.Namespace) -> None:
    """Refuse `--corpus` and `--store` together, and a corpus that is not there.

    Raises:
        UsageError: So it is.
    """
    if arguments.corpus is not None and arguments.store is not None:
        raise UsageError("give either --corpus PATH or --store DIR: the passages are read from one of them.")
    if arguments.corpus is not None and not arguments.corpus.exists():
        raise UsageError(f"--corpus: no such file or folder: {arguments.corpus}")


def open_passages(
    arguments: argparse.Namespace, opened: OpenedCatalog, embedder: Callable[[], Embedder]
) -> OpenedPassages | None:
    """What the corpus or the store holds; None if neither is given.

    Args:
        arguments: With `corpus` and `collection`.
        opened: The SAE, and the store.
        embedder: Loads the SAE's encoder; not asked for where a store has the embeddings.

    Raises:
        UsageError: The collection is empty.
        SAESteerError: The corpus cannot be read, or the store does not answer.
    """
    if arguments.corpus is not None:
        from sae_steer_retriever.corpus.read_corpus import read_corpus

        length = opened.sae.config.training.get("passage_characters")
        read = read_corpus(
            arguments.corpus, passage_characters=length if isinstance(length, int) else _PASSAGE_CHARACTERS
        ).passages
        texts = [passage.text for passage in read]
        return OpenedPassages([passage.id for passage in read], texts, embedder().embed_documents(texts))
    return None if opened.client is None else _stored(opened.client, arguments.collection)


def cached_embedder(sae: TopKSAE, arguments: argparse.Namespace) -> Embedder:
    """The SAE's encoder, with a memory.

    Raises:
        ArtifactError: It cannot be had.
        MismatchError: What was found under its name is another one.
    """
    from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder

    embedder = embedder_of(sae)
    sae.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
    return CachedEmbedder(embedder, progress=not arguments.quiet)


def _stored(client: ClientAPI, collection: str) -> OpenedPassages:
    """All passages of the store, with their own embeddings at unit length, in pages."""
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
