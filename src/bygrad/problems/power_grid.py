"""How power that is fed into a grid flows over its lines."""

import numpy as np
from jaxtyping import Float, Int


def transfer_factors(
    lines: np.ndarray, reactance: Float[np.ndarray, " lines"], buses: int
) -> Float[np.ndarray, "lines buses"]:
    """Return the power on each line for a unit of power fed in at each bus and taken out at the first one.

    **Source:** Wood, Wollenberg and Sheblé, *Power generation, operation, and control* (2013), section 7.5.
    """
    incidence = np.zeros((len(lines), buses))
    incidence[np.arange(len(lines)), lines[:, 0]] = 1
    incidence[np.arange(len(lines)), lines[:, 1]] = -1
    flows = incidence / reactance[:, None]
    factors = np.zeros((len(lines), buses))
    factors[:, 1:] = flows[:, 1:] @ np.linalg.inv((incidence.T @ flows)[1:, 1:])
    return factors


def unlike_lines(
    factors: Float[np.ndarray, "lines buses"],
) -> tuple[Float[np.ndarray, "unlike buses"], Int[np.ndarray, " unlike"]]:
    """Return the factors of lines that are unlike, as parallel ones carry the same power, and which these are."""
    unlike = np.unique(np.round(factors, 9), axis=0, return_index=True)[1]
    return factors[unlike], unlike
