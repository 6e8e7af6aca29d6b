"""What a person sees of a fit on stderr."""

from __future__ import annotations

import io
import os
import re

import pytest

from sae_steer_retriever.train.callbacks import Measured
from sae_steer_retriever.train.progress import FitProgress


class Terminal(io.StringIO):
    """A terminal as tqdm sees one."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2


def measured(step: int, overlap: float, coherence: float | None = 0.3125) -> Measured:
    return Measured(
        step, 1.0, loss=0.812, fvu=0.4567, overlap=overlap, coherence=coherence, dead=0.123, l0=64.0, lr=1e-3
    )


def run(stream: io.StringIO, *, first: int = 0, held_out_steps: int = 8, steps: int = 10) -> list[str]:
    """Ten steps, measured at the second and the eighth; what the stream holds after each."""
    progress, seen = FitProgress(steps, held_out_steps, stream), []
    progress.start(first)
    for done in range(first + 1, steps + 1):
        if done in (2, 8):
            progress.measured(measured(done, overlap=done / 10))
        progress.step(done, 0.9)
        seen.append(stream.getvalue())
    progress.close()
    seen.append(stream.getvalue())
    return seen


def test_without_a_terminal_every_measurement_is_one_line() -> None:
    text = run(io.StringIO())[-1]
    assert "\r" not in text
    assert "\x1b" not in text
    assert text.isascii()
    times, rest = r"\d\d:\d\d gone, \d\d:\d\d left", r"coherence 0\.31, dead 12\.3 %"
    expected = [
        r"fitting: 10 steps, held-out part",
        rf"held-out part, step 2 of 10, {times}: loss 0\.812, FVU 0\.457, retention 0\.200 overlap@10, {rest}",
        rf"held-out part, step 8 of 10, {times}: loss 0\.812, FVU 0\.457, retention 0\.800 overlap@10, {rest}",
        rf"absorbing part, step 8 of 10, {times}: the held-out rows join",
        rf"absorbing part, step 10 of 10, {times}: loss 0\.900",
    ]
    lines = text.splitlines()
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_a_line_is_there_as_soon_as_it_is_measured() -> None:
    """Not when a buffer is full: someone follows the log."""
    after = run(io.StringIO())
    assert "step 2 of 10" not in after[0]
    assert "step 2 of 10" in after[1]


def test_a_resumed_fit_says_so() -> None:
    text = run(io.StringIO(), first=9)[-1]
    assert text.splitlines()[0] == "fitting: 10 steps, 9 of them done before, absorbing part"


def test_a_fit_without_a_second_part_has_none() -> None:
    assert "absorbing" not in run(io.StringIO(), held_out_steps=10)[-1]
    assert "absorbing" not in run(Terminal(), held_out_steps=10)[-1]


def test_a_coherence_that_could_not_be_measured_is_a_dash() -> None:
    stream = io.StringIO()
    progress = FitProgress(10, 8, stream)
    progress.start(0)
    progress.measured(measured(2, 0.2, coherence=None))
    assert "coherence -, dead" in stream.getvalue()


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_fit_that_ends_early_says_so_and_counts_what_is_left(kind: type[io.StringIO]) -> None:
    """The reason, on a line of its own; then the second part, of fewer steps."""
    stream = kind()
    progress = FitProgress(100, 80, stream)
    progress.start(0)
    for done in range(1, 51):
        if done == 40:
            progress.measured(measured(40, 0.4))
            progress.ended_early(40, 50, "nothing has improved")
        progress.step(done, 0.9)
    progress.close()
    lines = re.split(r"[\r\n]+", stream.getvalue().strip())
    (told,) = (line for line in lines if "ends early" in line)
    assert re.match(r"held-out part, step 40 of 50, .* left: ends early, nothing has improved$", told)
    if stream.isatty():
        assert lines[-1].startswith("absorbing 50/50")
    else:
        assert "absorbing part, step 40 of 50" in lines[-2]
        assert lines[-2].endswith("the held-out rows join")
        assert "absorbing part, step 50 of 50" in lines[-1]


def test_on_a_terminal_one_line_moves() -> None:
    """Part, steps, time left, figures; a measurement and the change of part are shown at once."""
    seen = run(Terminal())
    states = [text.split("\r")[-1].strip() for text in seen]
    assert states[0].startswith("held-out 0/10")
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, FVU 0\.457, retention 0\.200, coherence 0\.31\]$", states[1]), states[1]
    assert states[7].startswith("absorbing 8/10")
    assert "retention 0.800" in states[-1]
    assert seen[-1].count("\n") == 1


def test_eighty_columns_hold_the_whole_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be cut is the end, where the figures are."""
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((80, 24)))
    monkeypatch.setenv("COLUMNS", "80")  # what an older tqdm falls back on
    monkeypatch.setenv("LINES", "24")
    states = [state.strip() for state in run(Terminal(), held_out_steps=1520, steps=1900)[-1].split("\r")]
    assert 60 < max(map(len, states)) <= 80
    assert all(state.endswith("coherence 0.31]") for state in states if "FVU" in state)
    assert states[-1].startswith("absorbing 1900/1900")
