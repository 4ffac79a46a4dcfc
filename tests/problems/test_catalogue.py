"""Families by name and from a user's file."""

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bygrad.problems import FAMILIES, Quadratic, find_family, load_images
from bygrad.problems.catalogue import digit_images, mnist_images

FILE = """
import jax, jax.numpy as jnp
from bygrad import ProblemFamily

class Bowl(ProblemFamily):
    width: float = 2.0
    def sample(self, key):
        return ()
    def init(self, instance, key):
        return jax.random.normal(key, (3,))
    def loss(self, params, instance, key):
        return self.width * jnp.sum(params ** 2)

class NeedsData(Bowl):
    data: jax.Array = None
    def __init__(self, data):
        self.data = data

class NotAFamily:
    pass

wide = Bowl(width=5.0)
number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_a_family_by_name():
    assert find_family("quadratic") == Quadratic(distribution="uniform")
    assert find_family("quadratic-gaussian") == Quadratic(distribution="gaussian")


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(ValueError, match="There is no family 'quadratics'") as caught:
        find_family("quadratics")
    assert "Did you mean 'quadratic'?" in str(caught.value)
    assert all(name in str(caught.value) for name in FAMILIES)
    with pytest.raises(ValueError) as caught:
        find_family("zzz")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "images"),
    [("mnist", (784,)), ("mnist-2-layers-wide", (784,)), ("digits", (64,)), ("cifar2-16", (16, 16, 3))],
)
def test_every_family_takes_what_fits_of_several_sources(name, images, patches_file):
    for data in (f"mnist,{patches_file}", f"{patches_file}, mnist"):
        assert find_family(name, data=data).images.shape[1:] == images  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", [it for it in FAMILIES if it.startswith(("mnist", "digits"))])
def test_images_of_another_shape_are_refused(name, patches_file):
    with pytest.raises(ValueError, match=r"patches.npz holds images of shape \(32, 32, 3\) in 10 classes.*\(28, 28\)"):
        find_family(name, data=str(patches_file))


def test_images_fit_with_an_axis_for_one_channel_and_from_a_file_with_a_comma(tmp_path):
    digits = load_images("mnist").shrunk(8)
    path = tmp_path / "small,digits.npz"
    arrays = {f"{kind}_{split}": getattr(digits, f"{kind}_{split}") for kind in "xy" for split in ("train", "test")}
    np.savez(path, **{key: it[..., None] if key[0] == "x" else it for key, it in arrays.items()})
    np.testing.assert_array_equal(digit_images(str(path)).x_train[..., 0], digits.x_train)
    with pytest.raises(ValueError, match=r"shape \(8, 8, 1\) in 10 classes, and so is not MNIST"):
        mnist_images(str(path))


SPLITS = """
from bygrad.problems import MLPClassifier, find_family, load_images

for build in (
    lambda: MLPClassifier.from_data(load_images(), "Test"),
    *(lambda name=name: find_family(name, split="Test") for name in ("mnist", "characters", "patches", "portfolio")),
):
    try:
        build()
    except ValueError as error:
        print(error)
"""


@pytest.mark.slow
def test_no_part_of_the_data_is_taken_for_another():
    """What no type checker has seen: here, one would come before the check."""
    done = subprocess.run([sys.executable, "-c", SPLITS], capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines() == ["split is 'Test', and data have no such part. Choose 'train' or 'test'."] * 5


def test_a_class_in_a_file_is_built_and_an_instance_is_taken_as_it_is(file):
    built, taken = find_family(f"{file}:Bowl"), find_family(f"{file}:wide")
    assert (type(built).__name__, built.width) == ("Bowl", 2.0)
    assert (type(taken).__name__, taken.width) == ("Bowl", 5.0)


def test_data_are_not_taken_for_those_of_a_family_in_a_file(file):
    with pytest.raises(ValueError, match=r"digits\.npz would not be used for .*mine\.py:Bowl\. Leave data"):
        find_family(f"{file}:Bowl", data="digits.npz")


@pytest.mark.parametrize("name", FAMILIES)
def test_data_are_used_or_refused(name):
    used = name.startswith(("digits", "mnist", "cifar"))
    expected = (
        (FileNotFoundError, "absent") if used else (ValueError, rf"{name} brings .*absent\.npz would not be used")
    )
    with pytest.raises(expected[0], match=expected[1]):
        find_family(name, data="absent.npz")


def test_a_file_alone_names_the_one_family_in_it(file):
    with pytest.raises(ValueError, match=r"several families.*mine\.py:Bowl, .*mine\.py:NeedsData\."):
        find_family(str(file))
    only = "class Common(ProblemFamily):\n    pass\n\n\nclass Bowl(Common):"
    file.write_text(FILE.partition("class NeedsData")[0].replace("class Bowl(ProblemFamily):", only))
    found = find_family(str(file))
    assert type(found).__name__ == "Bowl"
    file.write_text("")
    with pytest.raises(ValueError, match="has no family class; it has none: subclass"):
        find_family(str(file))


def test_two_files_of_one_name_are_two_modules(tmp_path):
    text = "import bygrad\nclass Mine(bygrad.Quadratic):\n    where = {!r}\n"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "prob.py").write_text(text.format(folder))
    one, other = (find_family(str(tmp_path / folder / "prob.py")) for folder in ("a", "b"))
    assert (one.where, other.where) == ("a", "b")
    assert [Path(inspect.getfile(type(it))).parent.name for it in (one, other)] == ["a", "b"]
    again = find_family(str(tmp_path / "a" / "prob.py"))
    assert type(again).__module__ == type(one).__module__ == "bygrad_user_prob"


def test_annotations_in_a_file_may_be_text(file):
    file.write_text("from __future__ import annotations\nfrom typing import ClassVar\n" + FILE)
    assert find_family(f"{file}:wide").width == 5.0


def test_a_file_may_import_others_beside_it(file):
    (file.parent / "width_of_bowls.py").write_text("width = 7.0")
    file.write_text(FILE + "\nimport width_of_bowls\ndeep = Bowl(width=width_of_bowls.width)\n")
    before = list(sys.path)
    assert find_family(f"{file}:deep").width == 7.0
    assert sys.path == before
    file.write_text("import no_such_module")
    with pytest.raises(ValueError, match="ModuleNotFoundError"):
        find_family(f"{file}:Bowl")
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("missing.py:Bowl", FileNotFoundError, "There is no file .*missing.py.*Check the path"),
        ("missing.py", FileNotFoundError, "There is no file .*missing.py.*Check the path"),
        ("fit.bygrda", FileNotFoundError, "There is no file .*fit.bygrda, and no family of that name"),
        ("fit", FileNotFoundError, "There is no file .*fit, and no family of that name"),
        ("data.npy", ValueError, "data.npy is not a Python file, so there is no family in it"),
        ("mine.py:Bowls", ValueError, "has no family 'Bowls'; it has Bowl, NeedsData"),
        ("mine.py:NotAFamily", TypeError, "NotAFamily .* is not a ProblemFamily.*Subclass bygrad.ProblemFamily"),
        ("mine.py:number", TypeError, "number .* is not a ProblemFamily"),
        ("mine.py:NeedsData", TypeError, "built without arguments.*name an instance in the file"),
    ],
    ids=["file", "file alone", "suffix", "folder", "other file", "class", "kind", "value", "arguments"],
)
def test_what_is_not_there_is_refused(name, error, message, file):
    (file.parent / "data.npy").write_bytes(b"")
    with pytest.raises(error, match=message):
        find_family(str(file.parent / name))


def test_a_family_that_lacks_a_method_or_cannot_be_built_is_told_from_none(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE.partition("    def loss")[0])
    with pytest.raises(TypeError, match=r"Bowl in .*mine\.py has no loss, .* Write what is missing"):
        find_family(str(path))
    path.write_text(FILE.partition("class NeedsData")[0] + "\n    def __check_init__(self):\n        {}['SCANS']\n")
    with pytest.raises(ValueError, match=r"Bowl\(\) in .*mine\.py raised KeyError: 'SCANS'.*the environment"):
        find_family(f"{path}:Bowl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it has none: subclass bygrad.ProblemFamily"),
        ("from bygrad import Quadratic, ProblemFamily", "it has none: subclass bygrad.ProblemFamily"),
        ("import no_such_module", "raised ModuleNotFoundError.*Mend the file"),
        ("class Bowl(:", "raised SyntaxError.*Mend the file"),
        ("raise SystemExit(0)", "raised SystemExit: 0.*__main__"),
    ],
    ids=["empty", "imports only", "import", "syntax", "script"],
)
def test_a_file_without_families_is_refused(text, message, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_family(f"{tmp_path / 'mine.py'}:Bowl")
