"""The fit itself: steps, learning rate, checkpoints, and the best of what was measured on the way."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.sae.malloc import keep_large_buffers
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.callbacks import Watcher, watched_by
from sae_steer_retriever.train.checkpoint import Checkpoint
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.decoder_init import initial_directions
from sae_steer_retriever.train.losses import choose_temperature
from sae_steer_retriever.train.measure import IMPROVEMENT, Measurement, Standstill, measure
from sae_steer_retriever.train.metrics_log import Measured
from sae_steer_retriever.train.objective import Constants, paper_objective, ranking_objective
from sae_steer_retriever.train.progress import FitProgress
from sae_steer_retriever.train.sampling import Sampler, TrainingData
from sae_steer_retriever.train.trainable_sae import FittingSAE

logger = logging.getLogger(__name__)

_WARM_UP = 0.03
_CLIP = 1.0
# Regular measurements of the first part; a fit of at least `_LONG` steps has more.
_MEASUREMENTS, _MEASUREMENTS_OF_LONG, _LONG = 8, 16, 4000
# Share of the steps after which a person sees figures for the first time.
_FIRST_LOOK = 0.02
# Share of the steps after which the fit is measured and the held-out rows join the others.
_HELD_OUT_UNTIL = 0.8
# Peak learning rate of the rest, in shares of the first: enough to take in the new rows, not to forget the old.
_ABSORBING = 0.3
_SAMPLE = 4096
# Name, among the tensors of the best state, of what early stopping knows.
_COURSE = "course"
# Rows that mean, variance and the starting directions are taken of, and how many of them are squared at once.
_STATISTICS_ROWS, _TILE = 200_000, 65_536


class Fit(NamedTuple):
    """The outcome of a fit.

    Attributes:
        sae: The SAE.
        measurement: Held-out quality of the best state before the held-out rows joined, by the codes that the SAE is
            used with: those of the refinement, if its config has one. The figures on the way leave the refinement out.
        train_fvu: FVU on fitted rows, at the end.
        variance: E|x - mu|^2 over the rows.
        temperature: Of the relative KL.
        steps: How many were done; fewer than planned if the fit ended early.
    """

    sae: TopKSAE
    measurement: Measurement
    train_fvu: float
    variance: float
    temperature: float
    steps: int


class Trainer:
    """Fits an SAE by Adam, in two parts.

    The first part leaves the held-out rows alone, decays the learning rate to zero and ends with the measurement;
    the second starts from the state that measured best and takes in everything, since the corpus that will be
    searched holds the held-out passages too. See `objective` for the loss. `loss="paper"` has neither warm-up, nor
    clipping, nor second part.

    What is measured on the way, and chooses the best state, leaves the refinement out, which would cost a product more
    for each of its steps. The first part ends early once `config.patience` regular measurements in a row have
    improved neither overlap, nor FVU, nor coherence; the second is then shortened in proportion. A fit with
    `loss="paper"` never ends early.
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
        """Prepare a fit.

        Args:
            data: The embeddings.
            config: Settings.
            sae_config: Sizes and encoder of the SAE to make.
            epochs: Passes over the rows.
            start: What to start from, in place of directions that `config.init` names: an SAE of these sizes, whose
                decoder's bias is the mean of the rows.
            kept: How many of its first features are to keep their meaning.
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
            encoder, decoder = _default_linear(n, d, generator)
            self._model = FittingSAE(torch.zeros(d), 1.0, encoder, decoder, unit_rows=False)
        elif start is not None:
            self._model = FittingSAE.adapting(start, math.sqrt(variance), kept)
        else:
            directions = initial_directions(config.init, centred, n, generator)
            self._model = FittingSAE(mean, math.sqrt(variance), directions, directions)
        self._model.to(device)
        temperature = config.temperature or choose_temperature(_list_scores(self._fitted))
        self.constants = Constants(variance, temperature)
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
        watchers: Sequence[Watcher] = (),
    ) -> Fit:
        """Run to the end.

        Args:
            checkpoint: Where the state is kept, and taken up from if there is one. A kill or Ctrl-C loses at most
                the steps since the last save.
            progress: Whether to show progress on stderr.
            on_step: Called after each step, with the number of steps done.
            watchers: Are told of steps and measurements.

        Raises:
            FloatingPointError: The loss is no longer finite.
        """
        # Of the steps that were planned: a checkpoint may know that there are fewer.
        every = max(1, self._measured_steps // (_MEASUREMENTS if self.steps < _LONG else _MEASUREMENTS_OF_LONG))
        first_look = max(1, round(_FIRST_LOOK * self.steps))
        done = self._restore(checkpoint)
        shown = FitProgress(self.steps, self._measured_steps) if progress else None
        if shown is not None:
            watchers = [*watchers, shown]
        started = time.monotonic()
        with watched_by(watchers, done) as watching:
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
                    watching.measured(Measured(done, seconds, loss, **dataclasses.asdict(found), lr=lr))
                    if self._stands_still() and done < self._measured_steps:
                        self._end_early(done, shown)
                if checkpoint is not None and (measured or checkpoint.is_due()):
                    self._save(checkpoint, done)
                watching.step(done, loss)
                if on_step is not None:
                    on_step(done)
        return self._finish()

    def _stands_still(self) -> bool:
        return 0 < self._patience <= self._standstill.measurements

    def _end_early(self, done: int, shown: FitProgress | None) -> None:
        """End the first part, and tell."""
        planned = self.steps
        self._shorten(done)
        why = (
            f"{self._patience} measurements in a row improved neither overlap@10 nor FVU nor coherence by more than "
            f"{IMPROVEMENT}: {self.steps:,} steps instead of {planned:,}"
        )
        logger.info("the held-out part ends early, at step %d: %s", done, why)
        if shown is not None:
            shown.ended_early(done, self.steps, why)

    def _shorten(self, ended: int) -> None:
        """Let the first part end with step `ended`, and the second keep its share."""
        absorbing = max(1, round((self.steps - self._measured_steps) * ended / self._measured_steps))
        self._ended, self._measured_steps, self.steps = ended, ended, ended + absorbing

    def _save(self, checkpoint: Checkpoint, done: int) -> None:
        best = self._best
        if best is not None:
            course = torch.tensor([*self._standstill, self._ended], dtype=torch.float64)
            best = (best[0], {**best[1], _COURSE: course})
        checkpoint.save(done, self._model, self._optimizer, best)

    def _restore(self, checkpoint: Checkpoint | None) -> int:
        """Take up what a checkpoint holds; the number of steps already done."""
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
            loss = paper_objective(model, sampler, step, config, self._sae_config)
        else:
            loss = ranking_objective(model, sampler, step, config, self._sae_config, self.constants)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        model.before_step()
        if config.loss != "paper":
            torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        self._optimizer.step()
        model.after_step()
        return float(loss.detach())

    def _schedule(self, step: int) -> float:
        """Share of the peak rate: a short warm-up and a cosine to zero, twice; in the paper one bare cosine."""
        if self._config.loss == "paper":
            return 0.5 * (1 + math.cos(math.pi * step / self.steps))
        if step < self._measured_steps:
            return _warm_cosine(step, self._measured_steps)
        return _ABSORBING * _warm_cosine(step - self._measured_steps, self.steps - self._measured_steps)

    def _measure(self, *, candidate: bool = True, patient: bool = False) -> Measurement:
        """Measure the present state without the refinement; a candidate is kept if it is the best so far.

        Only candidates, the regular measurements, count for early stopping, and none while the rate is high
        (`patient`): figures may stand still there and move again once it falls.
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


def _list_scores(sampler: Sampler) -> Tensor:
    sample = torch.arange(min(len(sampler.queries), 1000))
    return torch.einsum("qd,qld->ql", sampler.queries[sample], sampler.documents[sampler.lists[sample]])


def _default_linear(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Encoder and decoder weights as `torch.nn.Linear` starts them: uniform in +-1/sqrt(inputs)."""
    encoder = (2 * torch.rand((n, d), generator=generator) - 1) / math.sqrt(d)
    decoder = (2 * torch.rand((n, d), generator=generator) - 1) / math.sqrt(n)
    return encoder, decoder


def _device(name: str) -> str:
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
