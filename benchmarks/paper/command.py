"""The studies of `sae-steer evaluate`: the paper's tables and figures that take more than measuring one SAE."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_steer_retriever.cli.evaluate_parts import DEFAULT_OUTPUT, cached_embedder, written
from sae_steer_retriever.cli.outcome import Outcome, UsageError
from sae_steer_retriever.cli.store_options import make_folder
from sae_steer_retriever.errors import CorpusError

if TYPE_CHECKING:
    from sae_steer_retriever.train.config import TrainConfig

FITTING = "--table 1, --table 8 and --figure 2"
"""The studies that fit SAEs of their own."""


def study(arguments: argparse.Namespace) -> Outcome:
    """Table 1, Table 8 or Figure 2: fit an SAE for each of several settings, and measure them all.

    Raises:
        UsageError: The options do not go together, or what they name is not there.
        SAESteerError: A set is malformed, or the corpus does not bear what is to be fitted to it.
    """
    _require_one(arguments)
    if arguments.dataset is None or not Path(arguments.dataset).is_dir():
        raise UsageError(f"{FITTING} fit SAEs on a judged set: name its folder with --dataset.")
    if arguments.sae is not None or arguments.corpus is not None or arguments.meaning:
        raise UsageError(f"{FITTING} fit their own SAEs: leave out --sae, --corpus and --meaning.")
    if arguments.table == "8" and arguments.model is None:
        raise UsageError("--table 8 is Table 1 with a second encoder: name it with --model.")
    if arguments.split == "train":
        raise UsageError(f"{FITTING} fit the queries of the split train: measure on another, e.g. test.")
    if arguments.figure == "2" and "mse" not in arguments.losses:
        raise UsageError("--figure 2 compares with mse: expected mse among the losses, e.g. --losses mse rkl.")
    from benchmarks.paper.study import Study, write_table

    config = _config(arguments)
    output = arguments.output or DEFAULT_OUTPUT
    make_folder(output, "--output")
    fits = Study.open(
        Path(arguments.dataset),
        arguments.out_of_domain,
        cached_embedder(config.model, arguments),
        config,
        fits=output / "fits",
        split=arguments.split,
        progress=not arguments.quiet,
    )
    # What is named twice would be listed and averaged twice.
    ks, seeds, losses = (tuple(dict.fromkeys(given)) for given in (arguments.ks, arguments.seeds, arguments.losses))
    if arguments.table is not None:
        table = fits.table(int(arguments.table), ks, seeds)
        return written(table, write_table(table, output))
    figure = fits.figure_2(ks, seeds, losses)
    return written(figure, figure.write(output))


def controllability(arguments: argparse.Namespace) -> Outcome:
    """Table 4 or Figure 4: what one raised feature of a fitted SAE does to rankings.

    Raises:
        UsageError: The options do not go together, or what they name is not there.
        SAESteerError: A set is malformed, the SAE cannot be read, or the parts do not belong together.
    """
    _require_one(arguments)
    _require_controllability(arguments)
    output = arguments.output or DEFAULT_OUTPUT
    make_folder(output, "--output")
    from benchmarks.paper.controllability import manipulation_study, perspectives_study
    from sae_steer_retriever.sae.topk_sae import TopKSAE

    model = arguments.model or TopKSAE.from_pretrained(arguments.sae).config.encoder.name
    embedder, sae, dataset = cached_embedder(model, arguments), arguments.sae, arguments.dataset
    if arguments.figure is not None:
        grade = arguments.relevant_from or 1
        figure = manipulation_study(sae, dataset, embedder, split=arguments.split, relevant_from=grade)
        return written(figure, figure.write(output))
    table = perspectives_study(sae, embedder, dataset=dataset, corpus=arguments.corpus, split=arguments.split)
    return written(table, table.write(output))


def _require_controllability(arguments: argparse.Namespace) -> None:
    asked = "--table 4" if arguments.figure is None else "--figure 4"
    if arguments.figure is not None and (arguments.dataset is None or arguments.corpus is not None):
        raise UsageError(f"{asked} raises a latent of relevant documents: give --dataset, a judged set, no --corpus.")
    if (arguments.dataset is None) == (arguments.corpus is None):
        raise UsageError(
            f"{asked} searches either the documents of --dataset or those of --corpus FILE, rows with `label` or "
            "`labels`: give one of them."
        )
    if arguments.corpus is not None and not arguments.corpus.is_file():
        raise UsageError(f"--corpus: no such file: {arguments.corpus}")
    if arguments.figure is None and arguments.relevant_from is not None:
        raise UsageError("--relevant-from goes with --figure 4: add it, or leave this out.")
    others = {
        "--meaning": arguments.meaning,
        "--recurrence-steps": arguments.recurrence_steps is not None,
        "--out-of-domain": bool(arguments.out_of_domain),
        "--config": arguments.config is not None,
    }
    for name, given in others.items():
        if given:
            raise UsageError(f"{asked} is a study of its own: leave out {name}.")


def _require_one(arguments: argparse.Namespace) -> None:
    if arguments.table is not None and arguments.figure is not None:
        raise UsageError("give --table or --figure, not both: each is a study of its own.")


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


__all__ = ["FITTING", "controllability", "study"]
