"""Explanations for people: why a passage ranks where it does, as a sentence, a table, and bars in a notebook."""

from __future__ import annotations

import dataclasses
from typing import Any

from sae_steer_retriever.explain import text as wording
from sae_steer_retriever.explain.attribution import Attribution, Contribution
from sae_steer_retriever.explain.hits import Hit
from sae_steer_retriever.explain.html import Part, bars, page

# The most features that a table and a sentence name.
_IN_TABLE, _IN_SENTENCE = 8, 3
# A sentence leaves out parts that are smaller than this share of its largest part.
_WORTH_TELLING = 0.25

_MEANINGS = {
    "original": "the cosine similarity of the embeddings of query and passage",
    "reconstructed": "the cosine similarity of the reconstructed embeddings of query and passage",
    "latent match": "the cosine similarity of the query with the passage's reconstructed embedding",
    "latent dot": "the dot product of the features of query and passage",
    "latent damped": "the cosine similarity of the power-normalised features of query and passage",
    None: "what the search ranked by; larger is better",
}


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The reasons for a passage's score and rank.

    `str()` is the explanation for a terminal; a notebook shows it with bars.

    Attributes:
        query: The question.
        hit: The passage, with its attribution.
        rank: Its rank, from 1; None if unknown.
        space: The space that was searched; None if unknown.
        steered: Whether the search was steered.
        latent_score: The score of the latent space.

    Raises:
        ValueError: The hit has no attribution.

    Example:
        >>> why = retriever.explain("wait for a thread to end", retriever.search("wait for a thread to end")[0])
        >>> print(why.sentence)
        This passage ranks 1st ... because it and the query share ...
    """

    query: str
    hit: Hit
    rank: int | None = None
    space: str | None = None
    steered: bool = False
    latent_score: str = "match"

    def __post_init__(self) -> None:
        if self.hit.attribution is None:
            remedy = "search with explain=True, or let the retriever explain it"
            raise ValueError(f"hit {self.hit.id!r} has no attribution: {remedy}.")

    @property
    def attribution(self) -> Attribution:
        """The exact parts of the score."""
        assert self.hit.attribution is not None  # noqa: S101 - __post_init__ checks it
        return self.hit.attribution

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the score, which sum to it: steering, the largest features, all others, bias, residual."""
        why, share = self.attribution, self.attribution.share
        parts = [
            Part("steering", f"steering: {wording.edit_name(term)} ({term.side})", None, term.value, share(term.value))
            for term in why.steering
        ]
        top = why.top(_IN_TABLE)
        shown = {part.feature for part in top}
        rest = [part.value for part in why.features if part.feature not in shown]
        parts += [Part("feature", wording.with_id(part), part.feature, part.value, share(part.value)) for part in top]
        if rest:
            name = f"{len(rest)} other feature{'s' if len(rest) > 1 else ''}"
            parts.append(Part("others", name, None, sum(rest), share(*rest)))
        # The latent space has no bias and no residual.
        if why.bias or self.space != "latent":
            parts.append(Part("bias", "bias: what every query has in common", None, why.bias, share(why.bias)))
        if why.residual or self.space != "latent":
            rest_name = "unexplained: what no feature holds of the query"
            parts.append(Part("unexplained", rest_name, None, why.residual, share(why.residual)))
        return tuple(parts)

    @property
    def unnamed(self) -> float:
        """The share of bias, residual and features without a clear label; see `Attribution.share`."""
        why = self.attribution
        return why.share(*(part.value for part in why.features if not wording.is_named(part)), why.bias, why.residual)

    @property
    def meaning(self) -> str:
        """The definition of the score, in one line."""
        added = ", plus what the steering adds" if self.steered and self.space is not None else ""
        space = f"latent {self.latent_score}" if self.space == "latent" else self.space
        return f"Score: {_MEANINGS.get(space, _MEANINGS[None])}{added}."

    @property
    def note(self) -> str:
        """The definition of the score, and how to read the parts."""
        return f"{self.meaning} The parts sum to it. A share is a part's size divided by the sizes of all parts."

    @property
    def sentence(self) -> str:
        """The rank, the strongest reasons for and against it, and the share that no named feature explains."""
        told, rewards = self._reasons()
        clauses = [self._place() + self._because(told, rewards)]
        steering = self._steering()
        largest = max(map(abs, [*steering.values(), *(part.value for part in self.attribution.features)]), default=0.0)
        clauses += [
            f"the steering by {wording.quoted(name)} takes {-value:.3f} away"
            for name, value in steering.items()
            if value < 0 and -value >= _WORTH_TELLING * largest
        ]
        lowest = min(self.attribution.features, key=lambda part: part.value, default=None)
        if lowest is not None and lowest.value < 0 and -lowest.value >= _WORTH_TELLING * largest:
            clauses.append(f"{wording.phrase(lowest)} speaks against it")
            told = [*told, lowest]
        rest = [part.value for part in self.attribution.features if part not in told]
        if (told or rewards) and self.attribution.share(*rest) >= _WORTH_TELLING:
            others = f"{len(rest)} {'other ' if told else ''}feature{'s add' if len(rest) > 1 else ' adds'}"
            clauses.append(f"{others} {wording.signed(sum(rest))}{' in all' if len(rest) > 1 else ''}")
        if self.unnamed >= 0.005:
            clauses.append(f"{wording.percent(self.unnamed)} of the score is not explained by named features")
        return "; ".join(clauses) + "."

    @property
    def table(self) -> str:
        """The parts with their shares, as a table for a terminal."""
        lines = ["  adds  share  what"]
        lines += [f"{wording.signed(part.value)}  {wording.percent(part.share):>5}  {part.name}" for part in self.parts]
        return "\n".join([*lines, f"{self.hit.score:>6.3f}         score"])

    def __str__(self) -> str:
        """Returns the query, the passage, the sentence, the table and the note."""
        head = f"{wording.one_line(self.hit.id)}: {wording.excerpt(self.hit.text)}".rstrip(": ")
        lines = [f"Query: {wording.one_line(self.query)}", head, "", self.sentence, "", self.table, "", self.note]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns the explanation as JSON-serialisable values, with every feature."""
        return {
            "query": self.query,
            "id": self.hit.id,
            "text": self.hit.text,
            "rank": self.rank,
            "base_rank": self.hit.base_rank,
            "score": float(self.hit.score),
            "base_score": float(self.hit.base_score),
            "space": self.space,
            "steered": self.steered,
            "sentence": self.sentence,
            "meaning": self.meaning,
            **self.attribution.to_dict(),
            "unnamed": float(self.unnamed),
        }

    def _repr_html_(self) -> str:
        """Returns the explanation for a notebook, with bars."""
        name, text = wording.one_line(self.hit.id), wording.excerpt(self.hit.text)
        return page(self.sentence, name, text, bars(self.parts, self.hit.score), self.note)

    def _steering(self) -> dict[str, float]:
        """Returns each edit's part, summed over its sides."""
        sums: dict[str, float] = {}
        for term in self.attribution.steering:
            name = wording.edit_name(term)
            sums[name] = sums.get(name, 0.0) + term.value
        return sums

    def _place(self) -> str:
        before = self.hit.base_rank
        if self.rank is None:
            base = f" ({self.hit.base_score:.3f} without steering)" if self.steered else ""
            return f"This passage has a score of {self.hit.score:.3f}{base}"
        where = f"This passage ranks {wording.ordinal(self.rank)}"
        if not self.steered:
            return where
        if before is None:
            return f"{where} (far below without steering)"
        return f"{where} ({'as' if before == self.rank else wording.ordinal(before)} without steering)"

    def _reasons(self) -> tuple[list[Contribution], dict[str, float]]:
        """Returns the features and the edits that add most to the score."""
        speaking = sorted((part for part in self.attribution.features if part.value > 0), key=lambda part: -part.value)
        steering = self._steering()
        least = _WORTH_TELLING * max([part.value for part in speaking[:1]] + list(steering.values()), default=0.0)
        rewards = {name: value for name, value in steering.items() if value > 0 and value >= least}
        return [part for part in speaking[:_IN_SENTENCE] if part.value >= least], rewards

    def _because(self, told: list[Contribution], rewards: dict[str, float]) -> str:
        if not told and not rewards:
            return ", though no feature of the query speaks for it"
        most = self.attribution.share(*(part.value for part in told), *rewards.values()) >= 0.5
        reasons = [f"it and the query share {wording.listed([wording.phrase(part) for part in told])}"] if told else []
        if rewards:
            edits = [f"the steering by {wording.quoted(name)} adds {value:.3f}" for name, value in rewards.items()]
            reasons.append(wording.listed(edits))
        return f" {'mostly' if most else 'in part'} because {', and '.join(reasons)}"
