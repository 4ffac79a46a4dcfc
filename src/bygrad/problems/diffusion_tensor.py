"""The diffusion tensor, from which fits of other models of a voxel start."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._core.types import Scalar

GAUSSIAN = 1.6
"""Up to this b-value, in ms/µm², diffusion is taken as Gaussian, so that a tensor describes it."""

UNWEIGHTED = 0.1
"""Below this b-value, in ms/µm², scanners write directions of length 0: they do not matter."""


def tensor_of_logs(bvals: np.ndarray, bvecs: np.ndarray) -> Float[np.ndarray, "7 n"]:
    """Return what maps the logarithms of the signals of `n` gradients to that of the signal without any, and to the
    tensor (xx, yy, zz, xy, xz, yz, in µm²/ms), by linear least squares.

    **Raises:** `ValueError` for gradients that are none, and where too few are left for a tensor.
    """
    _check_gradients(bvals, bvecs)
    weak = bvals <= GAUSSIAN
    x, y, z = bvecs.T
    products = np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z])
    design = np.concatenate([np.ones((1, len(bvals))), -bvals * products]) * weak
    if (rank := np.linalg.matrix_rank(design)) < 7:
        raise ValueError(
            f"There are {weak.sum()} volumes with b up to {GAUSSIAN} ms/µm², of rank {rank}, but a tensor has 6 params"
            " beside the signal without diffusion. Give b in ms/µm² (1000 s/mm²), or more directions."
        )
    return np.linalg.pinv(design.T)


def _check_gradients(bvals: np.ndarray, bvecs: np.ndarray) -> None:
    if bvals.ndim != 1 or bvecs.shape != (len(bvals), 3):
        remedy = "bvecs.T" if bvecs.shape == (3, len(bvals)) else "a b-value and a direction for every volume"
        raise ValueError(
            f"bvals has shape {list(bvals.shape)} and bvecs {list(bvecs.shape)}, but needed are [n] and [n, 3]. Give"
            f" {remedy}."
        )
    lengths = np.linalg.norm(bvecs, axis=1)
    known = (np.abs(lengths - 1) < 0.01) | ((lengths < 0.01) & (bvals < UNWEIGHTED))
    if not (known & (bvals >= 0) & np.isfinite(bvals)).all():
        worst = int(np.argmin(known & (bvals >= 0) & np.isfinite(bvals)))
        raise ValueError(
            f"Volume {worst} has b = {bvals[worst]:g} ms/µm² along a direction of length {lengths[worst]:g}: its signal"
            " would be that of another gradient. Give b-values that are not negative and directions of length 1, bvecs"
            " divided by their norms; it may be 0 where there is no gradient."
        )


def main_axis(
    xx: Scalar, yy: Scalar, zz: Scalar, xy: Scalar, xz: Scalar, yz: Scalar
) -> tuple[Scalar, tuple[Scalar, Scalar, Scalar]]:
    """Return the largest eigenvalue of a symmetric matrix and its eigenvector, of any length, zero where all directions
    are alike. It is written out, as a call of LAPACK for each voxel takes as long as half a step of its fit.

    **Source:** Smith, *Eigenvalues of a symmetric 3 x 3 matrix* (1961). The adjugate of a matrix less its eigenvalue
    has the eigenvector in all its columns.
    """
    middle = (xx + yy + zz) / 3
    x, y, z = xx - middle, yy - middle, zz - middle
    spread = jnp.sqrt((x * x + y * y + z * z + 2 * (xy * xy + xz * xz + yz * yz)) / 6)
    determinant = x * (y * z - yz * yz) - xy * (xy * z - yz * xz) + xz * (xy * yz - y * xz)
    turn = jnp.arccos(jnp.clip(determinant / (2 * jnp.maximum(spread, 1e-12) ** 3), -1.0, 1.0)) / 3
    above = 2 * spread * jnp.cos(turn)
    x, y, z = x - above, y - above, z - above
    own = y * z - yz * yz, x * z - xz * xz, x * y - xy * xy
    shared = xz * yz - xy * z, xy * yz - xz * y, xy * xz - x * yz
    columns = (own[0], shared[0], shared[1]), (shared[0], own[1], shared[2]), (shared[1], shared[2], own[2])
    first, second = (own[0] >= own[1]) & (own[0] >= own[2]), own[1] >= own[2]
    a, b, c = (jnp.where(first, p, jnp.where(second, q, r)) for p, q, r in zip(*columns, strict=True))
    return middle + above, (a, b, c)
