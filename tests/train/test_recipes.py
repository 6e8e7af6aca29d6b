"""The recipes in train/recipes: each is read, and the two that repeat something repeat it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from sae_steer_retriever.train.config import TrainConfig, read_config
from sae_steer_retriever.train.sizing import choose_sizes

RECIPES = Path(__file__).resolve().parents[2] / "train" / "recipes"


@pytest.mark.parametrize("name", ["default", "paper", "small", "large", "gpu", "base-minilm"])
def test_every_recipe_is_read(name: str) -> None:
    config = TrainConfig(**read_config(RECIPES / f"{name}.toml"))
    assert choose_sizes(config, passages=1000, rows=5000, d=768).k <= config.k


def test_no_recipe_is_untested() -> None:
    tested = {"default", "paper", "small", "large", "gpu", "base-minilm", "v0.1"}
    assert {path.stem for path in RECIPES.glob("*.toml")} == tested


def test_the_default_recipe_is_the_defaults() -> None:
    assert TrainConfig(**read_config(RECIPES / "default.toml")) == TrainConfig()


def test_the_paper_recipe_is_appendix_a() -> None:
    config = TrainConfig(**read_config(RECIPES / "paper.toml"))
    assert (config.loss, config.lr, config.batch_size, config.epochs) == ("paper", 1e-3, 512, 128)
    assert (config.list_size, config.latents, config.k, config.sentences) == (16, 196_608, 128, 0)
    for k in (32, 64):
        assert choose_sizes(dataclasses.replace(config, k=k), passages=10**6, rows=10**6, d=768)[:2] == (196_608, k)


@pytest.mark.parametrize(("passages", "latents", "k"), [(300, 64, 16), (2000, 512, 32), (1200, 256, 32)])
def test_the_small_recipe_leaves_the_sizes_to_the_corpus(passages: int, latents: int, k: int) -> None:
    config = TrainConfig(**read_config(RECIPES / "small.toml"))
    assert choose_sizes(config, passages, rows=9 * passages, d=384)[:2] == (latents, k)


def test_recipes_hold_numbers_not_texts() -> None:
    for path in RECIPES.glob("*.toml"):
        texts = {key for key, value in read_config(path).items() if isinstance(value, str)}
        assert texts <= {"loss", "init", "device", "model"}
        assert re.search(r"^#", path.read_text(encoding="utf-8"), re.MULTILINE)
