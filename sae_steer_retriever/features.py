"""The catalog: every latent with its label, and the way from a name to the latents it means."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.artifact import write_files
from sae_steer_retriever.calibration import CALIBRATION_FILE, Calibration, load_calibration, save_calibration
from sae_steer_retriever.errors import AmbiguousFeatureError, ArtifactError, UnknownFeatureError, nearest_names
from sae_steer_retriever.feature_names import feature_id, stem
from sae_steer_retriever.sae import Array, Codes, resolve_folder
from sae_steer_retriever.steering import Resolution

FEATURES_FILE = "features.json"
_FORMAT_VERSION = 1
# A label that cannot tell its own passages from hard negatives better than this is shown as unclear.
CLEAR_FROM = 0.7
# Cosines between short texts and labels under all-MiniLM-L6-v2: related words lie above, unrelated ones below.
_MEANT_FROM = 0.35
_CERTAIN_FROM = 0.6
_RELATED_FROM = 0.2
# A name steers at most this many features, none weaker than this share of the strongest.
_FAMILY_SIZE = 5
_FAMILY_WEIGHT = 0.2


@dataclasses.dataclass(frozen=True)
class Feature:
    """One latent, as a person sees it.

    Attributes:
        id: The latent's row in the dictionary.
        label: A few words, e.g. "employment, salary, wages"; empty if it fires too rarely to be labelled.
        keywords: The label's words and phrases, the most telling first.
        label_score: How well the label detects the feature's passages on text that was not used to make it: AUROC
            against hard negatives, None where there were too few passages.
        frequency: Share of the corpus' passages in which it is active.
        unit: The activation that 1.0 in `steer=` stands for.
        examples: Ids of passages in which it is strongest.
    """

    id: int
    label: str
    keywords: tuple[str, ...]
    label_score: float | None
    frequency: float
    unit: float
    examples: tuple[str, ...]

    @property
    def name(self) -> str:
        """What to show: the label, marked where it is not to be trusted, or the id."""
        if not self.label:
            return f"#{self.id}"
        if self.label_score is not None and self.label_score < CLEAR_FROM:
            return f"unclear #{self.id} ({self.label})"
        return self.label


class Concept(NamedTuple):
    """A name read as text.

    Attributes:
        embedding: (d,) unit vector.
        codes: (1, K) its codes.
    """

    embedding: Array
    codes: Codes[NDArray[Any]]


class FeatureCatalog:
    """All features of one SAE, with their calibration."""

    def __init__(
        self,
        features: Sequence[Feature],
        calibration: Calibration,
        fingerprint: str,
        label_embeddings: Array | None = None,
    ) -> None:
        """Take the parts.

        Args:
            features: One per latent, in order of their ids.
            calibration: Their statistics.
            fingerprint: Of the SAE.
            label_embeddings: (n, d) unit vectors of the labels, zero rows where there is none.
        """
        self.features = tuple(features)
        self.calibration = calibration
        self.fingerprint = fingerprint
        self.label_embeddings = label_embeddings
        self._by_label: dict[str, list[int]] = {}
        self._by_keyword: dict[str, list[int]] = {}
        # How a keyword is written, by its stem: suggestions are words, not stems.
        self._written: dict[str, str] = {}
        for feature in self.features:
            if feature.label:
                self._by_label.setdefault(feature.label.casefold(), []).append(feature.id)
            for key, keyword in {stem(keyword): keyword for keyword in reversed(feature.keywords)}.items():
                self._by_keyword.setdefault(key, []).append(feature.id)
                self._written.setdefault(key, keyword)

    def __len__(self) -> int:
        """Number of latents, n."""
        return len(self.features)

    def __getitem__(self, latent: int) -> Feature:
        """The feature with this id."""
        if not 0 <= latent < len(self.features):
            raise UnknownFeatureError(f"unknown feature #{latent}: this SAE has features #0 to #{len(self) - 1}.")
        return self.features[latent]

    def __repr__(self) -> str:
        """One line: how many features there are, how many are named."""
        return f"FeatureCatalog({len(self)} features, {len(self.labelled)} labelled)"

    def name(self, latent: int) -> str:
        """The display name of a latent."""
        return self[latent].name

    @property
    def labelled(self) -> tuple[Feature, ...]:
        """The features that have a label."""
        return tuple(feature for feature in self.features if feature.label)

    def search(self, text: str, *, concept: Concept | None = None, limit: int = 10) -> list[Feature]:
        """Features that answer to a text: by their words first, then by meaning.

        Args:
            text: Words to look for.
            concept: The same text, embedded; without it only words are compared.
            limit: How many features at most.
        """
        words = {stem(word) for word in text.casefold().split()} | {stem(text)}
        scores = np.zeros(len(self))
        for feature in self.labelled:
            for rank, keyword in enumerate(feature.keywords):
                hits = words & ({stem(keyword)} | {stem(word) for word in keyword.split()})
                scores[feature.id] += len(hits) / (1.0 + rank)
        if concept is not None and self.label_embeddings is not None:
            meaning = self.label_embeddings @ concept.embedding
            scores += np.where(meaning >= _MEANT_FROM, meaning, 0.0)
        order = np.argsort(-scores, kind="stable")[:limit]
        return [self.features[latent] for latent in order if scores[latent] > 0]

    def resolve(self, name: str | int, concept: Callable[[str], Concept] | None = None) -> Resolution:
        """The features a name means.

        In order: an id (`84340`, `"#84340"`), a display name or whole label, a keyword, free text by its meaning.
        A keyword or text may mean a family of features: those that its own embedding activates and whose labels
        agree with it, weighted by that activation.

        Args:
            name: As the user wrote it.
            concept: Embeds and encodes a text; without it only ids, labels and keywords are known.

        Raises:
            UnknownFeatureError: No live feature answers to the name; the nearest names are listed.
            AmbiguousFeatureError: Several unrelated features do; they are listed.
        """
        latent = feature_id(name)
        if latent is not None:
            if self.calibration.count[self[latent].id] == 0:
                raise UnknownFeatureError(f"feature #{latent} is dead: it is active in no passage of the corpus.")
            return Resolution((latent,), (1.0,), "id")
        text = str(name).strip()
        alike = self._by_label.get(text.casefold())
        if alike is not None:
            return Resolution(tuple(alike[:_FAMILY_SIZE]), (1.0,) * len(alike[:_FAMILY_SIZE]), "label")
        matches = self._by_keyword.get(stem(text), [])
        if concept is None:
            return self._resolve_by_words(text, matches)
        return self._resolve_by_meaning(text, matches, concept(text))

    def _resolve_by_words(self, text: str, matches: list[int]) -> Resolution:
        if not matches:
            raise self._unknown(text, None)
        self._refuse_unrelated(text, matches)
        ranks = {latent: self._rank_of(text, latent) for latent in matches}
        family = sorted(matches, key=lambda latent: ranks[latent])[:_FAMILY_SIZE]
        first = 1.0 + ranks[family[0]]
        return Resolution(tuple(family), tuple(first / (1.0 + ranks[latent]) for latent in family), "keyword")

    def _resolve_by_meaning(self, text: str, matches: list[int], concept: Concept) -> Resolution:
        activations = {
            int(latent): float(value)
            for latent, value in zip(concept.codes.indices[0], concept.codes.values[0], strict=True)
            if value > 0 and self.calibration.count[latent] > 0
        }
        agreeing = set(matches) | self._meant(text, activations, concept)
        family = sorted((latent for latent in activations if latent in agreeing), key=lambda a: -activations[a])
        family = family[:_FAMILY_SIZE]
        if not family:
            if matches:
                return self._resolve_by_words(text, matches)
            raise self._unknown(text, concept)
        strongest = activations[family[0]]
        family = [latent for latent in family if activations[latent] >= _FAMILY_WEIGHT * strongest]
        rivals = [latent for latent in family if activations[latent] >= 0.8 * strongest]
        self._refuse_unrelated(text, rivals)
        weights = tuple(activations[latent] / strongest for latent in family)
        return Resolution(tuple(family), weights, "keyword" if family[0] in matches else "meaning")

    def _meant(self, text: str, activations: dict[int, float], concept: Concept) -> set[int]:
        """The activated features whose labels are near the text, none if it looks like a misspelt keyword."""
        if self.label_embeddings is None:
            return set()
        near = {latent: float(self.label_embeddings[latent] @ concept.embedding) for latent in activations}
        misspelt = stem(text) not in self._by_keyword and bool(self._spelt_like(text, 1))
        threshold = _CERTAIN_FROM if misspelt else _MEANT_FROM
        if max(near.values(), default=0.0) < threshold:
            return set()
        return {latent for latent, cosine in near.items() if cosine >= _MEANT_FROM}

    def _refuse_unrelated(self, text: str, rivals: Sequence[int]) -> None:
        if self.label_embeddings is None or len(rivals) < 2:
            return
        first, *others = rivals
        unrelated = [
            other for other in others if self.label_embeddings[first] @ self.label_embeddings[other] < _RELATED_FROM
        ]
        if unrelated:
            options = "; ".join(f"#{latent} {self.name(latent)}" for latent in [first, *unrelated][:5])
            raise AmbiguousFeatureError(
                f"{text!r} is ambiguous, it fits unrelated features: {options}. Name one by its id or its whole label."
            )

    def _unknown(self, text: str, concept: Concept | None) -> UnknownFeatureError:
        spelt = self._spelt_like(text, 3)
        nearest = [f"#{feature.id} {feature.name}" for feature in self.search(text, concept=concept, limit=3)]
        if concept is not None and self.label_embeddings is not None and not nearest:
            order = np.argsort(-(self.label_embeddings @ concept.embedding))[:3]
            nearest = [f"#{latent} {self.name(int(latent))}" for latent in order]
        message = f"unknown feature {text!r}."
        if spelt:
            message += f" Did you mean {', '.join(repr(name) for name in spelt)}?"
        if nearest:
            message += f" Nearest features: {'; '.join(nearest)}."
        return UnknownFeatureError(f"{message} {len(self.labelled)} features have names: see `sae-steer features`.")

    def _spelt_like(self, text: str, limit: int) -> list[str]:
        return [self._written[key] for key in nearest_names(stem(text), self._by_keyword, limit)]

    def _rank_of(self, text: str, latent: int) -> int:
        stems = [stem(keyword) for keyword in self.features[latent].keywords]
        return stems.index(stem(text))

    def save(self, folder: str | Path) -> None:
        """Write `features.json` and `calibration.safetensors` into the SAE's folder, atomically."""
        rows = [dataclasses.asdict(feature) for feature in self.features]
        calibration = save_calibration(self.calibration, self.label_embeddings)
        body = {
            "format_version": _FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "calibration": _digest(calibration),
            "features": rows,
        }
        files = {
            FEATURES_FILE: json.dumps(body, ensure_ascii=False, indent=1).encode(),
            CALIBRATION_FILE: calibration,
        }
        write_files(Path(folder), files)

    @classmethod
    def load(cls, folder: str | Path, fingerprint: str) -> FeatureCatalog:
        """Read the catalog of a saved SAE.

        Args:
            folder: The SAE's folder, or its hub id.
            fingerprint: Of the SAE that was loaded from it.

        Raises:
            ArtifactError: A file is missing, damaged, or belongs to another SAE.
        """
        path = resolve_folder(folder) / FEATURES_FILE
        if not path.is_file():
            raise ArtifactError(f"{path.parent} holds no {FEATURES_FILE}: train again, or copy the whole SAE folder.")
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if body["format_version"] != _FORMAT_VERSION:
                raise ArtifactError(f"{path} has format version {body['format_version']}, expected {_FORMAT_VERSION}.")
            found, written_with = str(body["fingerprint"]), str(body["calibration"])
            features = [
                Feature(**{**row, "keywords": tuple(row["keywords"]), "examples": tuple(row["examples"])})
                for row in body["features"]
            ]
            if [feature.id for feature in features] != list(range(len(features))):
                raise ValueError("its features are not numbered from 0 without gaps")
        except ArtifactError:
            raise
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ArtifactError(f"{path} is not a feature catalog of this library ({error!r}).") from error
        if found != fingerprint:
            raise ArtifactError(f"{path} names the features of SAE {found}, the weights are of {fingerprint}.")
        calibration_path = path.parent / CALIBRATION_FILE
        calibration, label_embeddings = load_calibration(calibration_path, len(features))
        if _digest(calibration_path.read_bytes()) != written_with:
            raise ArtifactError(
                f"{path.parent}: {CALIBRATION_FILE} is not the one that {FEATURES_FILE} was written with: "
                "copy the whole SAE folder, or train again."
            )
        return cls(features, calibration, fingerprint, label_embeddings)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
