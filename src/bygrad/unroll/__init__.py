"""Runs an optimizer on problem instances: rollouts, what they record, and their replay."""

from .lift import Lifted, lift, lift_by_vmap
from .replay import cotangents, replay, replay_coordinates, replay_parts, without_lost
from .rollout import (
    Inner,
    Trajectory,
    apart,
    begin,
    compiled_loss_curves,
    draw,
    instance_axes,
    judged_run,
    loss_curves,
    observe,
    rollout,
    run,
    step_keys,
)
from .segments import best_segment, replay_in_segments
from .window import Windows

__all__ = [
    "Inner",
    "Lifted",
    "Trajectory",
    "Windows",
    "apart",
    "begin",
    "best_segment",
    "compiled_loss_curves",
    "cotangents",
    "draw",
    "instance_axes",
    "judged_run",
    "lift",
    "lift_by_vmap",
    "loss_curves",
    "observe",
    "replay",
    "replay_coordinates",
    "replay_in_segments",
    "replay_parts",
    "rollout",
    "run",
    "step_keys",
    "without_lost",
]
