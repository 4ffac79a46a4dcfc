"""Numbers that belong to what a rule is, for its arithmetic in JAX and in PyTorch alike.

With others, the meta-parameters in the artifacts would mean something else: a change is a new `feature_version`.
"""

# Adam, and the controller over its arithmetic
EPSILON = 1e-8
UNDER_ROOT = 1e-30
"""Added to the second moment: far too small to change a step, and the derivative of the root at zero is finite."""

# The LSTM
FORGET_BIAS = 1.0
"""Added to the forget gate, so that a new cell remembers: the "now-standard" practice that the paper follows."""

# What the controller looks at
SAMPLE = 512
"""Coordinates of a tensor that its features are computed from, at most: the rest of a large tensor is passed over once,
by the update itself, as in Adam."""

FEWEST = 16
"""Columns of a wide matrix that a sample sees, at least."""

TIME_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0)
"""Steps after which each feature of the time changes sign."""

HORIZON_PARTS = tuple(part / 8 for part in range(9))
"""Parts of the horizon at which each feature of the horizon changes sign."""

SMALLEST_RATIO = 1e-12
"""Mean square of n or q below which they count as zero."""

SMALLEST_PARAMS = 1e-8
"""Mean square below which params count as zero."""

REACH = 32.0
"""Of a layer about as large as `log_sizes` compares with."""

# What the controller does
LARGEST_EXPONENT = 10.0

POWER_SCALE = 4.0
"""The powers are three numbers against hundreds of weights: so they need not go as far."""

# When a guard lets the learned optimizer move
RUN, REFERENCE, TRIAL, UNTOLD = 0, 1, 2, 3
"""Phases: one optimizer moves on; the fallback's part of a trial; the learned optimizer's part; no loss came yet."""

RISE = 3.0
"""Standard errors by which a loss must be above the best for a rise."""

PATIENCE = 3.0
"""Factor on the wait for the next trial, for every defeat since two trials in a row were won."""

STALE_WINDOWS, STALE_PART = 2, 1 / 2
"""The fallback goes on from where the learned optimizer is once that has had no new lowest loss for so many windows
and for this part of the time that it has moved: a loss that falls under its noise is not taken for one at rest."""

SHORTEST = 4
"""Calls that a trial needs at least."""

FIRST_PART = 1 / 10
"""Of the calls that may be discarded in a run of known length, for the first trial: in a long run, a few steps at the
start say little about where it ends."""

HOPELESS = 4
"""Losses in a row, all above the highest one of the fallback's part, that end a trial early."""

HUGE = 1e30
"""What larger losses count as, so that sums of them are finite."""

# What an envelope remembers
REMEMBER = 0.9
"""Of the share of gradients outside, from step to step: one odd minibatch is no reason."""
