"""A family judged by data that it is not trained on."""

import jax

from .._core.types import Instance, Params, PRNGKeyArray, Scalar
from .base import ProblemFamily


class HeldOut(ProblemFamily):
    r"""The problems of another family, with its held-out loss as the value and the gradient of its training loss.

    Whoever descends follows the training loss; whoever looks at values, in meta-training by evolution strategies, in
    tuning or in a comparison, sees the held-out loss. Meta-gradients that are made from gradients (`Replay`,
    `Backprop`, `Forward`, `Blend`) would be wrong here.

    **Arguments:** `family`: one that has a `held_out_loss`.
    """

    family: ProblemFamily

    def sample(self, key: PRNGKeyArray) -> Instance:
        return self.family.sample(key)

    def init(self, instance: Instance, key: PRNGKeyArray) -> Params:
        return self.family.init(instance, key)

    def loss(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        training = self.family.loss(params, instance, key)
        fixed = jax.lax.stop_gradient(params)
        # Another branch of the key: the same one would draw minibatches that are paired with those trained on.
        other = None if key is None else jax.random.fold_in(key, 1)
        return self.family.held_out_loss(fixed, instance, other) + (training - jax.lax.stop_gradient(training))
