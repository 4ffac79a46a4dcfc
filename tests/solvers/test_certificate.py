"""Bounds hold at their stated level: by simulation, and against published values."""

import inspect
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.cli.solvers import learn as command
from bygrad.problems import QuadraticProgram
from bygrad.solvers import (
    ADMM,
    Card,
    LearnedSolver,
    Solution,
    Usual,
    candidates,
    failure_bound,
    learn,
    percentile_bound,
)
from bygrad.solvers.certificate import CONFIDENCE, is_excess
from bygrad.solvers.drift import alarm, tally
from bygrad.workflows import learn_to_file


@pytest.mark.parametrize(
    ("failures", "trials", "expected"), [(0, 1000, 0.0069), (0, 6396, 0.00108), (103, 1024, 0.133), (5, 5, 1.0)]
)
def test_known_bounds(failures, trials, expected):
    assert failure_bound(failures, trials) == pytest.approx(expected, rel=0.01)


def test_a_bound_without_failures_is_the_root():
    assert failure_bound(0, 300, 0.95) == pytest.approx(1 - 0.05 ** (1 / 300), rel=1e-9)


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_the_failure_bound_is_wrong_as_seldom_as_it_says(rate):
    draw, level = np.random.default_rng(0), 0.1
    counts = draw.binomial(80, rate, size=4000)
    bounds = {count: failure_bound(int(count), 80, 1 - level) for count in np.unique(counts)}
    wrong = np.mean([bounds[count] < rate for count in counts])
    assert wrong <= level + 3 * math.sqrt(level * (1 - level) / 4000)
    assert wrong > 0  # and it is no looser than it must be


def test_the_percentile_bound_is_wrong_as_seldom_as_it_says():
    draw, level = np.random.default_rng(1), 0.1
    truth = -math.log(0.05)  # the 95th percentile of the exponential distribution
    bounds = [percentile_bound(draw.exponential(size=100), 0.95, 1 - level) for _ in range(1000)]
    wrong = np.mean(np.array(bounds) < truth)
    assert 0 < wrong <= level + 3 * math.sqrt(level * (1 - level) / 1000)


def test_too_few_draws_bound_no_percentile():
    assert percentile_bound(np.arange(100.0)) == math.inf


@pytest.mark.parametrize("function", [learn, learn_to_file, command])
def test_as_many_are_held_out_as_bound_the_steps_of_99_in_100(function):
    count = inspect.signature(function).parameters["heldout"].default
    # Candidates of least squares with several starts, the most that there are: five, and seven with one of these.
    wrong = (1 - CONFIDENCE) / (5 + 7 * 5)
    assert percentile_bound(np.arange(float(count)), confidence=1 - wrong / 2) < count


def test_an_excess_is_what_chance_gives_less_often():
    assert not is_excess(0, 10, 0.0, 0.1) and is_excess(1, 10, 0.0, 0.1) and not is_excess(10, 10, 1.0, 0.1)
    # 3 or more of 3 at a rate of one half: an eighth.
    assert is_excess(3, 3, 0.5, 0.1251) and not is_excess(3, 3, 0.5, 0.1249)


class Program(QuadraticProgram):
    """A family whose certificates say what is solved; nothing of it is computed here."""

    def sample(self, key):
        return jnp.zeros(1)

    @property
    def matrices(self):
        return jnp.eye(1), jnp.eye(1)

    def vectors(self, instance):
        return instance, instance, instance


class Simulated:
    """Solvers whose steps are geometric, and that fail with a probability: what is true of them is known."""

    MEAN, FAILURE, NAMES = 30.0, 0.02, ("tuned, 1 start", "learned warm start", "learned otherwise")

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)

    def instances(self, rows: int, spread: float = 1.0) -> np.ndarray:
        return spread * self.draw.normal(size=(rows, 3))

    def solution(self, rows: int, mean: float = MEAN, failure: float = FAILURE) -> Solution:
        steps, failed = self.draw.geometric(1 / mean, rows), self.draw.random(rows) < failure
        zero = np.zeros(rows)
        return Solution(zero[:, None], zero, zero, np.where(failed, 0, 1), steps, steps, zero, failed, zero[:, None])

    def card(self, monkeypatch: pytest.MonkeyPatch, held: int) -> tuple[Card, Usual]:
        """Let `keep_best` make a card: of three such solvers it keeps the one that was luckiest."""

        def measure(solver: Any, instances: Any, seed: Any) -> tuple[Solution, float]:
            found = self.solution(held)
            return found, float(np.mean(found.nit) + 100 * np.mean(~found.success))

        monkeypatch.setattr(candidates, "_measure", measure)
        base = LearnedSolver(Program(), ADMM(), ADMM(), None, 1, 1)
        usual, solvers = Usual.of(self.instances(200)), dict.fromkeys(self.NAMES, base)
        kept = candidates.keep_best(base, solvers, self.instances(held), 1e-3, 0, {}, 1.0, usual=usual)
        assert kept.card is not None and kept.usual is usual
        return kept.card, usual

    def unsolved(self, steps: float) -> float:
        return 1 - (1 - self.FAILURE) * (1 - self.slower(steps))

    def slower(self, steps: float) -> float:
        return (1 - 1 / self.MEAN) ** steps


def test_the_bounds_of_a_card_hold_together_at_their_level(monkeypatch):
    level, runs, wrong = 0.4, 400, {"any": 0, "within": 0, "steps": 0}
    monkeypatch.setattr(candidates, "CONFIDENCE", 1 - level)
    simulated = Simulated(0)
    for _ in range(runs):
        card, _ = simulated.card(monkeypatch, 600)
        assert [int(steps) for steps in card.within] == [5, 10, 20, 50, 100, 200, 500, 1000]
        assert card.steps_bound is not None
        # The level is divided among three solvers, and a quarter of each part among eight numbers of steps.
        count, bound = card.within["100"]
        assert bound == failure_bound(int(count), 600, 1 - level / (3 * 4 * 8))
        late = simulated.slower(card.steps_bound) > 0.01
        truths = [(bound, simulated.unsolved(int(steps))) for steps, (_, bound) in card.within.items()]
        missed = any(bound < truth for bound, truth in [*truths, (card.failure_bound, simulated.FAILURE)])
        wrong["any"] += late or missed
        wrong["within"] += missed
        wrong["steps"] += late
    spread = 3 * math.sqrt(runs * level * (1 - level))
    assert wrong["any"] <= level * runs + spread
    # Each half at half the level, of which it uses a part: it is no looser than it must be.
    assert all(0.01 * runs < wrong[it] <= level / 2 * runs + spread for it in ("within", "steps")), wrong


def test_what_a_learned_solver_could_have_fallen_back_on_has_its_part_too(monkeypatch):
    """Which one it is was chosen on the held-out instances: three solvers with either of two fallbacks, which decides
    what the best known cost is, and so which instances a classical solver fails at; its steps it does not decide."""
    simulated = Simulated(0)
    simulated.NAMES = ("tuned, 1 start", "tuned, 2 starts", "learned warm start")
    monkeypatch.setattr(LearnedSolver, "solve", lambda *_, **__: simulated.solution(600))
    card, _ = simulated.card(monkeypatch, 600)
    assert card.failure_bound == failure_bound(card.failures, 600, 1 - (1 - CONFIDENCE) / (4 * 3 * 2))
    for count, bound in card.within.values():
        assert bound == failure_bound(int(count), 600, 1 - (1 - CONFIDENCE) / (4 * 3 * 2 * 8))
    (unsolved,) = (sign["rate"] for sign in card.signs if sign["what"] == "unsolved")
    assert unsolved == failure_bound(card.fallbacks, 600, 1 - (1 - CONFIDENCE) / (16 * (2 + 2)))


def served(card: Card, usual: Usual, instances: np.ndarray, found: Solution) -> bool:
    seen = {"unsolved": ~found.success, "steps": found.nit, "distance": usual.distance(instances)}
    return alarm(card, [tally(card, seen, len(found))]) != ()


def test_the_alarm_of_a_card_is_as_silent_as_it_says_and_sees_each_kind_of_drift(monkeypatch):
    level, runs = 0.4, 300
    monkeypatch.setattr(candidates, "CONFIDENCE", 1 - level)
    simulated, false = Simulated(1), 0
    for _ in range(runs):
        card, usual = simulated.card(monkeypatch, 600)
        false += served(card, usual, simulated.instances(500), simulated.solution(500))
    assert false <= level * runs + 3 * math.sqrt(runs * level * (1 - level))

    monkeypatch.setattr(candidates, "CONFIDENCE", 0.999)
    card, usual = simulated.card(monkeypatch, 2000)
    assert [sign["what"] for sign in card.signs] == ["unsolved", "steps", "steps", "distance", "distance"]
    same, usually = simulated.instances(2000), simulated.solution(2000)
    assert not served(card, usual, same, usually)
    assert served(card, usual, same, simulated.solution(2000, failure=0.08))
    assert served(card, usual, same, simulated.solution(2000, mean=45.0))
    assert served(card, usual, simulated.instances(2000, spread=1.3), usually)
    few = same.copy()
    few[:80] += 9.0  # rare, and so far out that the quantile of one in a hundred sees it
    assert served(card, usual, few, usually)


def test_distances_are_in_spreads_from_the_mean():
    usual = Usual.of({"a": np.array([[1.0, 5.0], [np.nan, 5.0], [3.0, 5.0]]), "b": np.zeros(3)})
    far = usual.distance({"a": np.array([[2.0, 5.0], [5.0, 5.0], [2.0, 20.0], [np.nan, 5.0]]), "b": np.zeros(4)})
    np.testing.assert_allclose(far, [0.0, 3.0, 3.0, np.inf])
    assert np.isinf(usual.distance({"a": np.ones((2, 3)), "b": np.zeros(2)})).all()


def test_limits_that_are_none_are_far_only_where_they_seldom_were():
    rows = np.array([[-1.0, np.inf, 0.0], [1.0, np.inf, 0.0]] * 100)
    rows[::4, 2], rows[0, 0] = np.inf, np.inf
    far = Usual.of(rows).distance(np.array([[2.0, np.inf, np.inf], [0.0, 3.0, 0.0], [np.inf, np.inf, 0.0]]))
    np.testing.assert_allclose(far, [2.0, 3.0, np.inf], rtol=0.02)


def test_a_number_with_few_values_is_as_far_away_in_every_precision():
    rng = np.random.default_rng(0)
    levels = np.repeat(rng.choice([0.1, 0.2, 0.8], (1, 200), p=[0.3, 0.65, 0.05]).T, 8, axis=1) * np.linspace(1, 2, 8)
    usual = Usual.of(levels)
    far = usual.distance(levels)
    np.testing.assert_array_equal(usual.distance(levels.astype(np.float32)), far)
    np.testing.assert_array_equal(usual.distance(levels.astype(np.float32).astype(float)), far)
    assert np.isinf(usual.distance(np.full((1, 8), 1e300))).all()


def test_the_imaginary_part_of_an_instance_is_a_number_as_well():
    signal = np.array([1 + 5j, 2 + 5j, 3 + 5j, 2 + 9j])
    usual = Usual.of({"signal": signal[:, None]})
    apart = Usual.of({"signal": np.stack([signal.real, signal.imag], axis=1)})
    np.testing.assert_allclose([usual.mean, usual.spread], [apart.mean, apart.spread])
    (far,) = usual.distance({"signal": np.array([[2 - 14j]])})
    assert far == pytest.approx((6 + 14) / np.std([5, 5, 5, 9]))


@pytest.mark.parametrize("counts", [(1, 0), (-1, 3), (4, 3)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="bound nothing"):
        failure_bound(*counts)
