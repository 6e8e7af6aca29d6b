"""`python -m benchmarks.paper table-1 ...`: the tables and figures of arXiv 2411.00786, from the repository's root."""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sae_steer_retriever.cli.evaluate import (
    add_k_argument,
    add_sae_argument,
    at_k,
    cached_embedder,
    sae_folder,
    whole,
    written,
)
from sae_steer_retriever.cli.feature_options import OpenedCatalog, add_options, open_catalog
from sae_steer_retriever.cli.feature_passages import cached_embedder as embedder_of
from sae_steer_retriever.cli.feature_passages import check_source, open_passages
from sae_steer_retriever.cli.runner import Outcome, UsageError, add_common_arguments, count, main_of
from sae_steer_retriever.cli.store_options import make_folder
from sae_steer_retriever.corpus.read_corpus import read_corpus
from sae_steer_retriever.errors import CorpusError, nearest_names
from sae_steer_retriever.evaluate.datasets import read_retrieval_set
from sae_steer_retriever.evaluate.evaluation import passages_like_training
from sae_steer_retriever.evaluate.fidelity import encode_in_batches
from sae_steer_retriever.evaluate.retrieval_set import embed_set
from sae_steer_retriever.evaluate.table import Table
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.config import TrainConfig, read_config

from .feature_tables import TOP, document_table, query_table, region_tables
from .figure import Figure
from .figure_2 import figure_2
from .figure_3 import figure_3
from .figure_4 import manipulation_study
from .fits import FitSeries
from .seed_average import JudgedSet
from .table_1 import table_1, table_8, write_table
from .table_4 import perspectives_study

logger = logging.getLogger("sae_steer_retriever.benchmarks.paper")

DEFAULT_OUTPUT = Path("evaluation")
LOSSES = ("rkl", "mse", "mse-queries", "eq2", "released")
"""The losses of `train.config.LOSSES` that can be compared with all else equal."""


def main(argv: Sequence[str] | None = None) -> int:
    """Makes a table or a figure.

    Args:
        argv: The arguments; those of the process if None.

    Returns:
        The exit code: 0 ok, 1 failed, 2 usage, 130 interrupted.
    """
    return main_of(_parser(), argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper",
        description="Repeats the tables and figures of Kang, Wang & Xiong (arXiv 2411.00786) beside the printed ones.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, what: str, run: Callable[[argparse.Namespace], Outcome]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=f"{what}.", allow_abbrev=False)
        added.set_defaults(run=run, command=name)
        return added

    fits = [
        command("table-1", "retrieval kept by latents and reconstructions, after a fit for each K", _fits),
        command("table-8", "Table 1 with a second encoder, named with --model", _fits),
        command("figure-2", "retrieval kept after fits with different losses", _fits),
    ]
    for fit in fits:
        _add_fit_arguments(fit)
    fits[-1].add_argument(
        "--losses", choices=LOSSES, nargs="+", default=list(LOSSES), metavar="LOSS", help="losses (default: all)"
    )
    ranks = command("figure-3", "document frequency of words and features, by rank", _figure_3)
    add_k_argument(ranks)
    table = command("table-4", "top 5 of questions with two perspectives, before and after steering", _table_4)
    figure = command("figure-4", "retrieval against the addition to one latent", _figure_4)
    figure.add_argument(
        "--relevant-from", type=count, default=1, metavar="N", help="smallest grade that counts (default: 1)"
    )
    for each in (ranks, table, figure):
        add_sae_argument(each)
        _add_set_arguments(each)
    ranks.add_argument("--corpus", type=Path, metavar="PATH", help="your own file or folder, in place of --dataset")
    table.add_argument(
        "--corpus", type=Path, metavar="FILE", help="rows with `label` or `labels` (.jsonl, .jsonl.gz), in place of "
        "--dataset"
    )  # fmt: skip
    for each in (*fits, ranks, table, figure):
        add_common_arguments(each)
    _add_table_arguments(command("feature-tables", "Tables 2, 3, 6 and 7: features, and Figure 3", _feature_tables))
    return parser


def _add_set_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", metavar="DIR|NAME", help="judged set, as for sae-steer evaluate")
    parser.add_argument("--split", default="test", metavar="NAME", help="which judgments of the set (default: test)")
    parser.add_argument("--model", metavar="NAME", help="encoder: a sentence-transformers name or folder")
    parser.add_argument(
        "--output",
        type=Path,
        default=DEFAULT_OUTPUT,
        metavar="DIR",
        help=f"folder for Markdown, CSV and JSON files and pictures (default: {DEFAULT_OUTPUT})",
    )


def _add_fit_arguments(parser: argparse.ArgumentParser) -> None:
    _add_set_arguments(parser)
    parser.add_argument(
        "--out-of-domain",
        action="append",
        default=[],
        metavar="DIR|NAME",
        help="a judged set that nothing is fitted to; may be given several times",
    )
    parser.add_argument("--ks", type=count, nargs="+", default=[32, 64, 128], metavar="K", help="(default: 32 64 128)")
    parser.add_argument("--seeds", type=whole, nargs="+", default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    parser.add_argument("--latents", type=count, metavar="N", help="number of latents")
    parser.add_argument("--steps", type=count, metavar="N", help="steps of each fit")
    parser.add_argument("--config", type=Path, metavar="FILE", help="recipe, as for sae-steer train")


def _fits(arguments: argparse.Namespace) -> Outcome:
    """Table 1, Table 8 or Figure 2: fits an SAE for each setting, and measures them all."""
    name = arguments.command
    if arguments.dataset is None or not Path(arguments.dataset).is_dir():
        raise UsageError(f"{name} fits SAEs to a judged set: name its folder with --dataset.")
    if name == "table-8" and arguments.model is None:
        raise UsageError("table-8 is Table 1 with a second encoder: name it with --model.")
    if arguments.split == "train":
        raise UsageError(f"{name} fits the queries of the split train: measure on another, e.g. test.")
    if name == "figure-2" and "mse" not in arguments.losses:
        raise UsageError("figure-2 compares with mse: expected mse among the losses, e.g. --losses mse rkl.")
    config = _config(arguments)
    output: Path = arguments.output
    make_folder(output, "--output")
    embedder = cached_embedder(config.model, arguments)
    sources = (arguments.dataset, *arguments.out_of_domain)
    judged = [read_retrieval_set(source, split=arguments.split) for source in sources]
    series = FitSeries(
        read_corpus(Path(arguments.dataset)), output / "fits", embedder, config, progress=not arguments.quiet
    )
    sets: list[JudgedSet] = [(one, embed_set(one, embedder)) for one in judged]
    # A value given twice would be listed and averaged twice.
    ks, seeds = (tuple(dict.fromkeys(given)) for given in (arguments.ks, arguments.seeds))
    if name == "figure-2":
        losses = tuple(dict.fromkeys(arguments.losses))
        return _written(figure_2(series, sets, ks=ks, seeds=seeds, losses=losses, steps=config.steps), output)
    table = (table_1 if name == "table-1" else table_8)(series, sets, ks=ks, seeds=seeds)
    return written(table, write_table(table, output))


def _config(arguments: argparse.Namespace) -> TrainConfig:
    """The settings that all fits share."""
    # All fits of a comparison take the same number of steps.
    settings: dict[str, Any] = {"patience": 0}
    try:
        if arguments.config is not None:
            settings |= read_config(arguments.config)
        given = {name: getattr(arguments, name) for name in ("model", "latents", "steps")}
        settings |= {name: value for name, value in given.items() if value is not None}
        # The K of the recipe is not used, and must not be refused beside fewer latents.
        settings["k"] = min(arguments.ks)
        return TrainConfig(**settings)
    except (CorpusError, TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def _figure_3(arguments: argparse.Namespace) -> Outcome:
    if (arguments.dataset is None) == (arguments.corpus is None):
        raise UsageError("give either --dataset DIR, a judged set, or --corpus PATH, documents without judgments.")
    if arguments.corpus is not None and not arguments.corpus.exists():
        raise UsageError(f"--corpus: no such file or folder: {arguments.corpus}")
    sae = at_k(TopKSAE.from_pretrained(sae_folder(arguments)), arguments.k)
    make_folder(arguments.output, "--output")
    embedder = cached_embedder(arguments.model or sae.config.encoder.name, arguments)
    sae.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
    if arguments.dataset is not None:
        passages = read_retrieval_set(arguments.dataset, split=arguments.split).passages
    else:
        passages = passages_like_training(arguments.corpus, sae)
    texts = [passage.text for passage in passages]
    return _written(figure_3(sae, texts, encode_in_batches(sae, embedder.embed_documents(texts))), arguments.output)


def _figure_4(arguments: argparse.Namespace) -> Outcome:
    if arguments.dataset is None:
        raise UsageError("figure-4 raises a latent of relevant documents: give --dataset, a judged set.")
    embedder, sae, output = _opened(arguments)
    figure = manipulation_study(
        sae, arguments.dataset, embedder, split=arguments.split, relevant_from=arguments.relevant_from
    )
    return _written(figure, output)


def _table_4(arguments: argparse.Namespace) -> Outcome:
    if (arguments.dataset is None) == (arguments.corpus is None):
        raise UsageError(
            "table-4 searches either the documents of --dataset or those of --corpus FILE, rows with `label` or "
            "`labels`: give one of them."
        )
    if arguments.corpus is not None and not arguments.corpus.is_file():
        raise UsageError(f"--corpus: no such file: {arguments.corpus}")
    embedder, sae, output = _opened(arguments)
    dataset, corpus, split = arguments.dataset, arguments.corpus, arguments.split
    return _written(perspectives_study(sae, embedder, dataset=dataset, corpus=corpus, split=split), output)


def _opened(arguments: argparse.Namespace) -> tuple[Any, Path, Path]:
    """The encoder, the folder of the SAE, and the folder for the files."""
    folder = sae_folder(arguments)
    make_folder(arguments.output, "--output")
    model = arguments.model or TopKSAE.from_pretrained(folder).config.encoder.name
    return cached_embedder(model, arguments), folder, arguments.output


def _written(result: Table | Figure, output: Path) -> Outcome:
    return written(result, result.write(output))


def _add_table_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, nested=False)
    parser.add_argument(
        "--corpus", type=Path, metavar="PATH", help="your documents, in place of --store: for --document and the figure"
    )
    parser.add_argument(
        "--document", nargs="+", action="extend", default=[], metavar="ID", help="passages whose features to list"
    )
    parser.add_argument(
        "--query", nargs="+", action="extend", default=[], metavar="TEXT", help="questions whose features to list"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples (default: 0)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for Markdown, CSV and JSON files and the figure's picture"
    )


def _feature_tables(arguments: argparse.Namespace) -> Outcome:
    check_source(arguments)
    if arguments.document and arguments.corpus is None and arguments.store is None:
        raise UsageError("--document names passages of --corpus PATH or of --store DIR: give one of them.")
    if any(not query.strip() for query in arguments.query):
        raise UsageError("--query: a question is empty.")
    if arguments.seed < 0:
        raise UsageError(f"--seed {arguments.seed}: expected a whole number of at least 0.")
    if arguments.output is not None:
        make_folder(arguments.output, "--output")
    opened = open_catalog(arguments)
    tables, figure = _made(arguments, opened)
    shown: list[Table | Figure] = [*tables, *figure]
    data: dict[str, Any] = {"tables": {table.name: table.to_json() for table in tables}}
    if figure:
        data["figure"] = figure[0].to_json()
    text = "\n\n\n".join(part.to_text() for part in shown)
    if arguments.output is not None:
        files = [str(file) for part in shown for file in part.write(arguments.output)]
        text += f"\n\nwritten: {', '.join(files)}"
        data["files"] = files
    return Outcome(text, data)


def _made(arguments: argparse.Namespace, opened: OpenedCatalog) -> tuple[list[Table], list[Figure]]:
    """The tables, and Figure 3 if there are passages with texts."""
    sae, catalog, limit = opened.sae, opened.catalog, arguments.limit or TOP
    tables = region_tables(catalog, arguments.seed)
    embedder = functools.cache(lambda: embedder_of(sae, arguments))
    passages = open_passages(arguments, opened, embedder)
    if arguments.document and passages is not None:
        vectors = passages.vectors[_rows(arguments.document, passages.ids)]
        tables.append(document_table(sae, catalog, arguments.document, vectors, limit))
    if arguments.query:
        vectors = embedder().embed_queries(arguments.query)
        tables.append(query_table(sae, catalog, arguments.query, vectors, limit))
    if passages is None:
        return tables, []
    if not any(text.strip() for text in passages.texts):
        logger.warning("the store holds no texts, so there are no words to compare features with: no figure")
        return tables, []
    return tables, [figure_3(sae, passages.texts, encode_in_batches(sae, passages.vectors))]


def _rows(wanted: Sequence[str], ids: Sequence[str]) -> list[int]:
    """The rows of passages by their ids."""
    row_of = {name: row for row, name in enumerate(ids)}
    for name in wanted:
        if name not in row_of:
            shown = ", ".join(map(repr, nearest_names(name, ids) or ids[:3]))
            raise UsageError(f"--document {name!r}: no such passage among {len(ids):,}, e.g. {shown}.")
    return [row_of[name] for name in wanted]


if __name__ == "__main__":
    sys.exit(main())
