"""Oral doses against SciPy's integration of their equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.problems import OralDose
from bygrad.problems.pharmacokinetics import SPREAD, TIMES


@pytest.mark.parametrize(("substeps", "error"), [(4, 3e-3), (16, 5e-5)])
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
