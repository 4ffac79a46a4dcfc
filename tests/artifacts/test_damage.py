"""Every changed, missing or added byte is refused, and so is any other file; each refusal says why and what to do."""

import io
import pickle  # noqa: TID251 - to make what must be refused
import re
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bygrad.artifacts import Artifact, ArtifactError, Manifest, from_bytes, load, to_bytes
from bygrad.artifacts.layout import MAX_HEADER, seal

COPY_AGAIN = "Copy it again from where it was written"


def refused(data: bytes, cause: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        from_bytes(data)
    assert re.search(cause, caught.value.cause), caught.value.cause
    assert COPY_AGAIN in caught.value.remedy
    assert str(caught.value) == f"{caught.value.cause}. {caught.value.consequence}. {caught.value.remedy}."


def accepted(data: bytes) -> bool:
    try:
        from_bytes(data)
    except ArtifactError:
        return False
    return True


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
    refused(data + extra, f"{len(extra):,} bytes follow after the last tensor")
    refused(seal(data + extra), "follow after the last tensor")


def test_damage_says_where_it_was_noticed(data: bytes) -> None:
    refused(data[:-1] + bytes([data[-1] ^ 1]), "the SHA-256 of the file is .{64} and the file says .{64}")
    refused(b"", r"empty \(0 bytes\)")
    refused(data[:5], "cut short: 5 bytes are there")
    refused(data[:100], r"cut short: the header has [\d,]+ bytes, of which 92 are there")
    refused(data[:-3], "cut short: the tensors take 32 bytes, of which 29 are there")


@pytest.mark.parametrize("length", [MAX_HEADER + 1, 2**40, 2**63, 2**64 - 1])
def test_a_header_bomb_takes_no_memory(length: int) -> None:
    tracemalloc.start()
    try:
        refused(length.to_bytes(8, "little") + b"{}", f"header has {length:,} bytes; at most 1,048,576")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


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
        ArtifactError, match=f"this is {what}.*, not an artifact.*not opened.* written by bygrad.artifacts.save"
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


def test_a_stranger_is_refused_before_it_is_read_whole(tmp_path: Path, data: bytes) -> None:
    header = b'{"w":{"dtype":"F32","shape":[268435456],"data_offsets":[0,1073741824]}}'
    other = len(header).to_bytes(8, "little") + header
    path = tmp_path / "large.safetensors"
    for begin, cause in ((other, "without a bygrad manifest"), (data, f"{1 << 30:,} bytes follow after the last")):
        with path.open("wb") as file:
            file.write(begin)
            file.truncate(len(begin) + (1 << 30))  # sparse: takes no room on the disk
        tracemalloc.start()
        try:
            with pytest.raises(ArtifactError, match=cause):
                load(path)
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()
