"""Opens Chroma with telemetry off, and turns its errors into one clear line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sae_steer_retriever.errors import SAESteerError, StoreError

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

DATABASE = "chroma.sqlite3"
"""The database file in the folder of an embedded Chroma."""


def connect(
    *, path: str | Path | None = None, host: str | None = None, port: int = 8000, create: bool = True
) -> ClientAPI:
    """Returns a Chroma client with telemetry off.

    Args:
        path: Folder of an embedded Chroma; "./chroma" if no host is given either.
        host: A Chroma server's host.
        port: The server's port.
        create: Whether to create a store in a folder that has none.

    Raises:
        StoreError: The server does not answer, the folder cannot be used, or it has no store and `create` is False.

    Example:
        >>> client = connect(path="./empty")
        >>> client.list_collections()
        []
    """
    import chromadb
    from chromadb.config import Settings

    folder = str(path or "./chroma")
    if host is None and not create and not (Path(folder) / DATABASE).is_file():
        raise StoreError(f"there is no store in {folder}: index documents into it first (`sae-steer index`).")
    # A new object for every client: Chroma writes the host into the settings it is given.
    settings = Settings(anonymized_telemetry=False)
    where = f"Chroma server at {host}:{port}" if host is not None else f"folder {folder}"
    with translated(f"opening the {where}"):
        if host is not None:
            return chromadb.HttpClient(host=host, port=port, settings=settings)
        return chromadb.PersistentClient(path=folder, settings=settings)


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raises a `StoreError` of one clear line in place of the errors of Chroma and its transport.

    `doing` is the action, for the message ("searching").

    Raises:
        StoreError: Chroma or httpx has raised an error.
        SAESteerError: The block has raised it.
        ValueError: The block has raised it.
    """
    import httpx
    from chromadb.errors import ChromaError

    try:
        yield
    except SAESteerError:
        raise
    except ChromaError as error:
        if "Error finding id" in str(error):  # its vectors, which it keeps in memory, are not those on disk
            raise StoreError(
                f"Chroma failed while {doing}: another process has changed its folder, which an embedded Chroma does "
                "not notice. Start this program again, or run a Chroma server (`chroma run`) for several processes."
            ) from error
        raise StoreError(f"Chroma failed while {doing}: {error}") from error
    except httpx.HTTPError as error:
        raise StoreError(f"the Chroma server does not answer ({doing}: {error}); is it running?") from error
    except ValueError as error:
        if "connect to" in str(error):
            raise StoreError(f"{error} ({doing}) Start it with `chroma run`, or use a folder.") from error
        if "with different settings" in str(error):
            raise StoreError(f"{error} ({doing}): this process has a client of it already; pass that one.") from error
        raise
