"""The fit: steps, learning rate, measurements, early stopping and checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.sae.directions import data_directions, kmeans_directions, random_directions
from sae_steer_retriever.sae.malloc import keep_large_buffers
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train import losses
from sae_steer_retriever.train.callbacks import Callback, Measured
from sae_steer_retriever.train.checkpoint import Checkpoint
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.measure import IMPROVEMENT, Measurement, Standstill, measure
from sae_steer_retriever.train.progress import FitProgress
from sae_steer_retriever.train.sampling import Sampler, TrainingData
from sae_steer_retriever.train.trainable_sae import FittingSAE

logger = logging.getLogger(__name__)

_WARM_UP = 0.03
_CLIP = 1.0
# Regular measurements in the first part; a fit of at least `_LONG` steps has more.
_MEASUREMENTS, _MEASUREMENTS_OF_LONG, _LONG = 8, 16, 4000
# Share of the steps after which the first figures are shown.
_FIRST_LOOK = 0.02
# Share of the steps after which the held-out rows join the others.
_HELD_OUT_UNTIL = 0.8
# Peak learning rate of the second part, as a share of the first: enough to learn the new rows and keep the old.
_ABSORBING = 0.3
_SAMPLE = 4096
# Name, among the tensors of the best state, of the state of early stopping.
_COURSE = "course"
# Most rows that mean, variance and starting directions are computed from, and how many of them are squared at once.
_STATISTICS_ROWS, _TILE = 200_000, 65_536


class Fit(NamedTuple):
    """The outcome of a fit.

    The measurement is of the best state before the held-out rows joined, with the refinement of the SAE's config.
    Measurements during the fit leave the refinement out.
    """

    sae: TopKSAE
    measurement: Measurement
    train_fvu: float  # on fitted rows, at the end
    variance: float  # E|x - mu|^2 over the rows
    temperature: float  # of the relative KL
    steps: int  # done; fewer than planned if the fit ended early


class Trainer:
    """Fits an SAE by Adam, in two parts; `losses` has the loss.

    The first part does not see the held-out rows. It decays the learning rate to zero and ends with a measurement. The
    second part starts from the state that measured best and fits all rows, because the corpus to search contains the
    held-out passages too. `loss="paper"` has no warm-up, no clipping and no second part.

    Measurements during the fit choose the best state. They leave the refinement out, which would cost one more product
    for each of its steps. The first part ends early once `config.patience` regular measurements in a row have improved
    neither overlap, nor FVU, nor coherence; the second is then shortened in proportion. A fit with `loss="paper"`
    never ends early.
    """

    def __init__(
        self,
        data: TrainingData,
        config: TrainConfig,
        sae_config: SAEConfig,
        epochs: float,
        *,
        start: TopKSAE | None = None,
        kept: int = 0,
    ) -> None:
        """Prepare a fit of an SAE with the sizes and the encoder of `sae_config`.

        It starts from the SAE `start`, if given, instead of the directions of `config.init`. That has these sizes, its
        decoder's bias is the mean of the rows, and its first `kept` features keep their meaning.
        """
        keep_large_buffers()
        self._config = config
        self._sae_config = sae_config
        self._measured_config = dataclasses.replace(sae_config, refine_steps=0)
        self._held_out = data.held_out
        self._fitted, self._everything = Sampler(data.fitted, config.seed), Sampler(data.everything, config.seed)
        device = _device(config.device)
        rows = self._fitted.sample_rows(_STATISTICS_ROWS)
        mean = rows.mean(dim=0)
        centred = rows.sub_(mean)  # in place: the sample may be the largest thing in memory
        variance = float(torch.cat([part.square().sum(dim=1) for part in torch.split(centred, _TILE)]).mean())
        generator = torch.Generator().manual_seed(config.seed)
        n, d = sae_config.n, sae_config.d
        if config.loss == "paper":
            # As `torch.nn.Linear` starts: uniform in +-1/sqrt(inputs).
            encoder, decoder = ((2 * torch.rand((n, d), generator=generator) - 1) / math.sqrt(size) for size in (d, n))
            self._model = FittingSAE(torch.zeros(d), 1.0, encoder, decoder, unit_rows=False)
        elif start is not None:
            self._model = FittingSAE.adapting(start, math.sqrt(variance), kept)
        else:
            if config.init == "random":
                directions = random_directions(n, d, generator)
            else:
                directions = (data_directions if config.init == "data" else kmeans_directions)(centred, n, generator)
            self._model = FittingSAE(mean, math.sqrt(variance), directions, directions)
        self._model.to(device)
        sample = torch.arange(min(len(self._fitted.queries), 1000))
        lists = self._fitted.documents[self._fitted.lists[sample]]
        scores = losses.list_scores(self._fitted.queries[sample], lists)
        temperature = config.temperature or losses.choose_temperature(scores)
        self.constants = losses.Constants(variance, temperature)
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=config.lr, fused=device in ("cpu", "cuda"))
        drawn = len(self._fitted.queries if config.loss == "paper" else self._fitted.rows)
        self.steps = config.steps or max(2, round(epochs * math.ceil(drawn / config.batch_size)))
        share = 1.0 if config.loss == "paper" else _HELD_OUT_UNTIL
        self._measured_steps = max(1, round(share * self.steps))
        self._patience = 0 if config.loss == "paper" else config.patience
        self._best: tuple[float, dict[str, Tensor]] | None = None
        self._standstill = Standstill()
        self._ended = 0

    def fit(
        self,
        *,
        checkpoint: Checkpoint | None = None,
        progress: bool = False,
        on_step: Callable[[int], None] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Fit:
        """Returns the fitted SAE and its measurements; `progress` shows them on stderr, `callbacks` get them, too.

        The state is saved to `checkpoint`, and restored from it if it holds one: a killed fit loses at most the steps
        since the last save. `on_step` is called after each step, with the number of steps done.

        Raises:
            FloatingPointError: The loss is no longer finite.
        """
        # Before `_restore`, which may lower the number of steps.
        every = max(1, self._measured_steps // (_MEASUREMENTS if self.steps < _LONG else _MEASUREMENTS_OF_LONG))
        first_look = max(1, round(_FIRST_LOOK * self.steps))
        done = self._restore(checkpoint)
        callbacks = [*callbacks, *([FitProgress(self.steps, self._measured_steps)] if progress else [])]
        started = time.monotonic()
        with contextlib.ExitStack() as opened:
            for callback in callbacks:
                callback.start(done)
                opened.callback(callback.close)
            while done < self.steps:
                step = done
                if step == self._measured_steps and self._best is not None:
                    self._model.load_state_dict(self._best[1])
                loss = self._step(step)
                done = step + 1
                if not math.isfinite(loss):
                    raise FloatingPointError(f"the loss is {loss} at step {done}: lower the learning rate.")
                regular = done % every == 0 or done == self._measured_steps
                measured = done <= self._measured_steps and (regular or done == first_look)
                if measured:
                    found = self._measure(candidate=regular, patient=done <= self._measured_steps // 2)
                    seconds, lr = time.monotonic() - started, self._optimizer.param_groups[0]["lr"]
                    record = Measured(done, seconds, loss, **dataclasses.asdict(found), lr=lr)
                    for callback in callbacks:
                        callback.measured(record)
                    if 0 < self._patience <= self._standstill.measurements and done < self._measured_steps:
                        self._end_early(done, callbacks)
                if checkpoint is not None and (measured or checkpoint.is_due()):
                    self._save(checkpoint, done)
                for callback in callbacks:
                    callback.step(done, loss)
                if on_step is not None:
                    on_step(done)
        return self._finish()

    def _end_early(self, done: int, callbacks: Sequence[Callback]) -> None:
        planned = self.steps
        self._shorten(done)
        why = (
            f"{self._patience} measurements in a row improved neither overlap@10 nor FVU nor coherence by more than "
            f"{IMPROVEMENT}: {self.steps:,} steps instead of {planned:,}"
        )
        logger.info("the held-out part ends early, at step %d: %s", done, why)
        for callback in callbacks:
            callback.ended_early(done, self.steps, why)

    def _shorten(self, ended: int) -> None:
        """End the first part with step `ended`; the second keeps its share of the steps."""
        absorbing = max(1, round((self.steps - self._measured_steps) * ended / self._measured_steps))
        self._ended, self._measured_steps, self.steps = ended, ended, ended + absorbing

    def _save(self, checkpoint: Checkpoint, done: int) -> None:
        best = self._best
        if best is not None:
            course = torch.tensor([*self._standstill, self._ended], dtype=torch.float64)
            best = (best[0], {**best[1], _COURSE: course})
        checkpoint.save(done, self._model, self._optimizer, best)

    def _restore(self, checkpoint: Checkpoint | None) -> int:
        """Restore a checkpoint; the number of steps already done."""
        done = checkpoint.restore(self._model, self._optimizer) if checkpoint is not None else 0
        best = checkpoint.best() if checkpoint is not None and done else None
        if best is not None:
            score, state = best
            overlap, fvu, coherence, measurements, ended = state.pop(_COURSE).tolist()
            self._best, self._standstill = (score, state), Standstill(overlap, fvu, coherence, int(measurements))
            if ended:
                self._shorten(int(ended))
        return done

    def _finish(self) -> Fit:
        last = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        if self._best is not None:
            self._model.load_state_dict(self._best[1])
        measurement = measure(self._model.fold(self._sae_config), self._held_out, self.constants.variance)
        self._model.load_state_dict(last)
        sae = self._model.fold(self._sae_config)
        sample = self._everything.rows[:_SAMPLE].numpy()
        lost = float(((sample - sae.reconstruct(sample)) ** 2).sum())
        train_fvu = lost / (len(sample) * self.constants.variance)
        return Fit(sae, measurement, train_fvu, self.constants.variance, self.constants.temperature, self.steps)

    def _step(self, step: int) -> float:
        config, model = self._config, self._model
        for group in self._optimizer.param_groups:
            group["lr"] = config.lr * self._schedule(step)
        sampler = self._fitted if step < self._measured_steps else self._everything
        if config.loss == "paper":
            loss = losses.paper_objective(model, sampler, step, config, self._sae_config)
        else:
            loss = losses.ranking_objective(model, sampler, step, config, self._sae_config, self.constants)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        model.before_step()
        if config.loss != "paper":
            torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        self._optimizer.step()
        model.after_step()
        return float(loss.detach())

    def _schedule(self, step: int) -> float:
        """Share of the peak rate: a short warm-up and a cosine to zero in each part; one bare cosine for the paper."""
        if self._config.loss == "paper":
            return 0.5 * (1 + math.cos(math.pi * step / self.steps))
        if step < self._measured_steps:
            return _warm_cosine(step, self._measured_steps)
        return _ABSORBING * _warm_cosine(step - self._measured_steps, self.steps - self._measured_steps)

    def _measure(self, *, candidate: bool = True, patient: bool = False) -> Measurement:
        """Returns a measurement of the present state without the refinement; the best candidate so far is kept.

        Candidates are the regular measurements. Only they count for early stopping, and none does while the learning
        rate is high (`patient`): figures may stand still there and move again once it falls.
        """
        found = measure(self._model.fold(self._measured_config), self._held_out, self.constants.variance)
        if not candidate:
            return found
        self._standstill = self._standstill.after(found)
        if patient:
            self._standstill = self._standstill._replace(measurements=0)
        # The later of two equals has the smaller learning rate behind it.
        if self._best is None or found.overlap >= self._best[0]:
            state = {name: tensor.detach().cpu().clone() for name, tensor in self._model.state_dict().items()}
            self._best = (found.overlap, state)
        return found


def _warm_cosine(step: int, steps: int) -> float:
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _device(name: str) -> str:
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
