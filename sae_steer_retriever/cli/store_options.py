"""Where the store and the SAE of a command are, and where it writes to."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from sae_steer_retriever.cli.outcome import UsageError
from sae_steer_retriever.errors import nearest_names

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

DEFAULT_STORE = "./chroma"
DEFAULT_COLLECTION = "docs"
_DEFAULT_PORT = 8000
# What an embedded Chroma keeps in its folder.
_DATABASE = "chroma.sqlite3"


class StoreLocation(NamedTuple):
    """A folder of an embedded Chroma, or a Chroma server.

    Attributes:
        folder: The folder, or None for a server.
        host: The server's host, or None for a folder.
        port: The server's port.
    """

    folder: Path | None
    host: str | None = None
    port: int = _DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> StoreLocation:
        """Read "./folder" or "http://host:port".

        Raises:
            argparse.ArgumentTypeError: It is an address, but not of that form.
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
        """As it was given."""
        return f"http://{self.host}:{self.port}" if self.folder is None else str(self.folder)

    def connect(self, *, create: bool) -> ClientAPI:
        """A Chroma client.

        Args:
            create: Whether a folder that is no store yet becomes one.

        Raises:
            UsageError: The folder is no store, and must be one.
            StoreError: The server does not answer, or the folder cannot be used.
        """
        from sae_steer_retriever.store.connection import connect

        if self.folder is not None and not create and not (self.folder / _DATABASE).is_file():
            raise UsageError(
                f"no store in {self.folder}: make one with `sae-steer index`, or give the folder (or http://host:port) "
                "of the one you mean with --store."
            )
        return connect(path=self.folder, host=self.host, port=self.port)


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--store` and `--collection`."""
    parser.add_argument(
        "--store",
        type=StoreLocation.parse,
        default=StoreLocation.parse(DEFAULT_STORE),
        metavar="DIR|http://HOST:PORT",
        help=f"folder of an embedded Chroma, or a Chroma server (default: {DEFAULT_STORE})",
    )
    parser.add_argument(
        "--collection",
        default=DEFAULT_COLLECTION,
        metavar="NAME",
        help=f"name of the documents collection (default: {DEFAULT_COLLECTION})",
    )


def add_sae_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--sae`, for the commands that open a store."""
    parser.add_argument(
        "--sae",
        metavar="DIR|NAME",
        help="the SAE: a folder, a hub id, or the name of one that ships (default: the one that the collection was "
        "indexed with, else the bundled one for its encoder)",
    )


def require_collection(client: ClientAPI, location: StoreLocation, name: str) -> None:
    """Refuse a collection that is not there, before anything is made or loaded.

    Raises:
        UsageError: There is none of that name; those there are, are named.
    """
    from sae_steer_retriever.store.connection import translated
    from sae_steer_retriever.store.sidecar import SUFFIX

    with translated(f"reading {location}"):
        names = [collection.name for collection in client.list_collections()]
    if name in names:
        return
    others = sorted(other for other in names if not other.endswith(SUFFIX))
    shown = nearest_names(name, others) or others[:5]
    there = f"it has {', '.join(map(repr, shown))}" if shown else "it has none"
    raise UsageError(f"no collection {name!r} in {location}: {there}; --collection names one.")


def sae_of(given: str | None, client: ClientAPI, collection: str) -> str:
    """The SAE to use: the one given, else the one that the store was indexed with, else the bundled one.

    Args:
        given: `--sae`.
        client: The store.
        collection: Name of the documents collection.

    Returns:
        A folder or a hub id.

    Raises:
        UsageError: None was given, and the one that the store names is not there.
        ArtifactError: None was given, the store names none, and none ships for its encoder.
    """
    from sae_steer_retriever.store.recorded_sae import default_sae

    if given is not None:
        return given
    recorded = default_sae(client, collection)
    if Path(recorded).is_absolute() and not Path(recorded).is_dir():
        raise UsageError(
            f"collection {collection!r} was indexed with the SAE of {recorded}, which is gone: name its new folder "
            "with --sae."
        )
    return recorded


def make_folder(folder: Path, option: str) -> None:
    """See to it before anything is measured that there is a place to write what is found.

    Args:
        folder: Is made if it is not there.
        option: That names it, for the error: "--output".

    Raises:
        UsageError: It cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option}: cannot make the folder {folder}: {error.strerror or error}.") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{option}: the folder {folder} cannot be written to; choose another one.")
