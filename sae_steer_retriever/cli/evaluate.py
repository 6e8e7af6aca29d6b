"""`sae-steer evaluate`: fidelity of an SAE on judged queries or on your own documents, and meaning of its features."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sae_steer_retriever.cli.runner import Outcome, UsageError, add_common_arguments, count, number_type
from sae_steer_retriever.cli.store_options import make_folder, require_path
from sae_steer_retriever.sae.bundled import bundled_names, bundled_sae, require_bundled
from sae_steer_retriever.sae.config import DEFAULT_MODEL

if TYPE_CHECKING:
    from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
    from sae_steer_retriever.sae.topk_sae import TopKSAE

SUMMARY = "measure an SAE on judged queries or on your own documents"
_PAPER = "python -m benchmarks.paper"
# Options of the studies, which are commands of the repository now.
_MOVED = {
    "--table": f"{_PAPER} table-1, table-4 or table-8",
    "--figure": f"{_PAPER} figure-2, figure-3 or figure-4",
    "--steering": "python -m benchmarks.steering",
}
_MOVED |= dict.fromkeys(("--queries", "--concepts", "--limit-passages"), _MOVED["--steering"])
_MOVED |= dict.fromkeys(("--out-of-domain", "--ks", "--seeds", "--losses"), f"{_PAPER} table-1, table-8 or figure-2")
_MOVED |= dict.fromkeys(("--latents", "--steps", "--config"), f"{_PAPER} table-1, table-8 or figure-2")
_MOVED["--relevant-from"] = f"{_PAPER} figure-4"
whole = number_type(int, 0, sys.float_info.max, "a whole number of at least 0")


class Result(Protocol):
    """A table, a figure or an evaluation."""

    def to_text(self) -> str:
        """Returns it as text for a terminal."""

    def to_json(self) -> dict[str, Any]:
        """Returns it as one object for programs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    source = parser.add_argument_group("what to measure on")
    source.add_argument(
        "--dataset", metavar="DIR|NAME", help="judged set: a BEIR folder, an id of ir_datasets, or hub:OWNER/NAME"
    )
    source.add_argument("--split", default="test", metavar="NAME", help="which judgments of the set (default: test)")
    source.add_argument(
        "--corpus", type=Path, metavar="PATH", help="your own file or folder, without queries or judgments"
    )
    measure = parser.add_argument_group("what to measure")
    add_sae_argument(measure)
    measure.add_argument("--model", metavar="NAME", help="encoder: a sentence-transformers name or folder")
    add_k_argument(measure)
    measure.add_argument(
        "--meaning", action="store_true", help="also measure the meaning of the features, beside untrained dictionaries"
    )
    measure.add_argument(
        "--recurrence-steps",
        type=whole,
        metavar="N",
        help="with --meaning: steps of the two fits on halves; 0 skips them",
    )
    measure.add_argument("--output", type=Path, metavar="DIR", help="folder for a page with tables and plots")
    for option in _MOVED:
        parser.add_argument(option, nargs="*", action=_Moved, dest="moved", help=argparse.SUPPRESS)
    add_common_arguments(parser)


def add_sae_argument(parser: argparse._ActionsContainer) -> None:
    """Adds `--sae`, for commands that measure an SAE; `sae_folder` reads it."""
    parser.add_argument(
        "--sae",
        type=Path,
        metavar="DIR|NAME",
        help="folder or name of a bundled SAE (default: the bundled one for --model)",
    )


def add_k_argument(parser: argparse._ActionsContainer) -> None:
    """Adds `--k`; `at_k` applies it."""
    parser.add_argument(
        "--k", type=count, metavar="N", help="use the SAE with N active features (default: as it was fitted)"
    )


def run(arguments: argparse.Namespace) -> Outcome:
    """Returns the figures of an SAE, and the files that were written.

    Raises:
        UsageError: The options do not go together, or a file or folder that they name does not exist.
        SAESteerError: A set is malformed, or the parts do not belong together.
    """
    if arguments.moved is not None:
        raise UsageError(
            f"{arguments.moved} is no option of sae-steer evaluate any more: use {_MOVED[arguments.moved]}, from a "
            "checkout of the repository."
        )
    if (arguments.dataset is None) == (arguments.corpus is None):
        raise UsageError("give either --dataset DIR, a judged set, or --corpus PATH, documents without judgments.")
    require_path("--corpus", arguments.corpus)
    folder = sae_folder(arguments)
    steps = arguments.recurrence_steps
    if steps is not None and not arguments.meaning:
        raise UsageError("--recurrence-steps goes with --meaning: add it, or leave the steps out.")
    if arguments.output is not None:
        make_folder(arguments.output, "--output")
    from sae_steer_retriever.evaluate.evaluation import evaluate
    from sae_steer_retriever.evaluate.meaning import RECURRENCE_STEPS
    from sae_steer_retriever.sae.topk_sae import TopKSAE

    sae = at_k(TopKSAE.from_pretrained(folder), arguments.k)
    evaluation = evaluate(
        sae,
        cached_embedder(arguments.model or sae.config.encoder.name, arguments),
        dataset=arguments.dataset,
        corpus=arguments.corpus,
        split=arguments.split,
        meaning=arguments.meaning,
        recurrence_steps=RECURRENCE_STEPS if steps is None else steps,
        ranks=arguments.output is not None,
        progress=not arguments.quiet,
    )
    return written(evaluation, evaluation.write(arguments.output) if arguments.output is not None else [])


def written(result: Result, files: Sequence[Path]) -> Outcome:
    """Returns a result in both forms, with the files that it was written to."""
    text, data = result.to_text(), result.to_json()
    if files:
        text += f"\n\nwritten: {', '.join(map(str, files))}"
        data["files"] = [str(path) for path in files]
    return Outcome(text, data)


def cached_embedder(model: str, arguments: argparse.Namespace) -> CachedEmbedder:
    """Returns a caching encoder by its name; it shows its progress unless --quiet is given.

    Raises:
        ArtifactError: There is no such encoder, or the folder of the cache cannot be created.
    """
    from sae_steer_retriever.encoders.embedders import as_embedder
    from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder

    return CachedEmbedder(as_embedder(model), progress=not arguments.quiet)


def sae_folder(arguments: argparse.Namespace) -> Path:
    """Returns the folder of the SAE that `--sae` names, or of the bundled one for `--model`.

    Raises:
        UsageError: There is no such folder, and no bundled SAE of that name.
        ArtifactError: No SAE is bundled for the encoder.
    """
    given: Path | None = arguments.sae
    if given is None:
        return require_bundled(arguments.model or DEFAULT_MODEL)
    folder = given if given.is_dir() else bundled_sae(str(given))
    if folder is None:
        bundled = f"; bundled: {', '.join(bundled_names())}" if bundled_names() else ""
        raise UsageError(f"--sae: no such folder: {given}{bundled}")
    return folder


def at_k(sae: TopKSAE, k: int | None) -> TopKSAE:
    """Returns the SAE with K active features; None keeps its own K.

    Raises:
        UsageError: The SAE cannot have so many.
    """
    try:
        return sae if k is None else sae.with_k(k)
    except ValueError as error:
        raise UsageError(f"--k: {error}") from error


class _Moved(argparse.Action):
    """Remembers the first option that is a command of the repository now."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if namespace.moved is None:
            namespace.moved = option
