"""A page with all that is known of one feature: as text, as HTML for a notebook, and as JSON data."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from sae_steer_retriever.explain.text import excerpt
from sae_steer_retriever.features.evidence import QUANTILES, Example, FeatureEvidence
from sae_steer_retriever.features.feature import BY_KEYWORDS, BY_PERSON, Family, Feature
from sae_steer_retriever.features.trie import Trie

_TRIE_LINES, _WIDTH = 30, 11
_NEAREST, _WORDS = "nearest", "words that carry it"
_TITLES = {
    "examples": "examples",
    "top": "where it is strongest",
    "middle": "across its range",
    "near_misses": "near misses: its neighbours' passages, without it",
}
_CELL = "padding:.15em .9em .15em 0;vertical-align:top;text-align:left"
# Opacity, not a colour: the notebook's page may be light or dark.
_FAINT = "opacity:.65"


class NamedNeighbour(NamedTuple):
    """A feature near this one, and the cosine of the two decoder directions."""

    feature: Feature
    cosine: float


@dataclasses.dataclass(frozen=True)
class FeaturePage:
    """A feature's page, as `catalog.show` returns it: `print` it, or let a notebook show it.

    Attributes:
        feature: The latent with its label.
        count: Passages in which it is active.
        rows: Passages of the corpus.
        maximum: Its largest activation.
        evidence: Passages, quantiles, words; None if the catalog was made without.
        neighbours: The features nearest by decoder direction.
        family: The group it belongs to, if any.
        note: A person's note beside the label.
        generated: The generated label, also where a person's label replaces it.
        texts: Passages by id, as far as they are known.

    Example:
        >>> page = catalog.show(catalog.labelled[0].id)
        >>> page.to_dict()["label"] == page.feature.label
        True
    """

    feature: Feature
    count: int
    rows: int
    maximum: float
    evidence: FeatureEvidence | None
    neighbours: tuple[NamedNeighbour, ...]
    family: Family | None
    note: str | None = None
    generated: str = ""
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def passages(self) -> tuple[str, ...]:
        """Ids of all passages on the page, each once."""
        return tuple(dict.fromkeys(example.id for part in self._parts().values() for example in part))

    def with_texts(self, texts: Mapping[str, str]) -> FeaturePage:
        """The same page with the passages' texts, given by id; a passage without one is shown by its id."""
        return dataclasses.replace(self, texts=dict(texts))

    @property
    def trie(self) -> str | None:
        """The words that carry the feature, as an indented tree; None where it has none."""
        if self.evidence is None or self.evidence.trie is None:
            return None
        return Trie.from_json(self.evidence.trie).to_text().strip("\n") or None

    def __str__(self) -> str:
        """The page for a terminal."""
        lines = [f"#{self.feature.id}  {_printable(_named(self.feature))}"]
        lines += [f"{name:<{_WIDTH}}{value}" for name, value in self._facts()]
        lines += [_NEAREST] if self.neighbours else []
        lines += [f"    {cosine:+.2f}  #{other.id} {_printable(_named(other))}" for other, cosine in self.neighbours]
        if trie := self._trie_lines():
            lines += [_WORDS, *(f"    {line}" for line in trie)]
        for key, examples in self._parts().items():
            lines.append(_TITLES[key])
            for example in examples:
                lines.append(f"    {_strength(example)}{_printable(example.id)}")
                if text := excerpt(self.texts.get(example.id, "")):
                    lines.append(f"        {text}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The page for a notebook; labels, ids and passages are untrusted texts, so all of them are escaped."""
        facts = "".join(
            f'<tr><th style="{_CELL}">{_escaped(name)}</th><td style="{_CELL}">{_escaped(value)}</td></tr>'
            for name, value in self._facts()
        )
        parts = [
            f"<h4>#{self.feature.id} {_escaped(_named(self.feature))}</h4>",
            f'<table style="border-collapse:collapse">{facts}</table>',
        ]
        if self.neighbours:
            rows = "".join(
                f"<li>{cosine:+.2f} {_faint(f'#{other.id}')} {_escaped(_named(other))}</li>"
                for other, cosine in self.neighbours
            )
            parts.append(f"<h5>{_NEAREST}</h5><ul>{rows}</ul>")
        if trie := self._trie_lines():
            parts.append(f"<h5>{_WORDS}</h5><pre>{html.escape(chr(10).join(trie))}</pre>")
        for key, examples in self._parts().items():
            rows = "".join(
                f"<li>{_faint(_strength(example) + example.id)} "
                f"{_escaped(excerpt(self.texts.get(example.id, '')))}</li>"
                for example in examples
            )
            is_open = " open" if key in ("top", "examples") else ""
            parts.append(f"<details{is_open}><summary>{_escaped(_TITLES[key])}</summary><ul>{rows}</ul></details>")
        return f"<div>{''.join(parts)}</div>"

    def to_dict(self) -> dict[str, Any]:
        """The page as data, for JSON."""
        feature, evidence = self.feature, self.evidence
        passages = {
            key: [{**example._asdict(), "text": self.texts.get(example.id)} for example in examples]
            for key, examples in self._parts().items()
            if key != "examples"
        }
        return {
            "id": feature.id,
            "label": feature.label,
            "name": feature.name,
            "label_by": feature.label_by,
            "generated_label": self.generated,
            "note": self.note,
            "keywords": list(feature.keywords),
            "score": feature.label_score,
            "label_score": None if feature.score is None else feature.score._asdict(),
            "frequency": feature.frequency,
            "active_in": self.count,
            "passages": self.rows,
            "unit": feature.unit,
            "maximum": self.maximum,
            "quantiles": dict(zip(map(str, QUANTILES), evidence.quantiles, strict=False)) if evidence else None,
            "family": None if self.family is None else {"id": self.family.id, "name": self.family.name},
            "nearest": [{"id": one.id, "label": one.name, "cosine": cosine} for one, cosine in self.neighbours],
            "examples": [{"id": name, "text": self.texts.get(name)} for name in feature.examples],
            **passages,
            "trie": None if evidence is None or evidence.trie is None else dict(evidence.trie),
        }

    def _facts(self) -> list[tuple[str, str]]:
        feature = self.feature
        facts = [("keywords", ", ".join(map(_printable, feature.keywords)) or "-")]
        if feature.label_by == BY_PERSON:
            generated = f"; generated: {_printable(self.generated)}" if self.generated else ""
            facts.append(("named", f"by a person{generated}"))
        elif feature.label and feature.label_by != BY_KEYWORDS:
            facts.append(("named", f"by {_printable(feature.label_by)}"))
        if self.note:
            facts.append(("note", _printable(" ".join(self.note.split()))))
        facts.append(("score", score_line(feature)))
        share = f"{self.count:,} of {self.rows:,} passages ({feature.frequency:.2%})"
        facts.append(("frequency", share if self.count else "in no passage of the corpus: it is dead"))
        meaning = "the activation that 1.0 in a steering stands for"
        facts.append(("unit", f"{feature.unit:.4f}, {meaning}; largest {self.maximum:.4f}"))
        if self.evidence is not None and self.evidence.quantiles:
            pairs = zip(QUANTILES, self.evidence.quantiles, strict=False)
            shown = "  ".join(f"{value:.3f} ({share:.0%})" for share, value in pairs)
            facts.append(("strength", f"{shown} of the passages that have it"))
        if not self._parts() and self.count:
            facts.append(("passages", "none are kept with this SAE: its corpus is not here. A store shows its own."))
        if self.family is not None:
            members = len(self.family.features)
            facts.append(("family", f"{_printable(self.family.name)} ({members} features, family #{self.family.id})"))
        return facts

    def _trie_lines(self) -> list[str]:
        lines = [_printable(line) for line in (self.trie or "").splitlines()]
        more = len(lines) - _TRIE_LINES
        return lines if more <= 0 else [*lines[:_TRIE_LINES], f"... and {more} more"]

    def _parts(self) -> dict[str, tuple[Example, ...]]:
        """Passages by their key in `_TITLES`."""
        if self.evidence is None:
            found = {"examples": tuple(Example(name, math.nan) for name in self.feature.examples)}
        else:
            found = {key: getattr(self.evidence, key) for key in ("top", "middle", "near_misses")}
        return {key: examples for key, examples in found.items() if examples}


def _named(feature: Feature) -> str:
    return feature.name if feature.label else "(no label)"


def score_line(feature: Feature) -> str:
    """A label's score with its intervals, or the reason why it has none."""
    if feature.score is None:
        if not feature.label:
            return "-  (it has no label)"
        if feature.label_by == BY_PERSON:
            return "-  (a person's name is not measured)"
        return "-  (not measured: too few unseen passages with it, or too few of its neighbours' without it)"
    score = feature.score
    line = f"{score.hard:.2f}{_interval(score.hard_interval)} against near misses"
    if math.isfinite(score.random):
        line += f", {score.random:.2f}{_interval(score.random_interval)} against random passages"
    on = f" on {score.passages:,} unseen passages" if score.passages else ""
    return f"{line}  (how well the label finds the feature's passages{on}: AUROC, 0.5 is chance)"


def _interval(bounds: tuple[float, float]) -> str:
    low, high = bounds
    return "" if (low, high) == (0.0, 1.0) else f" [{low:.2f}, {high:.2f}]"


def _strength(example: Example) -> str:
    return f"{example.strength:.3f}  " if math.isfinite(example.strength) and example.strength else ""


def _printable(text: str) -> str:
    """Without control characters, which a terminal would obey."""
    return text if text.isprintable() else "".join(one if one.isprintable() else " " for one in text)


def _escaped(text: str) -> str:
    return html.escape(_printable(text))


def _faint(text: str) -> str:
    return f'<span style="{_FAINT}">{_escaped(text)}</span>'
