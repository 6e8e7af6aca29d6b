"""`sae-steer search`: ranked passages with and without steering, and explanations."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from sae_steer_retriever.cli.runner import Outcome, UsageError, add_common_arguments, count
from sae_steer_retriever.cli.store_options import add_sae_argument, add_store_arguments, open_retriever
from sae_steer_retriever.errors import SteeringError

if TYPE_CHECKING:
    from sae_steer_retriever.explain.explanation import Explanation
    from sae_steer_retriever.explain.hits import Hit
    from sae_steer_retriever.features.catalog import FeatureCatalog
    from sae_steer_retriever.steering.edit import Edit
    from sae_steer_retriever.steering.operations import BasicOperation, Operation
    from sae_steer_retriever.steering.policy import Steering

SUMMARY = "search a store, steered by named features"
# Equal to SPACES, LATENT_SCORES, READ_ON and SIDES of the library, whose import loads PyTorch.
SPACE_CHOICES = ("original", "reconstructed", "latent")
LATENT_SCORE_CHOICES = ("match", "dot", "damped")
READ_ON_CHOICES = ("reconstruction", "vector")
SIDE_CHOICES = ("query", "document", "both")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add("query", metavar="QUESTION", help="the question")
    add_store_arguments(parser)
    add_sae_argument(parser)
    add(
        "--steer",
        action="append",
        default=[],
        metavar="NAME=+0.5",
        help="a feature (label, keyword, free text or id) and its strength, or an operation: NAME=suppress, "
        "NAME=clamp:1.0, NAME=scale:2, NAME=raw:0.5; with a condition on the query's features: "
        "'NAME=+0.5 when OTHER>0.3'; repeat it for several features",
    )
    add(
        "--policy",
        metavar="FILE",
        help="a saved steering; --steer adds to it or replaces its edits, NAME=0 removes one",
    )
    add("--save-policy", metavar="FILE", help="save the steering of this search, with the policy's")
    add("-k", type=count, default=4, metavar="N", help="number of passages (default: 4)")
    add("--explain", action="store_true", help="show the parts of each score: features, bias and residual")
    add(
        "--space",
        choices=SPACE_CHOICES,
        default="original",
        help="search the original embeddings, the reconstructed ones, or the latent space (default: original)",
    )
    add(
        "--latent-score",
        choices=LATENT_SCORE_CHOICES,
        default="match",
        help="score of the latent space: the question against the passages' reconstructions, the dot product of their "
        "codes, or the cosine of their damped codes (default: match)",
    )
    add(
        "--read-on",
        choices=READ_ON_CHOICES,
        default="reconstruction",
        help="what a steering reads of the first candidates in the original space: their reconstructions, or their "
        "stored vectors alone, which is faster (default: reconstruction)",
    )
    add(
        "--side",
        choices=SIDE_CHOICES,
        help="what a strength changes: query shifts the query, document boosts passages that have the feature "
        "(default: both; query in the other spaces)",
    )
    add(
        "--fetch-k",
        type=count,
        metavar="N",
        help="candidates of the first call to the store (default: the larger of 50 and 4 k)",
    )
    add("--where", type=_filter, metavar="JSON", help="""metadata filter of Chroma, e.g. '{"source": "a.md"}'""")
    add_common_arguments(parser)


def run(arguments: argparse.Namespace) -> Outcome:
    """Returns the hits, with and without steering.

    Raises:
        UsageError: The store, the collection, the SAE or the policy does not exist, or a strength is malformed.
        SAESteerError: No feature has the name, the SAE and the store do not belong together, or the store does not
            answer.
    """
    if not arguments.query.strip():
        raise UsageError("the question is empty.")
    steer = steer_of(arguments.steer)
    if arguments.save_policy is not None and not (steer or arguments.policy):
        raise UsageError("--save-policy has nothing to save: give --steer or --policy.")
    from sae_steer_retriever.explain.explanation import Explanation

    retriever = open_retriever(arguments)
    steering = retriever.resolve(steer or None, side=arguments.side, space=arguments.space)
    if arguments.save_policy is not None:
        steering.save(arguments.save_policy)
    options: dict[str, Any] = {
        "k": arguments.k,
        "space": arguments.space,
        "latent_score": arguments.latent_score,
        "where": arguments.where,
        "fetch_k": arguments.fetch_k,
        "read_on": arguments.read_on,
        "embedding": retriever.embedder.embed_queries([arguments.query])[0],
    }
    applied = retriever.active_edits(steering, arguments.query, embedding=options["embedding"])
    hits = retriever.search(arguments.query, steer=steering, explain=arguments.explain, **options)
    before = retriever.search(arguments.query, steer={}, explain=False, **options) if applied.edits else []
    kept = {hit.id for hit in hits}
    left = [hit for hit in before if hit.id not in kept]
    told: dict[str, Any] = {
        "space": arguments.space,
        "latent_score": arguments.latent_score,
        "steered": bool(applied.edits),
    }
    reasons = {
        hit.id: Explanation(arguments.query, hit, rank=rank, **told)
        for rank, hit in enumerate(hits, start=1)
        if hit.attribution is not None
    }
    data = {
        "query": arguments.query,
        "k": arguments.k,
        "space": arguments.space,
        "certified": hits.certified,
        "steering": [_edit_data(edit, retriever.catalog, applied) for edit in steering.edits],
        "hits": [_hit_data(rank, hit, reasons.get(hit.id)) for rank, hit in enumerate(hits, start=1)],
        "left": [{"id": hit.id, "base_rank": hit.base_rank, "base_score": hit.base_score} for hit in left],
    }
    lines = _steering_lines(steering, retriever.catalog, applied)
    for rank, hit in enumerate(hits, start=1):
        lines += _hit_lines(rank, hit, reasons.get(hit.id), steered=bool(applied.edits))
    if reasons:
        lines += ["", next(iter(reasons.values())).note]
    if left:
        lines += ["no longer among them:", *(f"    {hit.id} (was {hit.base_rank})" for hit in left)]
    return Outcome("\n".join(lines) if hits or lines else "nothing found", data)


def steer_of(given: list[str]) -> dict[str, float | Operation]:
    """Returns the steering of texts "NAME=VALUE" or "NAME=VALUE when OTHER>UNITS"; NAME may contain "=".

    Raises:
        UsageError: A text is malformed, a feature is named twice, or a strength is out of range.
    """
    if not given:
        return {}
    from sae_steer_retriever.steering.operations import OPERATIONS, Add, When, make_operation
    from sae_steer_retriever.steering.policy import parse

    steer: dict[str, float | Operation] = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        value, conditional, condition = value.partition(" when ")
        other, _, above = condition.rpartition(">")
        name, value = name.strip(), value.strip()
        if not equals or not name:
            raise UsageError(f"--steer {text!r}: expected NAME=STRENGTH, e.g. --steer employment=+0.5.")
        if name in steer:
            raise UsageError(f"--steer names {name!r} twice: give it one strength.")
        operation, colon, amount = value.casefold().partition(":")
        try:
            asked: BasicOperation | float
            kind = OPERATIONS.get(operation)
            if kind is None or kind is Add or bool(dataclasses.fields(kind)) != bool(colon):
                asked = float(value)
            else:
                asked = make_operation(operation, float(amount or 0))
            steer[name] = When(other.strip(), float(above), asked) if conditional else asked
        except ValueError:
            raise UsageError(
                f"--steer {text!r}: {value + conditional + condition!r} is no strength; expected a number such as +0.5 "
                "or -1, or suppress, clamp:1.0, scale:2 or raw:0.5, with or without a condition such as "
                "' when employment>0.3'."
            ) from None
    try:
        parse(steer)
    except SteeringError as error:
        raise UsageError(f"--steer: {error}") from error
    return steer


def _filter(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from error
    if not isinstance(found, dict) or not found:
        raise argparse.ArgumentTypeError(f"""{text!r}: expected a JSON object, e.g. '{{"source": "a.md"}}'""")
    return found


def _steering_lines(steering: Steering, catalog: FeatureCatalog, applied: Steering) -> list[str]:
    lines = []
    for edit in steering.edits:
        features = "; ".join(f"#{latent} {catalog.name(latent)}" for latent in edit.features)
        condition = ""
        if edit.condition is not None:
            condition = f" {edit.condition}{'' if edit in applied.edits else ', which does not hold here'}"
        lines.append(f"steering {edit.name} {edit.asked} ({edit.side}){condition}: {features}")
    return lines


def _hit_lines(rank: int, hit: Hit, why: Explanation | None, *, steered: bool) -> list[str]:
    from sae_steer_retriever.explain.text import excerpt

    moved = f"  {_movement(rank, hit)}" if steered else ""
    lines = [f"{rank:>3}  {hit.score:.3f}{moved}  {hit.id}"]
    text = excerpt(hit.text)
    if text:
        lines.append(f"     {text}")
    if why is not None:
        lines += [f"     {line}" for line in (why.sentence, *why.table.splitlines())]
    return lines


def _movement(rank: int, hit: Hit) -> str:
    """Returns the change of rank, in words too: some consoles have no arrows."""
    if hit.base_rank is None:
        return "new"
    steps = hit.base_rank - rank
    arrow = f"↑{steps}" if steps > 0 else f"↓{-steps}" if steps < 0 else "="
    return f"{arrow} (was {hit.base_rank})"


def _edit_data(edit: Edit, catalog: FeatureCatalog, applied: Steering) -> dict[str, Any]:
    features = [
        {"id": latent, "label": catalog.name(latent), "weight": weight}
        for latent, weight in zip(edit.features, edit.weights, strict=True)
    ]
    data: dict[str, Any] = {
        "name": edit.name,
        "operation": edit.op,
        "strength": edit.strength,
        "side": edit.side,
        "features": features,
    }
    if edit.condition is not None:
        holds = edit in applied.edits
        data["condition"] = {"name": edit.condition.name, "above": edit.condition.above, "holds": holds}
    return data


def _hit_data(rank: int, hit: Hit, why: Explanation | None) -> dict[str, Any]:
    data: dict[str, Any] = {
        "rank": rank,
        "id": hit.id,
        "score": hit.score,
        "base_rank": hit.base_rank,
        "base_score": hit.base_score,
        "read_on": hit.read_on,
        "text": hit.text,
        "metadata": hit.metadata,
    }
    if why is not None:
        attribution = why.attribution
        data["explanation"] = why.sentence
        data["attribution"] = {
            "features": [part._asdict() for part in attribution.features],
            "steering": [term._asdict() for term in attribution.steering],
            "bias": attribution.bias,
            "residual": attribution.residual,
            "unexplained": attribution.unexplained,
        }
    return data
