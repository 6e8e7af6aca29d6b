"""The verdict on an SAE: sentences on what it is good for, derived from its figures by fixed thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sae_steer_retriever.evaluate.agreement import Agreement
from sae_steer_retriever.evaluate.fidelity import LATENT_NORMALISED, RECONSTRUCTED, Fidelity

# Retention of nDCG@10: below the first do not use a search, from the second it is nearly as good as the original.
TOO_LITTLE, NEARLY_ALL = 0.85, 0.95
# overlap@10: below the first two rankings show mostly other passages, from the second mostly the same.
OTHER_HITS, SAME_HITS = 0.50, 0.70
# Hard label AUROC from which labels tell a feature's passages from those of its neighbours.
CLEAR_NAMES = 0.80
# Hard label AUROC above that of a frozen random dictionary, below which labels say little more than chance.
ABOVE_RANDOM = 0.05
# Share of labelled features, and share of features with a tested label, below which to warn.
FEW_NAMED, FEW_TESTED = 0.25, 0.50
# Share of dead latents above which the dictionary is larger than the passages can use.
MANY_DEAD = 0.10
# Recurrence below which most features would not come back from other passages.
RECURRING = 0.25
# Fewer queries than this, or a wider 95 % interval of the retention, decide little.
FEW_QUERIES, WIDE = 10, 0.10

Kind = Literal["good", "caution", "not"]


class Finding(NamedTuple):
    """A sentence for a person who will use the SAE, and its reason: the figure and the threshold.

    Its kind is "good" for a use that the SAE is fit for, "not" for one that it is not fit for, "caution" for a warning.
    """

    kind: Kind
    sentence: str
    because: str


def judge(
    fidelity: Fidelity | None = None, agreement: Agreement | None = None, meaning: Mapping[str, Any] | None = None
) -> list[Finding]:
    """Returns the findings that follow from the figures: the good first, then cautions, then unfit uses.

    Args:
        fidelity: Retrieval on judged queries; overrides `agreement` if both are given.
        agreement: Agreement on queries without judgments.
        meaning: Meaning of the features, from `Meaning.to_json`.
    """
    found = [] if meaning is None else _of_meaning(meaning)
    if fidelity is not None:
        found = _of_fidelity(fidelity) + found
    elif agreement is not None:
        found = _of_agreement(agreement) + found
    order: Sequence[Kind] = ("good", "caution", "not")
    return sorted(found, key=lambda finding: order.index(finding.kind))


def summary(findings: Sequence[Finding]) -> str:
    """Returns all findings as one short paragraph."""
    sentences = " ".join(finding.sentence for finding in findings)
    return sentences or "Nothing was measured that says what this SAE is good for."


def _of_fidelity(fidelity: Fidelity) -> list[Finding]:
    found = _searches(
        fidelity,
        RECONSTRUCTED,
        "reconstructions keep",
        "Do not search its reconstructions: use it to explain and steer the original ranking.",
        "Searching its reconstructions costs some of the ranking: prefer the original embeddings, steered.",
        "Its reconstructions rank nearly as well as the original embeddings: they can be searched and steered.",
    )
    found += _searches(
        fidelity,
        LATENT_NORMALISED,
        "power-normalised codes keep",
        "Do not search by its codes alone.",
        "Searching by its codes alone costs some of the ranking.",
        "Its codes alone rank nearly as well as the original embeddings: they can be searched in their place.",
    )
    low, high = fidelity.row(RECONSTRUCTED).retention_intervals["ndcg@10"]
    because = ""
    if fidelity.queries < FEW_QUERIES:
        because = f"fewer than {FEW_QUERIES}, too few for a reliable interval"
    elif high - low > WIDE:
        because = f"95 % interval of the retention {low:.1%} to {high:.1%}, wider than {WIDE:.0%}"
    if because:
        few = f"{fidelity.queries:,} judged {'query is' if fidelity.queries == 1 else 'queries are'} few"
        found.append(Finding("caution", f"{few}: these figures are rough.", because))
    if fidelity.dead > MANY_DEAD:
        sentence = "Many of its latents are never active in these passages: a smaller dictionary would do."
        because = f"{fidelity.dead:.1%} of {fidelity.n:,} latents are dead, more than {MANY_DEAD:.0%}"
        found.append(Finding("caution", sentence, because))
    return found


def _searches(fidelity: Fidelity, search: str, what: str, *sentences: str) -> list[Finding]:
    retention = fidelity.row(search).retention["ndcg@10"]
    low, high = fidelity.row(search).retention_intervals["ndcg@10"]
    if math.isnan(retention):
        return []
    crossed = " and ".join(f"{bar:.0%}" for bar in (TOO_LITTLE, NEARLY_ALL) if low < bar <= high)
    # Other queries could have turned such a verdict round.
    unsure = f"; not certain: the interval, {low:.1%} to {high:.1%}, holds {crossed}" if crossed else ""
    shown = f"{what} {retention:.1%} of nDCG@10 on {fidelity.dataset}"
    kind, sentence, because = _graded(retention, (TOO_LITTLE, NEARLY_ALL), ".0%", shown, *sentences)
    return [Finding(kind, sentence, because + unsure)]


def _of_agreement(agreement: Agreement) -> list[Finding]:
    overlap = agreement.rows[RECONSTRUCTED].overlap.value
    found = _graded(
        overlap,
        (OTHER_HITS, SAME_HITS),
        ".2f",
        f"overlap@10 of reconstructions with the original ranking {overlap:.2f}",
        "Do not search its reconstructions: they find mostly other passages than the original embeddings do.",
        "Its reconstructions change a good part of the hits: prefer the original embeddings, steered.",
        "Its reconstructions find mostly the passages that the original embeddings find.",
    )
    sentence = "There are no judgments: whether a changed hit is a worse one is not known."
    return [found, Finding("caution", sentence, f"{agreement.queries:,} titles and sentences as queries")]


def _graded(
    figure: float, bars: tuple[float, float], form: str, shown: str, bad: str, between: str, good: str
) -> Finding:
    """The finding for a figure below, between or above two thresholds."""
    low, high = (format(bar, form) for bar in bars)
    if figure >= bars[1]:
        return Finding("good", good, f"{shown}, at least {high}")
    if figure < bars[0]:
        return Finding("not", bad, f"{shown}, below {low}")
    return Finding("caution", between, f"{shown}, between {low} and {high}")


def _of_meaning(meaning: Mapping[str, Any]) -> list[Finding]:
    dictionaries = meaning["dictionaries"]
    sae = dictionaries["sae"]
    own, control = sae["auroc_hard"]["value"], dictionaries["random"]["auroc_hard"]["value"]
    found = [_of_names(own, control, f"{sae['scored']:,} of {meaning['latents']:,} features tested")]
    untrained = dictionaries.get("kmeans", {}).get("auroc_hard", {}).get("value")
    if untrained is not None and own is not None and untrained >= own:
        sentence = "Untrained k-means directions have equally good names: training improved fidelity, not meaning."
        shown = f"hard label AUROC {own:.2f}, of k-means directions {untrained:.2f}"
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
        sentence = "Do not build on single features: after a fit to other passages most would not come back."
        found.append(Finding("caution", sentence, f"recurrence {recurring:.1%}, below {RECURRING:.0%}"))
    return found


def _of_names(own: float | None, control: float | None, tested: str) -> Finding:
    if own is None:
        sentence = "Its names could not be tested: there are too few passages for each feature."
        return Finding("caution", sentence, "no label could be scored")
    beside = "" if control is None else f", a random dictionary's {control:.2f}"
    shown = f"hard label AUROC {own:.2f} ({tested}){beside}"
    if control is not None and own - control < ABOVE_RANDOM:
        sentence = "Its names say little more than a random dictionary's: do not steer or explain by name."
        return Finding("not", sentence, f"{shown}, less than {ABOVE_RANDOM:.2f} above")
    if own >= CLEAR_NAMES:
        sentence = "Its names hold on passages that they were not made from: explain and steer by them."
        return Finding("good", sentence, f"{shown}, at least {CLEAR_NAMES:.2f}")
    sentence = "Its names are vague: read a feature's example passages before steering by it."
    return Finding("caution", sentence, f"{shown}, below {CLEAR_NAMES:.2f}")
