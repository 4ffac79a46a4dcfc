"""Fly quadrotors by model predictive control: a program for each of them ten times a second, all solved together.

python examples/quadrotor_flight.py [STEPS [FILE.png]]
"""

import sys

import jax
import numpy as np
from matplotlib.figure import Figure

import bygrad
from bygrad.problems import QuadrotorControl
from bygrad.solvers import ADMM

family, steps = QuadrotorControl.build(), int(sys.argv[1]) if len(sys.argv) > 1 else 60
states = np.asarray(jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 64)), float)
flight, thrust, solved = [states], [], []
for _ in range(steps):
    plan = bygrad.solve(family, states, method=ADMM(tol=1e-4), batch=64)
    states = plan.x[:, 12:24]  # the first state of the plan after this one is where it goes
    flight.append(states)
    thrust.append(plan.x[:, 132:136])  # the first inputs, after the 11 states
    solved.append(plan.success.mean())
course = np.stack(flight)
distance = np.linalg.norm(course[..., 3:6] - [0, 0, 1], axis=-1)
print(f"64 quadrotors, {steps} steps, {np.mean(solved):.1%} of {64 * steps} programs solved")
print(f"from the target: {np.median(distance[0]):.2f} m at first, {distance[-1].max():.3f} m at most in the end")

seconds = 0.1 * np.arange(len(course))
figure = Figure(figsize=(9, 3), layout="constrained")
left, middle, right = figure.subplots(1, 3)
left.plot(course[..., 3], course[..., 4], linewidth=0.7)
left.plot(0, 0, "k+")
left.set(xlabel="x, metres", ylabel="y, metres", aspect="equal")
middle.plot(seconds, course[..., 5], linewidth=0.7)
middle.axhline(1, color="k", linewidth=0.5, linestyle=":")
middle.set(xlabel="seconds", ylabel="height, metres")
right.plot(seconds[:-1], np.stack(thrust)[..., 0], linewidth=0.7)
for limit in family.limits[:, -1]:  # lowest and highest thrust; those of the states come before
    right.axhline(limit, color="k", linewidth=0.5, linestyle=":")
right.set(xlabel="seconds", ylabel="thrust above hovering")
if len(sys.argv) > 2:
    figure.savefig(sys.argv[2], dpi=80)
