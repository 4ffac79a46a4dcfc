"""Means over runs, with the interval that the number of runs supports."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

# Bounds on what is held at once: 2**21 weights and 2**23 resampled means, as float64, are 16 MB and 64 MB.
_WEIGHTS_AT_ONCE = 2**21
_MEANS_AT_ONCE = 2**23


class Interval(NamedTuple):
    """The mean over runs and the two ends of its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: ArrayLike, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of `values` over runs with its percentile bootstrap interval.

    The runs are drawn with replacement `resamples` times, as many as there are; the ends of the interval are the
    `(1 - level) / 2` and `(1 + level) / 2` quantiles of the means of the draws. The quantiles are order statistics,
    rounded outwards, so that an infinite one stays infinite instead of becoming NaN by interpolation.

    A run that is not finite (NaN, or infinite with either sign) counts as an infinite loss and is never dropped:
    an optimizer that diverges once in a hundred runs has no mean loss. The mean is then infinite, and so is `high`;
    `low` stays finite while enough draws miss every diverged run (up to three of them among 100 runs at 95 %).

    **Arguments:**

    - `values`: `[runs]`, one number per run, such as its final loss. From a single run the interval has no width:
        it knows nothing of the spread between runs.
    - `resamples`: how many draws. 10,000 places each end to about 1 % of the width of the interval.
    - `level`: the coverage wanted, between 0 and 1. The actual coverage of a percentile interval is a little lower
        for few runs (about 93 % for 30 runs of a normal quantity).
    - `seed`: of the draws. Equal seeds give equal intervals.

    **Returns:** `Interval(mean, low, high)`.

    **Raises:** `ValueError` for values that are not one-dimensional, for no runs, for a level outside (0, 1) and for
    too few resamples to reach the ends of the interval.

    **Example:**

        >>> bootstrap_mean([1.0, 2.0, 3.0, 4.0])
        Interval(mean=2.5, low=1.5, high=3.5)

    **Source:** Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), section 13.3.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise ValueError(
            f"`bootstrap_mean` got values of shape {values.shape}, and needs one number per run, shape [runs]. "
            "Averaging over another axis as well would mix the steps of a run with the runs. "
            "For curves of shape [runs, steps] use `bootstrap_curves`."
        )
    mean, low, high = bootstrap_curves(values[:, None], resamples=resamples, level=level, seed=seed)
    return Interval(float(mean[0]), float(low[0]), float(high[0]))


def bootstrap_curves(
    curves: ArrayLike, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """Mean curve over runs with a percentile bootstrap interval at every step.

    At each step the result equals `bootstrap_mean` of that step's values. Whole runs are drawn, the same for every
    step, so the ends are as smooth as the curves; each interval holds for its own step, not for all steps at once.

    **Arguments:** `curves`: `[runs, steps]`, the loss of each run at each step; the others as in `bootstrap_mean`.

    **Returns:** `(mean, low, high)`, each `[steps]`. Where a run is not finite they follow `bootstrap_mean`: the mean
    is infinite at the steps concerned, and only there.

    **Raises:** `ValueError` as `bootstrap_mean` does, here for curves that are not two-dimensional.

    **Example:**

        >>> mean, low, high = bootstrap_curves([[1.0, 0.5], [3.0, 0.5]])
        >>> mean.tolist(), low.tolist(), high.tolist()
        ([2.0, 0.5], [1.0, 0.5], [3.0, 0.5])
    """
    curves = np.asarray(curves, np.float64)
    _check(curves, resamples, level)
    runs, steps = curves.shape
    ends = ends_of(resamples, level)
    mean, low, high = np.empty(steps), np.empty(steps), np.empty(steps)
    block = max(1, _MEANS_AT_ONCE // resamples)
    for start in range(0, steps, block):
        here = slice(start, start + block)
        mean[here] = _means(np.ones((1, runs)), curves[:, here])[:, 0]
        means = _resampled_means(curves[:, here], resamples, seed)
        means.partition(ends, axis=1)
        low[here], high[here] = means[:, ends[0]], means[:, ends[1]]
    return mean, low, high


def bootstrap_ratio(
    values: ArrayLike, reference: ArrayLike, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Ratio of the mean of `values` to the mean of `reference`, with its percentile bootstrap interval.

    Both have one number for each of the same runs. Runs are drawn in pairs, so that what makes a problem hard for both
    cancels: two optimizers are told apart by fewer runs than their own intervals suggest.

    **Arguments:** `values`, `reference`: `[runs]`, run by run on the same problems; `reference` is never negative. The
    others as in `bootstrap_mean`. A value that is not finite makes the ratio infinite, and one of `reference` makes it
    0, or infinite where both are; where both means are 0 it is 1.

    **Returns:** `Interval(ratio, low, high)`.

    **Raises:** `ValueError` as `bootstrap_mean` does, for two lists of runs of different lengths, and for a negative
    reference.

    **Example:**

        >>> bootstrap_ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
        Interval(mean=0.5, low=0.5, high=0.5)
    """
    values, reference = np.asarray(values, np.float64), np.asarray(reference, np.float64)
    if values.ndim != 1 or values.shape != reference.shape:
        raise ValueError(
            f"`bootstrap_ratio` got values of shape {values.shape} and a reference of shape {reference.shape}, and"
            " needs one number per run of both, from the same runs. Otherwise there are no pairs to draw."
            " Give both of the same problems, or use `bootstrap_mean` of each."
        )
    check_reference(reference)
    pairs = np.stack([values, reference], axis=1)
    _check(pairs, resamples, level)
    whole = _means(np.ones((1, len(pairs))), pairs)
    drawn = np.concatenate([whole, _resampled_means(pairs, resamples, seed)], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = drawn[0] / drawn[1]
    ratios = np.where(np.isnan(ratios), np.where(drawn[0] == 0, 1.0, np.inf), ratios)
    low, high = np.sort(ratios[1:])[ends_of(resamples, level)]
    return Interval(float(ratios[0]), float(low), float(high))


def check_reference(reference: ArrayLike) -> None:
    """**Raises:** `ValueError` for what nothing is a share of."""
    if np.any(np.less(reference, 0)):
        raise ValueError(
            f"A ratio to a mean of losses was asked for, and the least of them is {np.nanmin(reference):.6g}. Of losses"
            " below zero the better one may have the larger ratio. Compare differences instead: `bootstrap_mean(values"
            " - reference)`; or give the loss an offset, so that 0 is the least that it can be."
        )


def ends_of(resamples: int, level: float) -> list[int]:
    """Where the ends of an interval lie among sorted draws, rounded outwards: an infinite one stays infinite."""
    tail = (1 - level) / 2 * (resamples - 1)
    return [int(np.floor(tail)), int(np.ceil(resamples - 1 - tail))]


def _check(curves: Float[np.ndarray, "..."], resamples: int, level: float) -> None:
    if curves.ndim != 2:
        raise ValueError(
            f"`bootstrap_curves` got curves of shape {curves.shape}, and needs shape [runs, steps]. "
            "With other axes it is not known what to draw. For one number per run use `bootstrap_mean`; "
            "otherwise reshape so that runs come first and steps second."
        )
    check_draws(curves.shape[0], resamples, level)


def check_draws(runs: int, resamples: int, level: float) -> None:
    """**Raises:** `ValueError` for no runs, a level outside (0, 1), and too few draws to reach the ends."""
    if runs == 0:
        raise ValueError(
            "The bootstrap got no runs. A mean of nothing has no value, and a NaN would reach the report as a "
            "result. Pass at least one run, and 30 or more for an interval that means something."
        )
    if not 0 < level < 1:
        raise ValueError(
            f"The bootstrap got level={level}, which is not between 0 and 1. It is the share of intervals that "
            "contain the true mean. Pass 0.95 for the usual 95 %, not 95."
        )
    least = int(np.ceil(2 / (1 - level) - 1e-9))
    if resamples < least:
        raise ValueError(
            f"The bootstrap got resamples={resamples} at level={level}. Fewer than {least} draws do not reach the "
            "ends of the interval, which would come out too narrow. Pass 10,000 or lower the level."
        )


def _resampled_means(
    curves: Float[np.ndarray, "runs steps"], resamples: int, seed: int
) -> Float[np.ndarray, "steps {resamples}"]:
    """The mean curve of each draw of the runs with replacement.

    The mean of a draw is a product with the counts of each run in it, so all draws are one matrix product. The
    generator starts at `seed` in each call: blocks of steps see the same draws.
    """
    runs, steps = curves.shape
    generator = np.random.default_rng(seed)
    means = np.empty((steps, resamples))
    chunk = max(1, _WEIGHTS_AT_ONCE // runs)
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        drawn = generator.integers(runs, size=(count, runs))
        drawn += runs * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * runs).reshape(count, runs).astype(np.float64)
        means[:, start : start + count] = _means(weights, curves)
    return means


def _means(
    weights: Float[np.ndarray, "draws runs"], curves: Float[np.ndarray, "runs steps"]
) -> Float[np.ndarray, "steps draws"]:
    """Weighted means over runs, infinite where a run with a weight is not finite.

    Failures are counted apart, since 0 * inf in the product would make NaN of a run that was not drawn.
    """
    runs = curves.shape[0]
    failed = ~np.isfinite(curves)
    # Dividing first keeps sums of losses near the largest float finite.
    means = np.where(failed, 0.0, curves / runs).T @ weights.T
    concerned = failed.any(axis=0)
    if concerned.any():
        hit = failed[:, concerned].T.astype(np.float64) @ weights.T > 0
        means[concerned] = np.where(hit, np.inf, means[concerned])
    return means
