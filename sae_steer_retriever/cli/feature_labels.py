"""`sae-steer features label`: names the features of an SAE again, by keywords or by a language model."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sae_steer_retriever.cli.runner import Outcome, UsageError, add_common_arguments, count, number_type
from sae_steer_retriever.cli.store_options import require_path
from sae_steer_retriever.errors import CorpusError

if TYPE_CHECKING:
    from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
    from sae_steer_retriever.encoders.vector_rows import VectorRows
    from sae_steer_retriever.features.catalog import FeatureCatalog
    from sae_steer_retriever.labelling.llm_labels import LabellingResult, Price, Progress
    from sae_steer_retriever.sae.topk_sae import TopKSAE

logger = logging.getLogger(__name__)

SUMMARY = "name the features again, by keywords or by a language model"
# Equal to the defaults of `labelling.language_model`, which is slow to import.
_TIMEOUT, _CONCURRENCY = 60.0, 8
_SHOWN_FAILURES, _SHOWN_LABELS = 20, 10


def add_arguments(parser: argparse.ArgumentParser, *, nested: bool = False) -> None:
    """Adds the options; `--limit` without a default if `nested`, as a parent parser then has it, too."""
    add = parser.add_argument
    # SUPPRESS: --sae may also stand before the word `label`.
    add("--sae", default=argparse.SUPPRESS, metavar="DIR", help="folder of the SAE")
    add("--corpus", type=Path, required=True, metavar="PATH", help="the SAE's training documents: a file or a folder")
    add(
        "--label-with",
        metavar="PROVIDER:MODEL",
        help="language model, e.g. openai:gpt-4o-mini or ollama:llama3.2 (extra: llm) (default: keywords)",
    )
    add("--estimate", action="store_true", help="print what the language model would cost, and stop")
    add("--yes", action="store_true", help="start without asking for confirmation")
    add(
        "--limit",
        type=count,
        default=argparse.SUPPRESS if nested else None,
        metavar="N",
        help="label only the N most frequent features (default: all named features)",
    )
    add(
        "--price-per-million",
        type=number_type(float, 0.0, sys.float_info.max, "a price of at least 0"),
        nargs=2,
        metavar=("IN", "OUT"),
        help="prices of a million input and output tokens; the estimate then includes the price",
    )
    add(
        "--timeout",
        type=number_type(float, 0.1, sys.float_info.max, "a number of seconds of at least 0.1"),
        default=_TIMEOUT,
        metavar="S",
        help=f"seconds to wait for a reply (default: {_TIMEOUT:g})",
    )
    add(
        "--concurrency",
        type=count,
        default=_CONCURRENCY,
        metavar="N",
        help=f"prompts sent at the same time (default: {_CONCURRENCY})",
    )
    add_common_arguments(parser, nested=True)


class _Opened(NamedTuple):
    folder: Path
    sae: TopKSAE
    embedder: CachedEmbedder
    ids: list[str]
    texts: list[str]
    vectors: VectorRows
    seed: int


def run(arguments: argparse.Namespace) -> Outcome:
    """Returns the new labels and their scores, or the estimated cost.

    Raises:
        UsageError: The options contradict each other, a file does not exist, or --yes is missing.
        MissingExtraError: The language model's packages are not installed.
        SAESteerError: The SAE or the corpus is damaged, or the language model cannot be set up.
    """
    location = getattr(arguments, "sae", None)
    if getattr(arguments, "store", None) is not None:
        raise UsageError("label writes to an SAE's folder, not to a store: give --sae DIR in place of --store.")
    if location is None:
        raise UsageError("whose features? Name an SAE with --sae DIR.")
    if not Path(location).is_dir():
        raise UsageError(f"--sae: no such folder: {location}")
    require_path("--corpus", arguments.corpus)
    if arguments.label_with is None:
        if arguments.estimate or arguments.limit is not None or arguments.price_per_million is not None:
            raise UsageError("--estimate, --limit and --price-per-million go with --label-with: keywords cost nothing.")
        return _by_keywords(_open(arguments))
    from sae_steer_retriever.labelling.language_model import require_model_name

    try:
        name = require_model_name(arguments.label_with)
    except ValueError as error:
        raise UsageError(f"--label-with: {error}") from error
    return _by_model(arguments, name)


def _by_keywords(opened: _Opened) -> Outcome:
    from sae_steer_retriever.features.calibration import calibrate
    from sae_steer_retriever.features.catalog import FeatureCatalog
    from sae_steer_retriever.features.evidence import with_tries, write_evidence
    from sae_steer_retriever.labelling.gather_evidence import name_matches, read_label_latents
    from sae_steer_retriever.labelling.keyword_labels import label_features

    sae, vectors = opened.sae, opened.vectors
    calibration, names = _catalog(opened).calibration, read_label_latents(sae, vectors)
    if calibration.rows == len(opened.ids):  # an SAE of an earlier version has no match units
        counted = calibrate([names], sae.config.n, calibration.score_spread, [name_matches(sae, vectors, names)])
        calibration = dataclasses.replace(calibration, match_unit=counted.match_unit)
    report = label_features(
        sae, calibration, opened.ids, opened.texts, vectors, opened.embedder, names=names, seed=opened.seed
    )
    # A wrong corpus must not overwrite the existing labels.
    if not report.labelled:
        raise CorpusError(
            f"no feature is in enough of the {len(opened.ids):,} passages of this corpus to be labelled: nothing was "
            f"written, {opened.folder} keeps its labels. Give the corpus that the SAE was trained on."
        )
    tries = _tries(opened)
    report.catalog.save(opened.folder)
    write_evidence(opened.folder, with_tries(report.evidence, tries), opened.sae.fingerprint)
    text = (
        f"{report.labelled} features labelled by keywords\n"
        f"median label score {report.auroc_random:.2f} against random passages, {report.auroc_hard:.2f} against near "
        f"misses\nwritten: {opened.folder}"
    )
    # Loaded again: it then has the names that a person gave.
    catalog = FeatureCatalog.load(opened.folder, opened.sae.fingerprint)
    data = {
        "label_with": None,
        "labelled": report.labelled,
        "auroc_random": report.auroc_random,
        "auroc_hard": report.auroc_hard,
        "features": [{"id": feature.id, "label": feature.label} for feature in catalog.labelled],
    }
    return Outcome(text, data)


def _tries(opened: _Opened) -> dict[int, Any]:
    """Returns the tries stored with the evidence; none if it is damaged: labelling writes it anew."""
    from sae_steer_retriever.errors import ArtifactError
    from sae_steer_retriever.features.evidence import read_evidence

    try:
        evidence = read_evidence(opened.folder, opened.sae.fingerprint)
    except ArtifactError as error:
        logger.warning("the evidence is written anew, without tries: %s", error)
        return {}
    return {feature: found.trie for feature, found in evidence.items() if found.trie is not None}


def _by_model(arguments: argparse.Namespace, name: str) -> Outcome:
    from sae_steer_retriever.features.catalog_files import read_catalog, write_catalog
    from sae_steer_retriever.labelling.keyword_labels import LabelHalves
    from sae_steer_retriever.labelling.label_cache import LabelCache, default_label_cache
    from sae_steer_retriever.labelling.language_model import as_language_model
    from sae_steer_retriever.labelling.llm_labels import Price, estimate_labels, label_prompts, label_with

    # Before anything is embedded, so that a missing package or key is reported at once.
    model = None
    if not arguments.estimate:
        model = as_language_model(name, timeout=arguments.timeout, concurrency=arguments.concurrency)
    opened = _open(arguments)
    catalog = _catalog(opened)
    halves = LabelHalves(opened.sae, opened.ids, opened.texts, opened.vectors, seed=opened.seed)
    cache = LabelCache(default_label_cache())
    price: Price | None = None if arguments.price_per_million is None else Price(*arguments.price_per_million)
    prompts = label_prompts(catalog, halves.evidence, halves.texts, limit=arguments.limit)
    estimate = estimate_labels(prompts, name, cache, price)
    line = f"{len(prompts)} features by {name}: {estimate}"
    data: dict[str, Any] = {"label_with": name, "estimate": estimate._asdict()}
    if model is None:
        return Outcome(f"{line}\nnothing was asked: leave out --estimate to label", data)
    if estimate.calls:
        _confirm(line, arguments)
    with _progress(arguments) as progress:
        result = label_with(
            model,
            catalog,
            halves.evidence,
            halves.texts,
            embed=opened.embedder.embed_queries,
            score=halves.score,
            cache=cache,
            limit=arguments.limit,
            progress=progress,
        )
    # Read from the files: in the catalog the names that a person gave cover the generated ones.
    parts = read_catalog(opened.folder, opened.sae.fingerprint)
    features, embeddings = result.applied(parts.features, parts.label_embeddings)
    write_catalog(opened.folder, *parts._replace(features=features, label_embeddings=embeddings))
    text = "\n".join([line, *_result_lines(result), f"written: {opened.folder}"])
    return Outcome(text, {**data, **result.to_json()})


def _open(arguments: argparse.Namespace) -> _Opened:
    """Opens the SAE and reads its corpus with the settings of the training."""
    from sae_steer_retriever.corpus.read_corpus import read_corpus
    from sae_steer_retriever.encoders.embedders import as_embedder
    from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
    from sae_steer_retriever.encoders.vector_rows import VectorRows
    from sae_steer_retriever.sae.topk_sae import TopKSAE
    from sae_steer_retriever.train.config import TrainConfig

    folder = Path(arguments.sae)
    sae = TopKSAE.from_pretrained(folder)
    settings = sae.config.training
    characters = settings.get("passage_characters", TrainConfig().passage_characters)
    passages = read_corpus(arguments.corpus, passage_characters=int(characters)).passages
    embedder = CachedEmbedder(as_embedder(sae.config.encoder.name), progress=not arguments.quiet)
    texts = [passage.text for passage in passages]
    places = embedder.document_places(texts)
    vectors = VectorRows(embedder.vectors(), places)
    ids = [passage.id for passage in passages]
    return _Opened(folder, sae, embedder, ids, texts, vectors, int(settings.get("seed", 0)))


def _catalog(opened: _Opened) -> FeatureCatalog:
    from sae_steer_retriever.features.catalog import FeatureCatalog

    catalog = FeatureCatalog.load(opened.folder, opened.sae.fingerprint)
    if catalog.calibration.rows != len(opened.ids):
        logger.warning(
            "the SAE's features were counted in %d passages, but this corpus has %d: labels and scores are made from "
            "this corpus, frequencies and units stay",
            catalog.calibration.rows,
            len(opened.ids),
        )
    return catalog


def _confirm(line: str, arguments: argparse.Namespace) -> None:
    """Shows the cost and asks for confirmation."""
    if arguments.yes:
        if not arguments.quiet:
            sys.stderr.write(f"{line}\n")
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{line}. The language model was not asked: confirm with --yes.")
    sys.stderr.write(f"{line}\ngo on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().casefold() not in ("y", "yes"):
        raise UsageError("stopped: the language model was not asked.")


@contextlib.contextmanager
def _progress(arguments: argparse.Namespace) -> Iterator[Progress]:
    from tqdm import tqdm

    with tqdm(desc="labelling", unit="prompt", disable=True if arguments.quiet else None) as bar:

        def show(done: int, planned: int) -> None:
            bar.total = planned
            bar.update(done - bar.n)

        yield show


def _result_lines(result: LabellingResult) -> list[str]:
    lines = [result.summary()]
    named = sorted(result.features.values(), key=lambda feature: -feature.frequency)
    lines += [f"    #{feature.id} {feature.name}" for feature in named[:_SHOWN_LABELS]]
    if len(named) > _SHOWN_LABELS:
        lines.append(f"    and {len(named) - _SHOWN_LABELS} more (`sae-steer features` lists them)")
    failures = list(result.failures.items())
    lines += [
        f"    kept #{feature}: {failure.reason}: {failure.detail}" for feature, failure in failures[:_SHOWN_FAILURES]
    ]
    if len(failures) > _SHOWN_FAILURES:
        lines.append(f"    and {len(failures) - _SHOWN_FAILURES} more (--json lists all)")
    return lines
