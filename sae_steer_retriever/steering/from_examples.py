"""From examples to a steering: which features some passages have and others lack, each with its reason."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import SteeringError, StoreError
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.search import hubs
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.steering.policy import (
    DEFAULT_DRIFT_CAP,
    DEFAULT_SIDE,
    LARGEST_STRENGTH,
    Edit,
    Side,
    Steering,
    check_drift_cap,
    check_side,
)

if TYPE_CHECKING:
    from sae_steer_retriever.encoders.embedders import Embedder
    from sae_steer_retriever.store.store_reader import StoreReader

# Features on each side, none weaker than this share of the strongest: more of them are the examples' own particulars.
_FEATURES = 5
_WEAKEST = 0.25
# The corpus speaks for as many passages as this beside the examples.
_PRIOR = 1.0


class Reason(NamedTuple):
    """Why a feature is part of a contrast.

    Attributes:
        feature: Its id.
        label: Its display name.
        positives: How many of the positive examples have it.
        negatives: How many of the negative ones.
        frequency: Share of the corpus' passages that have it.
        feature match: How much of it the examples of its side have on average: 1.0 is one unit in each of them.
        log_odds: How much likelier its side's examples are to have it than the other side's, in nats, smoothed by the
            corpus.
        strength: What it is steered by.
    """

    feature: int
    label: str
    positives: int
    negatives: int
    frequency: float
    feature_match: float
    log_odds: float
    strength: float


@dataclasses.dataclass(frozen=True)
class Contrast(Steering):
    """A steering that was read off examples, with its reasons: pass it as `steer=`, print it to see why.

    Attributes:
        reasons: One per edit, in the same order, the strongest first.
        positives: How many examples it is like.
        negatives: How many examples it is unlike.
    """

    reasons: tuple[Reason, ...] = ()
    positives: int = 0
    negatives: int = 0

    @property
    def steering(self) -> Steering:
        """The steering without its reasons."""
        return Steering(self.edits, self.fingerprint, self.drift_cap)

    @property
    def steer(self) -> dict[str, float]:
        """The same as a `steer=` mapping: "#12" -> +1.0."""
        return {f"#{reason.feature}": reason.strength for reason in self.reasons}

    def to_json(self) -> str:
        """The policy, as `Steering.from_json` reads it; reasons are not part of it."""
        return self.steering.to_json()

    def to_dict(self) -> dict[str, Any]:
        """Features and reasons as data, for JSON."""
        return {
            "positives": self.positives,
            "negatives": self.negatives,
            "features": [{**reason._asdict(), "reason": self.explain(reason)} for reason in self.reasons],
            "steer": self.steer,
            "warning": self.warning,
        }

    def explain(self, reason: Reason) -> str:
        """One feature's reason as a clause: "in 3 of 3 positives, 0 of 2 negatives, 0.4 % of the corpus"."""
        clause = f"in {reason.positives} of {self.positives} positives"
        if self.negatives:
            clause += f", {reason.negatives} of {self.negatives} negatives"
        return f"{clause}, {_percent(reason.frequency)} of the corpus"

    @property
    def warning(self) -> str | None:
        """What to doubt: that no feature is in more than one of several positives; None if there is nothing."""
        if self.positives < 2 or any(reason.positives > 1 for reason in self.reasons if reason.strength > 0):
            return None
        return f"none of these is in more than one of the {self.positives} positives: are they about one thing?"

    def __str__(self) -> str:
        """A table: strength, feature, reason."""
        names = [_shown(reason) for reason in self.reasons]
        width = max(map(len, names), default=0)
        lines = [
            f"{reason.strength:>+6.2f}  {name:<{width}}  {self.explain(reason)}"
            for reason, name in zip(self.reasons, names, strict=True)
        ]
        return "\n".join(lines if self.warning is None else [*lines, self.warning])

    def _repr_html_(self) -> str:
        """The same for a notebook; labels are anybody's texts, so all is escaped."""
        cell = "padding:.15em .9em .15em 0;text-align:left"
        rows = "".join(
            f'<tr><td style="{cell}">{reason.strength:+.2f}</td>'
            f'<td style="{cell}">{html.escape(_shown(reason))}</td>'
            f'<td style="{cell}">{html.escape(self.explain(reason))}</td></tr>'
            for reason in self.reasons
        )
        doubt = "" if self.warning is None else f"<p>{html.escape(self.warning)}</p>"
        return f'<table style="border-collapse:collapse">{rows}</table>{doubt}'


def _percent(frequency: float) -> str:
    """A share of the corpus; what is rare is not 0."""
    return "<0.1%" if 0 < frequency < 0.0005 else f"{frequency:.1%}"


def _shown(reason: Reason) -> str:
    """Id and label; a name without a label, or with a weak one, holds the id already."""
    number = f"#{reason.feature}"
    return reason.label if number in reason.label.split() else f"{number} {reason.label}"


def contrast(
    catalog: FeatureCatalog,
    positive: Codes[NDArray[Any]] | None,
    negative: Codes[NDArray[Any]] | None = None,
    *,
    strength: float = 1.0,
    limit: int = _FEATURES,
    side: Side | None = None,
    drift_cap: float = DEFAULT_DRIFT_CAP,
) -> Contrast:
    """The features that positive examples have and negative ones, or else the corpus, lack.

    A feature's weight is its smoothed log-odds, times how much of it the examples have on average, times the share of
    them that have it: what one of several examples has alone is a particular of its own. Strengths are scaled so that
    they sum to `strength` over what the positives have on average, activations in units and at most one of each; none
    is above `strength`. What that adds to a score is up to the side it acts on. Features that the negatives have and
    the positives lack get negative strengths. Hubs and dead features are left out.

    Args:
        catalog: Names, units and frequencies of the features.
        positive: (P, k_labels) label latents of the positive examples.
        negative: (N, k_labels) of the negative ones.
        strength: What the strengths sum to over what the positives have on average, in the units of `steer=`.
        limit: At most so many features for the positives, and as many against the negatives.
        side: Which side the steering acts on; "both" if not given.
        drift_cap: Smallest cosine between the query and the shifted query.

    Raises:
        ValueError: There is no positive example, or `strength` or `limit` is out of range.
        SteeringError: No feature tells the examples apart.
    """
    if positive is None or not len(positive.indices):
        raise ValueError("contrast needs at least one positive example.")
    numbers = isinstance(strength, int | float | np.number) and isinstance(limit, int | np.integer)
    if not numbers or not 0 < strength <= LARGEST_STRENGTH or limit < 1:
        raise ValueError(
            f"strength is {strength!r}, limit {limit!r}: expected a strength above 0 and at most "
            f"{LARGEST_STRENGTH:g}, and a limit that is a whole number of at least 1."
        )
    side, drift_cap = check_side(side) or DEFAULT_SIDE, check_drift_cap(drift_cap)
    having = _Occurrence(positive, catalog)
    lacking = _Occurrence(negative, catalog) if negative is not None and len(negative.indices) else None
    reasons = _told_apart(catalog, having, lacking, strength, limit, against=False)
    if lacking is not None:
        reasons += _told_apart(catalog, lacking, having, strength, limit, against=True)
    if not reasons:
        raise SteeringError(
            "no feature tells these examples apart: they have the same features, or none that is rarer in the corpus. "
            "Give examples of one topic, and negatives of another."
        )
    edits = tuple(Edit(reason.label, (reason.feature,), (1.0,), "add", reason.strength, side) for reason in reasons)
    return Contrast(
        edits,
        catalog.fingerprint,
        drift_cap,
        reasons=tuple(reasons),
        positives=having.rows,
        negatives=0 if lacking is None else lacking.rows,
    )


class _Occurrence:
    """How much of each feature some examples have."""

    def __init__(self, codes: Codes[NDArray[Any]], catalog: FeatureCatalog) -> None:
        self.rows = len(codes.indices)
        self.matrix: Array = np.zeros((self.rows, len(catalog)), dtype=np.float32)
        share = np.minimum(1.0, codes.values / catalog.calibration.unit[codes.indices])
        row = np.broadcast_to(np.arange(self.rows)[:, None], codes.indices.shape)
        # An empty place says "latent 0, activation 0" and must not undo latent 0's own.
        np.maximum.at(self.matrix, (row, codes.indices), np.where(codes.values > 0, share, 0.0))
        self.count: NDArray[np.int64] = (self.matrix > 0).sum(axis=0)
        self.mean: NDArray[np.float64] = self.matrix.mean(axis=0, dtype=np.float64)


def _told_apart(
    catalog: FeatureCatalog,
    having: _Occurrence,
    lacking: _Occurrence | None,
    strength: float,
    limit: int,
    *,
    against: bool,
) -> list[Reason]:
    """The features that `having` has and `lacking`, or the corpus, lacks: the strongest first."""
    calibration = catalog.calibration
    corpus = np.asarray((calibration.count + 0.5) / (calibration.rows + 1.0), dtype=np.float64)
    log_odds = _logit(_rate(having, corpus)) - _logit(corpus if lacking is None else _rate(lacking, corpus))
    excess = having.mean - (0.0 if lacking is None else lacking.mean)
    telling = (log_odds > 0) & (excess > 0) & (calibration.count > 0) & ~hubs(calibration)
    weight = np.where(telling, log_odds * excess * having.count / having.rows, 0.0)
    order = np.argsort(-weight, kind="stable")[:limit]
    chosen = [int(latent) for latent in order if weight[latent] > 0 and weight[latent] >= _WEAKEST * weight[order[0]]]
    if not chosen:
        return []
    shares = weight[chosen] / weight[chosen[0]]
    # So that they sum to `strength` over what the examples have on average; none is above it.
    gain = float((having.matrix[:, chosen] @ shares).mean())
    strengths = np.round(strength * shares * min(1.0, 1.0 / gain), 2) * (-1.0 if against else 1.0)
    counts, others = having.count, np.zeros(len(catalog), dtype=np.int64) if lacking is None else lacking.count
    return [
        Reason(
            feature=latent,
            label=catalog.name(latent),
            positives=int((others if against else counts)[latent]),
            negatives=int((counts if against else others)[latent]),
            frequency=float(calibration.frequency[latent]),
            feature_match=float(having.mean[latent]),
            log_odds=float(log_odds[latent]),
            strength=float(value),
        )
        for latent, value in zip(chosen, strengths, strict=True)
        if value
    ]


def _rate(examples: _Occurrence, corpus: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of examples with each feature, as if `_PRIOR` passages of the corpus were among them."""
    return np.asarray((examples.count + _PRIOR * corpus) / (examples.rows + _PRIOR))


def _logit(share: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log(share) - np.log1p(-share))


def names_of_texts(sae: TopKSAE, embedder: Embedder, texts: Sequence[str]) -> Codes[NDArray[Any]]:
    """(len(texts), k_labels) the label latents of texts, embedded as passages."""
    return sae.encode(embedder.embed_documents(texts)).truncate(sae.config.k_labels)


def names_of_passages(store: StoreReader, ids: Sequence[str]) -> Codes[NDArray[Any]]:
    """(passages, k_labels) the label latents of stored passages, each once.

    Raises:
        StoreError: One is not in the collection.
    """
    ids = list(dict.fromkeys(ids))
    there = set(store.existing(ids))
    missing = [name for name in ids if name not in there]
    if missing:
        shown = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
        verb = "are" if len(missing) > 1 else "is"
        raise StoreError(
            f"{shown} {verb} not in collection {store.documents.name!r}: give ids of passages as hits have them."
        )
    return store.codes(ids).truncate(store.sae.config.k_labels)


def joined_names(parts: Sequence[Codes[NDArray[Any]]]) -> Codes[NDArray[Any]] | None:
    """Several readings below one another; None if there is none."""
    if not parts:
        return None
    indices, values = zip(*parts, strict=True)
    return Codes(np.concatenate(indices), np.concatenate(values))


def checked_texts(examples: Sequence[str], what: str) -> list[str]:
    """Examples, texts or ids, as a list.

    Args:
        examples: As the user gave them; anything that yields texts.
        what: What to call them in an error: "positive".

    Raises:
        TypeError: They are one text, no list, or not texts.
        ValueError: One is blank.
    """
    # Listed first: a generator has its texts only once.
    given = None if isinstance(examples, str) or not isinstance(examples, Iterable) else list(examples)
    if given is None or not all(isinstance(text, str) for text in given):
        raise TypeError(f"{what} must be a list of texts or of ids, e.g. ['one', 'another'].")
    if any(not text.strip() for text in given):
        raise ValueError(f"{what} holds an empty text.")
    return given


__all__ = [
    "Contrast",
    "Reason",
    "checked_texts",
    "contrast",
    "joined_names",
    "names_of_passages",
    "names_of_texts",
]
