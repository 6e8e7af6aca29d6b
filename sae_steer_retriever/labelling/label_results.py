"""What came of asking a language model for labels: those it wrote, and why others stayed as they were."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from sae_steer_retriever.features.feature import Feature
from sae_steer_retriever.labelling.label_filters import Reason
from sae_steer_retriever.sae.codes import Array


class LabelFailure(NamedTuple):
    """Why a feature keeps the label it has.

    Attributes:
        reason: One of a few: that the model took too long, failed, was given up, or what was wrong with its reply.
        detail: More, for a person. May hold what the model said.
    """

    reason: Reason | Literal["timeout", "error", "not asked"]
    detail: str


@dataclasses.dataclass(frozen=True)
class LabellingResult:
    """Labels that a model wrote, and those it did not.

    Attributes:
        model: Its name, also each feature's `label_by`.
        features: The features under their new labels and scores, by id.
        embeddings: (d,) unit vectors of the new labels, by id.
        prompts: Hash of the prompt that each new label answers, by id.
        failures: The features that keep the label they had, by id.
        calls: How many prompts the model was given; the others had a reply before.
    """

    model: str
    features: Mapping[int, Feature]
    embeddings: Mapping[int, Array] = dataclasses.field(repr=False)
    prompts: Mapping[int, str] = dataclasses.field(repr=False)
    failures: Mapping[int, LabelFailure]
    calls: int

    def reasons(self) -> dict[str, int]:
        """How many features keep their label for which reason, the most frequent first."""
        return dict(Counter(failure.reason for failure in self.failures.values()).most_common())

    def applied(self, features: Sequence[Feature], embeddings: Array | None) -> tuple[list[Feature], Array | None]:
        """All features, and all labels' embeddings, with the new ones among them.

        Args:
            features: One per latent, in order of their ids.
            embeddings: (n, d) of their labels, zero rows where there is none.
        """
        changed = [self.features.get(feature.id, feature) for feature in features]
        if not self.embeddings:
            return changed, embeddings
        width = len(next(iter(self.embeddings.values())))
        rows = np.zeros((len(features), width), dtype=np.float32) if embeddings is None else embeddings.copy()
        for feature, row in self.embeddings.items():
            rows[feature] = row
        return changed, rows

    def summary(self) -> str:
        """Some lines for a person."""
        scores = [feature.score for feature in self.features.values() if feature.score is not None]
        lines = [f"{len(self.features)} features labelled by {self.model}, {self.calls} prompts asked"]
        if scores:
            random, hard = (float(np.median([score[place] for score in scores])) for place in (0, 1))
            lines.append(f"median label score {random:.2f} against random passages, {hard:.2f} against near misses")
        if self.failures:
            counts = ", ".join(f"{count} {reason}" for reason, count in self.reasons().items())
            kept = f"{len(self.failures)} keep the labels they had" if len(self.failures) > 1 else "1 keeps its label"
            lines.append(f"{kept}: {counts}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """All of it but the embeddings."""
        return {
            "model": self.model,
            "calls": self.calls,
            "labelled": [
                {
                    "id": feature.id,
                    "label": feature.label,
                    "score": None if feature.score is None else feature.score._asdict(),
                    "prompt": self.prompts[feature.id],
                }
                for feature in self.features.values()
            ],
            "kept": [{"id": feature, **failure._asdict()} for feature, failure in self.failures.items()],
            "reasons": self.reasons(),
        }
