"""Training of what is learned inside a solver, within a number of seconds."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from .._core import trees
from .._core.draws import key_of
from .._core.types import Scalar, Tick
from ..problems import LeastSquares, QuadraticProgram
from .admm import ADMM
from .base import Flat
from .doubt import LearnedDoubt
from .learned import LearnedDamping, LearnedRestart, LearnedStart
from .levenberg_marquardt import LevenbergMarquardt
from .proximal import ProximalGradient
from .schedule import LearnedSchedule
from .warm import LearnedWarmStart

Model = TypeVar("Model", bound=eqx.Module)
BATCH, SCHEDULE_BATCH = 256, 32
"""Examples that a step of training sees. A schedule, whose numbers are the same for all, needs few: what counts is how
many steps there is time for."""

CUT = 0.4
"""Of the tolerance: certificates of proposals below it count alike. What is solved cannot get better, and who tries has
less left for what is not: cut at 0.1, more proposals of a dispatch are not proven."""


class Examples(NamedTuple):
    """Instances with the best solutions known: rows of instances, params and costs, in float32."""

    instances: PyTree
    params: Float[Array, "rows p"]
    cost: Float[Array, " rows"]


def single(leaf: np.ndarray) -> jax.Array:
    """Return a float array in float32, where what is too large is infinite, and another as it is."""
    with np.errstate(over="ignore"):
        return jnp.asarray(leaf, jnp.float32 if np.issubdtype(leaf.dtype, np.floating) else leaf.dtype)


def train_start(
    start: LearnedStart,
    flat: Flat,
    examples: Examples,
    seconds: float,
    seed: int,
    watch: Tick | None = None,
    steps: int | None = None,
    sample: Callable[[Array], Any] | None = None,
    negligible: float = 0.0,
) -> LearnedStart:
    """Fit the proposals: first to known solutions, the nearest proposal of each; then to what counts, their cost.

    The second loss is a soft minimum over proposals of the logarithm of the cost. It sees the tail: an instance whose
    cost is a thousand times too high counts three times one that is ten times too high. It needs no solutions, so where
    the family can `sample`, every batch is new and nothing can be learned by heart. `negligible`: what is no excess of
    cost, for families whose minima are all alike.
    """

    def nearest(start: LearnedStart, batch: Examples) -> Scalar:
        def one(instance: Any, x: Array) -> Scalar:
            scale = jax.lax.stop_gradient(start.whitening.params_scale)
            distance = jnp.mean(optax.losses.huber_loss((start.propose(instance) - x) / scale), axis=1)
            return 0.9 * jnp.min(distance) + 0.1 * jnp.mean(distance)

        return jnp.mean(jax.vmap(one)(batch.instances, batch.params))

    # Squares are measured from zero, and other costs, an energy say, from the lowest that is known.
    zero = 0.0 if isinstance(flat.family, LeastSquares) else jnp.min(examples.cost)
    floor = 0.5 * jnp.maximum(jnp.median(examples.cost - zero), negligible) + jnp.finfo(jnp.float32).tiny

    def lowest(start: LearnedStart, batch: Any) -> Scalar:
        def one(instance: Any) -> Scalar:
            costs = jax.vmap(lambda x: flat.loss(x, instance))(start.propose(instance))
            logs = jnp.log1p(jnp.clip(jnp.nan_to_num((costs - zero) / floor, nan=1e6, posinf=1e6), 0.0, 1e6))
            return -0.3 * jax.nn.logsumexp(-logs / 0.3)

        return jnp.mean(jax.vmap(lambda it: one(it if sample is None else sample(key_of(it))))(batch))

    fresh = examples.instances if sample is None else _new(seed)
    start = _descend(start, nearest, examples, 0.35 * seconds, 3e-3, seed, "learning a start", watch, steps)
    return _descend(start, lowest, fresh, 0.65 * seconds, 1e-3, seed + 1, "learning a start", watch, steps)


def train_damping(
    damping: LearnedDamping,
    method: LevenbergMarquardt,
    flat: Flat,
    examples: Examples,
    starts: Float[Array, "rows p"],
    tol: float,
    seconds: float,
    seed: int,
    watch: Tick | None = None,
) -> LearnedDamping:
    r"""Train the damping through unrolled, guarded steps from `starts`.

    The loss is the mean over steps of $\log(\text{excess} + \text{tol})$, the excess cost relative to the best known.
    It sees the tail, as every instance that is not solved counts with how far it is from it.
    """

    def loss(damping: LearnedDamping, batch: tuple[Examples, Array]) -> Scalar:
        examples, starts = batch
        learned = eqx.tree_at(lambda it: it.damping, method, damping)

        def one(instance: Any, x: Array, cost: Scalar) -> Scalar:
            def step(at: Any, _: None) -> tuple[Any, Scalar]:
                at = learned.step(flat, instance, at)
                return at, jnp.log(jnp.clip(at.cost / cost - 1, 0.0, 1e6) + tol)

            _, terms = jax.lax.scan(step, learned.start(flat, instance, x), length=damping.steps)
            return jnp.mean(terms[2:])

        values = jax.vmap(one)(examples.instances, starts, examples.cost)
        return jnp.mean(jnp.where(jnp.isfinite(values), values, 0.0))

    return _descend(damping, loss, (examples, starts), seconds, 2e-3, seed, "learning the damping", watch)


class Doubted(NamedTuple):
    """Rows of instances and of what some of their starts ended at, and whether the others ended lower, in float32."""

    instances: PyTree
    params: Float[Array, "rows p"]
    cost: Float[Array, " rows"]
    lower: Float[Array, " rows"]


def train_doubt(
    doubt: LearnedDoubt,
    examples: Doubted,
    seconds: float,
    seed: int,
    watch: Tick | None = None,
    steps: int | None = None,
) -> LearnedDoubt:
    """Fit the probability that another start ends lower, by its logarithm."""

    def loss(doubt: LearnedDoubt, batch: Doubted) -> Scalar:
        logits = jax.vmap(doubt)(batch.instances, batch.params, batch.cost)
        return jnp.mean(optax.losses.sigmoid_binary_cross_entropy(logits, batch.lower))

    return _descend(doubt, loss, examples, seconds, 3e-3, seed, "learning to doubt", watch, steps)


class Mistaken(NamedTuple):
    """Rows of instances, of solutions that are not the lowest, and of the lowest that are known, in float32."""

    instances: PyTree
    params: Float[Array, "rows p"]
    lowest: Float[Array, "rows p"]


def train_restart(
    restart: LearnedRestart,
    examples: Mistaken,
    seconds: float,
    seed: int,
    watch: Tick | None = None,
    steps: int | None = None,
) -> LearnedRestart:
    """Fit the lowest solutions, from what was found instead."""

    def loss(restart: LearnedRestart, batch: Mistaken) -> Scalar:
        scale = jax.lax.stop_gradient(restart.whitening.params_scale)
        apart = (jax.vmap(restart)(batch.instances, batch.params) - batch.lowest) / scale
        return jnp.mean(optax.losses.huber_loss(apart))

    return _descend(restart, loss, examples, seconds, 3e-3, seed, "learning where to look again", watch, steps)


def train_schedule(
    schedule: LearnedSchedule,
    method: ProximalGradient,
    flat: Flat,
    instances: PyTree,
    seconds: float,
    seed: int,
    watch: Tick | None = None,
    steps: int | None = None,
    sample: Callable[[Array], Any] | None = None,
) -> LearnedSchedule:
    r"""Train a schedule through the unrolled, guarded steps, and a few classical ones after them.

    The loss is the number of steps that are needed, made smooth: each counts by how far the certificate is above the
    tolerance. Added is the mean over steps of the logarithm of the certificate, cut a little below the tolerance, which
    sees far from it as well, and half of what the last step leaves. It needs no solutions, so where the family can
    `sample`, every batch is new.
    """
    tol, length, prepared = method.tol, len(schedule.rows) + 5, method.prepare(flat, jnp.float32)

    def loss(schedule: LearnedSchedule, batch: PyTree) -> Scalar:
        learned = dataclasses.replace(prepared, schedule=schedule)

        def one(instance: Any) -> Scalar:
            instance = instance if sample is None else sample(key_of(instance))

            def step(at: Any, _: None) -> tuple[Any, Scalar]:
                at = learned.step(flat, instance, at)
                return at, jnp.log(jnp.clip(at.certificate / tol, 0.5, 1e6))

            x = flat.vector(flat.family.init(instance, key_of(0)))
            _, terms = jax.lax.scan(step, learned.start(flat, instance, x), length=length)
            needed = jnp.sum(jax.nn.sigmoid(2 * terms))
            return needed + jnp.mean(terms[length // 3 :]) + 0.5 * jnp.maximum(terms[-1], 0.0)

        values = jax.vmap(one)(batch)
        return jnp.mean(jnp.where(jnp.isfinite(values), values, 0.0))

    fresh = instances if sample is None else _new(seed)
    return _descend(schedule, loss, fresh, seconds, 2e-2, seed, "learning a schedule", watch, steps, SCHEDULE_BATCH)


def train_warm_start(
    warm: LearnedWarmStart,
    method: ADMM,
    flat: Flat,
    examples: Examples,
    seconds: float,
    seed: int,
    watch: Tick | None = None,
    sample: Callable[[Array], Any] | None = None,
    steps: int | None = None,
) -> LearnedWarmStart:
    r"""Fit the start to known solutions, then to what counts as well: the certificate.

    For a family with `QuadraticProgram.certify` that is the duality gap of the proposal itself, else the residuals
    after two steps from it, cut below the tolerance. Neither needs solutions, so where the family can `sample`, every
    batch of it is new.
    """
    family, tol = flat.family, method.tol
    assert isinstance(family, QuadraticProgram)
    prepared = method.prepare(flat, jnp.float32)

    def near(warm: LearnedWarmStart, batch: Examples) -> Scalar:
        scale = jax.lax.stop_gradient(warm.whitening.params_scale)

        def one(instance: Any, target: Array) -> Scalar:
            return jnp.mean(optax.losses.huber_loss((jnp.concatenate(warm(instance)[:2]) - target) / scale))

        return jnp.mean(jax.vmap(one)(batch.instances, batch.params))

    def certificate(warm: LearnedWarmStart, instance: Any) -> Scalar:
        x, dual, _ = warm(instance)
        if (found := family.certify(x, dual, instance)) is not None:
            return (found[1] - found[2]) / jnp.abs(found[1])  # not to the bound, which may be next to nothing at first
        learned = dataclasses.replace(prepared, warm=warm)
        at = learned.step(flat, instance, learned.start(flat, instance, x))
        return learned.step(flat, instance, at).certificate

    count = len(examples.cost)

    def proven(warm: LearnedWarmStart, batch: Array) -> Scalar:
        known = trees.rows(examples, batch % count)

        def one(it: Array, instance: Any) -> Scalar:
            value = certificate(warm, instance if sample is None else sample(key_of(it)))
            real = jnp.isfinite(value)
            term = jnp.log(jnp.clip(jnp.where(real, value, 1.0) / tol, CUT, 1e6))
            return jnp.where(real, term + 2 * jnp.maximum(term, 0.0), 0.0)

        # Bounds may not see every multiplier, but where they prove too little, iterations start from all of them.
        return jnp.mean(jax.vmap(one)(batch, known.instances)) + near(warm, known)

    rows = np.arange(count) if sample is None else _new(seed)
    what = "learning a warm start"
    warm = _descend(warm, near, examples, 0.2 * seconds, 3e-3, seed, what, watch, steps)
    return _descend(warm, proven, rows, 0.8 * seconds, 2e-3, seed + 1, what, watch, steps)


def _new(seed: int) -> np.ndarray:
    """Return the seeds of new instances, where a family can draw them: more than any training sees."""
    return np.arange(seed + 2**20, seed + 2**21)


def _descend(
    model: Model,
    loss: Callable[[Model, Any], Scalar],
    examples: Any,
    seconds: float,
    rate: float,
    seed: int,
    what: str,
    watch: Tick | None,
    steps: int | None = None,
    size: int = BATCH,
) -> Model:
    """Minimize by Adam for so many seconds, compilation included, or for so many steps; the rate falls along a cosine.

    Of time that is over before it begins, one step is left. A batch whose gradient is not finite is left out. The
    result is the average of the last third.
    """
    began = time.perf_counter()
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())

    @jax.jit
    def update(
        arrays: Any, state: Any, average: Any, examples: Any, rows: Array, rate: Array, weight: Array
    ) -> tuple[Any, ...]:
        batch = trees.rows(examples, rows)
        grads = jax.grad(lambda arrays: loss(eqx.combine(arrays, static), batch))(arrays)
        finite = trees.all_finite(grads)
        updates, after = optimizer.update(grads, state)
        moved = jax.tree.map(lambda leaf, step: leaf - rate * step, arrays, updates)
        arrays, state = trees.where(finite, (moved, after), (arrays, state))
        return arrays, state, jax.tree.map(lambda old, new: old + weight * (new - old), average, arrays)

    examples = jax.tree.map(jnp.asarray, examples)
    state, average = optimizer.init(arrays), arrays
    averaged, told = 0, began
    for count, rows in enumerate(_batches(trees.length(examples), size, seed)):
        spent = (time.perf_counter() - began) / max(seconds, 1e-3) if steps is None else count / steps
        if spent >= 1 and count > 0:
            break
        averaged = averaged + 1 if spent > 2 / 3 else 1
        now = rate * 0.5 * (1 + np.cos(np.pi * min(spent, 1.0)))
        numbers = jnp.float32(now), jnp.float32(1 / averaged)
        arrays, state, average = update(arrays, state, average, examples, jnp.asarray(rows), *numbers)
        jax.block_until_ready(average)
        if watch is not None and time.perf_counter() - told > 0.5:
            told = time.perf_counter()
            watch(what, int(1000 * min(spent, 1.0)), 1000)
    return eqx.combine(average, static)


def _batches(rows: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Yield rows of batches, epoch by epoch, for ever."""
    draw, size = np.random.default_rng(seed), min(batch, rows)
    while True:
        order = draw.permutation(rows)
        for at in range(0, rows - size + 1, size):
            yield order[at : at + size]
