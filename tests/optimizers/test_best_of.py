"""The better of two runs, by the count of evaluations of each."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.optimizers import SGD, AdamWCosine, BestOf, Controller, Optimizer, declare

STEPS = 23


def rosenbrock(params: dict[str, jax.Array]) -> jax.Array:
    return (1 - params["x"]) ** 2 + 5 * jnp.sum((params["y"] - params["x"] ** 2) ** 2)


@eqx.filter_jit
def run(optimizer: Optimizer, steps: int = STEPS) -> tuple[jax.Array, Any, Any]:
    params = {"x": jnp.asarray(-1.0), "y": jnp.asarray([1.0, 0.5])}

    def body(carry: Any, _: None) -> tuple[Any, jax.Array]:
        params, state = carry
        value, grads = jax.value_and_grad(rosenbrock)(params)
        updates, state = optimizer.update(grads, state, params, value=value)
        return (jax.tree.map(jnp.add, params, updates), state), value

    (params, state), values = jax.lax.scan(body, (params, optimizer.init(params)), None, length=steps)
    return values, params, state


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("learned", [-0.01, jnp.nan, 1e30, 0.03, 0.0], ids=str)
def test_it_is_never_worse_than_either_alone_for_its_share_of_the_evaluations(share, learned):
    slow = SGD(0.004)
    both = BestOf(SGD(learned), slow, share=share, horizon=STEPS)
    _, params, state = run(both)
    mine = int(share * STEPS)
    bounds = [jnp.min(run(slow)[0][: STEPS - mine])]
    if jnp.isfinite(learned) and learned < 1:
        bounds.append(jnp.min(run(SGD(learned))[0][:mine]))
    assert float(state.best_value) == pytest.approx(float(min(bounds)), rel=1e-4)
    assert float(rosenbrock(params)) == pytest.approx(float(state.best_value), rel=1e-4)
    assert bool(state.best_is_learned) == (learned == 0.03)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5])
def test_each_of_the_two_is_told_how_many_calls_it_gets(share):
    both = BestOf(Controller(jax.random.key(0)), AdamWCosine(), share=share)
    told = declare(both, STEPS)
    assert jax.tree.structure(told) == jax.tree.structure(both)  # one compilation for all horizons, and for none
    _, params, state = run(told)
    horizons = [int(it.horizon) for it in (told.learned, told.fallback, state.learned.state)]
    evaluations = [int(it.evaluations) for it in (state.learned, state.fallback, state.learned)]
    assert horizons == [max(1, calls) for calls in evaluations] and sum(evaluations[:2]) == STEPS
    assert float(rosenbrock(params)) == pytest.approx(float(state.best_value), rel=1e-4)
    assert eqx.tree_equal(BestOf(both.learned, both.fallback, share=share, horizon=STEPS), told)


def test_in_float64_losses_are_compared_in_float64():
    """With an offset of a million, float32 tells losses apart down to 0.06 alone."""
    with jax.enable_x64(True):
        both, point = BestOf(SGD(1e-3), SGD(0.1), horizon=40), jnp.ones(2)
        state, update = both.init(point), eqx.filter_jit(both.update)
        for _ in range(40):
            updates, state = update(2 * point, state, point, value=1e6 + jnp.sum(point**2))
            point = point + updates
        np.testing.assert_allclose(point, 0.8**19, rtol=1e-6)


def test_it_needs_losses_and_both_runs():
    both, params = BestOf(SGD(1.0)), jnp.ones(2)
    with pytest.raises(ValueError, match=r"needs params and value.*use Guard"):
        both.update(params, both.init(params), params)
    with pytest.raises(ValueError, match=r"share=1\.0.*would never run"):
        BestOf(SGD(1.0), share=1.0)
    np.testing.assert_array_equal(both.best(both.init(params)), params)
