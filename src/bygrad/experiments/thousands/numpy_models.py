"""Models in NumPy, with their derivatives: for small ones, to call a compiled function costs more than to compute."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ...problems import BallAndStick, DampedOscillation, LennardJones
from ...problems.lennard_jones import CLOSEST


class Model(NamedTuple):
    """Residuals, and their slopes with a row for each param, as functions of params and instance."""

    residuals: Callable[[Float[np.ndarray, " p"], Any], Float[np.ndarray, " m"]]
    slopes: Callable[[Float[np.ndarray, " p"], Any], Float[np.ndarray, "p m"]]


Cost = Callable[[np.ndarray, Any], tuple[float, np.ndarray]]
"""Maps params and instance to a cost and its gradient."""


def voxel_model(family: BallAndStick) -> Model:
    """Return the model of a voxel."""
    bvals, bvecs, noise = np.asarray(family.bvals, float), np.asarray(family.bvecs, float), family.noise

    def parts(p: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return cosines with the stick and their slopes by its angles, the decay, and signals of stick and ball."""
        s, c, sin, cos = np.sin(p[3]), np.cos(p[3]), np.sin(p[4]), np.cos(p[4])
        along = bvecs @ np.array([[s * cos, c * cos, -s * sin], [s * sin, c * sin, s * cos], [c, -s, 0.0]])
        decay = bvals * np.exp(p[1])
        signal = np.exp(p[0]) / noise
        return along.T, decay, signal * np.exp(-decay * along[:, 0] ** 2), signal * np.exp(-decay)

    def residuals(p: np.ndarray, signals: np.ndarray) -> np.ndarray:
        _, _, stick, ball = parts(p)
        fraction = np.sin(p[2]) ** 2
        return fraction * stick + (1 - fraction) * ball - signals / noise

    def slopes(p: np.ndarray, signals: np.ndarray) -> np.ndarray:
        (along, polar, azimuthal), decay, stick, ball = parts(p)
        fraction = np.sin(p[2]) ** 2
        turned = -2 * fraction * stick * decay * along
        diffused = -decay * (fraction * stick * along**2 + (1 - fraction) * ball)
        mixed = np.sin(2 * p[2]) * (stick - ball)
        return np.stack([fraction * stick + (1 - fraction) * ball, diffused, mixed, turned * polar, turned * azimuthal])

    return Model(residuals, slopes)


def oscillation_model(family: DampedOscillation) -> Model:
    """Return the model of a damped oscillation."""
    t, noise = np.linspace(0.0, 1.0, family.points), family.noise
    turns, level = 2 * np.pi * t, np.full(family.points, 1 / noise)

    def residuals(p: np.ndarray, samples: np.ndarray) -> np.ndarray:
        return (p[0] * np.exp(-t * np.exp(-p[1])) * np.cos(turns * p[2] + p[3]) + p[4] - samples) / noise

    def slopes(p: np.ndarray, samples: np.ndarray) -> np.ndarray:
        spent, phase = t * np.exp(-p[1]), turns * p[2] + p[3]
        height = np.exp(-spent) / noise
        wave, turned = height * np.cos(phase), -p[0] * height * np.sin(phase)
        return np.stack([wave, p[0] * wave * spent, turned * turns, turned, level])

    return Model(residuals, slopes)


def cluster_energy(family: LennardJones) -> Cost:
    """Return a cluster's energy and gradient as a function of all positions, and of an instance that does not matter.

    Differences of pairs, and forces of atoms from those of pairs, are products with the incidence matrix.
    """
    first, second = np.triu_indices(family.atoms, 1)
    apart = np.eye(family.atoms)[first] - np.eye(family.atoms)[second]
    together = np.ascontiguousarray(apart.T)
    limit = CLOSEST**2
    slope = 4 * (3 * limit**-4 - 6 * limit**-7)

    def both(x: np.ndarray, _: Any) -> tuple[float, np.ndarray]:
        between = apart @ x.reshape(-1, 3)
        squared = np.einsum("ij,ij->i", between, between)
        capped = np.maximum(squared, limit)
        inverse = 1 / (capped * capped * capped)
        energy = 4 * inverse @ (inverse - 1) + slope * np.sum(squared - capped)
        pull = np.where(squared > limit, (24 - 48 * inverse) * inverse / capped, 2 * slope)
        return float(energy), (together @ (pull[:, None] * between)).ravel()

    return both
