"""A feature: one latent of an SAE with its label. A family: features that the same passages have."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

# A label with a lower AUROC against near misses is shown as unclear.
CLEAR_FROM = 0.7
# Who wrote a label: this, a person, or the name of a language model.
BY_KEYWORDS, BY_PERSON = "keywords", "person"


class LabelScore(NamedTuple):
    """How well a label detects its feature's passages on unseen text: AUROC, 0.5 is chance and 1.0 is perfect.

    Attributes:
        random: AUROC against random passages without the feature.
        hard: AUROC against near misses: passages of neighbouring features without the feature.
        random_interval: 95 % interval of `random`.
        hard_interval: 95 % interval of `hard`.
        passages: Number of passages with the feature that were scored.
    """

    random: float
    hard: float
    random_interval: tuple[float, float] = (0.0, 1.0)
    hard_interval: tuple[float, float] = (0.0, 1.0)
    passages: int = 0


@dataclasses.dataclass(frozen=True)
class Feature:
    """One latent with its label.

    Attributes:
        id: The latent's row in the dictionary.
        label: A few words, e.g. "employment, salary, wages"; empty if too few passages have the feature.
        keywords: The label's words and phrases, the most telling first.
        score: How well the label detects the feature's passages on unseen text; None where there were too few
            passages, or where a person wrote the label.
        frequency: Share of the corpus' passages in which the feature is active.
        unit: The activation that 1.0 in `steer=` stands for.
        examples: Ids of the passages in which the feature is strongest.
        label_by: Who wrote the label: "keywords", "person", or a language model's name.
        label_prompt: Hash of the prompt that a language model's label answers.
        family: Number of the feature's family, if it has one.

    Example:
        >>> feature = catalog.labelled[0]
        >>> feature.label == ", ".join(feature.keywords)
        True
        >>> 0 < feature.frequency <= 1
        True
    """

    id: int
    label: str
    keywords: tuple[str, ...]
    score: LabelScore | None
    frequency: float
    unit: float
    examples: tuple[str, ...]
    label_by: str = BY_KEYWORDS
    label_prompt: str | None = None
    family: int | None = None

    @property
    def label_score(self) -> float | None:
        """AUROC of the label against near misses; a vague label has a low one."""
        return None if self.score is None else self.score.hard

    @property
    def is_weak(self) -> bool:
        """Whether the label fails to tell the feature's passages from near misses."""
        return self.label_score is not None and self.label_score < CLEAR_FROM

    @property
    def name(self) -> str:
        """The label, marked as unclear where its score is low; the id where there is no label."""
        if not self.label:
            return f"#{self.id}"
        return f"unclear #{self.id} ({self.label})" if self.is_weak else self.label


class Family(NamedTuple):
    """A group of features that the same passages have, and that can be steered as one.

    Attributes:
        id: Its number in the catalog.
        name: The words that its members share, e.g. "hockey, playoffs, goalie".
        features: The members' ids, the most frequent first.

    Example:
        >>> all(len(family.features) > 1 for family in catalog.families)
        True
    """

    id: int
    name: str
    features: tuple[int, ...]
