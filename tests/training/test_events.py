"""The log: what was told is in the file, and a file is read back up to a checkpoint."""

import json
import math
from pathlib import Path

import pytest

from bygrad.training import Event, Log, RolledBack, Stepped, Validated, Warned

EVENTS: list[Event] = [
    Validated(0, 10.0, 1.0, True, 0.5),
    Stepped(1, 2.0, 0.1, 1e-2, 1.0),
    RolledBack(2, "the meta-loss was nan", 0.5, 1.5),
    Stepped(3, 1.5, 0.2, 5e-3, 2.0),
    Validated(3, 8.0, 0.9, True, 2.5),
    Warned(3, 'a "quoted" line\nand another, θ', 3.0),
]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = Log(tmp_path / "log.jsonl")
    for event in EVENTS:
        log.add(event)
    return log


def test_every_event_is_a_line_of_json(log):
    assert log.events == EVENTS
    lines = log.path.read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == [type(event).__name__ for event in EVENTS]
    assert json.loads(lines[1]) == {
        "event": "Stepped",
        "step": 1,
        "meta_loss": 2.0,
        "gradient_norm": 0.1,
        "meta_learning_rate": 1e-2,
        "seconds": 1.0,
        "signal_to_noise": None,
        "clipped": None,
        "lost": None,
    }


def test_a_log_of_before_there_were_particles_reads(log):
    old = '{"event": "Stepped", "step": 1, "meta_loss": 2.0, "gradient_norm": "inf", "meta_learning_rate": 1e-2, '
    log.recall(old + '"seconds": 1.0}\n', step=1, seconds=1.0)
    assert log.events == [Stepped(1, 2.0, math.inf, 1e-2, 1.0)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_lines_are_strict_json_whatever_the_numbers(tmp_path, value):
    log = Log(tmp_path / "log.jsonl")
    log.add(Validated(0, value, value, False, 0.5))

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON: other programs cannot read the line")

    json.loads(log.path.read_text(), parse_constant=refuse)
    again = Log(tmp_path / "log.jsonl")
    again.rewind(0, 1.0)
    assert len(again.events) == 1
    assert not math.isfinite(again.events[0].area)


def test_reading_back_gives_the_events(log):
    again = Log(log.path)
    again.rewind(3, 3.0)
    assert again.events == EVENTS


@pytest.mark.parametrize(("step", "seconds", "kept"), [(3, 2.2, 4), (2, 9.0, 3), (0, 0.5, 1), (0, 0.0, 0)])
def test_what_came_after_a_checkpoint_is_forgotten(log, step, seconds, kept):
    again = Log(log.path)
    again.rewind(step, seconds)
    assert again.events == EVENTS[:kept]
    assert len(log.path.read_text().splitlines()) == kept
    again.add(EVENTS[-1])
    assert len(log.path.read_text().splitlines()) == kept + 1


@pytest.mark.parametrize(
    "rest",
    [b'{"event": "Stepped", "st', b"{}\n", b'{"event": "Other"}\n', b"\x00\x00\n", b"null\n", b"\xff\xfe"],
    ids=repr,
)
def test_half_lines_and_strange_ones_are_dropped(log, rest):
    with log.path.open("ab") as file:
        file.write(rest)
    again = Log(log.path)
    again.rewind(3, 3.0)
    assert again.events == EVENTS


def test_without_a_file_events_are_in_memory(tmp_path):
    log = Log(None)
    for event in EVENTS:
        log.add(event)
    log.rewind(0, 0.0)
    assert log.events == EVENTS
    assert log.of(Validated) == [EVENTS[0], EVENTS[4]]
    missing = Log(tmp_path / "missing.jsonl")
    missing.rewind(1, 1.0)
    assert missing.events == []
    assert not missing.path.exists()
