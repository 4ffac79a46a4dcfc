"""Clusters against NumPy, and against the minima of the literature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.problems import LennardJones
from bygrad.problems.lennard_jones import CLOSEST, GLOBAL_MINIMA
from bygrad.solvers import LBFGS, solve


def icosahedron() -> np.ndarray:
    """Twelve corners around a center, `[13, 3]`, near the minimum's size."""
    golden = (1 + 5**0.5) / 2
    corners = [(0, a, b) for a in (-1, 1) for b in (-golden, golden)]
    corners = [np.roll(corner, shift) for corner in corners for shift in range(3)]
    return np.array([(0, 0, 0), *corners]) * 1.1 / np.hypot(1, golden)


def energy(positions: np.ndarray) -> float:
    total = 0.0
    for i in range(len(positions)):
        for j in range(i):
            r = np.linalg.norm(positions[i] - positions[j])
            total += 4 * (r**-12 - r**-6)
    return total


def test_energy_and_forces():
    family, rng = LennardJones(atoms=5), np.random.default_rng(0)
    positions = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]) + 0.05 * rng.normal(size=(5, 3))
    with jax.enable_x64(True):
        value, grads = jax.value_and_grad(family.loss)(jnp.asarray(positions), jnp.asarray(positions), None)
    assert value == pytest.approx(energy(positions), rel=1e-12)
    step = np.zeros((5, 3))
    step[2, 1] = 1e-6
    slope = (energy(positions + step) - energy(positions - step)) / 2e-6
    assert grads[2, 1] == pytest.approx(slope, rel=1e-6)
    np.testing.assert_allclose(np.asarray(grads).sum(axis=0), 0.0, atol=1e-10)  # no force on the whole


def test_the_cap_is_smooth_finite_and_below_all_distances():
    family = LennardJones(atoms=2)
    pair = lambda r: family.loss(jnp.array([[0.0, 0, 0], [r, 0, 0]]), jnp.zeros((2, 3)), None)  # noqa: E731
    inside, outside = (jax.value_and_grad(pair)(CLOSEST * (1 + sign * 1e-5)) for sign in (-1, 1))
    np.testing.assert_allclose(inside, outside, rtol=1e-3)
    value, slope = jax.value_and_grad(pair)(0.0)
    assert np.isfinite(value) and np.isfinite(slope) and value > pair(CLOSEST)


@pytest.mark.parametrize("atoms", [3, 6])
def test_small_clusters_find_their_minimum(atoms):
    family = LennardJones(atoms=atoms)
    starts = np.asarray(jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 24)), float)
    found = solve(family, starts, method=LBFGS(gain=0.0))
    assert found.cost.min() == pytest.approx(GLOBAL_MINIMA[atoms], abs=2e-6)
    best = found.x[np.argmin(found.cost)]
    assert np.min(np.linalg.norm(best[:, None] - best[None], axis=-1) + 9 * np.eye(atoms)) > 1.05 > CLOSEST


def test_thirteen_atoms_relax_to_the_icosahedron():
    start = icosahedron()
    found = solve(LennardJones(), start[None] + 0.03 * np.random.default_rng(1).normal(size=(1, 13, 3)))
    assert found.cost[0] == pytest.approx(GLOBAL_MINIMA[13], abs=1e-5)
    assert energy(found.x[0]) == pytest.approx(found.cost[0], rel=1e-10)


def test_the_energy_is_that_of_the_atoms_that_there_are():
    """And not of the first few, or of the last one many times."""
    family, positions = LennardJones(atoms=3), jnp.asarray(icosahedron(), jnp.float32)
    assert family.loss(positions, positions, None) == pytest.approx(energy(icosahedron()), rel=1e-5)
    assert family.restart(positions, jax.random.key(0)).shape == (13, 3)


def test_starts_fill_their_ball():
    family = LennardJones(spread=0.5)
    starts = np.asarray(jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 500)))
    radii = np.linalg.norm(starts, axis=-1) / (0.5 * np.cbrt(13))
    assert radii.max() <= 1 + 1e-5
    assert np.mean(radii**3) == pytest.approx(0.5, abs=4 * 12**-0.5 / radii.size**0.5)


@pytest.mark.parametrize("fields", [{"atoms": 1}, {"spread": 0.0}, {"spread": float("nan")}], ids=str)
def test_what_does_not_exist_is_refused(fields):
    with pytest.raises(ValueError, match="two atoms or more"):
        LennardJones(**fields)
