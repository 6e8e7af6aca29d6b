"""The settings of an SAE, as `config.json` holds them, and its encoder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_steer_retriever.errors import MismatchError, warn_renamed

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
# Files keep the keys of the first release, which every release reads. Settings are read under either name.
_FORMER_KEYS = {
    "k_labels": "k_names",
    "refine_steps": "pursuit_steps",
    "refine_candidates": "pursuit_candidates",
    "labels_weight": "names_weight",
}
_CURRENT_KEYS = {former: current for current, former in _FORMER_KEYS.items()}


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """The encoder of an SAE. Two embeddings are comparable only if their specs agree.

    Attributes:
        name: The encoder's name, e.g. "sentence-transformers/all-MiniLM-L6-v2".
        dimension: Size of its embeddings, `d`.
        query_prefix: Text put before every query.
        document_prefix: Text put before every document.
        pooling: How token vectors become one ("mean", "cls", ...), if known.
        revision: The encoder's revision, if known; for a model in a folder, a digest of its files.

    Example:
        >>> from sae_steer_retriever import EncoderSpec
        >>> EncoderSpec("sentence-transformers/all-MiniLM-L6-v2", dimension=384).base_name
        'all-minilm-l6-v2'
    """

    name: str
    dimension: int
    query_prefix: str = ""
    document_prefix: str = ""
    pooling: str | None = None
    revision: str | None = None

    @property
    def base_name(self) -> str:
        """The name for comparison, in lower case and without the owner that some frameworks leave out."""
        return encoder_base_name(self.name)

    @property
    def short_name(self) -> str:
        """The name for people; for a model in a folder, the folder's name without its path."""
        return Path(self.name).name if Path(self.name).is_absolute() else self.name

    def require_same(self, other: EncoderSpec, mine: str, theirs: str) -> None:
        """Check that this encoder and `other` make comparable embeddings.

        `mine` and `theirs` are their owners, for the message ("the SAE", "the embedder").

        Raises:
            MismatchError: The names, dimensions or prefixes differ.
        """
        # A model in a folder is known by its content, because the folder may move or get another model.
        known = self.revision is not None and other.revision is not None
        same = self.revision == other.revision if known else self.base_name == other.base_name
        if same is False and self.base_name == other.base_name and self.dimension == other.dimension:
            raise MismatchError(
                f"{mine} was made for the encoder {self.name!r} with content {self.revision}, but {theirs} is one of "
                f"that name with content {other.revision}: put the old model back, or train an SAE for this one."
            )
        if not same or self.dimension != other.dimension:
            raise MismatchError(
                f"{mine} was made for encoder {self.name!r} ({self.dimension} dimensions), but {theirs} is "
                f"{other.name!r} ({other.dimension} dimensions): use the same encoder, or train an SAE for this one."
            )
        if (self.query_prefix, self.document_prefix) != (other.query_prefix, other.document_prefix):
            raise MismatchError(
                f"{mine} expects the prefixes {self.query_prefix!r} (query) and {self.document_prefix!r} (document) "
                f"for {self.name!r}, but {theirs} has {other.query_prefix!r} and {other.document_prefix!r}."
            )


def encoder_base_name(name: str) -> str:
    """Returns an encoder's name for comparison: in lower case and without "sentence-transformers/"."""
    return name.removeprefix("sentence-transformers/").lower()


def _renamed(former: str) -> Any:
    """Returns a property that reads a field by its name in the first release."""

    def read(config: SAEConfig) -> Any:
        warn_renamed(f"SAEConfig.{former}", _CURRENT_KEYS[former])
        return getattr(config, _CURRENT_KEYS[former])

    return property(read)


@dataclasses.dataclass(frozen=True)
class SAEConfig:
    """The settings of an SAE, as `config.json` holds them.

    Attributes:
        d: Embedding size.
        n: Number of latents.
        k: Active latents per embedding, for reconstruction.
        k_labels: How many of a code's first latents are its *label latents*: those of labels, explanations and
            steering by name.
        encoder: The encoder of its embeddings.
        refine_steps: Steps of refinement after the encoder's TopK; 0 for the encoder's TopK alone (Eq. 1).
        refine_candidates: How many latents, those that the encoder ranks first, a refinement chooses from; None for
            all, as in files older than this field.
        fitted_k: The `k` of the fit, if `k` was changed later; else None.
        adapted_from: Fingerprint of the SAE that it was adapted from (`train.adaptation`); features keep their ids and
            their meaning, so policies of that SAE hold for it. None for a fit of its own.
        training: Settings of the fit, for the record.
        metrics: Measurements at the end of the fit, for the record.

    Example:
        >>> from sae_steer_retriever import EncoderSpec, SAEConfig
        >>> SAEConfig(d=384, n=4096, k=64, encoder=EncoderSpec("all-MiniLM-L6-v2", 384)).with_k(32).fitted_k
        64
    """

    d: int
    n: int
    k: int
    encoder: EncoderSpec
    k_labels: int = 8
    refine_steps: int = 0
    refine_candidates: int | None = None
    fitted_k: int | None = None
    adapted_from: str | None = None
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)

    k_names, pursuit_steps, pursuit_candidates = map(_renamed, ("k_names", "pursuit_steps", "pursuit_candidates"))

    def __post_init__(self) -> None:
        for name in ("d", "n", "k", "k_labels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} = {value!r}: expected a whole number of at least 1.")
        steps = self.refine_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"refine_steps = {steps!r}: expected a whole number, 0 for none.")
        candidates = self.refine_candidates
        if candidates is not None and (isinstance(candidates, bool) or not isinstance(candidates, int)):
            raise ValueError(f"refine_candidates = {candidates!r}: expected a whole number, or None for all latents.")
        if candidates is not None and candidates < self.k:
            raise ValueError(f"refine_candidates = {candidates}: expected at least k = {self.k}, or None for all.")
        if self.k > self.n:
            raise ValueError(f"k = {self.k}: expected 1 <= k <= n = {self.n}.")
        if self.fitted_k is not None and not self.k_labels <= self.k:
            raise ValueError(f"k = {self.k}: expected at least k_labels = {self.k_labels}, which labels are made of.")
        if self.encoder.dimension != self.d:
            raise MismatchError(
                f"the SAE reads {self.d} dimensions, but its encoder {self.encoder.name!r} gives "
                f"{self.encoder.dimension}."
            )
        object.__setattr__(self, "k_labels", min(self.k_labels, self.k))
        if self.fitted_k == self.k:
            object.__setattr__(self, "fitted_k", None)
        if candidates is not None and candidates >= self.n:
            object.__setattr__(self, "refine_candidates", None)

    def with_k(self, k: int) -> SAEConfig:
        """Returns the settings of the same dictionary at another K.

        Raises:
            ValueError: `k` is below `k_labels`, or above `n` or `refine_candidates`.
        """
        return dataclasses.replace(self, k=k, fitted_k=self.fitted_k or self.k)


_init = SAEConfig.__init__


@functools.wraps(_init)
def _init_by_either_name(config: SAEConfig, *values: Any, **settings: Any) -> None:
    for former in settings.keys() & _CURRENT_KEYS.keys():
        warn_renamed(f"SAEConfig({former}=...)", _CURRENT_KEYS[former])
    _init(config, *values, **current_keys(settings))


SAEConfig.__init__ = _init_by_either_name  # type: ignore[assignment, method-assign]


def former_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings under the keys of the first release, as files hold them."""
    return {_FORMER_KEYS.get(key, key): value for key, value in settings.items()}


def current_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a file's settings under the names of today's fields, whichever release wrote them."""
    return {_CURRENT_KEYS.get(key, key): value for key, value in settings.items()}


def former_key(setting: str) -> str | None:
    """Returns the name that a setting had in the first release; None if it has not changed."""
    return _FORMER_KEYS.get(setting)
