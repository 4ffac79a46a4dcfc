"""The bytes of an artifact: a safetensors file in exactly one spelling, sealed with a digest of itself.

    8 bytes      length N of the header, little-endian
    N bytes      {"__metadata__":{"sha256":"<64 digits>","bygrad":"<manifest>"},"<tensor>":{...},...}, space-padded
    the rest     the tensors without gaps, largest dtype first, then by name

safetensors has no checksum: a flipped bit in its data goes unseen. The seal is the SHA-256 of the whole file with its
own 64 digits written as zeros, and it comes first so that its place never varies.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from .canonical_json import dump, parse_object, shorten
from .errors import ArtifactError
from .tensors import check_dtype, check_shape, dtype_name, stored

Entry = tuple[str, np.dtype[Any], tuple[int, ...], int, int]
"""Name, dtype and shape of a tensor, and where it starts and ends after the header."""

MAX_HEADER = 1 << 20
"""Bytes that a header may have at most, so that a false length cannot exhaust memory."""

_OPENING = b'{"__metadata__":{"sha256":"'
_SEAL = slice(8 + len(_OPENING), 8 + len(_OPENING) + 64)
_COPY_AGAIN = "Copy it again from where it was written, or train again"
_NOT_LOADED = "It was not loaded"
_REWRITE = "Write the file with bygrad.artifacts.save"

_FOREIGN = (
    (re.compile(rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"), "a PyTorch file of the old format, which is a pickle"),
    # Binary protocols announce themselves; the text ones begin with a dict, a list, or the name of something to call.
    (re.compile(rb"\x80[\x02-\x05]|\([dl]p\d+\n|\(?[ci][\w.]+\n[\w.]+\n|[\]})]q."), "a pickle"),
    (re.compile(rb"PK(\x03\x04|\x05\x06)"), "a zip archive, as NumPy (.npz) and PyTorch (.pt) write, with pickles"),
    (re.compile(rb"\x93NUMPY"), "a NumPy array (.npy)"),
    (re.compile(rb"\x89HDF"), "an HDF5 file"),
    (re.compile(rb"\x1f\x8b"), "a gzip archive"),
)


def join(manifest: str, tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return the file with this manifest (JSON) and these tensors; one content has one spelling.

    **Raises:** `ArtifactError` for a header above `MAX_HEADER`.
    """
    header: dict[str, Any] = {"__metadata__": {"sha256": "0" * 64, "bygrad": manifest}}
    # Largest dtype first keeps every tensor aligned to its own size, for readers that map the file into memory.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        dtype, shape = dtype_name(tensors[name]), list(tensors[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = dump(header, sort_keys=False).encode("ascii")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ArtifactError(
            f"the header with the manifest would have {len(text):,} bytes; at most {MAX_HEADER:,} are read back",
            "The file could be written but not loaded",
            "Keep curves and logs out of training and validation; store them beside the artifact",
        )
    return seal(len(text).to_bytes(8, "little") + text + b"".join(stored(tensors[name]) for name in names))


def seal(data: bytes) -> bytes:
    """Return `data` with the 64 digits at the place of the seal replaced by the right ones."""
    before, after = data[: _SEAL.start], data[_SEAL.stop :]
    return before + hashlib.sha256(before + b"0" * 64 + after).hexdigest().encode("ascii") + after


def split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Return the parsed header, unchecked but for being JSON, and the bytes after it.

    **Raises:** `ArtifactError` for an empty file, another format (by content, whatever the name), a length that
    exceeds `MAX_HEADER` or the file, and a header that is not strict JSON.
    """
    if not data:
        raise ArtifactError("the file is empty (0 bytes)", "It holds no optimizer", _COPY_AGAIN)
    length = int.from_bytes(data[:8], "little")
    # safetensors begins with a small length and a brace. Only what does not is looked at as something else, since a
    # header of 640 bytes begins with 80 02, like a pickle.
    if length > MAX_HEADER or data[8:9] != b"{":
        for pattern, what in _FOREIGN:
            if pattern.match(data):
                raise ArtifactError(
                    f"this is {what}, not an artifact",
                    "It was not opened, because such files can run code or hide what they hold",
                    "Get the artifact as a .safetensors file written by bygrad.artifacts.save",
                )
    if len(data) < 8:
        raise _truncated(f"{len(data)} bytes are there, and the length of the header alone takes 8")
    if length > MAX_HEADER:
        raise ArtifactError(
            f"the file says that its header has {length:,} bytes; at most {MAX_HEADER:,} are allowed",
            "It is no safetensors file, is damaged, or is made to exhaust memory; it was not loaded",
            f"Check the path. {_COPY_AGAIN}",
        )
    if 8 + length > len(data):
        raise _truncated(f"the header has {length:,} bytes, of which {len(data) - 8:,} are there")
    try:
        text = data[8 : 8 + length].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"the header is not UTF-8 ({error})", _NOT_LOADED, _COPY_AGAIN) from None
    return parse_object(text, "the header"), memoryview(data)[8 + length :]


def manifest_text(header: dict[str, Any]) -> str:
    """Return the manifest's JSON; `ArtifactError` for a safetensors file that is no artifact."""
    metadata = header.get("__metadata__")
    text = metadata.get("bygrad") if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise ArtifactError(
            "this is a safetensors file without a bygrad manifest in its metadata",
            "Its tensors do not say which optimizer they belong to",
            "Give a file written by bygrad.artifacts.save",
        )
    return text


def locate(header: dict[str, Any], length: int) -> list[Entry]:
    """Return where the tensors lie in the `length` bytes after the header, in their order.

    **Raises:** `ArtifactError` naming the tensor, for a malformed entry, a length that does not fit shape and dtype,
    and bytes that belong to two tensors, to none, or are missing at the end.
    """
    entries = [_entry(name, value) for name, value in header.items() if name != "__metadata__"]
    entries.sort(key=lambda entry: (entry[3], entry[4]))
    end = 0
    for name, _, _, start, stop in entries:
        if start != end:
            how = f"overlaps the tensor before it, which ends at {end}" if start < end else f"leaves a gap after {end}"
            raise ArtifactError(
                f"tensor {shorten(name)} starts at byte {start} and {how}",
                "Bytes that belong to two tensors or to none are how a file hides something",
                _REWRITE,
            )
        end = stop
    if length < end:
        raise _truncated(f"the tensors take {end:,} bytes, of which {length:,} are there")
    if length > end:
        raise ArtifactError(
            f"{length - end:,} bytes follow after the last tensor",
            "They belong to nothing, so the file is not the one that was saved",
            _COPY_AGAIN,
        )
    return entries


def read_tensors(entries: list[Entry], body: memoryview) -> dict[str, np.ndarray]:
    """Return views of the tensors in `body`; `ArtifactError` naming one of a shape that no array can have."""
    result = {}
    for name, dtype, shape, start, stop in entries:
        try:
            result[name] = np.frombuffer(body[start:stop], dtype).reshape(shape)
        except ValueError as error:  # an empty tensor with axes that no memory could hold; more axes than NumPy has
            raise _at(name, f"no array can have the shape {shorten(shape)} ({error})") from None
    return result


def check_seal(data: bytes) -> None:
    """Raise an `ArtifactError` unless the file has a seal at its place and the seal is right."""
    if not data[8:].startswith(_OPENING) or re.fullmatch(rb"[0-9a-f]{64}", data[_SEAL]) is None:
        raise ArtifactError(
            "the file carries no SHA-256 of itself where bygrad puts it",
            "Damage could not be noticed, so it was not loaded",
            _REWRITE + " instead of another program",
        )
    found = seal(data)[_SEAL]
    if found != data[_SEAL]:
        raise ArtifactError(
            f"the SHA-256 of the file is {found.decode()} and the file says {data[_SEAL].decode()}",
            "It was damaged or edited after it was saved, and was not loaded",
            _COPY_AGAIN,
        )


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _at(name, f"the header's entry {shorten(value)} does not have exactly dtype, shape and data_offsets")
    try:
        dtype, shape = check_dtype(value["dtype"]), check_shape(value["shape"])
    except ArtifactError as error:
        raise error.at(f"tensor {shorten(name)}") from None
    offsets = value["data_offsets"]
    ordered = isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets)
    if not ordered or not 0 <= offsets[0] <= offsets[1] < 2**63:
        raise _at(name, f"the data_offsets {shorten(offsets)} are not two integers 0 <= start <= end < 2^63")
    count = math.prod(shape)
    if offsets[1] - offsets[0] != count * dtype.itemsize:
        raise _at(
            name,
            f"shape {shorten(list(shape))} of {value['dtype']} takes {shorten(count * dtype.itemsize)} bytes, and the "
            f"data_offsets {shorten(offsets)} span {shorten(offsets[1] - offsets[0])}",
        )
    return name, dtype, shape, offsets[0], offsets[1]


def _at(name: str, cause: str) -> ArtifactError:
    return ArtifactError(f"tensor {shorten(name)}: {cause}", "Its values cannot be located", _REWRITE)


def _truncated(how: str) -> ArtifactError:
    return ArtifactError(f"the file is cut short: {how}", _NOT_LOADED, _COPY_AGAIN)
