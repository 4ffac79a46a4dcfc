"""Training a small network on MNIST: section 3.2, figures 4 (centre, right) and 5 of the paper."""

import dataclasses

from .._core.types import PRNGKeyArray
from ..deploy.jax import load
from ..evaluation import Protocol
from ..metagrads import Replay
from ..optimizers import LSTM, Optimizer
from ..training import Recipe
from .declaration import Experiment, Level, Setting

MNIST = Experiment(
    name="mnist",
    title="A 784-20-10 sigmoid network on MNIST",
    optimizer=lambda key: LSTM(key, output_scale=0.1, initial_step=0.3),
    recipes={
        # Short windows: twice as many meta-steps in the same time, which count for more at first than a longer view.
        "quick": Recipe(
            truncation=10,
            instances=1,
            meta_steps=300,
            meta_learning_rate=1e-2,
            meta_b2=0.99,
            clip=0.03,
            estimator=Replay(0.25),
            validate_every=100,
            validation_runs=4,
            final_window=5,
        ),
        "paper": Recipe(
            instances=1,
            meta_steps=8_000,
            meta_learning_rate=1e-2,
            clip=0.1,
            estimator=Replay(0.25),
            validate_every=400,
            validation_runs=16,
            final_window=5,
        ),
    },
    protocols={
        "quick": Protocol(100, runs=100, tuning_runs=2, second_order_runs=2, chunk=4),
        "paper": Protocol(100, runs=128, tuning_runs=8, second_order_runs=8, chunk=4),
    },
    settings=(
        Setting(
            "main",
            "MNIST, 20 sigmoid units, 100 steps",
            "mnist",
            horizon=100,
            final_window=5,
            figure="fig4C_mnist",
            levels=(
                Level("mean of the last 5 of 100 updates", "final", 0.25),
                Level("sum over 100 steps, pre-update", "area", 44.0),
            ),
        ),
        Setting(
            "200-steps",
            "MNIST, run on to 200 steps",
            "mnist",
            horizon=200,
            final_window=5,
            figure="fig4R_mnist_steps100_200",
            levels=(Level("200 updates", "final", 0.21),),
        ),
        Setting(
            "40-units",
            "MNIST, 40 hidden units",
            "mnist-40-units",
            horizon=100,
            final_window=5,
            figure="fig5L_mnist_40units",
            levels=(Level("40 hidden units", "final", 0.19),),
        ),
        Setting(
            "2-layers",
            "MNIST, two hidden layers of 20",
            "mnist-2-layers",
            horizon=100,
            final_window=5,
            figure="fig5C_mnist_2layers",
            levels=(Level("two hidden layers of 20", "final", 0.32),),
        ),
        Setting(
            "relu",
            "MNIST, ReLU instead of sigmoid",
            "mnist-relu",
            horizon=100,
            final_window=5,
            figure="fig5R_mnist_relu",
            levels=(Level("ReLU instead of sigmoid", "final", None),),
        ),
    ),
)


def _plain(key: PRNGKeyArray) -> Optimizer:
    """Return what `MNIST` has trained, to go on from."""
    return load("paper/mnist")


# Where weights begin smaller, gradients do too, and a deeper network's are small: the one thing that an LSTM which has
# seen one initial scale fails at is then no longer new to it.
MNIST_ANY_START = dataclasses.replace(
    MNIST,
    name="mnist-any-start",
    title="A 784-20-10 sigmoid network on MNIST, learned on initial weights of any size",
    optimizer=_plain,
    recipes={
        "quick": dataclasses.replace(MNIST.recipes["quick"], meta_learning_rate=5e-3),
        "paper": dataclasses.replace(MNIST.recipes["paper"], meta_steps=4_000, meta_learning_rate=5e-3),
    },
    settings=(
        *MNIST.settings,
        Setting(
            "2-layers-wide",
            "MNIST, two hidden layers of 20, initial weights of 0.05",
            "mnist-2-layers-wide",
            horizon=100,
            final_window=5,
            figure="fig5C_mnist_2layers",
            levels=(Level("two hidden layers of 20, initial weights of 0.05", "final", 0.32),),
        ),
    ),
    train_on="mnist-any-start",
)
"""The paper's LSTM once more, for what it lacks: other scales of gradients than those of one network."""
