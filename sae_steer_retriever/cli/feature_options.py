"""The options of `sae-steer features`: an SAE with its catalog, and a store."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sae_steer_retriever.cli.runner import UsageError, add_common_arguments, count
from sae_steer_retriever.cli.store_options import DEFAULT_COLLECTION, StoreLocation, open_store
from sae_steer_retriever.errors import ArtifactError

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

    from sae_steer_retriever.encoders.embedders import Embedder
    from sae_steer_retriever.features.catalog import FeatureCatalog
    from sae_steer_retriever.features.text_reading import Concept
    from sae_steer_retriever.sae.topk_sae import TopKSAE

logger = logging.getLogger(__name__)

DEFAULT_LIMIT = 20


def add_options(parser: argparse.ArgumentParser, *, nested: bool) -> None:
    """Adds the options, which may stand before or after the action; after it they are `nested` and have no defaults."""
    default = argparse.SUPPRESS if nested else None
    parser.add_argument(
        "--sae",
        default=default,
        metavar="DIR|NAME",
        help="the SAE: a folder, a hub id, or the name of a bundled SAE (default: the store's, else the bundled one)",
    )
    parser.add_argument(
        "--store",
        type=StoreLocation.parse,
        default=default,
        metavar="DIR|http://HOST:PORT",
        help="a store: a folder of an embedded Chroma, or a Chroma server; `show` then prints its passages",
    )
    parser.add_argument(
        "--collection",
        default=default or DEFAULT_COLLECTION,
        metavar="NAME",
        help=f"name of the store's documents collection (default: {DEFAULT_COLLECTION})",
    )
    parser.add_argument(
        "--limit",
        type=count,
        default=default,
        metavar="N",
        help=f"list at most N features (default: {DEFAULT_LIMIT}; for contrast 5 per side)",
    )
    add_common_arguments(parser, nested=nested)


def required_text(words: Sequence[str], question: str) -> str:
    """Returns the words of an argument as one text; a question such as "show what?" begins the error.

    Raises:
        UsageError: The text is empty.
    """
    text = " ".join(words).strip()
    if not text:
        raise UsageError(f"{question} The text is empty: give a word, a label or an id.")
    return text


class OpenedCatalog(NamedTuple):
    """An SAE, its catalog, and the store if one is given."""

    sae: TopKSAE
    folder: Path
    catalog: FeatureCatalog
    client: ClientAPI | None


def open_catalog(arguments: argparse.Namespace) -> OpenedCatalog:
    """Returns the SAE, the catalog and the store that the options name.

    Raises:
        UsageError: The store or the collection does not exist.
        SAESteerError: The SAE is damaged or not found, or the store does not answer.
    """
    from sae_steer_retriever.features.catalog import FeatureCatalog
    from sae_steer_retriever.store.recorded_sae import opened_sae

    client, location = (None, arguments.sae or None) if arguments.store is None else open_store(arguments)
    sae, folder, _ = opened_sae(location, client=client, collection=arguments.collection)
    return OpenedCatalog(sae, folder, FeatureCatalog.load(folder, sae.fingerprint), client)


def require_same_sae(opened: OpenedCatalog, collection: str) -> None:
    """Refuses an SAE that is not the SAE of the sidecar of the documents collection, if there is a sidecar.

    Raises:
        MismatchError: The sidecar was made by another SAE.
        StoreError: The store does not answer.
    """
    if opened.client is None:
        return
    from sae_steer_retriever.store.connection import translated
    from sae_steer_retriever.store.sidecar import SidecarReader

    with translated("reading the sidecar"):
        SidecarReader.open(opened.client, collection, opened.sae)


def embedder_of(sae: TopKSAE) -> Embedder:
    """Returns the SAE's encoder.

    Raises:
        ArtifactError: The encoder cannot be loaded.
    """
    from sae_steer_retriever.encoders.embedders import as_embedder

    return as_embedder(sae.config.encoder.name)


def concept_of(sae: TopKSAE, text: str) -> Concept:
    """Returns a text's concept: its features by meaning.

    Raises:
        ArtifactError: The SAE's encoder cannot be loaded.
    """
    from sae_steer_retriever.features.text_reading import read_concept

    return read_concept(sae, embedder_of(sae).embed_queries([text])[0])


def concept_if_possible(sae: TopKSAE, text: str) -> Concept | None:
    """Returns a text's concept; None, with a warning, if the SAE's encoder cannot be loaded."""
    try:
        return concept_of(sae, text)
    except ArtifactError as error:
        logger.warning("only words are compared, not meanings: %s", error)
        return None
