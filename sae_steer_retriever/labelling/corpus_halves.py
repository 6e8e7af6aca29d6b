"""The two halves of a corpus: labels are made of one, and scored on the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sae_steer_retriever.encoders.vector_rows import VectorRows, Vectors
from sae_steer_retriever.features.feature import LabelScore
from sae_steer_retriever.labelling.gather_evidence import (
    describe_features,
    frequent_features,
    gather_evidence,
    nearest_features,
    read_label_latents,
    strengths,
)
from sae_steer_retriever.labelling.keyword_labels import split_halves
from sae_steer_retriever.labelling.label_scores import score_label
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE


class LabelHalves:
    """Passages to make labels of, and others to score them on: the halves of `labels.label_features`.

    Attributes:
        texts: The passages that labels may be made of, by id. None of them is scored on.
        evidence: By feature id, of these passages alone.
    """

    def __init__(
        self, sae: TopKSAE, ids: Sequence[str], texts: Sequence[str], vectors: Vectors, *, seed: int = 0
    ) -> None:
        """Read the passages' names, and split them.

        Args:
            sae: The dictionary.
            ids: Passage ids.
            texts: The passages.
            vectors: (N, d) their unit embeddings.
            seed: Of the split; that of the SAE's training gives the halves that its keyword labels were made with.
        """
        self._seed = seed
        rows = vectors if isinstance(vectors, VectorRows) else VectorRows(vectors)
        names = strengths(sae, rows, read_label_latents(sae, rows))
        halves = split_halves(len(texts), seed)
        neighbours = nearest_features(sae, frequent_features(names, sae.config.n))
        made_of, unseen = (
            gather_evidence(Codes(names.indices[half], names.values[half]), neighbours) for half in halves
        )
        self._unseen, self._tested = unseen, rows.select(halves.unseen)
        label_ids = [ids[row] for row in halves.made_of]
        self.texts = {ids[row]: texts[row] for row in halves.made_of}
        self.evidence = describe_features(sae, made_of, label_ids, rows.select(halves.made_of))

    def score(self, feature: int, label: Array) -> LabelScore | None:
        """How well a label detects a feature's passages in the other half, as `labels.label_features` scores its own.

        Args:
            feature: Latent id.
            label: (d,) unit vector of the label.
        """
        generator = np.random.default_rng([self._seed, feature])
        return score_label(feature, label, self._tested, self._unseen, generator)
