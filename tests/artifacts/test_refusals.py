"""What is not byte for byte what was saved is refused, and each refusal says why and what to do."""

import io
import json
import pickle  # noqa: TID251 - to make what must be refused
import re
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from bygrad.artifacts import Artifact, ArtifactError, Manifest, describe, from_bytes, load, to_bytes
from bygrad.artifacts.layout import MAX_HEADER, seal
from bygrad.artifacts.tensors import own

COPY_AGAIN = "Copy it again from where it was written"
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


def accepted(data: bytes) -> bool:
    try:
        from_bytes(data)
    except ArtifactError:
        return False
    return True


def test_the_tools_of_this_file_make_good_files(data: bytes) -> None:
    assert pack(*unpack(data)) == data
    assert with_manifest(data, lambda manifest: None) == data
    assert accepted(data)


def test_every_changed_byte_is_refused(data: bytes) -> None:
    passed = []
    for mask in (*(1 << bit for bit in range(8)), 0xFF):
        for position in range(len(data)):
            changed = bytearray(data)
            changed[position] ^= mask
            if accepted(bytes(changed)):
                passed.append((position, mask))
    assert passed == []


def test_every_truncation_is_refused(data: bytes) -> None:
    assert [length for length in range(len(data)) if accepted(data[:length])] == []


def test_every_removed_or_doubled_byte_is_refused(data: bytes) -> None:
    assert [at for at in range(len(data)) if accepted(data[:at] + data[at + 1 :])] == []
    assert [at for at in range(len(data)) if accepted(data[: at + 1] + data[at:])] == []


@pytest.mark.parametrize("extra", [b"\0", b" ", b"\n", b"x" * 1000])
def test_appended_bytes_are_refused(data: bytes, extra: bytes) -> None:
    refused(data + extra, f"{len(extra):,} bytes follow after the last tensor", COPY_AGAIN)
    refused(seal(data + extra), "follow after the last tensor", COPY_AGAIN)


def test_damage_says_where_it_was_noticed(data: bytes) -> None:
    refused(data[:-1] + bytes([data[-1] ^ 1]), "the SHA-256 of the file is .{64} and the file says .{64}", COPY_AGAIN)
    refused(b"", r"empty \(0 bytes\)", COPY_AGAIN)
    refused(data[:5], "cut short: 5 bytes are there", COPY_AGAIN)
    refused(data[:100], r"cut short: the header has [\d,]+ bytes, of which 92 are there", COPY_AGAIN)
    refused(data[:-3], "cut short: the tensors take 32 bytes, of which 29 are there", COPY_AGAIN)


@pytest.mark.parametrize("length", [MAX_HEADER + 1, 2**40, 2**63, 2**64 - 1])
def test_a_header_bomb_takes_no_memory(length: int) -> None:
    tracemalloc.start()
    try:
        refused(length.to_bytes(8, "little") + b"{}", f"header has {length:,} bytes; at most 1,048,576", COPY_AGAIN)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


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
        ({"data_offsets": [0, 24]}, "overlaps|leaves a gap"),
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


def test_tensors_that_are_not_the_manifests_are_refused(artifact: Artifact, data: bytes) -> None:
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
    assert artifact.tensors["w"].nbytes == 24


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_that_are_not_finite_are_refused(artifact: Artifact, value: float, dtype: type) -> None:
    tensors = {"rate": np.array(0.1), "w": np.array([[1, 2, 3], [4, value, 6]], dtype)}
    with pytest.raises(ArtifactError, match=r"'w' has 1 of 6 values .* at index \(1, 1\)\. .*earlier meta-step"):
        describe(tensors)
    with pytest.raises(ArtifactError, match="'w' has 1 of 6 values that are not finite"):
        Artifact(artifact.manifest, tensors)


def test_values_that_are_not_finite_are_refused_on_load(data: bytes) -> None:
    header, body = unpack(data)
    body = body[:-4] + np.float32(np.nan).tobytes()
    refused(pack(header, body), r"'w' has 1 of 6 values that are not finite, .* nan at index \(1, 2\)", "train again")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"w": [1.0]}, "tensor 'w' is of type list. An artifact holds NumPy arrays only. Convert it with np.asarray."),
        ({"w": np.ones(2, bool)}, "tensor 'w' has dtype bool.* holds float16, float32, float64, int32, int64 only"),
        ({"w": np.ones(2, complex)}, "tensor 'w' has dtype complex128.*Convert it with .astype"),
        ({"w": np.array(["x"], object)}, "tensor 'w' has dtype object.*Convert it with .astype"),
        ({"": np.ones(2)}, "the tensor name '' is not a non-empty Unicode string.*Name each tensor by its place"),
        ({"__metadata__": np.ones(2)}, "the tensor name '__metadata__' is not"),
        ({"\ud800": np.ones(2)}, "the tensor name .* is not a non-empty Unicode string"),
        ({3: np.ones(2)}, "the tensor name 3 is not"),
    ],
)
def test_tensors_that_cannot_be_stored_are_refused(tensors: dict[Any, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        own(tensors)


def test_a_newer_schema_says_so_before_all_else(data: bytes) -> None:
    cause = r"written by a newer bygrad \(schema 2; this one reads up to 1\)"
    refused(with_manifest(data, lambda manifest: manifest.update(schema=2, unheard_of=1)), cause, "Upgrade")
    header, body = unpack(with_manifest(data, lambda manifest: manifest.update(schema=2)))
    header["w"]["dtype"] = "F8_E4M3"
    header["__metadata__"]["blake3"] = "x"
    refused(pack(header, body), cause, "pip install --upgrade bygrad")


def test_a_changed_manifest_with_a_right_seal_is_still_read_strictly(data: bytes) -> None:
    refused(with_manifest(data, lambda m: m.update(unheard_of=1)), "unknown keys: 'unheard_of'", SAVE)
    refused(with_manifest(data, lambda m: m.pop("config")), "missing keys: 'config'", SAVE)
    refused(with_manifest(data, lambda m: m.update(name="../../etc/passwd")), "name is '../../etc/passwd'", "paper/")


def test_a_second_spelling_of_the_same_content_is_refused(data: bytes) -> None:
    header, body = unpack(data)
    spellings = [
        json.dumps(header).encode().replace(b'": ', b'":', 2),
        json.dumps(header, separators=(",", ":")).encode(),
    ]
    spellings[1] += b" " * 64
    for text in spellings:
        refused(pack(text, body), "not the one spelling", SAVE)
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


def foreign() -> dict[str, tuple[bytes, str]]:
    values = {"w": [1.0, 2.0], "big": list(range(1000))}
    protocols = range(pickle.HIGHEST_PROTOCOL + 1)
    files = {f"pickle {protocol}": (pickle.dumps(values, protocol), "a pickle") for protocol in protocols}
    files["pickle of None"] = (pickle.dumps(None, 4), "a pickle")
    files["exploit"] = (b"cos\nsystem\n(S'true'\ntR.", "a pickle")
    files["torch, old"] = (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "a PyTorch file of the old")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(values))
    files["torch"] = (archive.getvalue(), "a zip archive")
    archive = io.BytesIO()
    np.savez(archive, w=np.ones(3))
    files["npz"] = (archive.getvalue(), "a zip archive")
    archive = io.BytesIO()
    np.save(archive, np.array([{}], object))
    files["npy"] = (archive.getvalue(), r"a NumPy array \(.npy\)")
    files["gzip"] = (b"\x1f\x8b\x08\x00" + bytes(20), "a gzip archive")
    files["hdf5"] = (b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file")
    return files


@pytest.mark.parametrize(("content", "what"), foreign().values(), ids=foreign().keys())
@pytest.mark.parametrize("name", ["a.safetensors", "a.pkl", "a"])
def test_other_formats_are_refused_by_content(content: bytes, what: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ArtifactError, match=f"this is {what}.*, not an artifact.*not opened.* written by {SAVE}"
    ) as caught:
        load(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_header_whose_length_looks_like_a_pickle_is_read() -> None:
    """Lengths 640 and 896 begin with the bytes 80 02 and 80 03, as pickles do."""
    lengths = set()
    for padding in range(1000):
        manifest = Manifest(name="test", optimizer="A", config={"pad": "x" * padding}, features=1, tensors={})
        data = to_bytes(Artifact(manifest, {}))
        if data[0] == 0x80:
            assert accepted(data)
            lengths.add(int.from_bytes(data[:8], "little"))
    assert lengths >= {640, 896}


def test_load_names_the_path_of_what_it_cannot_read(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"absent: there is no such file\. .*shipped_names\(\)"):
        load(tmp_path / "absent")
    with pytest.raises(ArtifactError, match="this is a folder or a device, not a file"):
        load(tmp_path)
    with pytest.raises(ArtifactError, match="not a file"):
        load("/dev/null")
    with pytest.raises(ArtifactError, match=r"the file cannot be read .*Check its permissions"):
        load(tmp_path / ("x" * 5000))
    (tmp_path / "cut").write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match="cut: the file is cut short"):
        load(tmp_path / "cut")


def test_a_stranger_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[268435456],"data_offsets":[0,1073741824]}}'
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (1 << 30))  # sparse: takes no room on the disk
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match="without a bygrad manifest"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
