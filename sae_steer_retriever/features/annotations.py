"""A person's own labels for features: kept beside the SAE, and carried to the features that match after retraining."""

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
from sae_steer_retriever.features.catalog_files import read_json
from sae_steer_retriever.features.feature import BY_PERSON, Feature
from sae_steer_retriever.features.names import feature_id, folded
from sae_steer_retriever.sae.atomic_files import write_files
from sae_steer_retriever.sae.bundled import names_folder
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.directions import unit_rows
from sae_steer_retriever.sae.files import resolve_folder
from sae_steer_retriever.sae.topk_sae import TopKSAE

logger = logging.getLogger(__name__)

ANNOTATIONS_FILE = "annotations.json"
_LONGEST_LABEL, _LONGEST_NOTE = 120, 2000
# Two directions are the same feature above this cosine, as in the count of features that recur between seeds.
_SAME_FROM = 0.7
_FORMAT_VERSION = 1
# Features nearest to a labelled one are kept with it: a match that is nearer to one of them is not taken.
_RIVALS = 8
_ARRAYS = ("direction", "rivals", "embedding")


@dataclasses.dataclass(frozen=True)
class Annotation:
    """A person's label of a feature.

    Attributes:
        feature: Its id; in `Annotations.unmatched` that of the SAE it was made for.
        label: A few words.
        note: Anything else worth keeping.
        direction: (d,) the feature's unit decoder direction when it was labelled; None where it was not known.
        rivals: (m, d) the directions of the features that were nearest to it.
        embedding: (d,) unit vector of the label; None where it was not embedded.
    """

    feature: int
    label: str
    note: str | None = None
    direction: Array | None = dataclasses.field(default=None, compare=False, repr=False)
    rivals: Array | None = dataclasses.field(default=None, compare=False, repr=False)
    embedding: Array | None = dataclasses.field(default=None, compare=False, repr=False)

    def of(self, feature: Feature) -> Feature:
        """The feature under this label; its generated keywords still find it."""
        own = tuple(dict.fromkeys(part.strip() for part in self.label.split(",") if part.strip()))
        known = {folded(word) for word in own}
        others = tuple(word for word in feature.keywords if folded(word) not in known)
        return dataclasses.replace(
            feature, label=self.label, keywords=own + others, score=None, label_by=BY_PERSON, label_prompt=None
        )

    def located(self, decoder: Array) -> Annotation:
        """The same with the directions by which another SAE's matching feature is found; `decoder` is (n, d)."""
        directions = unit_rows(decoder)
        cosines = directions @ directions[self.feature]
        cosines[self.feature] = -np.inf
        nearest = np.argsort(-cosines, kind="stable")[: min(_RIVALS, len(cosines) - 1)]
        return dataclasses.replace(self, direction=directions[self.feature], rivals=directions[nearest])


@dataclasses.dataclass(frozen=True)
class Annotations:
    """All labels that a person gave to the features of one SAE.

    Attributes:
        fingerprint: Of the SAE.
        names: By feature id.
        unmatched: Labels of an earlier SAE's features that match none of this one's: kept in the file, but not used.
    """

    fingerprint: str
    names: Mapping[int, Annotation] = dataclasses.field(default_factory=dict)
    unmatched: tuple[Annotation, ...] = ()

    def changed(self, feature: int, annotation: Annotation | None) -> Annotations:
        """The same with a new label of a feature; without its label for None."""
        names = {key: one for key, one in {**self.names, feature: annotation}.items() if one is not None}
        return dataclasses.replace(self, names=names)


def checked_label(label: str) -> str:
    """Returns a label as it is kept: one line, single spaces, composed accents (NFC).

    Raises:
        TypeError: It is not a string.
        ValueError: It is empty, too long, not printable, or reads as a feature's id or a family's.
    """
    if not isinstance(label, str):
        raise TypeError(f"a label is a text, got {type(label).__name__}.")
    # An accent typed as a separate character looks the same, so it must be the same label.
    clean = unicodedata.normalize("NFC", " ".join(label.split()))
    if not any(character.isalnum() for character in clean):
        raise ValueError(f"the label {quoted(label)} has no letter in it: give a few words, e.g. 'ice hockey'.")
    if len(clean) > _LONGEST_LABEL:
        problem = f"the label has {len(clean):,} characters, expected at most {_LONGEST_LABEL}"
        raise ValueError(f"{problem}: a few words; the rest can be its note.")
    if not clean.isprintable():
        raise ValueError(f"the label {clean!r} holds characters that cannot be shown: use printable ones.")
    if feature_id(clean) is not None:
        raise ValueError(f"the label {clean!r} reads as the id of a feature: steering by it would mean that feature.")
    if clean.casefold().startswith("family:"):
        raise ValueError(f"the label {clean!r} reads as a family: steering by it would mean that family.")
    return clean


def checked_note(note: str | None) -> str | None:
    """Returns a note as it is kept; None for an empty one.

    Raises:
        TypeError: It is not a string.
        ValueError: It is too long, or cannot be written as UTF-8.
    """
    if note is None:
        return None
    if not isinstance(note, str):
        raise TypeError(f"a note is a text, got {type(note).__name__}.")
    if len(note) > _LONGEST_NOTE:
        raise ValueError(f"the note has {len(note):,} characters, expected at most {_LONGEST_NOTE:,}.")
    try:
        note.encode()
    except UnicodeEncodeError as error:
        raise ValueError("the note holds half a surrogate pair, which UTF-8 cannot write.") from error
    return note.strip() or None


def carry(old_folder: str | Path, new_sae: TopKSAE) -> Annotations:
    """Returns the labels kept with an SAE, on the features of another SAE that match.

    A feature matches if the cosine of the two decoder directions is above 0.7 and each is the other's nearest.

    Args:
        old_folder: Folder of the SAE that the labels were made for; not changed.
        new_sae: The SAE that receives them; labels without a match are in `unmatched`.

    Raises:
        ArtifactError: The old folder has no labels, or they are damaged.
    """
    folder = resolve_folder(old_folder)
    found = read_annotations(folder)
    if found is None:
        raise ArtifactError(f"{folder} holds no {ANNOTATIONS_FILE}: no feature was named there.")
    return _carried(found, new_sae.fingerprint, new_sae.decoder, directions_of(folder, found.fingerprint))


def annotations_for(folder: Path, fingerprint: str) -> Annotations:
    """Returns the labels kept in an SAE's folder; labels of an earlier SAE are carried to the features that match.

    Raises:
        ArtifactError: The labels are damaged.
    """
    found = read_annotations(folder)
    if found is None:
        return Annotations(fingerprint)
    if found.fingerprint == fingerprint:
        return found
    decoder = directions_of(folder, fingerprint)
    carried = _carried(found, fingerprint, np.empty((0, 0), np.float32) if decoder is None else decoder, None)
    if carried.unmatched:
        lost, every = len(carried.unmatched), len(carried.unmatched) + len(carried.names)
        labels = ", ".join(repr(one.label) for one in carried.unmatched[:5]) + (", ..." if lost > 5 else "")
        logger.warning(
            "%d of %d labels by a person match no feature of this SAE: %s. %s keeps them.",
            lost, every, labels, ANNOTATIONS_FILE,
        )  # fmt: skip
    return carried


def directions_of(folder: Path, fingerprint: str) -> Array | None:
    """(n, d) decoder of the SAE in a folder; None if the folder holds another SAE, or none."""
    try:
        sae = TopKSAE.from_pretrained(folder)
    except ArtifactError:
        return None
    return sae.decoder if sae.fingerprint == fingerprint else None


def _carried(found: Annotations, fingerprint: str, decoder: Array, old_decoder: Array | None) -> Annotations:
    directions = unit_rows(decoder)
    old_directions = None if old_decoder is None else unit_rows(old_decoder)
    candidates: list[tuple[float, int, Annotation]] = []
    unmatched: list[Annotation] = []
    for one in (*found.names.values(), *found.unmatched):
        # The row in the old decoder is known for `names`, not for `unmatched`.
        old = old_directions if found.names.get(one.feature) is one else None
        match = _counterpart(one, directions, old)
        if match is None:
            unmatched.append(one)
        else:
            candidates.append((match[1], match[0], one))
    names: dict[int, Annotation] = {}
    for _, feature, one in sorted(candidates, key=lambda candidate: -candidate[0]):
        if feature in names:  # two old features became one: the nearer one's label stays
            unmatched.append(one)
        else:
            names[feature] = dataclasses.replace(one, feature=feature)
    return Annotations(fingerprint, names, tuple(unmatched))


def _counterpart(one: Annotation, directions: Array, old_directions: Array | None) -> tuple[int, float] | None:
    """The matching row and its cosine; None if there is none."""
    if one.direction is None or not len(directions) or directions.shape[1] != len(one.direction):
        return None
    cosines = directions @ one.direction
    row = int(np.argmax(cosines))
    best = float(cosines[row])
    rivals = one.rivals if old_directions is None else np.delete(old_directions, one.feature, axis=0)
    if best <= _SAME_FROM or (rivals is not None and len(rivals) and float((rivals @ directions[row]).max()) > best):
        return None
    return row, best


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
    """Returns the labels in `annotations.json`; None if no feature was labelled in this folder.

    Raises:
        ArtifactError: The file is damaged, or of another format.
    """
    path = names_folder(Path(folder)) / ANNOTATIONS_FILE

    def parsed(body: Any) -> Annotations:
        if body["format_version"] != _FORMAT_VERSION:
            raise ArtifactError(
                f"{path} has format version {quoted(body['format_version'])}, this version of the library reads "
                f"{_FORMAT_VERSION}: upgrade sae-steer-retriever, or move the file away to go without these labels."
            )
        names, unmatched = ([_annotation(row) for row in body[part]] for part in ("names", "unmatched"))
        return Annotations(str(body["fingerprint"]), {one.feature: one for one in names}, tuple(unmatched))

    if not path.is_file():
        return None
    return read_json(path, parsed, "holds no labels", "Mend the file, or move it away to go without them.")


def _rows(annotations: Iterable[Annotation]) -> list[dict[str, Any]]:
    return [
        {"feature": one.feature, "label": one.label, "note": one.note}
        | {name: _packed(getattr(one, name)) for name in _ARRAYS}
        for one in annotations
    ]


def _annotation(row: Mapping[str, Any]) -> Annotation:
    direction, rivals, embedding = (_unpacked(row[name]) for name in _ARRAYS)
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
