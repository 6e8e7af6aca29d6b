"""`sae-steer train` and `python -m sae_steer_retriever.train`: fits or adapts an SAE, and labels its features."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_steer_retriever import __version__
from sae_steer_retriever.cli.runner import Outcome, UsageError, add_common_arguments, main_of
from sae_steer_retriever.cli.store_options import require_path
from sae_steer_retriever.errors import ArtifactError, CorpusError
from sae_steer_retriever.sae.config import former_key, former_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_steer_retriever.corpus.passage import Corpus
    from sae_steer_retriever.train.config import TrainConfig
    from sae_steer_retriever.train.starting_point import StartingPoint

SUMMARY = "fit an SAE on a corpus, or adapt one to it, and label its features"
_METAVARS = {int: "N", float: "X", str: "NAME"}
_SHOWN_SKIPPED = 20
_INIT_HELP = (
    "; pretrained (the bundled SAE), or the folder or hub id of another SAE, adapts that SAE, and --latents is then "
    "its number of active features (default: pretrained below 5,000 passages, unless a setting contradicts it, else "
    "kmeans)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: those of the command, and one for each setting of `TrainConfig`."""
    from sae_steer_retriever.train.config import TrainConfig

    add = parser.add_argument
    add("--version", action="version", version=f"sae-steer {__version__}")
    add(
        "--corpus",
        type=Path,
        required=True,
        metavar="PATH",
        help="file or folder of text, Markdown, HTML, PDF, Word, JSON Lines or CSV, or a folder in BEIR layout",
    )
    add("--queries", type=Path, metavar="FILE", help="real queries: one per line, or JSON Lines with a text each")
    add("--output", type=Path, required=True, metavar="DIR", help="folder to write the SAE to")
    add("--config", type=Path, metavar="FILE", help="TOML file with the settings below; options given here override it")
    add("--resume", action="store_true", help="resume an interrupted run with the same --output")
    add("--tensorboard", type=Path, metavar="DIR", help="write the curves of the fit for TensorBoard to this folder")
    add("--dry-run", action="store_true", help="read the corpus, show the plan, and stop before embedding anything")
    add_common_arguments(parser)
    group = parser.add_argument_group("settings")
    kinds = _kinds()
    for field in dataclasses.fields(TrainConfig):
        flag = "--" + field.name.replace("_", "-")
        flags = ["-k", flag] if field.name == "k" else [flag]
        shown = "" if field.default is None else f" (default: {field.default})"
        if field.name == "init":
            shown = _INIT_HELP
        choices = field.metadata.get("choices")
        group.add_argument(
            *flags,
            dest=field.name,
            type=kinds[field.name],
            choices=choices,
            metavar=None if choices else _METAVARS[kinds[field.name]],
            help=(field.metadata["help"] + shown).replace("%", "%%"),
        )
        former = former_key(field.name)
        if former is not None:  # the option's name in the first release
            flag = "--" + former.replace("_", "-")
            group.add_argument(flag, dest=field.name, type=kinds[field.name], help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> Outcome:
    """Returns the report of a fit, or with --dry-run its plan.

    Raises:
        UsageError: A setting is out of range, or the corpus, the queries, the recipe or the SAE to adapt is missing.
        MissingExtraError: --tensorboard is given, and TensorBoard is not installed.
        SAESteerError: The fit fails.
    """
    settings = _settings(arguments)
    _checked({name: value for name, value in settings.items() if name != "init"})
    require_path("--corpus", arguments.corpus)
    require_path("--queries", arguments.queries)
    for option in ("output", "tensorboard"):
        path = getattr(arguments, option)
        if path is not None and path.exists() and not path.is_dir():
            raise UsageError(f"--{option}: {path} is a file; expected a folder, or a name for a new one.")
    if arguments.tensorboard is not None:
        from sae_steer_retriever.train.callbacks import require_tensorboard

        require_tensorboard()
    corpus, starting_point, config = _begun(arguments, settings)
    if arguments.dry_run:
        return _plan(arguments, config, corpus, starting_point)
    from sae_steer_retriever.train.pipeline import fit

    if not arguments.quiet:
        sys.stderr.write(f"begins {starting_point.why}\n")
    report = fit(
        arguments.corpus,
        arguments.output,
        config,
        queries=arguments.queries,
        resume=arguments.resume,
        progress=not arguments.quiet,
        tensorboard=arguments.tensorboard,
        parent=starting_point.parent,
        read=corpus,
    )
    return Outcome(report.summary(), report.to_json())


def _kinds() -> dict[str, type]:
    """The type of each setting: int, float or str; optional ones without their None."""
    from sae_steer_retriever.train.config import TrainConfig

    kinds: dict[str, type] = {}
    for name, hint in typing.get_type_hints(TrainConfig).items():
        kind = hint
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            (kind,) = (part for part in typing.get_args(kind) if part is not type(None))
        kinds[name] = str if typing.get_origin(kind) is typing.Literal else kind
    return kinds


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given: those of the recipe, overridden by those of the command line."""
    from sae_steer_retriever.train.config import read_config

    kinds = _kinds()
    settings: dict[str, Any] = {}
    if arguments.config is not None:
        try:
            settings = read_config(arguments.config)
        except CorpusError as error:
            raise UsageError(str(error)) from error
    for name, value in settings.items():
        allowed = (int, float) if kinds[name] is float else (kinds[name],)
        if isinstance(value, bool) or not isinstance(value, allowed):
            expected = {int: "a whole number", float: "a number", str: "a text in quotes"}[kinds[name]]
            raise UsageError(f"{arguments.config}: {name} = {value!r}: expected {expected}.")
    return settings | {name: value for name in kinds if (value := getattr(arguments, name)) is not None}


def _checked(settings: dict[str, Any]) -> TrainConfig:
    from sae_steer_retriever.train.config import TrainConfig

    try:
        return TrainConfig(**settings)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _begun(arguments: argparse.Namespace, settings: dict[str, Any]) -> tuple[Corpus, StartingPoint, TrainConfig]:
    """The corpus, the starting point, and all settings; an adaptation has other defaults than a fit from scratch."""
    from sae_steer_retriever.corpus.read_corpus import read_corpus
    from sae_steer_retriever.sae.files import CONFIG_FILE, read_config
    from sae_steer_retriever.train.adaptation import adapted_config
    from sae_steer_retriever.train.config import TrainConfig
    from sae_steer_retriever.train.embedded_corpus import require_enough
    from sae_steer_retriever.train.starting_point import choose_starting_point

    characters = settings.get("passage_characters", TrainConfig.passage_characters)
    corpus = read_corpus(arguments.corpus, passage_characters=characters, queries=arguments.queries)
    require_enough(corpus)
    try:
        starting_point = choose_starting_point(settings, len(corpus.passages))
        if starting_point.parent is None:
            return corpus, starting_point, TrainConfig(**settings)
        parent, _ = read_config(starting_point.parent / CONFIG_FILE)
        return corpus, starting_point, adapted_config(parent, settings)
    except (ArtifactError, ValueError) as error:
        raise UsageError(str(error)) from error


def _plan(arguments: argparse.Namespace, config: TrainConfig, corpus: Corpus, starting_point: StartingPoint) -> Outcome:
    """The plan of a fit: it needs the corpus and the encoder, and embeds nothing."""
    from sae_steer_retriever.encoders.embedders import as_embedder
    from sae_steer_retriever.sae.files import CONFIG_FILE, read_config
    from sae_steer_retriever.train.embedded_corpus import short_texts
    from sae_steer_retriever.train.pipeline import plan

    made = short_texts(corpus, config)
    dimension = as_embedder(config.model).spec.dimension
    parent = None if starting_point.parent is None else read_config(starting_point.parent / CONFIG_FILE)[0]
    sizes, advice = plan(corpus, made, config, dimension, parent)
    planned = {
        "corpus": str(arguments.corpus),
        "passages": len(corpus.passages),
        "query_texts": len(made),
        "queries": len(corpus.queries),
        "encoder": config.model,
        "dimension": dimension,
        "begins": starting_point.why,
        "latents": sizes.latents,
        "k": sizes.k,
        "epochs": round(sizes.epochs, 2),
        "output": str(arguments.output),
    }
    data = {
        "dry_run": True,
        **planned,
        "settings": former_keys(dataclasses.asdict(config)),
        "skipped": [{"file": file, "reason": reason} for file, reason in corpus.skipped],
        "notes": [{"file": file, "note": note} for file, note in corpus.notes],
        "advice": list(advice),
    }
    lines = [f"{name.replace('_', ' '):<11}  {value}" for name, value in planned.items()]
    lines += _file_lines("skipped", corpus.skipped) + _file_lines("note", corpus.notes)
    lines += [f"{'advice':<11}  {sentence}" for sentence in advice]
    return Outcome("\n".join([*lines, "nothing was embedded or written: leave out --dry-run to train"]), data)


def _file_lines(title: str, files: list[tuple[str, str]]) -> list[str]:
    lines = [f"{title:<11}  {file}: {what}" for file, what in files[:_SHOWN_SKIPPED]]
    if len(files) > _SHOWN_SKIPPED:
        lines.append(f"{title:<11}  and {len(files) - _SHOWN_SKIPPED} more (--json lists all)")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m sae_steer_retriever.train` with the given or the process' arguments; returns the exit code."""
    prog = "python -m sae_steer_retriever.train"
    parser = argparse.ArgumentParser(prog=prog, description=f"{SUMMARY}.", allow_abbrev=False)
    add_arguments(parser)
    parser.set_defaults(run=run)
    return main_of(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
