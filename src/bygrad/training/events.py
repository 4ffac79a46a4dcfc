"""What meta-training tells those who watch it, and the log that keeps it."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from .._core.files import write_text_atomically


@dataclasses.dataclass(frozen=True)
class Planned:
    """What is about to run: peak memory of a meta-step and of a validation, memory that is free (all in bytes), and
    how long compiling took; and how many meta-steps there will be, if they do not end before, after `limit` seconds."""

    step: int
    meta_step_bytes: int
    validation_bytes: int
    available_bytes: int
    compile_seconds: float
    seconds: float
    meta_steps: int = 0
    limit: float | None = None


@dataclasses.dataclass(frozen=True)
class Stepped:
    """A meta-step: meta-loss of its windows, norm of the meta-gradient, meta-learning-rate, seconds since the start.

    The signal-to-noise ratio of the meta-gradient (squared; about 1 is noise): from how the particles differ, where the
    estimator has any, else from how the last meta-gradients do; none where that cannot be told yet. The shares of the
    particles whose part was clipped, and of the instances that were lost: not finite, and left out.
    """

    step: int
    meta_loss: float
    gradient_norm: float
    meta_learning_rate: float
    seconds: float
    signal_to_noise: float | None = None
    clipped: float | None = None
    lost: float | None = None


@dataclasses.dataclass(frozen=True)
class Validated:
    """A validation on held-out instances: mean area, mean final loss, and whether its optimizer is kept: the best
    so far, or whichever came last.
    """

    step: int
    area: float
    final: float
    best: bool
    seconds: float


@dataclasses.dataclass(frozen=True)
class RolledBack:
    """A return to the last good state, why, and the factor on the meta-learning-rate from then on."""

    step: int
    reason: str
    rate: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Warned:
    """Something that a person should know, with what to try."""

    step: int
    message: str
    seconds: float


Event: TypeAlias = Planned | Stepped | Validated | RolledBack | Warned
Watcher: TypeAlias = Callable[[Event], None]

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Planned, Stepped, Validated, RolledBack, Warned)}


class Log:
    """The events of one meta-training, in memory and, where a path is given, a line of JSON each in a file."""

    def __init__(self, path: Path | None):
        self.path = path
        self.events: list[Event] = []

    def add(self, event: Event) -> None:
        self.events.append(event)
        if self.path is not None:
            # Open and close: a line that was reported is with the system, whatever happens to this process next.
            with self.path.open("a") as file:
                file.write(_line(event))

    def rewind(self, step: int, seconds: float) -> None:
        """Read the file back up to a checkpoint at `step`; forget what was logged after it, and any damaged line."""
        if self.path is None or not self.path.exists():
            return
        self.recall(self.path.read_text(errors="replace"), step, seconds)
        write_text_atomically(self.path, self.text)

    def recall(self, text: str, step: int, seconds: float) -> None:
        """Take over, from the text of a log, what was logged up to a checkpoint; whole lines only."""
        events = [event for line in text.splitlines() if (event := _parse(line)) is not None]
        self.events = [event for event in events if event.step <= step and event.seconds <= seconds]

    @property
    def text(self) -> str:
        """The events as lines of JSON."""
        return "".join(map(_line, self.events))

    def of(self, kind: type[Any]) -> list[Any]:
        """Return the events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]


def _line(event: Event) -> str:
    # JSON has no numbers that are not finite: they are written as words, which `float` reads back.
    fields = {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in dataclasses.asdict(event).items()
    }
    return json.dumps({"event": type(event).__name__, **fields}, allow_nan=False) + "\n"


def _parse(line: str) -> Event | None:
    try:
        fields = json.loads(line)
        kind = _KINDS[fields.pop("event")]
        numbers = {field.name for field in dataclasses.fields(kind) if field.type in (float, float | None)}
        known = numbers - {name for name, value in fields.items() if value is None}
        return kind(**{name: float(value) if name in known else value for name, value in fields.items()})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
