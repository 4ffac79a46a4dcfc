"""Convolution of minibatches as matrix products that stay in the cache, where XLA for CPUs would be slow."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

BLOCK = 16
"""Images that are convolved together: as many floats as a cache line has, and the rows that a kernel sees fit the
cache, where the patches of a whole block would not."""

Images = Float[Array, "_ _ _ _ _"]
"""A minibatch, `[blocks, channels, h, w, images of a block]`: channels first, so that a row of
patches is a copy of whole rows; images last, so that arithmetic runs along them whatever the size of a picture."""


def in_blocks(images: Array) -> Array:
    """Turn `[n, h, w, channels]` into `Images`, in blocks of the largest divisor of `n` that is at most `BLOCK`."""
    n, *shape = images.shape
    block = max(size for size in range(1, min(n, BLOCK) + 1) if n % size == 0)
    return images.reshape(n // block, block, *shape).transpose(0, 4, 2, 3, 1)


def from_blocks(images: Images) -> Float[Array, "n h w channels"]:
    """Undo `in_blocks`."""
    _, *shape, _ = images.shape
    return images.transpose(0, 4, 2, 3, 1).reshape(-1, *shape[1:], shape[0])


@jax.custom_vjp
def convolve(images: Images, kernel: Float[Array, "k k i o"]) -> Images:
    r"""Convolve images with a kernel of odd side, stride 1, with zeros around them, so that sizes stay.

    $$y_{rs} = \sum_{a, b} x_{r + a, s + b} K_{ab}, \qquad -\tfrac{k - 1}{2} \le a, b \le \tfrac{k - 1}{2}$$

    Reverse mode has its own rule: with respect to the images it is the convolution with the kernel turned by half a
    circle, which needs no scattering into patches. Forward mode works on gradients, not on this function itself.
    """
    return _convolve(images, kernel)


def _convolve(images: Images, kernel: Float[Array, "k k i o"]) -> Images:
    side, _, _, outputs = kernel.shape
    matrix = kernel.transpose(3, 0, 1, 2).reshape(outputs, -1)

    def block(x: Float[Array, "i h w n"]) -> Float[Array, "o h w n"]:
        _, height, width, n = x.shape
        shifted = _shifted(x, side)
        rows = jax.lax.map(lambda row: matrix @ _patches(shifted, row, side), jnp.arange(height))
        return rows.reshape(height, outputs, width, n).transpose(1, 0, 2, 3)

    return jax.lax.map(block, images)


def _kernel_gradient(images: Images, cots: Images, side: int) -> Float[Array, "k k i o"]:
    inputs, outputs = images.shape[1], cots.shape[1]

    def block(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        x, cot = pair
        shifted, rows = _shifted(x, side), cot.transpose(1, 0, 2, 3).reshape(cot.shape[1], outputs, -1)

        def row(total: Array, r: Array) -> tuple[Array, None]:
            return total + rows[r] @ _patches(shifted, r, side).T, None

        return jax.lax.scan(row, total, jnp.arange(len(rows)))[0], None

    total, _ = jax.lax.scan(block, jnp.zeros((outputs, side * side * inputs), cots.dtype), (images, cots))
    return total.reshape(outputs, side, side, inputs).transpose(1, 2, 3, 0)


def _shifted(x: Float[Array, "i h w n"], side: int) -> Float[Array, "rows shifts places"]:
    """Put zeros around a block, and beside every row its neighbours that a kernel of that side sees."""
    inputs, height, width, n = x.shape
    margin = side // 2
    rows = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0))).transpose(1, 0, 2, 3)
    shifted = jnp.concatenate([rows[:, :, b : b + width] for b in range(side)], axis=1)
    return shifted.reshape(height + side - 1, side * inputs, width * n)


def _patches(shifted: Float[Array, "rows shifts places"], row: Array, side: int) -> Float[Array, "patch places"]:
    """Return what the kernel sees at each place of a row: a copy of adjacent memory."""
    return jax.lax.dynamic_slice_in_dim(shifted, row, side).reshape(-1, shifted.shape[-1])


def _keep(images: Images, kernel: Float[Array, "k k i o"]) -> tuple[Images, tuple[Images, Array]]:
    return _convolve(images, kernel), (images, kernel)


def _pull(kept: tuple[Images, Float[Array, "k k i o"]], cots: Images) -> tuple[Images, Array]:
    images, kernel = kept
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    return _convolve(cots, turned), _kernel_gradient(images, cots, len(kernel))


convolve.defvjp(_keep, _pull)
