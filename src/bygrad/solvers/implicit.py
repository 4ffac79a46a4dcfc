"""Derivatives of a solution with respect to its instance, by the implicit function theorem."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._core import trees
from .._core.programs import Program
from .._core.sizes import whole_number
from .._core.types import Instance, Params
from ..problems import Composite, ProblemFamily, QuadraticProgram
from ..problems.base import check_is_family
from .base import Flat, certified, check_part
from .proximal import curvature
from .solution import Solution
from .solve import as_rows, precision

POLISH = 3
"""Newton steps from a solution to where its optimality conditions hold to rounding."""

SINGULAR = 1e-2
"""Condition number times rounding above which a system counts as singular: no digits would be left."""

GOLDEN = 0.618033988749895
"""Its multiples modulo 1 are far from each other."""


def implicit(
    family: ProblemFamily, params: Params, instance: Instance, dual: Float[Array | np.ndarray, " m"] | None = None
) -> Params:
    r"""Return a solution as a differentiable function of its instance.

    Where $F(z, \theta) = 0$ at the solution, $dz/d\theta = -F_z^{-1} F_\theta$. The solver is not differentiated: it
    may be any, and may run outside JAX.

    - Smooth families and least squares: $F = \nabla_x f$, with the Hessian of second derivatives as well and not of
      Gauss and Newton's part alone. Params at a bound stay there, and move with it where the instance sets it.
    - `Composite`: $F = x - \operatorname{prox}_{t h}(x - t \nabla g(x))$.
    - `QuadraticProgram`: the gradient of the Lagrangian, and for each row its violation where it binds and its
      multiplier where it does not. Soft rows whose price is paid keep the price as their multiplier.

    The last two have kinks, and the derivatives are those of the piece that the solution lies on. A few Newton steps
    from `params` lead to where $F$ is zero to rounding, so that the piece is known. Derivatives are **NaN** where they
    do not (`params` are too far from the solution), and where the solution lies on a kink (a coefficient about to leave
    zero, a row that binds with multiplier zero). Of every family they are NaN where $F_z$ is singular to rounding (the
    solution is not unique, or rows that bind depend on each other linearly).

    **Arguments:** `params`: the solution of one instance, from `solve`. `instance`: the instance, in the same
    precision or a higher one. `dual`: for a quadratic program its multipliers, a row of `Solution.dual`. A smooth
    family's loss must be twice differentiable there.

    **Returns:** the same values; `jax.grad`, `jax.jvp` and `jax.vmap` of it work, in both modes, for first derivatives.
    `jacobian` returns the derivatives of a whole batch.

    **Raises:** `ValueError` for float64 arrays where JAX computes in float32: an ill-conditioned system leaves few
    digits of that; and for a quadratic program without `dual`.

    **Source:** Bolte, Le, Pauwels and Silveti-Falls, *Nonsmooth implicit differentiation* (2021), for proximal maps;
    Amos and Kolter, *OptNet* (2017), section 3, for quadratic programs.

    >>> import jax, jax.numpy as jnp
    >>> from bygrad.problems import ProblemFamily
    >>> class Root(ProblemFamily):
    ...     def sample(self, key):
    ...         return jax.random.uniform(key, minval=1.0, maxval=4.0)
    ...     def init(self, instance, key):
    ...         return jnp.ones(1)
    ...     def loss(self, params, instance, key):
    ...         return jnp.sum((params**2 - instance) ** 2)
    >>> float(jax.grad(lambda square: implicit(Root(), jnp.array([2.0]), square)[0])(4.0))
    0.25
    """
    check_is_family(family)
    given = jax.tree.leaves((params, instance, dual))
    double = any(getattr(leaf, "dtype", None) == np.float64 for leaf in given)
    if double and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(
            "params or instance are float64, as `solve` returns them, but JAX computes in float32 here, and derivatives"
            " of ill-conditioned problems would be wrong in the second digit. Compute inside `with"
            " jax.enable_x64(True):`, use bygrad.solvers.jacobian, or give float32 arrays if that is enough."
        )
    instance = jax.tree.map(jnp.asarray, instance)
    flat = Flat.of(family, instance)
    x = jax.lax.stop_gradient(flat.vector(params))
    # Bounds are computed anew, perhaps more precisely than where `x` was moved onto one.
    rounding = 4 * jnp.finfo(x.dtype).eps * jnp.abs(x)
    real = [leaf for leaf in jax.tree.leaves(instance) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    x = x.astype(jnp.result_type(x, *real))
    if isinstance(family, Composite):
        return flat.params(_by_pieces(x, *_fixed_point(family, x), instance))
    if isinstance(family, QuadraticProgram):
        if dual is None:
            raise ValueError(
                f"{type(family).__name__} is a quadratic program, and its params alone do not tell which rows bind."
                " Give dual, the instance's row of Solution.dual."
            )
        return flat.params(_by_pieces(x, *_program(family, x, jnp.asarray(dual, x.dtype)), instance))
    low, high = flat.bounds(x, instance)
    lowest = x <= low + rounding
    free = ~lowest & (x < high - rounding)
    held = jnp.where(free, x, jnp.where(lowest, low, high))
    held = x + (held - jax.lax.stop_gradient(held))
    gradient = jax.grad(flat.loss)(held, instance)
    fixed = jax.tree.map(jax.lax.stop_gradient, instance)

    def inverted(x: Array) -> tuple[Array, Array]:
        """Return the inverse Hessian of the free params, and whether the Hessian is regular in whatever units."""
        hessian = jax.lax.stop_gradient(jax.hessian(flat.loss)(x, fixed))
        system = jnp.where(free[:, None] & free[None, :], hessian, jnp.diag(jnp.where(free, 0.0, 1.0)))
        own = jnp.diagonal(system)
        unit = jnp.where(own > 0, jax.lax.rsqrt(jnp.where(own > 0, own, 1.0)), 1.0)
        system = unit[:, None] * system * unit
        inverse = jnp.linalg.inv(system)
        return unit[:, None] * inverse * unit, _regular(system, inverse)

    residual = jnp.where(free, gradient, 0.0)
    inverse, regular = inverted(x)
    # What `x` is short of the solution may be all that makes it regular there.
    regular &= inverted(x - inverse @ jax.lax.stop_gradient(residual))[1]
    return flat.params(_tied(held, inverse, residual + _unless(regular, instance, x.dtype)))


Drive = Callable[[Array, Instance], Array]
Conditions = Callable[[Array, Array, Instance], Array]


def _fixed_point(family: Composite, x: Float[Array, " p"]) -> tuple[Array, Drive, Conditions]:
    """Return the unknowns of an optimum, what may be driven across kinks, and what is zero at the optimum."""
    step = 1 / curvature(family, x.dtype)

    def drive(x: Array, instance: Instance) -> Array:
        return x - step * jax.grad(family.smooth)(x, instance)

    def conditions(x: Array, driven: Array, instance: Instance) -> Array:
        return x - family.prox(driven, step, instance)

    return x, drive, conditions


def _program(
    family: QuadraticProgram, x: Float[Array, " p"], dual: Float[Array, " m"]
) -> tuple[Array, Drive, Conditions]:
    """Do the same with params and multipliers of all rows in one vector."""
    quadratic, constraints = (jnp.asarray(it, x.dtype) for it in family.matrices)
    equations, ceiling = jnp.asarray(family.equations), jnp.asarray(family.ceiling, x.dtype)
    (limits,) = jnp.nonzero(~equations, size=dual.size)
    y = jnp.zeros(equations.size, x.dtype).at[limits].set(dual)  # those of equations one Newton step finds
    count = x.size

    def drive(z: Array, instance: Instance) -> Array:
        return constraints @ z[:count] + z[count:]

    def conditions(z: Array, driven: Array, instance: Instance) -> Array:
        x, y = z[:count], z[count:]
        *_, linear, low, high = family.written_out(instance, x.dtype)
        binds = equations | ((low == high) & jnp.isinf(ceiling))
        pushed = jnp.clip(driven - jnp.clip(driven, low, high), -ceiling, ceiling)
        slope = quadratic @ x + linear + constraints.T @ y
        return jnp.concatenate([slope, jnp.where(binds, constraints @ x - low, y - pushed)])

    return jnp.concatenate([x, y]), drive, conditions


def _by_pieces(x: Float[Array, " p"], z: Array, drive: Drive, conditions: Conditions, instance: Instance) -> Array:
    """Return `x` with the derivatives of the first of the unknowns, near `z`, for which the conditions hold."""
    fixed = jax.tree.map(jax.lax.stop_gradient, instance)

    def residual(z: Array, instance: Instance) -> Array:
        return conditions(z, drive(z, instance), instance)

    def newton(_: Any, z: Array) -> Array:
        return z - jnp.linalg.solve(jax.jacfwd(residual)(z, fixed), residual(z, fixed))

    z = jax.lax.stop_gradient(jax.lax.fori_loop(0, POLISH, newton, z))
    system = jax.jacfwd(residual)(z, fixed)
    inverse = jnp.linalg.inv(system)
    eps = jnp.finfo(x.dtype).eps

    driven = drive(z, fixed)
    size = jnp.maximum(trees.largest(jnp.concatenate([z, driven])), jnp.sqrt(jnp.finfo(x.dtype).tiny))
    error = 2 * trees.largest(inverse @ residual(z, fixed)) + 100 * eps * size
    # On one piece the slope is the same on both sides. All entries of `way` differ: along the normal of a plane that
    # `prox` projects onto, no kink would be seen.
    way = 0.5 + (GOLDEN * jnp.arange(driven.size, dtype=x.dtype)) % 1

    def slope(side: int) -> Array:
        return jax.jvp(lambda driven: conditions(z, driven, fixed), (driven + side * error * way,), (way,))[1]

    jump = jnp.maximum(trees.largest(slope(1) - slope(0)), trees.largest(slope(-1) - slope(0)))
    known = _regular(system, inverse) & (error < jnp.sqrt(eps) * size) & (jump < jnp.cbrt(eps))
    return _tied(x, inverse[: x.size], residual(z, instance) + _unless(known, instance, x.dtype))


def _regular(system: Array, inverse: Array) -> Array:
    eps = jnp.finfo(system.dtype).eps
    return eps * jnp.linalg.norm(system, 1) * jnp.linalg.norm(inverse, 1) < SINGULAR


def _unless(known: Array, instance: Instance, dtype: Any) -> Array:
    """Return what makes derivatives NaN where they are not known, in every direction: a limit that does not bind is not
    in the residual, though it might if it moved."""
    real = [jnp.sum(leaf) for leaf in jax.tree.leaves(instance) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.where(known, 0.0, jnp.nan) * sum(real, jnp.zeros((), dtype))


@jax.custom_jvp
def _tied(x: Array, inverse: Array, residual: Array) -> Array:
    """Return `x`, to whose derivative that of a Newton step is added: it may be NaN where `x` is not."""
    return x


@_tied.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    return primals[0], tangents[0] - primals[1] @ tangents[2]


def jacobian(
    family: ProblemFamily, solution: Solution, instances: PyTree[Any], *, batch: int | None = None
) -> PyTree[np.ndarray]:
    r"""Return the derivatives $dx_i/d\theta_i$ of a batch of solutions, in float64 as `solve` computes.

    **Arguments:** `solution`: what `solve` returned for `instances`; derivatives are as exact as it is. `batch`: rows
    that are worked on at once; by default 256, and 32 for composite families and quadratic programs.

    **Returns:** built as the params are, and inside each leaf as an instance is: arrays `[rows, *param, *instance]`.
    Integers in an instance have no derivative: None. Rows that are not solved are NaN, and so are those whose
    derivatives do not exist or are not known, as `implicit` says.

    **Raises:** `ValueError` where `instances` has another number of rows.

    >>> import jax, numpy as np
    >>> from bygrad.problems import DampedOscillation
    >>> from bygrad.solvers import solve
    >>> family = DampedOscillation(start="spectrum")
    >>> data = jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 3))
    >>> jacobian(family, solve(family, data), data).shape  # of 5 params by 41 samples
    (3, 5, 41)
    """
    check_is_family(family)
    check_part("solution", solution, Solution)
    with precision(np.float64, family):
        (arrays, given), rows = as_rows(instances, np.float64), len(solution)
        if given != rows:
            raise ValueError(
                f"There are {rows} solutions and {given} instances, so it is not known which belong together."
                " Give the instances that were solved."
            )
        usual = 32 if certified(family) else 256
        batch = usual if batch is None else whole_number(batch, "batch", "rows that are worked on at once")
        # Of `x` its own precision tells which bounds it is at.
        x, dual = jax.tree.map(np.asarray, solution.x), np.asarray(solution.dual, float)
        blocks = []
        for at in range(0, max(rows, 1), batch):
            pick = np.arange(at, at + batch) % rows if rows else np.arange(0)  # blocks of one size compile once
            blocks.append(_jacobians(family, *trees.rows((x, dual, arrays), pick)))
        unsolved = ~solution.success
        return jax.tree.map(lambda *leaves: _joined(leaves, unsolved), *blocks)


@Program
def _jacobians(family: ProblemFamily, x: Params, dual: Array, instances: PyTree[Array]) -> PyTree[Array]:
    def one(x: Params, dual: Array, instance: Instance) -> PyTree[Array]:
        real, rest = eqx.partition(instance, eqx.is_inexact_array)
        if not jax.tree.leaves(real):
            return jax.tree.map(lambda _: real, x)
        return jax.jacrev(lambda real: implicit(family, x, eqx.combine(real, rest), dual))(real)

    return jax.vmap(one)(x, dual, instances)


def _joined(blocks: tuple[Array, ...], unsolved: np.ndarray) -> np.ndarray:
    """Put blocks together, without what fills the last one up."""
    every = np.concatenate([np.asarray(block) for block in blocks])[: len(unsolved)]
    every[unsolved] = np.nan
    return every
