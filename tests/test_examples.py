"""The examples in the docstrings run, over the small world: `retriever`, and the parts that it is made of."""

from __future__ import annotations

import doctest
import importlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
from chromadb.api.shared_system_client import SharedSystemClient
from small_world import World

import sae_steer_retriever
from sae_steer_retriever.retriever import SteeredRetriever

PACKAGE = Path(sae_steer_retriever.__file__).parent
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def modules_with_examples() -> list[str]:
    """The names of the package's modules that have an example in a docstring."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if re.search(r"^ +>>> ", path.read_text("utf-8"), re.M)]
    return [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for path in files
    ]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_of_a_module_run(
    name: str, retriever: SteeredRetriever, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ".integrations." in name:
        pytest.importorskip("langchain_core" if "langchain" in name else "llama_index.core")
    monkeypatch.chdir(tmp_path)  # an example may write "./sae"
    # Chroma remembers open stores by the path that was given: "./chroma" is another folder in each test.
    systems = SharedSystemClient._identifier_to_system
    for path in [path for path in systems if not Path(path).is_absolute()]:
        del systems[path]
    names = {
        "retriever": retriever,
        "store": retriever.store,
        "sae": world.sae,
        "catalog": world.catalog,
        "embedder": world.embedder,
        "texts": world.texts,
        "vectors": world.vectors,
        "np": np,
        "os": os,
    }
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs=names, optionflags=FLAGS, report=True)
    assert result.attempted > 0
    assert result.failed == 0
