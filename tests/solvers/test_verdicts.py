"""What a status and a certificate claim, where a wrong claim is easily made."""

import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.problems import EconomicDispatch, LeastSquares, QuadraticProgram
from bygrad.solvers import Status, solve
from bygrad.solvers.admm import relative_gap
from bygrad.solvers.solve import best_start


class Rows(QuadraticProgram):
    """Two numbers, rows x, x and y: equations, or inequalities; an instance is their limits."""

    equal: bool = True

    def sample(self, key):
        return {"low": jnp.zeros(3), "high": jnp.ones(3)}

    @property
    def matrices(self):
        return jnp.eye(2), jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])

    @property
    def equations(self):
        return jnp.full(3, self.equal)

    def vectors(self, instance):
        return jnp.array([-1.0, 0.0]), instance["low"], instance["high"]


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ([1.0, 2.0, 1e5], [1.0, 2.0, 1e5]),  # beside an equation in larger units
        ([1.0, 1.0, 1e5], [1.0, 2.0, 1e5]),  # no equation, beside one in larger units
    ],
)
def test_equations_that_contradict_each_other_are_never_certified(low, high):
    instance = {"low": np.array([low]), "high": np.array([high])}
    assert solve(Rows(), instance).status[0] == Status.CONTRADICTION
    agreed = {name: np.array([[limits[1], *limits[1:]]]) for name, limits in (("low", high), ("high", high))}
    assert solve(Rows(), agreed).success[0]


def test_limits_that_no_point_can_reach_contradict():
    low = np.array([[np.inf, 0.0, 0.0], [-np.inf, 0.0, 0.0], [-np.inf, 0.0, 0.0]])
    high = np.array([[np.inf, 1.0, 1.0], [-np.inf, 1.0, 1.0], [np.inf, 1.0, 1.0]])
    found = solve(Rows(equal=False), {"low": low, "high": high})
    assert found.status.tolist() == [Status.CONTRADICTION, Status.CONTRADICTION, Status.CERTIFIED]


def test_a_bound_above_the_cost_proves_nothing():
    with np.errstate(all="ignore"):
        cost = jnp.array([1.0, 1.0, 1.0, -1.0])
        bound = jnp.array([0.99, 1.0 + 1e-6, 1.5, 9.0])
        gap = np.asarray([relative_gap(one, other) for one, other in zip(cost, bound, strict=True)])
    np.testing.assert_allclose(gap[0], 1 / 99, rtol=1e-4)
    assert gap[1:].tolist() == [0.0, np.inf, np.inf]  # within rounding of float32, and far beyond it


def test_of_two_points_that_are_proven_the_cheaper_one_is_kept():
    rows = {"cost": np.array([1.008, 1.001]), "certificate": np.array([0.008, 0.009]), "status": np.array([1, 1])}
    assert best_start(EconomicDispatch.embedded(), rows, 2).tolist() == [1]
    assert best_start(Rows(), rows, 2).tolist() == [0]  # may violate constraints


def test_demand_next_to_capacity_is_served_in_float64():
    family = EconomicDispatch.embedded(margin=1.0)
    demand = np.asarray(family.demand, float)
    capacity = np.asarray(family.capacity, float).sum()
    most = demand / demand.sum() * capacity
    assert solve(family, (most * (1 - 1e-9))[None]).certificate[0] < np.inf
    assert solve(family, (most * (1 + 1e-3))[None]).status[0] == Status.CONTRADICTION


class Constant(LeastSquares):
    def sample(self, key):
        return jnp.ones(6)

    def init(self, instance, key):
        return jnp.zeros(1)

    def residuals(self, params, instance):
        return params - instance


def test_masked_entries_are_not_taken_for_data():
    data = np.ma.masked_equal(np.array([[1.0, 1, 1, 1, 1, -999]]), -999)
    with pytest.raises(TypeError, match="masked array with masked entries"):
        solve(Constant(), data)
    np.testing.assert_allclose(solve(Constant(), np.ma.masked_array(np.ones((1, 6)))).x, 1)


def test_a_solution_is_told_in_a_line():
    low = np.array([[np.inf, 0.0, 0.0], [-np.inf, 0.0, 0.0], [-np.inf, 0.0, 0.0]])
    high = np.array([[np.inf, 1.0, 1.0], [-np.inf, 1.0, 1.0], [np.inf, 1.0, 1.0]])
    found = solve(Rows(equal=False), {"low": low, "high": high})
    assert repr(found) == "Solution(3 rows: 1 solved, 2 with status -3; x [3, 2])"


def test_a_batch_of_none_has_the_shapes_of_any_other():
    none = {name: np.zeros((0, 3)) for name in ("low", "high")}
    assert solve(Rows(equal=False), none).dual.shape == (0, 3)
