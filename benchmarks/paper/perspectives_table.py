"""Tables 4, 5 and 9 of arXiv 2411.00786: of questions with two perspectives, who is in the top 5 before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from benchmarks.paper.perspective_questions import (
    NEWSGROUP_QUESTIONS,
    PAPER_QUESTIONS,
    BinaryQuestion,
    Perspective,
)
from benchmarks.paper.perspective_search import TOP, Change, PerspectiveSearch
from sae_steer_retriever.errors import CorpusError
from sae_steer_retriever.evaluate.table import Cell, Column, Table
from sae_steer_retriever.explain.text import one_line

STRENGTH = 0.5
"""What is added: in embedding units to the code where it is decoded, in units of the feature where it is steered."""

# The strength of a steering that costs as much as the paper's is looked for up to here, in so many halvings.
_LARGEST, _HALVINGS = 8.0, 8
_WAYS = (f"replace +{STRENGTH:g}", f"steer +{STRENGTH:g}", "steer, same drift")


class Trial(NamedTuple):
    """One perspective of one question, searched for.

    Attributes:
        question: The question.
        perspective: The perspective.
        feature: The first feature that its words mean.
        replaced: The paper's decode-replace.
        steered: The product's steering at the same number.
        matched: The product's steering at the strength, one for all questions, that costs as much as `replaced`.
    """

    question: BinaryQuestion
    perspective: Perspective
    feature: int
    replaced: Change
    steered: Change
    matched: Change

    @property
    def ways(self) -> tuple[Change, Change, Change]:
        """The three changes."""
        return self.replaced, self.steered, self.matched


class Trials(NamedTuple):
    """All perspectives whose words mean a feature.

    Attributes:
        found: One for each.
        unresolved: Words that mean none.
        matched: The strength of `Trial.matched`.
    """

    found: tuple[Trial, ...]
    unresolved: tuple[str, ...]
    matched: float


def table_4(search: PerspectiveSearch, questions: Sequence[BinaryQuestion] = PAPER_QUESTIONS) -> Table:
    """Tables 4, 5 and 9: the paper's questions, with features that answer to the words of the paper's labels.

    The paper does not say who judges whether a passage belongs to a perspective. Two rules: the feature is among the
    passage's names; and its cosine with the feature's label is at least the median of those passages.

    Args:
        search: The passages, the SAE and its catalog.
        questions: The questions.

    Raises:
        CorpusError: No perspective's words mean a feature.
    """
    trials = run_trials(search, questions)
    columns = [Column("question"), Column("perspective"), Column("feature"), Column("paper B/A")]
    columns += [Column(f"{way}, {rule}") for way in _WAYS for rule in ("named", "label")]
    columns += [Column(f"{way}, drift", ".1%") for way in _WAYS]
    rows: list[tuple[Cell, ...]] = []
    totals = np.zeros((len(_RULES), 3, 2), dtype=np.int64)
    for trial in trials.found:
        members = [rule(search, trial.feature) for rule in _RULES]
        counts = [[None if own is None else _counts(change, own) for own in members] for change in trial.ways]
        for way, of_way in enumerate(counts):
            for rule, counted in enumerate(of_way):
                totals[rule, way] += counted or (0, 0)
        printed = trial.perspective.printed
        rows.append((
            trial.question.text, trial.perspective.words, _feature(search, trial.feature),
            None if printed is None else f"{printed[0]}/{printed[1]}",
            *(None if counted is None else f"{counted[0]}/{counted[1]}" for of_way in counts for counted in of_way),
            *(change.drift for change in trial.ways),
        ))  # fmt: skip
    rows.append((
        "all", None, None, _printed_total(trials.found),
        *(f"{totals[rule, way, 0]}/{totals[rule, way, 1]}" for way in range(3) for rule in range(len(_RULES))),
        *_mean_drifts(trials.found),
    ))  # fmt: skip
    notes = (
        *_shared_notes(search, trials),
        "Who belongs to a perspective, by rule. Named: the feature is among the passage's "
        f"{search.sae.config.k_labels} names. Label: the cosine of passage and feature's label is at least the median "
        "of the passages that are named so. A document boost rewards what the first rule counts, the lenient one.",
        "The paper's counts are of another encoder, millions of passages and judges that it does not name; 0.5 is "
        "printed for Table 4 only.",
    )
    return Table("Table 4: questions with two perspectives, top 5", tuple(columns), tuple(rows), notes, "table-4")


def labelled_table_4(
    search: PerspectiveSearch,
    labels: Sequence[frozenset[str]],
    questions: Sequence[BinaryQuestion] = NEWSGROUP_QUESTIONS,
) -> Table:
    """The same where labels say which passages belong to a perspective.

    Args:
        search: The passages, the SAE and its catalog.
        labels: N sets of labels, those of the passages.
        questions: Questions whose perspectives have labels.

    Raises:
        CorpusError: No passage has the label of any perspective, or no perspective's words mean a feature.
    """
    carried = frozenset().union(*labels)
    asked = [question for question in questions if all(one.label in carried for one in question.perspectives)]
    if not asked:
        wanted = sorted({one.label for question in questions for one in question.perspectives})
        raise CorpusError(
            f"no question has both of its labels in the corpus (labels there: {', '.join(sorted(carried)[:5])}; "
            f"wanted: {', '.join(wanted[:5])}): the built-in questions are about 20 Newsgroups"
        )
    trials = run_trials(search, asked)
    members = {label: np.array([label in own for own in labels]) for label in carried}
    counts = np.array(
        [[_counts(change, members[trial.perspective.label]) for change in trial.ways] for trial in trials.found]
    )
    columns = [Column("question"), Column("perspective"), Column("label"), Column("feature")]
    columns += [Column(f"{way}, {when}") for way in _WAYS for when in ("before", "after")]
    columns += [Column(f"{way}, drift", ".1%") for way in _WAYS]
    rows: list[tuple[Cell, ...]] = [
        (
            trial.question.text, trial.perspective.words, trial.perspective.label, _feature(search, trial.feature),
            *map(int, counted.ravel()), *(change.drift for change in trial.ways),
        )
        for trial, counted in zip(trials.found, counts, strict=True)
    ]  # fmt: skip
    rows.append(("all", None, None, None, *map(int, counts.sum(axis=0).ravel()), *_mean_drifts(trials.found)))
    gains = counts[..., 1] - counts[..., 0]
    notes = (
        *_shared_notes(search, trials),
        f"Who belongs is said by the labels. Of {len(counts)} perspectives: "
        + "; ".join(_sign(way, gains[:, place]) for place, way in enumerate(_WAYS))
        + f". {_compared(gains)}",
        "The questions and the words were written down before any was searched.",
    )
    title = "Table 4 on labelled passages: questions with two perspectives, top 5"
    return Table(title, tuple(columns), tuple(rows), notes, "table-4-labelled")


def run_trials(search: PerspectiveSearch, questions: Sequence[BinaryQuestion], strength: float = STRENGTH) -> Trials:
    """Search for every perspective, by decode-replace and by the product's default.

    Args:
        search: The passages, the SAE and its catalog.
        questions: The questions.
        strength: What is added.

    Raises:
        CorpusError: No perspective's words mean a feature.
    """
    asked = [(question, one, search.meant(one.words)) for question in questions for one in question.perspectives]
    known = [(question, one, meant) for question, one, meant in asked if meant is not None]
    unresolved = tuple(dict.fromkeys(one.words for _, one, meant in asked if meant is None))
    if not known:
        raise CorpusError(
            f"none of the perspectives has a feature: nothing answers to {', '.join(map(repr, unresolved[:3]))}; use "
            "an SAE that was fitted to such passages"
        )
    replaced = [search.replaced(question.text, meant.features[0], strength) for question, _, meant in known]

    def steered(by: float) -> list[Change]:
        return [search.steered(question.text, search.steering(one.words, meant, by)) for question, one, meant in known]

    allowed = float(np.mean([change.drift for change in replaced]))
    matched, at, beyond = steered(0.0), 0.0, _LARGEST
    for _ in range(_HALVINGS):
        between = round((at + beyond) / 2, 2)
        tried = steered(between)
        if float(np.mean([change.drift for change in tried])) > allowed:
            beyond = between
        else:
            matched, at = tried, between
    found = [
        Trial(question, one, meant.features[0], *changes)
        for (question, one, meant), *changes in zip(known, replaced, steered(strength), matched, strict=True)
    ]
    return Trials(tuple(found), unresolved, at)


def _named(search: PerspectiveSearch, feature: int) -> NDArray[np.bool_] | None:
    return search.named(feature)


def _near_label(search: PerspectiveSearch, feature: int) -> NDArray[np.bool_] | None:
    return search.near_label(feature)


_RULES: tuple[Callable[[PerspectiveSearch, int], NDArray[np.bool_] | None], ...] = (_named, _near_label)


def _counts(change: Change, members: NDArray[np.bool_]) -> tuple[int, int]:
    return int(members[change.before].sum()), int(members[change.after].sum())


def _feature(search: PerspectiveSearch, feature: int) -> str:
    return f"#{feature} {one_line(search.catalog.name(feature))}"


def _printed_total(found: Sequence[Trial]) -> str | None:
    printed = [trial.perspective.printed for trial in found if trial.perspective.printed is not None]
    return f"{sum(one[0] for one in printed)}/{sum(one[1] for one in printed)}" if printed else None


def _mean_drifts(found: Sequence[Trial]) -> list[float]:
    return [float(np.mean([trial.ways[place].drift for trial in found])) for place in range(3)]


def _sign(way: str, gains: NDArray[np.int64]) -> str:
    """How often a way gains and loses, with the two-sided sign test."""
    up, down = int((gains > 0).sum()), int((gains < 0).sum())
    return f"{way} has more of {up} afterwards and fewer of {down} (p = {_p(up, down):.2g})"


def _compared(gains: NDArray[np.int64]) -> str:
    """The product's steering at the same drift against the paper's, by the same test."""
    up, down = int((gains[:, 2] > gains[:, 0]).sum()), int((gains[:, 2] < gains[:, 0]).sum())
    return f"At the same drift steering gains more than replace on {up} and less on {down} (p = {_p(up, down):.2g})."


def _p(up: int, down: int) -> float:
    return float(binomtest(up, up + down).pvalue) if up + down else 1.0


def _shared_notes(search: PerspectiveSearch, trials: Trials) -> list[str]:
    units = search.catalog.calibration.unit[[trial.feature for trial in trials.found]]
    config = search.sae.config
    notes = [
        f"{len(search.ids):,} passages; {config.encoder.short_name}, n = {config.n:,}, K = {config.k}. Before/after: "
        f"of the top {TOP}, how many belong to the perspective.",
        f"Replace: {STRENGTH:g} in embedding units ({STRENGTH / float(np.median(units)):.1f} units of these features, "
        "median) is added to the first feature of the query's code, which is decoded and compared with reconstructions "
        "by cosine, as in the paper. Steer: what search(query, steer={words: strength}) does, with all features of the "
        "words; its list before is the plain search's.",
        f"Drift: by how much the mean cosine of the top {TOP} falls, against plain search. The last steering has one "
        f"strength for all questions, {trials.matched:g}: the largest found whose mean drift is at most that of "
        "replace.",
    ]
    if trials.unresolved:
        notes.append(f"No feature answers to: {'; '.join(trials.unresolved)}. Left out.")
    return notes


__all__ = ["STRENGTH", "Trial", "Trials", "labelled_table_4", "run_trials", "table_4"]
