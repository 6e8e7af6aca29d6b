"""Fits an SAE for a corpus: reads, embeds, fits, labels, measures and saves."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sae_steer_retriever import __version__
from sae_steer_retriever.corpus.passage import Corpus
from sae_steer_retriever.corpus.query_texts import QueryText
from sae_steer_retriever.corpus.read_corpus import read_corpus
from sae_steer_retriever.encoders.embedders import Embedder, as_embedder
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.encoders.vector_rows import Vectors
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
from sae_steer_retriever.train.adaptation import Start, adapted_start
from sae_steer_retriever.train.callbacks import METRICS_LOG_FILE, MetricsLog, ScalarWriter
from sae_steer_retriever.train.checkpoint import CHECKPOINT_FOLDER, Checkpoint
from sae_steer_retriever.train.config import PRETRAINED, TrainConfig
from sae_steer_retriever.train.embedded_corpus import EmbeddedCorpus, embed_corpus, require_enough, short_texts
from sae_steer_retriever.train.measure import measure
from sae_steer_retriever.train.report import Adapted, TrainReport, model_card
from sae_steer_retriever.train.sizing import Sizes, adapted_sizes, advise, choose_sizes
from sae_steer_retriever.train.starting_point import Parent, load_parent
from sae_steer_retriever.train.trainer import Fit, Trainer

logger = logging.getLogger(__name__)

_CARD_EXAMPLES = 20
# Rows hashed at once.
_HASHED = 16_384
# The refinement searches all latents of a dictionary of at most so many times the candidates.
_SMALL = 4


def fit(
    corpus: str | Path,
    output: str | Path,
    config: TrainConfig | None = None,
    *,
    queries: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    embedder: Embedder | None = None,
    on_step: Callable[[int], None] | None = None,
    tensorboard: str | Path | None = None,
    parent: str | Path | None = None,
    read: Corpus | None = None,
) -> TrainReport:
    """Fit an SAE for a corpus, label its features, and save it.

    Args:
        corpus: File or folder of text, as `sae-steer train --corpus` takes it.
        output: Folder of the SAE. Only a checkpoint is written there before the fit has ended.
        config: Settings; the defaults if not given.
        queries: File of real queries, one a line or JSON Lines.
        resume: Whether to resume from a checkpoint in `output`.
        progress: Whether to show progress on stderr.
        embedder: The encoder; made from `config.model` if not given.
        on_step: Called after each step of the fit, with the number of steps done.
        tensorboard: Folder for the curves of the fit, for TensorBoard.
        parent: Folder or hub id of an SAE to adapt, instead of a fit from scratch. Its features keep their ids, meaning
            and labels (`train.adaptation`; `adapted_config` there makes the settings).
        read: The corpus, if it has been read already.

    Returns:
        The figures of the SAE; `print(report.summary())` shows the main ones.

    Raises:
        CorpusError: The corpus cannot be read or is too small.
        ArtifactError: `output` or `tensorboard` cannot be written, the checkpoint belongs to another fit, or `parent`
            is no SAE.
        MismatchError: `parent` was made for another encoder.
        MissingExtraError: `tensorboard` is given, and TensorBoard is not installed.

    Example:
        >>> Path("docs").mkdir()
        >>> sizes = [Path(f"docs/{number}.txt").write_text(text) for number, text in enumerate(texts[:40])]
        >>> report = fit("docs", "sae", TrainConfig(latents=64, k=16, steps=20, sentences=0))
        >>> report.passages, report.latents, Path("sae/model.safetensors").exists()
        (40, 64, True)
    """
    corpus, output, config = Path(corpus), Path(output), config or TrainConfig()
    if read is None:
        read = read_corpus(corpus, passage_characters=config.passage_characters, queries=queries and Path(queries))
    require_enough(read)
    if output.exists() and not output.is_dir():
        raise ArtifactError(f"{output} is a file; --output names a folder.")
    curves = [] if tensorboard is None else [ScalarWriter(Path(tensorboard))]
    began = time.monotonic()
    embed = CachedEmbedder(embedder or as_embedder(config.model), progress=progress)
    adapted = None if parent is None else load_parent(parent, embed.spec)
    short = short_texts(read, config)
    sizes, advice = plan(read, short, config, embed.spec.dimension, adapted and adapted.sae.config)
    # Before the embedding, which takes longest: the user may want to stop.
    for sentence in advice:
        logger.warning("%s", sentence)
    embedded = embed_corpus(read, config, embed, short)
    del short  # there may be millions

    embedded_at = time.monotonic()
    start = None
    if adapted is None:
        trainer, checkpoint = prepare(read, embedded, config, embed.spec, output, resume=resume)
    else:
        start = adapted_start(adapted.sae, embedded.data.fitted, sizes.latents, config)
        trainer, checkpoint = prepare_adaptation(start, embedded, config, sizes.epochs, output, resume=resume)
    metrics_log = MetricsLog(output / CHECKPOINT_FOLDER)
    fitted = trainer.fit(checkpoint=checkpoint, progress=progress, on_step=on_step, callbacks=[metrics_log, *curves])
    if start is not None:
        fitted = fitted._replace(sae=start.whole(fitted.sae))
    fitted_at = time.monotonic()

    labels = _label(fitted.sae, read, embedded, embed, config.seed, adapted)
    # The labels of a random dictionary show how hard the corpus is; an adaptation is compared with its parent instead.
    random_sae = None if adapted is not None else random_dictionary(fitted.sae, config.seed)
    control = None if random_sae is None else _label(random_sae, read, embedded, embed, config.seed)
    report = TrainReport(
        output=str(output),
        corpus=str(corpus),
        passages=len(read.passages),
        rows=len(embedded.data.everything.rows),
        latents=fitted.sae.config.n,
        k=fitted.sae.config.k,
        k_labels=fitted.sae.config.k_labels,
        fvu=fitted.train_fvu,
        fvu_held_out=fitted.measurement.fvu,
        overlap=fitted.measurement.overlap,
        dead=fitted.measurement.dead,
        l0=fitted.measurement.l0,
        labelled=labels.labelled,
        auroc_random=labels.auroc_random,
        auroc_hard=labels.auroc_hard,
        random_auroc_random=math.nan if control is None else control.auroc_random,
        random_auroc_hard=math.nan if control is None else control.auroc_hard,
        seconds_embedding=embedded_at - began,
        seconds_fitting=fitted_at - embedded_at,
        seconds_labelling=time.monotonic() - fitted_at,
        skipped=tuple(read.skipped),
        advice=advice,
        measured=tuple(metrics_log.records),
        adapted=None if adapted is None or start is None else _adapted(adapted, start, embedded, trainer, labels),
    )
    _save(output, fitted, labels.catalog, report, metrics_log)
    checkpoint.remove()
    metrics_log.remove()
    return report


def plan(
    corpus: Corpus, short: Sequence[QueryText], config: TrainConfig, dimension: int, parent: SAEConfig | None
) -> tuple[Sizes, tuple[str, ...]]:
    """Returns the sizes of a fit, and advice where the corpus is too small for them.

    `short` are the corpus' `short_texts`, `dimension` is the embedding size, and `parent` the config of the SAE that is
    adapted; an adaptation gets no advice.
    """
    passages, rows = len(corpus.passages), len(corpus.passages) + len(short) + len(corpus.queries)
    if parent is not None:
        return adapted_sizes(config, passages, rows, parent), ()
    sizes = choose_sizes(config, passages, rows, dimension)
    return sizes, advise(passages, rows, sizes, config.k_labels, latents_given=config.latents is not None)


def prepare(
    corpus: Corpus, embedded: EmbeddedCorpus, config: TrainConfig, spec: EncoderSpec, output: Path, *, resume: bool
) -> tuple[Trainer, Checkpoint]:
    """Returns a fit from scratch, ready to run, and its checkpoint in `output`.

    The size of the corpus decides what the settings leave open.
    """
    passages, rows = len(corpus.passages), embedded.data.everything.rows
    n, k, epochs = choose_sizes(config, passages, len(rows), spec.dimension)
    if k < config.k:
        logger.warning("k = %d instead of %d: %d passages bear only %d latents", k, config.k, passages, n)
    settings: dict[str, object] = {**dataclasses.asdict(config), "latents": n, "k": k}
    settings["epochs"] = round(epochs, 2) if config.steps is None else None
    steps, candidates = config.refine_steps, None
    if config.refine_candidates and n > _SMALL * config.refine_candidates:
        # Among candidates a step costs almost nothing, and half as many steps again make up for the restriction.
        steps, candidates = steps + steps // 2, max(config.refine_candidates, k)
    sae_config = SAEConfig(
        d=spec.dimension,
        n=n,
        k=k,
        k_labels=min(config.k_labels, k),
        # Eq. 1 of the paper is one product, and its decoder rows have any length.
        refine_steps=0 if config.loss == "paper" else steps,
        refine_candidates=candidates,
        encoder=spec,
        training=settings,
    )
    return Trainer(embedded.data, config, sae_config, epochs), _checkpoint(embedded, sae_config, output, resume=resume)


def prepare_adaptation(
    start: Start, embedded: EmbeddedCorpus, config: TrainConfig, epochs: float, output: Path, *, resume: bool
) -> tuple[Trainer, Checkpoint]:
    """Fit of an adaptation's live features, ready to run, and its checkpoint in `output`."""
    sae = start.live
    settings: dict[str, object] = {**dataclasses.asdict(config), "latents": sae.config.n, "k": sae.config.k}
    sae_config = dataclasses.replace(sae.config, training=settings)
    trainer = Trainer(embedded.data, config, sae_config, epochs, start=sae, kept=start.kept)
    return trainer, _checkpoint(embedded, sae_config, output, resume=resume)


def _checkpoint(embedded: EmbeddedCorpus, config: SAEConfig, output: Path, *, resume: bool) -> Checkpoint:
    """A checkpoint that belongs to these settings, this encoder, these rows and the parent, if there is one."""
    identity = {**former_keys(config.training), "encoder": config.encoder.name}
    identity["rows"] = _digest(embedded.data.everything.rows)
    if config.adapted_from is not None:
        identity["parent"] = config.adapted_from
    return Checkpoint(output / CHECKPOINT_FOLDER, identity, resume=resume)


def fitted_sae(fit: Fit, metrics: dict[str, float] | None = None) -> TopKSAE:
    """The SAE of a fit; its config records how it was fitted."""
    found = {"variance": fit.variance, "temperature": fit.temperature, "steps": fit.steps}
    training = {**fit.sae.config.training, **{name: round(value, 6) for name, value in found.items()}}
    config = dataclasses.replace(fit.sae.config, training=training, metrics=metrics or {})
    return TopKSAE(fit.sae.W_enc, fit.sae.b_enc, fit.sae.W_dec, fit.sae.b_dec, config)


def _digest(rows: Vectors) -> str:
    """A hash of all values in order, read in batches."""
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, len(rows), _HASHED):
        digest.update(rows[start : start + _HASHED].tobytes())
    return digest.hexdigest()


def _label(
    sae: TopKSAE, corpus: Corpus, embedded: EmbeddedCorpus, embedder: Embedder, seed: int, parent: Parent | None = None
) -> LabelReport:
    vectors = embedded.passages
    names = read_label_latents(sae, vectors)
    prior = None if parent is None else parent.catalog.calibration
    matches = [name_matches(sae, vectors, names)]
    calibration = calibrate([names], sae.config.n, embedded.score_spread, matches, prior)
    ids, texts = [passage.id for passage in corpus.passages], [passage.text for passage in corpus.passages]
    data = (calibration, ids, texts, vectors, embedder)
    if parent is None:
        return label_features(sae, *data, names=names, seed=seed)
    return label_adapted(sae, parent.catalog, *data, names=names, seed=seed)


def _adapted(parent: Parent, start: Start, embedded: EmbeddedCorpus, trainer: Trainer, labels: LabelReport) -> Adapted:
    before = measure(parent.sae, embedded.data.held_out, trainer.constants.variance)
    return Adapted(
        parent=parent.name,
        fingerprint=parent.sae.fingerprint,
        kept=parent.sae.config.n,
        added=start.added,
        live=int((labels.catalog.calibration.count > 0).sum()),
        fvu_before=before.fvu,
        overlap_before=before.overlap,
    )


def _save(output: Path, fitted: Fit, catalog: FeatureCatalog, report: TrainReport, metrics_log: MetricsLog) -> None:
    sae = fitted_sae(fitted, report.metrics())
    # Frequent features first: their labels say what the corpus is about.
    order = np.argsort(-catalog.calibration.frequency, kind="stable")
    examples = [catalog[int(latent)].name for latent in order if catalog[int(latent)].label][:_CARD_EXAMPLES]
    sizes = f"--latents {sae.config.n} -k {sae.config.k}"
    if report.adapted is not None:
        sizes = f"--init {PRETRAINED if bundled_sae(report.adapted.parent) else report.adapted.parent}"
    command = f"sae-steer train {sizes} --seed {sae.config.training['seed']}"
    card = model_card(report, sae, examples, __version__, command)
    sae.save_pretrained(output)
    catalog.save(output)
    write_files(output, {"README.md": card.encode(), METRICS_LOG_FILE: metrics_log.to_bytes()})
