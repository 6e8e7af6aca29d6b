"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest_plugins = ["command_line", "small_world"]

_REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public retrieval sets: the environment's SAE_STEER_DATA, else one beside the repository."""
    given = os.environ.get("SAE_STEER_DATA")
    folder = Path(given) if given else _REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no retrieval sets in {folder}: set SAE_STEER_DATA to a folder with scifact/ in BEIR layout")
    return folder
