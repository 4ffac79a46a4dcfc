"""Learn on growing horizons, with Adam as a teacher beside, and be judged by runs longer than any that were learned on.

python examples/growing_horizons.py [META_STEPS]
"""

import sys

import jax

import bygrad
from bygrad.metagrads import Imitate, Replay
from bygrad.problems import Quadratic
from bygrad.training import Curriculum, learn_by_curriculum

meta_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
estimator = Imitate(Replay(), bygrad.Adam(0.1))  # every fourth window, what Adam does on a path of its own
recipe = bygrad.Recipe(instances=16, meta_steps=meta_steps, estimator=estimator)  # of each round
curriculum = Curriculum(recipe, horizons=(20, 60, 200), rounds=3, patience=1)  # the last is to be judged by alone
graduated = learn_by_curriculum(bygrad.LSTM(jax.random.key(0)), Quadratic(), curriculum)

for it in graduated.rounds:
    what = f"after round {it.round} of" if it.round else "before"
    print(f"{what} learning on {it.horizon} steps: runs of {it.judged_by} end at {it.loss:.4g}")
trained = graduated.optimizer
