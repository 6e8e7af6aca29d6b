"""The folder of everything that can be made again: embeddings, codes, maps, replies of language models."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_dir

CACHE_VARIABLE = "SAE_STEER_CACHE"
"""The environment variable that moves the folder."""


def cache_root() -> Path:
    """The folder for everything that can be made again; the environment variable SAE_STEER_CACHE moves it."""
    return Path(os.environ.get(CACHE_VARIABLE) or user_cache_dir("sae_steer_retriever", appauthor=False))
