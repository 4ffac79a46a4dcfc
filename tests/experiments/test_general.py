"""The controller that comes with the package: what it was trained on, and that it helps where it was not."""

import jax
import numpy as np

from bygrad.artifacts import find, load
from bygrad.deploy.jax import load as load_optimizer
from bygrad.evaluation import area, run_curves
from bygrad.experiments.general import RECIPE, digits, held_out, mixture
from bygrad.optimizers import Adam, declare
from bygrad.problems import ProblemFamily, describe_family
from bygrad.problems.data import shrink
from bygrad.training import describe


def test_images_become_means_of_squares():
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28), dtype=np.uint8)
    small = shrink(images, 8)
    assert small.shape == (2, 8, 8) and small.dtype == np.uint8
    np.testing.assert_array_equal(small[1, 2, 3], np.round(images[1, 8:11, 11:14].mean()))
    np.testing.assert_array_equal(shrink(images, 28), images)


def test_the_seed_is_chosen_on_networks_that_the_mixture_has_none_of():
    def architecture(family: ProblemFamily) -> str:
        names = ("name", "layers", "hidden", "activation", "channels", "width", "window", "dimension")
        return str({name: value for name, value in describe_family(family).items() if name in names})

    members = mixture().members
    seen = set(map(architecture, members))
    assert len(seen) == len(members) == len(mixture().weights)
    assert seen.isdisjoint(map(architecture, held_out().values()))


def test_the_shipped_controller_says_how_to_make_it_again():
    training = load(find("general/controller")).manifest.training
    assert training["recipe"] | {"seed": None} == describe(RECIPE) | {"seed": None}
    assert training["chosen_seed"] in training["seeds"]
    assert training["command"].startswith("bygrad reproduce general")
    assert len(training["mixture"]) == len(mixture().members)


def test_the_shipped_controller_beats_adam_on_a_network_that_it_has_not_seen():
    family, horizon = digits(2, 12, "elu"), 150
    ours, *theirs = (
        run_curves(declare(it, horizon), family, jax.random.key(5), horizon=horizon, runs=4, chunk=4)[0]
        for it in (load_optimizer("general/controller"), Adam(1e-3), Adam(3e-3))
    )
    for curves in theirs:
        assert np.mean(area(ours)) < 0.9 * np.mean(area(curves))
        assert np.mean(ours[:, -10:]) < np.mean(curves[:, -10:])
