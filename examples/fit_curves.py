"""Fit patients after a dose of a drug, and signals that ring: data, the start of a fit, and where it ends.

python examples/fit_curves.py [COUNT [FILE.png]]
"""

import sys

import jax
import numpy as np
from matplotlib.figure import Figure

import bygrad
from bygrad.problems import DampedOscillation, OralDose
from bygrad.problems.pharmacokinetics import TIMES

count = int(sys.argv[1]) if len(sys.argv) > 1 else 4
keys = jax.random.split(jax.random.key(1), count)
patients, signals = OralDose(), DampedOscillation()
figure = Figure(figsize=(9, 4), layout="constrained")
above, below = figure.subplots(2, count, squeeze=False)
for family, row, times, units in (
    (patients, above, np.asarray(TIMES), ("hours", "log mg/l")),
    (signals, below, np.linspace(0, 1, signals.points), ("seconds", "signal")),
):
    data = np.asarray(jax.vmap(family.sample)(keys), float)
    solution = bygrad.solve(family, data, starts=5)
    # Signals between their samples as well; a patient's curve has a corner at every draw of blood.
    fine = times if family is patients else np.linspace(0, 1, 8 * (signals.points - 1) + 1)
    model = jax.vmap(patients.log_concentrations if family is patients else DampedOscillation(len(fine)).signal)
    begins, ends = np.asarray(model(jax.vmap(family.init)(data, keys))), np.asarray(model(solution.x))
    print(f"{type(family).__name__}: {solution.success.mean():.0%} solved, {solution.nit.mean():.0f} steps of 5 starts")
    for axes, one, begin, end in zip(row, data, begins, ends, strict=True):
        axes.plot(fine, begin, ":", color="0.6", label="start")
        axes.plot(fine, end, label="fit")
        axes.plot(times, one, "k.", markersize=4, label="data")
    row[0].set(xlabel=units[0], ylabel=units[1])
above[0].legend(frameon=False, fontsize="small")
if len(sys.argv) > 2:
    figure.savefig(sys.argv[2], dpi=80)
