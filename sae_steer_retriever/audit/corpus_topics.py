"""The topics of a corpus: its most frequent features and families, and how much of it the SAE explains."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.audit.audited_queries import sample_rows
from sae_steer_retriever.audit.subject import Excerpt, NamedFeature, Subject
from sae_steer_retriever.labelling.label_scores import auroc
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE

TOPICS = 15
# Most passages that are reconstructed to measure the unexplained variance.
_RECONSTRUCTED = 20_000
# Most passages that a label is scored on, and the fewest of each kind that a score needs.
_LABEL_TESTED, _LABEL_PASSAGES = 5000, 5
# A feature this many times as frequent as in the text that it was labelled on may mean something else here.
_UNUSUAL = 10.0
_WORST, _BINS, _QUANTILES = 10, 20, (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclasses.dataclass(frozen=True)
class Topic:
    """A frequent feature."""

    feature: NamedFeature
    share: float  # share of the passages that have it
    # `share` over its share of the corpus that the SAE was labelled on; None if it does not occur there.
    lift: float | None
    # AUROC of its label on this corpus: passages with the feature against others; None if unknown.
    label_here: float | None
    family: str | None

    @property
    def family_name(self) -> str:
        """The family's name; empty if there is none."""
        return self.family or ""


@dataclasses.dataclass(frozen=True)
class FamilyTopic:
    """A frequent family."""

    id: int
    name: str
    features: int  # how many features it has
    share: float  # share of the passages that have any of them


class WorstPassage(NamedTuple):
    """A passage with a large unexplained share of its variance."""

    unexplained: float
    passage: Excerpt


@dataclasses.dataclass(frozen=True)
class Unexplained:
    """Shares of passages' variance that the SAE does not reconstruct."""

    passages: int  # how many passages were measured
    quantiles: tuple[float, ...]  # the 5th, 25th, 50th, 75th and 95th percentile
    counts: tuple[int, ...]  # passages in each twentieth of 0 to 1; the last one includes those above 1
    worst: tuple[WorstPassage, ...]  # the largest shares with their passages


@dataclasses.dataclass(frozen=True)
class CorpusTopics:
    """The topics of a corpus."""

    topics: tuple[Topic, ...]  # the most frequent features with a clear label
    families: tuple[FamilyTopic, ...]  # the most frequent families
    live: int  # how many features occur
    clear: int  # how many of them have a clear label
    coverage: float  # share of the passages with at least one of these
    # Share of all label latents whose feature is ten times as frequent as in the text it was labelled on.
    foreign: float
    unexplained: Unexplained  # the variance of passages that is not explained


def corpus_topics(subject: Subject) -> CorpusTopics:
    """Count features and families over the coded passages, and reconstruct a sample of them."""
    live = subject.count > 0
    covered = np.asarray(subject.passage_names @ subject.clear.astype(np.int64)) > 0
    ranked = np.argsort(-np.where(subject.clear, subject.frequency, 0), kind="stable")[:TOPICS]
    before = subject.catalog.calibration.frequency
    unusual = subject.frequency > _UNUSUAL * np.maximum(before, 1 / max(subject.catalog.calibration.rows, 1))
    return CorpusTopics(
        topics=tuple(_topic(subject, feature) for feature in ranked.tolist() if live[feature]),
        families=_families(subject),
        live=int(live.sum()),
        clear=int((live & subject.clear).sum()),
        coverage=float(covered.mean()),
        foreign=float(subject.count[unusual].sum() / max(subject.count.sum(), 1)),
        unexplained=_unexplained(subject),
    )


def unexplained_shares(sae: TopKSAE, vectors: Array, reconstructed: Array) -> NDArray[np.float64]:
    """(batch,) `|x - x_hat|^2 / |x - b|^2`, b the decoder's bias: 0 is fully explained, 1 no better than the mean."""
    rest = ((vectors - reconstructed) ** 2).sum(axis=1)
    whole = ((vectors - sae.bias) ** 2).sum(axis=1)
    return np.asarray(rest / np.maximum(whole, np.finfo(np.float32).tiny), dtype=np.float64)


def _topic(subject: Subject, feature: int) -> Topic:
    share, before = float(subject.frequency[feature]), float(subject.catalog.calibration.frequency[feature])
    family = subject.catalog[feature].family
    names = {found.id: found.name for found in subject.catalog.families}
    return Topic(
        subject.named(feature),
        share,
        share / before if before > 0 else None,
        _label_here(subject, feature),
        None if family is None else names.get(family),
    )


def _label_here(subject: Subject, feature: int) -> float | None:
    """How well the label's embedding separates the passages that have the feature from others."""
    labels = subject.catalog.label_embeddings
    if labels is None or not labels[feature].any():
        return None
    places = sample_rows(len(subject.store.coded), _LABEL_TESTED, subject.seed)
    own = subject.passage_names[places][:, [feature]].toarray().reshape(-1) > 0
    if own.sum() < _LABEL_PASSAGES or (~own).sum() < _LABEL_PASSAGES:
        return None
    cosines = subject.store.unit_vectors(subject.store.coded[places]) @ labels[feature]
    return auroc(cosines[own], cosines[~own])


def _families(subject: Subject) -> tuple[FamilyTopic, ...]:
    found = [
        FamilyTopic(family.id, family.name, len(family.features), float(share))
        for family, share in zip(subject.catalog.families, subject.family_frequency, strict=True)
        if share > 0
    ]
    return tuple(sorted(found, key=lambda family: (-family.share, family.id))[:TOPICS])


def _unexplained(subject: Subject) -> Unexplained:
    store = subject.store
    places = sample_rows(len(store.coded), _RECONSTRUCTED, subject.seed)
    parts = []
    for start in range(0, len(places), 2000):
        rows = store.coded[places[start : start + 2000]]
        parts.append(unexplained_shares(store.sae, store.unit_vectors(rows), store.sae.decode(store.codes_at(rows))))
    shares = np.concatenate(parts)
    worst = np.argsort(-shares, kind="stable")[:_WORST]
    excerpts = subject.excerpts(store.coded[places[worst]].tolist())
    counts, _ = np.histogram(np.clip(shares, 0, 1), bins=_BINS, range=(0, 1))
    return Unexplained(
        passages=len(places),
        quantiles=tuple(float(value) for value in np.quantile(shares, _QUANTILES)),
        counts=tuple(counts.tolist()),
        worst=tuple(map(WorstPassage, shares[worst].tolist(), excerpts)),
    )
