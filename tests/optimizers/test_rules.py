"""The per-parameter rules against their definitions, written out in NumPy, and what each of them promises."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.optimizers import STAR, Celo2, MLPRule, Optimizer, RNNprop, features, parameter_count

STEPS = 20
SHAPES = {"kernel": (2, 5, 3), "vector": (5,)}
DECAYS = (0.9, 0.99, 0.999)


def perturbed(optimizer: Optimizer, size: float = 0.3) -> Optimizer:
    """Move every meta-parameter, so that none is zero; decays only a little."""
    leaves, structure = jax.tree.flatten(eqx.filter(optimizer, eqx.is_inexact_array))
    draw = np.random.default_rng(5).standard_normal
    moved = [leaf + (size if leaf.ndim == 2 else 0.02) * jnp.asarray(draw(leaf.shape)) for leaf in leaves]
    return eqx.combine(jax.tree.unflatten(structure, moved), optimizer)


def gradients() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{name: rng.standard_normal(shape) for name, shape in SHAPES.items()} for _ in range(STEPS)]


def run(optimizer: Optimizer) -> list[dict[str, np.ndarray]]:
    """Updates of twenty steps in closed loop, in float64."""
    params = {name: jnp.full(shape, 0.5) for name, shape in SHAPES.items()}
    state, all_updates = optimizer.init(params), []
    update = eqx.filter_jit(lambda optimizer, *rest: optimizer.update(*rest))
    for grads in gradients():
        updates, state = update(optimizer, jax.tree.map(jnp.asarray, grads), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        all_updates.append(jax.tree.map(np.asarray, updates))
    return all_updates


class Reference:
    """One array under small_fc_lopt's accumulators, in its definition's order and words."""

    def __init__(self, shape: tuple[int, ...], means=DECAYS, square=0.999, factored=DECAYS):
        self.m, self.v = [np.zeros(shape) for _ in range(3)], np.zeros(shape)
        self.decays = means, square, factored
        order = np.argsort(shape, kind="stable")
        self.d1, self.d0 = (int(order[-2]), int(order[-1])) if len(shape) > 1 else (None, None)
        if self.d0 is None:
            self.r = [np.zeros(shape) for _ in range(3)]
        else:
            self.r = [np.zeros(np.delete(shape, self.d0)) for _ in range(3)]
            self.c = [np.zeros(np.delete(shape, self.d1)) for _ in range(3)]

    def inputs(self, g: np.ndarray, p: np.ndarray) -> list[np.ndarray]:
        means, square, factored = self.decays
        self.m = [b * m + (1 - b) * g for b, m in zip(means, self.m, strict=True)]
        self.v = square * self.v + (1 - square) * g**2
        seen = g**2 + 1e-30
        rsqrt = 1 / np.sqrt(self.v + 1e-6)
        safe = lambda x: 1 / np.sqrt(np.maximum(x, 1e-9))  # noqa: E731
        if self.d0 is None:
            self.r = [b * r + (1 - b) * seen for b, r in zip(factored, self.r, strict=True)]
            rows = columns = self.r
            fac_g = [g * safe(r + 1e-9) for r in self.r]
            fac_m = [m * (r + 1e-6) ** -0.5 for m, r in zip(self.m, self.r, strict=True)]
        else:
            self.r = [b * r + (1 - b) * seen.mean(self.d0) for b, r in zip(factored, self.r, strict=True)]
            self.c = [b * c + (1 - b) * seen.mean(self.d1) for b, c in zip(factored, self.c, strict=True)]
            reduced = self.d1 - 1 if self.d1 > self.d0 else self.d1
            tile = lambda x, axis: np.repeat(np.expand_dims(x, axis), g.shape[axis], axis)  # noqa: E731
            rows, columns = [tile(r, self.d0) for r in self.r], [tile(c, self.d1) for c in self.c]
            factors = [
                tile(safe(r / (r.mean(reduced, keepdims=True) + 1e-9)), self.d0) * tile(safe(c), self.d1)
                for r, c in zip(self.r, self.c, strict=True)
            ]
            fac_g, fac_m = [g * f for f in factors], [m * f for m, f in zip(self.m, factors, strict=True)]
        roots = [1 / np.sqrt(x + 1e-8) for x in (*rows, *columns)]
        return [g, p, *self.m, self.v, *(m * rsqrt for m in self.m), rsqrt, *fac_g, *rows, *columns, *roots, *fac_m]


def network(layers, inputs: list[np.ndarray], epsilon: float, time: np.ndarray | None) -> np.ndarray:
    """Outputs `[*c, outputs]` of the perceptron on normalized inputs."""
    x = np.stack([i / np.sqrt(epsilon + np.mean(i**2)) for i in inputs], -1)
    if time is not None:
        x = np.concatenate([x, np.broadcast_to(time, (*x.shape[:-1], len(time)))], -1)
    for number, layer in enumerate(layers):
        x = x @ np.asarray(layer.weight).T + np.asarray(layer.bias)
        x = np.maximum(x, 0) if number < len(layers) - 1 else x
    return x


def time_of(step: int) -> np.ndarray:
    return np.tanh(step / np.array([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5]) - 1)


def learned_decays(optimizer: MLPRule | STAR) -> dict[str, np.ndarray]:
    """`1 - exp(10 (log(1 - start)/10 + change))`."""
    of = lambda start, change: 1 - np.exp(10 * (np.log(1 - np.array(start)) / 10 + np.asarray(change)))  # noqa: E731
    it = optimizer.decays
    return {"means": of(DECAYS, it.means), "square": of(0.999, it.square), "factored": of(DECAYS, it.factored)}


def mlp_rule(optimizer: MLPRule, reference: Reference, g: np.ndarray, p: np.ndarray, step: int) -> np.ndarray:
    out = network(optimizer.layers, reference.inputs(g, p), 1e-5, time_of(step))
    return -out[..., 0] * np.exp(out[..., 1] * 1e-3) * 1e-3


def star(optimizer: STAR, reference: Reference, g: np.ndarray, p: np.ndarray, step: int) -> np.ndarray:
    inputs = reference.inputs(g, p)
    d, size, nominal, decay = np.moveaxis(network(optimizer.layers, inputs, 1e-5, time_of(step)), -1, 0)
    rsqrt = inputs[9]
    new = (1 - optimizer.weight_decay * np.exp(1e-3 * decay)) * p
    new = new - 1e-3 * d * np.exp(1e-3 * size) * rsqrt
    return new - optimizer.nominal_rate * np.exp(1e-3 * nominal) * np.mean(inputs[6:9], 0) - p


def celo2(optimizer: Celo2, reference: Reference, g: np.ndarray, p: np.ndarray, step: int) -> np.ndarray:
    x = reference.inputs(g, p)
    rate = float(optimizer.learning_rate)
    if g.ndim < 2:
        m, v = reference.m[0] / (1 - 0.9 ** (step + 1)), reference.v / (1 - 0.95 ** (step + 1))
        return -20 * rate * (m / (np.sqrt(v) + 1e-8) + optimizer.weight_decay * p)
    x = [x[0], np.clip(g, -0.1, 0.1), *x[1:13], g * x[9], *x[13:]]
    d = network(optimizer.layers, x, 1e-9, None)[..., 0]
    return -rate * (d / np.sqrt(np.mean(d**2) + 1e-9) + optimizer.weight_decay * p)


RULES = {
    "MLPRule": (lambda key: MLPRule(key), mlp_rule),
    "STAR": (lambda key: STAR(key, weight_decay=1e-3), star),
    "Celo2": (lambda key: Celo2(key, weight_decay=1e-2), celo2),
}


@pytest.mark.parametrize("name", RULES)
def test_twenty_steps_equal_the_definition(name):
    make, reference = RULES[name]
    with jax.enable_x64(True):
        optimizer = perturbed(make(jax.random.key(0)))
        updates = run(optimizer)
    decays = {"square": 0.95} if name == "Celo2" else learned_decays(optimizer)
    for leaf, shape in SHAPES.items():
        statistics, p = Reference(shape, **decays), np.full(shape, 0.5)
        for step, grads in enumerate(gradients()):
            expected = reference(optimizer, statistics, grads[leaf], p, step)
            np.testing.assert_allclose(updates[step][leaf], expected, rtol=1e-7, atol=1e-12, err_msg=f"{leaf} {step}")
            p = p + expected


@pytest.mark.parametrize("kind", [MLPRule, STAR])
def test_no_learned_decay_goes_below_zero(kind):
    """A memory cannot be shorter than none: means of squares would be negative after a large gradient."""
    optimizer, params = kind(jax.random.key(0)), {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}
    run = eqx.filter_jit(lambda optimizer, state, grads: optimizer.update(grads, state, params))
    found = []
    for change in (1.0, 3.0):
        moved = jax.tree.map(lambda leaf, change=change: leaf + change, optimizer.decays)
        changed = eqx.tree_at(lambda it: it.decays, optimizer, moved)
        state = optimizer.init(params)
        for size in (1.0, 1e-3):
            updates, state = run(changed, state, jax.tree.map(lambda leaf, size=size: size * leaf, params))
        found.append((updates, state))
        for moments in state.moments:  # of the last gradient alone
            for square in (moments.square, *moments.rows):
                np.testing.assert_allclose(square, 1e-6, rtol=1e-5)
    assert eqx.tree_equal(*found) and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def test_a_large_array_takes_the_same_steps_unrolled(monkeypatch):
    rng = np.random.default_rng(1)
    params, grads = ({"w": jnp.asarray(rng.standard_normal((7, 5)), jnp.float32)} for _ in range(2))
    optimizer = perturbed(MLPRule(jax.random.key(0)))
    optimizer = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), optimizer)
    state = optimizer.init(params)
    whole, _ = optimizer.update(grads, state, params)
    monkeypatch.setattr(features, "UNROLLED", 1)
    unrolled, _ = optimizer.update(grads, state, params)
    np.testing.assert_allclose(unrolled["w"], whole["w"], rtol=1e-4, atol=1e-8)


def test_untrained_rules_are_optimizers_already():
    grads = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]])}
    params = jax.tree.map(jnp.ones_like, grads)
    direction = {}
    for optimizer in (MLPRule(jax.random.key(0)), Celo2(jax.random.key(1)), STAR(jax.random.key(2), weight_decay=0.0)):
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        direction[type(optimizer)] = np.asarray(updates["w"])
    # A first gradient over its own size is its sign: all coordinates move alike, against it.
    signs = -np.sign(grads["w"])
    np.testing.assert_allclose(direction[MLPRule], 1e-3 * signs, rtol=1e-2)
    np.testing.assert_allclose(direction[Celo2], 1e-3 * signs, rtol=1e-2)
    mean = np.mean([(1 - b) for b in DECAYS]) / 0.001**0.5
    np.testing.assert_allclose(direction[STAR], 3e-3 * mean * signs, rtol=1e-2)


def test_the_numbers_of_meta_parameters_are_the_published_ones():
    key = jax.random.key(0)
    assert parameter_count(MLPRule(key)) == 190 + 7
    assert parameter_count(MLPRule(key, (32, 32))) == 2402 + 7
    assert parameter_count(Celo2(key)) == 347 + 1  # and the learning rate
    assert parameter_count(STAR(key)) == 190 + 10 + 7


def test_steps_of_celo2_have_the_size_of_the_learning_rate_whatever_the_gradient():
    optimizer = Celo2(jax.random.key(0), learning_rate=0.02)
    params = {"w": jnp.ones((6, 4))}
    for scale in (1e-3, 1.0, 1e4):
        grads = {"w": scale * jax.random.normal(jax.random.key(1), (6, 4))}
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        assert float(jnp.sqrt(jnp.mean(updates["w"] ** 2))) == pytest.approx(0.02, rel=1e-3)


@pytest.mark.parametrize("kind", [MLPRule, STAR, Celo2])
def test_state_is_sixteen_bytes_a_param_and_little_else(kind):
    state = jax.eval_shape(kind(jax.random.key(0)).init, {"w": jnp.zeros((500, 400))})
    count = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / (500 * 400)
    assert 16 < count < 16.1


@pytest.mark.parametrize("kind", [MLPRule, STAR, Celo2])
def test_params_are_asked_for_by_name(kind):
    optimizer, params = kind(jax.random.key(0)), jnp.ones((2, 2))
    with pytest.raises(ValueError, match=r"update\(grads, state, params\)"):
        optimizer.update(params, optimizer.init(params))


@pytest.mark.parametrize("hidden", [(), (1,), (4, 1)])
def test_a_network_that_cannot_carry_a_sign_is_refused(hidden):
    with pytest.raises(ValueError, match="two units or more"):
        MLPRule(jax.random.key(0), hidden)


def rnnprop_reference(optimizer: RNNprop, grads: np.ndarray) -> np.ndarray:
    """Updates `[t, c]` of RNNprop, gate by gate and coordinate by coordinate at once."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    cells = optimizer.network.layers
    m = v = np.zeros(grads.shape[1])
    states = [(np.zeros((cell.units, grads.shape[1])), np.zeros((cell.units, grads.shape[1]))) for cell in cells]
    updates = []
    for t, g in enumerate(grads, 1):
        m, v = 0.95 * m + 0.05 * g, 0.95 * v + 0.05 * g**2
        correction = 1 - 0.95**t
        root = np.sqrt(v / correction) + 1e-8
        x = np.asarray(optimizer.weight) @ np.stack([m / correction / root, g / root])
        x = x + np.asarray(optimizer.bias)[:, None]
        x = np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)
        for number, cell in enumerate(cells):
            h, c = states[number]
            pre = np.asarray(cell.weight) @ np.concatenate([x, h]) + np.asarray(cell.bias)[:, None]
            i, new, f, o = np.split(pre, 4)
            c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(new)
            x = sigmoid(o) * np.tanh(c)
            states[number] = (x, c)
        updates.append(-0.1 * np.tanh(np.asarray(optimizer.network.head) @ x + float(optimizer.network.head_bias)))
    return np.stack(updates)


@pytest.fixture(scope="module")
def rnnprop() -> RNNprop:
    with jax.enable_x64(True):
        return perturbed(RNNprop(jax.random.key(0), (4, 3)), 0.1)


def test_twenty_steps_of_rnnprop_equal_the_definition(rnnprop):
    grads = np.random.default_rng(0).standard_normal((STEPS, 5)) * np.logspace(-3, 3, 5)
    with jax.enable_x64(True):
        step = eqx.filter_jit(lambda optimizer, *rest: optimizer.step(*rest))
        state, updates = rnnprop.start((5,)), []
        for grad in grads:
            update, state = step(rnnprop, jnp.asarray(grad), state)
            updates.append(np.asarray(update))
    np.testing.assert_allclose(np.stack(updates), rnnprop_reference(rnnprop, grads), rtol=1e-9)
    assert np.abs(updates).max() < 0.1


def test_rnnprop_does_not_see_the_scale_of_the_gradient():
    optimizer = RNNprop(jax.random.key(0))
    grads = jax.random.normal(jax.random.key(1), (4, 3))
    paths = []
    for scale in (1.0, 1e-4, 1e6):
        state, updates = optimizer.start((3,)), []
        for grad in scale * grads:
            update, state = optimizer.step(grad, state)
            updates.append(update)
        paths.append(np.stack(updates))
    np.testing.assert_allclose(paths[1], paths[0], rtol=1e-2)  # there, 1e-8 behind the root is seen
    np.testing.assert_allclose(paths[2], paths[0], rtol=1e-3)
    assert np.all(paths[0][0] * grads[0] < 0)  # and goes down
