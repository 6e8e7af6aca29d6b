"""`python -m benchmarks.steering --corpus FILE --sae DIR`: steering compared with its baselines.

With `--data FOLDER` in place of `--corpus`, it runs on 20 Newsgroups and Reuters-21578, with names for their labels as
a person would type them (`benchmarks/name_resolution.py`). FOLDER holds `20newsgroups.jsonl.gz` and
`reuters21578.jsonl.gz`. Embeddings are cached; `--keep FOLDER` keeps the codes too, so that a run with the same SAE and
passages takes less than two minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.cli.evaluate import (
    add_k_argument,
    add_sae_argument,
    at_k,
    cached_embedder,
    sae_folder,
    written,
)
from sae_steer_retriever.cli.runner import Outcome, UsageError, add_common_arguments, count, main_of
from sae_steer_retriever.cli.store_options import make_folder
from sae_steer_retriever.evaluate.datasets import read_retrieval_set
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE

from ..name_resolution import CONCEPTS
from .benchmark import measure_steering
from .corpus import QUESTIONS, read_concepts, read_labelled_corpus, read_questions
from .dictionaries import encoded
from .setting import SteeringSetting

REUTERS_QUESTIONS = (
    "what is the outlook for prices?",
    "who bought it?",
    "how much did it rise?",
    "why did it fall?",
    "what did the government decide?",
    "what did the minister say?",
    "how large is the deficit?",
    "which countries are affected?",
    "what is expected next year?",
    "how much was produced?",
    "how much was exported?",
    "what did the company announce?",
    "what caused the losses?",
    "is there an agreement?",
    "who opposes the plan?",
    "what will happen to demand?",
    "how did the market react?",
    "what are the new rules?",
    "when does it take effect?",
    "how large are the stocks?",
)
CORPORA = {"20newsgroups": QUESTIONS, "reuters21578": REUTERS_QUESTIONS}


class Task(NamedTuple):
    """One corpus to compare on.

    Attributes:
        name: Name of the corpus.
        path: Its file.
        questions: The queries.
        concepts: Label -> the words that a person types; None for the labels themselves.
    """

    name: str
    path: Path
    questions: Sequence[str]
    concepts: Mapping[str, str] | None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark.

    Args:
        argv: The arguments; those of the process if None.

    Returns:
        The exit code: 0 ok, 1 failed, 2 usage, 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.steering",
        description="Compares steering by the features of an SAE with its baselines, on labelled passages.",
        allow_abbrev=False,
    )
    source = parser.add_argument_group("what to steer")
    source.add_argument("--corpus", type=Path, metavar="FILE", help="rows with `label` or `labels` (.jsonl, .jsonl.gz)")
    source.add_argument("--queries", type=Path, metavar="FILE", help="one ambiguous question a line (default: twenty)")
    source.add_argument(
        "--concepts", type=Path, metavar="FILE", help="JSON: label -> the words a person types (default: the labels)"
    )
    source.add_argument(
        "--data", type=Path, metavar="FOLDER", help="20 Newsgroups and Reuters-21578, in place of --corpus"
    )
    source.add_argument("--only", choices=tuple(CORPORA), help="with --data: one of the two")
    source.add_argument(
        "--limit-passages", type=count, metavar="N", help="at most N passages, drawn at random (default: all)"
    )
    measure = parser.add_argument_group("what to measure")
    add_sae_argument(measure)
    measure.add_argument("--model", metavar="NAME", help="encoder: a sentence-transformers name or folder")
    add_k_argument(measure)
    measure.add_argument("--dataset", metavar="DIR|NAME", help="judged set: also measure the nDCG lost on its queries")
    measure.add_argument("--split", default="test", metavar="NAME", help="which judgments of the set (default: test)")
    measure.add_argument("--no-extras", action="store_true", help="neither removal nor combinations")
    measure.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the codes of the passages for later runs")
    measure.add_argument("--output", type=Path, metavar="DIR", help="folder for tables and a plot")
    add_common_arguments(parser)
    parser.set_defaults(run=run)
    return main_of(parser, argv)


def run(arguments: argparse.Namespace) -> Outcome:
    """Compares the ways to steer.

    Args:
        arguments: As `main` parses them.

    Returns:
        The report of --corpus; with --data, one report for each corpus by its name.

    Raises:
        UsageError: The options do not go together, or a file that they name does not exist.
        SAESteerError: A corpus or set is malformed, or the parts do not belong together.
    """
    tasks = list(_tasks(arguments))
    folder = sae_folder(arguments)
    for name in ("output", "keep"):
        if getattr(arguments, name) is not None:
            make_folder(getattr(arguments, name), f"--{name}")
    sae = at_k(TopKSAE.from_pretrained(folder), arguments.k)
    catalog = FeatureCatalog.load(folder, sae.fingerprint)
    embedder = cached_embedder(arguments.model or sae.config.encoder.name, arguments)
    judged = read_retrieval_set(arguments.dataset, split=arguments.split) if arguments.dataset is not None else None
    found: dict[str, Outcome] = {}
    for task in tasks:
        report = measure_steering(
            sae,
            catalog,
            embedder,
            read_labelled_corpus(task.path, limit=arguments.limit_passages),
            task.name,
            concepts=task.concepts,
            questions=task.questions,
            codes=(lambda setting: kept_codes(arguments.keep, sae, setting)) if arguments.keep else None,
            judged=judged,
            extras=not arguments.no_extras,
            progress=not arguments.quiet,
        )
        found[task.name] = written(report, report.write(arguments.output) if arguments.output is not None else [])
    if arguments.corpus is not None:
        return found[tasks[0].name]
    return Outcome("\n\n\n".join(one.text for one in found.values()), {name: one.data for name, one in found.items()})


def _tasks(arguments: argparse.Namespace) -> Iterator[Task]:
    if (arguments.corpus is None) == (arguments.data is None):
        raise UsageError("give either --corpus FILE, rows with `label` or `labels`, or --data FOLDER.")
    if arguments.data is not None:
        if arguments.queries is not None or arguments.concepts is not None:
            raise UsageError("--queries and --concepts go with --corpus: --data has questions and names of its own.")
        for name in [arguments.only] if arguments.only else CORPORA:
            path = arguments.data / f"{name}.jsonl.gz"
            if not path.is_file():
                raise UsageError(f"--data: no such file: {path}")
            yield Task(name, path, CORPORA[name], {label: words for words, label in CONCEPTS.items()})
        return
    if arguments.only is not None:
        raise UsageError("--only goes with --data: add it, or leave this out.")
    for option in ("corpus", "queries", "concepts"):
        path = getattr(arguments, option)
        if path is not None and not path.is_file():
            raise UsageError(f"--{option}: no such file: {path}")
    yield Task(
        arguments.corpus.name.split(".")[0] or "corpus",
        arguments.corpus,
        read_questions(arguments.queries) if arguments.queries is not None else QUESTIONS,
        read_concepts(arguments.concepts) if arguments.concepts is not None else None,
    )


def kept_codes(folder: Path, sae: TopKSAE, setting: SteeringSetting) -> Codes[NDArray[Any]]:
    """Returns the codes of the passages, from a file in `folder` if there is one, else encoded and written to it."""
    digest = hashlib.sha256(setting.vectors.tobytes()).hexdigest()[:16]
    file = folder / f"codes-{sae.fingerprint}-{digest}.npz"
    if file.is_file():
        with np.load(file) as arrays:
            return Codes(arrays["indices"], arrays["values"])
    codes = encoded(sae, setting.vectors)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(file, indices=codes.indices, values=codes.values)
    return codes


if __name__ == "__main__":
    sys.exit(main())
