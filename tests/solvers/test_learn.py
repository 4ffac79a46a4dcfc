"""Learning a solver: what it keeps, what it says, how it is written down, and how files are solved."""

import dataclasses
import sys
import types
import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import bygrad
from bygrad.artifacts import SOLVER, Artifact, ArtifactError, Manifest, save
from bygrad.cli import main
from bygrad.deploy import hub, load, verify
from bygrad.deploy.jax import refuse_solver
from bygrad.deploy.solver import load_solver, save_solver
from bygrad.problems import ProblemFamily, QuadrotorControl, SparseCoding, find_family
from bygrad.problems.structured import Bounded, LeastSquares
from bygrad.solvers import (
    Damping,
    Flat,
    GainRatio,
    LearnedSolver,
    LearnedStart,
    LevenbergMarquardt,
    Whitening,
    candidates,
    failure_bound,
    learn,
    solve,
)
from bygrad.solvers.candidates import BestKnown, is_solved
from bygrad.solvers.card import report
from bygrad.solvers.learned import vector_of
from bygrad.solvers.starts import starting_points
from bygrad.solvers.training import Examples, train_start
from bygrad.workflows import Display, learn_to_file, solve_file, solving

from .families import TIMES, Decay, decay_rates, decays

FILE = Path(__file__).parent / "families.py"


@pytest.fixture(scope="module")
def learned() -> LearnedSolver:
    module = sys.modules["bygrad.solvers.learn"]  # the package's `learn` is the function
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STARTS", (1, 2))
        patch.setattr(candidates, "REFERENCE", 2)
        # All of the held-out ones, whatever time is left; and everything is tried, whatever is left of it.
        patch.setattr(module, "_reserved", lambda base, train, held, *_: (held, 0.0))
        patch.setattr(module, "ENOUGH", -np.inf)
        with jax.enable_x64(True):  # as the caller's own code may need; and the largest seed that there is
            return learn(Decay(), budget=1, instances=decays(400), seed=2**32 - 1)


def test_limits_that_are_none_may_be_large_numbers():
    """1e20 squared is no float32."""
    instances = jnp.array([[1e20, 2.0, 1e21], [1.0, 3.0, 3e21], [1e30, 4.0, 2e21]])
    whitening = Whitening.of(instances, jnp.ones((3, 2)))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(whitening))
    np.testing.assert_allclose(
        whitening.instance_scale[1:], np.std(np.asarray(instances, float), axis=0)[1:], rtol=1e-5
    )


@pytest.mark.slow
def test_the_kept_solver_solves_as_the_classical_one(learned):
    data = decays(100, seed=9)
    found, classical = learned.solve(data), solve(Decay(), data, starts=3)
    assert found.success.all()
    assert (found.cost <= classical.cost * (1 + 1e-3)).all()


def test_the_card_says_what_was_measured(learned):
    card = learned.card
    assert card.heldout == 200 and card.kept in card.candidates
    assert {"tuned, 1 start", "learned start, best 1", "learned start, best 1, and damping"} <= set(card.candidates)
    assert "tuned, 2 starts" not in card.candidates  # all starts of this family are the same
    assert card.candidates[card.kept]["success"] == pytest.approx(1 - card.failures / 200)
    assert card.failure_bound > card.failures / 200
    assert card.pays == (not card.kept.startswith("tuned"))
    said = learned.report()
    assert card.kept in said and ("Learning does not pay here" in said) == (not card.pays)


def test_the_columns_of_the_report_stand_below_their_heads(learned):
    lines = report(learned.card, Decay()).splitlines()
    head = next(at for at, line in enumerate(lines) if line.startswith("candidate"))
    ends = {len(line) for line in lines[head : head + 1 + len(learned.card.candidates)]}
    assert len(ends) == 1, lines


@pytest.mark.parametrize(("bound", "said"), [(12.0, "99 in 100 take at most 12 steps"), (None, "too few instances")])
def test_the_report_bounds_the_steps_or_says_why_not(bound, said, learned):
    assert said in report(dataclasses.replace(learned.card, steps_bound=bound), Decay())


@pytest.mark.parametrize(
    ("left", "fit", "kept_back"),
    # 512 rows take 20.24 s with compilation and 10.24 s without: of the rest, half is 10 s and 0.14 s an instance.
    [(1e4, 1000, 10 + 140), (30.48 + 2 * 80.0, 500, 10 + 70), (30.48 + 1.0, 50, 10 + 7), (-9.0, 50, 10 + 7)],
)
def test_the_comparison_keeps_its_time_back_or_has_fewer_instances(left, fit, kept_back, monkeypatch):
    module, clock, solved = sys.modules["bygrad.solvers.learn"], [0.0], []

    def solve_slowly(self, instances, *, seed):
        clock[0] += (10.0 if not solved else 0.0) + 0.02 * len(instances)
        solved.append(len(instances))

    monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(LearnedSolver, "solve", solve_slowly)
    method = LevenbergMarquardt()
    base = LearnedSolver(Decay(), method, method, None, 1, 1)
    held, reserved = module._reserved(base, np.zeros((3000, 9)), np.zeros((1000, 9)), 7, left, 0)
    assert solved == [512, 512] and len(held) == pytest.approx(fit, abs=1)
    assert reserved == pytest.approx(kept_back, abs=0.15)


def test_training_has_what_the_comparison_leaves(monkeypatch):
    module, given = sys.modules["bygrad.solvers.learn"], []

    def train_nothing(base, train, tol, left, *_):
        given.append(left())
        return {}

    monkeypatch.setattr(module, "_reserved", lambda base, train, held, *_: (held[:60], 900.0))
    monkeypatch.setattr(module, "_learned", train_nothing)
    solver = learn(Decay(), budget=1000, instances=decays(200), heldout=80)
    assert solver.card is not None and solver.card.heldout == 60 and 0 < given[0] < 100


def test_the_comparison_takes_as_many_passes_as_time_is_kept_back_for(monkeypatch):
    module, passes = sys.modules["bygrad.solvers.learn"], []
    held, method = decays(60), LevenbergMarquardt()
    whitening = Whitening.of(jnp.ones((4, 9)), jnp.ones((4, 2)))
    start = LearnedStart.untrained(whitening, 8, jax.random.key(0))
    base = LearnedSolver(Decay(), method, method, None, 1, 1)
    solvers = {f"tuned, {n}": dataclasses.replace(base, starts=n) for n in (1, 2, 3, 5)}
    for what in ("", ", and damping"):
        solvers |= {f"learned start, best {n}{what}": dataclasses.replace(base, starts=n, start=start) for n in (1, 3)}
        # Two starts of each instance are what a doubted solver takes about.
        solvers[f"learned start and doubt{what}"] = dataclasses.replace(base, starts=2, start=start)
    solvers |= {f"{name}, up to 5 starts": dataclasses.replace(base, starts=2) for name in ("tuned", "learned doubt")}
    found = base.solve(held)
    monkeypatch.setattr(LearnedSolver, "solve", lambda self, *_, **__: passes.append(self.starts) or found)
    monkeypatch.setattr(candidates, "REPEATED", 0.0)  # as if none were quick
    candidates.keep_best(base, solvers, held, 1e-3, 0, {}, 0.0)
    assert sum(passes) == module._passes(Decay(), (1, 2, 3, 5))


@pytest.mark.parametrize(
    ("passes", "least"),
    [((9.0, 0.2), 0.2), ((9.0, 0.03, 0.02, 0.06, 0.01), 0.02), ((9.0, *[0.001] * 12), 0.001)],
    ids=["slow", "quick", "very quick"],
)
def test_quick_candidates_are_timed_again(passes, least, monkeypatch):
    solver = LearnedSolver(Decay(), LevenbergMarquardt(), LevenbergMarquardt(), None, 1, 1)
    now, left, found = [0.0], iter(passes), solver.solve(decays(4))

    def solve(*_, **__):
        now[0] += next(left)
        return found

    monkeypatch.setattr(candidates, "work_clock", lambda: now[0])
    monkeypatch.setattr(LearnedSolver, "solve", solve)
    solution, seconds = candidates._measure(solver, None, 0)
    assert solution is found and seconds == pytest.approx(least / 4)
    assert len(list(left)) == {2: 0, 5: 1, 13: 2}[len(passes)]


def test_a_classical_solver_that_is_kept_has_no_fallback_that_was_not_measured(monkeypatch):
    method, held = LevenbergMarquardt(), decays(200)
    base = LearnedSolver(Decay(), method, method, None, 1, 1)
    solvers = {f"tuned, {n}": dataclasses.replace(base, starts=n) for n in (1, 2)}
    found = base.solve(held)
    lost = np.arange(200) == 0  # what the second start finds alone: too little to be kept for
    worse = dataclasses.replace(found, cost=found.cost + lost, x=jax.tree.map(lambda it: it + 1, found.x))
    measured = {1: (worse, 1.0), 2: (found, 2.0)}
    monkeypatch.setattr(candidates, "_measure", lambda solver, *_: measured[solver.starts])
    monkeypatch.setattr(LearnedSolver, "solve", lambda *_, **__: found)
    kept = candidates.keep_best(base, solvers, held, 1e-3, 0, {}, 0.0)
    assert kept.card is not None and kept.card.kept == "tuned, 1" and kept.card.failures == 1
    assert (kept.starts, kept.classical_starts) == (1, 1)


def test_the_report_bounds_failure_within_every_number_of_steps_that_decides(learned):
    assert learned.card is not None
    within = {"5": [200, 1.0], "50": [7, 0.11], "10": [60, 0.5], "20": [7, 0.12]}
    card = dataclasses.replace(learned.card, failures=7, failure_bound=0.1, within=within)
    lines = [line.strip() for line in report(card, Decay()).splitlines() if "the probability" in line]
    assert lines == [
        "the probability not to be solved within 10 steps is at most 50.00% (60 of 200 held out were not)",
        "the probability not to be solved within 20 steps is at most 12.00% (7 of 200 held out were not)",
        "the probability not to be solved at all is at most 10.00% (7 of 200 held out were not)",
    ]
    (old,) = [it for it in report(dataclasses.replace(card, within={}), Decay()).splitlines() if "probability" in it]
    assert "not to be solved is at most 10.00%" in old


@pytest.mark.slow
def test_a_learned_start_is_nearer_than_the_middle():
    data = decays(300)
    solved = solve(Decay(), data)
    params = np.concatenate([solved.x["height"][:, None], solved.x["rate"]], axis=1)
    examples = Examples(*(jnp.asarray(it, jnp.float32) for it in (data, params, solved.cost)))
    flat = Flat.of(Decay(), data[0])
    untrained = LearnedStart.untrained(Whitening.of(examples.instances, examples.params), 2, jax.random.key(0))
    trained = train_start(untrained, flat, examples, 1.0, 0, steps=150)

    def distance(start: LearnedStart) -> float:
        best = jax.vmap(lambda one: start.best(flat, one, jnp.ones(2), 1)[0])(examples.instances)
        return float(jnp.median(jnp.sum((best - examples.params) ** 2, axis=1)))

    assert distance(trained) < 0.3 * distance(untrained)


def test_networks_see_the_same_in_every_unit():
    rng = np.random.default_rng(0)
    data = jnp.asarray(np.concatenate([rng.normal(size=(99, 3)), np.full((99, 1), 0.7)], axis=1), jnp.float32)
    # Of the params one is mostly at a bound, where solutions differ by rounding, and another sometimes runs off.
    params = data.at[:60, 2].set(jnp.asarray(1e-7 * rng.normal(size=60), jnp.float32)).at[:20, 0].set(1e20)
    whitening = Whitening.of(data, params)
    np.testing.assert_allclose(jnp.std(jax.vmap(whitening.instance)(data), axis=0), [1, 1, 1, 0], atol=1e-5)
    assert (jnp.max(jnp.abs(jax.vmap(whitening.params)(params[20:])), axis=0) < 6).all()
    assert (whitening.params_scale[:3] > 0.5).all() and (whitening.params_scale < 2).all()
    for unit in (2.0**-40, 2.0**40):  # in which numbers are rounded as before
        other = Whitening.of(unit * data, unit * params)
        for found, expected in (
            (jax.vmap(other.instance)(unit * data), jax.vmap(whitening.instance)(data)),
            (jax.vmap(other.params)(unit * params), jax.vmap(whitening.params)(params)),
            (other.params_scale, unit * whitening.params_scale),
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * float(jnp.max(jnp.abs(expected))))


@pytest.mark.slow
def test_a_network_sees_the_imaginary_part_of_an_instance():
    class Phase(LeastSquares):
        def sample(self, key):
            return jnp.exp(1j * jax.random.uniform(key, (1,), minval=-1.0, maxval=1.0))

        def init(self, instance, key):
            return jnp.zeros(1)

        def residuals(self, params, instance):
            off = jnp.exp(1j * params) - instance
            return jnp.concatenate([off.real, off.imag])

    family, angles = Phase(), np.linspace(-1.0, 1.0, 300, dtype=np.float32)[:, None]
    signals = np.exp(1j * angles)
    whitening = Whitening.of(jax.vmap(vector_of)(signals), jnp.asarray(angles))
    start = LearnedStart.untrained(whitening, 1, jax.random.key(0))
    examples = Examples(jnp.asarray(signals), jnp.asarray(angles), jnp.full(300, 1e-6))
    start = train_start(start, Flat.of(family, signals[0]), examples, 1.0, 0, steps=150)
    # Of an angle and its opposite the real parts are the same.
    assert np.mean(np.abs(jax.vmap(start.propose)(signals)[:, 0] - angles)) < 0.1
    solver = LearnedSolver(family, LevenbergMarquardt(), LevenbergMarquardt(), start, 1, 1)
    np.testing.assert_allclose(solver.solve(signals).x, angles, atol=1e-5)


def broken_start(solver: LearnedSolver) -> LearnedSolver:
    """A learned solver that must fall back where instances are NaN, with signs as of a thousand held-out instances."""
    start = LearnedStart.untrained(Whitening.of(jnp.ones((4, 9)), jnp.ones((4, 2))), 2, jax.random.key(0))
    assert solver.card is not None
    signs = [{"what": "unsolved", "limit": 0.0, "rate": failure_bound(0, 1000)}]
    return dataclasses.replace(solver, start=start, card=dataclasses.replace(solver.card, signs=signs))


@pytest.mark.parametrize("guard", ["certificate", "best_of_two"])
def test_instances_that_fail_are_told_as_drift(learned, guard):
    data, solver = decays(40), broken_start(learned)
    assert solver.solve(data, batch=64, guard=guard).warnings == ()
    drifted = data.copy()
    drifted[:20] = np.nan
    (warning,) = solver.solve(drifted, batch=64, guard=guard).warnings
    assert "drifted" in warning and "20 of 40 were not solved at the first attempt" in warning
    lost = solver.solve(np.full_like(data, np.nan), batch=64)
    assert lost.used_fallback.all() and "40 of 40" in lost.warnings[0]


def test_an_old_card_is_held_to_its_fallbacks(learned):
    solver = broken_start(learned)
    assert solver.card is not None
    card = dataclasses.replace(solver.card, signs=[], within={}, fallbacks=0, heldout=1000, pays=True)
    found = dataclasses.replace(solver, card=card).solve(np.full((40, 9), np.nan), batch=64)
    assert "40 of 40 were not solved" in found.warnings[0]
    assert dataclasses.replace(solver, card=dataclasses.replace(card, pays=False)).solve(decays(9)).warnings == ()


@pytest.mark.parametrize("guard", ["certificate", "best_of_two"])
def test_instances_from_elsewhere_are_told_though_all_are_solved(learned, guard):
    """Decays of three times the noise: each has a local minimum, which is a success."""
    noise = decays(400, seed=7) - np.exp(-np.outer(decay_rates(400, seed=7), TIMES))
    assert learned.solve(decays(400, seed=7), guard=guard).warnings == ()
    found = learned.solve(decays(400, seed=7) + 2 * noise, guard=guard)
    assert found.success.all() and not found.used_fallback.all()
    assert "spreads from the mean" in found.warnings[0]


def test_slower_solutions_are_told(learned):
    solver = broken_start(learned)
    assert solver.card is not None
    card = dataclasses.replace(solver.card, signs=[{"what": "steps", "limit": 0.0, "rate": 0.5}])
    slow = dataclasses.replace(solver, card=card)
    assert "40 of 40 took more than 0 steps" in slow.solve(decays(40)).warnings[0]
    # A guess of the caller's was not measured when the card was made.
    assert slow.solve(decays(40), x0=solver.solve(decays(40)).x).warnings == ()
    assert slow.solve(decays(40), dtype=np.float32).warnings == ()  # nor was another precision
    with pytest.raises(ValueError, match="seed is -1"):
        slow.solve(decays(40), seed=-1)


def test_what_is_chance_in_each_call_is_drift_in_all_of_them(learned):
    solver = broken_start(learned)
    data = decays(40)
    data[:3] = np.nan
    calls = [solver.solve(data, batch=64) for _ in range(8)]
    assert all(call.warnings == () for call in calls)
    assert "24 of 320" in solver.alarm([call.tally for call in calls])[0]
    assert solver.alarm([]) == () and dataclasses.replace(solver, card=None).alarm([]) == ()


def test_who_cannot_draw_is_told_to_give_instances():
    class Measured(Decay):
        def sample(self, key):
            raise NotImplementedError("they come from a machine")

    with pytest.raises(ValueError, match=r"Measured\.sample raised NotImplementedError.*Or give past instances"):
        learn(Measured(), budget=1)


def test_instances_of_another_size_are_refused(learned):
    with pytest.raises(ValueError, match=r"has 7 numbers, but those .* learned from had 9"):
        broken_start(learned).solve(decays(5)[:, :7])


def test_no_instances_have_no_solutions(learned):
    for guard in ("certificate", "best_of_two"):
        found = learned.solve(decays(0), guard=guard)
        assert found.cost.shape == (0,)
        assert {leaf.shape[0] for leaf in jax.tree.leaves(found.x)} == {0}
    assert broken_start(learned).solve(decays(0)).cost.shape == (0,)


def test_restarts_are_not_instances():
    """Where both are drawn alike, one would be the other if their keys were the same."""
    family = find_family("lennard-jones")
    drawn = np.asarray(jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 64)))
    flat = Flat.of(family, drawn[0])
    starts = starting_points(flat, drawn, 64, None, starts=3, seed=0, batch=64, dtype=np.float32)
    apart = np.abs(starts[:, None] - drawn.reshape(1, 64, -1)).max(axis=-1)
    assert apart.reshape(64, 3, 64)[:, 1:].min() > 1e-2


def test_a_guess_is_taken_where_it_is_better(learned):
    data = decays(30)
    exact = solve(Decay(), data, method=LevenbergMarquardt(tol=1e-10))
    solver = dataclasses.replace(broken_start(learned), method=LevenbergMarquardt(), starts=1)
    cold, warm = solver.solve(data), solver.solve(data, x0=exact.x)
    assert warm.nit.max() <= 2 < cold.nit.min()
    tuned = dataclasses.replace(solver, start=None)
    assert tuned.solve(data, x0=exact.x).nit.max() <= 2 < tuned.solve(data).nit.min()
    bad = jax.tree.map(lambda leaf: leaf + 1e3, exact.x)
    np.testing.assert_array_equal(solver.solve(data, x0=bad).nit, cold.nit)


@pytest.mark.parametrize("guard", ["certificate", "best_of_two"])
@pytest.mark.parametrize("name", ["learned start", "tuned"])
def test_no_guess_keeps_the_classical_solver_from_its_own_starts(name, guard, learned):
    """Where the guess leads nowhere, another attempt from it would as well."""
    method = LevenbergMarquardt()
    start = broken_start(learned).start if name == "learned start" else None
    solver = dataclasses.replace(learned, method=method, classical=method, start=start, starts=1, classical_starts=1)
    data = decays(30)
    own = solve(Decay(), data, method=method)
    lost = {"height": np.full(30, 1e150), "rate": np.full((30, 1), -1e150)}
    assert not solve(Decay(), data, method=method, x0=lost).success.any()
    if name == "learned start":
        solver = dataclasses.replace(solver, method=LevenbergMarquardt(tol=0.0, max_steps=1))
    found = solver.solve(data, x0=lost, guard=guard)
    assert found.success.all() and found.used_fallback.all()
    np.testing.assert_allclose(found.cost, own.cost, rtol=1e-6)


def test_a_file_gives_the_solver_back(learned, tmp_path):
    save_solver(learned, tmp_path / "fit.safetensors", family=f"{FILE}:Decay")
    back = load_solver(tmp_path / "fit.safetensors", Decay())
    assert back.card == learned.card and back.report() == learned.report()
    data = decays(30, seed=3)
    ours, theirs = back.solve(data, batch=64), learned.solve(data, batch=64)
    np.testing.assert_array_equal(ours.cost, theirs.cost)
    assert ours.tally == theirs.tally is not None
    assert type(load_solver(tmp_path / "fit.safetensors").family).__name__ == "Decay"


@pytest.mark.parametrize(
    "change",
    [
        {"tol": "1e-3"},
        {"heldout": None},
        {"candidates": {"tuned": {}}},
        {"within": {"5": [1]}},
        {"signs": [{"what": "steps", "limit": 5.0}]},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_card_that_cannot_be_read_is_refused(change, learned, tmp_path):
    kept = save_solver(learned, path := tmp_path / "fit.safetensors")
    validation = dict(kept.manifest.validation) | change
    save(path, Artifact(dataclasses.replace(kept.manifest, validation=validation), kept.tensors))
    with pytest.raises(ArtifactError, match=r"fit\.safetensors: its configuration does not describe a solver"):
        load_solver(path, Decay())


class Other:
    """Classes of somebody's own, who took names of bygrad's."""

    class LevenbergMarquardt(LevenbergMarquardt):
        pass

    class GainRatio(GainRatio):
        pass

    class LearnedStart(LearnedStart):
        pass


@pytest.mark.parametrize("part", ["method", "damping", "start"])
def test_what_has_a_name_of_bygrads_is_not_taken_for_it(part, learned, tmp_path):
    whitening = Whitening.of(jnp.asarray(decays(64), jnp.float32), jax.random.normal(jax.random.key(1), (64, 2)))
    changes = {
        "method": {"method": Other.LevenbergMarquardt()},
        "damping": {"method": LevenbergMarquardt(damping=Other.GainRatio())},
        "start": {"start": Other.LearnedStart.untrained(whitening, 1, jax.random.key(5))},
    }
    with pytest.raises(TypeError, match=r"no file could give it back\. Save solvers with bygrad's own"):
        save_solver(dataclasses.replace(learned, **changes[part]), tmp_path / "fit.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_file_is_for_the_family_that_it_was_learned_for(learned, tmp_path):
    class Sized(Decay):
        height: jax.Array = dataclasses.field(default_factory=lambda: jnp.ones(3))
        noise: float = 0.1

    solver = dataclasses.replace(learned, family=Sized())
    save_solver(solver, path := tmp_path / "fit.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_solver(path, Sized(height=jnp.zeros(3))).card == learned.card
    with pytest.raises(ArtifactError, match="another family: name was Sized, is Decay"):
        load_solver(path, Decay())
    with pytest.raises(ArtifactError, match=r"height was float32\[3\], is float32\[4\]"):
        load_solver(path, Sized(height=jnp.zeros(4)))
    with pytest.warns(UserWarning, match=r"noise was 0\.1, is 0\.2"):
        load_solver(path, Sized(height=jnp.zeros(3), noise=0.2))


def test_a_family_of_any_name_can_be_kept(learned, tmp_path):
    class _Größe(Decay):
        pass

    kept = save_solver(dataclasses.replace(learned, family=_Größe()), tmp_path / "fit.safetensors")
    assert kept.manifest.name == "mine/gr-e"


def test_a_solver_is_not_taken_for_an_optimizer(learned, tmp_path):
    with pytest.raises(TypeError, match=r"Keep it with bygrad\.save_solver"):
        refuse_solver(learned)  # not by `export`, whose annotation the tests check first
    save_solver(learned, path := tmp_path / "fit.safetensors")
    with pytest.raises(ArtifactError, match=r"is a learned solver\. There is no optimizer in it\. Use it with"):
        load(path)
    assert {replay.remark.split(",")[0] for replay in verify(path)} == {"a learned solver"}
    pytest.importorskip("huggingface_hub")
    with pytest.raises(ArtifactError, match="Share its file together with the source of the family"):
        hub.push(path, "me/fit")


def test_networks_survive_the_file(learned, tmp_path):
    whitening = Whitening.of(jnp.asarray(decays(64), jnp.float32), jax.random.normal(jax.random.key(1), (64, 2)))
    start = LearnedStart.untrained(whitening, 4, jax.random.key(5))
    solver = dataclasses.replace(learned, start=start, starts=2)
    save_solver(solver, tmp_path / "fit.safetensors")
    back = load_solver(tmp_path / "fit.safetensors", Decay())
    instance = jnp.asarray(decays(1)[0], jnp.float32)
    np.testing.assert_array_equal(back.start.propose(instance), start.propose(instance))


STRANGE = {
    "a network that no memory could hold": {"start": {"proposals": 1, "inputs": 10**13, "params": 2}},
    "a schedule that no memory could hold": {
        "method": {"name": "ProximalGradient"},
        "schedule": {"steps": 10**13, "metric": [1]},
    },
    "a method that is none": {"method": "LBFGS"},
    "a network that is none": {"start": "large"},
    "numbers of another kind": {"method": {"name": "LBFGS", "tol": []}, "start": {"proposals": None}},
    "a family that is none": {"family": 3},
    "no family": {"family": None},
}


@pytest.mark.parametrize("strange", STRANGE)
def test_a_strangers_file_is_refused_whatever_it_says(strange, tmp_path):
    """At once: nothing is made of a size that stands in a file."""
    config = {"family": "lennard-jones", "family_sha256": "", "dtype": "float32", "starts": 1, "classical_starts": 1}
    config |= {"method": {"name": "LBFGS"}, "classical": {"name": "LBFGS"}}
    config |= dict.fromkeys(("start", "doubt", "damping", "warm", "schedule"))
    config |= STRANGE[strange]
    manifest = {"name": "it/it", "optimizer": SOLVER, "config": config, "features": 1, "tensors": {}}
    save(path := tmp_path / "it.safetensors", Artifact(Manifest(**manifest, training={"family": [1]}), {}))
    with pytest.raises(ArtifactError, match=r"it\.safetensors: it"):
        load_solver(path)


@pytest.mark.parametrize("named", [":Decay", ""])
def test_a_family_that_changed_is_refused(named, learned, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE.read_text())
    save_solver(learned, tmp_path / "fit.safetensors", family=f"{file}{named}")
    file.write_text(FILE.read_text() + "\nraise SystemExit('this must not run')\n")
    with pytest.raises(ArtifactError, match="not the file that the solver was learned for"):
        load_solver(tmp_path / "fit.safetensors")


def test_a_file_in_the_home_folder_is_held_to_its_digest_too(learned, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "mine.py"
    file.write_text(FILE.read_text())
    save_solver(learned, tmp_path / "fit.safetensors", family="~/mine.py:Decay")
    assert type(load_solver(tmp_path / "fit.safetensors").family).__name__ == "Decay"
    file.write_text(FILE.read_text() + "\nraise SystemExit('this must not run')\n")
    with pytest.raises(ArtifactError, match="not the file that the solver was learned for"):
        load_solver(tmp_path / "fit.safetensors")


def test_fits_without_noise_are_judged_by_where_they_end():
    class Exact(LeastSquares):
        def sample(self, key):
            return jnp.exp(-jnp.linspace(0, 2, 5))[None] * jnp.ones((2, 1))

        def init(self, instance, key):
            return {"rate": jnp.ones(2)}

        def residuals(self, params, instance):
            return jnp.exp(-params["rate"][:, None] * jnp.linspace(0, 2, 5)) - instance

    family, rates = Exact(), np.random.default_rng(0).uniform(0.3, 2, (20, 2))
    data = np.exp(-rates[..., None] * np.linspace(0, 2, 5))
    loose, exact = (solve(family, data, method=LevenbergMarquardt(tol=tol)) for tol in (3e-2, 1e-12))
    best = BestKnown.of([loose, exact])
    assert np.max(best.cost) < 1e-28 and np.min(loose.cost) > 1e-16  # no cost is near the best one
    assert is_solved(family, loose, best, 2e-3).all()
    moved = dataclasses.replace(loose, x={"rate": loose.x["rate"] * np.array([1, 1.01])}, cost=loose.cost + 1e-5)
    assert not is_solved(family, moved, best, 2e-3).any()
    assert is_solved(family, moved, dataclasses.replace(best, cost=moved.cost), 2e-3).all()
    assert not is_solved(family, dataclasses.replace(moved, cost=moved.cost * np.nan), best, 1.0).any()
    zero = dataclasses.replace(best, cost=0 * best.cost, x=0 * best.x)
    assert is_solved(family, dataclasses.replace(loose, cost=0 * loose.cost + 1e-13), zero, 2e-3).all()


@pytest.mark.slow
def test_a_start_is_learned_for_costs_of_any_sign():
    class Shifted(Bounded):
        shift: float

        def sample(self, key):
            return jax.random.normal(key, (2,))

        def init(self, instance, key):
            return jnp.zeros(2)

        def loss(self, params, instance, key):
            return jnp.sum(jnp.square(params - instance)) + self.shift

    data = np.asarray(jax.random.normal(jax.random.key(0), (200, 2)))
    blank = LearnedStart.untrained(Whitening.of(jnp.asarray(data), jnp.asarray(data)), 2, jax.random.key(0))
    starts = []
    for shift in (1.0, -10.0):
        family = Shifted(shift)
        # Solutions that are wrong, so that only what they cost can teach the start.
        examples = Examples(jnp.asarray(data), jnp.zeros((200, 2)), jnp.linspace(shift, shift + 1, 200))
        trained = train_start(blank, Flat.of(family, data[0]), examples, 1.0, 0, steps=150)
        starts.append(jax.vmap(lambda one: jnp.min(jnp.sum((trained.propose(one) - one) ** 2, axis=1)))(data))  # noqa: B023
    assert jnp.median(starts[0]) < 0.1 and jnp.median(starts[1]) < 0.1


@pytest.mark.slow
def test_what_is_solved_does_not_hang_on_the_unit_of_costs(monkeypatch):
    monkeypatch.setattr(candidates, "REFERENCE", 2)

    class Valley(ProblemFamily):
        def sample(self, key):
            return jax.random.uniform(key, (1,), minval=5.0, maxval=20.0)

        def init(self, instance, key):
            return jnp.array([-1.2, 1.0])

        def loss(self, params, instance, key):
            return 1e-12 * ((1 - params[0]) ** 2 + instance[0] * (params[1] - params[0] ** 2) ** 2)

    solver = learn(Valley(), budget=1, heldout=50, instances=np.linspace(5.0, 20.0, 200)[:, None])
    found = solver.solve(np.full((20, 1), 10.0))
    np.testing.assert_allclose(found.x, 1, atol=0.05)


def test_instances_without_a_finite_cost_are_refused():
    with pytest.raises(ValueError, match="Decay or its gradient is not finite at the start of any of 20 instances"):
        learn(Decay(), budget=1, instances=np.nan * decays(400))


@pytest.mark.parametrize(
    ("build", "size"), [(lambda: SparseCoding.embedded(count=64), 64), (lambda: QuadrotorControl.build(horizon=2), 12)]
)
def test_programs_without_a_finite_cost_are_refused(build, size):
    with pytest.raises(ValueError, match="is not finite at the start of any of 20 instances"):
        learn(build(), budget=1, instances=np.full((200, size), np.nan))


def test_a_family_without_instances_is_refused():
    with pytest.raises(ValueError, match="heldout is 20"):
        learn(Decay(), budget=1, heldout=20)
    with pytest.raises(ValueError, match="too few"):
        learn(Decay(), budget=1, instances=decays(60))
    with pytest.raises(ValueError, match="not a positive duration"):
        learn(Decay(), budget="soon")


@pytest.fixture
def display() -> Display:
    return Display(Console(quiet=True))


def test_files_are_solved_block_by_block_and_resumed(tmp_path, display, monkeypatch):
    monkeypatch.setattr(solving, "BLOCK", 16)
    data = decays(40)
    np.save(tmp_path / "data.npy", data)
    whole = solve(Decay(), data, batch=64)
    calls = []

    def failing(family, block, **kwargs):
        calls.append(len(block))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return solve(family, block, batch=64)

    monkeypatch.setattr(solving, "solve", failing)
    out = tmp_path / "out.npz"
    with pytest.raises(KeyboardInterrupt):
        solve_file(Decay(), tmp_path / "data.npy", out, display)
    assert not out.exists()
    with pytest.raises(FileExistsError, match="interrupted"):
        solve_file(Decay(), tmp_path / "data.npy", out, display)
    with pytest.raises(ValueError, match="differs in family"):
        solve_file(Decay(limited=True), tmp_path / "data.npy", out, display, resume=True)
    mended = tmp_path / "mended.py"
    mended.write_text(FILE.read_text() + "\n")
    with pytest.raises(ValueError, match="differs in family_digest"):
        solve_file(find_family(f"{mended}:Decay"), tmp_path / "data.npy", out, display, resume=True)
    done = solve_file(Decay(), tmp_path / "data.npy", out, display, resume=True)
    assert calls == [16, 16, 16, 8] and done["rows"] == 40 and done["solved"] == 40
    with np.load(out) as found:
        np.testing.assert_allclose(found["cost"], whole.cost, rtol=1e-9)
        assert found["x/rate"].shape == (40, 1) and found["success"].all()
    assert [path.name for path in tmp_path.iterdir() if "parts" in path.name] == []
    with pytest.raises(FileExistsError, match="overwritten"):
        solve_file(Decay(), tmp_path / "data.npy", out, display)


def test_a_run_is_not_resumed_with_another_solver(learned, tmp_path, display, monkeypatch):
    np.save(tmp_path / "data.npy", decays(8))
    monkeypatch.setattr("bygrad.workflows.parts.write_part", interrupt)
    with pytest.raises(KeyboardInterrupt):
        solve_file(learned, tmp_path / "data.npy", tmp_path / "out.npz", display)
    np.save(tmp_path / "row.npy", decays(1)[0])
    with pytest.raises(ValueError, match="give instance"):
        solve_file(learned, tmp_path / "row.npy", tmp_path / "row.npz", display)
    assert not (tmp_path / ".row.npz.parts").exists()  # nothing was solved, so nothing is in the way of the next try
    other = dataclasses.replace(learned, classical=LevenbergMarquardt(max_steps=1))
    assert learned.digest == dataclasses.replace(learned).digest != other.digest
    with pytest.raises(ValueError, match="differs in solver"):
        solve_file(other, tmp_path / "data.npy", tmp_path / "out.npz", display, resume=True)


class Set(Decay):
    """A family with a field that is no array, and has no text of its own."""

    weight: object = eqx.field(static=True, default=None)


class Steady(Damping):
    share: float = eqx.field(static=True)

    def start(self, instance, x):
        return ()

    def next(self, seen, state):
        return jnp.full_like(seen.x, self.share), jnp.ones((), seen.x.dtype), state


def test_the_digest_sees_static_fields_and_no_addresses():
    def digest(share=0.1, **fields):
        method = LevenbergMarquardt(damping=Steady(share))
        return LearnedSolver(Set(**fields), method, LevenbergMarquardt(), None, 1, 1).digest

    others = [digest(), digest(0.2), digest(weight=1), digest(weight=lambda x: x), digest(limited=True)]
    assert len(set(others)) == 5
    assert len({digest(weight=it) for it in [object(), object()]}) == 1


class Named(Decay):
    """A family with a leaf that is no number."""

    label: str = "a"


def test_the_digest_sees_leaves_that_are_no_numbers():
    method = LevenbergMarquardt()
    assert len({LearnedSolver(Named(label=it), method, method, None, 1, 1).digest for it in "aab"}) == 2


def test_whole_numbers_that_networks_would_cut_are_refused():
    with pytest.raises(ValueError, match="whole numbers up to 4,294,967,296, of which 32 bits"):
        learn(Decay(), budget=1, instances=np.full((200, 9), 2**32))


def interrupt(*_):
    raise KeyboardInterrupt


def test_params_of_any_structure_and_multipliers_are_written(tmp_path, display):
    class Nested(Decay):
        def init(self, instance, key):
            return (jnp.ones(()), {"cost": jnp.ones((1,))})

        def residuals(self, params, instance):
            return super().residuals({"height": params[0], "rate": params[1]["cost"]}, instance)

    np.save(tmp_path / "data.npy", decays(5))
    np.save(tmp_path / "none.npy", decays(5)[:0])
    solve_file(Nested(), tmp_path / "data.npy", tmp_path / "out.npz", display)
    solve_file(Nested(), tmp_path / "none.npy", tmp_path / "empty.npz", display)
    with np.load(tmp_path / "out.npz") as found, np.load(tmp_path / "empty.npz") as empty:
        assert found["x/0"].shape == (5,) and found["x/1/cost"].shape == (5, 1) and found["cost"].shape == (5,)
        assert set(empty.files) == set(found.files) >= {"dual", "success"} and len(empty["x/1/cost"]) == 0


def test_a_run_that_was_killed_after_it_had_written_is_finished(tmp_path, display, monkeypatch):
    data, out = tmp_path / "data.npy", tmp_path / "out.npz"
    np.save(data, decays(20))
    monkeypatch.setattr(solving, "BLOCK", 16)
    unlink, removed = Path.unlink, []

    def die(path, missing_ok=False):
        if path.parent.name == ".out.npz.parts":
            if removed:
                raise KeyboardInterrupt
            removed.append(path)
        unlink(path, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", die)
        solve_file(Decay(), data, out, display)
    assert out.exists() and len(list((tmp_path / ".out.npz.parts").iterdir())) == 3  # a part, whose it is, a lock
    written = out.read_bytes()
    with pytest.raises(FileExistsError, match="overwritten"):
        solve_file(Decay(), data, out, display)
    with pytest.raises(ValueError, match="differs in solver"):
        solve_file(Decay(), data, out, display, resume=True, tol=1e-3)
    done = solve_file(Decay(), data, out, display, resume=True)
    assert done["solved"] == done["rows"] == 20 and out.read_bytes() == written
    assert not (tmp_path / ".out.npz.parts").exists()


class Weighed(Decay):
    """Data with a weight for each point: an instance of two arrays."""

    def sample(self, key):
        return {"data": super().sample(key), "weight": jnp.ones(9)}

    def residuals(self, params, instance):
        return instance["weight"] * super().residuals(params, instance["data"])


def test_instances_of_several_arrays_come_from_an_npz(tmp_path, display, monkeypatch):
    monkeypatch.setattr(solving, "BLOCK", 16)
    data, weight = decays(20), np.ones((20, 9))
    weight[:, 0], data[:, 0] = 0.0, 1e3  # points that are masked
    np.savez(tmp_path / "data.npz", data=data, weight=weight)
    solve_file(Weighed(), tmp_path / "data.npz", tmp_path / "out.npz", display)
    with np.load(tmp_path / "out.npz") as found:
        wanted = solve(Weighed(), {"weight": weight, "data": data}, batch=16)
        np.testing.assert_allclose(found["cost"], wanted.cost, rtol=1e-9)
        assert found["cost"].max() < 1


@pytest.mark.parametrize(
    ("family", "arrays", "says"),
    [
        (Weighed(), {"data": np.ones((4, 9))}, "tree of arrays data, but .* tree of arrays data, weight.*an npz file"),
        (Weighed(), np.ones((4, 9)), "one array, but .* an npz file with these names"),
        (Weighed(), {"data": np.ones((4, 9)), "weight": np.ones((3, 9))}, "their first axes differ"),
        (Decay(), {"data": np.ones((4, 9))}, "is one array, .* Give an npy file"),
        (Decay(), "1,2", "neither an npy nor an npz file of numbers, so nothing"),  # and not of pickles
        (Decay(), np.ones((4, 9), complex), "dtype complex128, and instances are real numbers"),
        (Weighed(), {"data": np.full((4, 9), "a"), "weight": np.ones((4, 9))}, "data of dtype <U1"),
        (Decay(), "", "neither an npy nor an npz file"),
        (Decay(), "PK\3\4 half of a file", "neither an npy nor an npz file"),
        (Weighed(), {"data": np.array([{}])}, "neither an npy nor an npz file"),
    ],
)
def test_files_of_other_parts_are_refused(family, arrays, says, tmp_path, display):
    file = tmp_path / "data"
    if isinstance(arrays, str):
        file.write_text(arrays)
    else:
        with file.open("wb") as opened:
            np.savez(opened, **arrays) if isinstance(arrays, dict) else np.save(opened, arrays)
    with pytest.raises(ValueError, match=says):
        solve_file(family, file, tmp_path / "out.npz", display)


def test_settings_on_the_command_line_are_those_of_the_classical_method(learned, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(solving, "solve", lambda family, block, **settings: given.update(settings) or found)
    found = solve(Decay(), decays(20), batch=16)
    np.save(tmp_path / "data.npy", decays(20))
    command = ["solve", f"{FILE}:Decay", str(tmp_path / "data.npy"), "-o", str(tmp_path / "out.npz")]
    main([*command, "--tol", "1e-3", "--starts", "2", "--dtype", "float32", "--batch", "32"])
    assert given["method"].tol == 1e-3 and type(given["method"]) is LevenbergMarquardt
    assert (given["starts"], given["dtype"], given["batch"]) == (2, "float32", 32)
    for choice in ({"tol": 1e-3}, {"starts": 2}, {"dtype": "float32"}):
        with pytest.raises(ValueError, match=f"{next(iter(choice))} cannot be chosen for a learned solver"):
            solve_file(learned, tmp_path / "data.npy", tmp_path / "other.npz", Display(Console(quiet=True)), **choice)


def test_learning_is_not_begun_where_it_could_not_be_kept(tmp_path, display):
    with pytest.raises(FileExistsError, match="overwritten"):
        learn_to_file(f"{FILE}:Decay", "60s", 1e-3, tmp_path, display)
    with pytest.raises(FileNotFoundError, match="Make it first"):
        learn_to_file(f"{FILE}:Decay", "60s", 1e-3, tmp_path / "none" / "fit.safetensors", display)


def test_what_was_learned_is_kept_beside_what_appeared_meanwhile(learned, tmp_path, display, monkeypatch):
    def learn(*arguments, **settings):
        (tmp_path / "fit.safetensors").write_bytes(b"another's")
        return learned

    monkeypatch.setattr(solving, "learn", learn)
    with pytest.raises(FileExistsError, match=r"has appeared meanwhile, so what was learned is in .*fit-[0-9a-f]{8}"):
        learn_to_file(f"{FILE}:Decay", "60s", 1e-3, tmp_path / "fit.safetensors", display)
    assert (tmp_path / "fit.safetensors").read_bytes() == b"another's"
    (kept,) = tmp_path.glob("fit-*.safetensors")
    assert load_solver(kept).card == learned.card


def test_the_command_solves_and_reports(learned, tmp_path, capsys):
    bygrad.save_solver(learned, tmp_path / "fit.safetensors", family=f"{FILE}:Decay")
    assert bygrad.load_solver(tmp_path / "fit.safetensors").digest == learned.digest
    np.save(tmp_path / "data.npy", decays(20))
    main(["solve", str(tmp_path / "fit.safetensors"), str(tmp_path / "data.npy"), "-o", str(tmp_path / "out.npz")])
    assert "20 of 20 solved" in capsys.readouterr().out
    main(["report", str(tmp_path / "fit.safetensors")])
    assert "held-out instances" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "dtype"), [([], "float64"), (["--dtype", "float32"], "float32")])
def test_the_command_learns_in_the_precision_asked_for(learned, tmp_path, monkeypatch, options, dtype):
    monkeypatch.setattr(solving, "learn", lambda family, *, dtype, **_: dataclasses.replace(learned, dtype=dtype))
    main(["learn", f"{FILE}:Decay", "-o", str(tmp_path / "fit.safetensors"), *options])
    assert load_solver(tmp_path / "fit.safetensors").dtype == dtype
