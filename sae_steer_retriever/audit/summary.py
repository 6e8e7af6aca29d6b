"""The summary of an audit: the most important findings, with their figures, and what is fine."""

from __future__ import annotations

from typing import NamedTuple

from sae_steer_retriever.audit.audit import Audit

LINES = 5
"""Most findings of a summary."""

# A finding is a problem from these shares on (for coverage: below).
_COVERED, _WASTED, _NOT_NAMED, _LACKING, _WEAK, _HUB_PLACES = 0.95, 0.02, 0.05, 0.05, 0.05, 0.10
# The SAE does not fit the corpus from this median unexplained share of a passage's variance on, and from this share
# of label latents on whose features are far more frequent here than in the text that they were labelled on.
_UNKNOWN, _FOREIGN = 0.5, 0.3


class Finding(NamedTuple):
    """One finding."""

    fine: bool  # whether there is nothing to do
    share: float  # share of the passages, queries or places that are affected; larger ones come first
    sentence: str  # the finding with its figure


def summary(audit: Audit) -> tuple[Finding, ...]:
    """Returns at most five findings: problems, the largest share first, then what is fine.

    At least one line says what is fine, if anything is.
    """
    found = _findings(audit)
    wrong = sorted((finding for finding in found if not finding.fine), key=lambda finding: -finding.share)
    fine = [finding for finding in found if finding.fine]
    shown = wrong[: LINES - min(len(fine), 1)]
    return (*shown, *fine[: LINES - len(shown)])


def _findings(audit: Audit) -> list[Finding]:
    topics, gaps, hubs, unexplained, exposure = audit.topics, audit.gaps, audit.hubs, audit.unexplained, audit.exposure
    passages, queries, k = audit.sampled.passages, audit.sampled.queries, audit.sampled.k
    exact, near, *_ = audit.duplicates.levels
    wasted, not_named = max(near.wasted, exact.wasted), unexplained.unexplained / unexplained.queries
    middle, weak = topics.unexplained.quantiles[2], gaps.weak_queries / queries
    lacking = gaps.lacking[0].feature.name if gaps.lacking else ""
    covered = f"{topics.coverage:.0%} of the passages have at least one feature with a reliable label."
    found = [
        Finding(topics.coverage >= _COVERED, 1 - topics.coverage, covered),
        _finding(
            wasted >= _WASTED,
            wasted,
            f"{wasted:.1%} of the top-{k} places repeat a higher hit: there are {exact.extra:,} exact copies, and "
            f"{near.extra:,} passages with a cosine of .98 or more to another. Remove them.",
            f"Near-duplicates waste {near.wasted:.1%} of the top-{k} places; {near.extra:,} passages nearly repeat "
            "another.",
        ),
        _finding(
            not_named >= _NOT_NAMED,
            not_named,
            f"{not_named:.0%} of the queries share no named feature with any of their {unexplained.depth} best hits, "
            "so these hits cannot be explained in words.",
            f"{1 - not_named:.0%} of the queries share a named feature with one of their best hits.",
        ),
        _finding(
            gaps.lacking_queries >= _LACKING,
            gaps.lacking_queries,
            f"{gaps.lacking_queries:.0%} of the queries ask for a feature that hardly any passage has, most often: "
            f'"{lacking}".',
            f"The corpus has what queries ask for: only {gaps.lacking_queries:.1%} of them ask for a feature that "
            "hardly any passage has.",
        ),
        _finding(
            hubs.hub_places >= _HUB_PLACES,
            hubs.hub_places,
            f"{hubs.hubs:,} hub passages ({hubs.hubs / passages:.1%}) take {hubs.hub_places:.0%} of the top-{k} "
            f"places. One of them is a hit of {hubs.largest / hubs.queries:.0%} of the queries.",
            f"Hub passages take {hubs.hub_places:.1%} of the top-{k} places.",
        ),
    ]
    if weak >= _WEAK:
        sentence = f"{weak:.0%} of the queries have a weak best hit compared with the other queries."
        found.insert(4, Finding(False, weak, sentence))
    if exposure.under:
        first = exposure.under[0]
        sentence = (
            f"{exposure.under_count} of {exposure.tested} frequent features and families are under-served, most of all "
            f'"{first.name}": {first.passage_share:.1%} of the passages have it, but only {first.place_share:.1%} of '
            f"the top-{k} hits."
        )
        found.append(Finding(False, first.passage_share - first.place_share, sentence))
    else:
        sentence = f"None of the {exposure.tested} frequent features and families is under-served."
        found.append(Finding(True, 0.0, sentence))
    if middle >= _UNKNOWN:
        sentence = (
            f"The SAE leaves {middle:.0%} of a typical passage unexplained: it was fitted on other text. Fit or adapt "
            "an SAE on this corpus (`sae-steer train`) before you trust the labels below."
        )
        found.append(Finding(False, middle, sentence))
    elif topics.foreign >= _FOREIGN:
        sentence = (
            f"{topics.foreign:.0%} of the passages' label latents are features that are ten times as frequent here as "
            "in the text that they were labelled on. Fit or adapt an SAE on this corpus (`sae-steer train`) for labels "
            "that fit it."
        )
        found.append(Finding(False, topics.foreign, sentence))
    return found


def _finding(is_problem: bool, share: float, problem: str, fine: str) -> Finding:
    return Finding(not is_problem, share, problem if is_problem else fine)
