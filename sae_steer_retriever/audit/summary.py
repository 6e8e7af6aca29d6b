"""The first lines of an audit: what matters most, with its figure, and what is fine."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sae_steer_retriever.audit.audit import Audit

LINES = 5
"""Lines of a summary at most."""

# From these shares on something is worth a line among the findings; below, it is worth one among what is fine.
_COVERED, _WASTED, _NOT_NAMED, _LACKING, _WEAK, _HUB_PLACES = 0.95, 0.02, 0.05, 0.05, 0.05, 0.10
# Median share of a passage's variance that is left unexplained, from which the SAE knows too little of the corpus, and
# share of names that are far more frequent than where they were made, from which they may mean something else.
_UNKNOWN, _FOREIGN = 0.5, 0.3


class Finding(NamedTuple):
    """One line.

    Attributes:
        fine: Whether there is nothing to do.
        share: Of passages, queries or places that it is about: what comes first.
        sentence: With its figure.
    """

    fine: bool
    share: float
    sentence: str


def summary(audit: Audit) -> tuple[Finding, ...]:
    """At most five findings: what to do something about, the largest share first, then what is fine.

    At least one line tells what is fine, if anything is.
    """
    judges: tuple[Callable[[Audit], Finding | None], ...] = (
        _coverage,
        _duplicates,
        _unexplained,
        _lacking,
        _weak,
        _hubs,
        _exposure,
        _foreign,
    )
    found = [finding for finding in (judge(audit) for judge in judges) if finding is not None]
    wrong = sorted((finding for finding in found if not finding.fine), key=lambda finding: -finding.share)
    fine = [finding for finding in found if finding.fine]
    shown = wrong[: LINES - min(len(fine), 1)]
    return (*shown, *fine[: LINES - len(shown)])


def _foreign(audit: Audit) -> Finding | None:
    middle, foreign = audit.topics.unexplained.quantiles[2], audit.topics.foreign
    if foreign >= _FOREIGN and middle < _UNKNOWN:
        return Finding(
            False,
            foreign,
            f"{foreign:.0%} of all names in the corpus are of features that are ten times as frequent here as in the "
            "text that they were named on: fit or adapt an SAE on this corpus (`sae-steer train`) for names that fit "
            "it.",
        )
    if middle < _UNKNOWN:
        return None
    return Finding(
        False,
        middle,
        f"The SAE leaves {middle:.0%} of a typical passage unexplained: it was fitted on other text. "
        "Fit or adapt one on this corpus (`sae-steer train`) before you trust the names below.",
    )


def _coverage(audit: Audit) -> Finding:
    covered = audit.topics.coverage
    sentence = f"{covered:.0%} of the passages have at least one feature whose label held where it was made."
    return Finding(covered >= _COVERED, 1 - covered, sentence)


def _duplicates(audit: Audit) -> Finding:
    exact, near = audit.duplicates.levels[0], audit.duplicates.levels[1]
    k = audit.sampled.k
    if near.wasted >= _WASTED or exact.wasted >= _WASTED:
        lost = max(near.wasted, exact.wasted)
        return Finding(
            False,
            lost,
            f"{lost:.1%} of the top-{k} places repeat a hit above them: {exact.extra:,} exact copies and "
            f"{near.extra:,} passages of cosine .98 or more to another. Remove them.",
        )
    sentence = f"Near-duplicates take {near.wasted:.1%} of the top-{k} places ({near.extra:,} passages have a twin)."
    return Finding(True, near.wasted, sentence)


def _unexplained(audit: Audit) -> Finding:
    found = audit.unexplained
    share = found.unexplained / found.queries
    if share >= _NOT_NAMED:
        sentence = (
            f"{share:.0%} of the queries share no named feature with any of their {found.depth} best hits: "
            "why these were retrieved cannot be said in words."
        )
        return Finding(False, share, sentence)
    return Finding(True, share, f"{1 - share:.0%} of the queries share a named feature with one of their best hits.")


def _lacking(audit: Audit) -> Finding:
    share = audit.gaps.lacking_queries
    if share >= _LACKING:
        first = audit.gaps.lacking[0].feature.name
        sentence = f"{share:.0%} of the queries ask for something that nearly no passage has, first of all: {first}."
        return Finding(False, share, sentence)
    lacking = f"{share:.1%} of them name something that nearly no passage has" if share else "in all of them"
    return Finding(True, share, f"What queries ask for is there: {lacking}.")


def _weak(audit: Audit) -> Finding | None:
    share = audit.gaps.weak_queries / audit.sampled.queries
    if share < _WEAK:
        return None
    sentence = f"{share:.0%} of the queries have a best hit that is weak beside those of the others."
    return Finding(False, share, sentence)


def _hubs(audit: Audit) -> Finding:
    found = audit.hubs
    if found.hub_places >= _HUB_PLACES:
        sentence = (
            f"{found.hubs:,} hub passages ({found.hubs / audit.sampled.passages:.1%}) take {found.hub_places:.0%} of "
            f"the top-{found.k} places; one is a hit of {found.largest / found.queries:.0%} of the queries."
        )
        return Finding(False, found.hub_places, sentence)
    return Finding(True, found.hub_places, f"Hub passages take {found.hub_places:.1%} of the top-{found.k} places.")


def _exposure(audit: Audit) -> Finding:
    found = audit.exposure
    if found.under:
        first = found.under[0]
        lost = first.passage_share - first.place_share
        sentence = (
            f"{found.under_count} of {found.tested} frequent perspectives are under-served; most: {first.name}, in "
            f"{first.passage_share:.1%} of the passages and {first.place_share:.1%} of the top-{audit.sampled.k} "
            "places."
        )
        return Finding(False, lost, sentence)
    sentence = (
        f"No frequent perspective is under-served: {found.tested} were tested against the share of their passages."
    )
    return Finding(True, 0.0, sentence)


__all__ = ["LINES", "Finding", "summary"]
