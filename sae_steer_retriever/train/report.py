"""What a fit was worth: the numbers that matter, the next command, and the model card."""

from __future__ import annotations

import dataclasses
from typing import Any

from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.metrics_log import Measured

_COURSE_COLUMNS = 8


@dataclasses.dataclass(frozen=True)
class Adapted:
    """What an SAE was adapted from, and what that changed.

    Attributes:
        parent: The SAE that it was adapted from: the encoder's name of one that ships, else folder or hub id.
        fingerprint: The parent's.
        kept: Features that keep their ids and their meaning: all of the parent's.
        added: Features that come after them, for what the corpus has and the parent lacks.
        live: Features that are active in some passage of the corpus, by name.
        fvu_before: The parent's own fraction of variance unexplained on held-out rows.
        overlap_before: The parent's own overlap@10 of held-out queries.
    """

    parent: str
    fingerprint: str
    kept: int
    added: int
    live: int
    fvu_before: float
    overlap_before: float

    def summary(self) -> str:
        """One line."""
        return (
            f"adapted  from {self.parent} ({self.fingerprint}): {self.kept:,} features keep ids and labels, "
            f"{self.added:,} are new; {self.live:,} name passages of this corpus; before, held-out FVU "
            f"{self.fvu_before:.3f}, retention {self.overlap_before:.3f}"
        )


@dataclasses.dataclass(frozen=True)
class TrainReport:
    """The outcome of `train`.

    Attributes:
        output: The SAE's folder, as given.
        corpus: The corpus, as given.
        passages: Number of passages.
        rows: Number of rows fitted.
        latents: n.
        k: Active latents.
        k_labels: Naming latents.
        fvu: Fraction of variance unexplained on fitted rows.
        fvu_held_out: The same on held-out rows.
        overlap: overlap@10 of held-out queries, reconstructions on both sides: the retention.
        dead: Share of latents that no passage activates.
        l0: Mean active latents per passage.
        labelled: Features with a label.
        auroc_random: Median label AUROC on unseen passages, against random ones.
        auroc_hard: The same against hard negatives.
        random_auroc_random: What a frozen random dictionary's labels reach, against random passages.
        random_auroc_hard: The same against hard negatives.
        seconds_embedding: Time spent embedding.
        seconds_fitting: Time spent fitting.
        seconds_labelling: Time spent labelling and scoring labels.
        skipped: Files and rows that were left out, with the reasons.
        advice: What suffers from the corpus' size, and what to do about it.
        measured: The measurements on the way, before the held-out rows joined.
        adapted: What the SAE was adapted from; None for one that was fitted from scratch.
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
            for name, value in dataclasses.asdict(self).items()
        }

    def metrics(self) -> dict[str, float]:
        """The measurements, for `config.json`."""
        names = ("fvu", "fvu_held_out", "overlap", "dead", "l0", "labelled", "auroc_random", "auroc_hard")
        return {name: round(value, 4) for name in names if (value := getattr(self, name)) == value}

    def summary(self) -> str:
        """Several lines for a person; the last says what matters and the one before it what to type next."""
        total = self.seconds_embedding + self.seconds_fitting + self.seconds_labelling
        lines = [
            f"{self.passages:,} passages, {self.rows:,} rows fitted; "
            f"{self.latents:,} latents, k = {self.k}, {self.k_labels} names a passage",
            f"labels   {self.labelled:,} of {self.latents:,} features; AUROC on unseen passages "
            f"{_figure(self.auroc_random)} random / {_figure(self.auroc_hard)} hard{self._control()}",
            f"time     embedding {self.seconds_embedding:.0f} s, fitting {self.seconds_fitting:.0f} s, "
            f"labelling {self.seconds_labelling:.0f} s",
        ]
        if self.adapted is not None:
            lines.insert(1, self.adapted.summary())
        lines += _course(self.measured)
        if self.skipped:
            lines.append(
                f"skipped  {len(self.skipped)}: " + "; ".join(f"{path} ({why})" for path, why in self.skipped[:3])
            )
        lines += [f"advice   {sentence}" for sentence in self.advice]
        lines.append(f"next     sae-steer index --corpus {self.corpus} --sae {self.output} --store ./chroma")
        lines.append(
            f"FVU {self.fvu:.3f} (held out {self.fvu_held_out:.3f}) · retention {self.overlap:.3f} overlap@10 · "
            f"dead {100 * self.dead:.1f} % · L0 {self.l0:.0f} · {total:.0f} s -> {self.output}"
        )
        return "\n".join(lines)

    def _control(self) -> str:
        """The random dictionary's figures, for comparison; an adaptation does without."""
        if self.adapted is not None:
            return ""
        return f" (a random dictionary: {_figure(self.random_auroc_random)} / {_figure(self.random_auroc_hard)})"


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
    return [*table, f"{'':<8} (measured on the way by the encoder alone; the last line below has the refined codes)"]


def _figure(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"


def model_card(report: TrainReport, sae: TopKSAE, examples: list[str], version: str, command: str) -> str:
    """The folder's README.md.

    Args:
        report: The measurements.
        sae: The SAE.
        examples: Labels of some features.
        version: Of this library.
        command: That made it.
    """
    encoder = sae.config.encoder
    auroc = f"{_figure(report.auroc_random)} / {_figure(report.auroc_hard)}"
    features = "\n".join(f"- {label}" for label in examples) or "- (the corpus was too small to label any)"
    return f"""---
library_name: sae_steer_retriever
tags: [sparse-autoencoder, retrieval, interpretability]
base_model: {encoder.name}
---

# A TopK sparse autoencoder for {encoder.name}

{sae.config.d} dimensions -> {sae.config.n} latents, {sae.config.k} of them active in an embedding; the first
{sae.config.k_labels} of a code, those that fit the text best, are its names.

```python
from sae_steer_retriever import SteeredRetriever

retriever = SteeredRetriever.open("path/of/this/folder", path="./chroma")
hits = retriever.search("a question", steer={{"{examples[0].split(",")[0] if examples else "#0"}": 0.5}})
```

## Measured

| | |
|---|---|
| passages / rows fitted | {report.passages:,} / {report.rows:,} |
| steps of refinement after the encoder's guess | {sae.config.refine_steps} |
| FVU, fitted / held out | {report.fvu:.3f} / {report.fvu_held_out:.3f} |
| overlap@10 of held-out queries, reconstructed on both sides | {report.overlap:.3f} |
| dead latents | {100 * report.dead:.1f} % |
| labelled features | {report.labelled:,} |
| label AUROC on unseen passages, random / hard negatives | {auroc} |
{_controlled(report)}

## Some features

{features}

## Limits

Features describe the corpus that was fitted and the encoder that embedded it; on other text they may mean something
else or nothing. A label is a few words for what a feature's strongest passages share, not a definition: read its
score. Features that concern people say what the text says, not what is so: do not use them to judge anyone.

Made by sae_steer_retriever {version} with `{command}`.
"""


def _controlled(report: TrainReport) -> str:
    """What the figures are to be compared with: a random dictionary's labels, or the SAE before it was adapted."""
    if report.adapted is None:
        control = f"{_figure(report.random_auroc_random)} / {_figure(report.random_auroc_hard)}"
        return f"| the same for a frozen random dictionary | {control} |"
    adapted = report.adapted
    return (
        f"| adapted from | {adapted.parent} ({adapted.fingerprint}): its {adapted.kept:,} features, "
        f"{adapted.added:,} new |\n"
        f"| FVU held out and overlap@10 before | {adapted.fvu_before:.3f}, {adapted.overlap_before:.3f} |"
    )
