"""Many problems at once: scores relative to a reference, their interquartile mean, and performance profiles.

Scores are arrays `[problems, runs]`, smaller is better, infinite for a run that was lost.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from .statistics import Interval, check_draws, ends_of

Scores = Float[np.ndarray, "problems runs"]
Draws = Float[np.ndarray, "resamples problems runs"]
Indices = Int[np.ndarray, "resamples problems runs"]


def interquartile_mean(scores: Scores) -> float:
    """Mean of the middle half of all scores: robust as a median, and it uses half of the runs and not one of them.

    A quarter of the runs may be lost before it is infinite.

    **Example:**

        >>> interquartile_mean(np.array([[0.0, 1.0], [2.0, np.inf]]))
        1.5

    **Source:** Agarwal et al., *Deep reinforcement learning at the edge of the statistical precipice* (2021), section
    4.3.
    """
    return float(_middle_mean(scores[None])[0])


def _middle_mean(draws: Draws) -> Float[np.ndarray, " resamples"]:
    scores = np.where(np.isfinite(draws), draws, np.inf).reshape(len(draws), -1)
    ordered = np.sort(scores, axis=1)
    cut = ordered.shape[1] // 4
    return ordered[:, cut : ordered.shape[1] - cut].mean(axis=1)


def bootstrap_iqm(
    scores: Scores, *, together: bool = False, resamples: int = 2_000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return `interquartile_mean` with its stratified percentile bootstrap interval: runs are drawn with replacement
    within each problem, so that the problems, which were chosen and not drawn, are all there in every draw.

    **Arguments:** `scores`: `[problems, runs]`. `together`: the runs of a column come from one key, so that they are
    not independent; every draw then takes the same columns of all problems. The others as in `bootstrap_mean`.

    **Raises:** `ValueError` for scores that are not `[problems, runs]` or that are empty, and as `bootstrap_mean` for a
    level outside (0, 1) and for too few resamples.

    **Source:** as above, section 4.2.
    """

    def of(draws: Indices) -> Float[np.ndarray, " resamples"]:
        return _middle_mean(_drawn(scores, draws))

    ends = _ends(of, scores.shape, together, resamples, level, seed)
    return Interval(interquartile_mean(scores), *ends)


def bootstrap_share(
    ours: Scores,
    theirs: Scores,
    *,
    together: bool = False,
    resamples: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the share of problems in which the mean over runs of `ours` is below that of `theirs`, with its stratified
    percentile bootstrap interval, drawn as in `bootstrap_iqm`: the same runs of both, which began alike.

    A problem in which `ours` lost a run is not won; one in which only `theirs` did, is.

    **Raises:** `ValueError` as `bootstrap_iqm`, and for scores of different shapes.

    **Example:**

        >>> bootstrap_share(np.array([[1.0, 1.0], [5.0, 5.0]]), np.array([[2.0, 3.0], [2.0, 3.0]]))
        Interval(mean=0.5, low=0.5, high=0.5)
    """

    if ours.shape != theirs.shape:
        raise ValueError(
            f"One has scores of shape {ours.shape}, the other of shape {theirs.shape}: there are no pairs of runs to"
            " draw. Give those of the same runs of the same problems."
        )

    def of(draws: Indices) -> Float[np.ndarray, " resamples"]:
        means = (_drawn(np.where(np.isfinite(it), it, np.inf), draws).mean(axis=2) for it in (ours, theirs))
        return np.less(*means).mean(axis=1)

    ends = _ends(of, ours.shape, together, resamples, level, seed)
    everyone = np.broadcast_to(np.arange(ours.shape[1]), (1, *ours.shape))
    return Interval(float(of(everyone)[0]), *ends)


def _drawn(scores: Scores, draws: Indices) -> Draws:
    return np.take_along_axis(scores[None], draws, axis=2)


def _ends(
    of: Callable[[Indices], Float[np.ndarray, " resamples"]],
    shape: tuple[int, ...],
    together: bool,
    resamples: int,
    level: float,
    seed: int,
) -> tuple[float, float]:
    """Return the ends of the interval of a statistic of runs drawn within each problem, given by the indices of all;
    `together`: the same of every problem."""
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"scores have shape {shape}, but runs are drawn within problems: give an array [problems, runs] with one"
            " problem and one run or more."
        )
    problems, runs = shape
    check_draws(runs, resamples, level)
    drawn = np.random.default_rng(seed).integers(runs, size=(resamples, 1 if together else problems, runs))
    draws = np.broadcast_to(drawn, (resamples, problems, runs))
    low, high = np.sort(of(draws))[ends_of(resamples, level)]
    return float(low), float(high)
