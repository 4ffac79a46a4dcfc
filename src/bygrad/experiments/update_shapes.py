"""Appendix B: what the optimizer's updates look like, over a run and against the gradient of the moment."""

import dataclasses
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..deploy.jax import load
from ..evaluation import Picture, Protocol, tune_baselines, with_learning_rate
from ..evaluation.drawing import colours
from ..optimizers import BASELINES, SGD, Adam, Coordinatewise, Optimizer
from ..problems import ProblemFamily
from ..unroll import begin, rollout
from ..workflows.folder import Kept
from .declaration import Budget
from .study import Study, Task

if TYPE_CHECKING:
    import matplotlib.figure


@dataclasses.dataclass(frozen=True)
class Case:
    """A trained optimizer, and the family on whose path it is watched. `file`: begins the names of its results."""

    trained: str
    family: str
    protocol: Protocol
    file: str = ""


_MNIST = Case("paper/mnist", "mnist", Protocol(100, runs=1, tuning_runs=8, final_window=5))
# Useful steps are some ten pixel values, and a run takes long.
_STYLE = Case(
    "paper/style",
    "style",
    Protocol(128, runs=1, tuning_runs=1, chunk=1, rates=5, rates_at_once=1, rate_scale=1_000.0, area_rates=False),
    file="style-",
)
CASES: dict[Budget, tuple[Case, ...]] = {
    "quick": (dataclasses.replace(_MNIST, protocol=dataclasses.replace(_MNIST.protocol, tuning_runs=1)),),
    "paper": (_MNIST, _STYLE),
}
"""The paper's are of style transfer."""

RESPONSES = 32
"""Steps whose response to the gradient is drawn, as in the paper."""
COORDINATES = 6
"""Coordinates whose history is drawn."""
POINTS = 81
"""Gradients at which a response is computed."""


def _carry_out(task: Task) -> dict[str, Any]:
    task.claim(UPDATE_SHAPES)
    results: dict[str, Any] = {"title": "What updates look like"}
    statements, pictures = [], []
    kept = Kept(task.folder / "cases.json")
    for case in CASES[task.budget]:
        if case.trained not in kept:
            kept[case.trained] = _watch(case, task)
        found = kept[case.trained]
        results |= {case.file + key: value for key, value in found.items()}
        statements.append(_statement(case, found))
        pictures += _pictures(case, found)
    return task.finish(UPDATE_SHAPES, results, " ".join(statements), pictures)


def _watch(case: Case, task: Task) -> dict[str, Any]:
    """Return what is found in a case, as JSON."""
    protocol = dataclasses.replace(case.protocol, seed=task.seed)
    train, test = (task.family(case.family, split) for split in ("train", "test"))
    tunings = tune_baselines(train, protocol, {"SGD": SGD, "Adam": Adam}, task.display.phase)
    optimizer = load(case.trained)
    others = {name: with_learning_rate(BASELINES[name](), tuning.best_final) for name, tuning in tunings.items()}
    grads = path_of(optimizer, test, protocol)
    shown = choose(grads)
    updates = {name: history(it, grads[:, shown]) for name, it in {"LSTM": optimizer, **others}.items()}
    swept, responses = sweep({"LSTM": optimizer, "Adam": others["Adam"]}, grads[:RESPONSES, shown[-1]])
    return {
        "coordinates": shown.tolist(),
        "gradients": grads[:, shown].T.tolist(),
        "updates": {name: found.T.tolist() for name, found in updates.items()},
        "responses": {"gradients": swept.tolist(), **{name: found.tolist() for name, found in responses.items()}},
        "learning_rates": {name: tuning.best_final for name, tuning in tunings.items()},
        "configuration": {"protocol": dataclasses.asdict(protocol), "data": task.data},
    }


def _statement(case: Case, found: dict[str, Any]) -> str:
    rates = ", ".join(f"{name} at {rate:.3g}" for name, rate in found["learning_rates"].items())
    return (
        f"{case.trained} runs on the family {case.family}; all optimizers see the gradients of its path, {rates}"
        " (tuned)."
    )


def _pictures(case: Case, found: dict[str, Any]) -> list[Picture]:
    updates = {name: np.array(rows).T for name, rows in found["updates"].items()}
    responses = {name: np.array(rows) for name, rows in found["responses"].items()}
    swept, grads = responses.pop("gradients"), np.array(found["gradients"][-1])
    histories = Picture(
        f"{case.file}histories",
        f"Updates of six coordinates over {case.protocol.horizon} steps, on the LSTM's path: {case.trained}.",
        _draw_histories(updates),
    )
    steps = Picture(
        f"{case.file}responses",
        f"The update of {case.trained} against the gradient of one coordinate at steps 1 to 32, the past as it was. The"
        " dashed line is the gradient that came.",
        _draw_responses(swept, responses, grads[:RESPONSES]),
    )
    return [histories, steps]


def path_of(optimizer: Optimizer, family: ProblemFamily, protocol: Protocol) -> np.ndarray:
    """Return the gradients `[steps, coordinates]` that a coordinatewise optimizer meets in a run of its own."""
    if not isinstance(optimizer, Coordinatewise):
        raise TypeError(f"{type(optimizer).__name__} is not coordinatewise: its updates have no shape of their own.")

    @eqx.filter_jit
    def run(optimizer: Optimizer, family: ProblemFamily) -> Any:
        keys = jax.random.split(protocol.keys[1], 1)
        return rollout(optimizer, family, begin(optimizer, family, keys), protocol.horizon)[1].grads

    return np.asarray(run(optimizer, family))[:, 0]


def choose(grads: np.ndarray, count: int = COORDINATES) -> np.ndarray:
    """Return coordinates evenly spaced by the size of their gradients, from the median to the 99th percentile."""
    size = np.sqrt(np.mean(np.square(grads), axis=0))
    order = np.argsort(size)
    places = np.linspace(0.5, 0.99, count) * (len(order) - 1)
    return order[places.astype(int)]


def history(optimizer: Optimizer, grads: np.ndarray) -> np.ndarray:
    """Return the updates `[steps, coordinates]` that an optimizer makes of gradients, given one after the other."""

    @eqx.filter_jit
    def run(optimizer: Optimizer, grads: Any) -> Any:
        def body(state: Any, grad: Any) -> tuple[Any, Any]:
            updates, state = optimizer.update(grad, state)
            return state, updates

        return jax.lax.scan(body, optimizer.init(grads[0]), grads)[1]

    return np.asarray(run(optimizer, jnp.asarray(grads)))


def sweep(optimizers: dict[str, Optimizer], grads: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return gradients `[points]`, and by optimizer the updates `[steps, points]` that they would have met.

    At each step of a run on `grads` `[steps]`, the state is frozen and every gradient is tried in place of the next.
    """
    widest = 2 * float(np.quantile(np.abs(grads), 0.95)) or 1.0
    swept = np.linspace(-widest, widest, POINTS)

    @eqx.filter_jit
    def run(optimizer: Optimizer, grads: Any, swept: Any) -> Any:
        def body(state: Any, grad: Any) -> tuple[Any, Any]:
            tried = jax.vmap(lambda one: optimizer.update(one, state)[0])(swept)
            return optimizer.update(grad, state)[1], tried

        return jax.lax.scan(body, optimizer.init(grads[0]), grads)[1]

    inputs = jnp.asarray(grads)[:, None], jnp.asarray(swept, jnp.float32)[:, None]
    return swept, {name: np.asarray(run(it, *inputs))[..., 0] for name, it in optimizers.items()}


def _draw_histories(updates: dict[str, np.ndarray]) -> "matplotlib.figure.Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 4.2), layout="constrained")
    panels = figure.subplots(2, COORDINATES // 2, sharex=True)
    palette = colours([name.lower() for name in updates])
    for place, axes in enumerate(panels.flat):
        for name, found in updates.items():
            width = 1.6 if name == "LSTM" else 1.0
            axes.plot(
                range(1, len(found) + 1), found[:, place], color=palette[name.lower()], linewidth=width, label=name
            )
        axes.axhline(0, color="#999999", linewidth=0.5)
        axes.tick_params(labelsize=7)
    for axes in panels[-1]:
        axes.set_xlabel("step", fontsize=8)
    panels[0][0].set_ylabel("update", fontsize=8)
    panels[0][-1].legend(fontsize=7, frameon=False)
    return figure


def _draw_responses(
    swept: np.ndarray, responses: dict[str, np.ndarray], grads: np.ndarray
) -> "matplotlib.figure.Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 4.6), layout="constrained")
    panels = figure.subplots(4, RESPONSES // 4, sharex=True, sharey="row")
    palette = colours([name.lower() for name in responses])
    for step, axes in enumerate(panels.flat):
        for name, found in responses.items():
            axes.plot(swept, found[step], color=palette[name.lower()], linewidth=1.2, label=name)
        if abs(grads[step]) <= swept[-1]:
            axes.axvline(grads[step], color="#999999", linewidth=0.6, linestyle="--")
        axes.set_title(f"{step + 1}", fontsize=7, pad=2)
        axes.tick_params(labelsize=6)
        axes.locator_params(nbins=3)
        half = f"{swept[-1] / 2:.1g}"
        axes.set_xticks([0, float(half)], ["0", half])
    figure.supxlabel("gradient", fontsize=8)
    figure.supylabel("update", fontsize=8)
    panels[0][-1].legend(fontsize=6, frameon=False)
    return figure


UPDATE_SHAPES = Study("update-shapes", "Appendix B: updates over a run and against the gradient", _carry_out)
