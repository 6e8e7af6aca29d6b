"""`sae-steer evaluate`: what an SAE costs in retrieval and gives in meaning, and the paper's tables and figures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.paper.command import FITTING, controllability, study
from sae_steer_retriever.cli.evaluate_parts import DEFAULT_OUTPUT, cached_embedder, written
from sae_steer_retriever.cli.outcome import Outcome, UsageError
from sae_steer_retriever.cli.runner import add_common_arguments, count
from sae_steer_retriever.cli.store_options import make_folder
from sae_steer_retriever.sae.bundled import bundled_names, bundled_sae, require_bundled
from sae_steer_retriever.sae.config import DEFAULT_MODEL

if TYPE_CHECKING:
    from sae_steer_retriever.sae.topk_sae import TopKSAE

SUMMARY = "measure an SAE on judged queries or on your own documents, or repeat the paper's tables and figures"
# Those of `train.config.LOSSES` that may be compared with all else equal.
LOSS_CHOICES = ("rkl", "mse", "mse-queries", "eq2", "released")
_OF_STEERING = ("queries", "concepts", "limit_passages")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    what = parser.add_argument_group("what to measure on")
    what.add_argument(
        "--dataset",
        metavar="DIR|NAME",
        help="judged set: a folder in BEIR layout, an id of ir_datasets, or hub:OWNER/NAME",
    )
    what.add_argument("--split", default="test", metavar="NAME", help="which judgments of the set (default: test)")
    what.add_argument(
        "--corpus", type=Path, metavar="PATH", help="your own file or folder, without queries or judgments"
    )
    what.add_argument(
        "--out-of-domain",
        action="append",
        default=[],
        metavar="DIR|NAME",
        help=f"with {FITTING}: a judged set that nothing is fitted on; may be given several times",
    )
    measure = parser.add_argument_group("what to measure")
    measure.add_argument(
        "--sae",
        type=Path,
        metavar="DIR|NAME",
        help="the SAE: a folder, or the name of one that ships (default: the bundled one for --model)",
    )
    measure.add_argument(
        "--k", type=count, metavar="N", help="read the SAE with N active features (default: as it was fitted)"
    )
    measure.add_argument(
        "--meaning", action="store_true", help="also what its features mean, beside untrained dictionaries"
    )
    measure.add_argument(
        "--recurrence-steps",
        type=_whole,
        default=None,
        metavar="N",
        help="with --meaning: steps of each of the two fits on halves of the corpus; 0 leaves them out",
    )
    measure.add_argument(
        "--steering",
        action="store_true",
        help="compare steering by the SAE's features with its baselines, on --corpus FILE: rows with `label` or "
        "`labels` (.jsonl, .jsonl.gz); with --dataset also what it costs on judged queries",
    )
    measure.add_argument(
        "--table",
        choices=("1", "4", "8"),
        help="repeat a table of arXiv 2411.00786: 1 and 8 fit an SAE per K; 4, questions with two perspectives, takes "
        "--sae and --dataset, or --corpus FILE of rows with `label` or `labels`",
    )
    measure.add_argument(
        "--figure",
        choices=("2", "3", "4"),
        help="repeat a figure of it: losses compared (2), word and feature ranks (3), a latent raised more and more "
        "(4, takes --sae and --dataset)",
    )
    measure.add_argument(
        "--relevant-from", type=count, metavar="N", help="with --figure 4: the smallest grade that counts (default: 1)"
    )
    measure.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"folder for a page to read, CSV files and plots; the fits of {FITTING} are kept in it "
        f"(default for tables and figures: {DEFAULT_OUTPUT})",
    )
    steering = parser.add_argument_group("what --steering steers")
    steering.add_argument(
        "--queries", type=Path, metavar="FILE", help="one ambiguous question a line (default: twenty general ones)"
    )
    steering.add_argument(
        "--concepts", type=Path, metavar="FILE", help="JSON: label -> the words a person types (default: the labels)"
    )
    steering.add_argument(
        "--limit-passages", type=count, metavar="N", help="at most N passages, drawn at random (default: all)"
    )
    fits = parser.add_argument_group(f"what {FITTING} fit")
    fits.add_argument("--model", metavar="NAME", help="encoder: a sentence-transformers name or folder")
    fits.add_argument("--ks", type=count, nargs="+", default=[32, 64, 128], metavar="K", help="(default: 32 64 128)")
    fits.add_argument("--seeds", type=_whole, nargs="+", default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    fits.add_argument(
        "--losses", choices=LOSS_CHOICES, nargs="+", default=list(LOSS_CHOICES), metavar="LOSS", help="(default: all)"
    )
    fits.add_argument("--latents", type=count, metavar="N", help="number of latents")
    fits.add_argument("--steps", type=count, metavar="N", help="steps of each fit")
    fits.add_argument("--config", type=Path, metavar="FILE", help="recipe, as for sae-steer train")
    add_common_arguments(parser)


def run(arguments: argparse.Namespace) -> Outcome:
    """Measure.

    Raises:
        UsageError: The options do not go together, or what they name is not there.
        SAESteerError: A set is malformed, or the parts do not belong together.
    """
    fitting = arguments.table in ("1", "8") or arguments.figure == "2"
    if arguments.k is not None and (fitting or "4" in (arguments.table, arguments.figure)):
        raise UsageError("--k reads an SAE anew; tables and Figures 2 and 4 are of the K of a fit: leave it out.")
    given = [name for name in _OF_STEERING if getattr(arguments, name) is not None]
    if arguments.steering:
        return _steering(arguments)
    if given:
        raise UsageError(f"--{given[0].replace('_', '-')} goes with --steering: add it, or leave this out.")
    if arguments.table == "4" or arguments.figure == "4":
        arguments.sae = _sae_folder(arguments)
        return controllability(arguments)
    if arguments.relevant_from is not None:
        raise UsageError("--relevant-from goes with --figure 4: add it, or leave this out.")
    if arguments.table is not None or arguments.figure == "2":
        return study(arguments)
    if (arguments.dataset is None) == (arguments.corpus is None):
        raise UsageError("give either --dataset DIR, a judged set, or --corpus PATH, documents without judgments.")
    if arguments.corpus is not None and not arguments.corpus.exists():
        raise UsageError(f"--corpus: no such file or folder: {arguments.corpus}")
    arguments.sae = _sae_folder(arguments)
    if arguments.out_of_domain or arguments.config is not None:
        raise UsageError(f"--out-of-domain and --config go with {FITTING}, which fit SAEs: leave them out.")
    if arguments.recurrence_steps is not None and not arguments.meaning:
        raise UsageError("--recurrence-steps goes with --meaning: add it, or leave the steps out.")
    if arguments.output is not None or arguments.figure == "3":
        make_folder(arguments.output or DEFAULT_OUTPUT, "--output")
    from sae_steer_retriever.evaluate.evaluation import evaluate_corpus, evaluate_set
    from sae_steer_retriever.sae.topk_sae import TopKSAE

    sae = _at_k(TopKSAE.from_pretrained(arguments.sae), arguments.k)
    embedder = cached_embedder(arguments.model or sae.config.encoder.name, arguments)
    options: dict[str, Any] = {
        "meaning": arguments.meaning,
        "recurrence_steps": arguments.recurrence_steps,
        "ranks": arguments.figure == "3" or arguments.output is not None,
        "progress": not arguments.quiet,
    }
    if arguments.dataset is not None:
        evaluation = evaluate_set(sae, arguments.dataset, embedder, split=arguments.split, **options)
    else:
        evaluation = evaluate_corpus(sae, arguments.corpus, embedder, **options)
    if arguments.figure == "3" and evaluation.ranks is not None:
        return written(evaluation.ranks, evaluation.ranks.write(arguments.output or DEFAULT_OUTPUT))
    files = evaluation.write(arguments.output) if arguments.output is not None else []
    return written(evaluation, files)


def _steering(arguments: argparse.Namespace) -> Outcome:
    others = ("table", "figure", "relevant_from", "meaning", "recurrence_steps", "config")
    unused = [name for name in others if getattr(arguments, name)]
    if unused or arguments.out_of_domain:
        name = (unused or ["out_of_domain"])[0].replace("_", "-")
        raise UsageError(f"--steering is a comparison of its own: leave out --{name}.")
    if arguments.corpus is None:
        raise UsageError("--steering needs --corpus FILE, rows with `label` or `labels`.")
    arguments.sae = _sae_folder(arguments)
    for option in ("corpus", "queries", "concepts"):
        path = getattr(arguments, option)
        if path is not None and not path.is_file():
            raise UsageError(f"--{option}: no such file: {path}")
    if arguments.output is not None:
        make_folder(arguments.output, "--output")
    from benchmarks.steering.benchmark import measure_steering
    from benchmarks.steering.corpus import (
        QUESTIONS,
        read_concepts,
        read_labelled_corpus,
        read_questions,
    )
    from sae_steer_retriever.evaluate.datasets import read_retrieval_set
    from sae_steer_retriever.features.catalog import FeatureCatalog
    from sae_steer_retriever.sae.topk_sae import TopKSAE

    concepts = read_concepts(arguments.concepts) if arguments.concepts is not None else None
    questions = read_questions(arguments.queries) if arguments.queries is not None else QUESTIONS
    corpus = read_labelled_corpus(arguments.corpus, limit=arguments.limit_passages)
    sae = _at_k(TopKSAE.from_pretrained(arguments.sae), arguments.k)
    report = measure_steering(
        sae,
        FeatureCatalog.load(arguments.sae, sae.fingerprint),
        cached_embedder(arguments.model or sae.config.encoder.name, arguments),
        corpus,
        arguments.corpus.name.split(".")[0] or "corpus",
        concepts=concepts,
        questions=questions,
        judged=read_retrieval_set(arguments.dataset, split=arguments.split) if arguments.dataset is not None else None,
        progress=not arguments.quiet,
    )
    return written(report, report.write(arguments.output) if arguments.output is not None else [])


def _sae_folder(arguments: argparse.Namespace) -> Path:
    """The folder of the SAE that is measured: one that is here, or one that ships."""
    given: Path | None = arguments.sae
    if given is None:
        return require_bundled(arguments.model or DEFAULT_MODEL)
    folder = given if given.is_dir() else bundled_sae(str(given))
    if folder is None:
        ships = f"; these ship: {', '.join(bundled_names())}" if bundled_names() else ""
        raise UsageError(f"--sae: no such folder: {given}{ships}")
    return folder


def _at_k(sae: TopKSAE, k: int | None) -> TopKSAE:
    try:
        return sae if k is None else sae.with_k(k)
    except ValueError as error:
        raise UsageError(f"--k: {error}") from error


def _whole(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 0")
    return number
