"""Settings of a fit: the only source of defaults, help texts and recipe keys."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args

from sae_steer_retriever.errors import CorpusError
from sae_steer_retriever.sae.config import DEFAULT_MODEL, current_keys

LossName = Literal["rkl", "mse", "mse-queries", "eq2", "released", "paper"]
InitName = Literal["random", "data", "kmeans", "pretrained"]
LOSSES: tuple[LossName, ...] = get_args(LossName)
INITS: tuple[InitName, ...] = ("random", "data", "kmeans")
"""Values of `init` that fit an SAE from scratch."""
PRETRAINED: InitName = "pretrained"
"""The value of `init` that adapts an existing SAE (`train.adaptation`)."""


def _option(default: Any, text: str, **extra: Any) -> Any:  # noqa: ANN401 - a dataclass field of any type
    return dataclasses.field(default=default, metadata={"help": text, **extra})


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a fit; each has a default, and an option of the same name in `sae-steer train`.

    Raises:
        ValueError: A setting is out of range, or two settings contradict each other.

    Example:
        >>> TrainConfig(latents=4096, steps=2000).k
        64
    """

    model: str = _option(DEFAULT_MODEL, "encoder: name or folder of a sentence-transformers model")
    latents: int | None = _option(None, "number of latents; chosen from the size of the corpus if not given")
    k: int = _option(64, "number of active latents per embedding")
    k_labels: int = _option(8, "how many of the strongest latents label and explain an embedding")
    refine_steps: int = _option(8, "refinement steps after TopK, plus half where candidates limit it; 0: none")
    refine_candidates: int = _option(512, "latents the refinement chooses from, if n is over 4 times as many; 0: all")
    epochs: float | None = _option(None, "passes over the rows; chosen from the size of the corpus if not given")
    steps: int | None = _option(None, "number of steps, instead of epochs")
    batch_size: int = _option(512, "rows per step: embeddings of passages, sentences and queries")
    list_queries: int = _option(32, "queries per step in the ranking part of the loss")
    list_size: int = _option(16, "nearest documents that are ranked for each of these queries")
    lr: float = _option(3e-3, "peak learning rate of Adam")
    loss: LossName = _option(
        "rkl",
        "rkl: FVU (fraction of variance unexplained) plus rkl-weight times the relative KL of the rankings; mse: FVU "
        "alone; mse-queries: FVU that counts the queries twice; eq2: FVU plus the KL of arXiv 2411.00786; released: "
        "the same with the KL of its code; paper: the training of that paper",
        choices=LOSSES,
    )
    rkl_weight: float = _option(0.2, "weight of the relative KL in the loss rkl")
    temperature: float | None = _option(None, "temperature of the relative KL; chosen from the corpus if not given")
    labels_weight: float = _option(0.0, "weight of a second FVU, of the label latents alone")
    patience: int = _option(3, "end early after this many measurements without improvement; 0 for never")
    init: InitName = _option("kmeans", "how to start: at kmeans centres, at data rows, or random")
    start_weight: float = _option(0.3, "weight that keeps decoder rows near their starting directions; 0 for none")
    sentences: int = _option(4, "sentences of each passage that are fitted too, as query-like texts")
    passage_characters: int = _option(1200, "longest passage in characters; longer ones are split")
    holdout: float = _option(0.1, "share of the passages and queries held out for measuring")
    seed: int = _option(0, "random seed")
    device: str = _option("auto", "torch device: auto, cpu, cuda or mps")

    def __post_init__(self) -> None:
        positive = ("k", "k_labels", "batch_size", "list_queries", "list_size", "lr", "passage_characters")
        for name in (*positive, "temperature", "epochs"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} = {value}: expected a positive number.")
        meaning = {"patience": "never", "start_weight": "no pull", "refine_steps": "none", "refine_candidates": "all"}
        for name, of_zero in meaning.items():
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected a positive number, or 0 for {of_zero}.")
        if self.latents is not None and self.latents < self.k:
            raise ValueError(f"latents = {self.latents}, k = {self.k}: expected at least k latents.")
        if self.steps is not None and (self.steps < 2 or self.epochs is not None):
            raise ValueError(f"steps = {self.steps}: expected at least 2, and no epochs beside them.")
        if not 0 < self.holdout < 0.5:
            raise ValueError(f"holdout = {self.holdout}: expected a share between 0 and 0.5.")
        for name, known in (("loss", LOSSES), ("init", (*INITS, PRETRAINED))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected one of {', '.join(known)}.")


# help(TrainConfig) shows the settings with their help texts.
_ATTRIBUTES = "\n".join(f"        {field.name}: {field.metadata['help']}." for field in dataclasses.fields(TrainConfig))
TrainConfig.__doc__ = f"{TrainConfig.__doc__}\n    Attributes:\n{_ATTRIBUTES}\n"


def read_config(path: Path) -> dict[str, Any]:
    """Returns the settings in a TOML recipe; keys are the field names of `TrainConfig`, with - or _.

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
