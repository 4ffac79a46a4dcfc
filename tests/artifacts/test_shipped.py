"""Shipped artifacts are found by name, files by path, and everything else is answered with what there is."""

from pathlib import Path

import pytest

from bygrad.artifacts import Artifact, ArtifactError, find, load, save, shipped, shipped_names


@pytest.fixture
def folder(tmp_path: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ship three artifacts, and stand in an empty folder."""
    for name in ("paper/mnist", "paper/quadratic", "adam"):
        save(tmp_path / "shipped" / f"{name}.safetensors", artifact)
    (tmp_path / "shipped" / "README.md").write_text("not an artifact")
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "shipped"


def test_names_are_the_structure_of_the_folder(folder: Path) -> None:
    assert shipped_names() == ["adam", "paper/mnist", "paper/quadratic"]


def test_a_name_is_found(folder: Path, artifact: Artifact) -> None:
    assert find("paper/mnist") == folder / "paper" / "mnist.safetensors"
    assert load(find("adam")) == artifact


def test_a_path_is_found(folder: Path) -> None:
    Path("mine.safetensors").write_bytes(b"")
    assert find("mine.safetensors") == Path("mine.safetensors")
    assert find(Path("mine.safetensors").absolute()) == Path("mine.safetensors").absolute()


def test_a_name_means_the_shipped_one_wherever_one_stands(folder: Path) -> None:
    Path("adam").write_bytes(b"")
    assert find("adam") == folder / "adam.safetensors"
    assert find("./adam") == find(Path("adam")) == Path("adam")


@pytest.mark.parametrize("name", ["paper/mnits", "paper/mnist.safetensors", "paper/minst"])
def test_a_near_miss_is_answered_with_the_name(folder: Path, name: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        find(name)
    assert f"'{name}' is neither a file nor the name" in caught.value.cause
    assert caught.value.remedy == (
        "Did you mean 'paper/mnist'? Give the path of a file, or one of: adam, paper/mnist, paper/quadratic"
    )


@pytest.mark.parametrize("name", ["", "zzz", "paper", "../shipped/adam", "x" * 5000, "a\0b", Path("zzz")])
def test_the_unknown_is_answered_with_all_there_is(folder: Path, name: str | Path) -> None:
    with pytest.raises(ArtifactError, match="one of: adam, paper/mnist, paper/quadratic"):
        find(name)


def test_nothing_shipped_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path / "absent")
    assert shipped_names() == []
    with pytest.raises(ArtifactError, match="Give the path of a file; this installation comes with no trained"):
        find("paper/mnist")


def test_every_shipped_artifact_loads_under_its_name() -> None:
    for name in shipped_names():
        assert load(find(name)).manifest.name == name
