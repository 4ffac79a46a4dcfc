"""Choose a portfolio for every window of ten simulated years, and draw how its weights move.

python examples/rolling_portfolios.py [STRIDE [FILE.png]]
"""

import sys

import numpy as np
from matplotlib.figure import Figure

import bygrad
from bygrad.problems import MeanVariance

family, stride = MeanVariance.simulated(), int(sys.argv[1]) if len(sys.argv) > 1 else 1
solution = bygrad.solve(family, family.windows()[::stride])
weights = solution.x
print(f"{len(weights)} windows, {solution.success.mean():.1%} solved, in {solution.nit.mean():.0f} steps")
print(f"{np.mean((weights > 1e-3).sum(axis=1)):.1f} of {weights.shape[1]} assets are held in the mean")

order = np.argsort(-weights.mean(axis=0))
years = (family.window + stride * np.arange(len(weights))) / 252
figure = Figure(figsize=(9, 3), layout="constrained")
axes = figure.subplots()
shades = [(0.2 + 0.035 * i, 0.3 + 0.03 * i, 0.5 + 0.02 * (i % 3)) for i in range(len(order))]
axes.stackplot(years, weights[:, order].T, colors=shades, edgecolor="white", linewidth=0.2)
axes.set(xlabel="years", ylabel="weights, asset upon asset", xlim=(years[0], years[-1]), ylim=(0, 1))
if len(sys.argv) > 2:
    figure.savefig(sys.argv[2], dpi=80)
