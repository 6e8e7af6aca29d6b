"""The whole of `sae-steer train`: read, embed, fit, label, measure, save."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import sae_steer_retriever
from sae_steer_retriever.corpus.passage import Corpus
from sae_steer_retriever.corpus.read_corpus import read_corpus
from sae_steer_retriever.encoders.embedders import Embedder, as_embedder
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.encoders.vector_rows import VectorRows, Vectors
from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.features.calibration import calibrate
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.labelling.adapted_labels import label_adapted
from sae_steer_retriever.labelling.baselines import random_dictionary
from sae_steer_retriever.labelling.gather_evidence import name_matches, read_label_latents
from sae_steer_retriever.labelling.keyword_labels import LabelReport, label_features
from sae_steer_retriever.sae.atomic_files import write_files
from sae_steer_retriever.sae.bundled import bundled_sae
from sae_steer_retriever.sae.config import EncoderSpec, SAEConfig, former_keys
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.adaptation import Start, adapted_sizes, adapted_start
from sae_steer_retriever.train.checkpoint import CHECKPOINT_FOLDER, Checkpoint
from sae_steer_retriever.train.config import PRETRAINED, TrainConfig
from sae_steer_retriever.train.corpus_size_advice import advise
from sae_steer_retriever.train.embedded_corpus import EmbeddedCorpus, embed_corpus, require_enough, short_texts
from sae_steer_retriever.train.measure import measure
from sae_steer_retriever.train.metrics_log import METRICS_LOG_FILE, MetricsLog
from sae_steer_retriever.train.report import Adapted, TrainReport, model_card
from sae_steer_retriever.train.sizing import choose_sizes
from sae_steer_retriever.train.starting_point import Parent, load_parent
from sae_steer_retriever.train.tensorboard import ScalarWriter
from sae_steer_retriever.train.trainer import Fit, Trainer

logger = logging.getLogger(__name__)

_CARD_EXAMPLES = 20
# Rows hashed at once.
_HASHED = 16_384
# A dictionary of at most so many times the candidates is searched whole.
_SMALL = 4


@dataclasses.dataclass(frozen=True)
class _Timer:
    """Seconds since it was made."""

    start: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start


def train(
    corpus: Path,
    output: Path,
    config: TrainConfig,
    *,
    queries: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    embedder: Embedder | None = None,
    on_step: Callable[[int], None] | None = None,
    tensorboard: Path | None = None,
    parent: str | Path | None = None,
    read: Corpus | None = None,
) -> TrainReport:
    """Fit, label and save an SAE for a corpus.

    Args:
        corpus: File or folder.
        output: Folder of the SAE; written only once the fit has ended, but for the checkpoint.
        config: Settings.
        queries: File of real queries.
        resume: Whether to take up a checkpoint in `output`.
        progress: Whether to show progress on stderr.
        embedder: The encoder; loaded by `config.model` if not given.
        on_step: Called after each step of the fit.
        tensorboard: Folder to write curves for TensorBoard to.
        parent: Folder or hub id of an SAE to adapt instead of fitting one from scratch: features keep their ids,
            meaning and labels (`train.adaptation`; its `adapted_config` makes settings).
        read: What was read of `corpus`, by whoever read it before.

    Raises:
        CorpusError: The corpus cannot be read or is too small.
        ArtifactError: `output` or `tensorboard` cannot be written, the checkpoint is of another fit, or `parent` is no
            SAE.
        MismatchError: `parent` was made for another encoder.
        MissingExtraError: Curves are asked for, and TensorBoard is not installed.
    """
    read = read or read_corpus(corpus, passage_characters=config.passage_characters, queries=queries)
    require_enough(read)
    if output.exists() and not output.is_dir():
        raise ArtifactError(f"{output} is a file; --output names a folder.")
    boards = [] if tensorboard is None else [ScalarWriter(tensorboard)]
    timer = _Timer()
    embed = CachedEmbedder(embedder or as_embedder(config.model), progress=progress)
    general = None if parent is None else load_parent(parent, embed.spec)
    advice, embedded = _advised_and_embedded(read, config, embed, adapting=general is not None)
    seconds_embedding = timer.seconds

    timer = _Timer()
    start = None
    if general is None:
        trainer, checkpoint = prepare(read, embedded, config, embed.spec, output, resume=resume)
    else:
        sizes = adapted_sizes(config, len(read.passages), len(embedded.data.everything.rows), general.sae.config)
        start = adapted_start(general.sae, embedded.data.fitted, sizes.latents, config)
        trainer, checkpoint = prepare_adaptation(start, embedded, config, sizes.epochs, output, resume=resume)
    metrics_log = MetricsLog(output / CHECKPOINT_FOLDER)
    fit = trainer.fit(checkpoint=checkpoint, progress=progress, on_step=on_step, watchers=[metrics_log, *boards])
    if start is not None:
        fit = fit._replace(sae=start.whole(fit.sae))
    seconds_fitting = timer.seconds

    timer = _Timer()
    passages = _LabelledPassages(read, embedded.passages, embedded.score_spread)
    labels = _label(fit.sae, passages, embed, config.seed, general)
    # What a random dictionary's labels reach says how hard the corpus is; an adaptation is compared with its parent.
    control = None
    if general is None:
        control = _label(random_dictionary(fit.sae, config.seed), passages, embed, config.seed)
    report = TrainReport(
        output=str(output),
        corpus=str(corpus),
        passages=len(read.passages),
        rows=len(embedded.data.everything.rows),
        latents=fit.sae.config.n,
        k=fit.sae.config.k,
        k_labels=fit.sae.config.k_labels,
        fvu=fit.train_fvu,
        fvu_held_out=fit.measurement.fvu,
        overlap=fit.measurement.overlap,
        dead=fit.measurement.dead,
        l0=fit.measurement.l0,
        labelled=labels.labelled,
        auroc_random=labels.auroc_random,
        auroc_hard=labels.auroc_hard,
        random_auroc_random=math.nan if control is None else control.auroc_random,
        random_auroc_hard=math.nan if control is None else control.auroc_hard,
        seconds_embedding=seconds_embedding,
        seconds_fitting=seconds_fitting,
        seconds_labelling=timer.seconds,
        skipped=tuple(read.skipped),
        advice=advice,
        measured=metrics_log.records,
        adapted=None if general is None or start is None else _adapted(general, start, embedded, trainer, labels),
    )
    _save(output, fit, labels.catalog, report, metrics_log)
    checkpoint.remove()
    metrics_log.remove()
    return report


def prepare(
    corpus: Corpus, embedded: EmbeddedCorpus, config: TrainConfig, spec: EncoderSpec, output: Path, *, resume: bool
) -> tuple[Trainer, Checkpoint]:
    """The fit of a corpus, ready to run, and the place of its checkpoint.

    Args:
        corpus: What was read.
        embedded: Its embeddings.
        config: Settings; what they leave open is chosen by the size of the corpus.
        spec: The encoder.
        output: Folder that the SAE will be written to.
        resume: Whether to take up a checkpoint in it.
    """
    passages, rows = len(corpus.passages), embedded.data.everything.rows
    n, k, epochs = choose_sizes(config, passages, len(rows), spec.dimension)
    if k < config.k:
        logger.warning("k = %d instead of %d: %d passages bear only %d latents", k, config.k, passages, n)
    settings: dict[str, object] = {**dataclasses.asdict(config), "latents": n, "k": k}
    settings["epochs"] = round(epochs, 2) if config.steps is None else None
    steps, candidates = _refinement(config, n, k)
    sae_config = SAEConfig(
        d=spec.dimension,
        n=n,
        k=k,
        k_labels=min(config.k_labels, k),
        # Eq. 1 of the paper is one product, and its decoder's rows have any length.
        refine_steps=0 if config.loss == "paper" else steps,
        refine_candidates=candidates,
        encoder=spec,
        training=settings,
    )
    digest = _digest(rows)
    checkpoint = Checkpoint(
        output / CHECKPOINT_FOLDER, {**former_keys(settings), "encoder": spec.name, "rows": digest}, resume=resume
    )
    return Trainer(embedded.data, config, sae_config, epochs), checkpoint


def prepare_adaptation(
    start: Start, embedded: EmbeddedCorpus, config: TrainConfig, epochs: float, output: Path, *, resume: bool
) -> tuple[Trainer, Checkpoint]:
    """The fit of an adaptation's live features, ready to run, and the place of its checkpoint.

    Args:
        start: What it starts from.
        embedded: The corpus' embeddings.
        config: Settings.
        epochs: Passes over the rows.
        output: Folder that the SAE will be written to.
        resume: Whether to take up a checkpoint in it.
    """
    rows, sae = embedded.data.everything.rows, start.live
    settings: dict[str, object] = {**dataclasses.asdict(config), "latents": sae.config.n, "k": sae.config.k}
    identity = {"encoder": sae.config.encoder.name, "rows": _digest(rows), "parent": sae.config.adapted_from}
    checkpoint = Checkpoint(output / CHECKPOINT_FOLDER, {**former_keys(settings), **identity}, resume=resume)
    sae_config = dataclasses.replace(sae.config, training=settings)
    trainer = Trainer(embedded.data, config, sae_config, epochs, start=sae, kept=start.kept)
    return trainer, checkpoint


def _refinement(config: TrainConfig, n: int, k: int) -> tuple[int, int | None]:
    """Steps, and among how many latents they choose; None for all: those of a small dictionary cost no more than some.

    Among candidates a step costs next to nothing, and half as many again make good what the restriction loses.
    """
    if not config.refine_candidates or n <= _SMALL * config.refine_candidates:
        return config.refine_steps, None
    return config.refine_steps + config.refine_steps // 2, max(config.refine_candidates, k)


def fitted_sae(fit: Fit, metrics: dict[str, float] | None = None) -> TopKSAE:
    """The SAE of a fit, whose config records how it was fitted."""
    found = {"variance": fit.variance, "temperature": fit.temperature, "steps": fit.steps}
    training = {**fit.sae.config.training, **{name: round(value, 6) for name, value in found.items()}}
    config = dataclasses.replace(fit.sae.config, training=training, metrics=metrics or {})
    return TopKSAE(fit.sae.W_enc, fit.sae.b_enc, fit.sae.W_dec, fit.sae.b_dec, config)


def _digest(rows: Vectors) -> str:
    """Of all values in order, read in batches."""
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, len(rows), _HASHED):
        digest.update(rows[start : start + _HASHED].tobytes())
    return digest.hexdigest()


def _advised_and_embedded(
    corpus: Corpus, config: TrainConfig, embedder: Embedder, *, adapting: bool
) -> tuple[tuple[str, ...], EmbeddedCorpus]:
    """A corpus' embeddings, and what was said of its size before they were made: nothing if an SAE is adapted to it.

    The query-like texts, of which there may be millions, are made once and let go of before the fit.
    """
    short = short_texts(corpus, config)
    if adapting:
        return (), embed_corpus(corpus, config, embedder, short)
    passages, rows = len(corpus.passages), len(corpus.passages) + len(short) + len(corpus.queries)
    sizes = choose_sizes(config, passages, rows, embedder.spec.dimension)
    advice = advise(passages, rows, sizes, config.k_labels, latents_given=config.latents is not None)
    # Before the embedding, which takes longest: whoever reads it may want to stop.
    for sentence in advice:
        logger.warning("%s", sentence)
    return advice, embed_corpus(corpus, config, embedder, short)


class _LabelledPassages(NamedTuple):
    """What labels are made of."""

    corpus: Corpus
    vectors: VectorRows
    score_spread: float


def _label(
    sae: TopKSAE, passages: _LabelledPassages, embedder: Embedder, seed: int, parent: Parent | None = None
) -> LabelReport:
    names = read_label_latents(sae, passages.vectors)
    matches = [name_matches(sae, passages.vectors, names)]
    prior = None if parent is None else parent.catalog.calibration
    calibration = calibrate([names], sae.config.n, passages.score_spread, matches, prior)
    ids = [passage.id for passage in passages.corpus.passages]
    texts = [passage.text for passage in passages.corpus.passages]
    if parent is not None:
        return label_adapted(
            sae, parent.catalog, calibration, ids, texts, passages.vectors, embedder, names=names, seed=seed
        )
    return label_features(sae, calibration, ids, texts, passages.vectors, embedder, names=names, seed=seed)


def _adapted(general: Parent, start: Start, embedded: EmbeddedCorpus, trainer: Trainer, labels: LabelReport) -> Adapted:
    before = measure(general.sae, embedded.data.held_out, trainer.constants.variance)
    return Adapted(
        parent=general.name,
        fingerprint=general.sae.fingerprint,
        kept=general.sae.config.n,
        added=start.added,
        live=int((labels.catalog.calibration.count > 0).sum()),
        fvu_before=before.fvu,
        overlap_before=before.overlap,
    )


def _save(output: Path, fit: Fit, catalog: FeatureCatalog, report: TrainReport, metrics_log: MetricsLog) -> None:
    sae = fitted_sae(fit, report.metrics())
    # Frequent features first: their labels say what the corpus is about.
    order = np.argsort(-catalog.calibration.frequency, kind="stable")
    examples = [catalog[int(latent)].name for latent in order if catalog[int(latent)].label][:_CARD_EXAMPLES]
    sizes = f"--latents {sae.config.n} -k {sae.config.k}"
    if report.adapted is not None:
        sizes = f"--init {PRETRAINED if bundled_sae(report.adapted.parent) else report.adapted.parent}"
    command = f"sae-steer train {sizes} --seed {sae.config.training['seed']}"
    card = model_card(report, sae, examples, sae_steer_retriever.__version__, command)
    sae.save_pretrained(output)
    catalog.save(output)
    write_files(output, {"README.md": card.encode(), METRICS_LOG_FILE: metrics_log.to_bytes()})
