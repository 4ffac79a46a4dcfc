"""Dials of a controller: the few directions that change it as a whole, as one would tune it by hand."""

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx

from .._core.definitions import TIME_SCALES
from .controller import PARTS, Controller

DIALS = ("size", "decay", "gradient", "mean", "memory", "tilt", "square_memory", "fall", "start", "layers", "reaches")
"""What `turned` turns, those that gained most on small networks first."""

_NUMBERS: dict[str, tuple[str, Any, float]] = {
    "decay": ("weight_decay", (), 0.1),
    "gradient": ("head_bias", 1, 0.2),
    "mean": ("head_bias", 0, 0.2),
    "memory": ("decays", 0, 0.5),
    "square_memory": ("decays", 1, 0.7),
    "start": ("head_times", (2, len(TIME_SCALES) + 1), 0.2),
    "layers": ("powers", 1, 0.03),
    "reaches": ("powers", 2, 0.03),
}
"""Those that are one meta-parameter: of which array, where, and by how much a turn changes it."""


def dials_of(controller: Controller) -> tuple[str, ...]:
    """Return the dials that a controller has."""
    without = {"reaches": not controller.reach, "decay": controller.weight_decay is None}
    return tuple(name for name in DIALS if not without.get(name))


def turned(controller: Controller, turns: Mapping[str, float]) -> Controller:
    r"""Return a controller with some of its dials turned.

    **Arguments:** `turns`: of any of these, how far; 0 leaves it, and turns add up. `size`: all steps times $\sqrt 2$
    a turn. `decay`: 0.1 more of the weight decay. `mean`, `gradient`: 0.2 more of $n$, of $q$. `memory`,
    `square_memory`: the logits of the two decays up by 0.5 and 0.7, so that a decay of 0.9 becomes 0.94 and one of 0.99
    becomes 0.995. `tilt`: steps half as long at the beginning as at the end. `fall`: steps fall along the third root of
    half a cosine. `start`: steps change by 0.2 once an eighth of the run is over, up from as much below. `layers`,
    `reaches`: $a_2$ and $a_3$ up by 0.03.

    **Raises:** `ValueError` for what is none of its dials.

        >>> import jax
        >>> from bygrad.optimizers import Controller, turned
        >>> slower = turned(Controller(jax.random.key(0)), {"size": -2.0, "fall": 3.0})  # half as fast, along a cosine
    """
    if strange := sorted(turns.keys() - set(dials_of(controller))):
        raise ValueError(
            f"{', '.join(strange)}: no dial of this controller, so nothing would change. It has"
            f" {', '.join(dials_of(controller))}."
        )
    controller = controller.scaled(2 ** (turns.get("size", 0.0) / 2)).fall(turns.get("fall", 0.0) / 3)
    controller = controller.with_schedule(turns.get("tilt", 0.0) * math.log(2) * (PARTS - 0.5))
    for name, (field, place, amount) in _NUMBERS.items():
        if turn := turns.get(name, 0.0):
            leaf = getattr(controller, field).at[place].add(turn * amount)
            controller = eqx.tree_at(lambda it, field=field: getattr(it, field), controller, leaf)
    return controller
