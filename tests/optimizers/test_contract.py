"""What every optimizer promises, learned or hand-designed."""

import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.optimizers import BASELINES, LEARNED, SGD, Adam, Coordinatewise, Guard, Optimizer

WRAPPERS = {"Guard": lambda: Guard(SGD(), Adam())}
KINDS = LEARNED | BASELINES | WRAPPERS


@pytest.fixture(scope="module", params=KINDS)
def optimizer(request: pytest.FixtureRequest) -> Optimizer:
    kind = KINDS[request.param]
    return kind(jax.random.key(0)) if kind in LEARNED.values() else kind()


def tree(*dtypes: jnp.dtype, seed: int = 0) -> dict[str, object]:
    """Leaves of many ranks, some of them empty, in the given dtypes by turns."""
    shapes = {
        "scalar": (),
        "one": (1,),
        "vector": (5,),
        "empty": (0,),
        "hollow": (2, 0, 3),
        "rowless": (0, 3),
        "deep": (2, 1, 3, 2),
    }
    draw = np.random.default_rng(seed).standard_normal
    leaves = {name: jnp.asarray(draw(shape), dtypes[i % len(dtypes)]) for i, (name, shape) in enumerate(shapes.items())}
    return {"left": {name: leaves.pop(name) for name in ("scalar", "deep")}, "right": [leaves, ()]}


@eqx.filter_jit
def steps(optimizer: Optimizer, trees: list[object], params: object) -> tuple[list[object], object]:
    state = optimizer.init(params)
    updates = []
    for grads in trees:
        update, state = optimizer.update(grads, state, params)
        updates.append(update)
    return updates, state


def test_updates_have_the_dtype_of_the_params_and_the_state_is_float32(optimizer):
    dtypes = jnp.bfloat16, jnp.float32, jnp.float16
    params = tree(*dtypes)
    updates, state = steps(optimizer, [tree(*dtypes, seed=seed) for seed in (1, 2)], params)
    for update in updates:
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), update) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), params
        )
        assert all(np.all(np.isfinite(np.asarray(leaf, np.float32))) for leaf in jax.tree.leaves(update))
    floating = [leaf.dtype for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert all(dtype == jnp.float32 for dtype in floating)
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    for begun in (optimizer.init(params), jax.eval_shape(optimizer.init, params)):
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), begun) == described


@pytest.mark.slow
def test_meta_parameters_of_float64_leave_the_dtypes_of_the_state(optimizer):
    with jax.enable_x64(True):
        theta, rest = eqx.partition(optimizer, eqx.is_inexact_array)
        wide = eqx.combine(jax.tree.map(lambda leaf: leaf.astype(jnp.float64), theta), rest)
        params = {"matrix": jnp.ones((3, 2), jnp.float32), "vector": jnp.ones(2, jnp.bfloat16)}
        given = dict(value=jnp.ones((), jnp.float32), key=jax.random.key(0))
        before = jax.eval_shape(wide.init, params)
        updates, after = jax.eval_shape(lambda state: wide.update(params, state, params, **given), before)
        described = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), it) for it in (before, after, params, updates)]
    assert described[0] == described[1] and described[2] == described[3]


def test_a_tree_without_leaves_is_no_mistake(optimizer):
    """Optax gives one to a part of a partition that owns nothing."""
    updates, state = steps(optimizer, [{"a": ()}, {"a": ()}], {"a": ()})
    assert updates == [{"a": ()}] * 2
    assert jax.tree.structure(state) == jax.tree.structure(optimizer.init({"a": ()}))


def test_what_leaves_are_called_and_how_they_are_cut_makes_no_difference(optimizer):
    if not optimizer.per_coordinate:
        pytest.skip("does not claim it: the updates of a coordinate depend on others")
    params, trees = tree(jnp.float32), [tree(jnp.float32, seed=seed) for seed in (1, 2, 3)]
    whole, _ = steps(optimizer, trees, params)
    concatenate = lambda it: jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(it)])  # noqa: E731
    joined, _ = steps(optimizer, [concatenate(grads) for grads in trees], concatenate(params))
    # Where a rule takes its step as a difference of two points, the step is rounded as the points are.
    rounding = 2 * np.finfo(np.float32).eps * max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(params) if leaf.size)
    for update, vector in zip(whole, joined, strict=True):
        np.testing.assert_allclose(concatenate(update), vector, rtol=1e-5, atol=rounding)
    alone, _ = steps(optimizer, [grads["left"]["deep"] for grads in trees], params["left"]["deep"])
    for update, leaf in zip(whole, alone, strict=True):
        np.testing.assert_allclose(update["left"]["deep"], leaf, rtol=1e-5, atol=rounding)


@pytest.mark.slow
def test_jit_scan_and_vmap_change_nothing(optimizer):
    params = {"scalar": jnp.float32(0.5), "vector": jnp.linspace(-1, 1, 3)}
    trees = [jax.tree.map(lambda leaf, factor=factor: factor * leaf, params) for factor in (-1.5, -0.5, 0.5)]
    expected, _ = steps.__wrapped__(optimizer, trees, params)

    @eqx.filter_jit
    def scanned(params: object, stacked: object) -> object:
        def body(state, grads):
            update, state = optimizer.update(grads, state, params)
            return state, update

        return jax.lax.scan(body, optimizer.init(params), stacked)[1]

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    batch = jax.tree.map(lambda leaf: leaf[None], (params, stacked))
    for updates in (scanned(params, stacked), jax.tree.map(lambda leaf: leaf[0], jax.vmap(scanned)(*batch))):
        for step, update in enumerate(expected):
            for ours, theirs in zip(jax.tree.leaves(updates), jax.tree.leaves(update), strict=True):
                np.testing.assert_allclose(ours[step], theirs, rtol=1e-5, atol=1e-7)


def of_size(size: float) -> dict[str, jax.Array]:
    vector = jnp.array([size, -size, 0.0])
    return {"vector": vector, "matrix": jnp.stack([vector, vector[::-1]])}


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1e10], ids=str)
def test_updates_are_finite_for_gradients_of_every_size(optimizer, size):
    grads = of_size(size)
    updates, state = steps(optimizer, [grads] * 3, jax.tree.map(jnp.ones_like, grads))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((updates, state)))


@pytest.mark.parametrize("size", [1e20, 1e38], ids=str)
def test_nothing_is_nan_after_a_gradient_whose_square_is_not_finite(optimizer, size):
    """A second moment may be infinite from then on, and its coordinate stand still."""
    (_, after), state = steps(optimizer, [of_size(size), of_size(1.0)], jax.tree.map(jnp.ones_like, of_size(1.0)))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))
    floating = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    assert not any(np.any(np.isnan(leaf)) for leaf in floating)


@pytest.mark.slow
def test_a_guard_keeps_the_types_of_its_state(optimizer):
    """In a loop, what it carries may not change."""
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2, jnp.bfloat16)}
    guard = Guard(optimizer, Adam())
    before = guard.init(params)
    given = dict(value=jnp.ones(()), key=jax.random.key(0))
    _, after = jax.eval_shape(lambda state: guard.update(params, state, params, **given), before)
    described = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), it) for it in (before, after)]
    assert described[0] == described[1]


@pytest.mark.slow
def test_donated_params_and_state_give_the_same_steps(optimizer):
    """Every buffer that is given away is taken: none is held twice, and none is left over."""
    params, grads = {"w": jnp.linspace(-1, 1, 6).reshape(2, 3), "b": jnp.ones(())}, {"w": jnp.ones((2, 3)), "b": 0.5}
    grads = jax.tree.map(jnp.asarray, grads)

    def step(given: tuple[Optimizer, object], params: object, state: object) -> tuple[object, object]:
        optimizer, grads = given
        updates, state = optimizer.update(grads, state, params, value=jnp.ones(()))
        return jax.tree.map(jnp.add, params, updates), state

    plain, donating = eqx.filter_jit(step), eqx.filter_jit(step, donate="all-except-first")
    kept = taken = params, eqx.filter_jit(lambda it, params: it.init(params))(optimizer, params)
    taken = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), taken)
    for _ in range(2):
        given, kept = taken, plain((optimizer, grads), *kept)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            taken = donating((optimizer, grads), *given)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given) if leaf.size)
    for ours, theirs in zip(jax.tree.leaves(taken), jax.tree.leaves(kept), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_documentation_names_all_that_a_coordinatewise_rule_writes():
    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
    assert [name for name in sorted(Coordinatewise.__abstractmethods__) if f"`{name}" not in page] == []
