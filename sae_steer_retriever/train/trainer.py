"""The fit itself: steps, learning rate, checkpoints, and the best of what was measured on the way."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from sae_steer_retriever.memory import keep_large_buffers
from sae_steer_retriever.sae import SAEConfig, TopKSAE
from sae_steer_retriever.train.checkpoint import Checkpoint
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.init import initial_directions
from sae_steer_retriever.train.losses import choose_temperature
from sae_steer_retriever.train.measure import Measurement, measure
from sae_steer_retriever.train.model import FittingSAE
from sae_steer_retriever.train.objective import Constants, paper_objective, ranking_objective
from sae_steer_retriever.train.sampling import Sampler, TrainingData

logger = logging.getLogger(__name__)

_WARM_UP = 0.03
_CLIP = 1.0
_MEASUREMENTS = 8
# Share of the steps after which the fit is measured and the held-out rows join the others.
_HELD_OUT_UNTIL = 0.8
# Peak learning rate of the rest, in shares of the first: enough to take in the new rows, not to forget the old.
_ABSORBING = 0.3
_SAMPLE = 4096


class Fit(NamedTuple):
    """The outcome of a fit.

    Attributes:
        sae: The SAE.
        measurement: Held-out quality of the best state before the held-out rows joined.
        train_fvu: FVU on fitted rows, at the end.
        variance: E|x - mu|^2 over the rows.
        temperature: Of the relative KL.
        steps: How many were done.
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
    """

    def __init__(self, data: TrainingData, config: TrainConfig, sae_config: SAEConfig, epochs: float) -> None:
        """Prepare a fit.

        Args:
            data: The embeddings.
            config: Settings.
            sae_config: Sizes and encoder of the SAE to make.
            epochs: Passes over the rows.
        """
        keep_large_buffers()
        self._config = config
        self._sae_config = sae_config
        self._held_out = data.held_out
        self._fitted, self._everything = Sampler(data.fitted, config.seed), Sampler(data.everything, config.seed)
        device = _device(config.device)
        rows = self._fitted.rows
        mean = rows.mean(dim=0)
        variance = float((rows - mean).square().sum(dim=1).mean())
        generator = torch.Generator().manual_seed(config.seed)
        n, d = sae_config.n, sae_config.d
        if config.loss == "paper":
            encoder, decoder = _default_linear(n, d, generator)
            self._model = FittingSAE(torch.zeros(d), 1.0, encoder, decoder, unit_rows=False)
        else:
            directions = initial_directions(config.init, rows - mean, n, generator)
            self._model = FittingSAE(mean, math.sqrt(variance), directions, directions)
        self._model.to(device)
        self.constants = Constants(variance, choose_temperature(_list_scores(self._fitted)))
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=config.lr, fused=device in ("cpu", "cuda"))
        drawn = len(self._fitted.queries if config.loss == "paper" else rows)
        self.steps = config.steps or max(2, round(epochs * math.ceil(drawn / config.batch_size)))
        share = 1.0 if config.loss == "paper" else _HELD_OUT_UNTIL
        self._measured_steps = max(1, round(share * self.steps))
        self._best: tuple[float, dict[str, Tensor]] | None = None

    def fit(
        self,
        *,
        checkpoint: Checkpoint | None = None,
        progress: bool = False,
        on_step: Callable[[int], None] | None = None,
    ) -> Fit:
        """Run to the end.

        Args:
            checkpoint: Where the state is kept, and taken up from if there is one. A kill or Ctrl-C loses at most
                the steps since the last save.
            progress: Whether to show a progress bar on stderr.
            on_step: Called after each step, with the number of steps done.

        Raises:
            FloatingPointError: The loss is no longer finite.
        """
        first = checkpoint.restore(self._model, self._optimizer) if checkpoint is not None else 0
        if checkpoint is not None and first:
            self._best = checkpoint.best()
        every = max(1, self._measured_steps // _MEASUREMENTS)
        with tqdm(
            total=self.steps, initial=first, desc="fitting", unit="step", disable=None if progress else True
        ) as bar:
            for step in range(first, self.steps):
                if step == self._measured_steps and self._best is not None:
                    self._model.load_state_dict(self._best[1])
                loss = self._step(step)
                done = step + 1
                if not math.isfinite(loss):
                    raise FloatingPointError(f"the loss is {loss} at step {done}: lower the learning rate.")
                measured = done <= self._measured_steps and (done % every == 0 or done == self._measured_steps)
                if measured:
                    found = self._measure()
                    bar.set_postfix_str(
                        f"FVU {found.fvu:.3f}, overlap {found.overlap:.3f}, dead {100 * found.dead:.1f} %",
                        refresh=False,
                    )
                if checkpoint is not None and (measured or checkpoint.is_due()):
                    checkpoint.save(done, self._model, self._optimizer, self._best)
                bar.update()
                if on_step is not None:
                    on_step(done)
        return self._finish()

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

    def _measure(self) -> Measurement:
        found = measure(self._model.fold(self._sae_config), self._held_out, self.constants.variance)
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
