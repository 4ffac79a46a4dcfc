"""Model predictive control of a quadrotor: one quadratic program for every state, the example of OSQP's manual."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .._core.sizes import all_count, all_sizes
from .structured import QuadraticProgram

HOVER = 10.5916
"""Thrust at which it hovers; the inputs are deviations from it."""


class QuadrotorControl(QuadraticProgram):
    r"""Steer a quadrotor to one metre above the origin: $\min \sum_k (x_k - x_r)^\top Q (x_k - x_r) + u_k^\top R u_k$.

    Subject to $x_{k+1} = A x_k + B u_k$ over `horizon` steps of 0.1 s and to limits of thrust, roll, pitch and height.
    Params: $(x_0, \dots, x_N, u_0, \dots, u_{N-1})$. An instance is the state $x_0$, 12 numbers: roll, pitch and yaw,
    position, and the speeds of the six. States are drawn from $N(0, \mathrm{spread}^2)$ with standard deviations 0.1,
    0.5 and 0.2 for angles, position and speeds, and `spread` a factor on them.

    **Source:** <https://osqp.org/docs/examples/mpc.html>, whose reference is a yaw of one radian instead of a height,
    and which limits the first state as well.
    """

    quadratic: Float[Array, "n n"]
    constraints: Float[Array, "m n"]
    linear: Float[Array, " n"]
    limits: Float[Array, "2 limited"]
    spread: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        if not all_sizes(self.spread):
            raise ValueError(f"spread is {self.spread}, but states are drawn with deviations times it: give 1.0, say.")

    @classmethod
    def build(cls, horizon: int = 10, spread: float = 1.0) -> "QuadrotorControl":
        """Write the problem out for a horizon of so many steps; 10 is that of the example, with 172 params.

        **Raises:** `ValueError` for a horizon below 1, and a spread that is negative or no number.
        """
        if not all_count(horizon):
            raise ValueError(f"horizon is {horizon}, but a flight has a step to steer in: give 1 or more.")
        a, b = _dynamics()
        weight = np.diag([0, 0, 10, 10, 10, 10, 0, 0, 0, 5, 5, 5.0])
        target = np.zeros(12)
        target[5] = 1.0
        states = horizon + 1
        quadratic = np.kron(np.eye(states), weight)
        quadratic = np.block(
            [
                [quadratic, np.zeros((12 * states, 4 * horizon))],
                [np.zeros((4 * horizon, 12 * states)), 0.1 * np.eye(4 * horizon)],
            ]
        )
        linear = np.concatenate([np.tile(-weight @ target, states), np.zeros(4 * horizon)])
        moves = np.kron(np.eye(states), -np.eye(12)) + np.kron(np.eye(states, k=-1), a)
        inputs = np.kron(np.vstack([np.zeros((1, horizon)), np.eye(horizon)]), b)
        low, high = np.full(12, -np.inf), np.full(12, np.inf)
        low[:2], high[:2], low[5] = -np.pi / 6, np.pi / 6, -1.0
        # The first state is given, wherever it is: limits on it could only make the program infeasible.
        first = np.full(12, np.inf)
        limits = np.stack(
            [
                np.concatenate([-first, np.tile(low, horizon), np.full(4 * horizon, 9.6 - HOVER)]),
                np.concatenate([first, np.tile(high, horizon), np.full(4 * horizon, 13.0 - HOVER)]),
            ]
        )
        limited = np.isfinite(limits).any(axis=0)
        constraints = np.vstack([np.hstack([moves, inputs]), np.eye(len(linear))[limited]])
        single = lambda it: jnp.asarray(it, jnp.float32)  # noqa: E731
        return cls(single(quadratic), single(constraints), single(linear), single(limits[:, limited]), spread)

    def sample(self, key: PRNGKeyArray) -> Float[Array, " 12"]:
        scale = jnp.array([0.1] * 3 + [0.5] * 3 + [0.2] * 6)
        return self.spread * scale * jax.random.normal(key, (12,))

    @property
    def matrices(self) -> tuple[Float[Array, "n n"], Float[Array, "m n"]]:
        return self.quadratic, self.constraints

    @property
    def equations(self) -> Bool[Array, " m"]:
        rows = len(self.constraints)
        return jnp.arange(rows) < rows - self.limits.shape[1]

    def vectors(self, instance: Float[Array, " 12"]) -> tuple[Array, Array, Array]:
        low, high = self.limits
        dynamics = jnp.zeros(len(self.constraints) - len(low), instance.dtype).at[:12].set(-instance)
        return self.linear, jnp.concatenate([dynamics, low]), jnp.concatenate([dynamics, high])


def _dynamics() -> tuple[np.ndarray, np.ndarray]:
    """Return A and B of the linearized quadrotor."""
    a = np.eye(12)
    for row in range(3):
        a[row, row + 6] = 0.1
    a[3, [0, 6, 9]] = 0.0488, 0.0016, 0.0992
    a[4, [1, 7, 10]] = -0.0488, -0.0016, 0.0992
    a[5, 11] = 0.0992
    a[9, [0, 6, 9]] = 0.9734, 0.0488, 0.9846
    a[10, [1, 7, 10]] = -0.9734, -0.0488, 0.9846
    a[11, 11] = 0.9846
    b = np.zeros((12, 4))
    for row, value in ((0, 0.0726), (3, 0.0006), (6, 1.4512), (9, 0.0236)):
        b[row, [1, 3]] = -value, value
    for row, value in ((1, -0.0726), (4, 0.0006), (7, -1.4512), (10, 0.0236)):
        b[row, [0, 2]] = value, -value
    for row, value in ((2, 0.0152), (8, 0.3049)):
        b[row] = -value, value, -value, value
    b[5], b[11] = 0.0106, 0.2107
    return a, b
