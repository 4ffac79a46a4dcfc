"""What does the LSTM's state in bfloat16 cost in loss? The shipped optimizer on the same runs, with both.

    python benchmarks/state_precision.py [--runs 64] [--quick] [--json FILE]

Nothing is trained again: the meta-parameters were learned with a state in float32. Differences are run by run, with a
95 % bootstrap interval.
"""

from typing import Any

import jax
import numpy as np
from _common import parser, show, write_record

import bygrad
from bygrad.evaluation import area, bootstrap_mean, final, run_curves
from bygrad.optimizers import LSTM
from bygrad.problems import find_family

FAMILIES = {"mnist": "sigmoid, 20 units", "mnist-40-units": "40 units", "mnist-relu": "ReLU"}


def compare(name: str, horizon: int, runs: int, data: str) -> list[dict[str, Any]]:
    """Measure both losses of one family, in float32 and as a difference."""
    family, wide = find_family(name, data=data, split="test"), bygrad.load("paper/mnist")
    assert isinstance(wide, LSTM)
    narrow = wide.with_state_dtype("bfloat16")
    single, half = (
        run_curves(it, family, jax.random.key(0xB16), horizon=horizon, runs=runs, chunk=4)[0] for it in (wide, narrow)
    )
    rows = []
    for measure, of in {"area": area, f"final of {horizon}": lambda curves: final(curves, 5)}.items():
        difference = bootstrap_mean(np.asarray(of(half)) - np.asarray(of(single)))
        row = {"family": name, "measure": measure, "float32": float(np.mean(of(single)))}
        rows.append(row | {"difference": difference._asdict()})
    return rows


def main() -> None:
    """Measure and print."""
    command = parser(__doc__)
    command.add_argument("--runs", type=int, default=64)
    command.add_argument("--horizons", type=int, nargs="+", default=[100, 200])
    command.add_argument("--data", default="mnist", help="as in `bygrad train`")
    options = command.parse_args()
    runs, horizons = (2, [10]) if options.quick else (options.runs, options.horizons)
    rows: list[dict[str, Any]] = []
    for name in FAMILIES:
        for horizon in horizons:
            rows += compare(name, horizon, runs, options.data)
            write_record(options.json, {"rows": rows, "runs": runs})
    cells = [
        {
            "family": FAMILIES[row["family"]],
            "measure": row["measure"],
            "float32": f"{row['float32']:.4g}",
            "bfloat16 - float32": "{mean:+.3g} [{low:+.3g}, {high:+.3g}]".format(**row["difference"]),
        }
        for row in rows
    ]
    show(f"loss with the state in bfloat16, {runs} runs", cells)


if __name__ == "__main__":
    main()
