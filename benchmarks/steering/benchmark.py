"""The steering benchmark: from an SAE and a labelled corpus to a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.evaluate.retrieval_set import RetrievalSet
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE

from .corpus import QUESTIONS, LabelledCorpus, frequent_labels, words_of
from .cost import steering_costs
from .curve import SteeringMethod
from .dictionaries import (
    DEFAULT_NAME,
    RANDOM_NAME,
    Dictionary,
    DictionarySteering,
    dictionary_methods,
    product,
    untrained_methods,
)
from .methods import ADD_NAME, ORACLE_NAME, Rewrite, Signal, vector_methods
from .pairs import combined
from .removal import removals
from .report import SteeringReport, unsteered_share
from .setting import SteeringSetting, make_setting
from .study import compare

# Methods that are also used to steer away from a concept and towards two concepts.
_FURTHER = (DEFAULT_NAME, "SAE, side=query", "SAE, side=both", ADD_NAME, "DiffMean", RANDOM_NAME, ORACLE_NAME)

FurtherMethods = Callable[[SteeringSetting, Dictionary], Sequence[SteeringMethod]]


def measure_steering(
    sae: TopKSAE,
    catalog: FeatureCatalog,
    embedder: Embedder,
    corpus: LabelledCorpus,
    name: str,
    *,
    concepts: Mapping[str, str] | None = None,
    questions: Sequence[str] = QUESTIONS,
    rewrite: Rewrite | None = None,
    further: FurtherMethods | None = None,
    codes: Callable[[SteeringSetting], Codes[NDArray[Any]]] | None = None,
    judged: RetrievalSet | None = None,
    extras: bool = True,
    draws: int = 2000,
    seed: int = 0,
    progress: bool = False,
) -> SteeringReport:
    """Returns a comparison of all ways to steer on one corpus.

    Args:
        sae: The dictionary.
        catalog: Its names and units.
        embedder: Its encoder, a `CachedEmbedder`.
        corpus: Labelled passages.
        name: Name of the corpus, for titles and files.
        concepts: Label -> the words that a person types; the labels themselves if not given.
        questions: The queries.
        rewrite: Rewrites a query for a concept with a language model; left out if not given.
        further: Builds more methods to compare.
        codes: Returns stored codes of the passages; encoded if not given.
        judged: A judged set to measure the cost in nDCG on.
        extras: Whether to measure removal and combinations too.
        draws: Number of bootstrap draws for the intervals.
        seed: Seed of the examples, of untrained dictionaries and of pairs of concepts.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        CorpusError: Too few labels have enough passages, or no concept names one of them.
    """
    labels = frequent_labels(corpus)
    setting = make_setting(corpus, labels, words_of(labels, concepts), tuple(questions), embedder, seed=seed)
    dictionary = Dictionary(sae, setting, catalog.calibration, None if codes is None else codes(setting))
    own = product(catalog, dictionary)
    methods: list[SteeringMethod] = [*own, *vector_methods(setting, rewrite), *dictionary_methods(dictionary)]
    methods += untrained_methods(dictionary, seed=seed)
    if further is not None:
        methods += further(setting, dictionary)
    compared = compare(methods, setting, draws=draws, progress=progress)
    movable = [method for method in methods if isinstance(method, Signal | DictionarySteering)]
    chosen = [method for method in movable if method.name in _FURTHER] if extras else []
    return SteeringReport(
        corpus=name,
        passages=len(setting.vectors),
        questions=setting.questions,
        words=setting.words,
        unsteered=unsteered_share(setting.members, setting.plain),
        compared=compared,
        unresolved={setting.words[number]: why for number, why in own[0].why_not.items()},
        removals=tuple(removals(chosen, setting)),
        combinations=tuple(combined(chosen, setting, seed=seed)),
        costs=tuple(steering_costs(sae, catalog, embedder, judged, seed=seed)) if judged is not None else (),
        judged=judged.name if judged is not None else "",
        notes=corpus.notes,
    )
