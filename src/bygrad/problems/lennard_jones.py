"""Lennard-Jones clusters: smooth minimization with very many minima."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._core.sizes import all_count, all_positive
from .structured import Bounded

GLOBAL_MINIMA = {
    2: -1.0,
    3: -3.0,
    4: -6.0,
    5: -9.103852,
    6: -12.712062,
    7: -16.505384,
    8: -19.821489,
    9: -24.113360,
    10: -28.422532,
    11: -32.765970,
    12: -37.967600,
    13: -44.326801,
}
"""The lowest energies known, by the number of atoms (Hoare and Pal, 1971; Wales and Doye, 1997)."""

CLOSEST = 0.7
"""Pairs nearer than this, in units of σ, are on a line in the squared distance: no minimum has such pairs."""


class LennardJones(Bounded):
    r"""The energy of a cluster in units of the well's depth, by positions `[atoms, 3]` in units of σ:

    $$E = 4 \sum_{i<j} \left( r_{ij}^{-12} - r_{ij}^{-6} \right)$$

    An instance is a start: positions drawn uniformly from a ball of radius `spread` times the cube root of the number
    of atoms. Thirteen atoms have about 1,500 minima; the lowest, -44.3268, is an icosahedron. Atoms drawn on top of
    each other would have energies beyond any floating-point number, so the repulsion is capped (`CLOSEST`).

    **Arguments:** `atoms`: of the clusters that are drawn; the energy is that of as many as there are positions.
    `spread`: see above.

    **Source:** Wales and Doye, *Global optimization by basin-hopping* (1997), equation 2.
    """

    atoms: int = eqx.field(static=True, default=13)
    spread: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        if not (all_count(self.atoms, least=2) and all_positive(self.spread)):
            raise ValueError(
                f"atoms is {self.atoms} and spread {self.spread}: a cluster has two atoms or more, drawn from a ball"
                " with a positive radius."
            )

    def sample(self, key: PRNGKeyArray) -> Float[Array, "atoms 3"]:
        return self._drawn(key, self.atoms)

    def _drawn(self, key: PRNGKeyArray, atoms: int) -> Float[Array, "atoms 3"]:
        direction_key, radius_key = jax.random.split(key)
        direction = jax.random.normal(direction_key, (atoms, 3))
        direction /= jnp.linalg.norm(direction, axis=1, keepdims=True)
        radius = jnp.cbrt(atoms * jax.random.uniform(radius_key, (atoms, 1)))
        return self.spread * radius * direction

    def init(self, instance: Float[Array, "atoms 3"], key: PRNGKeyArray) -> Float[Array, "atoms 3"]:
        return instance

    def restart(self, instance: Float[Array, "atoms 3"], key: PRNGKeyArray) -> Float[Array, "atoms 3"]:
        return self._drawn(key, len(instance)).astype(instance.dtype)

    def loss(
        self, params: Float[Array, "atoms 3"], instance: Float[Array, "atoms 3"], key: PRNGKeyArray | None
    ) -> Float[Array, ""]:
        first, second = np.triu_indices(len(params), 1)
        squared = jnp.sum(jnp.square(params[first] - params[second]), axis=1)
        limit = CLOSEST**2
        inverse = 1 / jnp.maximum(squared, limit) ** 3
        slope = 4 * (3 * limit**-4 - 6 * limit**-7)
        return jnp.sum(4 * inverse * (inverse - 1) + slope * jnp.minimum(squared - limit, 0.0))
