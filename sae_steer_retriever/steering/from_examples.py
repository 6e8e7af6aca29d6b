"""A steering from examples: the features that some passages have and others lack, each with its reason."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.errors import SteeringError, StoreError
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.search import hubs
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.steering.edit import Edit
from sae_steer_retriever.steering.operations import LARGEST_STRENGTH, Side, check_side
from sae_steer_retriever.steering.policy import DEFAULT_DRIFT_CAP, DEFAULT_SIDE, Steering, check_drift_cap
from sae_steer_retriever.store.store_reader import StoreReader

# Features on each side, none weaker than this share of the strongest: further ones are particulars of the examples.
_FEATURES = 5
_WEAKEST = 0.25
# The weight of the corpus beside the examples, in passages.
_PRIOR = 1.0


class Reason(NamedTuple):
    """The reason for one feature of a contrast.

    Attributes:
        feature: The feature's id.
        label: Its display name.
        positives: The number of positive examples that have it.
        negatives: The number of negative examples that have it.
        frequency: Share of the corpus' passages that have it.
        presence: The mean activation in the examples of its side, in units.
        log_odds: Log-odds of its side's examples to have it over the other side's, in nats, smoothed by the corpus.
        strength: The strength that steers by it.
    """

    feature: int
    label: str
    positives: int
    negatives: int
    frequency: float
    presence: float
    log_odds: float
    strength: float


@dataclasses.dataclass(frozen=True)
class Contrast(Steering):
    """A steering made from examples, with its reasons: pass it as `steer=`, print it to see why.

    Attributes:
        reasons: One per edit, in the same order, the strongest first.
        positives: The number of positive examples.
        negatives: The number of negative examples.
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
        """The steering as a `steer=` mapping: "#12" -> +1.0."""
        return {f"#{reason.feature}": reason.strength for reason in self.reasons}

    def to_json(self) -> str:
        """Returns the policy without its reasons, for `Steering.from_json`."""
        return self.steering.to_json()

    def to_dict(self) -> dict[str, Any]:
        """Returns features and reasons as data, for JSON."""
        return {
            "positives": self.positives,
            "negatives": self.negatives,
            "features": [{**reason._asdict(), "reason": self.explain(reason)} for reason in self.reasons],
            "steer": self.steer,
            "warning": self.warning,
        }

    def explain(self, reason: Reason) -> str:
        """Returns one reason as a clause: "in 3 of 3 positives, 0 of 2 negatives, 0.4 % of the corpus"."""
        clause = f"in {reason.positives} of {self.positives} positives"
        if self.negatives:
            clause += f", {reason.negatives} of {self.negatives} negatives"
        return f"{clause}, {_percent(reason.frequency)} of the corpus"

    @property
    def warning(self) -> str | None:
        """A warning if no feature is in more than one of several positives; None otherwise."""
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
        """The table for a notebook; labels are untrusted text, so everything is escaped."""
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
    """Returns a share of the corpus as text; a rare feature is not shown as 0."""
    return "<0.1%" if 0 < frequency < 0.0005 else f"{frequency:.1%}"


def _shown(reason: Reason) -> str:
    """Returns id and label; the name of a feature with a weak label or none holds its id already."""
    number = f"#{reason.feature}"
    return reason.label if number in reason.label.split() else f"{number} {reason.label}"


class ContrastKeywords(TypedDict, total=False):
    """Keywords of `contrast`: `limit` and `side`."""

    limit: int
    side: Side | None


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
    """Returns a steering by the features that positive examples have and negative examples, or the corpus, lack.

    A feature's weight is its smoothed log-odds, times its mean activation in the examples, times the share of them that
    have it. Strengths are scaled so that they sum to `strength` over what the positives have on average (activations
    in units, at most one of each); none is above `strength`. Features that only the negatives have get negative
    strengths. Hubs and dead features are left out.

    Args:
        catalog: Names, units and frequencies of the features.
        positive: (P, k_labels) label latents of the positive examples.
        negative: (N, k_labels) label latents of the negative examples.
        strength: The sum of the strengths over what the positives have on average, in the units of `steer=`.
        limit: The largest number of features for the positives, and against the negatives.
        side: The side that the steering acts on; "both" if not given.
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
    """The activations of each feature in some examples."""

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
    """Returns the features that `having` has and `lacking`, or the corpus, lacks: the strongest first."""
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
    # Strengths sum to `strength` over what the examples have on average; none is above it.
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
            presence=float(having.mean[latent]),
            log_odds=float(log_odds[latent]),
            strength=float(value),
        )
        for latent, value in zip(chosen, strengths, strict=True)
        if value
    ]


def _rate(examples: _Occurrence, corpus: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the share of examples with each feature, as if `_PRIOR` passages of the corpus were among them."""
    return np.asarray((examples.count + _PRIOR * corpus) / (examples.rows + _PRIOR))


def _logit(share: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log(share) - np.log1p(-share))


def labels_of_texts(sae: TopKSAE, embedder: Embedder, texts: Sequence[str]) -> Codes[NDArray[Any]]:
    """Returns (len(texts), k_labels) the label latents of texts, embedded as passages."""
    return sae.encode(embedder.embed_documents(texts)).truncate(sae.config.k_labels)


def labels_of_passages(store: StoreReader, ids: Sequence[str]) -> Codes[NDArray[Any]]:
    """Returns (passages, k_labels) the label latents of stored passages, each once.

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


def joined_labels(parts: Sequence[Codes[NDArray[Any]]]) -> Codes[NDArray[Any]] | None:
    """Returns the label latents of several groups as one; None if there is none."""
    if not parts:
        return None
    indices, values = zip(*parts, strict=True)
    return Codes(np.concatenate(indices), np.concatenate(values))


def checked_texts(examples: Sequence[str], what: str) -> list[str]:
    """Returns examples, texts or ids, as a list.

    Args:
        examples: Anything that yields texts.
        what: Their name in an error: "positive".

    Raises:
        TypeError: Not a list of texts.
        ValueError: A text is blank.
    """
    # Listed first: a generator has its texts only once.
    given = None if isinstance(examples, str) or not isinstance(examples, Iterable) else list(examples)
    if given is None or not all(isinstance(text, str) for text in given):
        raise TypeError(f"{what} must be a list of texts or of ids, e.g. ['one', 'another'].")
    if any(not text.strip() for text in given):
        raise ValueError(f"{what} holds an empty text.")
    return given
