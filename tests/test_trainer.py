"""The fit: what it learns, that it can be stopped and taken up, and that held-out rows stay held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sae_steer_retriever.directions import spherical_kmeans
from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.sae import Array, EncoderSpec, SAEConfig, TopKSAE
from sae_steer_retriever.train.checkpoint import Checkpoint
from sae_steer_retriever.train.config import LOSSES, TrainConfig
from sae_steer_retriever.train.lists import nearest_documents
from sae_steer_retriever.train.measure import hold_out
from sae_steer_retriever.train.sampling import Rows, Sampler, TrainingData
from sae_steer_retriever.train.trainer import Fit, Trainer

D, ATOMS, ACTIVE = 32, 64, 4


def planted(count: int, seed: int) -> tuple[Array, Array]:
    """Unit vectors that are sums of four of 64 atoms, and the atoms."""
    atoms = np.random.default_rng(0).normal(size=(ATOMS, D))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    generator = np.random.default_rng(seed)
    rows = np.zeros((count, D))
    for row in rows:
        row += generator.uniform(0.5, 1, ACTIVE) @ atoms[generator.permutation(ATOMS)[:ACTIVE]]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), atoms.astype(np.float32)


def make_data(count: int = 1500) -> TrainingData:
    """Planted documents and queries, a tenth of them held out."""
    documents, _ = planted(count, 1)
    queries, _ = planted(count // 5, 2)
    held = count // 10

    def rows(documents: Array, queries: Array) -> Rows:
        lists = nearest_documents(queries, documents, 8)
        return Rows(np.concatenate([documents, queries]), documents, queries, lists)

    fitted, everything = rows(documents[held:], queries[held // 5 :]), rows(documents, queries)
    return TrainingData(fitted, everything, hold_out(documents[:held], queries[: held // 5], documents))


def sizes(n: int = ATOMS, k: int = 8, k_names: int = 4) -> SAEConfig:
    return SAEConfig(d=D, n=n, k=k, k_names=k_names, encoder=EncoderSpec("planted", D))


def config(**settings: object) -> TrainConfig:
    return TrainConfig(**{"batch_size": 128, "list_queries": 8, "lr": 1e-2, "device": "cpu", **settings})  # type: ignore[arg-type]


def equal(one: TopKSAE, other: TopKSAE) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("W_enc", "b_enc", "W_dec", "b_dec"))


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return make_data()


@pytest.fixture(scope="module")
def fit(data: TrainingData) -> Fit:
    return Trainer(data, config(), sizes(), epochs=300).fit()


def test_a_fit_explains_what_it_has_not_seen(fit: Fit, data: TrainingData) -> None:
    """Held-out rows are reconstructed, the ranking survives, and rows have unit norm."""
    assert fit.measurement.fvu < 0.2
    assert fit.measurement.overlap > 0.45
    torch.testing.assert_close(fit.sae.W_dec.norm(dim=1), torch.ones(ATOMS))
    start = Trainer(data, config(), sizes(), epochs=1)
    assert start._model.fold(sizes()).decoder.shape == (ATOMS, D)
    untrained = start._measure()
    assert fit.measurement.fvu < 0.5 * untrained.fvu


def test_planted_atoms_are_found(fit: Fit) -> None:
    """Most atoms have a latent along them, far more than random directions would."""
    _, atoms = planted(1, 0)
    best = (atoms @ fit.sae.decoder.T).max(axis=1)
    random = np.random.default_rng(5).normal(size=(ATOMS, D))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    assert (best > 0.9).mean() > 0.75
    assert np.median((atoms @ random.T).max(axis=1)) < 0.6


def test_the_folded_sae_is_the_fitted_function(data: TrainingData) -> None:
    """Centring and scaling fold into plain weights: same latents, values times s, same reconstruction."""
    trainer = Trainer(data, config(), sizes(), epochs=2)
    trainer.fit()
    model, x = trainer._model, torch.from_numpy(data.held_out.rows)
    folded = model.fold(sizes())
    with torch.no_grad():
        values, indices = model.encode(x, 8)
        expected = model.decode(values, indices)
    codes = folded.encode(x)
    assert torch.equal(codes.indices.long(), indices)
    torch.testing.assert_close(codes.values, values * model.s)
    torch.testing.assert_close(folded.decode(codes), expected)


def test_a_seed_decides_everything(data: TrainingData) -> None:
    """Two fits of one seed are the same to the bit, two seeds are not."""
    one, same, other = (Trainer(data, config(seed=seed), sizes(), epochs=3).fit().sae for seed in (0, 0, 1))
    assert equal(one, same)
    assert not equal(one, other)


def test_steps_replace_epochs(data: TrainingData) -> None:
    """A budget of steps is kept to the step; both at once is refused."""
    done: list[int] = []
    Trainer(data, config(steps=7), sizes(), epochs=300).fit(on_step=done.append)
    assert done == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(ValueError, match="no epochs beside"):
        config(steps=7, epochs=2.0)


def test_the_paper_has_one_bare_cosine(data: TrainingData) -> None:
    """Appendix A: from the peak rate on the first step to zero; held-out rows never join."""
    trainer = Trainer(data, config(loss="paper", steps=40), sizes(), epochs=1)
    rates = [trainer._schedule(step) for step in range(40)]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.01
    assert trainer._measured_steps == trainer.steps
    ours = Trainer(data, config(steps=40), sizes(), epochs=1)
    assert ours._schedule(0) == 1.0  # a warm-up of one step
    assert ours._measured_steps == 32
    assert ours._schedule(32) < ours._schedule(20)


class Stop(Exception):
    """Ends a fit from outside."""


@pytest.mark.parametrize("stop_at", [3, 17, 33], ids=["early", "middle", "absorbing"])
def test_a_stopped_fit_goes_on_as_if_nothing_had_happened(
    data: TrainingData, tmp_path: Path, stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State, optimiser, order of rows and best measurement survive, at any point of the fit."""
    monkeypatch.setattr("sae_steer_retriever.train.checkpoint._INTERVAL", 0.0)
    whole = Trainer(data, config(), sizes(), epochs=3)
    expected = whole.fit()
    assert whole.steps > 33

    def stop(step: int) -> None:
        if step == stop_at:
            raise Stop

    identity = {"data": 1}
    with pytest.raises(Stop):
        Trainer(data, config(), sizes(), epochs=3).fit(
            checkpoint=Checkpoint(tmp_path, identity, resume=False), on_step=stop
        )
    resumed: list[int] = []
    found = Trainer(data, config(), sizes(), epochs=3).fit(
        checkpoint=Checkpoint(tmp_path, identity, resume=True), on_step=resumed.append
    )
    assert resumed[0] == stop_at + 1
    assert equal(found.sae, expected.sae)
    assert found.measurement == expected.measurement


def test_a_checkpoint_of_another_fit_is_refused(data: TrainingData, tmp_path: Path) -> None:
    """Other settings or other data: going on would mix two fits."""
    Trainer(data, config(), sizes(), epochs=1).fit(checkpoint=Checkpoint(tmp_path, {"lr": 1}, resume=False))
    with pytest.raises(ArtifactError, match="other settings"):
        Trainer(data, config(), sizes(), epochs=1).fit(checkpoint=Checkpoint(tmp_path, {"lr": 2}, resume=True))
    (tmp_path / "state.safetensors").write_bytes(b"half a file")
    with pytest.raises(ArtifactError, match="damaged"):
        Trainer(data, config(), sizes(), epochs=1).fit(checkpoint=Checkpoint(tmp_path, {"lr": 1}, resume=True))


@pytest.mark.parametrize(
    "settings", [*({"loss": loss} for loss in LOSSES if loss != "rkl"), {"init": "data"}, {"init": "kmeans"}]
)
def test_every_loss_and_start_learns(data: TrainingData, settings: dict[str, object]) -> None:
    """Each ends better than it began."""
    trainer = Trainer(data, config(**settings), sizes(), epochs=60)
    before = trainer._measure()
    assert trainer.fit().measurement.fvu < before.fvu


def test_a_pass_draws_every_row_once() -> None:
    """And the next pass in another order."""
    rows = np.arange(20, dtype=np.float32).reshape(10, 2)
    sampler = Sampler(Rows(rows, rows, rows, np.zeros((10, 1), dtype=np.int64)), seed=0)
    passes = [torch.cat([sampler.draw_rows(step, 5) for step in (number, number + 1)]).tolist() for number in (0, 2)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(10))
    assert passes[0] != passes[1]


def test_nearest_documents_equal_a_full_sort() -> None:
    """Tiles and partial sorts change nothing."""
    documents, queries = planted(300, 3)[0], planted(40, 4)[0]
    expected = np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :7]
    assert np.array_equal(nearest_documents(queries, documents, 7), expected)
    assert nearest_documents(queries, documents[:3], 7).shape == (40, 3)


def test_kmeans_centres_are_unit_and_none_is_empty() -> None:
    """Twice as many centres as directions: the empty ones are placed on badly fitted points."""
    points = torch.from_numpy(planted(400, 6)[0])
    centres = spherical_kmeans(points, torch.nn.functional.normalize(torch.ones(50, D) + 1e-3 * torch.randn(50, D)))
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(50))
    assert len(torch.unique((points @ centres.T).argmax(dim=1))) > 40
