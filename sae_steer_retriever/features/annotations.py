"""A person's own names for features: kept beside the SAE, and carried to the features that match after retraining."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_steer_retriever.errors import ArtifactError, quoted
from sae_steer_retriever.features.feature import BY_PERSON, Feature
from sae_steer_retriever.features.names import feature_id, folded
from sae_steer_retriever.sae.atomic_files import write_files
from sae_steer_retriever.sae.bundled import names_folder
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.files import resolve_folder
from sae_steer_retriever.sae.topk_sae import TopKSAE

logger = logging.getLogger(__name__)

ANNOTATIONS_FILE = "annotations.json"
LONGEST_LABEL, LONGEST_NOTE = 120, 2000
# Two directions are one feature from this cosine on, as recurrence between seeds is counted.
SAME_FROM = 0.7
_FORMAT_VERSION = 1
# Features nearest to a named one are kept with it: what it turned into is no name's if it is theirs.
_RIVALS = 8


@dataclasses.dataclass(frozen=True)
class Annotation:
    """A feature's name by a person.

    Attributes:
        feature: Its id; in `Annotations.unmatched` that of the SAE it was made for.
        label: The name.
        note: Anything else worth keeping.
        direction: (d,) the feature's unit decoder direction when it was named; None where it was not known.
        rivals: (m, d) those of the features that were nearest to it.
        embedding: (d,) unit vector of the label; None where it was not embedded.
    """

    feature: int
    label: str
    note: str | None = None
    direction: Array | None = dataclasses.field(default=None, compare=False, repr=False)
    rivals: Array | None = dataclasses.field(default=None, compare=False, repr=False)
    embedding: Array | None = dataclasses.field(default=None, compare=False, repr=False)

    def of(self, feature: Feature) -> Feature:
        """The feature under this name; words that it was found by before still find it."""
        own = tuple(dict.fromkeys(part.strip() for part in self.label.split(",") if part.strip()))
        known = {folded(word) for word in own}
        others = tuple(word for word in feature.keywords if folded(word) not in known)
        return dataclasses.replace(
            feature, label=self.label, keywords=own + others, score=None, label_by=BY_PERSON, label_prompt=None
        )

    def located(self, decoder: Array) -> Annotation:
        """The same, with the directions by which it is found in another dictionary.

        Args:
            decoder: (n, d) of the SAE that it was made for.
        """
        directions = _unit(decoder)
        cosines = directions @ directions[self.feature]
        cosines[self.feature] = -np.inf
        nearest = np.argsort(-cosines, kind="stable")[: min(_RIVALS, len(cosines) - 1)]
        return dataclasses.replace(self, direction=directions[self.feature], rivals=directions[nearest])


@dataclasses.dataclass(frozen=True)
class Annotations:
    """All names that a person gave to the features of one SAE.

    Attributes:
        fingerprint: Of the SAE.
        names: By feature id.
        unmatched: Names of an earlier SAE's features that this one has no counterpart of: kept, but they name nothing.
    """

    fingerprint: str
    names: Mapping[int, Annotation] = dataclasses.field(default_factory=dict)
    unmatched: tuple[Annotation, ...] = ()

    def with_name(self, annotation: Annotation) -> Annotations:
        """The same and one more; a name that the feature had is replaced."""
        return dataclasses.replace(self, names={**self.names, annotation.feature: annotation})

    def without(self, feature: int) -> Annotations:
        """The same less one feature's name."""
        return dataclasses.replace(self, names={key: one for key, one in self.names.items() if key != feature})


def checked_label(label: str) -> str:
    """A label as it is kept: one line, spaces once, accents composed (NFC).

    Raises:
        TypeError: It is no text.
        ValueError: It is empty, too long, not printable, or reads as a feature's id or a family's.
    """
    if not isinstance(label, str):
        raise TypeError(f"a label is a text, got {type(label).__name__}.")
    # An accent typed as a character of its own looks the same: it must be the same name.
    clean = unicodedata.normalize("NFC", " ".join(label.split()))
    if not any(character.isalnum() for character in clean):
        raise ValueError(f"the label {quoted(label)} has no letter in it: give a few words, e.g. 'ice hockey'.")
    if len(clean) > LONGEST_LABEL:
        raise ValueError(
            f"the label has {len(clean):,} characters, expected at most {LONGEST_LABEL}: a few words; the rest can be "
            "its note."
        )
    if not clean.isprintable():
        raise ValueError(f"the label {clean!r} holds characters that cannot be shown.")
    if feature_id(clean) is not None:
        raise ValueError(f"the label {clean!r} reads as the id of a feature: steering by it would mean that feature.")
    if clean.casefold().startswith("family:"):
        raise ValueError(f"the label {clean!r} reads as a family: steering by it would mean that family.")
    return clean


def checked_note(note: str | None) -> str | None:
    """A note as it is kept; None for an empty one.

    Raises:
        TypeError: It is no text.
        ValueError: It is too long, or no text that can be written.
    """
    if note is None:
        return None
    if not isinstance(note, str):
        raise TypeError(f"a note is a text, got {type(note).__name__}.")
    if len(note) > LONGEST_NOTE:
        raise ValueError(f"the note has {len(note):,} characters, expected at most {LONGEST_NOTE:,}.")
    try:
        note.encode()
    except UnicodeEncodeError as error:
        raise ValueError("the note holds half a surrogate pair, which is no text.") from error
    return note.strip() or None


def carry(old_folder: str | Path, new_sae: TopKSAE) -> Annotations:
    """The names kept with an SAE, on the features of another SAE that match.

    A feature matches if the cosine of the two decoder directions is above .7 and each is the other's nearest.

    Args:
        old_folder: Folder of the SAE that the names were made for; not changed.
        new_sae: The SAE that is to have them.

    Returns:
        What `write_annotations` keeps with the new SAE; names without a match are in `unmatched`.

    Raises:
        ArtifactError: The old folder has no names, or they are damaged.
    """
    folder = resolve_folder(old_folder)
    found = read_annotations(folder)
    if found is None:
        raise ArtifactError(f"{folder} holds no {ANNOTATIONS_FILE}: no feature was named there.")
    decoder = directions_of(folder, found.fingerprint)
    return _carried(found, new_sae.fingerprint, new_sae.decoder, decoder)


def annotations_for(folder: Path, fingerprint: str) -> Annotations:
    """The names kept in an SAE's folder; where they were made before it was retrained, on the features that match.

    Args:
        folder: The SAE's folder; not changed.
        fingerprint: Of the SAE in it.

    Raises:
        ArtifactError: The names are damaged.
    """
    found = read_annotations(folder)
    if found is None:
        return Annotations(fingerprint)
    if found.fingerprint == fingerprint:
        return found
    decoder = directions_of(folder, fingerprint)
    carried = _carried(found, fingerprint, np.empty((0, 0), np.float32) if decoder is None else decoder, None)
    if carried.unmatched:
        lost = ", ".join(repr(one.label) for one in carried.unmatched[:5])
        logger.warning(
            "%d of %d names given by a person have no counterpart among this SAE's features: %s%s. %s keeps them.",
            len(carried.unmatched),
            len(carried.unmatched) + len(carried.names),
            lost,
            ", ..." if len(carried.unmatched) > 5 else "",
            ANNOTATIONS_FILE,
        )
    return carried


def directions_of(folder: Path, fingerprint: str) -> Array | None:
    """(n, d) decoder of the SAE in a folder; None if it is another SAE, or none."""
    try:
        sae = TopKSAE.from_pretrained(folder)
    except ArtifactError:
        return None
    return sae.decoder if sae.fingerprint == fingerprint else None


def _carried(found: Annotations, fingerprint: str, decoder: Array, old_decoder: Array | None) -> Annotations:
    """Move each name to its counterpart among the rows of `decoder`."""
    directions = _unit(decoder)
    old_directions = None if old_decoder is None else _unit(old_decoder)
    candidates: list[tuple[float, int, Annotation]] = []
    unmatched: list[Annotation] = []
    for one in (*found.names.values(), *found.unmatched):
        # Only of `names` is it known which row of the old decoder they are.
        old = old_directions if found.names.get(one.feature) is one else None
        match = _counterpart(one, directions, old)
        if match is None:
            unmatched.append(one)
        else:
            candidates.append((match[1], match[0], one))
    names: dict[int, Annotation] = {}
    for _, feature, one in sorted(candidates, key=lambda candidate: -candidate[0]):
        if feature in names:  # two old features became one: the nearer keeps its name
            unmatched.append(one)
        else:
            names[feature] = dataclasses.replace(one, feature=feature)
    return Annotations(fingerprint, names, tuple(unmatched))


def _counterpart(one: Annotation, directions: Array, old_directions: Array | None) -> tuple[int, float] | None:
    """The row that matches, with its cosine; None if there is none."""
    if one.direction is None or not len(directions) or directions.shape[1] != len(one.direction):
        return None
    cosines = directions @ one.direction
    row = int(np.argmax(cosines))
    best = float(cosines[row])
    rivals = one.rivals
    if old_directions is not None:
        rivals = np.delete(old_directions, one.feature, axis=0)
    if best <= SAME_FROM or (rivals is not None and len(rivals) and float((rivals @ directions[row]).max()) > best):
        return None
    return row, best


def _unit(rows: Array) -> Array:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)


# -- the file ---------------------------------------------------------------------------------------------------------


def write_annotations(folder: str | Path, annotations: Annotations) -> None:
    """Write `annotations.json` into an SAE's folder, atomically.

    Raises:
        ArtifactError: The folder cannot be written to.
    """
    body = {
        "format_version": _FORMAT_VERSION,
        "fingerprint": annotations.fingerprint,
        "names": _rows(annotations.names[feature] for feature in sorted(annotations.names)),
        "unmatched": _rows(annotations.unmatched),
    }
    write_files(names_folder(Path(folder)), {ANNOTATIONS_FILE: json.dumps(body, ensure_ascii=False, indent=1).encode()})


def read_annotations(folder: str | Path) -> Annotations | None:
    """Read `annotations.json`; None if no feature was named in this folder.

    Raises:
        ArtifactError: The file is damaged, or of another format.
    """
    path = names_folder(Path(folder)) / ANNOTATIONS_FILE
    if not path.is_file():
        return None
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        version = body["format_version"]
        if version == _FORMAT_VERSION:
            names = [_annotation(row) for row in body["names"]]
            unmatched = tuple(_annotation(row) for row in body["unmatched"])
            return Annotations(str(body["fingerprint"]), {one.feature: one for one in names}, unmatched)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ArtifactError(
            f"{path} holds no names of this library ({error!r}): mend it, or move it away to go without them."
        ) from error
    raise ArtifactError(
        f"{path} has format version {quoted(version)}, this version of the library reads {_FORMAT_VERSION}: upgrade "
        "sae-steer-retriever, or move the file away to go without these names."
    )


def _rows(annotations: Iterable[Annotation]) -> list[dict[str, Any]]:
    return [
        {
            "feature": one.feature,
            "label": one.label,
            "note": one.note,
            "direction": _packed(one.direction),
            "rivals": _packed(one.rivals),
            "embedding": _packed(one.embedding),
        }
        for one in annotations
    ]


def _annotation(row: Mapping[str, Any]) -> Annotation:
    direction, rivals, embedding = (_unpacked(row[name]) for name in ("direction", "rivals", "embedding"))
    if direction is not None and rivals is not None:
        rivals = rivals.reshape(-1, len(direction))
    feature = row["feature"]
    if type(feature) is not int or feature < 0:
        raise ValueError(f"{quoted(feature)} is no feature's id")
    return Annotation(feature, checked_label(row["label"]), checked_note(row["note"]), direction, rivals, embedding)


def _packed(array: Array | None) -> str | None:
    return None if array is None else base64.b64encode(array.astype("<f2").tobytes()).decode()


def _unpacked(text: str | None) -> Array | None:
    if text is None:
        return None
    array = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f2").astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError("a direction holds numbers that are not finite")
    return array


__all__ = [
    "ANNOTATIONS_FILE",
    "Annotation",
    "Annotations",
    "annotations_for",
    "carry",
    "checked_label",
    "checked_note",
    "directions_of",
    "read_annotations",
    "write_annotations",
]
