"""The options for a store, its collection, its SAE, and an output folder."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from sae_steer_retriever.cli.runner import UsageError
from sae_steer_retriever.errors import nearest_names
from sae_steer_retriever.store.connection import DATABASE, connect, translated

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

    from sae_steer_retriever.retriever import SteeredRetriever

DEFAULT_STORE = "./chroma"
DEFAULT_COLLECTION = "docs"
_DEFAULT_PORT = 8000


class StoreLocation(NamedTuple):
    """A folder of an embedded Chroma, or a Chroma server."""

    folder: Path | None  # the folder, or None for a server
    host: str | None = None  # the server's host, or None for a folder
    port: int = _DEFAULT_PORT  # the server's port

    @classmethod
    def parse(cls, text: str) -> StoreLocation:
        """Returns the location "./folder" or "http://host:port".

        Raises:
            argparse.ArgumentTypeError: The text is another kind of address.
        """
        if "://" not in text:
            return cls(Path(text).expanduser())
        try:
            address = urlsplit(text)
            port = address.port or _DEFAULT_PORT
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}; expected http://host:port") from error
        if address.scheme != "http" or not address.hostname or address.path not in ("", "/") or address.query:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a folder or http://host:port")
        return cls(None, address.hostname, port)

    def __str__(self) -> str:
        """The location as it was given."""
        return f"http://{self.host}:{self.port}" if self.folder is None else str(self.folder)

    def connect(self, *, create: bool) -> ClientAPI:
        """Returns a Chroma client; with `create` also for a folder that has no store yet.

        Raises:
            UsageError: The folder has no store, and `create` is False.
            StoreError: The server does not answer, or the folder cannot be used.
        """
        if self.folder is not None and not create and not (self.folder / DATABASE).is_file():
            raise UsageError(
                f"no store in {self.folder}: create one with `sae-steer index`, or give another folder or "
                "http://host:port with --store."
            )
        return connect(path=self.folder, host=self.host, port=self.port)


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--store` and `--collection`."""
    parser.add_argument(
        "--store",
        type=StoreLocation.parse,
        default=StoreLocation.parse(DEFAULT_STORE),
        metavar="DIR|http://HOST:PORT",
        help=f"folder of an embedded Chroma, or a Chroma server (default: {DEFAULT_STORE})",
    )
    what = f"name of the documents collection (default: {DEFAULT_COLLECTION})"
    parser.add_argument("--collection", default=DEFAULT_COLLECTION, metavar="NAME", help=what)


def add_sae_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--sae`, for the commands that open a store."""
    parser.add_argument(
        "--sae",
        metavar="DIR|NAME",
        help="the SAE: a folder, a hub id, or the name of a bundled SAE (default: the SAE that the collection was "
        "indexed with, else the bundled SAE for its encoder)",
    )


def require_collection(client: ClientAPI, location: StoreLocation, name: str) -> None:
    """Refuses a missing collection before anything is created or loaded.

    Raises:
        UsageError: There is no such collection; the message names the existing ones.
    """
    from sae_steer_retriever.store.sidecar import SUFFIX

    with translated(f"reading {location}"):
        names = [collection.name for collection in client.list_collections()]
    if name in names:
        return
    others = sorted(other for other in names if not other.endswith(SUFFIX))
    shown = nearest_names(name, others) or others[:5]
    there = f"it has {', '.join(map(repr, shown))}" if shown else "it has none"
    raise UsageError(f"no collection {name!r} in {location}: {there}; choose one with --collection.")


def open_retriever(arguments: argparse.Namespace) -> SteeredRetriever:
    """Returns a retriever over the store that the options name, steered by `--policy`.

    Raises:
        UsageError: The store, the collection, the SAE or the policy does not exist.
        SAESteerError: The SAE does not fit the store, the policy is damaged, or the store does not answer.
    """
    policy = arguments.policy
    if policy is not None and not Path(policy).is_file():
        raise UsageError(f"--policy {policy!r}: no such file; `sae-steer search --save-policy FILE` writes one.")
    from sae_steer_retriever.retriever import SteeredRetriever
    from sae_steer_retriever.steering.policy import Steering

    steering = None if policy is None else Steering.load(policy)
    client, sae = open_store(arguments)
    return SteeredRetriever.open(sae, client=client, collection=arguments.collection, create=False, steering=steering)


def open_store(arguments: argparse.Namespace) -> tuple[ClientAPI, str]:
    """Returns a client of the existing store that the options name, and the location of its SAE.

    Raises:
        UsageError: The store or the collection does not exist, or the recorded SAE is gone.
        SAESteerError: The store does not answer, or no SAE is given, recorded or bundled.
    """
    client = arguments.store.connect(create=False)
    require_collection(client, arguments.store, arguments.collection)
    return client, sae_of(arguments.sae, client, arguments.collection)


def sae_of(given: str | None, client: ClientAPI, collection: str) -> str:
    """Returns the location of the SAE: the given one, else the recorded one, else the bundled one.

    Raises:
        UsageError: No SAE was given, and the recorded folder is gone.
        ArtifactError: No SAE was given or recorded, and none is bundled for the encoder.
    """
    from sae_steer_retriever.store.recorded_sae import default_sae

    if given is not None:
        return given
    recorded = default_sae(client, collection)
    if Path(recorded).is_absolute() and not Path(recorded).is_dir():
        raise UsageError(
            f"collection {collection!r} was indexed with the SAE in {recorded}, which is gone: give its new folder "
            "with --sae."
        )
    return recorded


def require_path(option: str, path: Path | None) -> None:
    """Refuses a missing file or folder that an option such as "--corpus" names.

    Raises:
        UsageError: There is no such file or folder.
    """
    if path is not None and not path.exists():
        raise UsageError(f"{option}: no such file or folder: {path}")


def make_folder(folder: Path, option: str) -> None:
    """Creates the output folder that an option such as "--output" names, before the work starts.

    Raises:
        UsageError: The folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option}: cannot make the folder {folder}: {error.strerror or error}.") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{option}: the folder {folder} cannot be written to; choose another one.")
