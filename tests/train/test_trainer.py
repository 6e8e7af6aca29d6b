"""The fit: what it learns, that it can be stopped and taken up, and that held-out rows stay held out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.config import EncoderSpec, SAEConfig
from sae_steer_retriever.sae.directions import spherical_kmeans
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.callbacks import MetricsLog
from sae_steer_retriever.train.checkpoint import Checkpoint
from sae_steer_retriever.train.config import LOSSES, TrainConfig
from sae_steer_retriever.train.measure import IMPROVEMENT, Measurement, Standstill, hold_out, measure
from sae_steer_retriever.train.nearest_lists import nearest_documents
from sae_steer_retriever.train.sampling import Rows, Sampler, TrainingData
from sae_steer_retriever.train.trainable_sae import FittingSAE
from sae_steer_retriever.train.trainer import Fit, Trainer

D, ATOMS, ACTIVE = 32, 64, 4


def planted(count: int, seed: int, atoms_in_all: int = ATOMS, active: int = ACTIVE, d: int = D) -> tuple[Array, Array]:
    """Unit vectors that are sums of a few atoms each, four of 64 if nothing else is said, and the atoms."""
    atoms = np.random.default_rng(0).normal(size=(atoms_in_all, d))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    generator = np.random.default_rng(seed)
    rows = np.zeros((count, d))
    for row in rows:
        row += generator.uniform(0.5, 1, active) @ atoms[generator.permutation(atoms_in_all)[:active]]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), atoms.astype(np.float32)


def make_data(count: int = 1500, **sizes: int) -> TrainingData:
    """Planted documents and queries, a tenth of them held out."""
    documents, _ = planted(count, 1, **sizes)
    queries, _ = planted(count // 5, 2, **sizes)
    held = count // 10

    def rows(documents: Array, queries: Array) -> Rows:
        lists = nearest_documents(queries, documents, 8)
        return Rows(np.concatenate([documents, queries]), documents, queries, lists)

    fitted, everything = rows(documents[held:], queries[held // 5 :]), rows(documents, queries)
    return TrainingData(fitted, everything, hold_out(documents[:held], queries[: held // 5], documents))


def sizes(n: int = ATOMS, k: int = 8, k_labels: int = 4, d: int = D, refine_steps: int = 0) -> SAEConfig:
    encoder = EncoderSpec("planted", d)
    return SAEConfig(d=d, n=n, k=k, k_labels=k_labels, encoder=encoder, refine_steps=refine_steps)


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


@pytest.fixture(scope="module")
def recovered() -> dict[str, float]:
    """By the start: the share of 256 atoms, four a passage, that one of 512 latents points along after 600 steps."""
    large = {"atoms_in_all": 256, "active": 4, "d": 64}
    data, (_, atoms) = make_data(16_000, **large), planted(1, 0, **large)
    found = {}
    for init in ("kmeans", "random"):
        settings = TrainConfig(  # type: ignore[arg-type]
            init=init, steps=600, batch_size=256, list_queries=8, device="cpu", patience=0
        )
        fit = Trainer(data, settings, sizes(n=512, k=4, k_labels=4, d=64), epochs=1).fit()
        found[init] = float(((atoms @ fit.sae.decoder.T).max(axis=1) > 0.9).mean())
    return found


def test_planted_atoms_are_found(recovered: dict[str, float]) -> None:
    """Nine in ten, and more than from a random start at the same steps."""
    assert recovered["kmeans"] >= 0.9
    assert recovered["kmeans"] > recovered["random"] + 0.25


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


def test_only_what_turns_a_direction_is_left_of_its_gradient() -> None:
    """In tiles as at once, and orthogonal to every row; a number of rows that is no multiple of a tile."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn((1300, D), generator=generator), dim=1)
    model = FittingSAE(torch.zeros(D), 1.0, directions, directions)
    gradient = torch.randn((1300, D), generator=generator)
    model.D.grad = gradient.clone()
    model.before_step()
    expected = gradient - (gradient * directions).sum(dim=1, keepdim=True) * directions
    torch.testing.assert_close(model.D.grad, expected, rtol=1e-6, atol=1e-6)
    assert float((model.D.grad * directions).sum(dim=1).abs().max()) < 1e-5
    free = FittingSAE(torch.zeros(D), 1.0, directions, directions, unit_rows=False)
    free.D.grad = gradient.clone()
    free.before_step()
    assert torch.equal(free.D.grad, gradient)


def test_coherence_is_that_of_the_passages_that_names_are_read_from(data: TrainingData) -> None:
    """By hand: of every feature, the five passages of the label latents in which it is strongest."""
    sae = Trainer(data, config(), sizes(), epochs=1)._model.fold(sizes())
    documents = data.held_out.documents
    names = sae.encode(documents, k=4)
    unit = documents - documents.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    found = []
    for latent in range(ATOMS):
        strength = np.where(names.indices == latent, names.values, 0).max(axis=1)
        strongest = np.argsort(-strength, kind="stable")[:5]
        if strength[strongest[-1]] > 0:
            found.append((unit[strongest] @ unit[strongest].T)[np.triu_indices(5, 1)].mean())
    assert measure(sae, data.held_out, 1.0).coherence == pytest.approx(np.median(found), abs=1e-4)
    few = data.held_out._replace(documents=documents[:4], nearest=data.held_out.nearest[:, :4])
    assert measure(sae, few, 1.0).coherence is None


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


@pytest.fixture(scope="module")
def easy() -> TrainingData:
    """Sums of two of sixteen atoms: a few hundred steps learn all there is."""
    return make_data(600, atoms_in_all=16, active=2)


def easy_trainer(easy: TrainingData, **settings: object) -> Trainer:
    small = {"batch_size": 64, "list_queries": 4, "list_size": 8}
    return Trainer(easy, config(**{**small, **settings}), sizes(n=32, k=4, k_labels=2), epochs=1)


def test_far_too_many_steps_end_early_and_are_no_loss(
    easy: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The second part keeps its share of the steps; log and progress say why; the ranking is as good as with all."""
    # As if 1,600 steps were many: a fit of as many steps as are really called so takes too long for a test.
    monkeypatch.setattr("sae_steer_retriever.train.trainer._LONG", 1600)
    metrics_log, done = MetricsLog(tmp_path), list[int]()
    with caplog.at_level("INFO", logger="sae_steer_retriever.train.trainer"):
        early = easy_trainer(easy, steps=1600).fit(callbacks=[metrics_log], on_step=done.append, progress=True)
    steps = [record.step for record in metrics_log.records if record.step != 32]  # the early look
    assert steps == list(range(80, steps[-1] + 1, 80)), "sixteen measurements of a long fit"
    assert 4 <= len(steps) < 16
    assert early.steps == done[-1] == len(done) == round(steps[-1] / 0.8) < 1600
    (told,) = (record.getMessage() for record in caplog.records)
    expected = (
        "3 measurements in a row improved neither overlap@10 nor FVU nor coherence by more than 0.002: "
        f"{early.steps:,} steps instead of 1,600"
    )
    assert told == f"the held-out part ends early, at step {steps[-1]}: {expected}"
    assert f"ends early, {expected}\n" in capsys.readouterr().err
    whole = easy_trainer(easy, steps=1600, patience=0).fit()
    assert whole.steps == 1600
    assert early.measurement.overlap > whole.measurement.overlap - 0.02
    # The weights that are kept come after the second part: they are as good on everything that was fitted.
    assert early.train_fvu < whole.train_fvu + 0.005


def test_a_fit_that_still_improves_is_not_ended(easy: TrainingData) -> None:
    """Being ready to end changes nothing."""
    ready, never = (easy_trainer(easy, steps=120, patience=patience).fit() for patience in (3, 0))
    assert ready.steps == never.steps == 120
    assert equal(ready.sae, never.sae)


def test_the_paper_never_ends_early(easy: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where nothing counts as an improvement, which ends every other fit."""
    monkeypatch.setattr("sae_steer_retriever.train.measure.IMPROVEMENT", 10.0)
    fits = [easy_trainer(easy, steps=40, loss=loss).fit() for loss in ("paper", "mse")]
    assert [fit.steps for fit in fits] == [40, 35]


# While measurements without an improvement are being counted; on the step at which the first part ends; afterwards.
@pytest.mark.parametrize("stop_at", [22, 28, 30])
def test_a_fit_that_ends_early_can_be_stopped_and_taken_up(
    easy: TrainingData, tmp_path: Path, stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at the same step, with the same weights to the bit and the same measurements."""
    monkeypatch.setattr("sae_steer_retriever.train.checkpoint._INTERVAL", 0.0)
    monkeypatch.setattr("sae_steer_retriever.train.measure.IMPROVEMENT", 10.0)
    whole_log, folder = MetricsLog(tmp_path / "whole"), tmp_path / "stopped"
    expected = easy_trainer(easy, steps=40).fit(callbacks=[whole_log])
    # Of 32 steps every fourth is measured; in the second half three in a row better nothing; 28 / 32 of 8 follow.
    assert expected.steps == 35
    assert whole_log.records[-1].step == 28

    def stop(step: int) -> None:
        if step == stop_at:
            raise Stop

    with pytest.raises(Stop):
        easy_trainer(easy, steps=40).fit(
            checkpoint=Checkpoint(folder, {}, resume=False), callbacks=[MetricsLog(folder)], on_step=stop
        )
    resumed, done = MetricsLog(folder), list[int]()
    found = easy_trainer(easy, steps=40).fit(
        checkpoint=Checkpoint(folder, {}, resume=True), callbacks=[resumed], on_step=done.append
    )
    assert done == list(range(stop_at + 1, 36))
    assert found.steps == 35
    assert equal(found.sae, expected.sae)
    assert found.measurement == expected.measurement
    assert [dataclasses.replace(record, seconds=0.0) for record in resumed.records] == [
        dataclasses.replace(record, seconds=0.0) for record in whole_log.records
    ]


def test_any_of_three_figures_is_an_improvement() -> None:
    """Of more than the least one; small ones add up; a coherence that could not be measured is none."""
    start = Measurement(fvu=0.5, overlap=0.5, coherence=0.5, dead=0.0, l0=8.0)
    still = Standstill().after(start)
    assert still.measurements == 0
    assert still.after(start).after(start).measurements == 2
    better: list[dict[str, Any]] = [{"fvu": 0.49}, {"overlap": 0.51}, {"coherence": 0.51}]
    for change in better:
        assert still.after(start).after(dataclasses.replace(start, **change)).measurements == 0
    worse: list[dict[str, Any]] = [{"fvu": 0.51}, {"overlap": 0.49}, {"coherence": None}, {"dead": 0.5}]
    for change in worse:
        assert still.after(dataclasses.replace(start, **change)).measurements == 1
    creeping = [dataclasses.replace(start, fvu=0.5 - 0.7 * IMPROVEMENT * number) for number in (1, 2)]
    assert [still.after(creeping[0]).measurements, still.after(creeping[0]).after(creeping[1]).measurements] == [1, 0]


def test_the_refinement_is_left_out_until_the_end(easy: TrainingData, tmp_path: Path) -> None:
    """What is measured on the way is the encoder's TopK alone; the finished SAE is measured as it is used."""
    logs = MetricsLog(tmp_path / "plain"), MetricsLog(tmp_path / "refining")
    fits = []
    for steps, metrics_log in zip((0, 4), logs, strict=True):
        small = config(batch_size=64, list_queries=4, list_size=8, steps=60)
        fits.append(
            Trainer(easy, small, sizes(n=32, k=4, k_labels=2, refine_steps=steps), 1).fit(callbacks=[metrics_log])
        )
    plain, refining = fits
    records = [[dataclasses.replace(record, seconds=0.0) for record in metrics_log.records] for metrics_log in logs]
    assert records[0] == records[1]
    assert refining.sae.config.refine_steps == 4
    assert refining.measurement.fvu < plain.measurement.fvu


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


def test_a_temperature_that_is_given_is_used(data: TrainingData) -> None:
    given = Trainer(data, config(temperature=0.1), sizes(), epochs=1).constants.temperature
    assert given == 0.1 != Trainer(data, config(), sizes(), epochs=1).constants.temperature
    with pytest.raises(ValueError, match="temperature = 0"):
        config(temperature=0.0)
