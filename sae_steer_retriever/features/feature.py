"""One latent as a person sees it: its label, and how far that can be trusted."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

# A label that cannot tell its own passages from hard negatives better than this is shown as unclear.
CLEAR_FROM = 0.7
# Who wrote a label: this, a person, or the name of a language model.
BY_KEYWORDS, BY_PERSON = "keywords", "person"


class LabelScore(NamedTuple):
    """Label detection AUROC of one feature on unseen passages: 0.5 says nothing, 1.0 tells every passage apart.

    Attributes:
        random: Against random passages without the feature.
        hard: Against passages of neighbouring features without it.
        random_interval: 95 % interval of `random`.
        hard_interval: 95 % interval of `hard`.
        passages: How many passages with the feature it was measured on.
    """

    random: float
    hard: float
    random_interval: tuple[float, float] = (0.0, 1.0)
    hard_interval: tuple[float, float] = (0.0, 1.0)
    passages: int = 0


@dataclasses.dataclass(frozen=True)
class Feature:
    """One latent, as a person sees it.

    Attributes:
        id: The latent's row in the dictionary.
        label: A few words, e.g. "employment, salary, wages"; empty if it fires too rarely to be labelled.
        keywords: The label's words and phrases, the most telling first.
        score: How well the label detects the feature's passages on text that was not used to make it; None where
            there were too few passages, or where a person wrote the label.
        frequency: Share of the corpus' passages in which it is active.
        unit: The activation that 1.0 in `steer=` stands for.
        examples: Ids of passages in which it is strongest.
        label_by: Who wrote the label: "keywords", "person", or a language model's name.
        label_prompt: Hash of the prompt that a language model's label answers.
        family: Which of the catalog's families it belongs to, if any.
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
        """AUROC of the label against hard negatives, the figure that tells good labels from vague ones."""
        return None if self.score is None else self.score.hard

    @property
    def name(self) -> str:
        """What to show: the label, marked where it is not to be trusted, or the id."""
        if not self.label:
            return f"#{self.id}"
        if self.label_score is not None and self.label_score < CLEAR_FROM:
            return f"unclear #{self.id} ({self.label})"
        return self.label
