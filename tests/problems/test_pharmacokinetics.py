"""Oral doses against SciPy's integration of their equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.problems import OralDose
from bygrad.problems.pharmacokinetics import TIMES


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
