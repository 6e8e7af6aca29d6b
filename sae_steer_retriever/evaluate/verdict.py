"""What an SAE is good for and what not, in sentences that follow from its figures by fixed thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from sae_steer_retriever.evaluate.agreement import Agreement
from sae_steer_retriever.evaluate.fidelity import LATENT_NORMALISED, RECONSTRUCTED, Fidelity

NEARLY_ALL = 0.95
"""A retention of nDCG@10 from which a search is nearly as good as the original."""

TOO_LITTLE = 0.85
"""A retention of nDCG@10 below which a search is not to be used in place of the original."""

SAME_HITS = 0.70
"""overlap@10 from which two rankings show mostly the same passages."""

OTHER_HITS = 0.50
"""overlap@10 below which they show mostly others."""

CLEAR_NAMES = 0.80
"""Hard label AUROC from which names tell a feature's passages from those of its neighbours."""

ABOVE_RANDOM = 0.05
"""Hard label AUROC above a frozen random dictionary's, below which names say little more than chance names."""

FEW_NAMED = 0.25
"""Share of labelled features below which most of the dictionary has no name."""

FEW_TESTED = 0.50
"""Share of features with a tested label below which most names are not known to hold."""

MANY_DEAD = 0.10
"""Share of dead latents above which the dictionary is larger than the passages can use."""

RECURRING = 0.25
"""Recurrence below which most features would not come back from other passages."""

FEW_QUERIES = 10
"""Number of queries below which no interval says how much other queries would change."""

WIDE = 0.10
"""Width of a retention's 95 % interval above which the number of queries decides little."""

Kind = Literal["good", "caution", "not"]


class Finding(NamedTuple):
    """One sentence and why.

    Attributes:
        kind: "good" for what the SAE can be used for, "not" for what it cannot, "caution" for what to keep in mind.
        sentence: For a person who will use it.
        because: The figure and the threshold.
    """

    kind: Kind
    sentence: str
    because: str


class JSONObject(Protocol):
    """A result that is one JSON object, such as `Meaning`."""

    def to_json(self) -> dict[str, Any]:
        """The object."""
        ...


def judge(
    fidelity: Fidelity | None = None, agreement: Agreement | None = None, meaning: JSONObject | None = None
) -> list[Finding]:
    """What follows from what was measured; the good first, then cautions, then what the SAE is not for.

    Args:
        fidelity: On judged queries; decides over `agreement` where there are both.
        agreement: On queries without judgments.
        meaning: Of the features, a `Meaning`.
    """
    found: list[Finding] = []
    if fidelity is not None:
        found += _of_fidelity(fidelity)
    elif agreement is not None:
        found += _of_agreement(agreement)
    if meaning is not None:
        found += _of_meaning(meaning.to_json())
    order: Sequence[Kind] = ("good", "caution", "not")
    return sorted(found, key=lambda finding: order.index(finding.kind))


def summary(findings: Sequence[Finding]) -> str:
    """All findings as one short paragraph."""
    if not findings:
        return "Nothing was measured that says what this SAE is good for."
    return " ".join(finding.sentence for finding in findings)


def _of_fidelity(fidelity: Fidelity) -> list[Finding]:
    found = _searches(
        fidelity,
        RECONSTRUCTED,
        good="Its reconstructions rank nearly as well as the original embeddings: they can be searched and steered.",
        between="Searching its reconstructions costs some of the ranking: prefer the original embeddings, steered.",
        bad="Do not search its reconstructions: use it to explain and steer the original ranking.",
    )
    found += _searches(
        fidelity,
        LATENT_NORMALISED,
        good="Its codes alone rank nearly as well as the original embeddings: they can be searched in their place.",
        between="Searching by its codes alone costs some of the ranking.",
        bad="Do not search by its codes alone.",
    )
    low, high = fidelity.row(RECONSTRUCTED).retention_intervals["ndcg@10"]
    few = f"{fidelity.queries:,} judged {'query is' if fidelity.queries == 1 else 'queries are'} few"
    if fidelity.queries < FEW_QUERIES:
        because = f"fewer than {FEW_QUERIES}, too few for an interval to be relied on"
        found.append(Finding("caution", f"{few}: these figures are rough.", because))
    elif high - low > WIDE:
        because = f"95 % interval of the retention {low:.1%} to {high:.1%}, wider than {WIDE:.0%}"
        found.append(Finding("caution", f"{few}: these figures are rough.", because))
    return found + _of_dead(fidelity.dead, fidelity.n)


def _searches(fidelity: Fidelity, search: str, *, good: str, between: str, bad: str) -> list[Finding]:
    retention = fidelity.row(search).retention["ndcg@10"]
    low, high = fidelity.row(search).retention_intervals["ndcg@10"]
    what = {RECONSTRUCTED: "reconstructions keep", LATENT_NORMALISED: "power-normalised codes keep"}[search]
    shown = f"{what} {retention:.1%} of nDCG@10 on {fidelity.dataset}"
    if math.isnan(retention):
        return []
    crossed = " and ".join(f"{bar:.0%}" for bar in (TOO_LITTLE, NEARLY_ALL) if low < bar <= high)
    # A verdict that other queries could have turned round has to say so.
    unsure = f"; not certain: the interval, {low:.1%} to {high:.1%}, holds {crossed}" if crossed else ""
    if retention >= NEARLY_ALL:
        return [Finding("good", good, f"{shown}, at least {NEARLY_ALL:.0%}{unsure}")]
    if retention < TOO_LITTLE:
        return [Finding("not", bad, f"{shown}, below {TOO_LITTLE:.0%}{unsure}")]
    return [Finding("caution", between, f"{shown}, between {TOO_LITTLE:.0%} and {NEARLY_ALL:.0%}{unsure}")]


def _of_agreement(agreement: Agreement) -> list[Finding]:
    overlap = agreement.rows[RECONSTRUCTED].overlap.value
    shown = f"overlap@10 of reconstructions with the original ranking {overlap:.2f}"
    without = Finding(
        "caution",
        "There are no judgments: whether a changed hit is a worse one is not known.",
        f"{agreement.queries:,} titles and sentences as queries",
    )
    if overlap >= SAME_HITS:
        sentence = "Its reconstructions find mostly the passages that the original embeddings find."
        return [Finding("good", sentence, f"{shown}, at least {SAME_HITS:.2f}"), without]
    if overlap < OTHER_HITS:
        sentence = "Do not search its reconstructions: they find mostly other passages than the original embeddings do."
        return [Finding("not", sentence, f"{shown}, below {OTHER_HITS:.2f}"), without]
    sentence = "Its reconstructions change a good part of what is found: prefer the original embeddings, steered."
    return [Finding("caution", sentence, f"{shown}, between {OTHER_HITS:.2f} and {SAME_HITS:.2f}"), without]


def _of_meaning(meaning: Mapping[str, Any]) -> list[Finding]:
    sae, random = meaning["dictionaries"]["sae"], meaning["dictionaries"]["random"]
    tested = f"{sae['scored']:,} of {meaning['latents']:,} features tested"
    found = _of_names(sae["auroc_hard"]["value"], random["auroc_hard"]["value"], tested)
    untrained = meaning["dictionaries"].get("kmeans", {}).get("auroc_hard", {}).get("value")
    if untrained is not None and sae["auroc_hard"]["value"] is not None and untrained >= sae["auroc_hard"]["value"]:
        shown = f"hard label AUROC {sae['auroc_hard']['value']:.2f}, of k-means directions {untrained:.2f}"
        sentence = "Untrained k-means directions have names as good: training has bought fidelity, not meaning."
        found.append(Finding("caution", sentence, shown))
    share = sae["share_labelled"]
    if share < FEW_NAMED:
        sentence = "Most of its features have no name: explanations will show numbers."
        found.append(Finding("caution", sentence, f"{share:.1%} of the features are labelled, below {FEW_NAMED:.0%}"))
    elif sae["share_scored"] < FEW_TESTED:
        sentence = "Most of its features have no name that could be tested: look at their passages before using them."
        found.append(Finding("caution", sentence, f"{sae['share_scored']:.1%} were tested, below {FEW_TESTED:.0%}"))
    recurrence = meaning.get("recurrence")
    recurring = None if recurrence is None else recurrence["dictionaries"]["sae"]["recurrence"]
    if recurring is not None and recurring < RECURRING:
        sentence = "Single features are not to be built on: fitted to other passages, most would not come back."
        found.append(Finding("caution", sentence, f"recurrence {recurring:.1%}, below {RECURRING:.0%}"))
    return found


def _of_names(own: float | None, control: float | None, tested: str) -> list[Finding]:
    if own is None:
        sentence = "Its names could not be tested: there are too few passages for each feature."
        return [Finding("caution", sentence, "no label could be scored")]
    beside = "" if control is None else f", a random dictionary's {control:.2f}"
    shown = f"hard label AUROC {own:.2f} ({tested}){beside}"
    if control is not None and own - control < ABOVE_RANDOM:
        sentence = "Its names say little more than a random dictionary's: do not steer or explain by name."
        return [Finding("not", sentence, f"{shown}, less than {ABOVE_RANDOM:.2f} above")]
    if own >= CLEAR_NAMES:
        sentence = "Its names hold on passages they were not made of: explain and steer by them."
        return [Finding("good", sentence, f"{shown}, at least {CLEAR_NAMES:.2f}")]
    sentence = "Its names are vague: read a feature's example passages before steering by it."
    return [Finding("caution", sentence, f"{shown}, below {CLEAR_NAMES:.2f}")]


def _of_dead(dead: float, n: int) -> list[Finding]:
    if dead <= MANY_DEAD:
        return []
    sentence = "Many of its latents are never active in these passages: fewer would do."
    return [Finding("caution", sentence, f"{dead:.1%} of {n:,} latents are dead, more than {MANY_DEAD:.0%}")]
