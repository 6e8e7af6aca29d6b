"""`sae-steer evaluate`: what an SAE costs in retrieval and gives in meaning, and the paper's tables and figures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sae_steer_retriever.commands.execution import add_common_arguments, count
from sae_steer_retriever.commands.location import make_folder
from sae_steer_retriever.commands.outcome import Outcome, UsageError
from sae_steer_retriever.errors import CorpusError

if TYPE_CHECKING:
    from sae_steer_retriever.embedding_cache import CachedEmbedder
    from sae_steer_retriever.train.config import TrainConfig

SUMMARY = "measure an SAE on judged queries or on your own documents, or repeat the paper's tables and figures"
# Those of `train.config.LOSSES` that may be compared with all else equal.
LOSS_CHOICES = ("rkl", "mse", "mse-queries", "eq2", "released")
_DEFAULT_OUTPUT = Path("evaluation")


class _Result(Protocol):
    """A table, a figure or an evaluation."""

    def to_text(self) -> str: ...

    def to_json(self) -> dict[str, Any]: ...


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
        help="with --table and --figure 2: a judged set that nothing is fitted on; may be given several times",
    )
    measure = parser.add_argument_group("what to measure")
    measure.add_argument("--sae", type=Path, metavar="DIR", help="folder of the SAE")
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
    measure.add_argument("--table", choices=("1", "8"), help="repeat a table of arXiv 2411.00786: fits an SAE per K")
    measure.add_argument(
        "--figure", choices=("2", "3"), help="repeat a figure of it: losses compared (2), word and feature ranks (3)"
    )
    measure.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for a page to read, CSV files and plots; the fits of --table and --figure 2 are kept in it "
        f"(default for these: {_DEFAULT_OUTPUT})",
    )
    fits = parser.add_argument_group("what --table and --figure 2 fit")
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
    if arguments.table is not None or arguments.figure == "2":
        return _study(arguments)
    if arguments.sae is None:
        raise UsageError("give --sae DIR, the SAE to measure, or --table or --figure 2, which fit their own.")
    if (arguments.dataset is None) == (arguments.corpus is None):
        raise UsageError("give either --dataset DIR, a judged set, or --corpus PATH, documents without judgments.")
    if arguments.corpus is not None and not arguments.corpus.exists():
        raise UsageError(f"--corpus: no such file or folder: {arguments.corpus}")
    if not arguments.sae.is_dir():
        raise UsageError(f"--sae: no such folder: {arguments.sae}")
    if arguments.out_of_domain or arguments.config is not None:
        raise UsageError("--out-of-domain and --config go with --table and --figure 2, which fit SAEs: leave them out.")
    if arguments.recurrence_steps is not None and not arguments.meaning:
        raise UsageError("--recurrence-steps goes with --meaning: add it, or leave the steps out.")
    if arguments.output is not None or arguments.figure == "3":
        make_folder(arguments.output or _DEFAULT_OUTPUT, "--output")
    from sae_steer_retriever.evaluate.evaluation import evaluate_corpus, evaluate_set
    from sae_steer_retriever.sae import TopKSAE

    sae = TopKSAE.from_pretrained(arguments.sae)
    embedder = _embedder(arguments.model or sae.config.encoder.name, arguments)
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
        return _written(evaluation.ranks, evaluation.ranks.write(arguments.output or _DEFAULT_OUTPUT))
    files = evaluation.write(arguments.output) if arguments.output is not None else []
    return _written(evaluation, files)


def _study(arguments: argparse.Namespace) -> Outcome:
    if arguments.table is not None and arguments.figure is not None:
        raise UsageError("give --table or --figure, not both: each is a study of its own.")
    if arguments.dataset is None or not Path(arguments.dataset).is_dir():
        raise UsageError("--table and --figure 2 fit SAEs on a judged set: name its folder with --dataset.")
    if arguments.sae is not None or arguments.corpus is not None or arguments.meaning:
        raise UsageError("--table and --figure 2 fit their own SAEs: leave out --sae, --corpus and --meaning.")
    if arguments.table == "8" and arguments.model is None:
        raise UsageError("--table 8 is Table 1 with a second encoder: name it with --model.")
    if arguments.split == "train":
        raise UsageError("--table and --figure 2 fit the queries of the split train: measure on another, e.g. test.")
    if arguments.figure == "2" and "mse" not in arguments.losses:
        raise UsageError("--figure 2 compares with mse: expected mse among the losses, e.g. --losses mse rkl.")
    from sae_steer_retriever.evaluate.study import Study, write_table

    config = _config(arguments)
    output = arguments.output or _DEFAULT_OUTPUT
    make_folder(output, "--output")
    study = Study.open(
        Path(arguments.dataset),
        arguments.out_of_domain,
        _embedder(config.model, arguments),
        config,
        fits=output / "fits",
        split=arguments.split,
        progress=not arguments.quiet,
    )
    # What is named twice would be listed and averaged twice.
    ks, seeds, losses = (tuple(dict.fromkeys(given)) for given in (arguments.ks, arguments.seeds, arguments.losses))
    if arguments.table is not None:
        table = study.table(int(arguments.table), ks, seeds)
        return _written(table, write_table(table, output))
    figure = study.figure_2(ks, seeds, losses)
    return _written(figure, figure.write(output))


def _config(arguments: argparse.Namespace) -> TrainConfig:
    """The settings that all fits of a study share."""
    from sae_steer_retriever.train.config import TrainConfig, read_config

    # All fits of a comparison take the same number of steps.
    settings: dict[str, Any] = {"patience": 0}
    try:
        if arguments.config is not None:
            settings |= read_config(arguments.config)
        given = {name: getattr(arguments, name) for name in ("model", "latents", "steps")}
        settings |= {name: value for name, value in given.items() if value is not None}
        # A study goes through several K: the recipe's own must not be refused beside fewer latents.
        settings["k"] = min(arguments.ks)
        return TrainConfig(**settings)
    except (CorpusError, TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def _written(result: _Result, files: Sequence[Path]) -> Outcome:
    text, data = result.to_text(), result.to_json()
    if files:
        text += f"\n\nwritten: {', '.join(map(str, files))}"
        data["files"] = [str(path) for path in files]
    return Outcome(text, data)


def _embedder(model: str, arguments: argparse.Namespace) -> CachedEmbedder:
    from sae_steer_retriever.embedders import as_embedder
    from sae_steer_retriever.embedding_cache import CachedEmbedder

    return CachedEmbedder(as_embedder(model), progress=not arguments.quiet)


def _whole(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 0")
    return number
