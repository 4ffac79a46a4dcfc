"""Oral doses against SciPy's integration of their equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.problems import OralDose
from bygrad.problems.pharmacokinetics import SPREAD, TIMES, wright_omega


@pytest.mark.parametrize(("substeps", "error"), [pytest.param(6, 5e-3, marks=pytest.mark.slow), (48, 1e-4)])
def test_concentrations_solve_the_equation(substeps, error):
    integrate = pytest.importorskip("scipy.integrate")
    family, spread = OralDose(substeps=substeps), np.array([0.6, 0.4, 0.5, 0.7])
    for patient in np.random.default_rng(0).standard_normal((20, 4)):
        params = np.log([1.2, 20.0, 1.0, 1.5]) + spread * patient
        absorption, volume, capacity, half = np.exp(params)

        def rate(t, y, absorption=absorption, volume=volume, capacity=capacity, half=half):
            gut, blood = y
            return -absorption * gut, absorption * gut / volume - capacity * blood / (half + blood)

        exact = integrate.solve_ivp(rate, (0, 24), (100.0, 0.0), t_eval=TIMES, rtol=1e-8, atol=1e-10).y[1]
        with jax.enable_x64(True):
            found = family.log_concentrations(jnp.asarray(params))
            residuals = family.residuals(jnp.asarray(params), found + 0.2)
        np.testing.assert_allclose(np.exp(found) - 1e-4, exact, rtol=0, atol=error * exact.max())
        np.testing.assert_allclose(residuals, -2.0)  # in standard deviations of 0.1


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 1e-6), (np.float64, 1e-12)])
def test_the_wright_omega_function_solves_its_equation(dtype, error):
    with jax.enable_x64(True):
        w = np.exp(np.linspace(-79.0, 9.0, 5001))  # from the answer, where nothing is lost to cancellation
        z = jnp.asarray(w + np.log(w), dtype)
        found, slope = map(np.asarray, jax.jvp(wright_omega, (z,), (jnp.ones_like(z),)))
    # The question was rounded, which changes the answer by so much.
    rounding = np.abs(np.asarray(z, float) - (w + np.log(w))) * w / (1 + w)
    assert (np.abs(found - w) <= error * w + 2 * rounding).all()
    np.testing.assert_allclose(slope, w / (1 + w), rtol=4e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.slow
def test_errors_are_as_small_as_the_family_says():
    with jax.enable_x64(True):
        draws = jax.random.normal(jax.random.key(0), (2000, 4), np.float64)
        patients = OralDose().center() + jnp.array(SPREAD) * draws
        found, exact = (jax.vmap(OralDose(substeps=n).log_concentrations)(patients) for n in (6, 192))
    assert np.mean(np.abs(found - exact)) < 3.5e-3
    highest = np.max(np.exp(exact), axis=1, keepdims=True)
    assert np.quantile(np.max(np.abs(np.exp(found) - np.exp(exact)) / highest, axis=1), 0.99) < 3.5e-3


@pytest.mark.parametrize("patient", [(0.0, 0.0, 0.0, 0.0), (2.0, -2.0, 3.0, -3.0), (-3.0, 2.0, 3.0, 2.0)])
def test_derivatives_are_those_of_the_concentrations(patient):
    family = OralDose()
    with jax.enable_x64(True):
        params = jnp.asarray(family.center() + jnp.array(SPREAD) * jnp.array(patient))
        found = jax.jacfwd(family.log_concentrations)(params)
        for column, way in enumerate(1e-6 * np.eye(4)):
            ahead, behind = family.log_concentrations(params + way), family.log_concentrations(params - way)
            np.testing.assert_allclose(found[:, column], (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-8)


def test_nothing_is_left_long_after_all_is_eliminated_and_derivatives_know_it():
    family, params = OralDose(), jnp.asarray([3.0, 3.0, 8.0, -2.0], jnp.float32)
    found, slope = family.log_concentrations(params), jax.jacfwd(family.log_concentrations)(params)
    assert np.isfinite(found).all() and np.isfinite(slope).all()
    np.testing.assert_allclose(found[-1], np.log(1e-4), rtol=1e-6)


@pytest.mark.slow
def test_a_stripped_curve_is_nearer_than_the_middle_patient():
    middle, stripped = OralDose(), OralDose(start="stripping")
    patients = middle.center() + jnp.array(SPREAD) * jax.random.normal(jax.random.key(0), (256, 4))
    noise = 0.1 * jax.random.normal(jax.random.key(1), (256, 12))
    data = jax.vmap(middle.log_concentrations)(patients) + noise
    found = [jax.vmap(lambda one, it=it: it.init(one, jax.random.key(0)))(data) for it in (middle, stripped)]
    apart = [np.median(np.abs(it - patients) / np.array(SPREAD), axis=0) for it in found]
    assert (apart[1][:3] < np.array([0.7, 0.5, 0.85]) * apart[0][:3]).all()  # absorption, volume, capacity
    np.testing.assert_allclose(found[1][:, 3], np.log(1.5), rtol=1e-6)
    costs = [np.median(jax.vmap(lambda x, one: middle.loss(x, one, None))(it, data)) for it in found]
    assert costs[1] < 0.1 * costs[0]


def test_a_curve_that_only_rises_or_falls_is_stripped_too():
    family = OralDose(start="stripping")
    for curve in (np.linspace(-2, 1, 12), np.linspace(1, -9, 12), np.zeros(12)):
        instance = jnp.asarray(curve, jnp.float32)
        start, (low, high) = family.init(instance, jax.random.key(0)), family.bounds(instance)
        assert ((low < start) & (start < high)).all()
