"""Settings that no problem has are refused at once, whatever the family."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from bygrad._core.sizes import all_count, all_positive, all_sizes
from bygrad.problems import (
    DampedOscillation,
    EconomicDispatch,
    LennardJones,
    MeanVariance,
    Mixture,
    OralDose,
    Quadratic,
    QuadrotorControl,
    SparseCoding,
)


def test_what_is_no_number_is_neither_a_size_nor_positive():
    assert all_count(1, np.int64(3)) and not any(map(all_count, (0, 2.0, True, float("nan"))))
    assert all_count(0, 5, least=0) and not all_count(-1, least=0)
    for bad in (-1.0, float("nan"), float("inf")):
        assert not all_positive(1.0, bad) and not all_sizes(bad, 1.0)
    assert all_sizes(0.0) and not all_positive(0.0)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda bad: Quadratic(scale=bad), "scale is"),
        (lambda bad: DampedOscillation(noise=bad), "and noise"),
        (lambda bad: OralDose(noise=bad), "noise is"),
        (lambda bad: LennardJones(spread=bad), "and spread"),
        (lambda bad: QuadrotorControl.build(horizon=1, spread=bad), "spread is"),
        (lambda bad: SparseCoding(jnp.eye(3), jnp.eye(3), bad), "strength is"),
        (lambda bad: Mixture((Quadratic(),), (bad,)), "The weights are"),
    ],
)
def test_deviations_and_weights_are_numbers_that_are_not_negative(build, says, bad):
    with pytest.raises(ValueError, match=says):
        build(bad)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: QuadrotorControl.build(horizon=0), "horizon is 0"),
        (lambda: MeanVariance.simulated(days=1), "days is 1"),
        (lambda: SparseCoding.from_images(np.eye(9)[None], side=0), "side=0"),
    ],
)
def test_sizes_count_something(build, says):
    with pytest.raises(ValueError, match=says):
        build()


def test_a_unit_of_overload_has_a_price():
    grid = EconomicDispatch.embedded()
    with pytest.raises(ValueError, match="price is 0"):
        EconomicDispatch(**{name: value for name, value in vars(grid).items() if name != "price"}, price=0.0)


MISFITS = """
import jax.numpy as jnp
from bygrad.problems import HeldOut, Mixture, Quadratic, RandomScale, RandomStart, SparseCoding

for build in (
    lambda: Mixture((Quadratic(), Quadratic)),
    *(lambda of=of: of(Quadratic) for of in (HeldOut, RandomScale, RandomStart)),
    lambda: SparseCoding(jnp.eye(3), jnp.eye(4)),
    lambda: Quadratic(2.5),
):
    try:
        build()
    except (TypeError, ValueError) as error:
        print(str(error).partition(",")[0])
"""


@pytest.mark.slow
def test_misfits_are_refused():
    """What no type checker has seen: here, one would come before the check."""
    done = subprocess.run([sys.executable, "-c", MISFITS], capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines() == [
        *["You gave the class Quadratic"] * 4,
        "The dictionary has shape [3",
        "dimension is 2.5",
    ]
