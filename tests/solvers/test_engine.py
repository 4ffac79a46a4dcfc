"""Whatever the sizes of working sets and queues, every instance ends as it does alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bygrad._core import programs
from bygrad.solvers import ADMM, LBFGS, LevenbergMarquardt, Solution, Status, engine, solve

from .families import Decay, decays
from .test_programs import Plan

METHODS = {"least squares": LevenbergMarquardt(), "smooth": LBFGS()}


class Contrary(Decay):
    """Limits cross where the first sample is negative."""

    def bounds(self, instance):
        low = {"height": jnp.zeros(()), "rate": jnp.zeros((1,))}
        high = {"height": jnp.where(instance[0] < 0, -1.0, 9.0), "rate": jnp.full((1,), 9.0)}
        return low, high


@pytest.fixture(scope="module")
def mixed() -> np.ndarray:
    """Instances of which some are NaN and some cannot be solved, side by side."""
    data = decays(150)
    data[[3, 64, 149]] = np.nan
    data[20:45, 0] = -1.0
    return data


@pytest.fixture(scope="module")
def at_once(mixed) -> dict:
    """All of them in one working set, from which none waits."""
    return {name: solve(Contrary(), mixed, method=method, batch=256) for name, method in METHODS.items()}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_who_waits_in_a_queue_ends_as_who_does_not(name, batch, mixed, at_once):
    told = []
    found = solve(
        Contrary(), mixed, method=METHODS[name], batch=batch, watch=lambda _, done, rows: told.append((done, rows))
    )
    expected = at_once[name]
    assert (expected.status[20:45] == Status.CONTRADICTION).all() and (expected.status[:3] > 0).all()
    np.testing.assert_array_equal(found.status, expected.status)
    np.testing.assert_array_equal(found.nit, expected.nit)
    np.testing.assert_allclose(found.cost, expected.cost, rtol=1e-9)
    np.testing.assert_allclose(found.rows, expected.rows, rtol=1e-6, atol=1e-9)
    assert told == sorted(told) and told[-1] == (150, 150)
    assert np.isfinite(found.finished).all()


@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 150), most=st.sampled_from((1, 3, 64)), room=st.sampled_from((1, 2**24)))
def test_neither_short_programs_nor_short_queues_lose_an_instance(rows, most, room, mixed, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "FIRST", most)
        patch.setattr(engine, "SECONDS", 0.0)  # one step for each program from the second on
        patch.setattr(engine, "ROOM", room)
        found = solve(Contrary(), mixed[:rows], batch=16)
    np.testing.assert_array_equal(found.status, at_once["least squares"].status[:rows])
    np.testing.assert_array_equal(found.nit, at_once["least squares"].nit[:rows])


@pytest.mark.parametrize("name", METHODS)
def test_where_a_row_is_solved_does_not_hang_on_the_clock(name, monkeypatch):
    """How many steps a program takes hangs on the clock, and where a queue ends on room. Neither may change the place
    of an instance, as compilers treat the rows of a working set differently in the last bit, and each of its sizes."""
    monkeypatch.setattr(engine, "usable_cores", lambda: 1)  # several would count their rows by themselves
    monkeypatch.setattr(programs, "kept", programs._Kept())  # what compiles here tells where rows are
    data, advance, noted, ran = decays(700), engine._advance, engine._noted, []
    places: set[tuple[int, int, int]] = set()

    def seen(which) -> None:
        places.update((int(which[place]), len(which), int(place)) for place in np.flatnonzero(np.asarray(which) >= 0))

    def watched(work, *given):
        jax.debug.callback(seen, work.which)
        return noted(work, *given)

    def counted(*given):
        ran[-1] += 1
        return advance(*given)

    monkeypatch.setattr(engine, "_noted", watched)
    monkeypatch.setattr(engine, "_advance", counted)

    def found(first: int, seconds: float, queue: int) -> tuple[set[tuple[int, int, int]], bytes]:
        places.clear()
        ran.append(0)
        with monkeypatch.context() as patch:
            for setting, value in {"FIRST": first, "SECONDS": seconds, "QUEUE": queue}.items():
                patch.setattr(engine, setting, value)
            solution = solve(Decay(), data, method=METHODS[name], batch=64)
        jax.effects_barrier()
        return set(places), b"".join(it.tobytes() for it in (solution.rows, solution.cost, solution.nit, solution.nfev))

    expected = found(engine.MOST, 1e9, 8)
    assert len({row for row, _, _ in expected[0]}) == len(data) and len({size for _, size, _ in expected[0]}) == 2
    for settings_ in ((1, 0.0, 8), (5, 1e9, 1), (2, 0.0, 3)):
        assert found(*settings_) == expected
    assert min(ran[1:]) > ran[0]  # they were interrupted


@pytest.mark.parametrize("name", METHODS)
def test_cores_share_a_batch(name, mixed, monkeypatch):
    """Each has a working set of its own, and none compiles what another has."""
    told, made, batch = [], [], 16
    monkeypatch.setattr(programs, "kept", programs._Kept())
    monkeypatch.setattr(programs, "_compile", lambda *given, it=programs._compile: (made.append(1), it(*given))[1])

    def found(cores: int) -> Solution:
        monkeypatch.setattr(engine, "usable_cores", lambda: cores)
        watch = lambda _, done, rows: told.append((done, rows))  # noqa: E731
        return solve(Contrary(), mixed, method=METHODS[name], batch=batch, watch=watch)

    several, compiled = found(4), len(made)
    assert told[-1] == (150, 150) and max(told) == (150, 150)
    alone = found(1)
    assert len(made) == compiled > 0
    np.testing.assert_array_equal(several.status, alone.status)
    np.testing.assert_array_equal(several.nit, alone.nit)
    np.testing.assert_allclose(several.cost, alone.cost, rtol=1e-9)
    np.testing.assert_allclose(several.rows, alone.rows, rtol=1e-6, atol=1e-9)


def test_a_core_gets_a_working_set_at_least_and_an_accelerator_is_not_divided(monkeypatch):
    monkeypatch.setattr(engine, "usable_cores", lambda: 4)
    assert [engine.cores_for(rows, 64) for rows in (1, 127, 128, 191, 192, 10_000)] == [1, 1, 2, 2, 3, 4]
    with jax.default_device(jax.devices()[0]):
        assert engine.cores_for(10_000, 64) == 4
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert engine.cores_for(10_000, 64) == 1


def test_many_quick_programs_overflow_no_count(monkeypatch):
    monkeypatch.setattr(engine, "SECONDS", 1e9)  # each may take twice as many steps as the one before
    assert solve(Decay(), decays(600), batch=1).success.all()


def test_multipliers_come_back_with_their_instance():
    linear = np.random.default_rng(0).normal(size=(70, 4))
    method = ADMM(tol=1e-5, max_steps=20_000)
    few, many = (solve(Plan(), linear, method=method, batch=batch) for batch in (16, 128))
    assert many.success.all()
    np.testing.assert_array_equal(few.nit, many.nit)
    np.testing.assert_allclose(few.dual, many.dual, rtol=1e-6, atol=1e-8)
