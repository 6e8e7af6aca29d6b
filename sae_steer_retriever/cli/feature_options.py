"""What the options of `sae-steer features` name: an SAE with its catalog, and the store where one is given."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sae_steer_retriever.cli.outcome import UsageError
from sae_steer_retriever.cli.runner import add_common_arguments, count
from sae_steer_retriever.cli.store_options import DEFAULT_COLLECTION, StoreLocation, require_collection, sae_of
from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.sae.bundled import require_bundled

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

    from sae_steer_retriever.encoders.embedders import Embedder
    from sae_steer_retriever.features.catalog import FeatureCatalog
    from sae_steer_retriever.features.text_reading import Concept
    from sae_steer_retriever.sae.topk_sae import TopKSAE

logger = logging.getLogger(__name__)

DEFAULT_LIMIT = 20


def add_options(parser: argparse.ArgumentParser, *, nested: bool) -> None:
    """Add the options, which may stand before or after the word for what to do.

    Args:
        parser: Gets them.
        nested: Whether the parser around this one has them too.
    """

    def default(value: object) -> Any:  # noqa: ANN401 - argparse takes any default
        return argparse.SUPPRESS if nested else value

    parser.add_argument(
        "--sae",
        default=default(None),
        metavar="DIR|NAME",
        help="the SAE: a folder, a hub id, or the name of one that ships (default: the store's, else what ships)",
    )
    parser.add_argument(
        "--store",
        type=StoreLocation.parse,
        default=default(None),
        metavar="DIR|http://HOST:PORT",
        help="a store: its SAE is used where --sae is not given, and `show` shows its passages",
    )
    parser.add_argument(
        "--collection",
        default=default(DEFAULT_COLLECTION),
        metavar="NAME",
        help=f"the store's documents collection (default: {DEFAULT_COLLECTION})",
    )
    parser.add_argument(
        "--limit",
        type=count,
        default=default(None),
        metavar="N",
        help=f"features to list at most (default: {DEFAULT_LIMIT}; 5 a side for contrast)",
    )
    add_common_arguments(parser, nested=nested)


def required_text(words: Sequence[str], question: str) -> str:
    """The words of an argument as one text.

    Args:
        words: As they were typed.
        question: That an empty text leaves open, for the error.

    Raises:
        UsageError: There is nothing but spaces.
    """
    text = " ".join(words).strip()
    if not text:
        raise UsageError(f"{question} The text is empty: give a word, a label or an id.")
    return text


class OpenedCatalog(NamedTuple):
    """An SAE, its catalog, and the store if there is one.

    Attributes:
        sae: The SAE.
        folder: Where it is.
        catalog: Its features.
        client: The store.
    """

    sae: TopKSAE
    folder: Path
    catalog: FeatureCatalog
    client: ClientAPI | None


def open_catalog(arguments: argparse.Namespace) -> OpenedCatalog:
    """Load what the options name.

    Raises:
        UsageError: What is named is not there.
        SAESteerError: The SAE is damaged, none is named and none ships, or the store does not answer.
    """
    from sae_steer_retriever.features.catalog import FeatureCatalog
    from sae_steer_retriever.sae.files import resolve_folder
    from sae_steer_retriever.sae.topk_sae import TopKSAE

    client = None
    location = arguments.sae if arguments.sae or arguments.store else str(require_bundled())
    if arguments.store is not None:
        client = arguments.store.connect(create=False)
        require_collection(client, arguments.store, arguments.collection)
        location = sae_of(arguments.sae, client, arguments.collection)
    folder = resolve_folder(location)
    sae = TopKSAE.from_pretrained(folder)
    return OpenedCatalog(sae, folder, FeatureCatalog.load(folder, sae.fingerprint), client)


def require_same_sae(opened: OpenedCatalog, collection: str) -> None:
    """Refuse `--sae` beside the `--store` of another: its features are not those of the store's passages.

    Args:
        opened: The SAE, and the store if there is one.
        collection: Name of the documents collection; one without a sidecar is any SAE's.

    Raises:
        MismatchError: So it is.
        StoreError: The store does not answer.
    """
    if opened.client is None:
        return
    from sae_steer_retriever.store.connection import translated
    from sae_steer_retriever.store.sidecar import SUFFIX, require_ours

    with translated("reading the sidecar"):
        names = {found.name: found for found in opened.client.list_collections()}
    if collection + SUFFIX in names:
        require_ours(names[collection + SUFFIX], opened.sae)


def embedder_of(sae: TopKSAE) -> Embedder:
    """The SAE's encoder.

    Raises:
        ArtifactError: It cannot be had.
    """
    from sae_steer_retriever.encoders.embedders import as_embedder

    return as_embedder(sae.config.encoder.name)


def concept_of(sae: TopKSAE, text: str) -> Concept:
    """The text as the SAE reads it.

    Raises:
        ArtifactError: The SAE's encoder cannot be had.
    """
    from sae_steer_retriever.features.text_reading import read_concept

    embedding = embedder_of(sae).embed_queries([text])
    return read_concept(sae, embedding[0])


def concept_if_possible(sae: TopKSAE, text: str) -> Concept | None:
    """The same; None where the encoder cannot be had, so that words alone are compared."""
    try:
        return concept_of(sae, text)
    except ArtifactError as error:
        logger.warning("only words are compared, not meanings: %s", error)
        return None
