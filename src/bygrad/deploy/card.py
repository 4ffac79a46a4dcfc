"""The model card of an artifact: its manifest for people to read."""

import json
import math

from .._core.sizes import IN_TORCH, horizons
from ..artifacts import Manifest

_TEXT = """\
---
license: {licence}
library_name: bygrad
tags:
- learned-optimizer
- optimizer
---

# {name}

A trained optimizer: {optimizer} with {parameters:,} meta-parameters, used wherever Adam is used. The file
`{file}` verifies itself, and reading it runs no code.

```
bygrad pull {repo} --revision COMMIT --out optimizer.safetensors
bygrad verify optimizer.safetensors
```

In JAX, as an optax transformation:

```python
import bygrad.deploy
transformation = bygrad.deploy.optax("optimizer.safetensors"{horizon})
```

{torch}

It was trained for the problems below. On others, with other sizes of gradients, or for many more steps than its
horizon, it may do anything: compare it with a tuned baseline first (`bygrad evaluate`), or guard it.

## Configuration

{config}

## Training

{training}

## Validation

What it reached on problems that it was not trained on.

{validation}

## Versions

{versions}

Digest of the meta-parameters: `{digest}`.
"""

_TORCH = """\
In PyTorch, as a `torch.optim.Optimizer`:

```python
from bygrad.deploy.torch import LearnedOptimizer
optimizer = LearnedOptimizer(model.parameters(), "optimizer.safetensors"{horizon})
```"""


def model_card(manifest: Manifest, repo: str, file: str) -> str:
    """Return the card as Markdown with the Hugging Face Hub's metadata in front.

    >>> manifest = Manifest(name="mine/first", optimizer="LSTM", config={}, features=1, tensors={})
    >>> model_card(manifest, "me/first", "optimizer.safetensors").splitlines()[8]
    '# mine/first'
    """
    parameters = sum(math.prod(spec.shape) for spec in manifest.tensors.values())
    horizon = ", horizon=steps" if horizons(manifest.tensors) else ""

    def block(fields: object) -> str:
        # In a fenced block, whatever the strings hold: JSON escapes line breaks, so that none can end it.
        return f"```json\n{json.dumps(fields, indent=1)}\n```"

    return _TEXT.format(
        licence=json.dumps(manifest.licence.lower()),
        name=manifest.name,
        optimizer=manifest.optimizer,
        parameters=parameters,
        file=file,
        repo=repo,
        config=block(manifest.config),
        training=block(manifest.training),
        validation=block(manifest.validation),
        versions=block(manifest.versions),
        digest=manifest.digest,
        horizon=horizon,
        torch=_TORCH.format(horizon=horizon) if manifest.optimizer in IN_TORCH else "It has no rule for PyTorch.",
    )
