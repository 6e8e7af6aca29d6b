"""Report of a fit: its figures, the next command, and the model card."""

from __future__ import annotations

import dataclasses
from typing import Any

from sae_steer_retriever.sae.config import former_keys
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.callbacks import Measured

_COURSE_COLUMNS = 8


@dataclasses.dataclass(frozen=True)
class Adapted:
    """The SAE that was adapted, and its own figures on the held-out rows and queries before."""

    parent: str  # the encoder's name of a bundled SAE, else folder or hub id
    fingerprint: str  # the parent's
    kept: int  # features that keep their ids and their meaning: all of the parent's
    added: int  # new features, which come after them
    live: int  # features that are a label latent of some passage of the corpus
    fvu_before: float  # fraction of variance unexplained
    overlap_before: float  # overlap@10


@dataclasses.dataclass(frozen=True)
class TrainReport:
    """The outcome of `fit`.

    Attributes:
        output: The SAE's folder, as given.
        corpus: The corpus, as given.
        passages: Number of passages.
        rows: Number of rows fitted: passages, their query-like texts, queries.
        latents: Number of latents.
        k: Active latents per embedding.
        k_labels: Label latents per embedding.
        fvu: Fraction of variance unexplained on fitted rows.
        fvu_held_out: The same on held-out rows.
        overlap: overlap@10 of held-out queries with reconstructions on both sides: the retention.
        dead: Share of latents that no passage activates.
        l0: Mean number of active latents per passage.
        labelled: Features with a label.
        auroc_random: Median label AUROC on unseen passages, against random ones.
        auroc_hard: The same against hard negatives.
        random_auroc_random: `auroc_random` of a frozen random dictionary; NaN for an adaptation.
        random_auroc_hard: `auroc_hard` of a frozen random dictionary; NaN for an adaptation.
        seconds_embedding: Time spent embedding.
        seconds_fitting: Time spent fitting.
        seconds_labelling: Time spent labelling and scoring labels.
        skipped: Files and rows that were left out, with the reasons.
        advice: What suffers from the size of the corpus, and what to do about it.
        measured: The measurements during the fit, before the held-out rows joined.
        adapted: The SAE that was adapted; None for a fit from scratch.
    """

    output: str
    corpus: str
    passages: int
    rows: int
    latents: int
    k: int
    k_labels: int
    fvu: float
    fvu_held_out: float
    overlap: float
    dead: float
    l0: float
    labelled: int
    auroc_random: float
    auroc_hard: float
    random_auroc_random: float
    random_auroc_hard: float
    seconds_embedding: float
    seconds_fitting: float
    seconds_labelling: float
    skipped: tuple[tuple[str, str], ...] = ()
    advice: tuple[str, ...] = ()
    measured: tuple[Measured, ...] = ()
    adapted: Adapted | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything, as one JSON object; a figure that could not be measured is null."""
        return {
            name: None if isinstance(value, float) and value != value else value
            for name, value in former_keys(dataclasses.asdict(self)).items()
        }

    def metrics(self) -> dict[str, float]:
        """The measurements, for `config.json`."""
        names = ("fvu", "fvu_held_out", "overlap", "dead", "l0", "labelled", "auroc_random", "auroc_hard")
        return {name: round(value, 4) for name in names if (value := getattr(self, name)) == value}

    def summary(self) -> str:
        """Several lines for a person; the last has the main figures, the one before it the next command."""
        total = self.seconds_embedding + self.seconds_fitting + self.seconds_labelling
        control = "" if self.adapted else f" (a random dictionary: {_aurocs(self, 'random_')})"
        lines = [
            f"{self.passages:,} passages, {self.rows:,} rows fitted; "
            f"{self.latents:,} latents, k = {self.k}, {self.k_labels} label latents a passage",
            f"labels   {self.labelled:,} of {self.latents:,} features; AUROC on unseen passages, random / hard "
            f"negatives: {_aurocs(self)}{control}",
            f"time     embedding {self.seconds_embedding:.0f} s, fitting {self.seconds_fitting:.0f} s, "
            f"labelling {self.seconds_labelling:.0f} s",
        ]
        if (adapted := self.adapted) is not None:
            lines.insert(
                1,
                f"adapted  from {adapted.parent} ({adapted.fingerprint}): {adapted.kept:,} features keep ids and "
                f"labels, {adapted.added:,} are new; {adapted.live:,} occur in this corpus; before, held-out FVU "
                f"{adapted.fvu_before:.3f}, retention {adapted.overlap_before:.3f}",
            )
        lines += _course(self.measured)
        if self.skipped:
            first = "; ".join(f"{path} ({why})" for path, why in self.skipped[:3])
            lines.append(f"skipped  {len(self.skipped)}: {first}")
        lines += [f"advice   {sentence}" for sentence in self.advice]
        lines.append(f"next     sae-steer index --corpus {self.corpus} --sae {self.output} --store ./chroma")
        lines.append(
            f"FVU {self.fvu:.3f} (held out {self.fvu_held_out:.3f}) · retention {self.overlap:.3f} overlap@10 · "
            f"dead {100 * self.dead:.1f} % · L0 {self.l0:.0f} · {total:.0f} s -> {self.output}"
        )
        return "\n".join(lines)


def _course(measured: tuple[Measured, ...]) -> list[str]:
    """A small table of the measurements: the first, the last and some between them."""
    if not measured:
        return []
    columns = min(_COURSE_COLUMNS, len(measured))
    last = len(measured) - 1
    shown = [measured[round(column * last / max(1, columns - 1))] for column in range(columns)]
    rows = {
        "step": [f"{record.step:,}" for record in shown],
        "held-out FVU": [f"{record.fvu:.3f}" for record in shown],
        "retention": [f"{record.overlap:.3f}" for record in shown],
        "dead %": [f"{100 * record.dead:.1f}" for record in shown],
    }
    table = [
        f"{'course' if name == 'step' else '':<8} {name:<12}" + "".join(f"{cell:>8}" for cell in cells)
        for name, cells in rows.items()
    ]
    return [*table, f"{'':<8} (measured without the refinement; the last line below is measured with it)"]


def _aurocs(report: TrainReport, prefix: str = "") -> str:
    """Median label AUROC against random and against hard negatives; - where it could not be measured."""
    values = (getattr(report, f"{prefix}auroc_{kind}") for kind in ("random", "hard"))
    return " / ".join("-" if value != value else f"{value:.3f}" for value in values)


def model_card(report: TrainReport, sae: TopKSAE, examples: list[str], version: str, command: str) -> str:
    """README.md of the SAE's folder: `examples` are labels, `command` made the SAE with this library's `version`."""
    config = sae.config
    features = "\n".join(f"- {label}" for label in examples) or "- (the corpus was too small to label any)"
    comparison = f"| the same for a frozen random dictionary | {_aurocs(report, 'random_')} |"
    if (adapted := report.adapted) is not None:
        comparison = (
            f"| adapted from | {adapted.parent} ({adapted.fingerprint}): its {adapted.kept:,} features, "
            f"{adapted.added:,} new |\n"
            f"| FVU held out and overlap@10 before | {adapted.fvu_before:.3f}, {adapted.overlap_before:.3f} |"
        )
    return f"""---
library_name: sae_steer_retriever
tags: [sparse-autoencoder, retrieval, interpretability]
base_model: {config.encoder.name}
---

# A TopK sparse autoencoder for {config.encoder.name}

It turns an embedding of {config.d} dimensions into a code of {config.n} latents, {config.k} of them active. The
{config.k_labels} strongest latents of a code are its label latents: they name the text.

```python
from sae_steer_retriever import SteeredRetriever

retriever = SteeredRetriever.open("path/of/this/folder", path="./chroma")
hits = retriever.search("a question", steer={{"{examples[0].split(",")[0] if examples else "#0"}": 0.5}})
```

## Measured

| | |
|---|---|
| passages / rows fitted | {report.passages:,} / {report.rows:,} |
| refinement steps after the encoder's TopK | {config.refine_steps} |
| FVU, fitted / held out | {report.fvu:.3f} / {report.fvu_held_out:.3f} |
| overlap@10 of held-out queries, reconstructed on both sides | {report.overlap:.3f} |
| dead latents | {100 * report.dead:.1f} % |
| labelled features | {report.labelled:,} |
| label AUROC on unseen passages, random / hard negatives | {_aurocs(report)} |
{comparison}

## Some features

{features}

## Limits

Features describe the corpus that was fitted and the encoder that embedded it; on other text they may mean something
else or nothing. A label is a few words that a feature's strongest passages share, not a definition: check its score.
A feature that concerns people reports what a text says, not what is true: do not use it to judge anyone.

Made by sae_steer_retriever {version} with `{command}`.
"""
