"""What a person sees while something runs: where it stands, what it is learning, how long it will take."""

import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from .._core.memory import in_words
from .._core.remarks import remark
from ..training import Event, Planned, RolledBack, Stepped, Validated, Warned

CLEAR = 1e6
"""The largest signal-to-noise ratio that is told."""


class Display:
    """Progress on the terminal. Use it as a context; give its methods as `watch` to what runs.

    Lines that stay: what was tuned, every validation, every rollback and warning. Below them, on a terminal, one bar
    that moves. `levels`: what the tuned baselines reach in `measure`, to hold the validations against.
    """

    def __init__(self, console: Console):
        self.console = console
        self.levels: Mapping[str, float] = {}
        self.measure: Literal["area", "final"] = "area"
        self.meta_steps = 0
        self._seconds: float | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._what = ""
        self._loss = math.nan
        self._ratio: float | None = None
        self._rates: list[tuple[int, float]] = []
        self._quiet_since = -math.inf  # the first line at once: the first step may take minutes

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, line: str, style: str = "") -> None:
        """Print a line that stays."""
        self._progress.console.print(Text(line, style=style), soft_wrap=True)

    def warn(self, line: str) -> None:
        """Print what must be heard; where nothing is shown it is a Python warning."""
        if self.console.quiet:
            remark(line)
        else:
            self.say(line, "yellow")

    def phase(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show how far a phase is: the `watch` of an evaluation."""
        note = f"{done}/{total}  {note}".rstrip()
        self._show(what, done, total, note)
        self._line_now_and_then(f"{what} {note}")

    def event(self, event: Event) -> None:
        """Show an event of meta-training: its `watch`."""
        if isinstance(event, Stepped):
            self._stepped(event)
        elif isinstance(event, Validated):
            self.say(self._validation(event), "bold" if event.best else "")
            self._quiet_since = time.perf_counter()
        elif isinstance(event, Planned):
            self.meta_steps, self._seconds = event.meta_steps, event.limit
            self._loss, self._ratio, self._rates = math.nan, None, []
            self.say(
                f"compiled in {event.compile_seconds:.0f} s; at its peak a meta-step holds"
                f" {in_words(event.meta_step_bytes)}, a validation {in_words(event.validation_bytes)};"
                f" {in_words(event.available_bytes)} are free"
            )
        elif isinstance(event, RolledBack):
            self.say(f"meta-step {event.step}: {event.reason} (x {event.rate:g})", "yellow")
        elif isinstance(event, Warned):
            self.warn(event.message)

    def _stepped(self, event: Stepped) -> None:
        smooth = 0.9 * self._loss + 0.1 * event.meta_loss if math.isfinite(self._loss) else event.meta_loss
        self._loss = smooth
        self._rates = [*self._rates[-20:], (event.step, event.seconds)]
        (first, begun), (last, now) = self._rates[0], self._rates[-1]
        speed = (last - first) / (now - begun) if now > begun else 0.0
        steps = f"{event.step}/{self.meta_steps}" if self._seconds is None else f"{event.step} meta-steps"
        note = f"{steps}  meta-loss {smooth:.4g}{self._clarity(event)}"
        left = math.nan
        if speed:  # of the first one nobody knows
            note += f"  {speed:.1f} meta-steps/s" if speed >= 1 else f"  {1 / speed:.1f} s a meta-step"
            left = (self.meta_steps - event.step) / speed
        if self._seconds is None:
            self._show("meta-training", event.step, self.meta_steps, note)
        else:
            left = max(0.0, self._seconds - event.seconds)
            self._show("meta-training", round(event.seconds), round(self._seconds), note)
        self._line_now_and_then(f"meta-training {note}" + ("" if math.isnan(left) else f", {left:.0f} s left"))

    def _clarity(self, event: Stepped) -> str:
        """Say how clear the meta-gradient is, and whether particles were lost, where there are any."""
        if event.signal_to_noise is None:
            return ""
        ratio = min(event.signal_to_noise, CLEAR)
        self._ratio = ratio if self._ratio is None else 0.9 * self._ratio + 0.1 * ratio
        return f"  SNR {self._ratio:.2g}" + (f"  {event.lost:.0%} lost" if event.lost else "")

    def tuned(self, measure: str, levels: Mapping[str, float]) -> None:
        """Say what tuned baselines reach."""
        self.say(f"tuned, {measure}  " + "  ".join(f"{name} {level:.4g}" for name, level in levels.items()))

    def _validation(self, event: Validated) -> str:
        line = f"meta-step {event.step:>5}  validation area {event.area:.4g}, final {event.final:.4g}"
        if self.levels:
            name, level = min(self.levels.items(), key=lambda item: item[1])
            reached = getattr(event, self.measure)
            side = "below" if reached < level else "above" if reached > level else "level with"
            if side != "level with" and level and math.isfinite(level):
                side = f"{abs(1 - reached / level):.0%} {side}"
            line += f"  ({self.measure} {side} the best tuned baseline, {name} {level:.4g})"
        return f"{line}  [{event.seconds:.0f} s]"

    def _line_now_and_then(self, line: str) -> None:
        """Where there is no terminal, and so no bar, a line every twenty seconds says the same."""
        if not self.console.is_terminal and time.perf_counter() - self._quiet_since > 20:
            self.say(line)
            self._quiet_since = time.perf_counter()

    def _show(self, what: str, done: int, total: int, note: str) -> None:
        if self._task is None or what != self._what:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task, self._what = self._progress.add_task(what, total=total, note=note), what
        self._progress.update(self._task, completed=done, total=total, note=note)
