"""Many problems at once: scores relative to a reference, their interquartile mean, and performance profiles.

Scores are arrays `[problems, runs]`, smaller is better, infinite for a run that was lost.
"""

import numpy as np
from jaxtyping import Float

from .statistics import Interval

Scores = Float[np.ndarray, "problems runs"]


def interquartile_mean(scores: Scores) -> float:
    """Mean of the middle half of all scores: robust as a median, and it uses half of the runs and not one of them.

    A quarter of the runs may be lost before it is infinite.

    !!! example

        >>> interquartile_mean(np.array([[0.0, 1.0], [2.0, np.inf]]))
        1.5

    Source: Agarwal et al., *Deep reinforcement learning at the edge of the statistical precipice* (2021), section 4.3.
    """
    ordered = np.sort(np.where(np.isfinite(scores), scores, np.inf).ravel())
    cut = len(ordered) // 4
    return float(np.mean(ordered[cut : len(ordered) - cut]))


def bootstrap_iqm(scores: Scores, *, resamples: int = 2_000, level: float = 0.95, seed: int = 0) -> Interval:
    """Return `interquartile_mean` with its stratified percentile bootstrap interval: runs are drawn with replacement
    within each problem, so that the problems, which were chosen and not drawn, are all there in every draw.

    **Raises:** `ValueError` for scores that are not `[problems, runs]` or that are empty.

    Source: as above, section 4.2.
    """
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(
            f"scores have shape {scores.shape}, but runs are drawn within problems: give an array [problems, runs] with"
            " one problem and one run or more."
        )
    problems, runs = scores.shape
    draws = np.random.default_rng(seed).integers(runs, size=(resamples, problems, runs))
    means = np.sort([interquartile_mean(np.take_along_axis(scores, draw, axis=1)) for draw in draws])
    tail = (1 - level) / 2 * (resamples - 1)
    # Order statistics, rounded outwards: an infinite one stays infinite.
    low, high = means[int(np.floor(tail))], means[int(np.ceil(resamples - 1 - tail))]
    return Interval(interquartile_mean(scores), float(low), float(high))


def performance_profile(scores: Scores, levels: Float[np.ndarray, " levels"]) -> Float[np.ndarray, " levels"]:
    """Return the share of runs, every problem counting alike, whose score is at most each level.

    Source: Dolan and Moré, *Benchmarking optimization software with performance profiles* (2002).
    """
    return np.mean(scores[..., None] <= levels, axis=(0, 1))
