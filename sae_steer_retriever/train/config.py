"""Settings of a fit: the single source of defaults, help texts and configuration keys."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal

from sae_steer_retriever.errors import CorpusError
from sae_steer_retriever.sae.config import DEFAULT_MODEL, current_keys

LossName = Literal["rkl", "mse", "mse-queries", "eq2", "released", "paper"]
InitName = Literal["random", "data", "kmeans", "pretrained"]
LOSSES: tuple[LossName, ...] = ("rkl", "mse", "mse-queries", "eq2", "released", "paper")
INITS: tuple[InitName, ...] = ("random", "data", "kmeans")
"""How a fit from scratch begins."""
PRETRAINED: InitName = "pretrained"
"""How a fit begins that adapts an SAE (`train.adaptation`)."""


def _option(default: Any, text: str, **extra: Any) -> Any:  # noqa: ANN401 - a dataclass field of any type
    return dataclasses.field(default=default, metadata={"help": text, **extra})


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to fit an SAE. Each field's help text is what the command line shows."""

    model: str = _option(DEFAULT_MODEL, "encoder: a sentence-transformers name or folder")
    latents: int | None = _option(None, "number of latents n; chosen by the size of the corpus if not given")
    k: int = _option(64, "active latents per embedding, for reconstruction")
    k_labels: int = _option(8, "how many of a code's first latents are names: labels, explanations, steering")
    refine_steps: int = _option(
        8, "steps that refine a code after the encoder's TopK, half as many again among candidates; 0: one product"
    )
    refine_candidates: int = _option(
        512, "latents that the steps choose from where there are over four times as many, the encoder's first; 0: all"
    )
    epochs: float | None = _option(None, "passes over the rows; chosen by the size of the corpus if not given")
    steps: int | None = _option(None, "steps of the fit, instead of epochs")
    batch_size: int = _option(512, "rows per step")
    list_queries: int = _option(32, "queries per step whose lists of nearest documents join the loss")
    list_size: int = _option(16, "documents per list")
    lr: float = _option(3e-3, "peak learning rate of Adam")
    loss: LossName = _option(
        "rkl",
        "rkl: FVU + rkl-weight * relative KL of the lists; mse: FVU alone; mse-queries: the list queries count twice; "
        "eq2, released: FVU + the KL of arXiv 2411.00786 as printed, as in its code; paper: all of its Appendix A",
        choices=LOSSES,
    )
    rkl_weight: float = _option(0.2, "weight of the relative KL")
    temperature: float | None = _option(None, "of the relative KL; chosen by the corpus' lists if not given")
    labels_weight: float = _option(0.0, "weight of the FVU of the label latents; .3 without refinement")
    patience: int = _option(3, "measurements without an improvement after which a fit ends early; 0: never")
    init: InitName = _option("kmeans", "how the decoder starts: kmeans (centres), data (points), random")
    start_weight: float = _option(0.3, "pull of the decoder's rows towards those centres or points, for meaning")
    sentences: int = _option(4, "sentences of each passage that join the rows as query-like texts")
    passage_characters: int = _option(1200, "longest passage, in characters")
    holdout: float = _option(0.1, "share of the rows held out for measuring")
    seed: int = _option(0, "seed of everything random")
    device: str = _option("auto", "torch device: auto, cpu, cuda, mps")

    def __post_init__(self) -> None:
        positive = ("k", "k_labels", "batch_size", "list_queries", "list_size", "lr", "passage_characters")
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected a positive number.")
        if self.patience < 0:
            raise ValueError(f"patience = {self.patience}: expected a whole number, 0 for never.")
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"temperature = {self.temperature}: expected a positive number.")
        if self.start_weight < 0:
            raise ValueError(f"start_weight = {self.start_weight}: expected 0 (no pull) or a positive number.")
        if self.refine_steps < 0:
            raise ValueError(f"refine_steps = {self.refine_steps}: expected a whole number, 0 for none.")
        if self.refine_candidates < 0:
            raise ValueError(f"refine_candidates = {self.refine_candidates}: expected a whole number, 0 for all.")
        if self.latents is not None and self.latents < self.k:
            raise ValueError(f"latents = {self.latents}, k = {self.k}: expected at least k latents.")
        if self.epochs is not None and self.epochs <= 0:
            raise ValueError(f"epochs = {self.epochs}: expected a positive number.")
        if self.steps is not None and (self.steps < 2 or self.epochs is not None):
            raise ValueError(f"steps = {self.steps}: expected at least 2, and no epochs beside them.")
        if not 0 < self.holdout < 0.5:
            raise ValueError(f"holdout = {self.holdout}: expected a share between 0 and 0.5.")
        for name, known in (("loss", LOSSES), ("init", (*INITS, PRETRAINED))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected one of {', '.join(known)}.")


def read_config(path: Path) -> dict[str, Any]:
    """Settings from a TOML recipe; keys are the field names of `TrainConfig`, with - or _.

    Raises:
        CorpusError: The file is missing, is not TOML, or has a key that is no setting.
    """
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CorpusError(f"cannot read the recipe {path}: {error}") from error
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    settings = current_keys({key.replace("-", "_"): value for key, value in body.items()})
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(sorted(known))}."
            raise CorpusError(f"{path}: unknown setting {key!r}.{hint}")
    return settings
