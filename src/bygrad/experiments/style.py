"""Artistic style transfer: section 3.4 and figures 8 and 9 of the paper."""

import dataclasses

import jax.numpy as jnp

from ..evaluation import Protocol
from ..metagrads import Clone
from ..optimizers import LSTM, AdamWCosine
from ..training import Recipe
from .declaration import Experiment, Level, Setting
from .pictures import paintings


# A gradient costs many times what the optimizer costs, and recorded runs of a good teacher need none: of Adam with the
# rate, the decays and the schedule that end lowest on training photographs; the warm-up matters most. To learn from
# what is achieved as well, over windows or by where whole runs end, made a clone no better: in windows it learns to be
# fast, and pays for it at the end.
def _clone() -> Clone:
    rate, b2, decay, warmup = (jnp.asarray(value) for value in (48.0, 0.8, 0.0, 20.0))
    return Clone(AdamWCosine(rate, b2=b2, weight_decay=decay, warmup=warmup))


_PAPER = Recipe(
    horizon=128,
    truncation=128,
    instances=8,
    meta_steps=2_500,
    meta_learning_rate=1e-2,
    warmup=20,
    validate_every=500,
    validation_runs=4,
    select="final",
)
_QUICK = dataclasses.replace(_PAPER, instances=2, meta_steps=100, validate_every=100, validation_runs=1)

STYLE = Experiment(
    name="style",
    title="Artistic style transfer",
    # A useful step is some ten pixel values, and a trained LSTM's output is of order one.
    optimizer=lambda key: LSTM(key, output_scale=10.0, initial_step=0.3),
    recipes={"quick": _QUICK, "paper": _PAPER},
    # Useful steps are some ten pixel values, a thousand times those of networks.
    protocols={
        "quick": Protocol(128, runs=2, tuning_runs=1, second_order_runs=0, chunk=2, rates=5, rate_scale=1_000.0),
        "paper": Protocol(
            128,
            runs=20,
            tuning_runs=1,
            second_order_runs=2,
            chunk=4,
            rates=9,
            rates_at_once=1,
            rate_scale=1_000.0,
            area_rates=False,
        ),
    },
    illustrate=paintings,
    estimator=_clone,
    settings=(
        Setting(
            "main",
            "Style transfer, 64 x 64, the painting of meta-training",
            "style",
            horizon=128,
            final_window=1,
            figure="fig8L_neuralart_64",
            levels=(Level("loss after 128 updates, share of the best tuned baseline's", "final", 0.95, relative=True),),
        ),
        Setting(
            "128-new-style",
            "Style transfer, 128 x 128, a painting never seen",
            "style-128-new",
            horizon=128,
            final_window=1,
            figure="fig8R_neuralart_128",
            levels=(Level("loss after 128 updates, share of the best tuned baseline's", "final", 0.90, relative=True),),
        ),
    ),
)
