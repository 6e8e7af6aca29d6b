"""The catalog: every latent with its label, and the way from a name to the latents it means."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sae_steer_retriever.errors import AmbiguousFeatureError, UnknownFeatureError, nearest_names, quoted
from sae_steer_retriever.features.annotations import (
    Annotation,
    Annotations,
    annotations_for,
    checked_label,
    checked_note,
    directions_of,
    write_annotations,
)
from sae_steer_retriever.features.calibration import Calibration
from sae_steer_retriever.features.catalog_files import read_catalog, write_catalog
from sae_steer_retriever.features.evidence import FeatureEvidence, read_evidence, write_evidence
from sae_steer_retriever.features.family import Family
from sae_steer_retriever.features.feature import Feature
from sae_steer_retriever.features.feature_card import FeaturePage, NamedNeighbour
from sae_steer_retriever.features.name_resolver import NameResolver
from sae_steer_retriever.features.names import feature_id, folded
from sae_steer_retriever.features.search import FeatureSearch
from sae_steer_retriever.features.text_reading import Concept
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.files import resolve_folder
from sae_steer_retriever.steering.policy import Resolution

_NEIGHBOURS = 5


class FeatureCatalog:
    """All features of one SAE, with their calibration.

    Attributes:
        features: One per latent, in order of their ids, under the names that a person gave where there are any.
        calibration: Their statistics.
        fingerprint: Of the SAE.
        label_embeddings: (n, d) unit vectors of the labels, zero rows where there is none; None if there are none.
        families: Groups of features that passages have together.
        annotations: The names that a person gave.
        revision: How often a name was changed since the catalog was made: what was looked up before may be outdated.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        calibration: Calibration,
        fingerprint: str,
        label_embeddings: Array | None = None,
        families: Sequence[Family] = (),
        evidence: Mapping[int, FeatureEvidence] | None = None,
    ) -> None:
        """Take the parts.

        Args:
            features: One per latent, in order of their ids.
            calibration: Their statistics.
            fingerprint: Of the SAE.
            label_embeddings: (n, d) unit vectors of the labels, zero rows where there is none.
            families: Groups of features.
            evidence: By feature id.
        """
        self.calibration = calibration
        self.fingerprint = fingerprint
        self.families = tuple(families)
        self.revision = 0
        self._generated = tuple(features)
        self._generated_embeddings = label_embeddings
        self._evidence = evidence
        self._folder: Path | None = None
        self._name(Annotations(fingerprint))

    def _name(self, annotations: Annotations) -> None:
        """Put a person's names over the generated ones."""
        self.annotations = annotations
        names = {feature: one for feature, one in annotations.names.items() if feature < len(self._generated)}
        embeddings = self._generated_embeddings
        embedded = {feature: one.embedding for feature, one in names.items() if one.embedding is not None}
        if embeddings is not None and embedded:
            embeddings = embeddings.copy()
            for feature, embedding in embedded.items():
                if len(embedding) == embeddings.shape[1]:
                    embeddings[feature] = embedding
        self.label_embeddings = embeddings
        self.features = tuple(
            names[feature.id].of(feature) if feature.id in names else feature for feature in self._generated
        )
        self._resolver: NameResolver | None = None
        self._search: FeatureSearch | None = None

    def __len__(self) -> int:
        """Number of latents, n."""
        return len(self.features)

    def __getitem__(self, latent: int) -> Feature:
        """The feature with this id."""
        if not isinstance(latent, int | np.integer):
            raise TypeError(f"a feature's id is a whole number, got {type(latent).__name__}; `resolve` takes names.")
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
    def generated(self) -> tuple[Feature, ...]:
        """The features under the names that were generated for them: what `features` is without a person's names."""
        return self._generated

    @property
    def labelled(self) -> tuple[Feature, ...]:
        """The features that have a label."""
        return tuple(feature for feature in self.features if feature.label)

    # -- looking things up --------------------------------------------------------------------------------------------

    def search(
        self,
        text: str,
        *,
        concept: Concept | None = None,
        limit: int = 10,
        include_hubs: bool = False,
        include_dead: bool = False,
    ) -> list[Feature]:
        """Features that answer to a text, by their words, by meaning and by what the text itself activates.

        Args:
            text: Words to look for.
            concept: The same text, embedded; without it only words are compared.
            limit: How many features at most.
            include_hubs: Also features that more than a tenth of the passages have.
            include_dead: Also features that no passage has.
        """
        # Indexed when first asked: indexing takes longer than reading the files.
        self._search = self._search or FeatureSearch(self)
        return self._search.find(
            text, concept=concept, limit=limit, include_hubs=include_hubs, include_dead=include_dead
        )

    def resolve(self, name: str | int, concept: Callable[[str], Concept] | None = None) -> Resolution:
        """The features a name means; see `NameResolver.resolve`.

        Args:
            name: As the user wrote it.
            concept: Embeds and encodes a text; without it only ids, labels and keywords are known.

        Raises:
            UnknownFeatureError: No live feature answers to the name; the nearest names are listed.
            AmbiguousFeatureError: Several unrelated features do; they are listed.
        """
        self._resolver = self._resolver or NameResolver(self)
        return self._resolver.resolve(name, concept)

    def evidence(self, feature: int) -> FeatureEvidence | None:
        """What a feature's name rests on; None if the catalog was made without. Read when it is first asked for.

        Raises:
            UnknownFeatureError: There is no such feature.
            ArtifactError: The evidence is damaged, or of another SAE.
        """
        return self._all_evidence().get(self[feature].id)

    def _all_evidence(self) -> Mapping[int, FeatureEvidence]:
        if self._evidence is None:
            self._evidence = {} if self._folder is None else read_evidence(self._folder, self.fingerprint)
        return self._evidence

    def show(self, feature: int | str, *, directions: Array | None = None) -> FeaturePage:
        """All that is known of a feature, to be printed or shown in a notebook.

        Args:
            feature: Its id, also a dead one's, or a name that means one feature.
            directions: (n, d) the SAE's decoder: gives the neighbours where there is no evidence.

        Raises:
            TypeError: `feature` is neither a number nor a text.
            UnknownFeatureError: There is no such feature.
            AmbiguousFeatureError: The name means several.
        """
        found = self[self._one(feature)]
        evidence = self.evidence(found.id)
        return FeaturePage(
            feature=found,
            count=int(self.calibration.count[found.id]),
            rows=self.calibration.rows,
            maximum=float(self.calibration.maximum[found.id]),
            evidence=evidence,
            neighbours=self._neighbours(found.id, evidence, directions),
            family=self._family_of(found),
            note=self.annotations.names[found.id].note if found.id in self.annotations.names else None,
            generated=self._generated[found.id].label,
        )

    def _one(self, feature: int | str) -> int:
        latent = feature_id(feature)
        if latent is not None:
            return latent
        features = self.resolve(feature).features
        if len(features) > 1:
            options = "; ".join(f"#{latent} {self.name(latent)}" for latent in features)
            raise AmbiguousFeatureError(
                f"{quoted(feature)} means {len(features)} features: {options}. Show one by its id."
            )
        return features[0]

    def _neighbours(
        self, feature: int, evidence: FeatureEvidence | None, directions: Array | None
    ) -> tuple[NamedNeighbour, ...]:
        if evidence is not None and evidence.neighbours:
            return tuple(NamedNeighbour(self[other], cosine) for other, cosine in evidence.neighbours)
        if directions is None:
            return ()
        cosines = directions @ directions[feature]
        others = sorted(
            (other for other in self.labelled if other.id != feature), key=lambda other: (-cosines[other.id], other.id)
        )
        return tuple(NamedNeighbour(other, float(cosines[other.id])) for other in others[:_NEIGHBOURS])

    # -- families -----------------------------------------------------------------------------------------------------

    def family(self, name: str | int) -> Family:
        """A family by its name or number.

        Raises:
            TypeError: `name` is neither a number nor a text.
            UnknownFeatureError: There is none; the nearest names are listed.
        """
        number, key = feature_id(name), folded(str(name))
        for family in self.families:
            if family.id == number or key == folded(family.name):
                return family
        if not self.families:
            raise UnknownFeatureError(f"unknown family {quoted(name)}: this catalog was made without families.")
        names = {folded(family.name): family.name for family in self.families}
        near = [names[spelt] for spelt in nearest_names(key, names, 3)]
        words = set(key.replace(",", " ").split())
        near += [
            family.name
            for family in self.families
            if family.name not in near and words & set(folded(family.name).replace(",", " ").split())
        ][:3]
        hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
        raise UnknownFeatureError(
            f"unknown family {quoted(name)}.{hint} There are {len(self.families)}: see `sae-steer features families`."
        )

    def _family_of(self, feature: Feature) -> Family | None:
        return next((family for family in self.families if feature.id in family.features), None)

    # -- a person's names ---------------------------------------------------------------------------------------------

    def annotate(self, feature: int, label: str, note: str | None = None, *, embedding: Array | None = None) -> Feature:
        """Name a feature oneself. The name wins over the generated one, is kept with the SAE, and survives retraining.

        A catalog that was loaded from a folder keeps the name there at once, any other where it is saved. Two features
        of one label are steered together.

        Args:
            feature: Its id.
            label: A few words, at most 120 characters.
            note: Anything else worth keeping.
            embedding: (d,) unit vector of the label, by which it is found by meaning; that of the generated label is
                used if not given.

        Returns:
            The feature under its new name.

        Raises:
            UnknownFeatureError: There is no such feature.
            ValueError: The label is empty, too long, or reads as an id, or the embedding is of another width.
            ArtifactError: The SAE's folder cannot be written to; nothing is changed then.
        """
        latent = self[feature].id
        given = None if embedding is None else np.asarray(embedding, dtype=np.float32)
        width = None if self._generated_embeddings is None else self._generated_embeddings.shape[1:]
        if given is not None and (given.shape != (width or given.shape[:1]) or not np.isfinite(given).all()):
            raise ValueError(f"embedding has shape {given.shape}, expected {width or '(d,)'}, finite.")
        return self._change(latent, Annotation(latent, checked_label(label), checked_note(note), embedding=given))

    def remove_annotation(self, feature: int) -> Feature:
        """Take a person's name back: the feature has its generated name again.

        Raises:
            UnknownFeatureError: There is no such feature, or nobody named it.
            ArtifactError: The SAE's folder cannot be written to; nothing is changed then.
        """
        latent = self[feature].id
        if latent not in self.annotations.names:
            raise UnknownFeatureError(f"feature #{latent} has no name given by a person.")
        return self._change(latent, None)

    def _change(self, latent: int, annotation: Annotation | None) -> Feature:
        # Read again: somebody else may have named another feature since.
        current = self.annotations if self._folder is None else annotations_for(self._folder, self.fingerprint)
        if annotation is not None and self._folder is not None:
            decoder = directions_of(self._folder, self.fingerprint)
            annotation = annotation if decoder is None else annotation.located(decoder)
        changed = current.without(latent) if annotation is None else current.with_name(annotation)
        if self._folder is not None:
            write_annotations(self._folder, changed)
        self._name(changed)
        self.revision += 1
        return self[latent]

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the catalog's files into the SAE's folder, each atomically.

        A person's names go to `annotations.json`; those already kept in the folder stay.
        """
        target = Path(folder)
        families, embeddings = self.families, self._generated_embeddings
        write_catalog(target, self._generated, self.calibration, self.fingerprint, embeddings, families)
        if self._folder is None or self._folder.resolve() != target.resolve():
            evidence = self._all_evidence()
            if evidence:
                write_evidence(target, evidence, self.fingerprint)
        if self.annotations.names or self.annotations.unmatched:
            kept = annotations_for(target, self.fingerprint)
            decoder = directions_of(target, self.fingerprint)
            for one in self.annotations.names.values():
                kept = kept.with_name(one if one.direction is not None or decoder is None else one.located(decoder))
            others = [one for one in self.annotations.unmatched if one not in kept.unmatched]
            write_annotations(target, dataclasses.replace(kept, unmatched=(*kept.unmatched, *others)))

    @classmethod
    def load(cls, folder: str | Path, fingerprint: str) -> FeatureCatalog:
        """Read the catalog of a saved SAE, with the names that a person gave.

        Args:
            folder: The SAE's folder, or its hub id.
            fingerprint: Of the SAE that was loaded from it.

        Raises:
            ArtifactError: A file is missing, damaged, or belongs to another SAE.
        """
        path = resolve_folder(folder)
        catalog = cls(*read_catalog(path, fingerprint))
        catalog._folder = path
        catalog._name(annotations_for(path, fingerprint))
        return catalog


__all__ = ["Concept", "Feature", "FeatureCatalog"]
