"""The controller that comes with the package: what it was trained on, and that it helps where it was not."""

import jax
import numpy as np

from bygrad.artifacts import find, load
from bygrad.deploy.jax import load as load_optimizer
from bygrad.evaluation import area, run_curves
from bygrad.experiments.general import RECIPE, held_out, mixture
from bygrad.experiments.small_networks import perceptron
from bygrad.optimizers import Adam, declare
from bygrad.problems import ProblemFamily, describe_family, load_images
from bygrad.training import describe


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
    family, horizon = perceptron(load_images("mnist"), layers=2, hidden=12, activation="elu", scale=0.2), 150
    ours, *theirs = (
        run_curves(declare(it, horizon), family, jax.random.key(5), horizon=horizon, runs=4, chunk=4)[0]
        for it in (load_optimizer("general/controller"), Adam(1e-3), Adam(3e-3))
    )
    for curves in theirs:
        assert np.mean(area(ours)) < 0.9 * np.mean(area(curves))
        assert np.mean(ours[:, -10:]) < np.mean(curves[:, -10:])
