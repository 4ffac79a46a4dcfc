"""Families whose structure a solver can use: sums of squares, composite objectives, quadratic programs."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .._core.types import Instance, Params, Scalar
from .base import ProblemFamily


class Bounded(ProblemFamily):
    """A family whose params may have bounds; `bygrad.solve` minimizes it by L-BFGS."""

    def bounds(self, instance: Instance) -> tuple[Params, Params] | None:
        """Return the lowest and the highest params that are allowed, infinite where there is no limit, or None."""
        return None

    def restart(self, instance: Instance, key: PRNGKeyArray) -> Params:
        """Draw another start, for solvers that try several; those of `init` where a family says nothing else.

        Where `init` does not use its key, all of these are the same: write this one, or several starts find no more.
        """
        return self.init(instance, key)


class Modelled(ProblemFamily):
    r"""A convex loss of a model's outputs: $f_i(p) = \ell_i(m_i(p))$, which is what Gauss–Newton methods use.

    Both parts see the key of the minibatch, and must draw the same one from it.
    """

    @abc.abstractmethod
    def outputs(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Params:
        """Return $m(p)$: one array, or several in a tree."""

    @abc.abstractmethod
    def output_loss(self, outputs: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        r"""Return $\ell$ of the outputs, convex and twice differentiable in them."""

    def loss(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        return self.output_loss(self.outputs(params, instance, key), instance, key)


class LeastSquares(Bounded, Modelled):
    r"""Nonlinear least squares: $f_i(p) = \frac12 \lVert r_i(p) \rVert^2$.

    It is a `ProblemFamily`, so every optimizer can be trained and tested on it. `bygrad.solve` uses more than the
    gradient: the Jacobian of the residuals.

    >>> import jax, jax.numpy as jnp
    >>> class Decay(LeastSquares):
    ...     def sample(self, key):
    ...         rate = jax.random.uniform(key, minval=0.5, maxval=2.0)
    ...         return jnp.exp(-rate * jnp.linspace(0.0, 2.0, 5))
    ...     def init(self, instance, key):
    ...         return jnp.ones(2)
    ...     def restart(self, instance, key):  # for `starts` above 1
    ...         return jnp.exp(jax.random.normal(key, (2,)))
    ...     def residuals(self, params, instance):
    ...         return params[0] * jnp.exp(-params[1] * jnp.linspace(0.0, 2.0, 5)) - instance
    """

    @abc.abstractmethod
    def residuals(self, params: Params, instance: Instance) -> Float[Array, " n"]:
        """Return what should be zero, a vector: model minus data, each divided by its standard deviation."""

    def outputs(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Float[Array, " n"]:
        return self.residuals(params, instance)

    def output_loss(self, outputs: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        return 0.5 * jnp.sum(jnp.square(outputs))


class Composite(ProblemFamily):
    r"""A smooth part and a simple one: $f_i(p) = g_i(p) + h_i(p)$, where the proximal map of $h$ is known.

    $\operatorname{prox}_{s h}(v) = \arg\min_p \, h(p) + \lVert p - v \rVert^2 / 2s$. Params are one vector.

    >>> import bygrad, jax, jax.numpy as jnp, numpy as np
    >>> from bygrad.problems import Composite
    >>> class Lasso(Composite):  # sparse combinations of columns that give the instance, a signal
    ...     columns: np.ndarray
    ...     def sample(self, key):
    ...         return jax.random.normal(key, (len(self.columns),))
    ...     def init(self, instance, key):
    ...         return jnp.zeros(self.columns.shape[1])
    ...     def smooth(self, params, instance):
    ...         return 0.5 * jnp.sum((self.columns @ params - instance) ** 2)
    ...     def penalty(self, params, instance):
    ...         return 0.5 * jnp.sum(jnp.abs(params))
    ...     def prox(self, params, step, instance):
    ...         return jnp.sign(params) * jnp.maximum(jnp.abs(params) - 0.5 * step, 0.0)
    ...     def curvature(self):
    ...         return jnp.linalg.norm(self.columns, 2) ** 2
    >>> bygrad.solve(Lasso(np.eye(3)), np.array([[3.0, 0.2, -1.0]])).x  # here each entry by itself
    array([[ 2.5,  0. , -0.5]])
    """

    @abc.abstractmethod
    def smooth(self, params: Float[Array, " p"], instance: Instance) -> Scalar:
        """Return $g$, which must be differentiable."""

    @abc.abstractmethod
    def penalty(self, params: Float[Array, " p"], instance: Instance) -> Scalar:
        """Return $h$, which may have kinks.

        Where $h$ is infinite, return a finite price that grows with the violation: `prox` keeps solvers from there, and
        what sees the loss alone needs its slope.
        """

    @abc.abstractmethod
    def prox(self, params: Float[Array, " p"], step: Scalar, instance: Instance) -> Float[Array, " p"]:
        r"""Return $\operatorname{prox}_{s h}$ at `params` for the step $s$.

        For $s = 0$ that is the nearest point where $h$ is finite, to which solvers move every start.
        """

    @property
    def separable(self) -> bool:
        """Whether `prox` takes a step for each param as well, as it can where $h$ is a sum over params. Default: no."""
        return False

    @abc.abstractmethod
    def curvature(self) -> Scalar:
        r"""Return an $L$ with $\nabla g$ $L$-Lipschitz for every instance: steps up to $1/L$ are safe."""

    def gap(self, params: Float[Array, " p"], gradient: Float[Array, " p"], instance: Instance) -> Scalar | None:
        r"""Return an upper bound on $f(p) - \min f$, given $\nabla g(p)$, or None where no duality gap is known.

        It must be infinite where $h$ is, beyond rounding: solvers take it as a proof.
        """
        return None

    def loss(self, params: Float[Array, " p"], instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        return self.smooth(params, instance) + self.penalty(params, instance)


class QuadraticProgram(ProblemFamily):
    r"""Convex quadratic programs that share their matrices:
    $\min_p \frac12 p^\top P p + q_i^\top p$ subject to $l_i \le A p \le u_i$.

    As a `ProblemFamily`, its loss is the objective plus `penalty` times half the squared violation of the constraints;
    rows with a price (`ceiling`) count their violation times it instead.

    >>> import bygrad, jax, jax.numpy as jnp, numpy as np
    >>> from bygrad.problems import QuadraticProgram
    >>> class Portions(QuadraticProgram):  # shares of 0.1 at least, next to what is wished for
    ...     def sample(self, key):
    ...         return jax.random.normal(key, (3,))
    ...     @property
    ...     def matrices(self):
    ...         return jnp.eye(3), jnp.concatenate([jnp.ones((1, 3)), jnp.eye(3)])
    ...     @property
    ...     def equations(self):  # the first row, by which shares add up to 1
    ...         return jnp.array([True, False, False, False])
    ...     def vectors(self, instance):
    ...         return -instance, jnp.array([1.0, 0.1, 0.1, 0.1]), jnp.array([1.0, jnp.inf, jnp.inf, jnp.inf])
    >>> bygrad.solve(Portions(), np.array([[0.6, 0.2, -1.0]]), tol=1e-6).x.round(4)
    array([[0.65, 0.25, 0.1 ]])
    """

    @property
    @abc.abstractmethod
    def matrices(self) -> tuple[Float[Array, "n n"], Float[Array, "m n"]]:
        """Return $P$, symmetric and positive semidefinite, and $A$."""

    @abc.abstractmethod
    def vectors(self, instance: Instance) -> tuple[Float[Array, " n"], Float[Array, " m"], Float[Array, " m"]]:
        """Return $q$, $l$ and $u$ of an instance; a row with $l = u$ is an equation, infinite values are no limit.

        A limit may be one number for all rows, and all of them NumPy's arrays, as the matrices may.
        """

    def written_out(self, instance: Instance, dtype: Any) -> tuple[Array, Array, Array, Array, Array]:
        """Return $P$, $A$, $q$, $l$ and $u$ as arrays of one dtype, with a limit for every row."""
        quadratic, constraints, linear, low, high = (
            jnp.asarray(it, dtype) for it in (*self.matrices, *self.vectors(instance))
        )
        low, high = (jnp.broadcast_to(limit, constraints.shape[:1]) for limit in (low, high))
        return quadratic, constraints, linear, low, high

    @property
    def equations(self) -> Bool[Array, " m"]:
        """Say which rows are equations, $l = u$, in every instance: solvers eliminate them. Default: none."""
        _, constraints = self.matrices
        return jnp.zeros(constraints.shape[0], bool)

    @property
    def ceiling(self) -> Float[Array, " m"]:
        """Return the price of a unit of violation of each row, infinite where it must hold. Default: all must hold.

        A row with a price is soft: the objective includes price times violation, and multipliers never exceed it.
        """
        _, constraints = self.matrices
        return jnp.full(constraints.shape[0], jnp.inf)

    def certify(
        self, params: Float[Array, " n"], dual: Float[Array, " m"], instance: Instance
    ) -> tuple[Float[Array, " n"], Scalar, Scalar] | None:
        r"""Return a point near `params` that satisfies all hard rows, its objective, and a lower bound on the minimum.

        `dual`: multipliers of the inequality rows, not optimal ones. Default: None, there are no such bounds.
        """
        return None

    def repair(self, params: Float[Array, " n"], instance: Instance) -> Float[Array, " n"] | None:
        """Return a point near `params` that satisfies all hard rows, and `params` where they do. Default: None."""
        return None

    @property
    def penalty(self) -> float:
        """What half the squared violation weighs in `loss`."""
        return 100.0

    def init(self, instance: Instance, key: PRNGKeyArray) -> Float[Array, " n"]:
        quadratic, _ = self.matrices
        # Matrices of whole numbers are numbers all the same.
        return jnp.zeros(quadratic.shape[0], jnp.result_type(jax.dtypes.canonicalize_dtype(quadratic.dtype), float))

    def objective(self, params: Float[Array, " n"], instance: Instance) -> Scalar:
        """Return the objective without the constraints."""
        quadratic, _ = self.matrices
        linear, _, _ = self.vectors(instance)
        return 0.5 * params @ quadratic @ params + linear @ params

    def loss(self, params: Float[Array, " n"], instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        _, constraints = self.matrices
        _, low, high = self.vectors(instance)
        rows = constraints @ params
        # A row that holds has no curvature either; equations have it everywhere.
        violated = (rows < low) | (rows > high) | (low == high)
        violation = jnp.where(violated, rows - jax.lax.stop_gradient(jnp.clip(rows, low, high)), 0.0)
        soft = jnp.isfinite(self.ceiling)
        price = jnp.where(soft, self.ceiling, 0.0) * jnp.abs(violation)
        return self.objective(params, instance) + jnp.sum(
            jnp.where(soft, price, 0.5 * self.penalty * jnp.square(violation))
        )
