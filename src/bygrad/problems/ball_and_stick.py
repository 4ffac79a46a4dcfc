"""Diffusion MRI: the ball-and-stick model, fitted in every voxel of a scan."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Real

from .._core.sizes import all_positive
from .data.embedded import read_arrays
from .diffusion_tensor import main_axis, tensor_of_logs
from .structured import LeastSquares


class Tissue(NamedTuple):
    """What the params of a voxel mean; `direction` has length 1, and its sign means nothing."""

    signal: Float[Array, "*voxels"]
    diffusivity: Float[Array, "*voxels"]
    fraction: Float[Array, "*voxels"]
    direction: Float[Array, "*voxels 3"]


class BallAndStick(LeastSquares):
    r"""One bundle of fibers in isotropic surroundings: five params from the signals of one voxel,

    $$s(b, g) = s_0 \left( f e^{-b d \, (g \cdot n)^2} + (1 - f) \, e^{-b d} \right), \qquad
    n = (\sin\theta \cos\varphi, \sin\theta \sin\varphi, \cos\theta)$$

    for gradients of strength $b$ along $g$. Params: $(\log s_0, \log d, \alpha, \theta, \varphi)$ with the volume
    fraction $f = \sin^2 \alpha$ of the stick and the diffusivity $d$ in µm²/ms, so that no bounds are needed; `tissue`
    names them. An instance is the vector of signals, divided by the first one; residuals are divided by `noise`.

    `init` is where the field starts: a diffusion tensor, fitted to the log signals with $b \le 1.6$ by linear least
    squares. For small $b$ the model *is* a tensor with eigenvalues $d, (1-f) d, (1-f) d$ and first eigenvector $n$.
    `restart` draws from the prior of simulated voxels.

    Simulated voxels have $f \sim U(0.05, 0.8)$, $d \sim U(0.5, 2.5)$, a uniform direction, $s_0 = 1$, and the Rician
    noise of a magnitude image. `scan` holds real ones.

    **Arguments:** `bvals` `[n]`: in ms/µm² (1000 s/mm²). `bvecs` `[n, 3]`: rows of length 1, or 0 where b is below 0.1.
    `noise`: standard deviation of a signal, relative to the first.

    **Raises:** `ValueError` for other shapes or lengths, too few directions for a tensor, and a noise that is not
    positive.

    **Source:** Behrens et al., *Characterization and propagation of uncertainty in diffusion-weighted MR imaging*
    (2003), the partial volume model.
    """

    bvals: Float[Array, " n"]
    bvecs: Float[Array, "n 3"]
    tensor: Float[Array, "7 n"]
    noise: float = eqx.field(static=True)

    # No shapes in these annotations: they come from users' files, and the errors say more than a type checker.
    def __init__(self, bvals: np.ndarray, bvecs: np.ndarray, noise: float = 0.05) -> None:
        if not all_positive(noise):
            raise ValueError(f"noise is {noise}, but residuals are divided by it: give a positive number, 0.05 say.")
        self.tensor, self.noise = jnp.asarray(tensor_of_logs(bvals, bvecs), jnp.float32), noise
        self.bvals, self.bvecs = jnp.asarray(bvals, jnp.float32), jnp.asarray(bvecs, jnp.float32)

    @classmethod
    def embedded(cls) -> "BallAndStick":
        """Build the family with the 102 gradients of the scan that comes with the package, up to 4.1 ms/µm²."""
        arrays = read_arrays("diffusion_101.npz")
        return cls(arrays["bvals"] / 1000, arrays["bvecs"])

    @staticmethod
    def scan() -> Float[np.ndarray, "6 10 10 102"]:
        """Return real voxels of a human brain, 2.5 mm a side: instances of `embedded()` on a grid."""
        signals = read_arrays("diffusion_101.npz")["signals"].astype(np.float32)
        return signals / signals[..., :1]

    def sample(self, key: PRNGKeyArray) -> Float[Array, " n"]:
        tissue_key, noise_key = jax.random.split(key)
        params = self._draw(tissue_key)
        real, imaginary = self.noise * jax.random.normal(noise_key, (2, len(self.bvals)))
        noisy = jnp.hypot(self.signals(params) + real, imaginary)
        return noisy / noisy[0]

    def _draw(self, key: PRNGKeyArray) -> Float[Array, " 5"]:
        f, d, height, turn = jax.random.uniform(key, (4,))
        fraction, diffusivity = 0.05 + 0.75 * f, 0.5 + 2 * d
        alpha, theta = jnp.arcsin(jnp.sqrt(fraction)), jnp.arccos(jnp.clip(2 * height - 1, -1, 1))
        return jnp.stack([jnp.zeros(()), jnp.log(diffusivity), alpha, theta, 2 * jnp.pi * turn])

    def signals(self, params: Float[Array, " 5"]) -> Float[Array, " n"]:
        """Return the model's signals."""
        signal, diffusivity, fraction, direction = self.tissue(params)
        decay = self.bvals.astype(params.dtype) * diffusivity
        # A product of matrices as thin as these takes longer than their arithmetic.
        along = jnp.square(sum(g * n for g, n in zip(self.bvecs.T.astype(params.dtype), direction, strict=True)))
        return signal * (fraction * jnp.exp(-decay * along) + (1 - fraction) * jnp.exp(-decay))

    def tissue(self, params: Float[Array | np.ndarray, "*voxels 5"]) -> Tissue:
        """Say what params mean."""
        log_signal, log_diffusivity, alpha, theta, phi = jnp.moveaxis(params, -1, 0)
        n = jnp.stack([jnp.sin(theta) * jnp.cos(phi), jnp.sin(theta) * jnp.sin(phi), jnp.cos(theta)], axis=-1)
        return Tissue(jnp.exp(log_signal), jnp.exp(log_diffusivity), jnp.square(jnp.sin(alpha)), n)

    def init(self, instance: Real[Array, " n"], key: PRNGKeyArray) -> Float[Array, " 5"]:
        instance = instance.astype(jnp.result_type(instance.dtype, float))  # scanners write whole numbers
        fitted = self.tensor.astype(instance.dtype) @ jnp.log(jnp.maximum(instance, 0.01))
        log_signal, *tensor = jnp.where(jnp.isfinite(fitted), fitted, 0.0)
        largest, (x, y, z) = main_axis(*tensor)
        diffusivity = jnp.clip(largest, 0.1, 4.0)
        fraction = jnp.clip(1 - 0.5 * (sum(tensor[:3]) - largest) / diffusivity, 0.05, 0.95)
        theta, phi = jnp.arctan2(jnp.hypot(x, y), z), jnp.arctan2(y, x)
        return jnp.stack([log_signal, jnp.log(diffusivity), jnp.arcsin(jnp.sqrt(fraction)), theta, phi])

    def restart(self, instance: Real[Array, " n"], key: PRNGKeyArray) -> Float[Array, " 5"]:
        return self._draw(key).astype(jnp.result_type(instance.dtype, float))

    def residuals(self, params: Float[Array, " 5"], instance: Real[Array, " n"]) -> Float[Array, " n"]:
        return (self.signals(params) - instance) / self.noise
