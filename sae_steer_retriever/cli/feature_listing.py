"""Features as lines of a table, and as data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_steer_retriever.features.feature import Feature


def feature_table(features: Iterable[Feature]) -> list[str]:
    """A head and a line for each feature."""
    lines = [f"{'id':>7}  {'score':>5}  {'frequency':>9}  label"]
    lines += [
        f"{'#' + str(feature.id):>7}  {_score(feature):>5}  {feature.frequency:>9.2%}  {feature.name}"
        for feature in features
    ]
    return lines


def feature_data(feature: Feature) -> dict[str, Any]:
    """What the table says of a feature, for JSON."""
    return {
        "id": feature.id,
        "label": feature.label,
        "name": feature.name,
        "score": feature.label_score,
        "frequency": feature.frequency,
        "label_by": feature.label_by,
    }


def _score(feature: Feature) -> str:
    return "-" if feature.label_score is None else f"{feature.label_score:.2f}"
