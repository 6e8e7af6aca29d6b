"""Tables 4, 5 and 9 of arXiv 2411.00786: top 5 of questions with two perspectives, before and after steering."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.errors import CorpusError
from sae_steer_retriever.evaluate.datasets import read_retrieval_set
from sae_steer_retriever.evaluate.table import Cell, Column, Table
from sae_steer_retriever.explain.text import one_line
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.topk_sae import TopKSAE

from ..steering.corpus import read_labelled_corpus
from .perspective_questions import NEWSGROUP_QUESTIONS, PAPER_QUESTIONS, BinaryQuestion, Perspective
from .perspective_search import TOP, Change, PerspectiveSearch

STRENGTH = 0.5
"""The addition: in embedding units for decode-replace, in units of the feature for steering."""

# Bound and number of halvings of the search for the strength that costs as much query cosine as the paper's way.
_LARGEST, _HALVINGS = 8.0, 8
# "Drift" is the cosine loss: the columns of the files keep their names.
_WAYS = (f"replace +{STRENGTH:g}", f"steer +{STRENGTH:g}", "steer, same drift")


class Trial(NamedTuple):
    """One perspective of one question, and the changes by three ways to steer.

    Attributes:
        question: The question.
        perspective: The perspective.
        feature: The first feature that its words mean.
        replaced: The paper's decode-replace.
        steered: The product's steering with the same number as strength.
        matched: The product's steering at one strength for all questions that costs as much as `replaced`.
    """

    question: BinaryQuestion
    perspective: Perspective
    feature: int
    replaced: Change
    steered: Change
    matched: Change

    @property
    def ways(self) -> tuple[Change, Change, Change]:
        """Returns the three changes."""
        return self.replaced, self.steered, self.matched


class Trials(NamedTuple):
    """The trials of all perspectives whose words mean a feature.

    Attributes:
        found: One trial a perspective.
        unresolved: Words that mean no feature.
        matched: The strength of `Trial.matched`.
    """

    found: tuple[Trial, ...]
    unresolved: tuple[str, ...]
    matched: float


def perspectives_study(
    sae: Path, embedder: Embedder, *, dataset: str | Path | None = None, corpus: Path | None = None, split: str = "test"
) -> Table:
    """Returns Table 4: the paper's questions on a set's documents, or twenty others on labelled passages.

    Args:
        sae: Folder of the SAE and its catalog.
        embedder: The SAE's encoder, a `CachedEmbedder`.
        dataset: A judged set; only its documents are used.
        corpus: Or a file of rows with `text` and `label` or `labels`.
        split: Split of the judged set.

    Raises:
        ArtifactError: The SAE or its catalog cannot be read.
        CorpusError: The passages cannot be read, or none of the questions is about them.
        MismatchError: The embedder is not the SAE's encoder.
        ValueError: Both or neither are given.
    """
    dictionary = TopKSAE.from_pretrained(sae)
    dictionary.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
    catalog = FeatureCatalog.load(sae, dictionary.fingerprint)
    if corpus is not None and dataset is None:
        labelled = read_labelled_corpus(corpus)
        vectors = embedder.embed_documents(labelled.texts)
        search = PerspectiveSearch(dictionary, catalog, embedder, labelled.ids, vectors)
        return labelled_table_4(search, labelled.labels)
    if dataset is not None and corpus is None:
        judged = read_retrieval_set(dataset, split=split)
        vectors = embedder.embed_documents(judged.texts)
        return table_4(PerspectiveSearch(dictionary, catalog, embedder, judged.document_ids, vectors))
    raise ValueError("expected either dataset or corpus, the passages to search, and not both.")


def table_4(search: PerspectiveSearch, questions: Sequence[BinaryQuestion] = PAPER_QUESTIONS) -> Table:
    """Returns Tables 4, 5 and 9: the paper's questions, with features that match the words of the paper's labels.

    The paper does not say who judges whether a passage belongs to a perspective. Two rules stand in for its judges: the
    feature is a label latent of the passage; and the passage's cosine with the feature's label is at least the median
    of those passages.

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
    totals = np.zeros((2, 3, 2), dtype=np.int64)
    for trial in trials.found:
        members = [search.named(trial.feature), search.near_label(trial.feature)]
        counts = [[None if own is None else _counts(change, own) for own in members] for change in trial.ways]
        for way, of_way in enumerate(counts):
            for rule, counted in enumerate(of_way):
                totals[rule, way] += counted or (0, 0)
        printed = trial.perspective.printed
        rows.append((
            trial.question.text, trial.perspective.words, _feature(search, trial.feature),
            None if printed is None else f"{printed[0]}/{printed[1]}",
            *(None if counted is None else f"{counted[0]}/{counted[1]}" for of_way in counts for counted in of_way),
            *(change.cosine_loss for change in trial.ways),
        ))  # fmt: skip
    rows.append((
        "all", None, None, _printed_total(trials.found),
        *(f"{totals[rule, way, 0]}/{totals[rule, way, 1]}" for way in range(3) for rule in range(2)),
        *_mean_losses(trials.found),
    ))  # fmt: skip
    notes = (
        *_shared_notes(search, trials),
        "Two rules say which passages belong to a perspective. Named: the feature is one of the passage's "
        f"{search.sae.config.k_labels} label latents. Label: the cosine of the passage and the feature's label is at "
        "least the median of the passages named so. A document boost rewards exactly what the first, lenient rule "
        "counts.",
        "The paper's counts are for another encoder, millions of passages and unnamed judges; it prints the strength "
        "0.5 for Table 4 only.",
    )
    return Table("Table 4: questions with two perspectives, top 5", tuple(columns), tuple(rows), notes, "table-4")


def labelled_table_4(
    search: PerspectiveSearch,
    labels: Sequence[frozenset[str]],
    questions: Sequence[BinaryQuestion] = NEWSGROUP_QUESTIONS,
) -> Table:
    """Returns Table 4 for passages with labels, which say which passages belong to a perspective.

    Args:
        search: The passages, the SAE and its catalog.
        labels: N sets of labels, one a passage.
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
            *map(int, counted.ravel()), *(change.cosine_loss for change in trial.ways),
        )
        for trial, counted in zip(trials.found, counts, strict=True)
    ]  # fmt: skip
    rows.append(("all", None, None, None, *map(int, counts.sum(axis=0).ravel()), *_mean_losses(trials.found)))
    gains = counts[..., 1] - counts[..., 0]
    notes = (
        *_shared_notes(search, trials),
        f"The labels say which passages belong to a perspective. Of {len(counts)} perspectives: "
        + "; ".join(_sign(way, gains[:, place]) for place, way in enumerate(_WAYS))
        + f". {_compared(gains)}",
        "The questions and the words were written down before the first search.",
    )
    title = "Table 4 on labelled passages: questions with two perspectives, top 5"
    return Table(title, tuple(columns), tuple(rows), notes, "table-4-labelled")


def run_trials(search: PerspectiveSearch, questions: Sequence[BinaryQuestion], strength: float = STRENGTH) -> Trials:
    """Returns a search for every perspective, by decode-replace and by the product's default.

    Args:
        search: The passages, the SAE and its catalog.
        questions: The questions.
        strength: The addition.

    Raises:
        CorpusError: No perspective's words mean a feature.
    """
    asked = [(question, one, search.meant(one.words)) for question in questions for one in question.perspectives]
    known = [(question, one, meant) for question, one, meant in asked if meant is not None]
    unresolved = tuple(dict.fromkeys(one.words for _, one, meant in asked if meant is None))
    if not known:
        raise CorpusError(
            f"none of the perspectives has a feature: nothing matches {', '.join(map(repr, unresolved[:3]))}; use "
            "an SAE that was fitted to such passages"
        )
    replaced = [search.replaced(question.text, meant.features[0], strength) for question, _, meant in known]

    def steered(by: float) -> list[Change]:
        return [search.steered(question.text, search.steering(one.words, meant, by)) for question, one, meant in known]

    allowed = float(np.mean([change.cosine_loss for change in replaced]))
    matched, at, beyond = steered(0.0), 0.0, _LARGEST
    for _ in range(_HALVINGS):
        between = round((at + beyond) / 2, 2)
        tried = steered(between)
        if float(np.mean([change.cosine_loss for change in tried])) > allowed:
            beyond = between
        else:
            matched, at = tried, between
    found = [
        Trial(question, one, meant.features[0], *changes)
        for (question, one, meant), *changes in zip(known, replaced, steered(strength), matched, strict=True)
    ]
    return Trials(tuple(found), unresolved, at)


def _counts(change: Change, members: NDArray[np.bool_]) -> tuple[int, int]:
    return int(members[change.before].sum()), int(members[change.after].sum())


def _feature(search: PerspectiveSearch, feature: int) -> str:
    return f"#{feature} {one_line(search.catalog.name(feature))}"


def _printed_total(found: Sequence[Trial]) -> str | None:
    printed = [trial.perspective.printed for trial in found if trial.perspective.printed is not None]
    return f"{sum(one[0] for one in printed)}/{sum(one[1] for one in printed)}" if printed else None


def _mean_losses(found: Sequence[Trial]) -> list[float]:
    return [float(np.mean([trial.ways[place].cosine_loss for trial in found])) for place in range(3)]


def _sign(way: str, gains: NDArray[np.int64]) -> str:
    """How often a way gains and loses, with a two-sided sign test."""
    up, down = int((gains > 0).sum()), int((gains < 0).sum())
    return f"{way} has more of {up} afterwards and fewer of {down} (p = {_p(up, down):.2g})"


def _compared(gains: NDArray[np.int64]) -> str:
    """The product's steering against the paper's way at the same cosine loss, by the same test."""
    up, down = int((gains[:, 2] > gains[:, 0]).sum()), int((gains[:, 2] < gains[:, 0]).sum())
    return (
        f"At the same cosine loss steering gains more than replace on {up} and less on {down} (p = {_p(up, down):.2g})."
    )


def _p(up: int, down: int) -> float:
    return float(binomtest(up, up + down).pvalue) if up + down else 1.0


def _shared_notes(search: PerspectiveSearch, trials: Trials) -> list[str]:
    units = search.catalog.calibration.unit[[trial.feature for trial in trials.found]]
    config = search.sae.config
    notes = [
        f"{len(search.ids):,} passages; {config.encoder.short_name}, n = {config.n:,}, K = {config.k}. Before/after: "
        f"passages of the perspective in the top {TOP}.",
        f"Replace: {STRENGTH:g} in embedding units ({STRENGTH / float(np.median(units)):.1f} units of these features, "
        "median) is added to the first feature of the query's code, which is decoded and compared with reconstructions "
        "by cosine, as in the paper. Steer: search(query, steer={words: strength}), with all features of the words; "
        "its list before is that of the plain search.",
        f"Drift: relative fall of the mean query cosine of the top {TOP} against plain search. The last steering has "
        f"one strength for all questions, {trials.matched:g}: the largest with a mean drift of at most that of "
        "replace.",
    ]
    if trials.unresolved:
        notes.append(f"No feature answers to: {'; '.join(trials.unresolved)}. Left out.")
    return notes
