"""Files made to mislead: well sealed, and refused for what they hold. Each refusal says why and what to do."""

import json
import re
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.numpy

from bygrad.artifacts import Artifact, ArtifactError, from_bytes, to_bytes
from bygrad.artifacts.layout import MAX_HEADER, seal

SAVE = "bygrad.artifacts.save"

Header = dict[str, Any]


def pack(header: Header | bytes, body: bytes = b"") -> bytes:
    """Return a file of this header and body with a right seal, where there is one: as an attacker would make it."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = len(text).to_bytes(8, "little") + text + body
    return seal(data) if text.startswith(b'{"__metadata__":{"sha256":') else data


def unpack(data: bytes) -> tuple[Header, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_manifest(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return `data` with a changed manifest and a right seal."""
    header, body = unpack(data)
    manifest = json.loads(header["__metadata__"]["bygrad"])
    change(manifest)
    header["__metadata__"]["bygrad"] = json.dumps(manifest, separators=(",", ":"), sort_keys=True)
    return pack(header, body)


def refused(data: bytes, cause: str, remedy: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        from_bytes(data)
    assert re.search(cause, caught.value.cause), caught.value.cause
    assert remedy in caught.value.remedy
    assert str(caught.value) == f"{caught.value.cause}. {caught.value.consequence}. {caught.value.remedy}."


def test_the_tools_of_this_file_make_good_files(data: bytes) -> None:
    assert pack(*unpack(data)) == data
    assert with_manifest(data, lambda manifest: None) == data


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (b"[" * MAX_HEADER, "the header is nested too deeply"),
        (b'{"a":' * (MAX_HEADER // 8), "the header is nested too deeply"),
        (b"[1]", "the header is a JSON list, not an object"),
        (b"", "the header is not JSON"),
        (b"{'a':1}", "the header is not JSON"),
        (b'{"a":1}x', "the header is not JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "the header is not JSON"),
        (b'{"a":NaN}', "the header contains NaN"),
        (b'{"a":-Infinity}', "the header contains -Infinity"),
        (b'{"a":"\xff"}', "the header is not UTF-8"),
    ],
)
def test_a_header_that_is_no_strict_json_is_refused(text: bytes, cause: str) -> None:
    refused(pack(text), cause, "again")


def test_duplicate_keys_are_refused(data: bytes) -> None:
    header, body = unpack(data)
    text = json.dumps(header, separators=(",", ":"))
    twice = text.replace('"w":', '"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"w":')
    refused(pack(twice.encode(), body), "the header has the key 'w' twice", SAVE)
    twice = text.replace('"dtype":"F32"', '"dtype":"F32","dtype":"F32"')
    refused(pack(twice.encode(), body), "the header has the key 'dtype' twice", SAVE)
    header["__metadata__"]["bygrad"] = header["__metadata__"]["bygrad"].replace('"seed":0', '"seed":0,"seed":1')
    refused(pack(header, body), "the manifest has the key 'seed' twice", SAVE)


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        ({"data_offsets": [4, 28]}, "tensor 'w' starts at byte 4 and overlaps the tensor before it, which ends at 8"),
        ({"data_offsets": [0, 24]}, "tensor 'w' starts at byte 0 and overlaps the tensor before it, which ends at 8"),
        ({"data_offsets": [12, 36]}, "tensor 'w' starts at byte 12 and leaves a gap after 8"),
        ({"data_offsets": [8, 28]}, r"tensor 'w': shape \[2, 3\] of F32 takes 24 bytes.*span 20"),
        ({"data_offsets": [32, 8]}, "tensor 'w': the data_offsets .* are not two integers"),
        ({"data_offsets": [-16, 8]}, "tensor 'w': the data_offsets .* are not two integers"),
        ({"data_offsets": [8, 32, 32]}, "tensor 'w': the data_offsets .* are not two integers"),
        ({"data_offsets": [8.0, 32.0]}, "tensor 'w': the data_offsets .* are not two integers"),
        ({"data_offsets": [False, 32]}, "tensor 'w': the data_offsets .* are not two integers"),
        ({"data_offsets": [8, 10**4000]}, "tensor 'w': the data_offsets .* are not two integers"),
        ({"data_offsets": "8:32"}, "tensor 'w': the data_offsets .* are not two integers"),
        ({"shape": [2, -3]}, r"tensor 'w': the shape \[2, -3\] is not a list"),
        ({"shape": [True, 6]}, r"tensor 'w': the shape \[True, 6\] is not a list"),
        ({"shape": 6}, "tensor 'w': the shape 6 is not a list"),
        ({"shape": [9] * 100_000}, "tensor 'w': the shape .* is not a list of at most 64"),
        ({"shape": [2**70, 0]}, "tensor 'w': the shape .* is not a list"),
        ({"shape": [2**62] * 60}, r"tensor 'w': shape .* takes \d+\.\.\. bytes"),
        ({"dtype": "BF16"}, "tensor 'w': the dtype 'BF16' is none of F16, F32, F64, I32, I64"),
        ({"dtype": ["F32"]}, "tensor 'w': the dtype .* is none of"),
        ({"dtype": "F64"}, r"tensor 'w': shape \[2, 3\] of F64 takes 48 bytes"),
        ({"extra": 1}, "tensor 'w': the header's entry .* does not have exactly dtype, shape and data_offsets"),
    ],
)
def test_a_malformed_entry_is_refused(data: bytes, entry: dict[str, Any], cause: str) -> None:
    header, body = unpack(data)
    header["w"].update(entry)
    refused(pack(header, body), cause, SAVE)


def test_an_empty_tensor_that_no_memory_could_hold_is_refused(data: bytes) -> None:
    header, body = unpack(data)
    header["void"] = {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [32, 32]}
    refused(pack(header, body), "tensor 'void': no array can have the shape", SAVE)
    header["void"] = []
    refused(pack(header, body), r"tensor 'void': the header's entry \[\] does not have exactly", SAVE)


def test_tensors_that_are_not_the_manifests_are_refused(data: bytes) -> None:
    header, body = unpack(data)
    renamed = {("v" if name == "w" else name): value for name, value in header.items()}
    refused(pack(renamed, body), "missing tensors: 'w'; tensors that the manifest does not name: 'v'", "describe")
    missing = {name: value for name, value in header.items() if name != "w"}
    refused(pack(missing, body[:8]), "missing tensors: 'w'; .* does not name: none", "describe")
    extra = {**header, "x": {"dtype": "F32", "shape": [1], "data_offsets": [32, 36]}}
    refused(pack(extra, body + bytes(4)), "missing tensors: none; .* does not name: 'x'", "describe")
    header["w"]["shape"] = [3, 2]
    refused(pack(header, body), r"tensor 'w' has shape \(3, 2\) and the manifest says \(2, 3\)", "describe")
    header["w"].update(shape=[2, 3], dtype="I32")
    refused(pack(header, body), "tensor 'w' has dtype I32 and the manifest says F32", "describe")
    refused(seal(data[:-1] + b"\0"), "tensor 'w' has sha256 .* and the manifest says", "copy the file again")


def test_values_that_are_not_finite_are_refused_on_load(data: bytes) -> None:
    header, body = unpack(data)
    body = body[:-4] + np.float32(np.nan).tobytes()
    refused(pack(header, body), r"'w' has 1 of 6 values that are not finite, .* nan at index \(1, 2\)", "train again")


def test_a_newer_schema_says_so_before_all_else(data: bytes) -> None:
    cause = r"written by a newer bygrad \(schema 3; this one reads up to 2\)"
    refused(with_manifest(data, lambda manifest: manifest.update(schema=3, unheard_of=1)), cause, "Upgrade")
    header, body = unpack(with_manifest(data, lambda manifest: manifest.update(schema=3)))
    header["w"]["dtype"] = "F8_E4M3"
    header["__metadata__"]["blake3"] = "x"
    refused(pack(header, body), cause, "Upgrade bygrad")


def test_a_changed_manifest_with_a_right_seal_is_still_read_strictly(data: bytes) -> None:
    refused(with_manifest(data, lambda m: m.update(unheard_of=1)), "unknown keys: 'unheard_of'", SAVE)
    refused(with_manifest(data, lambda m: m.pop("config")), "missing keys: 'config'", SAVE)
    refused(with_manifest(data, lambda m: m.update(name="../../etc/passwd")), "name is '../../etc/passwd'", "paper/")


def test_a_second_spelling_of_the_same_content_is_refused(data: bytes) -> None:
    header, body = unpack(data)
    text = json.dumps(header, separators=(",", ":"))
    refused(pack(text.encode() + b" " * 64, body), "not the one spelling", SAVE)
    refused(pack(text.replace('"shape":', '"shape": ').encode(), body), "not the one spelling", SAVE)
    refused(pack(text.replace('"w":', '"\\u0077":').encode(), body), "not the one spelling", SAVE)
    reordered = {"__metadata__": header["__metadata__"], "w": header["w"], "rate": header["rate"]}
    refused(pack(reordered, body), "not the one spelling", SAVE)
    header["__metadata__"]["note"] = "hidden"
    refused(pack(header, body), "not the one spelling", SAVE)


def test_other_safetensors_files_are_refused(artifact: Artifact, data: bytes) -> None:
    other = safetensors.numpy.save(artifact.tensors, metadata={"format": "np"})
    refused(other, "a safetensors file without a bygrad manifest", SAVE)
    refused(pack({}), "a safetensors file without a bygrad manifest", SAVE)
    refused(pack({"__metadata__": ["bygrad"]}), "a safetensors file without a bygrad manifest", SAVE)
    text = artifact.manifest.to_json()
    unsealed = safetensors.numpy.save(artifact.tensors, metadata={"bygrad": text})
    refused(unsealed, "carries no SHA-256 of itself", SAVE)
    refused(data.replace(unpack(data)[0]["__metadata__"]["sha256"].encode(), b"F" * 64), "carries no SHA-256", SAVE)


@hypothesis.given(draws=st.data())
def test_whatever_loads_is_what_would_be_saved_and_nothing_else_is_raised(data: bytes, draws: st.DataObject) -> None:
    """Any edit with a right seal: say, another letter in the name, which is another artifact."""
    start = draws.draw(st.integers(0, len(data)))
    stop = draws.draw(st.integers(start, min(start + 4, len(data))))
    edited = seal(data[:start] + draws.draw(st.binary(max_size=4)) + data[stop:])
    try:
        artifact = from_bytes(edited)
    except ArtifactError:
        return
    assert to_bytes(artifact) == edited
