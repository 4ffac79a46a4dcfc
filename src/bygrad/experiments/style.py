"""Artistic style transfer: section 3.4 and figures 8 and 9 of the paper."""

from ..evaluation import Protocol
from ..metagrads import Replay
from ..optimizers import LSTM
from ..training import Recipe
from .declaration import Experiment, Level, Setting
from .pictures import paintings

STYLE = Experiment(
    name="style",
    title="Artistic style transfer",
    # A useful step is some ten pixel values, and a trained LSTM's output is of order one.
    optimizer=lambda key: LSTM(key, output_scale=10.0, initial_step=0.3),
    recipes={
        "quick": Recipe(
            horizon=128,
            truncation=32,
            instances=1,
            meta_steps=24,
            meta_learning_rate=1e-2,
            clip=0.1,
            estimator=Replay(0.1),
            validate_every=12,
            validation_runs=1,
        ),
        "paper": Recipe(
            horizon=128,
            truncation=32,
            instances=1,
            meta_steps=3_000,
            meta_learning_rate=1e-2,
            clip=0.1,
            estimator=Replay(0.1),
            validate_every=250,
            validation_runs=4,
            select="final",
        ),
    },
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
    train_on="style-32",
    illustrate=paintings,
    settings=(
        Setting(
            "main",
            "Style transfer, 64 x 64, the painting of meta-training",
            "style",
            horizon=128,
            final_window=1,
            levels=(Level("loss after 128 updates, share of the best tuned baseline's", "final", 0.96, 0.95, True),),
        ),
        Setting(
            "128-new-style",
            "Style transfer, 128 x 128, a painting never seen",
            "style-128-new",
            horizon=128,
            final_window=1,
            levels=(Level("loss after 128 updates, share of the best tuned baseline's", "final", 0.91, 0.90, True),),
        ),
    ),
)
