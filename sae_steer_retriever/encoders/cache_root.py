"""The cache folder: embeddings, codes, maps and language models' replies, all of which can be made again."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_dir

CACHE_VARIABLE = "SAE_STEER_CACHE"
"""The environment variable that moves the folder."""


def cache_root() -> Path:
    """Returns the cache folder: the environment variable SAE_STEER_CACHE, or the user's cache folder."""
    return Path(os.environ.get(CACHE_VARIABLE) or user_cache_dir("sae_steer_retriever", appauthor=False))
