"""Dispatch some days of a grid, a program for every quarter-hour, and draw which units serve the demand.

python examples/dispatch_week.py [DAYS [FILE.png]]
"""

import sys

import numpy as np
from matplotlib.figure import Figure

import bygrad
from bygrad.problems import EconomicDispatch
from bygrad.solvers import ADMM

family, days = EconomicDispatch.embedded(), int(sys.argv[1]) if len(sys.argv) > 1 else 7
demand = family.year()[: 96 * days]
solution = bygrad.solve(family, demand, method=ADMM(tol=1e-3))
outputs = 100 * solution.x  # MW
print(f"{len(demand)} quarter-hours, {solution.success.mean():.1%} solved, in {solution.nit.mean():.0f} steps")
print(f"proven: no dispatch costs over {solution.certificate.max():.2%} more than the cheapest there is")

# $/MWh in the middle of a unit's range tells what it burns; the cheapest lie at the bottom.
slope = np.asarray(family.cost[:, 1] + family.cost[:, 0] * family.capacity)
kinds = {"water, 0": 2, "uranium, 5": 10, "coal, 14 to 17": 30, "oil, 49 to 61": 100, "turbines, 130": np.inf}
kind = np.searchsorted(list(kinds.values()), slope)
hours = np.arange(len(demand)) / 4
figure = Figure(figsize=(9, 4), layout="constrained")
above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
colors = [(0.2 + 0.16 * i, 0.25 + 0.13 * i, 0.55 - 0.08 * i) for i in range(len(kinds))]
power = [outputs[:, kind == i].sum(axis=1) / 1000 for i in range(len(kinds))]
above.stackplot(hours / 24, *power, colors=colors, labels=list(kinds))
above.set(ylabel="GW", xlim=(0, hours[-1] / 24))
above.legend(loc="center left", bbox_to_anchor=(1, 0.5), reverse=True, frameon=False, title="$/MWh")
below.semilogy(hours / 24, np.maximum(solution.certificate, 1e-9), ".", markersize=2, color="0.3")
below.set(xlabel="day", ylabel="proven gap,\nshare of the cost")
if len(sys.argv) > 2:
    figure.savefig(sys.argv[2], dpi=80)
