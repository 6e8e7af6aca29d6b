"""Progress of a fit on stderr: a progress bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import TextIO

from tqdm import tqdm

from sae_steer_retriever.train.callbacks import Callback, Measured

# The figures come first: on 80 columns the bar shrinks to nothing before they are cut.
_BAR = "{desc} {n_fmt}/{total_fmt}|{bar}|[{elapsed}<{remaining}{postfix}]"
_HELD_OUT, _ABSORBING = "held-out", "absorbing"


@dataclasses.dataclass(eq=False)
class FitProgress(Callback):
    """Shows the steps, the time left, and the latest measured FVU, retention and coherence.

    A fit has two parts. In the first, the held-out part, some rows are kept for measuring. In the second, the
    absorbing part, they are fitted too, so the figures shown remain those of the first part.
    """

    _steps: int
    _held_out_steps: int  # those in the first part
    _stream: TextIO | None = None  # stderr
    _bar: tqdm[None] | None = None
    _figures: str = ""

    def start(self, first: int) -> None:
        """Show the first line."""
        # Looked up late: stderr may have been redirected since the fit was prepared.
        self._out = self._stream or sys.stderr
        self._first, self._started = first, time.monotonic()
        if self._out.isatty():
            self._bar = tqdm(
                total=self._steps,
                initial=first,
                desc=self._part(first),
                bar_format=_BAR,
                dynamic_ncols=True,
                file=self._out,
            )
            return
        resumed = f", {first:,} of them done before" if first else ""
        self._say(f"fitting: {self._steps:,} steps{resumed}, {self._part(first)} part")

    def step(self, done: int, loss: float) -> None:
        """Advance by a step."""
        enters = done == self._held_out_steps < self._steps
        if self._bar is not None:
            if not self._figures:
                self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            self._bar.update()
            if enters:
                self._bar.set_description_str(_ABSORBING)
        elif enters:
            self._say(f"{self._where(done)}: the held-out rows join")
        elif done == self._steps > self._held_out_steps:
            self._say(f"{self._where(done)}: loss {loss:.3f}")

    def measured(self, record: Measured) -> None:
        """Show new figures."""
        coherence = "-" if record.coherence is None else f"{record.coherence:.2f}"
        self._figures = f"FVU {record.fvu:.3f}, retention {record.overlap:.3f}, coherence {coherence}"
        if self._bar is not None:
            self._bar.set_postfix_str(self._figures)
        else:
            where = self._where(record.step, _HELD_OUT)
            self._say(
                f"{where}: loss {record.loss:.3f}, FVU {record.fvu:.3f}, retention {record.overlap:.3f} overlap@10, "
                f"coherence {coherence}, dead {100 * record.dead:.1f} %"
            )

    def ended_early(self, done: int, steps: int, why: str) -> None:
        """Show why the first part ended, and count down from the new number of steps."""
        self._held_out_steps, self._steps = done, steps
        line = f"{self._where(done, _HELD_OUT)}: ends early, {why}"
        if self._bar is None:
            self._say(line)
        else:
            self._bar.write(line, file=self._out)
            self._bar.total = steps
            self._bar.refresh()

    def close(self) -> None:
        """End the line."""
        if self._bar is not None:
            self._bar.close()

    def _part(self, done: int) -> str:
        return _HELD_OUT if done < self._held_out_steps or self._held_out_steps == self._steps else _ABSORBING

    def _where(self, done: int, part: str | None = None) -> str:
        """Part, steps and times; the time left is estimated from this run's mean step."""
        spent = time.monotonic() - self._started
        left = spent / max(1, done - self._first) * (self._steps - done)
        times = f"{tqdm.format_interval(spent)} gone, {tqdm.format_interval(left)} left"
        return f"{part or self._part(done)} part, step {done:,} of {self._steps:,}, {times}"

    def _say(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()
