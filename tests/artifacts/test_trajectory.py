"""The golden trajectory: numbers that come back as they were, and nothing that a replay could stumble over."""

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bygrad.artifacts import Artifact, ArtifactError, Manifest, Trajectory, describe, draw_steps, from_bytes, to_bytes
from bygrad.artifacts.trajectory import MAX_STEPS, TOLERANCE


@pytest.fixture(scope="module")
def golden() -> Trajectory:
    steps = draw_steps()
    return Trajectory(steps, [{name: -0.1 * grad for name, grad in step.grads.items()} for step in steps], TOLERANCE)


def test_comes_back_bit_for_bit_through_a_file(golden: Trajectory) -> None:
    manifest = Manifest(
        name="test", optimizer="LSTM", config={}, features=1, tensors=describe({}), trajectory=golden.to_fields()
    )
    again = Trajectory.from_fields(from_bytes(to_bytes(Artifact(manifest, {}))).manifest.trajectory)
    assert again.tolerance == golden.tolerance
    assert again.deviation(golden.updates) == 0
    for ours, theirs in zip(again.steps, golden.steps, strict=True):
        assert ours.value == theirs.value
        for mine, its in ((ours.grads, theirs.grads), (ours.params, theirs.params)):
            assert {name: array.tobytes() for name, array in mine.items()} == {
                name: array.astype(np.float32).tobytes() for name, array in its.items()
            }


def test_the_inputs_span_magnitudes_and_change_sign() -> None:
    steps = draw_steps()
    flat = np.array([np.concatenate([grad.reshape(-1) for grad in step.grads.values()]) for step in steps])
    sizes = np.abs(flat).mean(0)
    assert sizes.max() / sizes.min() > 1e3
    assert 0 < np.mean(np.sign(flat) != np.sign(flat[0])) < 0.5
    assert {array.ndim for array in steps[0].grads.values()} == {0, 1, 2, 3}
    for once, again in zip(draw_steps(), steps, strict=True):
        assert all(np.array_equal(once.grads[name], again.grads[name]) for name in again.grads)


def test_the_deviation_is_over_the_largest_update_of_the_step(golden: Trajectory) -> None:
    size = max(float(np.max(np.abs(update))) for update in golden.updates[1].values())
    off = copy.deepcopy(golden.updates)
    off[1]["matrix"][2, 1] += 0.25 * size
    assert golden.deviation(off) == pytest.approx(0.25, rel=1e-5)
    for worst in (np.nan, np.inf, -np.inf):
        off[3]["vector"][0] = worst
        assert golden.deviation(off) == math.inf


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "keys": (lambda it: it.pop("shapes"), "has the keys .*'steps', 'tolerance'"),
    "extra": (lambda it: it.update(seed=0), "has the keys"),
    "tolerance": (lambda it: it.update(tolerance=2.0), "has the tolerance 2.0"),
    "loose": (lambda it: it.update(tolerance=0.02), "has the tolerance 0.02, which is no number above 0, up to 0.01"),
    "true": (lambda it: it.update(tolerance=True), "has the tolerance True"),
    "shapes": (lambda it: it["shapes"].update(vector=[-5]), "has the shapes"),
    "empty": (lambda it: it["shapes"].update(vector=[0]), "has the shapes"),
    "none": (lambda it: it.update(shapes={}), "has the shapes {}"),
    "bomb": (lambda it: it["shapes"].update(vector=[2**30] * 8), "more than 10,000 coordinates"),
    "steps": (lambda it: it.update(steps=[]), "has no steps"),
    "many": (lambda it: it.update(steps=it["steps"] * MAX_STEPS), "or more than 100"),
    "step": (lambda it: it["steps"][2].pop("grads"), "has the step 2 .*not exactly grads, params, updates and value"),
    "value": (lambda it: it["steps"][1].update(value="1"), "has the value '1' at step 1"),
    "missing": (lambda it: it["steps"][0]["params"].pop("vector"), "has params .* at step 0"),
    "length": (
        lambda it: it["steps"][4]["updates"]["vector"].pop(),
        "updates of 'vector' at step 4 that are not 5 num",
    ),
    "huge": (lambda it: it["steps"][4]["grads"].update(scalar=[1e39]), "grads of 'scalar' at step 4"),
    "text": (lambda it: it["steps"][4]["grads"].update(scalar=["1"]), "grads of 'scalar' at step 4"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_could_not_be_replayed_is_refused(name: str, golden: Trajectory) -> None:
    change, message = CHANGES[name]
    fields = json.loads(json.dumps(golden.to_fields()))
    change(fields)
    with pytest.raises(ArtifactError, match=f"the manifest's trajectory {message}|{message}"):
        Manifest(name="test", optimizer="LSTM", config={}, features=1, tensors={}, trajectory=fields)
