"""SAEs of one corpus that differ in a few settings, each fitted once and kept in a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from filelock import FileLock

from sae_steer_retriever.corpus.passage import Corpus
from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.errors import ArtifactError, CorpusError
from sae_steer_retriever.sae.config import former_keys
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.checkpoint import CHECKPOINT_FOLDER
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.embedded_corpus import EmbeddedCorpus, embed_corpus
from sae_steer_retriever.train.pipeline import fitted_sae, prepare
from sae_steer_retriever.train.sizing import choose_sizes

logger = logging.getLogger(f"sae_steer_retriever.{__name__}")


class FitSeries:
    """SAEs of one corpus, each in a folder of its own, named after its settings.

    A finished fit is loaded, an interrupted one resumes. Several processes may share the folder: each waits for a fit
    that another one is making.
    """

    def __init__(
        self, corpus: Corpus, folder: Path, embedder: Embedder, base: TrainConfig, *, progress: bool = False
    ) -> None:
        """Keeps the settings that all fits share.

        Args:
            corpus: Passages, and the real queries to fit.
            folder: Folder for the SAEs.
            embedder: A `CachedEmbedder`.
            base: Settings of all fits.
            progress: Whether to show progress bars on stderr.
        """
        self._corpus = corpus
        self._folder = folder
        self._embedder = embedder
        self._base = base
        self._progress = progress
        digest = hashlib.blake2b(digest_size=16)
        for text in (*(passage.text for passage in corpus.passages), "", *corpus.queries):
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        self._corpus_digest = digest.hexdigest()
        self._embedded: tuple[int, EmbeddedCorpus] | None = None

    def sae(self, **changes: Any) -> TopKSAE:  # noqa: ANN401 - settings of `TrainConfig`
        """Returns the SAE with some settings changed.

        Args:
            **changes: Fields of `TrainConfig`.

        Raises:
            ArtifactError: The folder cannot be written, or a fit in it is damaged.
            CorpusError: The corpus is too small, for any SAE or for this K.
        """
        config = dataclasses.replace(self._base, **changes)
        digest = self._digest(config)
        name = "-".join([*(f"{name}={value}" for name, value in sorted(changes.items())), digest])
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"cannot keep fits in {self._folder}: {error.strerror or error}.") from error
        with FileLock(self._folder / f".{digest}.lock"):
            # The same settings may have another name: a default may be given or left out.
            known = sorted(self._folder.glob(f"*-{digest}"))
            return self._loaded_or_fitted(config, known[0] if known else self._folder / name)

    def _loaded_or_fitted(self, config: TrainConfig, output: Path) -> TopKSAE:
        if (output / "config.json").is_file():
            sae = TopKSAE.from_pretrained(output)
            _require_k(config, sae.config.k, sae.config.n)
            return sae
        logger.info("fitting %s", output.name)
        resume = (output / CHECKPOINT_FOLDER).is_dir()
        spec = self._embedder.spec
        embedded = self._embed(config)
        n, k, _ = choose_sizes(config, len(self._corpus.passages), len(embedded.data.everything.rows), spec.dimension)
        _require_k(config, k, n)
        trainer, checkpoint = prepare(self._corpus, embedded, config, spec, output, resume=resume)
        sae = fitted_sae(trainer.fit(checkpoint=checkpoint, progress=self._progress))
        sae.save_pretrained(output)
        checkpoint.remove()
        return sae

    def _digest(self, config: TrainConfig) -> str:
        identity = [former_keys(dataclasses.asdict(config)), self._corpus_digest, str(self._embedder.spec)]
        return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=5).hexdigest()

    def _embed(self, config: TrainConfig) -> EmbeddedCorpus:
        """The embeddings; the seed decides which rows are held out and which sentences are drawn."""
        if self._embedded is None or self._embedded[0] != config.seed:
            self._embedded = (config.seed, embed_corpus(self._corpus, config, self._embedder))
        return self._embedded[1]


def _require_k(config: TrainConfig, k: int, n: int) -> None:
    """Refuses a fit whose K is not the one that was asked for."""
    if k != config.k:
        raise CorpusError(
            f"K = {config.k}: the corpus bears only {n:,} latents, and these only K = {k}; compare smaller K (--ks), "
            "set --latents, or add documents."
        )
