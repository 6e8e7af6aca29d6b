"""Passages to write: checked before anything is written, cut into batches, compared with the stored ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Metadata = Mapping[str, Any]
_SCALARS = (str, int, float, bool)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Passages that are written together."""

    ids: list[str]
    texts: list[str]
    metadatas: list[dict[str, Any]]  # values that Chroma keeps; may be empty
    embedded_as: list[str] | None  # texts to embed instead of `texts`


@dataclasses.dataclass(frozen=True)
class Changes:
    """The changes that a batch makes, as positions in the batch."""

    new: list[int]  # not stored yet
    changed: list[int]  # to embed again
    relabelled: list[int]  # with changed metadata only
    metadatas: list[dict[str, Any] | None]  # to write at each position; None deletes a key


def batches(
    ids: Sequence[str],
    texts: Sequence[str],
    metadatas: Sequence[Metadata | None] | None,
    embedded_as: Sequence[str] | None,
    size: int,
) -> list[Batch]:
    """Returns the passages in batches, after all of them are checked.

    Raises:
        TypeError: One text is given instead of a sequence, or an id is not a text.
        ValueError: Lengths differ, an id occurs twice, a text is empty or cannot be stored, or Chroma does not keep the
            type of a metadata value.
    """
    rows = [None] * len(ids) if metadatas is None else metadatas
    if not len(ids) == len(texts) == len(rows):
        raise ValueError(f"{len(ids)} ids, {len(texts)} texts and {len(rows)} metadatas: expected as many of each.")
    if embedded_as is not None and len(embedded_as) != len(texts):
        raise ValueError(
            f"{len(texts)} texts and {len(embedded_as)} to embed in their place: expected as many of each."
        )
    check_ids(ids)
    if isinstance(texts, str):
        raise TypeError("texts is one text: expected a list of texts.")
    for name, text in zip(ids, texts, strict=True):
        if not text or not text.strip():
            raise ValueError(f"the text of passage {name!r} is empty: leave it out.")
        _check_text(text, f"the text of passage {name!r}")
    kept = [_storable(name, metadata) for name, metadata in zip(ids, rows, strict=True)]
    return [
        Batch(list(ids[own]), list(texts[own]), kept[own], None if embedded_as is None else list(embedded_as[own]))
        for own in (slice(start, start + size) for start in range(0, len(ids), size))
    ]


def check_ids(ids: Sequence[str]) -> None:
    """Refuses ids that Chroma would misunderstand.

    Raises:
        TypeError: `ids` is one text, or an id is not a text.
        ValueError: An id is empty or occurs twice.
    """
    if isinstance(ids, str):
        raise TypeError(f"ids is the text {ids!r}: expected a list of ids, such as [{ids!r}].")
    seen: set[str] = set()
    for name in ids:
        if not isinstance(name, str):
            raise TypeError(f"id {name!r} is a {type(name).__name__}: expected a text.")
        if not name:
            raise ValueError("an id is empty: expected at least one character.")
        if name in seen:
            raise ValueError(f"id {name!r} occurs twice: ids must be unique.")
        seen.add(name)
        _check_text(name, f"id {name!r}")


def changes(
    batch: Batch, documents: Mapping[str, str | None], metadatas: Mapping[str, Mapping[str, Any] | None]
) -> Changes:
    """Returns the changes that a batch makes to the stored texts and metadata, which are given by id."""
    found = Changes([], [], [], [])
    for position, name in enumerate(batch.ids):
        wanted = batch.metadatas[position]
        stored = dict(metadatas.get(name) or {})
        # An update merges metadata: a key that is to vanish must be named.
        found.metadatas.append({**dict.fromkeys(stored.keys() - wanted.keys()), **wanted} or None)
        if name not in documents:
            found.new.append(position)
        elif documents[name] != batch.texts[position] or (batch.embedded_as is not None and stored != wanted):
            found.changed.append(position)
        elif stored != wanted:
            found.relabelled.append(position)
    return found


def _storable(name: str, metadata: Metadata | None) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in (metadata or {}).items():
        if not isinstance(key, str):
            raise ValueError(f"metadata key {key!r} of passage {name!r} is no text.")
        if key.startswith("chroma:"):
            raise ValueError(f"metadata key {key!r} of passage {name!r}: names that begin with 'chroma:' are Chroma's.")
        plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        if plain is None or (isinstance(plain, float) and math.isnan(plain)):
            continue  # Chroma keeps no missing values: absent is the same
        what = f"metadata {key!r} of passage {name!r}"
        if isinstance(plain, list):
            if not plain or type(plain[0]) not in _SCALARS or any(type(item) is not type(plain[0]) for item in plain):
                raise ValueError(f"{what} is {plain!r}: Chroma keeps lists that are not empty and of one plain type.")
        elif not isinstance(plain, _SCALARS):
            raise ValueError(
                f"{what} is a {type(plain).__name__}: Chroma keeps text, numbers, booleans and lists of one of them. "
                "Leave it out, or flatten it."
            )
        for text in [key, *(plain if isinstance(plain, list) else [plain])]:
            if isinstance(text, str):
                _check_text(text, what)
        kept[key] = plain
    return kept


def _check_text(text: str, what: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} holds half of a surrogate pair at position {error.start}: clean it first.") from error
