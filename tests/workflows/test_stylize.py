"""Painting one's own pictures: what is written, what is kept, and how pictures that are none are refused."""

import base64
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bygrad.cli import main
from bygrad.deploy.jax import export
from bygrad.experiments import pictures
from bygrad.experiments.pictures import painted, paintings, to_bytes
from bygrad.optimizers import LSTM, SGD, AdamWCosine, Cosine
from bygrad.problems import ProblemFamily, StyleTransfer
from bygrad.problems.data.files import read_picture, write_picture
from bygrad.problems.data.pictures import load_painting, load_photographs
from bygrad.workflows import paint, stylize

stylizing = importlib.import_module("bygrad.workflows.stylize")  # where the package has the function


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, a file that is none, and an optimizer."""
    folder = tmp_path_factory.mktemp("pictures")
    write_picture(folder / "content.png", load_photographs("test")[0][:32])
    write_picture(folder / "style.jpg", load_painting("great_wave", 32))
    (folder / "broken.png").write_bytes((folder / "content.png").read_bytes()[:200])
    (folder / "notes.png").write_text("not a picture")
    optimizer = LSTM(jax.random.key(0), (2,), output_scale=10.0)
    export(optimizer, folder / "lstm.safetensors", name="mine/style", training={}, validation={})
    return folder


def test_the_command_paints(folder, capsys):
    out = folder / "out.png"
    options = ["--size", "16", "--steps", "2", "--artifact", str(folder / "lstm.safetensors")]
    main(["stylize", str(folder / "content.png"), str(folder / "style.jpg"), "-o", str(out), *options])
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as picture:
        assert (picture.format, picture.size, picture.mode) == ("PNG", (16, 8), "RGB")


def test_the_best_image_is_kept():
    """Steps that are far too long only make it worse: what is kept is the start, and its loss."""
    photograph, painting = load_photographs("test", 16)[0, :8], load_painting("great_wave", 16)
    losses = []
    image, best = paint(photograph, painting, SGD(1e6), steps=3, tick=lambda step, loss: losses.append(loss))
    assert len(losses) == 3
    assert best == min(losses) == losses[0]
    # Grey with noise, as it started: an image that ran away would be black and white.
    assert 100 < image.mean() < 150 and 20 < image.std() < 45


def test_what_does_not_fit_into_memory_is_refused_before_it_is_computed(folder, monkeypatch):
    monkeypatch.setattr(stylizing, "bytes_available", lambda: 16 * 8 * stylizing.BYTES_A_PIXEL - 1)
    with pytest.raises(MemoryError, match="16 x 8 pixels need 775 KiB of memory, but 775 KiB are free"):
        stylize(folder / "content.png", folder / "style.jpg", folder / "large.png", SGD(1.0), size=16)
    assert not (folder / "large.png").exists()


def test_a_size_that_does_not_fit_is_refused_before_a_picture_is_brought_to_it(folder, monkeypatch):
    """Resized alone, this one would take terabytes."""
    monkeypatch.setattr(Image.Image, "resize", lambda *_: pytest.fail("resized"))
    with pytest.raises(MemoryError, match="1000000 x 500000 pixels need"):
        stylize(folder / "content.png", folder / "style.jpg", folder / "large.png", SGD(1.0), size=1_000_000)


def test_a_step_takes_as_much_memory_as_is_expected():
    photograph = load_photographs("test")[0]
    family, optimizer = StyleTransfer.of(photograph[None], photograph), LSTM(jax.random.key(0))
    content, image = family.content(family.photographs[0]), jnp.zeros(photograph.shape)
    now = stylizing.Painting(image, optimizer.init(image), image, jnp.asarray(jnp.inf))
    needs = stylizing._step.bytes_more(now, optimizer, family, content, jax.random.key(0))
    assert needs == pytest.approx(stylizing.BYTES_A_PIXEL * image.shape[0] * image.shape[1], rel=0.3)


def test_the_steps_are_declared():
    photograph, painting = load_photographs("test", 16)[0, :8], load_painting("great_wave", 16)
    declared, other = ([], [])
    for horizon, losses in ((3, declared), (1_000, other)):
        optimizer = AdamWCosine(48.0, horizon=horizon)
        paint(photograph, painting, optimizer, steps=3, tick=lambda step, loss: losses.append(loss))  # noqa: B023
    assert len(declared) == 3 and other == declared


@pytest.mark.parametrize(
    ("content", "style", "out", "message"),
    [
        ("gone.png", "style.jpg", "a.png", "There is no file .*gone.png"),
        ("content.png", "notes.png", "a.png", "notes.png cannot be read as a picture .*Give a JPEG"),
        ("broken.png", "style.jpg", "a.png", "broken.png cannot be read as a picture"),
        ("content.png", "style.jpg", "a.txt", "ends in .txt.*End it in .png or .jpg"),
    ],
)
def test_pictures_that_are_none_are_refused_at_once(folder, content, style, out, message):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        stylize(folder / content, folder / style, folder / out, SGD(1.0), steps=1)
    assert not (folder / out).exists()


def test_the_pictures_painted_from_are_not_lost(folder):
    for name in ("content.png", "style.jpg"):
        before = (folder / name).read_bytes()
        with pytest.raises(ValueError, match=f"{name} is one of the two pictures, and would be lost"):
            stylize(folder / "content.png", folder / "style.jpg", folder / "." / name, SGD(1.0), steps=1)
        assert (folder / name).read_bytes() == before


@pytest.mark.slow
def test_pictures_in_the_home_folder_are_painted_over_an_older_result(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "older.png").write_bytes(b"")
    stylize("~/content.png", "~/style.jpg", folder / "older.png", SGD(1.0), size=8, steps=1)
    assert read_picture(folder / "older.png", 8).shape == (8, 8, 3)
    with pytest.raises(ValueError, match=r"style.jpg is one of the two pictures, and would be lost"):
        stylize("~/content.png", "~/style.jpg", folder / "style.jpg", SGD(1.0), size=8, steps=1)


def test_sizes(folder):
    assert read_picture(folder / "content.png", 32).shape == (16, 32, 3)
    assert read_picture(folder / "content.png", 100, 8).shape == (48, 96, 3)
    assert read_picture(folder / "style.jpg", 8, 8).shape == (8, 8, 3)
    with pytest.raises(ValueError, match=r"size is 4.*8 pixels or more"):
        read_picture(folder / "content.png", 4, 8)
    with pytest.raises(ValueError, match="steps is 0"):
        stylize(folder / "content.png", folder / "style.jpg", folder / "a.png", SGD(1.0), steps=0)


def test_a_picture_survives_a_png(folder):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_picture(folder / "exact.png", picture)
    np.testing.assert_array_equal(read_picture(folder / "exact.png", 7), picture)


def test_what_lies_under_transparency_is_not_seen(tmp_path):
    shown = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    shown[..., 3] = np.where(np.arange(7) < 3, 0, 255)
    Image.fromarray(shown).save(tmp_path / "clear.png")
    expected = np.where(shown[..., 3:] == 0, 255, shown[..., :3])
    np.testing.assert_array_equal(read_picture(tmp_path / "clear.png", 7), expected)
    palette = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7) % 2)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "palette.png", transparency=1)
    colours = np.array([[10, 20, 30], [255, 255, 255]])
    np.testing.assert_array_equal(read_picture(tmp_path / "palette.png", 7), colours[np.arange(35).reshape(5, 7) % 2])


@pytest.mark.parametrize(("name", "dtype"), [("deep.png", np.uint16), ("deep.tif", np.float32)])
def test_deep_greys_are_refused_rather_than_cut_to_white_or_black(name, dtype, tmp_path):
    greys = np.linspace(0, 65535 if dtype is np.uint16 else 1, 35).reshape(5, 7).astype(dtype)
    Image.fromarray(greys).save(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} has grey values of 16 or 32 bits.*Save it with 8 bits"):
        read_picture(tmp_path / name, 7)


def test_what_a_reader_of_pictures_stumbles_over_is_explained(folder, monkeypatch):
    def stumble(*_):
        raise RuntimeError("Failed to decode image: Missing or empty image item")  # as for a damaged AVIF

    monkeypatch.setattr(Image, "open", stumble)
    with pytest.raises(ValueError, match=r"cannot be read as a picture \(Failed to decode"):
        read_picture(folder / "content.png", 7)


class Copying(ProblemFamily):
    """An image is to become grey."""

    def sample(self, key):
        return ()

    def init(self, instance, key):
        return 255 * jax.random.uniform(key, (4, 6, 3))

    def loss(self, params, instance, key):
        return jnp.mean(jnp.square(params - 127))


def test_the_photograph_and_the_style_come_first(monkeypatch):
    monkeypatch.setattr(pictures, "painted", lambda family, optimizers, given, keys: given)
    photographs, painting = load_photographs("test", 16)[:1], load_painting("great_wave", 16)
    for style, columns in (("great_wave", ["photograph", "style"]), ("a painting", ["photograph"])):
        family = StyleTransfer.of(photographs, painting, style)
        shown = pictures.paintings(family, {}, jax.random.key(0))
        assert shown["columns"][:-5] == columns
        for given in shown["rows"]:
            assert len(given) == len(columns)
            for found, expected in zip(given, (photographs[0], painting), strict=False):
                np.testing.assert_array_equal(found, expected)


def test_rows_of_pictures_for_a_report():
    photographs = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    optimizers = {"LSTM": LSTM(jax.random.key(0), (2,), output_scale=10.0), "SGD": SGD(1.0)}
    rows = painted(Copying(), optimizers, [[it] for it in photographs], jax.random.split(jax.random.key(1), 2))
    assert [row["label"] for row in rows] == ["LSTM", "SGD", "LSTM", "SGD"]
    images = np.array([[decode(image) for image in row["images"]] for row in rows]).astype(int)
    assert images.shape == (4, 1 + 5, 4, 6, 3)  # the photograph, and after 0, 16, 32, 64 and 128 updates
    np.testing.assert_array_equal(images[::2, 0], photographs)
    np.testing.assert_array_equal(images[::2, 1], images[1::2, 1])  # the same noise for both
    assert (images[0, 1] != images[2, 1]).any()  # and other noise for another run
    # Gradient descent in closed form: the distance shrinks by 1 - 2 / 72 a step.
    for column, step in enumerate((0, 16, 32, 64, 128), start=1):
        expected = 127 + (images[1, 1] - 127) * (1 - 2 / 72) ** step
        np.testing.assert_allclose(images[1, column], expected, atol=1.01)
    assert (images[0, 5] != images[0, 1]).any()


def test_a_schedule_ends_with_the_last_picture():
    (row,) = painted(Copying(), {"cosine": Cosine(SGD(1.0))}, [[]], jax.random.split(jax.random.key(1), 1))
    start, *_, end = (decode(image).astype(int) for image in row["images"])
    parts = 0.5 * (1 + np.cos(np.pi * np.arange(128) / 128))
    np.testing.assert_allclose(end, 127 + (start - 127) * np.prod(1 - 2 / 72 * parts), atol=1.01)


def test_other_families_have_no_paintings():
    with pytest.raises(TypeError, match="Copying has no pictures to show"):
        paintings(Copying(), {"SGD": SGD(1.0)}, jax.random.key(0))


def decode(image: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(image["data"]), np.uint8).reshape(image["shape"])


def test_pixels_become_bytes():
    image = np.array([-3.0, 0.4, 254.6, 300.0, np.nan, np.inf])
    np.testing.assert_array_equal(to_bytes(image), [0, 0, 255, 255, 0, 255])
