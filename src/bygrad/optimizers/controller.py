"""A learned controller for every tensor, over Adam's arithmetic: a learned optimizer at Adam's cost and memory."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._core.definitions import (
    EPSILON,
    FEWEST,
    HORIZON_PARTS,
    LARGEST_EXPONENT,
    POWER_SCALE,
    REACH,
    SAMPLE,
    SMALLEST_PARAMS,
    SMALLEST_RATIO,
    TIME_SCALES,
    UNDER_ROOT,
)
from .._core.sizes import whole_number
from .._core.trees import replaced, widened
from .._core.types import Params
from .base import Learned, Optimizer, Scheduled, drawing_key, whole_steps

TENSOR_FEATURES = 7

TIME_FEATURES = len(TIME_SCALES) + len(HORIZON_PARTS)

DEFAULT_HORIZON = 1_000

PARTS = np.arange(1_000) / 1_000
"""Of a horizon, at which a schedule is given."""


class ControllerState(eqx.Module):
    """Adam's two moments, with the structure of the params; the largest root mean square that the gradient of each
    tensor has had; updates so far; and the horizon that was declared for this run."""

    mean: Params
    square: Params
    peak: Float[Array, " tensors"]
    count: Int[Array, ""]
    horizon: Int[Array, ""]


class Controller(Optimizer, Learned, Scheduled):
    r"""Adam, with step size, momentum and mixing set at every step and for every tensor by a small network.

    With Adam's moments $m, v$ of the gradient $g$, bias-corrected to $\hat m, \hat v$, and
    $d = \sqrt{\hat v} + \epsilon$,

    $$n = \hat m / d, \quad q = g / d, \qquad
    u = -\eta \, e^{o_3} \left( (1 + o_1) \, n + o_2 \, q + \max(0, \lambda) \, p \right)$$

    where, for every tensor, $o = W_2 \tanh(W_1 f + W_t \tau + b_1) + W_o \tau + b_2$, and
    $4 a_1 \ln (D / 2) + 4 a_2 \ln (S / 1024) + 4 a_3 \ln (R / 32)$ more for $o_3$: steps are in proportion to powers
    of the depth $D$, the number of tensors with two axes or more (at least 1), of the size $S$ of such a tensor, its
    number of entries, and, if so asked (`reach`), of its reach $R$ ($S = 1024$ and $R = 32$ for the others). What small
    steps of all entries and all layers do to the output adds up. How far those of one tensor go is its reach: with $n$
    as a matrix,

    $$R^2 = 1 + \max(\rho(n), \rho(n^\top)), \qquad \rho(n) = \mathrm{mean}_j \Big( \sum_i n_{ij} \Big)^2$$

    Where all inputs of a layer are large and of one sign, as the pixels of bright images are, its gradient has columns
    of one sign each. There a step of $\eta$ moves every output by $\eta$ times the *number* of inputs, and elsewhere by
    its root. The features $f$ of a tensor do not change when the loss is multiplied by a number, as long as gradients
    stay well above Adam's constant of 1e-8:

    1. $\mathrm{rms}(n)$ and 2. $\mathrm{rms}(q)$; 3. $\cos(n, q)$;
    4. $\frac14 \ln$ of $\mathrm{rms}(g)$ over the largest it has been;
    5. $\frac14 \log_{10} (\mathrm{mean}(p^2) + 10^{-8})$; 6. $\ln (\mathrm{rms}(\hat m) / \mathrm{rms}(g))$;
    7. half the number of axes; with `reach` 8. $\frac14 \ln (R / 32)$.

    All come from a grid of rows and columns with at most 512 entries, and $\rho$ without the bias that this would mean.

    $\tau$ are 18 features of the time $t$, updates so far, up to the horizon $T$: $\tanh(t / s - 1)$ for nine scales
    $s$ from 1 to 10,000, and $\tanh(8 (t/T - c))$ for $c = 0, \frac18, \dots, 1$. All tensors share the network; its
    meta-parameters, $a$ and those of the two decays are 525, with `reach` 542. The weight decay $\lambda$ is one more,
    where there is one: it lowers no training loss, and the loss on held-out data it may. Arithmetic and memory per
    param are Adam's: eight bytes.

    An untrained controller is `Adam(learning_rate, b1, b2)`, with `weight_decay` it is `AdamW`. The horizon is
    declared, not learned: `declare` changes it, and compiles nothing. Beyond it, time stands still.

    **Arguments:** `key`: draws the hidden weights. `hidden`: units. `learning_rate`, `b1`, `b2`: of the Adam to start
    as; 0.99 forgets within the hundreds of steps that a meta-training looks at. `horizon`: steps of a run.
    `reach`: see the reach of tensors, and go by a power of it. That is for mixtures of problems that differ in it: what
    is learned of it on one family of networks carries over less well to others. `weight_decay`: $\lambda$ to start
    with, 0 or more; None for a rule without.

    **Example:**

        >>> import jax, jax.numpy as jnp
        >>> optimizer = Controller(jax.random.key(0)).declare(100)
        >>> params = jnp.array([1.0, -2.0])
        >>> updates, state = optimizer.update(2 * params, optimizer.init(params), params)
        >>> updates
        Array([-0.003,  0.003], dtype=float32)
    """

    feature_version: ClassVar[int] = 3
    added_later = frozenset({"weight_decay"})

    inputs: Float[Array, "hidden tensor_features"]
    times: Float[Array, "hidden time_features"]
    bias: Float[Array, " hidden"]
    head: Float[Array, "3 hidden"]
    head_times: Float[Array, "3 time_features"]
    head_bias: Float[Array, " 3"]
    powers: Float[Array, " powers"]
    decays: Float[Array, " 2"]
    horizon: Int[Array, ""]
    weight_decay: Float[Array, ""] | None
    learning_rate: float = eqx.field(static=True)
    reach: bool = eqx.field(static=True)
    depth: int | None = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        hidden: int = 16,
        learning_rate: float = 3e-3,
        b1: float = 0.9,
        b2: float = 0.99,
        horizon: int = DEFAULT_HORIZON,
        reach: bool = False,
        weight_decay: float | None = None,
    ):
        if hidden < 1:
            raise ValueError(f"hidden is {hidden}, but the network needs a unit to see with: give 1 or more.")
        if not (learning_rate > 0 and 0 < b1 < 1 and 0 < b2 < 1):
            raise ValueError(
                f"learning_rate={learning_rate}, b1={b1}, b2={b2} are not an Adam to start as: the rate must be above"
                " 0, and each decay between 0 and 1."
            )
        if weight_decay is not None and not 0 <= weight_decay < math.inf:
            raise ValueError(
                f"weight_decay is {weight_decay}, with which weights would not decay. Give 0 or more, such as 0.01, or"
                " None for a rule without."
            )
        inputs_key, times_key = jax.random.split(key)
        features = TENSOR_FEATURES + reach
        fan_in = features + TIME_FEATURES
        self.inputs = jax.random.normal(inputs_key, (hidden, features)) / math.sqrt(fan_in)
        self.times = jax.random.normal(times_key, (hidden, TIME_FEATURES)) / math.sqrt(fan_in)
        self.bias = jnp.zeros(hidden)
        self.head, self.head_times, self.head_bias = jnp.zeros((3, hidden)), jnp.zeros((3, TIME_FEATURES)), jnp.zeros(3)
        self.powers = jnp.zeros(2 + reach)
        self.decays = jnp.array([math.log(b / (1 - b)) for b in (b1, b2)])
        self.horizon = whole_steps(horizon)
        self.weight_decay = None if weight_decay is None else jnp.asarray(weight_decay, self.bias.dtype)
        self.learning_rate, self.reach, self.depth = float(learning_rate), bool(reach), None

    @property
    def config(self) -> dict[str, Any]:
        sizes = {"hidden": self.bias.shape[0], "learning_rate": self.learning_rate}
        return sizes | {"reach": self.reach, "weight_decay": self.weight_decay is not None}

    @classmethod
    def from_config(cls, config: dict[str, Any], key: PRNGKeyArray | None = None) -> "Controller":
        # Whether there is one, or what it begins at; files that are older say nothing of it.
        decay = config.get("weight_decay", False)
        decay = (0.0 if decay else None) if isinstance(decay, bool) else decay
        key = drawing_key(key)
        return cls(key, config["hidden"], config["learning_rate"], reach=config["reach"], weight_decay=decay)

    def declare(self, horizon: int | Int[Array, ""]) -> "Controller":
        return eqx.tree_at(lambda it: it.horizon, self, whole_steps(horizon))

    def fall(self, power: float = 1.0) -> "Controller":
        """Return the controller with steps that fall along a power of half a cosine over the horizon besides.

        With `power` 1, untrained, it is then `AdamWCosine`, but for errors of the schedule of 0.2 % of its height.
        """
        cosine = 0.5 * (1 + np.cos(np.pi * PARTS))
        # Weighted with the cosine, since errors of a logarithm count in proportion to what it is the logarithm of.
        return self.with_schedule(power * np.log(cosine), cosine)

    def with_schedule(self, log_factor: Float[np.ndarray, " parts"], weight: Any = 1.0) -> "Controller":
        r"""Return the controller with steps $e^{f}$ times as large, or nearly so, where $f$ is given at `PARTS` of the
        run: the least squares, with these weights, of what it sees of the horizon."""
        rows = np.append(np.tanh(8 * (PARTS[:, None] - np.array(HORIZON_PARTS))), np.ones((PARTS.size, 1)), axis=1)
        weight = np.broadcast_to(weight, PARTS.shape)
        *heads, bias = np.linalg.lstsq(rows * weight[:, None], weight * log_factor, rcond=None)[0]
        head_times = self.head_times.at[2, len(TIME_SCALES) :].add(jnp.array(heads))
        return eqx.tree_at(lambda it: (it.head_times, it.head_bias), self, (head_times, self.head_bias.at[2].add(bias)))

    def scaled(self, factor: float) -> "Controller":
        """Return the controller with steps that are `factor` times as large, as a learning rate is tuned."""
        if not (factor > 0 and math.isfinite(factor)):
            raise ValueError(
                f"factor is {factor}, which leaves no step to take. Give a number above 0: 2 for steps twice as large."
            )
        return eqx.tree_at(lambda it: it.head_bias, self, self.head_bias.at[2].add(math.log(factor)))

    def decaying(self, weight_decay: float) -> "Controller":
        """Return the controller with another weight decay, or with one; below 0, nothing decays."""
        return replaced(self, weight_decay=jnp.asarray(weight_decay, self.bias.dtype))

    def with_depth(self, depth: int) -> "Controller":
        """Return the controller for a part of the params of a network of this depth, `depth_of` all of them, or for
        layers that are stacked in one array. Files do not keep it: it belongs to the network, as a horizon to a run."""
        counted = "tensors with two axes or more of the whole network"
        return replaced(self, depth=whole_number(depth, "depth", counted))

    def init(self, params: Params) -> ControllerState:
        def zeros(leaf: Any) -> Array:
            return jnp.zeros_like(leaf, jnp.promote_types(leaf.dtype, jnp.float32))

        # Every leaf is a buffer of its own, so that a step may be given the state to write over.
        mean, square = jax.tree.map(zeros, params), jax.tree.map(zeros, params)
        peak = jnp.zeros(len(jax.tree.leaves(params)), self.head.dtype)
        return ControllerState(mean, square, peak, jnp.zeros((), jnp.int32), jnp.copy(self.horizon))

    def update(
        self,
        grads: Params,
        state: ControllerState,
        params: Params | None = None,
        *,
        value: Float[Array, ""] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, ControllerState]:
        if params is None:
            raise ValueError(
                "Controller.update was called without params, but the size of the params is one of its inputs. Call"
                " update(grads, state, params)."
            )
        count = state.count + 1
        bias1, bias2 = -jnp.expm1(count * jax.nn.log_sigmoid(self.decays))

        def moments(grad: Array, mean: Array, square: Array) -> tuple[Array, Array]:
            b1, b2 = jax.nn.sigmoid(self.decays).astype(grad.dtype)
            return b1 * mean + (1 - b1) * grad, b2 * square + (1 - b2) * jnp.square(grad)

        def root(square: Array) -> Array:
            return jnp.sqrt(square * (1 / bias2).astype(square.dtype) + UNDER_ROOT) + EPSILON

        leaves, structure = jax.tree.flatten(grads)
        if not leaves:
            return grads, eqx.tree_at(lambda it: it.count, state, count)
        wide = widened(leaves)
        means, squares, points = (structure.flatten_up_to(tree) for tree in (state.mean, state.square, params))

        # The features come from a sample, and from nothing that the pass over the whole tensor computes: that pass then
        # has the outputs before it begins, and touches each coordinate once. All samples are one vector, since on small
        # tensors an operation costs more than its arithmetic.
        g, m, v, p = (_samples(trees, self.head.dtype) for trees in (wide, means, squares, points))
        m, v = moments(g, m, v)
        n, q = m / bias1 / root(v), g / root(v)
        products = _means(jnp.stack([n * n, q * q, n * q, g * g, p * p, jnp.square(m / bias1)]), wide)
        features, peak = _features(products, state.peak, [leaf.ndim for leaf in leaves])
        sizes = jnp.array(log_sizes(leaves, self.depth))
        if self.reach:
            reaches = log_reaches(n, products[:, 0], wide)[:, None]
            features, sizes = jnp.append(features, reaches / 4, axis=1), jnp.append(sizes, reaches, axis=1)
        outputs = self._outputs(features, time_features(state.count, state.horizon), sizes)

        updates, states = [], []
        for i, (leaf, grad, mean, square) in enumerate(zip(leaves, wide, means, squares, strict=True)):
            mean, square = moments(grad, mean, square)
            size = -self.learning_rate * jnp.exp(outputs[i, 2])
            along_mean, along_grad = size * (1 + outputs[i, 0]) / bias1, size * outputs[i, 1]
            step = along_mean.astype(grad.dtype) * mean + along_grad.astype(grad.dtype) * grad
            step = step / root(square)
            if self.weight_decay is not None:
                step += (size * jnp.maximum(self.weight_decay, 0)).astype(grad.dtype) * points[i].astype(grad.dtype)
            updates.append(step.astype(leaf.dtype))
            states.append((mean, square))
        mean, square = (jax.tree.unflatten(structure, [pair[k] for pair in states]) for k in range(2))
        return jax.tree.unflatten(structure, updates), ControllerState(mean, square, peak, count, state.horizon)

    def _outputs(
        self,
        features: Float[Array, "tensors tensor_features"],
        times: Float[Array, " time_features"],
        sizes: Float[Array, "tensors powers"],
    ) -> Float[Array, "tensors 3"]:
        hidden = jnp.tanh(features @ self.inputs.T + (self.times @ times + self.bias))
        outputs = hidden @ self.head.T + (self.head_times @ times + self.head_bias)
        exponents = outputs[:, 2] + POWER_SCALE * (sizes @ self.powers)
        # No meta-parameters make an update overflow, or vanish altogether.
        return outputs.at[:, 2].set(jnp.clip(exponents, -LARGEST_EXPONENT, LARGEST_EXPONENT))


def depth_of(params: Params) -> int:
    """Return what a `Controller` counts as the depth of a network with these params: how many of the arrays have two
    axes or more; at least 1."""
    return max(1, sum(jnp.ndim(leaf) >= 2 for leaf in jax.tree.leaves(params)))


def log_sizes(leaves: Sequence[Array], depth: int | None = None) -> Float[np.ndarray, "tensors 2"]:
    """Return for every tensor the logarithms of the depth of the network, over the 2 of one layer of hidden units, and
    of its own size over that of 32 x 32; the sizes of tensors with less than two axes do not count."""
    log_depth = math.log((depth or depth_of(leaves)) / 2)
    sizes = [math.log(max(1, leaf.size) / 1024) if leaf.ndim >= 2 else 0.0 for leaf in leaves]
    return np.array([(log_depth, size) for size in sizes], np.float32).reshape(-1, 2)


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of a tensor as a matrix, without moving an entry: the larger one of its first and last
    axes is apart from all others. A vector is one column."""
    first, last = (shape[0], shape[-1]) if len(shape) > 1 else (math.prod(shape), 1)
    size = math.prod(shape)
    return (first, size // max(1, first)) if first > last else (size // max(1, last), last)


def strides(rows: int, columns: int) -> tuple[int, int]:
    """Return how far apart the rows and the columns lie that a sample sees."""
    most = max(1, min(columns, max(FEWEST, SAMPLE // max(1, rows))))
    return max(1, -(-rows // (SAMPLE // most))), max(1, -(-columns // most))


def sample(leaf: Float[Array, "..."]) -> Float[Array, "rows columns"]:
    """Return at most `SAMPLE` entries: a grid of evenly spaced rows and columns of the tensor as a matrix."""
    matrix = leaf.reshape(as_matrix(leaf.shape))
    down, across = strides(*matrix.shape)
    return matrix[::down, ::across]


def time_features(count: Int[Array, ""], horizon: Int[Array, ""]) -> Float[Array, " time_features"]:
    """Return what the network sees of the time: updates so far, of a run of `horizon` updates."""
    time, end = jnp.minimum(count, horizon).astype(float), jnp.maximum(horizon, 1)
    return jnp.tanh(jnp.concatenate([time / jnp.array(TIME_SCALES) - 1, 8 * (time / end - jnp.array(HORIZON_PARTS))]))


def _samples(leaves: list[Float[Array, "..."]], dtype: Any) -> Float[Array, " samples"]:
    return jnp.concatenate([jnp.ravel(sample(leaf)).astype(dtype) for leaf in leaves])


def _of_tensors(samples: Float[Array, "*rows samples"], leaves: list[Array]) -> list[Float[Array, "*rows some"]]:
    """Return the samples of each tensor."""
    ends = np.cumsum([jax.eval_shape(sample, leaf).size for leaf in leaves])
    return jnp.split(samples, ends[:-1], axis=-1)


def _means(rows: Float[Array, "rows samples"], leaves: list[Array]) -> Float[Array, "tensors rows"]:
    """Return the mean of every row over the samples of each tensor; 0 for a tensor without entries."""
    # A product with ones: XLA for CPUs adds up a row one by one, and a product several at a time.
    means = [part @ jnp.ones(part.shape[1], rows.dtype) / max(1, part.shape[1]) for part in _of_tensors(rows, leaves)]
    return jnp.stack(means)


def log_reaches(
    n: Float[Array, " samples"], square: Float[Array, " tensors"], leaves: list[Array]
) -> Float[Array, " tensors"]:
    r"""Return $\ln (R / 32)$ of every tensor, of $n$ at the samples and its mean square; 0 with less than two axes."""

    def squares_of_sums(part: Array, leaf: Array) -> Array:
        if leaf.ndim < 2:
            return jnp.zeros(2, n.dtype)
        grid = part.reshape(jax.eval_shape(sample, leaf).shape)
        return jnp.stack([jnp.sum(jnp.square(jnp.sum(grid, axis))) / max(1, grid.shape[1 - axis]) for axis in (0, 1)])

    # Few operations for all tensors, since on small ones an operation costs more than its arithmetic.
    whole, seen = (
        np.array(sizes, np.float32).reshape(-1, 2)
        for sizes in zip(*[(as_matrix(leaf.shape), jax.eval_shape(sample, leaf).shape) for leaf in leaves], strict=True)
    )
    squares = jnp.stack([squares_of_sums(*pair) for pair in zip(_of_tensors(n, leaves), leaves, strict=True)])
    # Of the square of a sum, what it adds up is one part, and pairs of that another. Both are estimated.
    pairs = (squares - seen * square[:, None]) / np.maximum(1, seen * (seen - 1))
    furthest = jnp.max(whole * square[:, None] + whole * (whole - 1) * jnp.maximum(pairs, 0), axis=1)
    reaching = np.array([leaf.ndim > 1 for leaf in leaves], np.float32)
    return (jnp.log1p(furthest) / 2 - math.log(REACH)) * reaching


def _features(
    products: Float[Array, "tensors 6"], peak: Float[Array, " tensors"], axes: list[int]
) -> tuple[Float[Array, "tensors tensor_features"], Float[Array, " tensors"]]:
    """Return the features of every tensor and the new peak of its gradient's root mean square."""
    # A gradient whose square overflows is a large one, and not the end of the run.
    nn, qq, nq, gg, pp, mm = jnp.minimum(products.T, jnp.finfo(products.dtype).max)
    rms_n, rms_q = (jnp.sqrt(square + SMALLEST_RATIO) for square in (nn, qq))
    # A ratio of roots: of that of their squares, the derivative has a product of denominators that XLA would compute,
    # and which is 1e-60 where nothing moves.
    rms_m, rms_g = (jnp.sqrt(square + UNDER_ROOT) for square in (mm, gg))
    peak = jnp.maximum(peak, rms_g)
    features = [
        rms_n,
        rms_q,
        nq / (rms_n * rms_q),
        jnp.log(rms_g / peak) / 4,
        jnp.log10(pp + SMALLEST_PARAMS) / 4,
        jnp.log(rms_m / rms_g),
        jnp.array(axes) / 2,
    ]
    return jnp.stack([jnp.broadcast_to(feature, peak.shape) for feature in features], axis=1), peak
