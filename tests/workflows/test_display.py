"""What a person sees while something runs."""

import io

import pytest
from rich.console import Console

from bygrad.training import Planned, Stepped
from bygrad.workflows import Display


def test_a_training_is_shown_without_what_the_last_one_left(monkeypatch: pytest.MonkeyPatch):
    """What comes before has no limit of time, and a signal-to-noise ratio of its own."""
    said: list[str] = []
    display = Display(Console(file=io.StringIO()))
    monkeypatch.setattr(display, "_line_now_and_then", said.append)
    for limit, ratio in ((None, 500.0), (3600.0, 1.0)):
        display.event(Planned(0, 1, 1, 1, 1.0, 0.0, 100, limit))
        for step in (1, 2):
            display.event(Stepped(step, 1.0, 1.0, 1e-3, float(step), ratio))
        assert f"SNR {ratio:.2g} " in said[-1]
    before, after = said[1], said[-1]
    assert "2/100" in before and before.endswith(", 98 s left")
    assert "2 meta-steps" in after and after.endswith(", 3598 s left")
