"""The state of meta-training on disk: one file, whole or absent, that restores bit for bit."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

from .._core import trees
from .._core.files import write_atomically

Tree = TypeVar("Tree", bound=PyTree)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the reason."""


def save(path: Path, tree: PyTree, info: dict[str, Any]) -> None:
    """Write every array of `tree` under its path, and `info` (JSON) beside them, atomically.

    As safetensors, but array by array: `safetensors.numpy.save` would hold the whole file in memory as well.
    """
    tensors = {name: _to_numpy(leaf) for name, leaf in trees.named_leaves(tree).items()}
    text = json.dumps(info)
    seal = hashlib.sha256(text.encode()).hexdigest()
    header: dict[str, Any] = {"__metadata__": {"info": text, "info_sha256": seal, "sha256": _digest(tensors, text)}}
    order, end = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize), 0  # large numbers first: all aligned
    for name in order:
        array = tensors[name]
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _code(array.dtype), "shape": array.shape, "data_offsets": (start, end)}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    write_atomically(path, len(head).to_bytes(8, "little"), head, *(_bytes(tensors[name]) for name in order))


def read_info(path: Path, data: bytes | None = None) -> dict[str, Any]:
    """Read the JSON that was saved beside the arrays. `data`: the content of the file, where somebody has read it."""
    try:
        data = path.read_bytes() if data is None else data
        safetensors.deserialize(data)  # refuses what is no safetensors file, or only a part of one
        metadata = _metadata(data)
        if hashlib.sha256(metadata["info"].encode()).hexdigest() != metadata["info_sha256"]:
            raise ValueError("its header does not have the SHA-256 it was written with")
        return json.loads(metadata["info"])
    except (safetensors.SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({error}), so meta-training cannot go on from it. Start again in"
            " another folder, or put back a copy of the file."
        ) from error


def restore(path: Path, like: Tree, data: bytes | None = None, among: str = "") -> Tree:
    """Read a tree of the structure, shapes and dtypes of `like`, whose leaves may be `jax.ShapeDtypeStruct`; anything
    else is refused by name. Arrays are NumPy's, so that none is put on a device that does not keep it; keys are JAX's.

    `data`: the content of the file, where somebody has read it. `among`: how the names begin that are wanted.
    """
    read_info(path, data)
    try:
        data = path.read_bytes() if data is None else data
        tensors, metadata = safetensors.numpy.load(data), _metadata(data)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError):
        tensors, metadata = {}, {}
    if _digest(tensors, metadata.get("info", "")) != metadata.get("sha256"):
        raise CheckpointError(
            f"{path} is damaged: its content does not have the SHA-256 it was written with, and going on from it would"
            " train something else. Start again in another folder, or put back a copy of the file."
        )
    tensors = {name.removeprefix(among): tensor for name, tensor in tensors.items() if name.startswith(among)}
    wanted = trees.named_leaves(like)
    if different := sorted(set(wanted) ^ set(tensors)):
        raise CheckpointError(
            f"{path} holds another state: {', '.join(different[:3])} stand on one side only. It was written with"
            " another optimizer, estimator or version; resume with the settings it was started with."
        )

    def read(name: str, leaf: Any) -> np.ndarray | jax.Array:
        found, example = tensors[name], jax.eval_shape(_raw, leaf)
        if found.shape != example.shape or found.dtype != example.dtype:
            raise CheckpointError(
                f"{path} holds {name} as {found.dtype}{list(found.shape)}, but {example.dtype}{list(example.shape)} is"
                " needed. It was written with other settings; resume with the settings it was started with."
            )
        array = _unraw(found, leaf.dtype)
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        # Which implementation a key has, a shape does not say of itself, but any array of its dtype does.
        impl = jax.random.key_impl(jnp.empty((), leaf.dtype)) if is_key else None
        return jax.random.wrap_key_data(jnp.asarray(array), impl=impl) if is_key else array

    return trees.replace_leaves(like, read)


def _raw(leaf: jax.Array) -> jax.Array:
    """A leaf as it is stored: keys as their numbers; floats that NumPy does not have as their bits, whole numbers of
    less than a byte as bytes, complex numbers of 128 bits as their two parts: safetensors has those of 64."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    if (bits := _bits(leaf.dtype)) is not None:
        return leaf.view(bits)
    if leaf.dtype == jnp.complex128:
        return jnp.stack([leaf.real, leaf.imag], axis=-1)
    return leaf.astype(jnp.int8) if _is_small(leaf.dtype) else leaf


def _unraw(found: np.ndarray, dtype: Any) -> np.ndarray:
    if _bits(dtype) is not None:
        return found.view(dtype)
    if dtype == jnp.complex128:
        return found.view(dtype)[..., 0]
    return found.astype(dtype) if _is_small(dtype) else found


def _bits(dtype: Any) -> Any:
    """The dtype that holds the bits of a float that NumPy does not have, or None."""
    if not jnp.issubdtype(dtype, jnp.floating) or np.dtype(dtype).isbuiltin == 1:
        return None
    return {8: jnp.uint8, 16: jnp.uint16}.get(jnp.finfo(dtype).bits)


def _is_small(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits < 8


def _to_numpy(leaf: jax.Array) -> np.ndarray:
    leaf = _raw(leaf)
    return np.ascontiguousarray(leaf).reshape(leaf.shape)


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _code(dtype: np.dtype) -> str:
    """The name that safetensors has for a dtype."""
    if dtype.kind not in "biuf" and dtype != np.complex64:
        raise CheckpointError(
            f"An array has the dtype {dtype}, which no checkpoint can hold, so training could not be resumed. Use"
            " another dtype, or train without a folder."
        )
    return "BOOL" if dtype.kind == "b" else f"{dtype.kind.upper()}{8 * dtype.itemsize}"


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])["__metadata__"]


def _digest(tensors: dict[str, np.ndarray], info: str) -> str:
    digest = hashlib.sha256(info.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape} ".encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()
