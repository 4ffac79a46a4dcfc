"""Painting one's own pictures: what is written, what is kept, and how pictures that are none are refused."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from bygrad.cli import main
from bygrad.deploy.jax import export
from bygrad.experiments import paint, stylize
from bygrad.optimizers import LSTM, SGD
from bygrad.problems.data.files import read_picture, write_picture
from bygrad.problems.data.pictures import load_painting, load_photographs


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


@pytest.mark.core
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


@pytest.mark.core
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


@pytest.mark.core
def test_sizes(folder):
    assert read_picture(folder / "content.png", 32).shape == (16, 32, 3)
    assert read_picture(folder / "content.png", 100, 8).shape == (48, 96, 3)
    assert read_picture(folder / "style.jpg", 8, 8).shape == (8, 8, 3)
    with pytest.raises(ValueError, match=r"size is 4.*8 pixels or more"):
        read_picture(folder / "content.png", 4, 8)
    with pytest.raises(ValueError, match="steps is 0"):
        stylize(folder / "content.png", folder / "style.jpg", folder / "a.png", SGD(1.0), steps=0)


@pytest.mark.core
def test_a_picture_survives_a_png(folder):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_picture(folder / "exact.png", picture)
    np.testing.assert_array_equal(read_picture(folder / "exact.png", 7), picture)
