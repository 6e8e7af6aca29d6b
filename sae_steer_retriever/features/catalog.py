"""The feature catalog: every latent with its label, and the lookups from a name or a text to features."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sae_steer_retriever.errors import AmbiguousFeatureError, UnknownFeatureError, quoted
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
from sae_steer_retriever.features.feature import Family, Feature
from sae_steer_retriever.features.feature_card import FeaturePage, NamedNeighbour
from sae_steer_retriever.features.name_resolver import NameResolver, Resolution, find_family, find_feature
from sae_steer_retriever.features.names import feature_id
from sae_steer_retriever.features.search import FeatureSearch
from sae_steer_retriever.features.text_reading import Concept
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.files import resolve_folder

_NEIGHBOURS = 5


class FeatureCatalog:
    """All features of one SAE.

    Attributes:
        features: One per latent, in order of their ids; a person's label replaces the generated one.
        generated: The same under their generated labels.
        calibration: Statistics of their activations.
        fingerprint: Of the SAE.
        label_embeddings: (n, d) unit vectors of the labels, zero rows where there is none; None if there are none.
        families: Groups of features that the same passages have.
        annotations: The labels that a person gave.
        revision: Counts the changes of labels since the catalog was made; caches of lookups compare it.

    Example:
        >>> len(catalog) == sae.config.n
        True
        >>> catalog[12].id
        12
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
        """Make a catalog in memory of the parts that the class documents; `evidence` is by feature id."""
        self.calibration, self.fingerprint, self.families = calibration, fingerprint, tuple(families)
        self.revision = 0
        self.generated = tuple(features)
        self._generated_embeddings = label_embeddings
        self._evidence = evidence
        self._folder: Path | None = None
        self._apply(Annotations(fingerprint))

    def _apply(self, annotations: Annotations) -> None:
        """Put a person's labels over the generated ones."""
        self.annotations = annotations
        names = {feature: one for feature, one in annotations.names.items() if feature < len(self.generated)}
        self.label_embeddings = self._generated_embeddings
        embedded = {feature: one.embedding for feature, one in names.items() if one.embedding is not None}
        if self.label_embeddings is not None and embedded:
            self.label_embeddings = self.label_embeddings.copy()
            for feature, embedding in embedded.items():
                if len(embedding) == self.label_embeddings.shape[1]:
                    self.label_embeddings[feature] = embedding
        self.features = tuple(names[one.id].of(one) if one.id in names else one for one in self.generated)
        self._resolver: NameResolver | None = None
        self._search: FeatureSearch | None = None

    def __len__(self) -> int:
        """Number of latents, n."""
        return len(self.features)

    def __getitem__(self, latent: int) -> Feature:
        """The feature with this id."""
        return find_feature(self.features, latent)

    def __repr__(self) -> str:
        """One line with the numbers of features and labels."""
        return f"FeatureCatalog({len(self)} features, {len(self.labelled)} labelled)"

    def name(self, latent: int) -> str:
        """The display name of a latent."""
        return self[latent].name

    @property
    def labelled(self) -> tuple[Feature, ...]:
        """The features that have a label."""
        return tuple(feature for feature in self.features if feature.label)

    def search(
        self,
        text: str,
        *,
        concept: Concept | None = None,
        limit: int = 10,
        include_hubs: bool = False,
        include_dead: bool = False,
    ) -> list[Feature]:
        """Returns the features that match a text, best first.

        A feature matches by its keywords; with `concept` also by the meaning of its label and by its direction.

        Args:
            text: Words to look for.
            concept: The same text as the SAE reads it (`read_concept`).
            limit: The most features to return.
            include_hubs: Also return hubs: features that more than a tenth of the passages have.
            include_dead: Also return features that no passage has.

        Raises:
            TypeError: `text` is not a string.
            ValueError: `limit` is below 0.

        Example:
            >>> word = catalog.labelled[0].keywords[0]
            >>> found = catalog.search(word, include_hubs=True)
            >>> word in found[0].label
            True
        """
        # Indexed at the first search: indexing takes longer than reading the files.
        self._search = self._search or FeatureSearch(self.features, self.calibration, self.label_embeddings)
        return self._search.find(text, concept, limit, include_hubs, include_dead)

    def resolve(self, name: str | int, concept: Callable[[str], Concept] | None = None) -> Resolution:
        """Returns the features that a name means.

        The name is looked up, in order, as an id (`84340`, `"#84340"`), a label, a family (its name, or
        `"family:12"`), and by its meaning. By meaning, a feature is relevant if the text is near its label and its
        direction; features rank by relevance plus label score. A text may mean up to five features, with weights that
        fall as the square of relevance. A feature with a weak label is found by its id and its whole label only.

        Args:
            name: As the user wrote it.
            concept: Embeds and encodes a text; without it names are looked up by id, label, family and keyword.

        Raises:
            UnknownFeatureError: No live feature has the name, or only one with a weak label has; the nearest names
                are listed.
            AmbiguousFeatureError: Several unrelated features have it; they are listed.

        Example:
            >>> feature = catalog.labelled[0]
            >>> feature.id in catalog.resolve(feature.label).features
            True
        """
        if self._resolver is None:
            self._resolver = NameResolver(
                self.features,
                self.calibration.count,
                self.families,
                self.label_embeddings,
                lambda text, concept: self.search(text, concept=concept, limit=3),
            )
        return self._resolver.resolve(name, concept)

    def evidence(self, feature: int) -> FeatureEvidence | None:
        """Returns a feature's passages and words; None if the catalog has none. The file is read at the first call.

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
        """Returns a page with all that is known of a feature: print it, or show it in a notebook.

        Args:
            feature: Its id, also a dead one's, or a name that means one feature.
            directions: (n, d) the SAE's decoder: gives the neighbours where there is no evidence.

        Raises:
            TypeError: `feature` is neither a number nor a text.
            UnknownFeatureError: There is no such feature.
            AmbiguousFeatureError: The name means several features.

        Example:
            >>> print(catalog.show(catalog.labelled[0].id))
            #...
            keywords ...
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
            family=next((family for family in self.families if found.id in family.features), None),
            note=self.annotations.names[found.id].note if found.id in self.annotations.names else None,
            generated=self.generated[found.id].label,
        )

    def _one(self, feature: int | str) -> int:
        latent = feature_id(feature)
        if latent is not None:
            return latent
        features = self.resolve(feature).features
        if len(features) > 1:
            options = "; ".join(f"#{latent} {self.name(latent)}" for latent in features)
            problem = f"{quoted(feature)} means {len(features)} features: {options}"
            raise AmbiguousFeatureError(f"{problem}. Show one by its id.")
        return features[0]

    def _neighbours(
        self, feature: int, evidence: FeatureEvidence | None, directions: Array | None
    ) -> tuple[NamedNeighbour, ...]:
        if evidence is not None and evidence.neighbours:
            return tuple(NamedNeighbour(self[other], cosine) for other, cosine in evidence.neighbours)
        if directions is None:
            return ()
        cosines = directions @ directions[feature]
        others = [other for other in self.labelled if other.id != feature]
        others.sort(key=lambda other: (-cosines[other.id], other.id))
        return tuple(NamedNeighbour(other, float(cosines[other.id])) for other in others[:_NEIGHBOURS])

    def family(self, name: str | int) -> Family:
        """Returns the family with a name or number; see `find_family` for the errors.

        Example:
            >>> [catalog.family(family.id).name == family.name for family in catalog.families[:1]]
            [True]
        """
        return find_family(self.families, name)

    def annotate(self, feature: int, label: str, note: str | None = None, *, embedding: Array | None = None) -> Feature:
        """Returns the feature under a label of your own, which replaces the generated one and survives retraining.

        A catalog loaded from a folder writes the label there at once; any other catalog writes it when it is saved.
        Two features with one label are steered together.

        Args:
            feature: Its id.
            label: A few words, at most 120 characters.
            note: Anything else worth keeping.
            embedding: (d,) unit vector of the label, by which it is found by meaning; that of the generated label is
                used if not given.

        Raises:
            UnknownFeatureError: There is no such feature.
            ValueError: The label is empty, too long, or reads as an id, or the embedding is of another width.
            ArtifactError: The SAE's folder cannot be written to; nothing is changed then.

        Example:
            >>> catalog.annotate(3, "file handles", note="checked by hand").name
            'file handles'
            >>> catalog.remove_annotation(3).label_by
            'keywords'
        """
        latent = self[feature].id
        given = None if embedding is None else np.asarray(embedding, dtype=np.float32)
        width = None if self._generated_embeddings is None else self._generated_embeddings.shape[1:]
        if given is not None and (given.shape != (width or given.shape[:1]) or not np.isfinite(given).all()):
            raise ValueError(f"embedding has shape {given.shape}, expected {width or '(d,)'}, finite.")
        return self._change(latent, Annotation(latent, checked_label(label), checked_note(note), embedding=given))

    def remove_annotation(self, feature: int) -> Feature:
        """Returns the feature under its generated label; the person's label is removed.

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
        changed = current.changed(latent, annotation)
        if self._folder is not None:
            write_annotations(self._folder, changed)
        self._apply(changed)
        self.revision += 1
        return self[latent]

    def save(self, folder: str | Path) -> None:
        """Write the catalog's files into the SAE's folder, each atomically.

        A person's labels go to `annotations.json`; those that the folder has already stay.
        """
        target = Path(folder)
        families, embeddings = self.families, self._generated_embeddings
        write_catalog(target, self.generated, self.calibration, self.fingerprint, embeddings, families)
        if self._folder is None or self._folder.resolve() != target.resolve():
            evidence = self._all_evidence()
            if evidence:
                write_evidence(target, evidence, self.fingerprint)
        if self.annotations.names or self.annotations.unmatched:
            kept = annotations_for(target, self.fingerprint)
            decoder = directions_of(target, self.fingerprint)
            for one in self.annotations.names.values():
                located = one if one.direction is not None or decoder is None else one.located(decoder)
                kept = kept.changed(one.feature, located)
            others = [one for one in self.annotations.unmatched if one not in kept.unmatched]
            write_annotations(target, dataclasses.replace(kept, unmatched=(*kept.unmatched, *others)))

    @classmethod
    def load(cls, folder: str | Path, fingerprint: str) -> FeatureCatalog:
        """Returns the catalog of a saved SAE, with the labels that a person gave.

        Args:
            folder: The SAE's folder, or its hub id.
            fingerprint: Of the SAE that was loaded from it.

        Raises:
            ArtifactError: A file is missing, damaged, or belongs to another SAE.

        Example:
            >>> catalog.save("sae")
            >>> FeatureCatalog.load("sae", sae.fingerprint).labelled == catalog.labelled
            True
        """
        path = resolve_folder(folder)
        catalog = cls(*read_catalog(path, fingerprint))
        catalog._folder = path
        catalog._apply(annotations_for(path, fingerprint))
        return catalog
