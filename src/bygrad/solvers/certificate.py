"""What held-out instances prove about new ones, exactly and whatever the distribution; and when it no longer holds."""

import math

import numpy as np

CONFIDENCE = 0.999
"""With which bounds hold: one certificate in a thousand may be wrong."""


def failure_bound(failures: int, trials: int, confidence: float = CONFIDENCE) -> float:
    r"""Return an upper bound on the probability of failure (Clopper and Pearson).

    The bound is the largest $p$ with $P(\operatorname{Bin}(N, p) \le m) \ge 1 - c$ for $m$ failures in $N$ trials. Over
    the draw of the trials, it lies below the true probability with probability $1 - c$ at most, for every $N$ and
    every distribution. It says nothing about instances from another distribution.

    >>> round(failure_bound(0, 1000), 5)
    0.00688

    **Arguments:** `failures`, `trials`: counts, independent of what was learned. `confidence`: $c$, in (0, 1).

    **Raises:** `ValueError` for counts that cannot be.
    """
    from scipy import special  # here and below: slow to load, and other commands need not wait for it

    _check(failures, trials, confidence)
    return 1.0 if failures == trials else float(special.betaincinv(failures + 1, trials - failures, confidence))


def percentile_bound(values: np.ndarray, quantile: float = 0.99, confidence: float = CONFIDENCE) -> float:
    r"""Return an upper bound on a quantile from independent draws, infinite where there are too few.

    It is the $k$-th smallest value with the least $k$ for which $P(\operatorname{Bin}(N, q) < k) \ge c$: fewer than $k$
    of $N$ draws lie below the quantile $q$ with that probability, and then the $k$-th does not.

    >>> percentile_bound(np.arange(2000.0))
    1992.0
    """
    from scipy import special

    count = len(values)
    _check(0, count, confidence)
    enough = np.flatnonzero(special.bdtr(np.arange(count), count, quantile) >= confidence)  # at most 0, 1, ... below
    return float(np.sort(values)[enough[0]]) if len(enough) else math.inf


def is_excess(count: int, trials: int, rate: float, level: float) -> bool:
    """Say whether `count` or more of independent trials have a probability of `level` at most, if each has `rate`.

    The smaller the true rate is, the less probable they are: `rate` may be an upper bound.
    """
    from scipy import special

    # `bdtrc`: the probability of more than so many.
    return count > 0 and rate < 1 and float(special.bdtrc(count - 1, trials, rate)) <= level


def _check(failures: int, trials: int, confidence: float) -> None:
    if not 0 <= failures <= trials or trials == 0 or not 0 < confidence < 1:
        raise ValueError(
            f"{failures} failures in {trials} trials at a confidence of {confidence} bound nothing. Give at least one"
            " trial, no more failures than trials, and a confidence between 0 and 1."
        )
