"""The paper's experiments and ours, as declarations, and what carries them out."""

from .activations import ACTIVATIONS
from .architectures import ARCHITECTURES
from .cifar import CIFAR
from .declaration import Budget, Experiment, Level, Setting
from .everything import everything
from .general import GENERAL
from .horizon import HORIZON
from .mnist import MNIST, MNIST_ANY_START
from .paper import paper_curves
from .quadratic import QUADRATIC, QUADRATIC_GAUSSIAN, QUADRATIC_GAUSSIAN_GAC
from .repairs import REPAIRED
from .reproduce import carry_out, reproduce
from .specializations import SPECIALIZATIONS
from .study import Study, Task
from .style import STYLE
from .thousands import THOUSANDS
from .transfer import TRANSFER
from .update_shapes import UPDATE_SHAPES
from .variations import VARIATIONS

EXPERIMENTS: dict[str, Experiment] = {
    it.name: it for it in (QUADRATIC, QUADRATIC_GAUSSIAN, QUADRATIC_GAUSSIAN_GAC, MNIST, MNIST_ANY_START, *CIFAR, STYLE)
}
"""The experiments, by name."""

STUDIES: dict[str, Study] = {
    it.name: it
    for it in (
        VARIATIONS,
        HORIZON,
        ARCHITECTURES,
        UPDATE_SHAPES,
        GENERAL,
        SPECIALIZATIONS,
        ACTIVATIONS,
        REPAIRED,
        TRANSFER,
        THOUSANDS,
    )
}
"""The experiments that are more than one optimizer on one family, by name."""

STUDIES["all"] = everything(EXPERIMENTS | STUDIES)

__all__ = [
    "EXPERIMENTS",
    "STUDIES",
    "Budget",
    "Experiment",
    "Level",
    "Setting",
    "Study",
    "Task",
    "carry_out",
    "paper_curves",
    "reproduce",
]
